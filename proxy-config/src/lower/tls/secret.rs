//! Secrets, and references to them.

use std::collections::HashMap;
use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::model::tls::{Secret, SecretKind, SecretRef};

registry! { pb::Secret, pb::GenericSecret, pb::SdsSecretConfig }

/// What a secret is for: each kind has names of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Certificate,
    Validation,
    TicketKeys,
    Generic,
}

/// The bootstrap's `static_resources.secrets`.
#[derive(Clone, Debug, Default)]
pub struct StaticSecrets(HashMap<(Kind, Arc<str>), Arc<Secret>>);

impl FromIterator<Arc<Secret>> for StaticSecrets {
    fn from_iter<I: IntoIterator<Item = Arc<Secret>>>(secrets: I) -> Self {
        let named = |secret: Arc<Secret>| ((kind(&secret.kind), secret.name.clone()), secret);
        Self(secrets.into_iter().map(named).collect())
    }
}

fn kind(secret: &SecretKind) -> Kind {
    match secret {
        SecretKind::Certificate(_) => Kind::Certificate,
        SecretKind::Validation(_) => Kind::Validation,
        SecretKind::TicketKeys(_) => Kind::TicketKeys,
        SecretKind::Generic => Kind::Generic,
    }
}

/// Refuses a reference without a source that is to none of the bootstrap's secrets.
pub(super) fn check_static(cx: &mut Cx, secret: &SecretRef, kind: Kind) {
    if cx.secrets.is_some() && secret.source.is_none() && content(cx, secret, kind).is_none() {
        let what = match kind {
            Kind::Certificate => "tls_certificate",
            Kind::Validation => "validation_context",
            Kind::TicketKeys => "session_ticket_keys",
            Kind::Generic => "generic_secret",
        };
        let why = format!(
            "\"{}\" is no {what} of static_resources.secrets, and there is no sds_config",
            secret.name
        );
        cx.reject("name", why);
    }
}

/// What a secret has in it, where that is known already.
pub(super) fn content<'cx>(cx: &'cx Cx, secret: &SecretRef, kind: Kind) -> Option<&'cx SecretKind> {
    let known = cx.secrets.as_deref().filter(|_| secret.source.is_none())?;
    known.0.get(&(kind, secret.name.clone())).map(|secret| &secret.kind)
}

lower! { "envoy.extensions.transport_sockets.tls.v3.Secret" pb::Secret => Secret, cx;
    read { name, r#type }
    {
        use pb::secret::Type;
        let kind = match r#type {
            Some(Type::TlsCertificate(certificate)) => match cx.lower("tls_certificate", certificate)? {
                Some(certificate) => Some(SecretKind::Certificate(certificate)),
                None => {
                    cx.reject("tls_certificate", "must have a certificate_chain and a private_key");
                    None
                }
            },
            Some(Type::SessionTicketKeys(keys)) => cx.lower("session_ticket_keys", keys).map(SecretKind::TicketKeys),
            Some(Type::ValidationContext(context)) => {
                cx.lower("validation_context", context).map(SecretKind::Validation)
            }
            Some(Type::GenericSecret(secret)) => cx.lower("generic_secret", secret).map(|()| SecretKind::Generic),
            None => {
                cx.reject("type", "is required");
                None
            }
        };
        Some(Secret { name: name.into(), kind: kind? })
    }
}

lower! { "envoy.extensions.transport_sockets.tls.v3.GenericSecret" pb::GenericSecret => (), cx;
    read {}
    warn {
        secret: "nothing here reads a generic secret",
        secrets: "nothing here reads a generic secret",
    }
    {
        secret.and_then(|secret| cx.lower("secret", secret));
        cx.map("secrets", secrets);
        Some(())
    }
}

lower! { "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig" pb::SdsSecretConfig => SecretRef, cx;
    read { name, sds_config }
    {
        let source = match sds_config {
            Some(source) => Some(cx.lower("sds_config", source)?),
            None => None,
        };
        cx.names_static_secret |= source.is_none();
        Some(SecretRef { name: cx.name("name", name)?, source })
    }
}
