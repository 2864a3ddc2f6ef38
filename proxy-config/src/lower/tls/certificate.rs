//! `TlsCertificate` and session ticket keys.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::lower::listener_filter::all;
use crate::lower::registry::registry;
use crate::lower::{Cx, Side};
use crate::model::tls::{CertificateKey, DataSource, TlsCertificate};

registry! { pb::TlsCertificate, pb::PrivateKeyProvider, pb::TlsSessionTicketKeys }

/// A name, a key for AES and one for HMAC.
const TICKET_KEY_LENGTH: usize = 80;

lower! { "envoy.extensions.transport_sockets.tls.v3.TlsCertificate" pb::TlsCertificate => Option<TlsCertificate>, cx;
    read {
        certificate_chain, private_key, pkcs12, watched_directory, private_key_provider, password, ocsp_staple,
        tls_params
    }
    warn { signed_certificate_timestamp: "is not sent, as in Envoy" }
    {
        match tls_params {
            Some(_) if cx.side == Some(Side::Upstream) => {
                cx.warn("tls_params", "has no effect on the certificate of a client");
            }
            Some(_) => cx.reject("tls_params", "parameters of one certificate are not implemented: use those of the context"),
            None => {}
        }
        let staple_is_text =
            matches!(&ocsp_staple, Some(core::DataSource { specifier: Some(core::data_source::Specifier::InlineString(_)), .. }));
        if staple_is_text {
            cx.reject("ocsp_staple", "cannot be an inline_string: it is binary");
        }
        let has_provider = private_key_provider.is_some();
        if let Some(provider) = private_key_provider {
            let Provider { name, fallback } = cx.lower("private_key_provider", provider)?;
            let why = format!("\"{name}\": private key providers are not implemented");
            if fallback && private_key.is_some() {
                cx.warn("private_key_provider", format!("{why}: it falls back to private_key"));
            } else {
                cx.reject("private_key_provider", why);
            }
        }
        let key = key(cx, Parts { certificate_chain, private_key, pkcs12, has_provider });
        let watched_directory = watched_directory.and_then(|watched| cx.lower("watched_directory", watched));
        let password = password.and_then(|password| or_none(cx, "password", password)).flatten();
        let ocsp_staple = ocsp_staple.and_then(|staple| or_none(cx, "ocsp_staple", staple)).flatten();
        match key? {
            Some(key) => Some(Some(TlsCertificate { key, watched_directory, password, ocsp_staple })),
            None => Some(None),
        }
    }
}

struct Parts {
    certificate_chain: Option<core::DataSource>,
    private_key: Option<core::DataSource>,
    pkcs12: Option<core::DataSource>,
    has_provider: bool,
}

/// `Some(None)` for a certificate that has nothing in it: it counts as none.
fn key(cx: &mut Cx, parts: Parts) -> Option<Option<CertificateKey>> {
    let Parts { certificate_chain, private_key, pkcs12, has_provider } = parts;
    if let Some(pkcs12) = pkcs12 {
        let others = [
            ("private_key", private_key.is_some()),
            ("certificate_chain", certificate_chain.is_some()),
            ("private_key_provider", has_provider),
        ];
        for (field, _) in others.into_iter().filter(|(_, given)| *given) {
            cx.reject(field, "cannot be given with pkcs12");
        }
        return cx.lower("pkcs12", pkcs12).map(CertificateKey::Pkcs12).map(Some);
    }
    if certificate_chain.is_none() && private_key.is_none() && !has_provider {
        cx.warn_here("is empty: it is left out");
        return Some(None);
    }
    let mut required = |field, source: Option<core::DataSource>| match source {
        Some(source) => non_empty(cx, field, source),
        None => {
            cx.reject(field, "is required");
            None
        }
    };
    let chain = required("certificate_chain", certificate_chain);
    let key = required("private_key", private_key);
    Some(Some(CertificateKey::Pem { chain: chain?, key: key? }))
}

/// Data that must not be empty where it is seen here.
pub(super) fn non_empty(cx: &mut Cx, field: &'static str, source: core::DataSource) -> Option<DataSource> {
    let source = cx.lower(field, source)?;
    if source.is_empty() {
        cx.reject(field, "must not be empty");
        return None;
    }
    Some(source)
}

/// `Some(None)` where there is nothing in it, which is in Envoy as if it were not given.
pub(super) fn or_none(
    cx: &mut Cx,
    field: &'static str,
    source: core::DataSource,
) -> Option<Option<DataSource>> {
    let source = cx.lower(field, source)?;
    if source.is_empty() {
        cx.warn(field, "is empty: it counts as not given");
        return Some(None);
    }
    Some(Some(source))
}

/// Who has a key; `private_key` may be used instead where it says so.
#[derive(Debug)]
pub struct Provider {
    name: String,
    fallback: bool,
}

lower! { "envoy.extensions.transport_sockets.tls.v3.PrivateKeyProvider" pb::PrivateKeyProvider => Provider, cx;
    read { provider_name, fallback }
    warn { config_type: "private key providers are not implemented" }
    {
        Some(Provider { name: cx.non_empty("provider_name", provider_name)?, fallback })
    }
}

lower! { "envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys" pb::TlsSessionTicketKeys => Vec<DataSource>, cx;
    read { keys }
    {
        if keys.is_empty() {
            cx.reject("keys", "must have at least one");
        }
        let keys = all(cx, "keys", keys)?;
        for (index, key) in keys.iter().enumerate() {
            if let DataSource::Inline(bytes) = key && bytes.len() != TICKET_KEY_LENGTH {
                let why = format!("a session ticket key has 80 bytes, and this one has {}", bytes.len());
                cx.field("keys", |cx| cx.index(index, |cx| cx.reject_here(why)));
            }
        }
        Some(keys)
    }
}
