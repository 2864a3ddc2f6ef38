//! `tap`: a copy of what passes, for people.
//!
//! Around an inner transport, so what is copied are the application's bytes: over TLS the plaintext. Whether a
//! connection is tapped is decided once, when it begins; one that is not tapped gets its inner transport alone.
//!
//! The data path makes the [`tapper`]'s events and hands finished traces on. Encoding and writing are the work of
//! others: a thread of its own for [`files`], the admin's thread for [`admin`]. Neither is waited for. What they are
//! too slow for is lost by whole traces, counted and logged.

pub mod admin;
mod files;
mod layer;
mod plan;
mod tapper;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proxy_config::model::{Address, transport as model};
use proxy_config::tap::Connection;

use self::admin::{Attachments, Slot};
use self::files::Files;
use self::plan::Plan;
use super::{BuildError, Env, Factory, Link, NotReady, Transport};
use crate::secret::Slot as Secret;
use crate::telemetry::stats::stats_block;

stats_block! {
    /// `transport.tap.` or `transport.tap.<stats_prefix>.`
    pub struct TapStats {
        counter buffered_submit;
        counter streamed_submit;
        counter cx_sampled_out;
        /// Ours: traces of which something was lost, because their reader or the disk was too slow.
        counter trace_dropped;
        /// Ours: traces whose file could not be opened or written.
        counter trace_write_failed;
    }
}

/// What the taps of one proxy have in common: the writer of their files, and who may be asked for at `/tap`.
#[derive(Default)]
pub struct Taps {
    files: Files,
    attachments: Attachments,
}

impl Taps {
    /// Waits until what was traced so far is written. False if `deadline` passed first. Blocks the caller.
    pub fn flush(&self, deadline: Duration) -> bool {
        self.files.flush(deadline)
    }
}

pub struct Tap {
    source: Source,
    per_event: bool,
    stats: Arc<TapStats>,
    connections: Arc<AtomicU64>,
    inner: Arc<dyn Factory>,
}

enum Source {
    Static(Arc<Plan>),
    Admin(Arc<Slot>),
}

impl Tap {
    pub fn new(model: &model::Tap, inner: Arc<dyn Factory>, env: &Env) -> Result<Self, BuildError> {
        let source = match &model.source {
            model::TapSource::Static(config) => {
                Source::Static(Arc::new(Plan::of_configuration(config, &env.taps.files)?))
            }
            model::TapSource::Admin { config_id } => Source::Admin(env.taps.attachments.slot(config_id)),
        };
        let prefix = match &*model.stats_prefix {
            "" => "transport.tap".to_owned(),
            prefix => format!("transport.tap.{prefix}"),
        };
        let stats = env.stats.block(prefix);
        let connections = env.connections.clone();
        Ok(Self { source, per_event: model.set_connection_per_event, stats, connections, inner })
    }

    /// What the connections of now are tapped by.
    fn plan(&self) -> Option<Arc<Plan>> {
        match &self.source {
            Source::Static(plan) => Some(plan.clone()),
            Source::Admin(slot) => slot.plan(),
        }
    }

    /// The plan, where a connection that begins now is to be tapped by it.
    fn chosen(&self) -> Option<Arc<Plan>> {
        let plan = self.plan()?;
        if !plan.is_sampled() {
            self.stats.cx_sampled_out.inc();
            return None;
        }
        plan.matches.then_some(plan)
    }
}

impl Factory for Tap {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let inner = self.inner.create(link)?;
        let Some(plan) = self.chosen() else { return Ok(inner) };
        let traced = Traced::of(link, &self.connections);
        let tapper = tapper::Tapper::new(plan, traced, self.per_event, self.stats.clone());
        Ok(Box::new(layer::Tapped::new(inner, tapper)))
    }

    fn is_of_one_client(&self) -> bool {
        self.inner.is_of_one_client()
    }

    fn secrets(&self, found: &mut Vec<Arc<Secret>>) {
        self.inner.secrets(found);
    }

    fn certificates(&self, found: &mut Vec<super::tls::CertificateSet>) {
        self.inner.certificates(found);
    }
}

/// Whose bytes a trace has.
struct Traced {
    id: u64,
    connection: Connection,
    /// What is known of it before it is connected: of an upstream connection not its own address.
    at_first: Connection,
}

impl Traced {
    fn of(link: &Link<'_>, connections: &AtomicU64) -> Self {
        let ip = |address: SocketAddr| Some(Address::Ip(address));
        match *link {
            Link::Downstream { facts, connection_id } => {
                let connection = Connection { local: ip(facts.local), remote: ip(facts.remote) };
                Self { id: connection_id, at_first: connection.clone(), connection }
            }
            Link::Upstream { host, local, .. } => {
                // The id that the link has is the client's: several upstream connections may share it.
                let id = connections.fetch_add(1, Ordering::Relaxed) + 1;
                let connection = Connection { local: local.and_then(ip), remote: Some(host.address()) };
                Self { id, at_first: Connection { local: None, ..connection.clone() }, connection }
            }
        }
    }
}

#[cfg(test)]
mod tests;
