//! `config.route.v3.RouteMatch`.

use std::sync::Arc;

use super::header::HeaderMatcher;
pub use super::template::PathTemplate;
use crate::model::FractionalPercent;
use crate::model::address::Cidr;
use crate::model::matcher::{MetadataMatcher, Regex, StringMatcher};

/// A request matches where all of it does.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteMatch {
    pub path: PathMatch,
    /// Of prefix, path and separated prefix. Default true.
    pub case_sensitive: bool,
    /// So often only.
    pub runtime_fraction: Option<FractionalPercent>,
    pub headers: Vec<HeaderMatcher>,
    pub query_parameters: Vec<QueryParameterMatcher>,
    pub cookies: Vec<CookieMatcher>,
    /// gRPC requests only.
    pub grpc: bool,
    pub tls_context: Option<TlsContextMatch>,
    pub dynamic_metadata: Vec<MetadataMatcher>,
    pub filter_state: Vec<FilterStateMatcher>,
}

/// The path is looked at without its query.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatch {
    Prefix(Arc<str>),
    Path(Arc<str>),
    SafeRegex(Regex),
    /// The prefix itself, or with a `/` after it.
    PathSeparatedPrefix(Arc<str>),
    /// CONNECT requests, and extended ones.
    Connect,
    /// `envoy.path.match.uri_template.uri_template_matcher`.
    Template(PathTemplate),
}

#[derive(Clone, Debug, PartialEq)]
pub struct QueryParameterMatcher {
    pub name: Arc<str>,
    pub matches: QueryParameterMatch,
}

#[derive(Clone, Debug, PartialEq)]
pub enum QueryParameterMatch {
    Present(bool),
    String(StringMatcher),
}

#[derive(Clone, Debug, PartialEq)]
pub struct CookieMatcher {
    pub name: Arc<str>,
    pub matches: StringMatcher,
    pub invert: bool,
}

/// Of the client's certificate: whether there is one, and whether it was found good. `None`: either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TlsContextMatch {
    pub presented: Option<bool>,
    pub validated: Option<bool>,
}

/// `type.matcher.v3.FilterStateMatcher`. What is not there matches nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterStateMatcher {
    pub key: Arc<str>,
    pub matches: FilterStateMatch,
}

#[derive(Clone, Debug, PartialEq)]
pub enum FilterStateMatch {
    String(StringMatcher),
    /// An address in one of them, or in none where inverted.
    Address {
        ranges: Vec<Cidr>,
        invert: bool,
    },
}
