//! `x-forwarded-client-cert`: what is told of the client's certificate.

use http::{HeaderMap, HeaderName, HeaderValue};
use proxy_config::model::http::hcm::{ClientCert, ForwardClientCert};

use super::address::join;
use crate::http::manager::outbound::append;
use crate::telemetry::access_log::url_encoded_pem;
use crate::transport::{Certificate, TlsInfo};

const NAME: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

pub(super) fn tell(headers: &mut HeaderMap, tls: Option<&TlsInfo>, settings: ClientCert) {
    let there = join(headers, NAME);
    if settings.forward == ForwardClientCert::AlwaysForwardOnly {
        return;
    }
    let shown = tls.and_then(|tls| Some((tls, tls.peer.as_deref()?)));
    let (tls, peer) = match (settings.forward, shown) {
        (ForwardClientCert::Sanitize, _) | (_, None) => {
            if there {
                headers.remove(NAME);
            }
            return;
        }
        (ForwardClientCert::ForwardOnly | ForwardClientCert::AlwaysForwardOnly, Some(_)) => return,
        (ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet, Some(shown)) => shown,
    };
    let Ok(value) = HeaderValue::from_str(&text(tls, peer, settings)) else { return };
    if settings.forward == ForwardClientCert::AppendForward {
        append(headers, NAME, &value, ",");
    } else {
        headers.insert(NAME, value);
    }
}

/// In Envoy's words and order.
fn text(tls: &TlsInfo, peer: &Certificate, settings: ClientCert) -> String {
    let mut parts = Vec::new();
    let local = tls.local.iter().flat_map(|local| &local.uri_sans);
    parts.extend(local.map(|uri| format!("By={uri}")));
    parts.push(format!("Hash={}", peer.fingerprint_256));
    if settings.cert {
        parts.push(format!("Cert=\"{}\"", url_encoded_pem(&peer.der)));
    }
    if settings.chain {
        let all = std::iter::once(&peer.der).chain(&tls.peer_intermediates);
        let chain: String = all.map(|der| url_encoded_pem(der)).collect();
        parts.push(format!("Chain=\"{chain}\""));
    }
    if settings.subject {
        parts.push(format!("Subject=\"{}\"", peer.subject));
    }
    if settings.uri && peer.uri_sans.is_empty() {
        parts.push("URI=".to_owned());
    } else if settings.uri {
        parts.extend(peer.uri_sans.iter().map(|uri| format!("URI={uri}")));
    }
    if settings.dns {
        parts.extend(peer.dns_sans.iter().map(|dns| format!("DNS={dns}")));
    }
    if settings.issuer {
        parts.push(format!("Issuer=\"{}\"", peer.issuer));
    }
    parts.join(";")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn info() -> TlsInfo {
        let certificate = |uri: &str, fingerprint: &str| Certificate {
            subject: "CN=client,O=shunt".into(),
            uri_sans: vec![uri.into()],
            dns_sans: vec!["a.example".into(), "b.example".into()],
            fingerprint_256: fingerprint.into(),
            ..Certificate::default()
        };
        TlsInfo {
            local: Some(Arc::new(certificate("spiffe://server", "00"))),
            peer: Some(Arc::new(certificate("spiffe://client", "ab"))),
            ..TlsInfo::default()
        }
    }

    #[test]
    fn no_hop_before_is_lost() {
        let settings = ClientCert { forward: ForwardClientCert::AppendForward, ..ClientCert::default() };
        let mut headers = HeaderMap::new();
        headers.append(NAME, HeaderValue::from_static("one"));
        headers.append(NAME, HeaderValue::from_static("two"));
        tell(&mut headers, Some(&info()), settings);
        let values: Vec<_> = headers.get_all(NAME).iter().collect();
        assert_eq!(values, ["one,two,By=spiffe://server;Hash=ab"]);
    }

    #[test]
    fn what_each_mode_leaves_of_it() {
        let (tls, all) = (
            info(),
            "By=spiffe://server;Hash=ab;Subject=\"CN=client,O=shunt\";URI=spiffe://client;\
            DNS=a.example;DNS=b.example",
        );
        let appended = format!("before,{all}");
        for (forward, tls, expected) in [
            (ForwardClientCert::Sanitize, Some(&tls), None),
            (ForwardClientCert::ForwardOnly, Some(&tls), Some("before")),
            (ForwardClientCert::ForwardOnly, None, None),
            (ForwardClientCert::AlwaysForwardOnly, None, Some("before")),
            (ForwardClientCert::AppendForward, Some(&tls), Some(appended.as_str())),
            (ForwardClientCert::SanitizeSet, Some(&tls), Some(all)),
            (ForwardClientCert::SanitizeSet, None, None),
        ] {
            let settings =
                ClientCert { forward, subject: true, uri: true, dns: true, ..ClientCert::default() };
            let mut headers = HeaderMap::from_iter([(NAME, HeaderValue::from_static("before"))]);
            tell(&mut headers, tls, settings);
            assert_eq!(headers.get(NAME).map(|value| value.to_str().unwrap()), expected, "{forward:?}");
        }
    }
}
