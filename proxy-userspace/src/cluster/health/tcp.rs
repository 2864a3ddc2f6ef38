//! A TCP check: a connection, or bytes out and the right ones back.

use proxy_config::model::address::Address;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::judge::Verdict;
use super::session::Kept;
use crate::cluster::Cluster;
use crate::cluster::connect::{self, Io, Source};
use crate::net::Dial;

/// What comes in while a match is awaited; more is a wrong answer.
const MOST: usize = 1 << 20;

pub(super) type Stream = Box<dyn Duplex>;

pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

pub(super) async fn ask(
    cluster: &Cluster,
    to: &Address,
    dial: &dyn Dial,
    send: &[u8],
    receive: &[Vec<u8>],
    kept: &mut Kept,
) -> Verdict {
    let mut stream = match kept.tcp.take() {
        Some(stream) => stream,
        None => match open(cluster, to, dial).await {
            Some(stream) => stream,
            None => return Verdict::Network,
        },
    };
    if !send.is_empty() && stream.write_all(send).await.is_err() {
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

pub(super) async fn open(cluster: &Cluster, to: &Address, dial: &dyn Dial) -> Option<Stream> {
    match connect::open(cluster, to, dial, &Source::Cluster).await {
        Ok(Io::Tcp(stream)) => Some(Box::new(stream)),
        Ok(Io::Unix(stream)) => Some(Box::new(stream)),
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
