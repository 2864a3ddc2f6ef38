//! `config.bootstrap.v3.Bootstrap`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::address::Address;
use super::cluster::Cluster;
use super::config_source::{ApiSource, ConfigSource};
use super::http::tracing::TracingProvider;
use super::listener::Listener;
use super::matcher::StringMatcher;
use super::metadata::Struct;
use super::raw::Raw;
use super::tls::Secret;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bootstrap {
    pub node: Node,
    pub admin: Option<Admin>,
    pub listeners: Vec<Resource<Listener>>,
    pub clusters: Vec<Resource<Cluster>>,
    pub secrets: Vec<Resource<Secret>>,
    pub dynamic: DynamicResources,
    pub stats: StatsConfig,
    /// `layered_runtime`: what `/runtime` shows. What is read of it is in [`Self::reports`].
    pub runtime: BTreeMap<String, Struct>,
    /// `tracing`: of connection managers that trace, and have no provider of their own.
    pub tracing: Option<TracingProvider>,
    pub reports: TraceReports,
}

/// How spans are reported, by keys of the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceReports {
    /// `tracing.zipkin.*`
    pub zipkin: Reports,
    /// `tracing.opentelemetry.*`
    pub opentelemetry: Reports,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reports {
    /// So many spans are sent at once. Default 5.
    pub min_flush_spans: u32,
    /// Fewer wait no longer than this. Default 5 s.
    pub flush_interval: Duration,
    /// Of Zipkin. Default 5 s.
    pub request_timeout: Duration,
}

impl Default for Reports {
    fn default() -> Self {
        let five = Duration::from_secs(5);
        Self { min_flush_spans: 5, flush_interval: five, request_timeout: five }
    }
}

/// `dynamic_resources`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DynamicResources {
    pub lds: Option<ConfigSource>,
    pub cds: Option<ConfigSource>,
    pub ads: Option<Arc<ApiSource>>,
}

/// A model with the message that it came from, encoded: what `/config_dump` shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource<T> {
    pub model: Arc<T>,
    pub raw: Raw,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub id: String,
    pub cluster: String,
    pub region: String,
    pub zone: String,
    pub sub_zone: String,
    pub metadata: Struct,
    /// The message, encoded: what a control plane is told.
    pub raw: Bytes,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    pub address: Address,
    /// Paths that may be asked for; none: all.
    pub allow_paths: Vec<StringMatcher>,
}

/// `stats_config`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatsConfig {
    pub tags: Vec<TagSpecifier>,
    /// Default true.
    pub use_all_default_tags: Option<bool>,
    pub matcher: StatsMatcher,
    pub histogram_buckets: Vec<HistogramBuckets>,
    /// `stats_eviction_interval`: those with labels that are not used for so long are forgotten.
    pub eviction_interval: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TagSpecifier {
    /// `None`: one of Envoy's built-in expressions, by the tag's name.
    Regex {
        name: String,
        regex: Option<String>,
    },
    Fixed {
        name: String,
        value: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum StatsMatcher {
    #[default]
    All,
    None,
    Exclusion(Vec<StringMatcher>),
    Inclusion(Vec<StringMatcher>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct HistogramBuckets {
    pub matcher: StringMatcher,
    pub buckets: Vec<f64>,
}
