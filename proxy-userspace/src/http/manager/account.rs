//! A client's connection in the accounts of its connection manager.

use std::sync::Arc;

use crate::clock::{self, Instant};
use crate::http::ConnCx;
use crate::http::hcm::HttpStats;
use crate::telemetry::Side;
use crate::telemetry::stats::{Gauge, Held};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Closed when it is dropped.
pub(super) struct Account {
    pub(super) stats: Arc<HttpStats>,
    since: Instant,
    _active: [Option<Held<HttpStats>>; 2],
    codec: Option<Held<HttpStats>>,
    /// What of its bytes is in the statistics already.
    passed: (u64, u64),
    /// So many requests have come.
    pub(super) requests: u64,
    /// So many streams were on it when it ended.
    pub(super) streams: usize,
}

impl Account {
    pub(super) fn open(cx: &ConnCx) -> Self {
        let stats = cx.hcm.stats.clone();
        let secure = cx.connection.facts.tls.is_some();
        stats.downstream_cx_total.inc();
        if secure {
            stats.downstream_cx_ssl_total.inc();
        }
        let active = Held::new(&stats, |s| &s.downstream_cx_active);
        let ssl = secure.then(|| Held::new(&stats, |s| &s.downstream_cx_ssl_active));
        Self {
            stats,
            since: clock::lately(),
            _active: [Some(active), ssl],
            codec: None,
            passed: (0, 0),
            requests: 0,
            streams: 0,
        }
    }

    /// The client's first bytes have come, and with them the codec.
    pub(super) fn speaks(&mut self, protocol: Protocol) {
        let (total, gauge): (_, fn(&HttpStats) -> &Gauge) = match protocol {
            Protocol::Http1 => (&self.stats.downstream_cx_http1_total, |s| &s.downstream_cx_http1_active),
            Protocol::Http2 => (&self.stats.downstream_cx_http2_total, |s| &s.downstream_cx_http2_active),
        };
        total.inc();
        self.codec = Some(Held::new(&self.stats, gauge));
    }

    /// So many bytes have come and gone since the connection began.
    pub(super) fn passed(&mut self, received: u64, sent: u64) {
        self.stats.downstream_cx_rx_bytes_total.add(received.saturating_sub(self.passed.0));
        self.stats.downstream_cx_tx_bytes_total.add(sent.saturating_sub(self.passed.1));
        self.passed = (received, sent);
    }

    pub(super) fn bytes(&self) -> (u64, u64) {
        self.passed
    }

    /// The connection ends, with so many streams on it.
    pub(super) fn ended(&self, by: Side, streams: usize) {
        let stats = &self.stats;
        let (all, active) = match by {
            Side::Downstream => {
                (&stats.downstream_cx_destroy_remote, &stats.downstream_cx_destroy_remote_active_rq)
            }
            Side::Upstream | Side::Internal => {
                (&stats.downstream_cx_destroy_local, &stats.downstream_cx_destroy_local_active_rq)
            }
        };
        all.inc();
        if streams > 0 {
            active.inc();
            stats.downstream_cx_destroy_active_rq.inc();
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.stats.downstream_cx_destroy.inc();
        let lived = (clock::lately() - self.since).as_millis();
        self.stats.downstream_cx_length_ms.record(u64::try_from(lived).unwrap_or(u64::MAX));
    }
}
