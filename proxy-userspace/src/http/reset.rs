//! How an exchange of HTTP breaks.

use std::borrow::Cow;

use crate::telemetry::Side;

/// A stream that ended before its message was complete: what Envoy calls a reset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {reason:?}: {details}", side.name())]
pub struct Reset {
    /// Whose end of the proxy broke.
    pub side: Side,
    pub reason: ResetReason,
    /// In Envoy's words where it has some: for `%RESPONSE_CODE_DETAILS%` and the transport failure reason.
    pub details: Cow<'static, str>,
}

/// Envoy's `StreamResetReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    /// Of our own making.
    Local,
    LocalRefused,
    /// The peer has reset the stream.
    Remote,
    /// The peer has refused the stream: it has not touched the request.
    RemoteRefused,
    /// No connection, within its time.
    ConnectionTimeout,
    /// No connection.
    ConnectionFailure,
    /// The connection went, before the message was complete.
    ConnectionTermination,
    /// A circuit breaker is open.
    Overflow,
    /// The peer broke the protocol.
    Protocol,
    /// HTTP/2 `CONNECT_ERROR`, or a broken upgrade.
    Connect,
    /// A limit of ours.
    PayloadTooLarge,
}

impl Reset {
    pub fn new(side: Side, reason: ResetReason, details: impl Into<Cow<'static, str>>) -> Self {
        Self { side, reason, details: details.into() }
    }
}
