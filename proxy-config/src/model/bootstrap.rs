//! `config.bootstrap.v3.Bootstrap`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::address::Address;
use super::cluster::Cluster;
use super::config_source::{ApiSource, ConfigSource};
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
    /// `layered_runtime`: what `/runtime` shows. Nothing is read of it.
    pub runtime: BTreeMap<String, Struct>,
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
