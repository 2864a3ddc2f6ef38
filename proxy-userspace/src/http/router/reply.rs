//! What the router answers by itself, in Envoy's words.

use std::borrow::Cow;

use http::{HeaderValue, StatusCode};
use proxy_config::model::http::RouteAction;

use crate::http::{LocalReply, Reset, ResetReason};
use crate::telemetry::Flags;

pub(super) fn no_route() -> LocalReply {
    LocalReply::new(StatusCode::NOT_FOUND, "", Flags::NR, "route_not_found")
}

/// None: of a route that does not forward, and has no cluster to Envoy.
pub(super) fn no_cluster(action: Option<&RouteAction>) -> LocalReply {
    let status = action.and_then(|action| StatusCode::from_u16(action.cluster_not_found_status).ok());
    let status = status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    routed(LocalReply::new(status, "", Flags::NC, "cluster_not_found"))
}

pub(super) fn no_host() -> LocalReply {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    routed(LocalReply::new(status, "no healthy upstream", Flags::UH, "no_healthy_upstream"))
}

pub(super) fn drop_overload() -> LocalReply {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    routed(LocalReply::new(status, "drop overload", Flags::DO, "drop_overload"))
}

pub(super) fn timeout(flags: Flags, details: &'static str) -> LocalReply {
    let body = match details {
        "upstream_max_stream_duration_reached" => "upstream max stream duration reached",
        _ => "upstream request timeout",
    };
    routed(LocalReply::new(StatusCode::GATEWAY_TIMEOUT, body, flags, details))
}

/// Of an exchange that broke before its response had begun.
pub(super) fn reset(broken: &Broken, attempts: u32, suppress: bool) -> LocalReply {
    let Broken { reset, .. } = broken;
    let status = match reset.reason {
        ResetReason::Protocol => StatusCode::BAD_GATEWAY,
        ResetReason::Local
        | ResetReason::LocalRefused
        | ResetReason::Remote
        | ResetReason::RemoteRefused
        | ResetReason::ConnectionTimeout
        | ResetReason::ConnectionFailure
        | ResetReason::ConnectionTermination
        | ResetReason::Overflow
        | ResetReason::Connect
        | ResetReason::PayloadTooLarge => StatusCode::SERVICE_UNAVAILABLE,
    };
    let again = if attempts > 1 { "retried and the latest " } else { "" };
    // Why a connection failed is for the log alone.
    let words = broken.words();
    let body =
        format!("upstream connect error or disconnect/reset before headers. {again}reset reason: {words}");
    let details = details("upstream_reset_before_response_started", broken);
    let mut reply = routed(LocalReply::new(status, body, flags(reset.reason), details));
    if reset.reason == ResetReason::Overflow && !suppress {
        reply.headers.insert("x-envoy-overloaded", HeaderValue::from_static("true"));
    }
    reply
}

fn routed(reply: LocalReply) -> LocalReply {
    LocalReply { routed: true, ..reply }
}

/// An attempt that came to nothing, or to half a response.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) reset: Reset,
    /// Of a connection that could not be made: by us.
    pub(super) local: bool,
}

impl Broken {
    /// Envoy's `resetReasonToString`.
    pub(super) fn words(&self) -> &'static str {
        match self.reset.reason {
            ResetReason::Local | ResetReason::PayloadTooLarge => "local reset",
            ResetReason::LocalRefused => "local refused stream reset",
            ResetReason::Remote => "remote reset",
            ResetReason::RemoteRefused => "remote refused stream reset",
            ResetReason::ConnectionTimeout => "connection timeout",
            ResetReason::ConnectionFailure if self.local => "local connection failure",
            ResetReason::ConnectionFailure => "remote connection failure",
            ResetReason::ConnectionTermination => "connection termination",
            ResetReason::Overflow => "overflow",
            ResetReason::Protocol => "protocol error",
            ResetReason::Connect => "remote error with CONNECT request",
        }
    }

    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub(super) fn failure(&self) -> &str {
        match self.reset.reason {
            ResetReason::ConnectionFailure => &self.reset.details,
            ResetReason::Protocol
            | ResetReason::Local
            | ResetReason::LocalRefused
            | ResetReason::Remote
            | ResetReason::RemoteRefused
            | ResetReason::ConnectionTimeout
            | ResetReason::ConnectionTermination
            | ResetReason::Overflow
            | ResetReason::Connect
            | ResetReason::PayloadTooLarge => "",
        }
    }
}

/// `%RESPONSE_CODE_DETAILS%` has no spaces.
pub(super) fn details(what: &str, broken: &Broken) -> Cow<'static, str> {
    let (words, failure) = (broken.words(), broken.failure());
    let bar = if failure.is_empty() { "" } else { "|" };
    format!("{what}{{{words}{bar}{failure}}}").replace(char::is_whitespace, "_").into()
}

/// Envoy's `streamResetReasonToResponseFlag`.
pub(super) fn flags(reason: ResetReason) -> Flags {
    match reason {
        ResetReason::ConnectionTimeout | ResetReason::ConnectionFailure => Flags::UF,
        ResetReason::ConnectionTermination => Flags::UC,
        ResetReason::Local | ResetReason::LocalRefused | ResetReason::PayloadTooLarge => Flags::LR,
        ResetReason::Overflow => Flags::UO,
        ResetReason::Remote | ResetReason::RemoteRefused | ResetReason::Connect => Flags::UR,
        ResetReason::Protocol => Flags::UPE,
    }
}
