//! Listener filters: what a connection's first bytes say, before any of them is read for good.
//!
//! Each inspector is a pure function over the bytes that wait in the socket. [`Filters::run`] peeks them into one
//! buffer, which all filters share and which lives only while they look.

mod apply;
pub mod http_inspector;
mod look;
mod peek;
pub mod proxy_protocol;
mod reader;
pub mod stats;
pub mod tls_inspector;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::Listener;
use proxy_config::model::listener_filter::{self as model, ListenerFilter, OriginalSrc, Predicate};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::apply::ProxyProtocol;
pub use self::look::First;
use self::peek::Peeked;
use self::stats::{HttpInspectorStats, LocalRateLimitStats, TlsInspectorStats};
use super::TokenBucket;
use crate::net::OriginalDst;
use crate::net::facts::Facts;
use crate::telemetry::stats::{Held, ListenerStats, Stats};

/// What an inspector makes of the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek<T, E> {
    /// At least so many in all, before it can say more.
    NeedMore(usize),
    Done(T),
    Refuse(E),
}

/// The listener filters of one listener.
pub struct Filters {
    filters: Vec<(Option<Predicate>, Filter)>,
    timeout: Option<Duration>,
    continue_on_timeout: bool,
    stats: Arc<ListenerStats>,
}

enum Filter {
    OriginalDst,
    OriginalSrc(OriginalSrc),
    LocalRateLimit { bucket: TokenBucket, stats: Arc<LocalRateLimitStats> },
    TlsInspector { config: model::TlsInspector, stats: Arc<TlsInspectorStats> },
    HttpInspector(Arc<HttpInspectorStats>),
    ProxyProtocol(Box<ProxyProtocol>),
}

/// Why there is no connection. Its stats are counted. The caller drops the socket, which resets it where bytes are
/// unread, as Envoy's close does; Envoy's access log has no flag for any of them.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("listener_filter_timeout")]
    Timeout,
    /// The client went before the filters knew enough.
    #[error("listener_filter_remote_close")]
    RemoteClose,
    #[error("listener_filter_error: {0}")]
    Io(io::Error),
    #[error("{filter}: {why}")]
    Refused { filter: &'static str, why: &'static str },
}

impl Filters {
    /// `own` are the stats of the listener itself.
    pub fn new(listener: &Listener, stats: &Stats, own: Arc<ListenerStats>) -> Self {
        let configs = listener.listener_filters.iter();
        let filter =
            |f: &model::ListenerFilterConfig| Some((f.filter_disabled.clone(), build(&f.filter, stats)?));
        Self {
            filters: configs.filter_map(filter).collect(),
            timeout: listener.listener_filters_timeout,
            continue_on_timeout: listener.continue_on_listener_filters_timeout,
            stats: own,
        }
    }

    /// Fills in `facts`. Takes from the socket a PROXY header at most.
    pub async fn run(
        &self,
        stream: &TcpStream,
        facts: &mut Facts,
        original_dst: &dyn OriginalDst,
    ) -> Result<(), Failure> {
        if self.filters.is_empty() {
            return Ok(());
        }
        let _active = Held::new(&self.stats, |s| &s.downstream_pre_cx_active);
        let all = self.all(stream, facts, original_dst);
        let Some(limit) = self.timeout else {
            return all.await;
        };
        match timeout(limit, all).await {
            Ok(done) => done,
            Err(_) => {
                self.stats.downstream_pre_cx_timeout.inc();
                // What the filters have found by then holds.
                if self.continue_on_timeout { Ok(()) } else { Err(Failure::Timeout) }
            }
        }
    }

    async fn all(
        &self,
        stream: &TcpStream,
        facts: &mut Facts,
        original_dst: &dyn OriginalDst,
    ) -> Result<(), Failure> {
        let mut peeked = Peeked::new(stream);
        for (disabled, filter) in &self.filters {
            if disabled.as_ref().is_some_and(|predicate| holds(predicate, facts)) {
                continue;
            }
            match filter {
                Filter::OriginalDst => restore(stream, facts, original_dst),
                Filter::OriginalSrc(config) => facts.extra_mut().original_src = Some(*config),
                Filter::LocalRateLimit { bucket, stats } => {
                    if !bucket.take() {
                        stats.rate_limited.inc();
                        return Err(Failure::refused("local_ratelimit", "rate_limited"));
                    }
                }
                Filter::TlsInspector { config, stats } => self.tls(config, stats, &mut peeked, facts).await?,
                Filter::HttpInspector(stats) => self.http(stats, &mut peeked, facts).await?,
                Filter::ProxyProtocol(proxy) => self.proxy(proxy, &mut peeked, facts).await?,
            }
        }
        Ok(())
    }

    async fn tls(
        &self,
        config: &model::TlsInspector,
        stats: &TlsInspectorStats,
        peeked: &mut Peeked<'_>,
        facts: &mut Facts,
    ) -> Result<(), Failure> {
        let max = config.max_client_hello_size as usize;
        let mut want = 1;
        let inspected = loop {
            self.wait(peeked, want).await?;
            match tls_inspector::inspect(peeked.bytes(), max) {
                Peek::NeedMore(total) => want = total,
                Peek::Done(inspected) => break inspected,
                Peek::Refuse(refusal) => return Err(apply::tls_refusal(refusal, max, stats)),
            }
        };
        apply::tls(inspected, config.close_connection_on_client_hello_parsing_errors, stats, facts)
    }

    async fn http(
        &self,
        stats: &HttpInspectorStats,
        peeked: &mut Peeked<'_>,
        facts: &mut Facts,
    ) -> Result<(), Failure> {
        if facts.transport_protocol != "raw_buffer" {
            return Ok(());
        }
        let mut want = 1;
        let found = loop {
            self.wait(peeked, want).await?;
            match http_inspector::inspect(peeked.bytes()) {
                Peek::NeedMore(total) => want = total,
                Peek::Done(found) => break found,
                Peek::Refuse(http_inspector::TooLong) => {
                    stats.read_error.inc();
                    return Err(Failure::refused("http_inspector", "read_error"));
                }
            }
        };
        apply::http(found, stats, facts);
        Ok(())
    }

    async fn proxy(
        &self,
        proxy: &ProxyProtocol,
        peeked: &mut Peeked<'_>,
        facts: &mut Facts,
    ) -> Result<(), Failure> {
        let mut want = 1;
        let len = loop {
            self.wait(peeked, want).await?;
            match proxy_protocol::parse(peeked.bytes(), &proxy.config) {
                Peek::NeedMore(total) => want = total,
                Peek::Done(header) => {
                    let len = header.as_ref().map_or(0, |header| header.len);
                    proxy.found(header, facts);
                    break len;
                }
                Peek::Refuse(refusal) => return Err(proxy.refused(refusal)),
            }
        };
        peeked.consume(len).map_err(|error| self.failed(error))
    }

    async fn wait(&self, peeked: &mut Peeked<'_>, want: usize) -> Result<(), Failure> {
        match peeked.wait(want).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(peek::Closed)) => {
                self.stats.downstream_listener_filter_remote_close.inc();
                Err(Failure::RemoteClose)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: io::Error) -> Failure {
        self.stats.downstream_listener_filter_error.inc();
        Failure::Io(error)
    }
}

impl Failure {
    fn refused(filter: &'static str, why: &'static str) -> Self {
        Self::Refused { filter, why }
    }
}

/// `None` for a filter that is switched off.
fn build(filter: &ListenerFilter, stats: &Stats) -> Option<Filter> {
    Some(match filter {
        ListenerFilter::OriginalDst => Filter::OriginalDst,
        ListenerFilter::OriginalSrc(config) => Filter::OriginalSrc(*config),
        ListenerFilter::LocalRateLimit(config) if !config.runtime_enabled => return None,
        ListenerFilter::LocalRateLimit(config) => Filter::LocalRateLimit {
            bucket: TokenBucket::new(config.token_bucket),
            stats: stats.block(format!("listener_local_ratelimit.{}", config.stat_prefix)),
        },
        ListenerFilter::TlsInspector(config) => {
            Filter::TlsInspector { config: config.clone(), stats: stats.block("tls_inspector") }
        }
        ListenerFilter::HttpInspector => Filter::HttpInspector(stats.block("http_inspector")),
        ListenerFilter::ProxyProtocol(config) => {
            Filter::ProxyProtocol(Box::new(ProxyProtocol::new(config, stats)))
        }
    })
}

/// Where nothing redirected the connection, its destination is its own address.
fn restore(stream: &TcpStream, facts: &mut Facts, original_dst: &dyn OriginalDst) {
    // The socket's own words: an IPv4 client of an IPv6 socket has an address of both kinds.
    let local = stream.local_addr().unwrap_or(facts.direct_local);
    match original_dst.lookup(stream, local) {
        Ok(Some(address)) => {
            facts.local = address;
            facts.local_restored = true;
        }
        Ok(None) => {}
        Err(error) => log::debug!("original destination of {}: {error}", facts.direct_remote),
    }
}

/// Whether a predicate matches; it sees the destination that filters before it have restored.
fn holds(predicate: &Predicate, facts: &Facts) -> bool {
    match predicate {
        Predicate::Any => true,
        Predicate::Not(inner) => !holds(inner, facts),
        Predicate::And(all) => all.iter().all(|inner| holds(inner, facts)),
        Predicate::Or(any) => any.iter().any(|inner| holds(inner, facts)),
        Predicate::DestinationPort(from, to) => (*from..*to).contains(&facts.local.port().into()),
    }
}

#[cfg(test)]
mod tests;
