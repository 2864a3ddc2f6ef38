//! `extensions.transport_sockets.tls.v3`: contexts. What decides who may talk to whom is refused where it cannot be
//! honoured; nothing of it is dropped with a warning.
//!
//! Only what is said here is looked at: files are read where the contexts are built.

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use pb::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};

use super::registry::{Message, registry};
use super::value::{flag, number};
use super::{Cx, Side};
use crate::model::tls::{
    CommonTls, DownstreamTls, KeyLog, OcspStaplePolicy, SecretKind, SecretRef, SessionTickets,
    TlsCertificate, UpstreamTls, ValidationSource,
};

mod certificate;
mod params;
mod secret;
mod validation;

pub use secret::StaticSecrets;

registry! {
    pb::DownstreamTlsContext, pb::UpstreamTlsContext, pb::CommonTlsContext, CombinedCertificateValidationContext,
    pb::TlsKeyLog,
}

pub(super) const ALL_MESSAGES: &[&[Message]] =
    &[MESSAGES, certificate::MESSAGES, params::MESSAGES, secret::MESSAGES, validation::MESSAGES];

/// What a server name, or the name of a protocol, may have.
const LONGEST_NAME: usize = 255;
/// The end of `session_timeout`, which is sent in four bytes.
const SESSION_TIMEOUT_LIMIT: u64 = 1 << 32;

lower! { "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" pb::DownstreamTlsContext => DownstreamTls, cx;
    read {
        common_tls_context, require_client_certificate, require_sni, disable_stateful_session_resumption,
        session_timeout, ocsp_staple_policy, full_scan_certs_on_sni_mismatch, prefer_client_ciphers,
        session_ticket_keys_type
    }
    {
        let common = cx.on(Side::Downstream, |cx| cx.lower("common_tls_context", common_tls_context.unwrap_or_default()));
        let session_tickets = session_tickets(cx, session_ticket_keys_type);
        let session_timeout = cx.duration("session_timeout", session_timeout);
        if session_timeout.is_some_and(|timeout| timeout.as_secs() >= SESSION_TIMEOUT_LIMIT) {
            cx.reject("session_timeout", "must be less than 4294967296s");
        }
        let ocsp_staple_policy = match cx.variant("ocsp_staple_policy", ocsp_staple_policy)? {
            pb::downstream_tls_context::OcspStaplePolicy::LenientStapling => OcspStaplePolicy::Lenient,
            pb::downstream_tls_context::OcspStaplePolicy::StrictStapling => OcspStaplePolicy::Strict,
            pb::downstream_tls_context::OcspStaplePolicy::MustStaple => OcspStaplePolicy::Must,
        };
        let common = common?;
        cx.field("common_tls_context", |cx| {
            server_certificates(cx, &common, ocsp_staple_policy);
            check_validation(cx, &common.validation, false);
        });
        Some(DownstreamTls {
            common,
            require_client_certificate: flag(require_client_certificate, false),
            require_sni: flag(require_sni, false),
            session_tickets: session_tickets?,
            disable_stateful_session_resumption,
            session_timeout: session_timeout.map(|timeout| Duration::from_secs(timeout.as_secs())),
            ocsp_staple_policy,
            full_scan_certs_on_sni_mismatch: flag(full_scan_certs_on_sni_mismatch, false),
            prefer_client_ciphers,
        })
    }
}

fn session_tickets(
    cx: &mut Cx,
    given: Option<pb::downstream_tls_context::SessionTicketKeysType>,
) -> Option<SessionTickets> {
    use pb::downstream_tls_context::SessionTicketKeysType as Kind;
    match given {
        Some(Kind::SessionTicketKeys(keys)) => {
            cx.lower("session_ticket_keys", keys).map(SessionTickets::Keys)
        }
        Some(Kind::SessionTicketKeysSdsSecretConfig(config)) => {
            let name = "session_ticket_keys_sds_secret_config";
            secret_ref(cx, name, secret::Kind::TicketKeys, config).map(SessionTickets::Secret)
        }
        Some(Kind::DisableStatelessSessionResumption(true)) => Some(SessionTickets::Disabled),
        Some(Kind::DisableStatelessSessionResumption(false)) | None => Some(SessionTickets::Own),
    }
}

/// A server needs at least one certificate, and takes them from one place.
fn server_certificates(cx: &mut Cx, common: &CommonTls, policy: OcspStaplePolicy) {
    match (common.certificates.is_empty(), common.certificate_secrets.is_empty()) {
        (true, true) => cx.reject("tls_certificates", "a server needs a certificate"),
        (false, false) => cx.reject(
            "tls_certificate_sds_secret_configs",
            "cannot be given with tls_certificates in a downstream context",
        ),
        (true, false) | (false, true) => {}
    }
    if policy == OcspStaplePolicy::Must {
        let why = "is required by ocsp_staple_policy MUST_STAPLE";
        if let Some(index) = common.certificates.iter().position(|c| c.ocsp_staple.is_none()) {
            cx.field("tls_certificates", |cx| cx.index(index, |cx| cx.reject("ocsp_staple", why)));
        }
        let bare = |secret| match secret::content(cx, secret, secret::Kind::Certificate) {
            Some(SecretKind::Certificate(certificate)) => certificate.ocsp_staple.is_none(),
            Some(_) | None => false,
        };
        if let Some(index) = common.certificate_secrets.iter().position(bare) {
            let name = "tls_certificate_sds_secret_configs";
            cx.field(name, |cx| cx.index(index, |cx| cx.reject_here(format!("its ocsp_staple {why}"))));
        }
    }
}

lower! { "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" pb::UpstreamTlsContext => UpstreamTls, cx;
    read { common_tls_context, sni, auto_host_sni, auto_sni_san_validation, max_session_keys }
    reject { allow_renegotiation: "renegotiation is insecure, and is not implemented" }
    warn { enforce_rsa_key_usage: "the key usage of certificates is always enforced, as in Envoy" }
    {
        let common_tls_context = common_tls_context.unwrap_or_default();
        let certificates = common_tls_context.tls_certificates.len()
            + common_tls_context.tls_certificate_sds_secret_configs.len();
        if certificates > 1 {
            cx.field("common_tls_context", |cx| {
                cx.reject("tls_certificates", "more than one certificate is not supported in an upstream context");
            });
        }
        let common = cx.on(Side::Upstream, |cx| cx.lower("common_tls_context", common_tls_context));
        if sni.len() > LONGEST_NAME {
            cx.reject("sni", "must not be longer than 255 bytes");
        }
        if sni.contains('\0') {
            cx.reject("sni", "must not have a NUL in it");
        }
        let common = common?;
        if auto_sni_san_validation && common.validation == ValidationSource::None {
            cx.reject("auto_sni_san_validation", "needs a trusted_ca: without one a name proves nothing");
        }
        cx.field("common_tls_context", |cx| check_validation(cx, &common.validation, auto_sni_san_validation));
        Some(UpstreamTls {
            common,
            sni: sni.into(),
            auto_host_sni,
            auto_sni_san_validation,
            max_session_keys: number(max_session_keys).unwrap_or(1),
            enforce_rsa_key_usage: true,
        })
    }
}

/// Refuses a context that cannot be used. What comes from a file or a server is seen when it comes.
fn check_validation(cx: &mut Cx, validation: &ValidationSource, auto_sni_san_validation: bool) {
    let (field, context) = match validation {
        ValidationSource::None => return,
        ValidationSource::Context(context) => ("validation_context", context.clone()),
        ValidationSource::Secret(secret) => match secret::content(cx, secret, secret::Kind::Validation) {
            Some(SecretKind::Validation(context)) => {
                ("validation_context_sds_secret_config", context.clone())
            }
            Some(_) | None => return,
        },
        ValidationSource::Combined { default, secret } => {
            match secret::content(cx, secret, secret::Kind::Validation) {
                Some(SecretKind::Validation(context)) => {
                    ("combined_validation_context", Arc::new(default.merged(context)))
                }
                Some(_) | None => return,
            }
        }
    };
    cx.field(field, |cx| validation::check_whole(cx, &context, auto_sni_san_validation));
}

const PROVIDERS: &str = "certificate providers are not implemented";

lower! { "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext" pb::CommonTlsContext => CommonTls, cx;
    read {
        tls_params, tls_certificates, tls_certificate_sds_secret_configs, validation_context_type, alpn_protocols,
        key_log
    }
    reject {
        tls_certificate_provider_instance: PROVIDERS,
        custom_tls_certificate_selector: "custom certificate selectors are not implemented",
        tls_certificate_certificate_provider: PROVIDERS,
        tls_certificate_certificate_provider_instance: PROVIDERS,
        custom_handshaker: "custom handshakers are not implemented",
    }
    {
        let params = cx.lower("tls_params", tls_params.unwrap_or_default());
        let certificates: Vec<TlsCertificate> =
            cx.list("tls_certificates", tls_certificates).into_iter().flatten().collect();
        let certificate_secrets = secret_refs(cx, tls_certificate_sds_secret_configs);
        let validation = validation_source(cx, validation_context_type);
        let alpn_protocols = alpn(cx, &alpn_protocols);
        let key_log = key_log.map(|log| cx.lower("key_log", log));
        Some(CommonTls {
            params: params?,
            certificates,
            certificate_secrets,
            validation: validation?,
            alpn_protocols,
            key_log: key_log.flatten(),
        })
    }
}

fn secret_refs(cx: &mut Cx, configs: Vec<pb::SdsSecretConfig>) -> Vec<SecretRef> {
    let name = "tls_certificate_sds_secret_configs";
    let lowered = cx.list(name, configs);
    for (index, secret) in lowered.iter().enumerate() {
        cx.field(name, |cx| {
            cx.index(index, |cx| secret::check_static(cx, secret, secret::Kind::Certificate))
        });
    }
    lowered
}

fn secret_ref(
    cx: &mut Cx,
    field: &'static str,
    kind: secret::Kind,
    config: pb::SdsSecretConfig,
) -> Option<SecretRef> {
    let secret = cx.lower(field, config)?;
    cx.field(field, |cx| secret::check_static(cx, &secret, kind));
    Some(secret)
}

fn validation_source(cx: &mut Cx, given: Option<ValidationContextType>) -> Option<ValidationSource> {
    match given {
        None => Some(ValidationSource::None),
        Some(ValidationContextType::ValidationContext(context)) => {
            cx.lower("validation_context", context).map(ValidationSource::Context)
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            let name = "validation_context_sds_secret_config";
            secret_ref(cx, name, secret::Kind::Validation, config).map(ValidationSource::Secret)
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            cx.lower("combined_validation_context", combined)
        }
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            cx.reject("validation_context_certificate_provider", PROVIDERS);
            None
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => {
            cx.reject("validation_context_certificate_provider_instance", PROVIDERS);
            None
        }
    }
}

lower! { "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext"
    CombinedCertificateValidationContext => ValidationSource, cx;
    read { default_validation_context, validation_context_sds_secret_config }
    reject {
        validation_context_certificate_provider: PROVIDERS,
        validation_context_certificate_provider_instance: PROVIDERS,
    }
    {
        let default = cx.required("default_validation_context", default_validation_context);
        let name = "validation_context_sds_secret_config";
        let Some(config) = validation_context_sds_secret_config else {
            cx.reject(name, "is required");
            return None;
        };
        let secret = secret_ref(cx, name, secret::Kind::Validation, config);
        Some(ValidationSource::Combined { default: default?, secret: secret? })
    }
}

/// Envoy joins the list with commas and takes it apart again: an element may have several.
fn alpn(cx: &mut Cx, given: &[String]) -> Vec<Arc<str>> {
    let mut protocols = Vec::new();
    if let [only] = given
        && only.is_empty()
    {
        return protocols;
    }
    for (index, text) in given.iter().enumerate() {
        for protocol in text.split(',') {
            if protocol.is_empty() || protocol.len() > LONGEST_NAME {
                let why = "a protocol's name must have from 1 to 255 bytes";
                cx.field("alpn_protocols", |cx| cx.index(index, |cx| cx.reject_here(why)));
            }
            protocols.push(protocol.into());
        }
    }
    protocols
}

lower! { "envoy.extensions.transport_sockets.tls.v3.TlsKeyLog" pb::TlsKeyLog => KeyLog, cx;
    read { path, local_address_range, remote_address_range }
    {
        let local_address_range = cx.list("local_address_range", local_address_range);
        let remote_address_range = cx.list("remote_address_range", remote_address_range);
        let path = cx.non_empty("path", path)?.into();
        Some(KeyLog { path, local_address_range, remote_address_range })
    }
}

#[cfg(test)]
mod tests;
