//! The filters before the last one of a chain: each lets a connection pass or closes it.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use proxy_config::model::NetworkFilter;
use proxy_config::model::network_filter::NetworkFilterConfig;
use tokio::time::timeout;

use super::connection_limit::{self, ConnectionLimit};
use super::local_ratelimit::{Buckets, LocalRateLimit};
use super::rbac::Rbac;
use crate::net::facts::Facts;
use crate::net::wire::Wire;
use crate::telemetry::stats::Stats;
use crate::telemetry::{Bytes, Flags};

/// The gatekeepers of one filter chain, in order.
#[derive(Debug)]
pub struct Gates {
    gates: Vec<Gate>,
    has_rbac: bool,
}

#[derive(Debug)]
enum Gate {
    Rbac(Rbac),
    ConnectionLimit(Arc<ConnectionLimit>),
    LocalRateLimit(LocalRateLimit),
    SniCluster,
}

#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub enum Verdict {
    Continue,
    Close(Close),
}

/// How a gatekeeper closes: Envoy closes the socket at once, so that the client sees FIN, or RST where bytes of it
/// are unread. What of the client's was read by then counts as received.
#[derive(Clone, Debug, PartialEq)]
pub struct Close {
    pub flags: Flags,
    /// Why, in Envoy's words: its local close reason, or else ours.
    pub details: Cow<'static, str>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub response_code_details: Option<Cow<'static, str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: Option<Cow<'static, str>>,
    /// Hold the connection open this long first.
    pub delay: Option<Duration>,
    /// The client's bytes that have come are read and thrown away before the close.
    pub drain: bool,
}

/// What gatekeepers keep of a connection while it lives.
#[derive(Debug, Default)]
#[must_use = "dropping it gives its place to another connection"]
pub struct Entered {
    /// sni_cluster's choice, instead of tcp_proxy's own clusters.
    pub cluster: Option<Arc<str>>,
    places: Vec<connection_limit::Place>,
}

impl Gates {
    /// `filters` are a whole chain, of which the gatekeepers are taken.
    pub fn new(filters: &[NetworkFilterConfig], stats: &Stats, buckets: &Buckets) -> Self {
        let gates: Vec<_> = filters.iter().filter_map(|f| gate(&f.filter, stats, buckets)).collect();
        let has_rbac = gates.iter().any(|gate| matches!(gate, Gate::Rbac(_)));
        Self { gates, has_rbac }
    }

    /// Asks each in turn, before the last filter of the chain sees the connection.
    pub fn on_new_connection(&self, facts: &Facts) -> (Entered, Verdict) {
        let mut entered = Entered::default();
        for gate in &self.gates {
            let verdict = match gate {
                Gate::Rbac(_) => Verdict::Continue,
                Gate::ConnectionLimit(limit) => {
                    let (place, verdict) = limit.enter();
                    entered.places.extend(place);
                    verdict
                }
                Gate::LocalRateLimit(limit) => limit.enter(),
                Gate::SniCluster => {
                    entered.cluster = facts.server_name.clone().filter(|name| !name.is_empty());
                    Verdict::Continue
                }
            };
            if let Verdict::Close(_) = verdict {
                return (entered, verdict);
            }
        }
        (entered, Verdict::Continue)
    }

    /// Whether [`Self::on_first_byte`] has something to say. Until then the last filter runs, and may already
    /// have connected and sent, as in Envoy: no byte of the client has reached it.
    pub fn needs_first_byte(&self) -> bool {
        self.has_rbac
    }

    /// Asks each that judges by data, once, when the client's first bytes or its FIN have come, and before they go
    /// anywhere.
    pub fn on_first_byte(&self, facts: &mut Facts) -> Verdict {
        for gate in &self.gates {
            if let Gate::Rbac(rbac) = gate {
                let verdict = rbac.check(facts);
                if let Verdict::Close(_) = verdict {
                    return verdict;
                }
            }
        }
        Verdict::Continue
    }
}

impl Close {
    /// All of a close but the close itself, which is the drop of the stream. Ends early where the client goes
    /// first.
    pub async fn prepare(&self, wire: &mut Wire<'_>, bytes: &mut Bytes) {
        if self.drain {
            discard(wire, bytes);
        }
        if let Some(delay) = self.delay {
            // Running out is what a delay is for.
            let _ = timeout(delay, client_gone(wire, bytes)).await;
        }
    }
}

/// Reads and throws away what the client has sent so far, so that a close does not reset the connection. Bounded,
/// for a client that sends as fast as this reads.
pub(super) fn discard(wire: &mut Wire<'_>, bytes: &mut Bytes) {
    let mut scratch = [0; 4 * 1024];
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..64 {
        match wire.poll_read(&mut cx, &mut scratch) {
            Poll::Ready(Ok(n @ 1..)) => bytes.downstream_rx += n as u64,
            Poll::Ready(Ok(0) | Err(_)) | Poll::Pending => return,
        }
    }
}

async fn client_gone(wire: &mut Wire<'_>, bytes: &mut Bytes) {
    let mut scratch = [0; 4 * 1024];
    while let Ok(n @ 1..) = wire.read(&mut scratch).await {
        bytes.downstream_rx += n as u64;
    }
}

fn gate(filter: &NetworkFilter, stats: &Stats, buckets: &Buckets) -> Option<Gate> {
    match filter {
        NetworkFilter::Rbac(rbac) => Some(Gate::Rbac(Rbac::new(rbac, stats))),
        NetworkFilter::ConnectionLimit(limit) => {
            Some(Gate::ConnectionLimit(ConnectionLimit::new(limit, stats)))
        }
        NetworkFilter::LocalRateLimit(limit) => {
            Some(Gate::LocalRateLimit(LocalRateLimit::new(limit, stats, buckets)))
        }
        NetworkFilter::SniCluster => Some(Gate::SniCluster),
        NetworkFilter::MetadataExchange(_)
        | NetworkFilter::IstioStats(_)
        | NetworkFilter::PostgresProxy(_)
        | NetworkFilter::SmtpStarttls(_)
        | NetworkFilter::TcpProxy(_)
        | NetworkFilter::Http(_)
        | NetworkFilter::DirectResponse(_)
        | NetworkFilter::Echo
        | NetworkFilter::Discovered(_)
        | NetworkFilter::Unserved(_) => None,
    }
}

#[cfg(test)]
mod tests;
