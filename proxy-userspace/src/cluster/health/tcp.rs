//! A TCP check: a connection, or bytes out and the right ones back.

use proxy_config::model::address::Address;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::judge::Verdict;
use super::session::Kept;
use crate::cluster::Cluster;
use crate::cluster::connect::{self, Client, Source};
use crate::cluster::host::Host;
use crate::net::Dial;
use crate::transport::Stream;

/// What comes in while a match is awaited; more is a wrong answer.
const MOST: usize = 1 << 20;

pub(super) async fn ask(
    cluster: &Cluster,
    host: &Host,
    to: &Address,
    dial: &dyn Dial,
    send: &[u8],
    receive: &[Vec<u8>],
    kept: &mut Kept,
) -> Verdict {
    let mut stream = match kept.tcp.take() {
        Some(stream) => stream,
        None => match open(cluster, host, to, dial).await {
            Some(stream) => stream,
            None => return Verdict::Network,
        },
    };
    let sent = async {
        stream.write_all(send).await?;
        stream.flush().await
    };
    if !send.is_empty() && sent.await.is_err() {
        return Verdict::Network;
    }
    let mut came = Vec::new();
    // Nothing to wait for: the connection was all that was asked.
    while !contains(&came, receive) {
        match stream.read_buf(&mut came).await {
            Ok(0) | Err(_) => return Verdict::Network,
            Ok(_) if came.len() > MOST => return Verdict::Wrong { retriable: true },
            Ok(_) => {}
        }
    }
    if !receive.is_empty() {
        kept.tcp = Some(stream);
    }
    Verdict::Healthy { degraded: false }
}

/// A connection to where the host is checked, on the cluster's transport socket for the host.
pub(super) async fn open(cluster: &Cluster, host: &Host, to: &Address, dial: &dyn Dial) -> Option<Stream> {
    let client = Client { source: &Source::Cluster, facts: None, connection_id: 0, alpn: &[], names: None };
    match connect::to(cluster, host, to, dial, &client).await {
        Ok(connected) => Some(Stream::new(connected.io, connected.transport)),
        Err(error) => {
            log::debug!("health check of cluster {}: {error}", cluster.model.name);
            None
        }
    }
}

/// All of these, in order, with anything between.
pub(super) fn contains(data: &[u8], wanted: &[Vec<u8>]) -> bool {
    let mut rest = data;
    for want in wanted.iter().filter(|want| !want.is_empty()) {
        let Some(at) = rest.windows(want.len()).position(|window| window == want) else { return false };
        rest = rest.get(at + want.len()..).unwrap_or_default();
    }
    true
}
