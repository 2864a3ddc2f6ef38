//! `/certs`: what each TLS context trusts and what it shows, as `envoy.admin.v3.Certificates`. Keys are not there.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use serde_json::{Map, Value, json};

use super::body::{Answer, indented, json};
use super::view::View;
use crate::clock;
use crate::transport::Certificate;
use crate::transport::tls::{CertificateSet, certificate};

pub(super) fn answer(view: &dyn View) -> Answer {
    let all = json!({ "certificates": list(&view.certificates(), clock::wall()) });
    // As Envoy's JSON has `<inline>`.
    let text = indented(&all, 0).replace('<', "\\u003c").replace('>', "\\u003e");
    json(hyper::StatusCode::OK, text + "\n")
}

fn list(contexts: &[CertificateSet], now: SystemTime) -> Vec<Value> {
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let shown = |certificates: &[(String, Certificate)]| -> Vec<Value> {
        certificates.iter().map(|(path, certificate)| details(path, certificate, now)).collect()
    };
    let one = |context: &CertificateSet| {
        Value::Object(Map::from_iter([
            ("ca_cert".to_owned(), shown(&context.ca).into()),
            ("cert_chain".to_owned(), shown(&context.chain).into()),
        ]))
    };
    contexts.iter().map(one).collect()
}

/// `CertificateDetails`. 64-bit numbers are strings in protobuf's JSON.
fn details(path: &str, facts: &Certificate, now: UnixTime) -> Value {
    let kinds = [("dns", &facts.dns_sans), ("uri", &facts.uri_sans), ("ip_address", &facts.ip_sans)];
    let names =
        kinds.into_iter().flat_map(|(kind, names)| names.iter().map(move |name| json!({ kind: name })));
    Value::Object(Map::from_iter([
        ("path".to_owned(), json!(path)),
        ("serial_number".to_owned(), json!(facts.serial)),
        ("subject_alt_names".to_owned(), names.collect()),
        (
            "days_until_expiration".to_owned(),
            json!(certificate::days_until_expiration(facts, now).to_string()),
        ),
        ("valid_from".to_owned(), json!(timestamp(facts.not_before))),
        ("expiration_time".to_owned(), json!(timestamp(facts.not_after))),
    ]))
}

/// Whole seconds have no fraction in protobuf's JSON.
fn timestamp(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(0);
    let text = clock::rfc3339(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH));
    text.replace(".000Z", "Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_envoy_shows_them() {
        let certificate = Certificate {
            serial: "0a1b2c".to_owned(),
            dns_sans: vec!["server.local".to_owned()],
            uri_sans: vec!["spiffe://td/server".to_owned()],
            ip_sans: vec!["127.0.0.1".to_owned()],
            email_sans: vec!["s@x.y".to_owned()],
            not_before: 1_767_225_600,
            not_after: 1_904_281_689,
            ..Certificate::default()
        };
        let ca =
            Certificate { serial: "01".to_owned(), not_before: 0, not_after: 1, ..Certificate::default() };
        let context = CertificateSet {
            ca: vec![("<inline>".to_owned(), ca)],
            chain: vec![("server.pem".to_owned(), certificate)],
        };
        // 2026-11-21.
        let now = UNIX_EPOCH + Duration::from_secs(1_795_284_518);
        assert_eq!(
            Value::Array(list(&[context, CertificateSet::default()], now)),
            json!([
                {
                    "ca_cert": [{
                        "path": "<inline>",
                        "serial_number": "01",
                        "subject_alt_names": [],
                        "days_until_expiration": "0",
                        "valid_from": "1970-01-01T00:00:00Z",
                        "expiration_time": "1970-01-01T00:00:01Z",
                    }],
                    "cert_chain": [{
                        "path": "server.pem",
                        "serial_number": "0a1b2c",
                        "subject_alt_names": [
                            {"dns": "server.local"},
                            {"uri": "spiffe://td/server"},
                            {"ip_address": "127.0.0.1"},
                        ],
                        "days_until_expiration": "1261",
                        "valid_from": "2026-01-01T00:00:00Z",
                        "expiration_time": "2030-05-06T07:08:09Z",
                    }],
                },
                {"ca_cert": [], "cert_chain": []},
            ])
        );
    }
}
