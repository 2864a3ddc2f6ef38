//! The end of a stream: stats and log lines.

use super::active::Active;
use super::traced;
use super::watch::Broken;
use crate::clock;
use crate::http::{Hcm, Reset, ResetReason};
use crate::telemetry::{Flags, Outcome, Side};

/// A response of that status goes out.
pub(super) fn charge(hcm: &Hcm, status: u16) {
    let (stats, listener) = (&hcm.stats, &hcm.prepared.listener);
    stats.downstream_rq_completed.inc();
    listener.downstream_rq_completed.inc();
    let (one, other) = match status {
        100..=199 => (&stats.downstream_rq_1xx, &listener.downstream_rq_1xx),
        200..=299 => (&stats.downstream_rq_2xx, &listener.downstream_rq_2xx),
        300..=399 => (&stats.downstream_rq_3xx, &listener.downstream_rq_3xx),
        400..=499 => (&stats.downstream_rq_4xx, &listener.downstream_rq_4xx),
        500..=599 => (&stats.downstream_rq_5xx, &listener.downstream_rq_5xx),
        _ => return,
    };
    one.inc();
    other.inc();
}

/// `broken`: why the client has no whole response.
pub(super) fn run(active: Active, broken: Option<&Broken>) {
    let Active { mut stream, mut chain, sent, meter, .. } = active;
    let hcm = stream.conn.hcm.clone();
    if let Some(broken) = broken {
        explain(&mut stream.entry.outcome, broken, sent.head);
        if !sent.head {
            // The client has seen none.
            stream.http_mut().response = None;
        }
        hcm.stats.downstream_rq_rx_reset.inc();
    }
    let http = stream.http_mut();
    http.sent = sent;
    if let Some(meter) = &meter {
        (http.request_body, http.request_trailers) = meter.received();
        http.request_complete = meter.complete();
        http.response_trailers = meter.take_response_trailers();
    }
    for filter in &mut chain {
        filter.end(&mut stream);
    }
    let took = clock::now() - stream.start.at;
    hcm.stats.downstream_rq_time.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    let received = stream.http().request_body;
    let entry = &mut stream.entry;
    entry.duration = took;
    entry.bytes.downstream_rx = received;
    entry.bytes.downstream_tx = sent.body_bytes;
    traced::end(&mut stream);
    let entry = &stream.entry;
    for logger in hcm.access_log.iter() {
        logger.log(entry);
    }
}

fn explain(outcome: &mut Outcome, broken: &Broken, begun: bool) {
    let (flags, details) = match broken {
        Broken::Gone(reset) => (gone(reset), Some(reset.details.clone())),
        Broken::Expired(expiry) => (expiry.flags(), Some(expiry.details().into())),
        Broken::Cut => (Flags::NONE, Some("downstream_local_disconnect".into())),
        Broken::Reset(reset) => upstream(reset, begun),
    };
    outcome.flags = outcome.flags | flags;
    outcome.response_code_details = details.or_else(|| outcome.response_code_details.take());
}

fn gone(reset: &Reset) -> Flags {
    match reset.reason {
        ResetReason::Protocol | ResetReason::PayloadTooLarge => Flags::DPE,
        ResetReason::ConnectionTermination
        | ResetReason::Local
        | ResetReason::LocalRefused
        | ResetReason::Remote
        | ResetReason::RemoteRefused
        | ResetReason::ConnectionTimeout
        | ResetReason::ConnectionFailure
        | ResetReason::Overflow
        | ResetReason::Connect => Flags::DC,
    }
}

/// A response that broke on its way: what the router would have said.
fn upstream(reset: &Reset, begun: bool) -> (Flags, Option<std::borrow::Cow<'static, str>>) {
    let (flags, reason) = match reset.reason {
        ResetReason::Local | ResetReason::LocalRefused => (Flags::LR, "local_reset"),
        ResetReason::Remote | ResetReason::RemoteRefused => (Flags::UR, "remote_reset"),
        ResetReason::ConnectionTimeout => (Flags::UF, "connection_timeout"),
        ResetReason::ConnectionFailure => (Flags::UF, "connection_failure"),
        ResetReason::ConnectionTermination => (Flags::UC, "connection_termination"),
        ResetReason::Overflow => (Flags::UO, "overflow"),
        ResetReason::Protocol => (Flags::UPE, "protocol_error"),
        ResetReason::Connect => (Flags::UR, "remote_reset"),
        ResetReason::PayloadTooLarge => (Flags::UR, "payload_too_large"),
    };
    if reset.side != Side::Upstream {
        return (Flags::NONE, Some(reset.details.clone()));
    }
    let when = if begun { "after" } else { "before" };
    (flags, Some(format!("upstream_reset_{when}_response_started{{{reason}}}").into()))
}
