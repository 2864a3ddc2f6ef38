//! Secrets, and references to them.

use std::collections::HashSet;
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

/// The names of the bootstrap's `static_resources.secrets`.
#[derive(Clone, Debug, Default)]
pub struct StaticSecrets(HashSet<(Kind, Arc<str>)>);

impl<'s> FromIterator<&'s Secret> for StaticSecrets {
    fn from_iter<I: IntoIterator<Item = &'s Secret>>(secrets: I) -> Self {
        Self(secrets.into_iter().map(|secret| (kind(&secret.kind), secret.name.clone())).collect())
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

/// A secret without a source is one of the bootstrap's.
pub(super) fn check_static(cx: &mut Cx, secret: &SecretRef, kind: Kind) {
    let missing = |known: &Arc<StaticSecrets>| !known.0.contains(&(kind, secret.name.clone()));
    if secret.source.is_none() && cx.secrets.as_ref().is_some_and(missing) {
        let what = match kind {
            Kind::Certificate => "tls_certificate",
            Kind::Validation => "validation_context",
            Kind::TicketKeys => "session_ticket_keys",
            Kind::Generic => "generic_secret",
        };
        cx.reject(
            "name",
            format!(
                "\"{}\" is no {what} of static_resources.secrets, and there is no sds_config",
                secret.name
            ),
        );
    }
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
        let _ = cx;
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
        Some(SecretRef { name: cx.name("name", name)?, source })
    }
}
