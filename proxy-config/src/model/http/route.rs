//! `config.route.v3.RouteConfiguration`, its virtual hosts and their routes.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::action::{Action, ClusterName, ClusterSpecifier, MirrorPolicy, RateLimit};
use super::filter::PerFilters;
use super::header::{HeaderEdits, HeaderMatcher};
use super::retry::RetryPolicy;
use super::route_match::RouteMatch;
use super::tracing::CustomTag;
use crate::model::FractionalPercent;
use crate::model::metadata::Metadata;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteConfiguration {
    /// Inline ones may have none.
    pub name: Arc<str>,
    /// No two have a domain in common.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Taken from requests of clients that are not internal.
    pub internal_only_headers: Vec<Arc<str>>,
    pub headers: HeaderEdits,
    /// Edits of the route go first and those of all routes last; else the other way around.
    pub most_specific_header_mutations_wins: bool,
    /// Each cluster that is named must be there when the routes are taken. `None`: where they are inline.
    pub validate_clusters: Option<bool>,
    /// Default 4,096.
    pub max_direct_response_body_size_bytes: u32,
    pub mirror: Vec<MirrorPolicy>,
    pub ignore_port_in_host_matching: bool,
    /// Whose value is matched with the domains, instead of the host.
    pub vhost_header: Option<Arc<str>>,
    /// What follows a `;` in a segment is not matched.
    pub ignore_path_parameters_in_path_matching: bool,
    pub per_filter: PerFilters,
    pub metadata: Metadata,
}

impl RouteConfiguration {
    /// The clusters that its routes name, mirrors included: whoever knows all clusters checks them.
    pub fn clusters(&self) -> BTreeSet<Arc<str>> {
        let mut found = BTreeSet::new();
        mirrors(&self.mirror, &mut found);
        for host in &self.virtual_hosts {
            mirrors(&host.mirror, &mut found);
            for route in &host.routes {
                let Action::Route(action) = &route.action else { continue };
                mirrors(&action.mirror, &mut found);
                match &action.cluster {
                    ClusterSpecifier::Cluster(name) => {
                        found.insert(name.clone());
                    }
                    ClusterSpecifier::Header(_) => {}
                    ClusterSpecifier::Weighted(weighted) => {
                        weighted.clusters.iter().for_each(|cluster| named(&cluster.cluster, &mut found));
                    }
                }
            }
        }
        found
    }
}

fn mirrors(policies: &[MirrorPolicy], found: &mut BTreeSet<Arc<str>>) {
    policies.iter().for_each(|policy| named(&policy.cluster, found));
}

fn named(cluster: &ClusterName, found: &mut BTreeSet<Arc<str>>) {
    match cluster {
        ClusterName::Name(name) => {
            found.insert(name.clone());
        }
        ClusterName::Header(_) => {}
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct VirtualHost {
    pub name: Arc<str>,
    /// In lower case: exact, `*.suffix`, `prefix.*` or `*`, in this order of precedence; of the ones with a star the
    /// longest goes first.
    pub domains: Vec<Arc<str>>,
    /// The first that matches holds.
    pub routes: Vec<Route>,
    pub require_tls: RequireTls,
    /// Of `vhost.<name>.vcluster.`; the first that matches.
    pub virtual_clusters: Vec<VirtualCluster>,
    pub rate_limits: Vec<RateLimit>,
    pub headers: HeaderEdits,
    pub per_filter: PerFilters,
    pub include_request_attempt_count: bool,
    pub include_attempt_count_in_response: bool,
    pub include_is_timeout_retry_header: bool,
    /// Where a route has none.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// How much of a request is kept for retries and mirrors.
    pub request_body_buffer_limit: Option<u64>,
    pub mirror: Vec<MirrorPolicy>,
    pub metadata: Metadata,
}

/// A request by plain HTTP is redirected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    #[default]
    None,
    /// Where its client is not internal.
    ExternalOnly,
    All,
}

#[derive(Clone, Debug, PartialEq)]
pub struct VirtualCluster {
    pub name: Arc<str>,
    pub headers: Vec<HeaderMatcher>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    pub name: Arc<str>,
    pub matcher: RouteMatch,
    pub action: Action,
    pub headers: HeaderEdits,
    pub metadata: Metadata,
    pub decorator: Option<Decorator>,
    pub per_filter: PerFilters,
    pub tracing: Option<Box<RouteTracing>>,
    /// Goes before the virtual host's.
    pub request_body_buffer_limit: Option<u64>,
    /// Of `vhost.<name>.route.<stat_prefix>.`
    pub stat_prefix: Option<Arc<str>>,
}

/// The span's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decorator {
    pub operation: Arc<str>,
    /// It is told to the upstream. Default true.
    pub propagate: bool,
}

/// `config.route.v3.Tracing`. What is not given is the connection manager's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTracing {
    pub client_sampling: Option<FractionalPercent>,
    pub random_sampling: Option<FractionalPercent>,
    pub overall_sampling: Option<FractionalPercent>,
    pub custom_tags: Vec<CustomTag>,
    pub operation: Option<super::header::Format>,
    pub upstream_operation: Option<super::header::Format>,
}
