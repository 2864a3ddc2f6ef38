//! Filters that speak a protocol's beginning, and have a side turn to TLS where it says so.
//!
//! A [`Driver`] runs once both sides are connected, before the relay: it reads and writes what it must, and leaves
//! to the relay what it has read too much. The relay's time-outs do not run meanwhile: a driver has its own.
//!
//! What a peer sends in plaintext behind its wish to turn to TLS is nobody's: somebody in between may have added
//! it. Where a driver has read such bytes, it closes; where it has not, TLS takes them for a record and fails.

mod dialogue;
pub mod postgres;
pub mod smtp;
#[cfg(test)]
pub(crate) mod testing;

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use proxy_config::model::network_filter::NetworkFilter;
use proxy_config::model::{FilterChain, listener};

use self::postgres::Postgres;
use self::smtp::Smtp;
use super::Close;
use crate::net::wire::Wire;
use crate::telemetry::stats::Stats;
use crate::telemetry::{Bytes, Flags, Side};

/// What a driver has read and not passed on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    pub to_upstream: Vec<u8>,
    pub to_downstream: Vec<u8>,
}

/// Why it ends here.
#[derive(Debug, PartialEq)]
pub enum Stop {
    /// The proxy closes both sides.
    Close(Close),
    /// A side has closed, by FIN or RST.
    Gone(Side),
    /// A side could not turn to TLS, for this reason: of the transport, or of what the peer said instead.
    Insecure { side: Side, reason: Cow<'static, str> },
}

impl Stop {
    /// The proxy closes, and has told the client what it could.
    fn close(details: &'static str) -> Self {
        Self::Close(Close {
            flags: Flags::NONE,
            details: Cow::Borrowed(details),
            response_code_details: None,
            termination_details: None,
            delay: None,
            // A client that has said more than was read sees why, and no reset.
            drain: true,
        })
    }
}

pub type Negotiation<'a> = Pin<Box<dyn Future<Output = Result<Leftover, Stop>> + Send + 'a>>;

pub trait Driver: Send + Sync {
    /// Counts what it reads and writes in `bytes`.
    fn negotiate<'a>(
        &'a self,
        down: &'a mut Wire<'_>,
        up: &'a mut Wire<'_>,
        bytes: &'a mut Bytes,
    ) -> Negotiation<'a>;
}

/// Of a filter chain; none where it has no such filter.
pub fn driver(chain: &FilterChain, stats: &Stats) -> Option<Box<dyn Driver>> {
    let handshake: Duration = chain.transport_socket_connect_timeout.unwrap_or(listener::HANDSHAKE_TIMEOUT);
    chain.filters.iter().find_map(|config| -> Option<Box<dyn Driver>> {
        match &config.filter {
            NetworkFilter::PostgresProxy(model) => Some(Box::new(Postgres::new(model, handshake, stats))),
            NetworkFilter::SmtpStarttls(model) => Some(Box::new(Smtp::new(model, handshake, stats))),
            NetworkFilter::TcpProxy(_)
            | NetworkFilter::Http(_)
            | NetworkFilter::DirectResponse(_)
            | NetworkFilter::Echo
            | NetworkFilter::Rbac(_)
            | NetworkFilter::SniCluster
            | NetworkFilter::ConnectionLimit(_)
            | NetworkFilter::LocalRateLimit(_)
            | NetworkFilter::MetadataExchange(_)
            | NetworkFilter::IstioStats(_)
            | NetworkFilter::Discovered(_)
            | NetworkFilter::Unserved(_) => None,
        }
    })
}
