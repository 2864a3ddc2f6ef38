//! `config.core.v3.GrpcService`: a server that is called by gRPC.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::config::grpc_credential::v3::FileBasedMetadataConfig;
use pb::grpc_service::google_grpc::{self as google, call_credentials as call};

use super::Cx;
use super::extension::Extension;
use super::registry::registry;
use crate::model::grpc::{Backoff, GoogleChannel, GoogleGrpc, GrpcService, GrpcTarget};
use crate::model::tls::DataSource;

registry! {
    pb::GrpcService, pb::grpc_service::EnvoyGrpc, pb::grpc_service::GoogleGrpc, google::ChannelCredentials,
    google::SslCredentials, google::CallCredentials, call::MetadataCredentialsFromPlugin,
    FileBasedMetadataConfig, pb::RetryPolicy,
}

lower! { "envoy.config.core.v3.GrpcService" pb::GrpcService => GrpcService, cx;
    read { timeout, initial_metadata, target_specifier }
    warn { retry_policy: "is about single calls; that of envoy_grpc says when a stream is opened again" }
    {
        use pb::grpc_service::TargetSpecifier;
        let timeout = cx.duration("timeout", timeout);
        let initial_metadata = initial_metadata_of(cx, initial_metadata);
        let (target, backoff) = match target_specifier {
            Some(TargetSpecifier::EnvoyGrpc(envoy)) => cx.lower("envoy_grpc", envoy)?,
            Some(TargetSpecifier::GoogleGrpc(google)) => {
                (GrpcTarget::Google(Box::new(cx.lower("google_grpc", google)?)), Backoff::default())
            }
            None => {
                cx.reject("target_specifier", "envoy_grpc or google_grpc is required");
                return None;
            }
        };
        Some(GrpcService { target, timeout, initial_metadata, backoff })
    }
}

lower! { "envoy.config.core.v3.GrpcService.EnvoyGrpc" pb::grpc_service::EnvoyGrpc => (GrpcTarget, Backoff), cx;
    read { cluster_name, authority, retry_policy, skip_envoy_headers }
    warn { max_receive_message_length: "messages have the limit of all control planes here" }
    {
        // Envoy would send x-envoy-internal and its like; here there are none.
        let _ = skip_envoy_headers;
        let name: Option<Arc<str>> = cx.name("cluster_name", cluster_name);
        if let Some(name) = name.as_ref().filter(|_| !cx.calls) {
            cx.refer("cluster_name", name);
        }
        if !authority.is_empty() && !visible(&authority) {
            cx.reject("authority", "must be one of a header: visible ASCII characters");
        }
        let authority = Some(authority).filter(|authority| !authority.is_empty());
        let backoff = retry_policy.and_then(|policy| cx.lower("retry_policy", policy)).unwrap_or_default();
        Some((GrpcTarget::Cluster { name: name?, authority }, backoff))
    }
}

lower! { "envoy.config.core.v3.RetryPolicy" pb::RetryPolicy => Backoff, cx;
    read { retry_back_off }
    warn {
        num_retries: "a stream is opened again without end",
        retry_on: "a stream is opened again whatever has ended it",
        retry_priority: "a stream takes the next endpoint as any connection does",
        retry_host_predicate: "a stream takes the next endpoint as any connection does",
        host_selection_retry_max_attempts: "a stream takes the next endpoint as any connection does",
    }
    {
        let Some(backoff) = retry_back_off else { return Some(Backoff::default()) };
        let crate::model::network_filter::Backoff { base, max } = cx.lower("retry_back_off", backoff)?;
        Some(Backoff { base, max })
    }
}

/// Names and values as they are sent.
fn initial_metadata_of(cx: &mut Cx, headers: Vec<pb::HeaderValue>) -> Vec<(String, String)> {
    let raw: Vec<bool> = headers.iter().map(|header| !header.raw_value.is_empty()).collect();
    let headers = cx.list("initial_metadata", headers);
    cx.field("initial_metadata", |cx| {
        let each = headers.into_iter().zip(raw).enumerate();
        each.filter_map(|(index, (header, raw))| cx.index(index, |cx| metadata(cx, header, raw))).collect()
    })
}

fn metadata(cx: &mut Cx, (key, value): (String, String), raw: bool) -> Option<(String, String)> {
    if !key.bytes().all(is_token) {
        cx.reject("key", "must be the name of a header");
    }
    let (field, value) = if raw { ("raw_value", value) } else { ("value", unformatted(cx, &value)?) };
    if !visible(&value) {
        cx.reject(field, "must be visible ASCII characters and blanks");
    }
    Some((key.to_ascii_lowercase(), value))
}

/// `%%` is a `%`. Envoy formats these as headers of requests, which know little here.
fn unformatted(cx: &mut Cx, value: &str) -> Option<String> {
    let parts: Vec<&str> = value.split("%%").collect();
    if parts.iter().any(|part| part.contains('%')) {
        cx.reject("value", "formats are not implemented here: write %% for a percent sign");
        return None;
    }
    Some(parts.join("%"))
}

fn visible(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'))
}

/// RFC 9110's `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

lower! { "envoy.config.core.v3.GrpcService.GoogleGrpc" pb::grpc_service::GoogleGrpc => GoogleGrpc, cx;
    read { target_uri, stat_prefix, channel_credentials, call_credentials, credentials_factory_name }
    reject {
        channel_credentials_plugin: "is not known to Envoy 1.40: use channel_credentials",
        call_credentials_plugin: "is not known to Envoy 1.40: use call_credentials",
    }
    warn {
        config: "is for credentials that are not implemented",
        per_stream_buffer_limit_bytes: "a stream is read as fast as its messages are used",
        channel_args: "the client has its own settings",
    }
    {
        let target_uri = cx.non_empty("target_uri", target_uri);
        let stat_prefix = cx.non_empty("stat_prefix", stat_prefix);
        let by_file = match credentials_factory_name.as_str() {
            "" | "envoy.grpc_credentials.default" => false,
            FILE_BASED => true,
            other => {
                let why = format!("\"{other}\" is not implemented: {FILE_BASED} is, and the default");
                cx.reject("credentials_factory_name", why);
                return None;
            }
        };
        let channel = match channel_credentials {
            Some(credentials) => cx.lower("channel_credentials", credentials)?,
            None => Channel::Plaintext,
        };
        let count = call_credentials.len();
        let credentials = cx.list("call_credentials", call_credentials);
        if count > 1 {
            cx.reject("call_credentials", "more than one is not implemented");
        }
        let token = match (credentials.into_iter().next(), by_file) {
            (Some(Credentials::File(_)), false) => {
                let why = format!("a token file needs credentials_factory_name: {FILE_BASED}");
                cx.reject("call_credentials", why);
                None
            }
            (Some(Credentials::File(source)), true) => Some(source),
            (Some(Credentials::Token(token)), _) => Some(DataSource::Inline(token.into_bytes().into())),
            (None, _) => None,
        };
        if token.is_some() && matches!(channel, Channel::Plaintext) {
            cx.reject("call_credentials", "need ssl_credentials or local_credentials: tokens are not sent in the clear");
        }
        let channel = match channel {
            Channel::Plaintext | Channel::Local => GoogleChannel::Plaintext,
            Channel::Tls(tls) => tls,
        };
        Some(GoogleGrpc { target_uri: target_uri?, stat_prefix: stat_prefix?, channel, token })
    }
}

const FILE_BASED: &str = "envoy.grpc_credentials.file_based_metadata";

#[derive(Debug)]
pub enum Channel {
    Plaintext,
    /// Within the machine.
    Local,
    Tls(GoogleChannel),
}

lower! { "envoy.config.core.v3.GrpcService.GoogleGrpc.ChannelCredentials" google::ChannelCredentials => Channel, cx;
    read { credential_specifier }
    {
        use google::channel_credentials::CredentialSpecifier;
        match credential_specifier {
            Some(CredentialSpecifier::SslCredentials(ssl)) => cx.lower("ssl_credentials", ssl).map(Channel::Tls),
            Some(CredentialSpecifier::LocalCredentials(google::GoogleLocalCredentials {})) => Some(Channel::Local),
            Some(CredentialSpecifier::GoogleDefault(_)) => {
                cx.reject("google_default", "the credentials of Google's cloud are not implemented");
                None
            }
            None => {
                cx.reject("credential_specifier", "is required");
                None
            }
        }
    }
}

lower! { "envoy.config.core.v3.GrpcService.GoogleGrpc.SslCredentials" google::SslCredentials => GoogleChannel, cx;
    read { root_certs, private_key, cert_chain }
    {
        if private_key.is_some() != cert_chain.is_some() {
            let field = if private_key.is_some() { "cert_chain" } else { "private_key" };
            cx.reject(field, "is required: a certificate and its key come together");
        }
        let mut data = |name, source: Option<pb::DataSource>| source.and_then(|source| cx.lower(name, source));
        Some(GoogleChannel::Tls {
            root_certs: data("root_certs", root_certs),
            cert_chain: data("cert_chain", cert_chain),
            private_key: data("private_key", private_key),
        })
    }
}

/// Where the token of each call comes from.
pub enum Credentials {
    Token(String),
    File(DataSource),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Token(token) => write!(f, "Token(of {} bytes)", token.len()),
            Self::File(source) => f.debug_tuple("File").field(source).finish(),
        }
    }
}

lower! { "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials" google::CallCredentials => Credentials, cx;
    read { credential_specifier }
    {
        use call::CredentialSpecifier as Kind;
        let (field, why) = match credential_specifier {
            Some(Kind::AccessToken(token)) => return cx.non_empty("access_token", token).map(Credentials::Token),
            Some(Kind::FromPlugin(plugin)) => return cx.lower("from_plugin", plugin).map(Credentials::File),
            Some(Kind::GoogleComputeEngine(_)) => ("google_compute_engine", "tokens of Google's cloud are not implemented"),
            Some(Kind::GoogleRefreshToken(_)) => ("google_refresh_token", "tokens of Google's cloud are not implemented"),
            Some(Kind::ServiceAccountJwtAccess(_)) => {
                ("service_account_jwt_access", "tokens of Google's cloud are not implemented")
            }
            Some(Kind::GoogleIam(_)) => ("google_iam", "tokens of Google's cloud are not implemented"),
            Some(Kind::StsService(_)) => ("sts_service", "the exchange of tokens is not implemented: use a token file"),
            None => ("credential_specifier", "is required"),
        };
        cx.reject(field, why);
        None
    }
}

lower! { "envoy.config.core.v3.GrpcService.GoogleGrpc.CallCredentials.MetadataCredentialsFromPlugin"
    call::MetadataCredentialsFromPlugin => DataSource, cx;
    read { name, config_type }
    {
        if name != FILE_BASED {
            cx.reject("name", format!("\"{name}\" is not implemented: {FILE_BASED} is"));
            return None;
        }
        let Some(call::metadata_credentials_from_plugin::ConfigType::TypedConfig(any)) = config_type else {
            cx.reject("typed_config", "is required");
            return None;
        };
        let config = Extension::unpack(cx, &any)?;
        if config.type_name != FileBasedMetadataConfig::NAME {
            cx.reject("typed_config", format!("must be a {}", FileBasedMetadataConfig::NAME));
            return None;
        }
        config.lower::<FileBasedMetadataConfig>(cx)
    }
}

lower! { "envoy.config.grpc_credential.v3.FileBasedMetadataConfig" FileBasedMetadataConfig => DataSource, cx;
    read { secret_data, header_key, header_prefix }
    {
        if !header_key.is_empty() && !header_key.eq_ignore_ascii_case("authorization") {
            cx.reject("header_key", "headers other than authorization are not implemented");
        }
        if header_prefix != "Bearer " {
            cx.reject("header_prefix", "must be \"Bearer \": other tokens are not implemented");
        }
        cx.required("secret_data", secret_data)
    }
}
