//! `envoy.filters.http.ext_authz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::header::{Format, MutationRules};
use super::retry::RetryOn;
use crate::model::FractionalPercent;
use crate::model::grpc::GrpcService;
use crate::model::matcher::{MetadataMatcher, StringMatcher};

#[derive(Clone, Debug, PartialEq)]
pub struct ExtAuthz {
    pub service: AuthzService,
    /// Requests pass where the service cannot be asked.
    pub failure_mode_allow: bool,
    /// `x-envoy-auth-failure-mode-allowed` tells the upstream so.
    pub failure_mode_allow_header_add: bool,
    pub with_request_body: Option<BodyToAuthz>,
    pub clear_route_cache: bool,
    /// Where the service cannot be asked. Default 403.
    pub status_on_error: u16,
    /// Headers of an answer that no request can have are an error.
    pub validate_mutations: bool,
    /// Of dynamic metadata, and of the route's, that the service is told.
    pub metadata_context_namespaces: Vec<Arc<str>>,
    pub route_metadata_context_namespaces: Vec<Arc<str>>,
    /// `None`: always.
    pub filter_enabled: Option<FractionalPercent>,
    pub filter_enabled_metadata: Option<MetadataMatcher>,
    /// Requests that it is not enabled for are refused on routes which have it disabled.
    pub deny_at_disable: bool,
    pub include_peer_certificate: bool,
    pub include_tls_session: bool,
    /// Of `ext_authz.<stat_prefix>.`
    pub stat_prefix: Option<Arc<str>>,
    /// The node's metadata under this key is told as labels.
    pub bootstrap_metadata_labels_key: Option<Arc<str>>,
    /// Headers that the service is told; `None`: all (gRPC), few (HTTP).
    pub allowed_headers: Option<Vec<StringMatcher>>,
    pub disallowed_headers: Vec<StringMatcher>,
    /// Default true.
    pub charge_cluster_response_stats: bool,
    pub encode_raw_headers: bool,
    /// `None`: all may be changed.
    pub mutation_rules: Option<MutationRules>,
    /// Default true.
    pub enable_dynamic_metadata_ingestion: bool,
    /// 0: no limit.
    pub max_denied_response_body_bytes: u32,
    /// Every request passes: what is decided is left to filter state, as `<the filter's name>.shadow`.
    pub shadow_mode: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AuthzService {
    Grpc(Box<AuthzGrpcService>),
    Http(Box<AuthzHttpService>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct AuthzGrpcService {
    pub service: GrpcService,
    /// The service is not told that it is the proxy who asks.
    pub skip_envoy_headers: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AuthzHttpService {
    pub uri: Arc<str>,
    pub cluster: Arc<str>,
    pub timeout: Duration,
    /// `None`: it is asked once.
    pub retry: Option<AuthzRetry>,
    /// Before the request's own path.
    pub path_prefix: Arc<str>,
    /// Instead of the request's own path.
    pub path_override: Option<Arc<str>>,
    /// Of what the service is asked.
    pub headers_to_add: Vec<(Arc<str>, Format)>,
    /// `authorization_request.allowed_headers`, deprecated.
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// Headers of its answer that go on to the upstream.
    pub allowed_upstream_headers: Vec<StringMatcher>,
    pub allowed_upstream_headers_to_append: Vec<StringMatcher>,
    /// Of a refusal, to the client; empty: all.
    pub allowed_client_headers: Vec<StringMatcher>,
    pub allowed_client_headers_on_success: Vec<StringMatcher>,
    pub dynamic_metadata_from_headers: Vec<StringMatcher>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthzRetry {
    pub on: RetryOn,
    pub times: u32,
    /// How long after. In Envoy the longest is also how long each attempt may take.
    pub backoff: (Duration, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyToAuthz {
    pub max_request_bytes: u32,
    /// A longer one is cut; else it is refused with 413.
    pub allow_partial_message: bool,
    pub pack_as_bytes: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ExtAuthzPerRoute {
    Disabled,
    Check(CheckSettings),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckSettings {
    pub context_extensions: BTreeMap<String, String>,
    pub disable_request_body_buffering: bool,
    pub with_request_body: Option<BodyToAuthz>,
    pub service: Option<AuthzService>,
}
