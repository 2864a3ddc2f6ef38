//! Operators of what TLS has agreed on with either side. An empty value is a missing one, as in Envoy.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::time::Format as TimeFormat;
use super::value::Value;
use crate::telemetry::Entry;
use crate::transport::tls::certificate;
use crate::transport::{Certificate, TlsInfo};

/// Which side's TLS.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    Downstream,
    Upstream,
}

#[derive(Debug)]
pub(super) struct Operator {
    of: Peer,
    read: Read,
}

#[derive(Debug)]
enum Read {
    Text(fn(&TlsInfo) -> Option<String>),
    /// A moment of the peer's certificate, in seconds since 1970.
    Time(fn(&Certificate) -> i64, TimeFormat),
}

impl Operator {
    /// `None` where the operator is not one of these. Whether Envoy has it for that side is not asked here.
    pub(super) fn new(name: &str, argument: Option<&str>) -> Option<Self> {
        let (of, name) = match name.strip_prefix("DOWNSTREAM_") {
            Some(name) => (Peer::Downstream, name),
            None => (Peer::Upstream, name.strip_prefix("UPSTREAM_")?),
        };
        let time = |moment| Read::Time(moment, TimeFormat::new(argument, false));
        let read = match name {
            "PEER_CERT_V_START" => time(|certificate| certificate.not_before),
            "PEER_CERT_V_END" => time(|certificate| certificate.not_after),
            _ => Read::Text(READS.iter().find(|(known, _)| *known == name)?.1),
        };
        Some(Self { of, read })
    }

    pub(super) fn value<'a>(&self, entry: &Entry) -> Value<'a> {
        let tls = match self.of {
            Peer::Downstream => entry.facts.tls.as_deref(),
            Peer::Upstream => entry.upstream.tls.as_deref(),
        };
        let text = tls.and_then(|tls| match &self.read {
            Read::Text(read) => read(tls),
            Read::Time(moment, format) => {
                let seconds = u64::try_from(moment(tls.peer.as_deref()?)).unwrap_or(0);
                Some(format.render(UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?))
            }
        });
        Value::option(text.filter(|text| !text.is_empty()))
    }
}

type ReadText = fn(&TlsInfo) -> Option<String>;

const READS: &[(&str, ReadText)] = &[
    ("PEER_URI_SAN", |tls| peer(tls, |peer| peer.uri_sans.join(","))),
    ("PEER_DNS_SAN", |tls| peer(tls, |peer| peer.dns_sans.join(","))),
    ("PEER_IP_SAN", |tls| peer(tls, |peer| peer.ip_sans.join(","))),
    ("PEER_EMAIL_SAN", |tls| peer(tls, |peer| peer.email_sans.join(","))),
    ("PEER_OTHERNAME_SAN", |tls| peer(tls, |peer| peer.othername_sans.join(","))),
    ("PEER_SUBJECT", |tls| peer(tls, |peer| peer.subject.clone())),
    ("PEER_ISSUER", |tls| peer(tls, |peer| peer.issuer.clone())),
    ("PEER_SERIAL", |tls| peer(tls, |peer| peer.serial.clone())),
    ("PEER_FINGERPRINT_256", |tls| peer(tls, |peer| peer.fingerprint_256.clone())),
    ("PEER_FINGERPRINT_1", |tls| peer(tls, |peer| peer.fingerprint_1.clone())),
    ("PEER_CERT", |tls| peer(tls, |peer| url_encoded_pem(&peer.der))),
    ("PEER_CHAIN_FINGERPRINTS_256", |tls| chain(tls, certificate::fingerprint_256)),
    ("PEER_CHAIN_FINGERPRINTS_1", |tls| chain(tls, certificate::fingerprint_1)),
    ("PEER_CHAIN_SERIALS", |tls| chain(tls, certificate::serial_number)),
    ("LOCAL_URI_SAN", |tls| local(tls, |local| local.uri_sans.join(","))),
    ("LOCAL_DNS_SAN", |tls| local(tls, |local| local.dns_sans.join(","))),
    ("LOCAL_IP_SAN", |tls| local(tls, |local| local.ip_sans.join(","))),
    ("LOCAL_EMAIL_SAN", |tls| local(tls, |local| local.email_sans.join(","))),
    ("LOCAL_OTHERNAME_SAN", |tls| local(tls, |local| local.othername_sans.join(","))),
    ("LOCAL_SUBJECT", |tls| local(tls, |local| local.subject.clone())),
    ("TLS_CIPHER", |tls| Some(tls.cipher.to_owned())),
    ("TLS_VERSION", |tls| Some(tls.version.to_owned())),
    ("TLS_GROUP", |tls| Some(tls.group.to_owned())),
    ("TLS_SESSION_ID", |tls| Some(tls.session_id.clone())),
    ("SERVER_NAME", |tls| tls.server_name.as_deref().map(str::to_owned)),
];

fn peer(tls: &TlsInfo, read: fn(&Certificate) -> String) -> Option<String> {
    tls.peer.as_deref().map(read)
}

fn local(tls: &TlsInfo, read: fn(&Certificate) -> String) -> Option<String> {
    tls.local.as_deref().map(read)
}

/// Of the peer's leaf and of all that it sent behind it.
fn chain(tls: &TlsInfo, read: fn(&[u8]) -> String) -> Option<String> {
    let leaf = &tls.peer.as_deref()?.der;
    let all = std::iter::once(leaf).chain(&tls.peer_intermediates);
    Some(all.map(|der| read(der)).collect::<Vec<_>>().join(","))
}

/// PEM with what may not stand in a URL's query percent-encoded.
pub(crate) fn url_encoded_pem(der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN%20CERTIFICATE-----%0A");
    for (at, character) in base64.chars().enumerate() {
        if at > 0 && at % 64 == 0 {
            pem.push_str("%0A");
        }
        match character {
            '+' => pem.push_str("%2B"),
            '/' => pem.push_str("%2F"),
            '=' => pem.push_str("%3D"),
            other => pem.push(other),
        }
    }
    pem.push_str("%0A-----END%20CERTIFICATE-----%0A");
    pem
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::entry;
    use super::*;

    const PEM: &str = include_str!("../../transport/tls/certificate/testdata/multi.pem");

    fn agreed() -> Entry {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let der = CertificateDer::from_pem_slice(PEM.as_bytes()).unwrap();
        let facts = Arc::new(certificate::facts(&der).unwrap());
        let info = TlsInfo {
            version: "TLSv1.3",
            cipher: "TLS_AES_256_GCM_SHA384",
            group: "X25519",
            server_name: Some("Up.Example".into()),
            session_id: "034e".to_owned(),
            local: Some(facts.clone()),
            peer: Some(facts),
            peer_intermediates: vec![der.to_vec()],
            peer_validated: true,
            ..TlsInfo::default()
        };
        let mut entry = entry();
        entry.facts.tls = Some(Arc::new(info.clone()));
        entry.upstream.tls = Some(Arc::new(info));
        entry
    }

    fn value(entry: &Entry, name: &str, argument: Option<&str>) -> Option<String> {
        let operator = super::super::operator::Operator::new(name, argument).unwrap();
        operator.value(entry).to_text().map(|text| text.into_owned())
    }

    /// Byte by byte what Envoy 1.40 logged of a connection with this certificate.
    #[test]
    fn of_a_certificate_as_envoy_prints_it() {
        let sha256 = "9f420cecd707d59990edf0cca85e532e7e4998521f06bf9ccc9e799dc89968c3";
        let sha1 = "d71072c8c2600f3a10fc30e40487f2c1186421e9";
        let entry = agreed();
        for (name, text) in [
            ("DOWNSTREAM_PEER_URI_SAN", "spiffe://td/ns/a/sa/b,https://x/?a=b,c"),
            ("DOWNSTREAM_PEER_DNS_SAN", "a.example.com,*.b.example.com"),
            ("DOWNSTREAM_PEER_IP_SAN", "10.0.0.1,2001:db8::1,::ffff:1.2.3.4,::1.2.3.4,1:0:0:2::3"),
            ("DOWNSTREAM_PEER_EMAIL_SAN", "a@b.c"),
            ("DOWNSTREAM_PEER_ISSUER", r"CN=odd CA\, Inc."),
            ("DOWNSTREAM_PEER_SERIAL", "ff00aa"),
            ("DOWNSTREAM_PEER_FINGERPRINT_256", sha256),
            ("DOWNSTREAM_PEER_FINGERPRINT_1", sha1),
            ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256", &format!("{sha256},{sha256}")),
            ("DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1", &format!("{sha1},{sha1}")),
            ("DOWNSTREAM_PEER_CHAIN_SERIALS", "ff00aa,ff00aa"),
            ("DOWNSTREAM_PEER_CERT_V_START", "2026-01-01T00:00:00.000Z"),
            ("DOWNSTREAM_PEER_CERT_V_END", "2030-05-06T07:08:09.000Z"),
            ("DOWNSTREAM_LOCAL_DNS_SAN", "a.example.com,*.b.example.com"),
            ("DOWNSTREAM_TLS_VERSION", "TLSv1.3"),
            ("DOWNSTREAM_TLS_CIPHER", "TLS_AES_256_GCM_SHA384"),
            ("DOWNSTREAM_TLS_GROUP", "X25519"),
            ("DOWNSTREAM_TLS_SESSION_ID", "034e"),
            ("UPSTREAM_PEER_ISSUER", r"CN=odd CA\, Inc."),
            ("UPSTREAM_PEER_CERT_V_END", "2030-05-06T07:08:09.000Z"),
            ("UPSTREAM_LOCAL_URI_SAN", "spiffe://td/ns/a/sa/b,https://x/?a=b,c"),
            ("UPSTREAM_SERVER_NAME", "Up.Example"),
            ("UPSTREAM_TLS_VERSION", "TLSv1.3"),
        ] {
            assert_eq!(value(&entry, name, None).as_deref(), Some(text), "{name}");
        }
        assert_eq!(
            value(&entry, "DOWNSTREAM_PEER_CERT_V_START", Some("%Y/%m/%d %H")).unwrap(),
            "2026/01/01 00"
        );
        let end = value(&entry, "UPSTREAM_PEER_CERT_V_END", Some("%b %d %s.%3f")).unwrap();
        assert_eq!(end, "May 06 1904281689.000");
    }

    #[test]
    fn the_certificate_itself_fits_into_a_header() {
        let encoded = value(&agreed(), "DOWNSTREAM_PEER_CERT", None).unwrap();
        let decoded = encoded
            .replace("%0A", "\n")
            .replace("%20", " ")
            .replace("%2B", "+")
            .replace("%2F", "/")
            .replace("%3D", "=");
        assert_eq!(decoded, PEM);
        assert!(
            encoded
                .starts_with("-----BEGIN%20CERTIFICATE-----%0AMIICZjCCAgygAwIBAgIEAP8AqjAKBggqhkjOPQQDAjAX")
        );
        assert!(!encoded.contains(['+', '/', '=', ' ', '\n']));
    }

    #[test]
    fn nothing_is_said_of_a_plain_connection_or_of_a_peer_without_a_certificate() {
        let plain = entry();
        let mut anonymous = entry();
        let info = TlsInfo { version: "TLSv1.2", ..TlsInfo::default() };
        anonymous.facts.tls = Some(Arc::new(info));
        let known =
            proxy_config::format::operators().filter(|known| Operator::new(known.name, None).is_some());
        let mut count = 0;
        for operator in known {
            count += 1;
            assert_eq!(value(&plain, operator.name, None), None, "{}", operator.name);
            let expected = (operator.name == "DOWNSTREAM_TLS_VERSION").then(|| "TLSv1.2".to_owned());
            assert_eq!(value(&anonymous, operator.name, None), expected, "{}", operator.name);
        }
        assert_eq!(count, 42, "all that Envoy has are here");
    }

    #[test]
    fn what_envoy_does_not_have_is_no_operator() {
        for name in ["UPSTREAM_PEER_SERIAL", "DOWNSTREAM_SERVER_NAME", "UPSTREAM_PEER_FINGERPRINT_1"] {
            assert!(super::super::operator::Operator::new(name, None).is_err(), "{name}");
        }
    }
}
