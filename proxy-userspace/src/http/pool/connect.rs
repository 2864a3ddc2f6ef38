//! A connection is made, for whoever waits in its pool.

use std::sync::Arc;

use http::Version;

use super::lease::Link;
use super::life::{Facts, Life};
use super::settings::Protocol;
use super::state::{Pool, Refused};
use crate::clock;
use crate::cluster::breaker::{self, Overflow};
use crate::cluster::{self, Client, Cluster, ConnectError, Connected, Event, connect};
use crate::http::{Io, ResetReason, h1, h2};
use crate::net::conn::canonical;

pub(super) fn start(pool: &Arc<Pool>, place: breaker::Connection) {
    // Envoy makes the codec before there is a connection.
    match pool.protocol() {
        Protocol::Http1 => pool.stats().upstream_cx_http1_total.inc(),
        Protocol::Http2 => pool.stats().upstream_cx_http2_total.inc(),
        Protocol::Auto => {}
    }
    let attempt = Attempt { pool: pool.clone(), place: Some(place), done: false };
    pool.tasks.spawn_on(pool.worker(), "upstream connect", attempt.run());
}

struct Attempt {
    pool: Arc<Pool>,
    place: Option<breaker::Connection>,
    done: bool,
}

impl Attempt {
    async fn run(mut self) {
        let pool = self.pool.clone();
        let Some(cluster) = pool.cluster() else { return };
        match self.connect(&cluster).await {
            Ok((link, life)) => {
                self.done = true;
                pool.connected(link, life);
            }
            Err(error) => {
                log::debug!("{}: {:?}: {error}", cluster.model.name, pool.host());
                cluster.connect_failed(pool.host(), &error);
                self.failed(&Refused::from(&error));
            }
        }
    }

    async fn connect(&mut self, cluster: &Arc<Cluster>) -> Result<(Link, Arc<Life>), ConnectError> {
        let pool = self.pool.clone();
        let (since, id) = (clock::now(), pool.next_connection());
        let client = Client {
            source: &pool.source,
            facts: pool.facts.as_deref(),
            connection_id: id,
            alpn: pool.protocol().alpn(),
            names: pool.more().map(|more| &more.names),
        };
        let connected = connect::ready(cluster, pool.host(), pool.dial.as_ref(), &client).await?;
        cluster.report(pool.host(), Event::ConnectedForRequests(connected.took));
        let tls = connected.transport.as_ref().and_then(|transport| transport.tls()).cloned();
        let version = version(pool.protocol(), tls.as_deref().and_then(|tls| tls.alpn.as_deref()));
        let local = match &connected.io {
            cluster::Io::Tcp(stream) => stream.local_addr().ok().map(canonical),
            cluster::Io::Unix(_) => None,
        };
        // It was put there when this began, and nobody else takes it.
        let Some(place) = self.place.take() else { return Err(ConnectError::Timeout) };
        let facts = Facts { id, local, tls, version, took: connected.took, since };
        let life = Life::new(facts, &pool, place);
        let link = self.open(connected, &life).await?;
        Ok((link, life))
    }

    async fn open(&self, connected: Connected, life: &Arc<Life>) -> Result<Link, ConnectError> {
        let (pool, io) = (&self.pool, Io::Upstream(connected));
        match (pool.protocol(), life.version) {
            (Protocol::Auto, Version::HTTP_2) => pool.stats().upstream_cx_http2_total.inc(),
            (Protocol::Auto, _) => pool.stats().upstream_cx_http1_total.inc(),
            (Protocol::Http1 | Protocol::Http2, _) => {}
        }
        if life.version != Version::HTTP_2 {
            return Ok(Link::Http1(h1::Client::new(io, pool.settings().h1.clone())));
        }
        let (of_pool, of_life, id) = (Arc::downgrade(pool), Arc::downgrade(life), life.id);
        let ended = move |h2::Ended { going_away, remote, broken }| {
            let reason = broken.map(|reset| reset.reason);
            // After a GOAWAY it is Envoy who closes, once no stream is left; a broken protocol it does not go on with.
            let ours = [ResetReason::Local, ResetReason::Protocol];
            // Its last request may have left before it.
            if let Some(life) = of_life.upgrade() {
                life.ended(!going_away && reason.map_or(remote, |reason| !ours.contains(&reason)));
            }
            if let Some(pool) = of_pool.upgrade() {
                if going_away {
                    pool.stats().upstream_cx_close_notify.inc();
                } else if reason == Some(ResetReason::Protocol) {
                    pool.stats().upstream_cx_protocol_error.inc();
                }
                pool.remove(id);
            }
        };
        let settings = h2::Settings { traffic: Some(pool.stats().clone()), ..pool.settings().h2.clone() };
        let client = h2::Client::start(io, &settings, &pool.tasks, ended).await;
        client.map(Link::Http2).map_err(|reset| {
            let source = std::io::Error::other(reset.details);
            ConnectError::Delayed { source }
        })
    }

    fn failed(&mut self, refused: &Refused) {
        self.done = true;
        if let Some(place) = self.place.take() {
            drop(place);
            self.pool.lost();
        }
        self.pool.failed(refused);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // The cluster has gone, or the daemon ends.
        if !self.done {
            self.failed(&Refused::Gone);
        }
    }
}

/// Without ALPN it is HTTP/1 where both would do, as in Envoy.
fn version(protocol: Protocol, alpn: Option<&str>) -> Version {
    match (protocol, alpn) {
        (Protocol::Http2, _) | (Protocol::Auto, Some("h2")) => Version::HTTP_2,
        (Protocol::Http1 | Protocol::Auto, _) => Version::HTTP_11,
    }
}

impl From<&ConnectError> for Refused {
    fn from(error: &ConnectError) -> Self {
        let local = error.is_local();
        match error {
            ConnectError::Overflow(overflow) => Self::Overflow(*overflow),
            ConnectError::Timeout => {
                Self::Failed { reason: ResetReason::ConnectionTimeout, local, details: "".into() }
            }
            ConnectError::Immediate { .. } | ConnectError::Delayed { .. } | ConnectError::Transport(_) => {
                let details = error.to_string().into();
                Self::Failed { reason: ResetReason::ConnectionFailure, local, details }
            }
        }
    }
}

impl From<Overflow> for Refused {
    fn from(overflow: Overflow) -> Self {
        Self::Overflow(overflow)
    }
}
