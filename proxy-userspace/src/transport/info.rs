//! What TLS has agreed on, for logs, filters and people.

use std::sync::Arc;

/// Of one connection, known once its handshake is done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsInfo {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// As Envoy names it: `TLS_AES_128_GCM_SHA256`, `ECDHE-ECDSA-AES128-GCM-SHA256`.
    pub cipher: &'static str,
    /// Of the key exchange, as Envoy names it: `X25519`. Empty where there was none.
    pub group: &'static str,
    /// The agreed ALPN protocol.
    pub alpn: Option<Arc<str>>,
    /// What the client asked for.
    pub server_name: Option<Arc<str>>,
    pub resumed: bool,
    /// Hexadecimal; empty where there is none (TLS 1.3).
    pub session_id: String,
    pub local: Option<Arc<Certificate>>,
    /// The peer's leaf.
    pub peer: Option<Arc<Certificate>>,
    /// The peer's chain behind its leaf, DER.
    pub peer_intermediates: Vec<Vec<u8>>,
    /// The peer's certificate was checked, and found good.
    pub peer_validated: bool,
}

/// A certificate's facts, in the form in which access logs print them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    pub der: Vec<u8>,
    /// RFC 2253: `CN=client,O=shunt`.
    pub subject: String,
    pub issuer: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    /// SHA-256 and SHA-1 of the certificate, lower-case hexadecimal.
    pub fingerprint_256: String,
    pub fingerprint_1: String,
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    pub ip_sans: Vec<String>,
    pub email_sans: Vec<String>,
    /// The values of `otherName`.
    pub othername_sans: Vec<String>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
}
