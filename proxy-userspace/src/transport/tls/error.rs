//! A failed handshake in BoringSSL's words: operators search logs and write alerts for them.
//!
//! Envoy says `TLS_error:|<code>:SSL routines:OPENSSL_internal:<REASON>:<detail>:TLS_error_end`. The code is the
//! library's number and the reason's in one; where rustls tells apart less than BoringSSL does, the nearest reason is
//! given, and the words of rustls are the detail.

use std::io;

use rustls::{AlertDescription, Error, PeerIncompatible};

/// A reason of BoringSSL's: its number and its name.
type Reason = (u32, &'static str);

const CERTIFICATE_VERIFY_FAILED: Reason = (125, "CERTIFICATE_VERIFY_FAILED");
const CONNECTION_REJECTED: Reason = (133, "CONNECTION_REJECTED");
const DECODE_ERROR: Reason = (137, "DECODE_ERROR");
const DECRYPTION_FAILED: Reason = (139, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC");
const HTTPS_PROXY_REQUEST: Reason = (155, "HTTPS_PROXY_REQUEST");
const HTTP_REQUEST: Reason = (156, "HTTP_REQUEST");
const NO_SHARED_CIPHER: Reason = (184, "NO_SHARED_CIPHER");
const PEER_DID_NOT_RETURN_A_CERTIFICATE: Reason = (192, "PEER_DID_NOT_RETURN_A_CERTIFICATE");
const SSL_HANDSHAKE_FAILURE: Reason = (215, "SSL_HANDSHAKE_FAILURE");
const UNEXPECTED_MESSAGE: Reason = (223, "UNEXPECTED_MESSAGE");
const UNSUPPORTED_PROTOCOL: Reason = (240, "UNSUPPORTED_PROTOCOL");
const WRONG_VERSION_NUMBER: Reason = (247, "WRONG_VERSION_NUMBER");
const NO_COMMON_SIGNATURE_ALGORITHMS: Reason = (253, "NO_COMMON_SIGNATURE_ALGORITHMS");
const NO_SHARED_GROUP: Reason = (266, "NO_SHARED_GROUP");
const NO_APPLICATION_PROTOCOL: Reason = (307, "NO_APPLICATION_PROTOCOL");
const ENCRYPTED_LENGTH_TOO_LONG: Reason = (146, "ENCRYPTED_LENGTH_TOO_LONG");

/// Of a certificate that was refused, and why.
pub(super) fn refused_certificate(detail: &str) -> String {
    text(CERTIFICATE_VERIFY_FAILED, detail)
}

/// No certificate is for this client.
pub(super) fn rejected() -> String {
    text(CONNECTION_REJECTED, "")
}

/// What it is told, in plaintext: handshake_failure.
pub(super) const REJECTED: &[u8] = &[21, 3, 3, 0, 2, 2, 40];
/// The same, for who speaks another protocol or version.
pub(super) const PROTOCOL_VERSION: &[u8] = &[21, 3, 1, 0, 2, 2, 70];

/// `first` is what the peer began with.
#[expect(clippy::wildcard_enum_match_arm, reason = "rustls knows many more than are told apart here")]
pub(super) fn reason(error: &Error, first: &[u8]) -> String {
    let detail = error.to_string();
    match error {
        Error::InvalidMessage(_) if !is_record(first) => text(not_tls(first), ""),
        _ if is_old(first) => text(UNSUPPORTED_PROTOCOL, ""),
        Error::InvalidMessage(_) => text(DECODE_ERROR, &detail),
        Error::InvalidCertificate(_) | Error::InvalidCertRevocationList(_) => refused_certificate(&detail),
        Error::NoCertificatesPresented => {
            text(PEER_DID_NOT_RETURN_A_CERTIFICATE, "peer did not provide required client certificate")
        }
        Error::AlertReceived(alert) => received(*alert),
        Error::DecryptError => text(DECRYPTION_FAILED, ""),
        Error::PeerSentOversizedRecord => text(ENCRYPTED_LENGTH_TOO_LONG, ""),
        Error::NoApplicationProtocol => text(NO_APPLICATION_PROTOCOL, ""),
        Error::PeerIncompatible(why) => text(incompatible(why), &detail),
        Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. } => text(UNEXPECTED_MESSAGE, &detail),
        _ => text(SSL_HANDSHAKE_FAILURE, &detail),
    }
}

/// A socket that failed during the handshake.
#[expect(clippy::wildcard_enum_match_arm, reason = "all others say it themselves")]
pub(super) fn system(error: &io::Error) -> String {
    let code = error.raw_os_error().unwrap_or_default();
    let why = match error.kind() {
        io::ErrorKind::ConnectionReset => "Connection reset by peer".to_owned(),
        io::ErrorKind::BrokenPipe => "Broken pipe".to_owned(),
        _ => error.to_string(),
    };
    // BoringSSL's ERR_LIB_SYS is 2.
    format!("TLS_error:|{}:system library:OPENSSL_internal:{why}:TLS_error_end", (2 << 24) | code)
}

fn text((number, name): Reason, detail: &str) -> String {
    // BoringSSL's ERR_LIB_SSL is 16.
    let code = (16 << 24) | number;
    let (colon, detail) = if detail.is_empty() { ("", "") } else { (":", detail) };
    format!("TLS_error:|{code}:SSL routines:OPENSSL_internal:{name}{colon}{detail}:TLS_error_end")
}

/// A record's header: a content type, and a version 3.x.
fn is_record(first: &[u8]) -> bool {
    match first {
        [kind, major, ..] => (20..=24).contains(kind) && *major == 3,
        _ => true,
    }
}

/// A ClientHello of a version before TLS 1.2.
fn is_old(first: &[u8]) -> bool {
    matches!(first, [22, 3, _, _, _, 1, _, _, _, 3, minor, ..] if *minor < 3)
}

/// What a client has begun with is a TLS that is spoken here.
pub(super) fn speaks_tls(first: &[u8]) -> bool {
    is_record(first) && !is_old(first)
}

/// As BoringSSL tells what a server's peer speaks instead.
fn not_tls(first: &[u8]) -> Reason {
    let http: [&[u8]; 4] = [b"GET ", b"POST ", b"HEAD ", b"PUT "];
    if http.iter().any(|method| first.starts_with(method)) {
        HTTP_REQUEST
    } else if first.starts_with(b"CONNE") {
        HTTPS_PROXY_REQUEST
    } else {
        WRONG_VERSION_NUMBER
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls knows many more than are told apart here")]
fn incompatible(why: &PeerIncompatible) -> Reason {
    match why {
        PeerIncompatible::NoCipherSuitesInCommon => NO_SHARED_CIPHER,
        PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NoEcPointFormatsInCommon => NO_SHARED_GROUP,
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => NO_COMMON_SIGNATURE_ALGORITHMS,
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic => UNSUPPORTED_PROTOCOL,
        _ => SSL_HANDSHAKE_FAILURE,
    }
}

/// The peer has said why: 1000 and the alert's number.
fn received(alert: AlertDescription) -> String {
    let number = u8::from(alert);
    let name = match number {
        0 => "SSLV3_ALERT_CLOSE_NOTIFY",
        10 => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        20 => "SSLV3_ALERT_BAD_RECORD_MAC",
        21 => "TLSV1_ALERT_DECRYPTION_FAILED",
        22 => "TLSV1_ALERT_RECORD_OVERFLOW",
        30 => "SSLV3_ALERT_DECOMPRESSION_FAILURE",
        40 => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        41 => "SSLV3_ALERT_NO_CERTIFICATE",
        42 => "SSLV3_ALERT_BAD_CERTIFICATE",
        43 => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        44 => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        45 => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        46 => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        47 => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        48 => "TLSV1_ALERT_UNKNOWN_CA",
        49 => "TLSV1_ALERT_ACCESS_DENIED",
        50 => "TLSV1_ALERT_DECODE_ERROR",
        51 => "TLSV1_ALERT_DECRYPT_ERROR",
        60 => "TLSV1_ALERT_EXPORT_RESTRICTION",
        70 => "TLSV1_ALERT_PROTOCOL_VERSION",
        71 => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        80 => "TLSV1_ALERT_INTERNAL_ERROR",
        86 => "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
        90 => "TLSV1_ALERT_USER_CANCELLED",
        100 => "TLSV1_ALERT_NO_RENEGOTIATION",
        110 => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        111 => "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
        112 => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        113 => "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
        114 => "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
        115 => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        116 => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        120 => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        121 => "TLSV1_ALERT_ECH_REQUIRED",
        _ => "UNKNOWN_ALERT_TYPE",
    };
    text((1000 + u32::from(number), name), "")
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    #[test]
    fn codes_are_those_of_boringssl() {
        let not_tls = Error::InvalidMessage(InvalidMessage::InvalidContentType);
        for (first, code, name) in [
            (&b"EHLO "[..], 268_435_703, "WRONG_VERSION_NUMBER"),
            (b"GET /", 268_435_612, "HTTP_REQUEST"),
            (b"CONNECT", 268_435_611, "HTTPS_PROXY_REQUEST"),
        ] {
            let text = reason(&not_tls, first);
            let expected = format!("TLS_error:|{code}:SSL routines:OPENSSL_internal:{name}:TLS_error_end");
            assert_eq!(text, expected);
        }
        assert_eq!(
            reason(&Error::AlertReceived(AlertDescription::UnknownCA), b""),
            "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
        );
    }

    #[test]
    fn a_broken_record_is_not_taken_for_plaintext() {
        let error = Error::InvalidMessage(InvalidMessage::MessageTooShort);
        assert!(reason(&error, &[22, 3, 1]).contains(":DECODE_ERROR:"));
    }
}
