//! `envoy.filters.http.jwt_authn`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::content::Content;
use super::route_match::RouteMatch;
use crate::model::matcher::StringMatcher;

#[derive(Clone, Debug, PartialEq)]
pub struct JwtAuthn {
    pub providers: BTreeMap<Arc<str>, JwtProvider>,
    /// The first whose match is the request's.
    pub rules: Vec<JwtRule>,
    pub filter_state_rules: Option<FilterStateRules>,
    pub bypass_cors_preflight: bool,
    /// By the names that routes and rules use.
    pub requirements: BTreeMap<Arc<str>, JwtRequirement>,
    /// The response does not say why.
    pub strip_failure_response: bool,
    /// Of `<http prefix>jwt_authn.<stat_prefix>`.
    pub stat_prefix: Arc<str>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct JwtRule {
    pub matcher: RouteMatch,
    /// `None`: nothing is required.
    pub requires: Option<JwtRequirement>,
}

/// A requirement by the value of an object of the filter state.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterStateRules {
    pub name: Arc<str>,
    pub requires: BTreeMap<Arc<str>, JwtRequirement>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum JwtRequirement {
    /// One of the providers; `None`: its own audiences.
    Provider {
        name: Arc<str>,
        audiences: Option<Vec<Arc<str>>>,
    },
    Any(Vec<JwtRequirement>),
    All(Vec<JwtRequirement>),
    /// A token of whatever kind, or none. Good ones have their effects.
    AllowMissingOrFailed,
    /// None, but no bad one.
    AllowMissing,
    /// Tokens are read and not verified; the header that says so.
    ExtractOnly {
        status_header: Option<Arc<str>>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum JwtPerRoute {
    Disabled,
    /// One of [`JwtAuthn::requirements`].
    Requirement(Arc<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct JwtProvider {
    /// Empty: any.
    pub issuer: Arc<str>,
    /// Any one of them; empty: any.
    pub audiences: Vec<Arc<str>>,
    pub subjects: Option<StringMatcher>,
    pub require_expiration: bool,
    /// From when it was issued to when it expires.
    pub max_lifetime: Option<Duration>,
    pub keys: JwksSource,
    /// The token goes on to the upstream.
    pub forward: bool,
    /// With none of the three: `authorization: Bearer …`, and the parameter `access_token`.
    pub from_headers: Vec<JwtHeader>,
    pub from_params: Vec<Arc<str>>,
    pub from_cookies: Vec<Arc<str>>,
    /// The payload, base64url, is told to the upstream in it.
    pub forward_payload_header: Option<Arc<str>>,
    pub pad_forward_payload_header: bool,
    /// Keys of the dynamic metadata `envoy.filters.http.jwt_authn`.
    pub payload_in_metadata: Option<Arc<str>>,
    pub header_in_metadata: Option<Arc<str>>,
    pub failed_status_in_metadata: Option<Arc<str>>,
    /// Claims with blanks that become lists there.
    pub space_delimited_claims: Vec<Arc<str>>,
    /// Default 60 s.
    pub clock_skew: Duration,
    /// Verified tokens that are remembered; `None`: none.
    pub cache: Option<JwtCache>,
    pub claim_to_headers: Vec<ClaimToHeader>,
    pub clear_route_cache: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JwtCache {
    /// Default 100.
    pub size: u32,
    /// Of a token that is remembered, in bytes. Default 4,096.
    pub max_token_size: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum JwksSource {
    Local(Content),
    Remote(Box<RemoteJwks>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct RemoteJwks {
    /// `http://host/path`.
    pub uri: Arc<str>,
    pub cluster: Arc<str>,
    pub timeout: Duration,
    /// Default 600 s.
    pub cache_duration: Duration,
    /// They are fetched ahead of the first request.
    pub async_fetch: Option<JwksAsyncFetch>,
    /// How often a fetch is tried again, and how long after.
    pub retries: u32,
    pub retry_backoff: (Duration, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JwksAsyncFetch {
    /// No listener waits for the first answer.
    pub fast_listener: bool,
    /// Default 1 s.
    pub failed_refetch_duration: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtHeader {
    pub name: Arc<str>,
    /// What the token follows.
    pub value_prefix: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimToHeader {
    pub header: Arc<str>,
    /// The claim, and those inside of it.
    pub claim: Vec<Arc<str>>,
}
