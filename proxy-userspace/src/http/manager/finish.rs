//! The end of a stream: stats and log lines.

use std::mem::take;

use super::active::Active;
use super::meter::Meter;
use super::traced;
use super::watch::{Broken, Expiry};
use crate::clock;
use crate::http::router::STREAM_DURATION;
use crate::http::{Hcm, Reset, ResetReason, Stream, spare};
use crate::telemetry::{Flags, HttpEntry, LogType, Outcome, Side};

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
    let complete = active.is_complete();
    let Active { mut stream, mut chain, sent, meter, .. } = active;
    let hcm = stream.conn.hcm.clone();
    if broken.is_some() || !complete {
        // As Envoy, who resets the stream of a request that has its answer before its end.
        hcm.stats.downstream_rq_rx_reset.inc();
    }
    if let Some(
        Broken::Expired(Expiry::Headers | Expiry::Request | Expiry::Idle | Expiry::Duration)
        | Broken::Reset(_),
    ) = broken
    {
        hcm.stats.downstream_rq_tx_reset.inc();
    }
    if let Some(broken) = broken {
        explain(&mut stream.entry.outcome, broken);
        if !sent.head {
            // The client has seen none.
            stream.http_mut().response = None;
        }
    }
    let http = stream.http_mut();
    http.sent = sent;
    if let Some(meter) = &meter {
        received(http, meter);
        http.response_trailers = meter.take_response_trailers();
    }
    for filter in &mut chain {
        filter.end(&mut stream);
    }
    let took = clock::lately() - stream.start.at;
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
    if entry.origin.workload.is_some() {
        stream.conn.place.shared.access_log.keep(stream.entry);
        return;
    }
    let http = stream.http_mut();
    spare::give(take(&mut http.request.headers));
    http.response.take().into_iter().for_each(|head| spare::give(head.headers));
}

/// What has come of a request's body.
pub(super) fn received(http: &mut HttpEntry, meter: &Meter) {
    if http.request_complete.is_none() {
        (http.request_body, http.request_trailers) = meter.received();
        http.request_complete = meter.complete();
    }
}

/// A line about a stream as it stands.
pub(super) fn interim(stream: &mut Stream, log_type: LogType) {
    let hcm = stream.conn.hcm.clone();
    stream.entry.log_type = log_type;
    stream.entry.duration = clock::lately() - stream.start.at;
    hcm.access_log.iter().for_each(|logger| logger.log(&stream.entry));
    stream.entry.log_type = LogType::DownstreamEnd;
}

fn explain(outcome: &mut Outcome, broken: &Broken) {
    let (flags, details) = match broken {
        Broken::Gone(reset) => (gone(reset), Some(reset.details.clone())),
        // To whoever made it the response has been sent.
        Broken::Expired(Expiry::Flush) => (Flags::NONE, None),
        Broken::Expired(expiry) => (expiry.flags(), Some(expiry.details().into())),
        Broken::Cut => (Flags::NONE, Some("downstream_local_disconnect".into())),
        Broken::Reset(reset) => (upstream(reset), Some(reset.details.clone())),
    };
    outcome.flags = outcome.flags | flags;
    outcome.response_code_details = details.or_else(|| outcome.response_code_details.take());
}

fn gone(reset: &Reset) -> Flags {
    match reset.reason {
        ResetReason::Protocol | ResetReason::PayloadTooLarge => Flags::DPE,
        ResetReason::Remote | ResetReason::RemoteRefused | ResetReason::Connect => Flags::DR,
        ResetReason::ConnectionTermination
        | ResetReason::Local
        | ResetReason::LocalRefused
        | ResetReason::ConnectionTimeout
        | ResetReason::ConnectionFailure
        | ResetReason::Overflow => Flags::DC,
    }
}

/// A response that broke on its way: the router has found the words for it.
fn upstream(reset: &Reset) -> Flags {
    if reset.side != Side::Upstream {
        return Flags::NONE;
    }
    match reset.reason {
        ResetReason::Local | ResetReason::LocalRefused => Flags::LR,
        ResetReason::Remote | ResetReason::RemoteRefused | ResetReason::Connect => Flags::UR,
        ResetReason::ConnectionTimeout if reset.details == STREAM_DURATION => Flags::UMSDR,
        ResetReason::ConnectionTimeout => Flags::UT,
        ResetReason::ConnectionFailure => Flags::UF,
        ResetReason::ConnectionTermination => Flags::UC,
        ResetReason::Overflow => Flags::UO,
        ResetReason::Protocol => Flags::UPE,
        ResetReason::PayloadTooLarge => Flags::NONE,
    }
}
