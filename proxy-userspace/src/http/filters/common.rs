//! Matters that several filters ask about.

use proxy_config::model::FractionalPercent;
use proxy_config::model::http::action::{ClusterName, ClusterSpecifier};
use proxy_config::model::http::{Action, HeaderMatcher};

use crate::http::{RequestHead, Routed};

/// Whether it is one of so many.
pub(super) fn hits(percent: FractionalPercent) -> bool {
    let FractionalPercent { numerator, denominator } = percent;
    numerator >= denominator || (numerator > 0 && rand::random_range(0..denominator) < numerator)
}

pub(super) fn matches(matcher: &HeaderMatcher, head: &RequestHead) -> bool {
    let value = head.header(&matcher.name);
    matcher.is_match(value.as_deref().map(String::from_utf8_lossy).as_deref())
}

/// The cluster that a route names by itself.
pub(super) fn cluster_of(route: &Routed) -> Option<&str> {
    let Action::Route(action) = &route.model()?.action else { return None };
    match &action.cluster {
        ClusterSpecifier::Cluster(name) => Some(name),
        ClusterSpecifier::Weighted(weighted) => match weighted.clusters.as_slice() {
            [only] => match &only.cluster {
                ClusterName::Name(name) => Some(name),
                ClusterName::Header(_) => None,
            },
            _ => None,
        },
        ClusterSpecifier::Header(_) => None,
    }
}
