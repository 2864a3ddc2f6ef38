//! Network filters: what is done with a connection's bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::access_log::AccessLog;
use super::address::Cidr;
use super::config_source::ConfigSource;
use super::discovered::Discovered;
use super::http::Hcm;
use super::http::header::{HeaderMatcher, HeaderOption};
use super::http::istio::{IstioStats, MetadataExchange};
use super::http::route_match::PathTemplate;
use super::listener_filter::LocalRateLimit;
use super::matcher::{MetadataMatcher, StringMatcher};
use super::metadata::Metadata;
use super::tls::SanMatcher;

/// A filter with its name in the configuration, which Envoy accepts freely.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkFilterConfig {
    pub name: Arc<str>,
    pub filter: NetworkFilter,
}

#[derive(Clone, Debug, PartialEq)]
pub enum NetworkFilter {
    TcpProxy(Box<TcpProxy>),
    /// `envoy.filters.network.http_connection_manager`.
    Http(Box<Hcm>),
    Rbac(Box<Rbac>),
    SniCluster,
    ConnectionLimit(ConnectionLimit),
    LocalRateLimit(LocalRateLimit),
    /// The bytes that are sent before the connection is closed.
    DirectResponse(Vec<u8>),
    Echo,
    /// `istio.metadata_exchange`.
    MetadataExchange(Arc<MetadataExchange>),
    /// `istio.stats`.
    IstioStats(Box<IstioStats>),
    PostgresProxy(PostgresProxy),
    SmtpStarttls(SmtpStarttls),
    /// Its configuration comes by ECDS, under the filter's name.
    Discovered(Box<Discovered>),
    /// Accepted from a control plane, and not implemented: a connection of such a chain is closed.
    Unserved(Box<Unserved>),
}

/// A filter that ends every connection that comes to it, with its reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Unserved {
    /// Envoy's own name of the extension.
    pub extension: Arc<str>,
    pub why: Arc<str>,
}

/// `Rds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RouteRef {
    pub name: Arc<str>,
    pub source: ConfigSource,
}

impl NetworkFilter {
    /// Whether it ends the chain: Envoy calls it terminal.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::TcpProxy(_) | Self::Http(_) | Self::DirectResponse(_) | Self::Echo | Self::Unserved(_) => {
                true
            }
            // What comes says it: see `Discovered::last`.
            Self::Rbac(_)
            | Self::Discovered(_)
            | Self::SniCluster
            | Self::ConnectionLimit(_)
            | Self::LocalRateLimit(_)
            | Self::MetadataExchange(_)
            | Self::IstioStats(_)
            | Self::PostgresProxy(_)
            | Self::SmtpStarttls(_) => false,
        }
    }

    /// Whether it turns a `starttls` connection to TLS, and when the client's.
    pub fn downstream_switch(&self) -> Option<DownstreamSwitch> {
        match self {
            Self::PostgresProxy(filter) => Some(filter.downstream_ssl),
            Self::SmtpStarttls(filter) => Some(filter.downstream_starttls),
            Self::TcpProxy(_)
            | Self::Http(_)
            | Self::DirectResponse(_)
            | Self::Echo
            | Self::Rbac(_)
            | Self::SniCluster
            | Self::ConnectionLimit(_)
            | Self::LocalRateLimit(_)
            | Self::MetadataExchange(_)
            | Self::IstioStats(_)
            | Self::Discovered(_)
            | Self::Unserved(_) => None,
        }
    }
}

/// Whether a client's connection turns to TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DownstreamSwitch {
    /// A client's wish is the server's to answer.
    #[default]
    Disable,
    /// Where the client wants it.
    Allow,
    /// A client that does not is refused.
    Require,
}

/// `envoy.filters.network.postgres_proxy`: who encrypts, and nothing of what is said.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresProxy {
    /// Of `postgres.<stat_prefix>.`
    pub stat_prefix: Arc<str>,
    /// With `terminate_ssl`, which is `Allow`.
    pub downstream_ssl: DownstreamSwitch,
    /// The server must turn to TLS.
    pub upstream_ssl: bool,
}

/// `shunt.filters.network.smtp_starttls`: Envoy has no such filter.
#[derive(Clone, Debug, PartialEq)]
pub struct SmtpStarttls {
    /// Of `smtp.<stat_prefix>.`
    pub stat_prefix: Arc<str>,
    pub downstream_starttls: DownstreamSwitch,
    /// The server must turn to TLS.
    pub upstream_starttls: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TcpProxy {
    /// Of `tcp.<stat_prefix>.`
    pub stat_prefix: Arc<str>,
    /// Never empty; one entry where `cluster` was given. An entry's `metadata_match` has the filter's merged in,
    /// the entry's own fields winning.
    pub clusters: Vec<WeightedCluster>,
    /// `None`: never (`0s`). Default 1 h.
    pub idle_timeout: Option<Duration>,
    pub downstream_idle_timeout: Option<Duration>,
    pub upstream_idle_timeout: Option<Duration>,
    /// At least 1.
    pub max_connect_attempts: u32,
    pub backoff: Option<Backoff>,
    pub hash_policy: Option<HashPolicy>,
    /// The bytes go through HTTP.
    pub tunneling: Option<Box<Tunneling>>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// In percent of the duration, added at random.
    pub max_downstream_connection_duration_jitter: Option<f64>,
    pub access_log: Vec<AccessLog>,
    /// Write a line each interval while the connection lives.
    pub access_log_flush_interval: Option<Duration>,
    /// Write a line as soon as the upstream is connected.
    pub flush_access_log_on_connected: bool,
    pub flush_access_log_on_start: bool,
}

/// `tunneling_config`: an HTTP request to the upstream whose body, and that of its response, are the bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tunneling {
    /// `:authority`: text with command operators.
    pub hostname: super::http::Format,
    /// By POST instead of CONNECT.
    pub use_post: bool,
    /// `:path`, of POST; and of CONNECT where it is an extended one.
    pub post_path: Arc<str>,
    pub headers_to_add: Vec<HeaderOption>,
    /// The response's are kept in the filter state, for the access log.
    pub propagate_response_headers: bool,
    pub propagate_response_trailers: bool,
    /// `None`: there is none.
    pub request_id: Option<TunnelRequestId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRequestId {
    /// Default `x-request-id`.
    pub header: Arc<str>,
    /// It is in the dynamic metadata `envoy.filters.network.tcp_proxy` too: under `tunnel_request_id` by default.
    pub metadata_key: Arc<str>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WeightedCluster {
    pub name: Arc<str>,
    pub weight: u32,
    pub metadata_match: Metadata,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashPolicy {
    SourceIp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionLimit {
    pub stat_prefix: Arc<str>,
    pub max_connections: u64,
    /// How long a refused connection is held open.
    pub delay: Option<Duration>,
    pub runtime_enabled: bool,
}

/// `envoy.filters.network.rbac`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rbac {
    /// Of `<stat_prefix>rbac.`; a dot is added where it has none.
    pub stat_prefix: Arc<str>,
    /// `None`: everyone is allowed.
    pub rules: Option<RbacRules>,
    /// Evaluated for stats and logs only.
    pub shadow_rules: Option<RbacRules>,
    pub shadow_rules_stat_prefix: Arc<str>,
    /// How long a refused connection is held open.
    pub delay_deny: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct RbacRules {
    pub action: RbacAction,
    /// By name; the first that matches in this order gives its name to the log.
    pub policies: BTreeMap<Arc<str>, RbacPolicy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RbacAction {
    Allow,
    Deny,
    /// Allows, and says so in the dynamic metadata `envoy.common` `access_log_hint`.
    Log,
}

/// Matches where any permission and any principal do.
#[derive(Clone, Debug, PartialEq)]
pub struct RbacPolicy {
    pub permissions: Vec<Permission>,
    pub principals: Vec<Principal>,
}

/// A condition on HTTP never matches a plain connection, as Envoy has it on L4.
#[derive(Clone, Debug, PartialEq)]
pub enum Permission {
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Not(Box<Permission>),
    Any,
    Header(HeaderMatcher),
    /// Of the path without its query.
    UrlPath(StringMatcher),
    UriTemplate(PathTemplate),
    DestinationIp(Cidr),
    DestinationPort(u16),
    /// From, inclusive; to, exclusive.
    DestinationPortRange(u32, u32),
    Metadata(MetadataMatcher),
    /// Of the route.
    RouteMetadata(MetadataMatcher),
    RequestedServerName(StringMatcher),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Principal {
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Not(Box<Principal>),
    Any,
    Header(HeaderMatcher),
    UrlPath(StringMatcher),
    /// A name of the peer's certificate; `None`: TLS is enough.
    Authenticated(Option<StringMatcher>),
    /// `envoy.rbac.principals.mtls_authenticated`: a client whose certificate was found good, of any such name.
    MtlsAuthenticated(Option<SanMatcher>),
    /// `source_ip` (deprecated) and `direct_remote_ip`.
    DirectRemoteIp(Cidr),
    RemoteIp(Cidr),
    Metadata(MetadataMatcher),
    RouteMetadata(MetadataMatcher),
}
