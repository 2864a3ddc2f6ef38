//! `config.endpoint.v3.ClusterLoadAssignment`.
//!
//! Equal metadata of an assignment's endpoints is one allocation: a control plane gives thousands the same.

use std::collections::BTreeMap;
use std::collections::hash_map::{DefaultHasher, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use envoy_types::pb::envoy::config::endpoint::v3 as pb;

use super::cluster::scalars::{at_least, at_most, positive};
use super::core::metadata;
use super::registry::registry;
use super::value::number;
use super::{Cx, Lower, fitting};
use crate::diagnostic::Segment;
use crate::model::FractionalPercent;
use crate::model::address::Address;
use crate::model::endpoint as model;
use crate::model::metadata::Metadata;

use pb::cluster_load_assignment::Policy;
use pb::cluster_load_assignment::policy::DropOverload;

registry! {
    pb::ClusterLoadAssignment, Policy, DropOverload, pb::LocalityLbEndpoints, pb::LbEndpoint, pb::Endpoint,
    pb::endpoint::HealthCheckConfig,
}

/// An assignment whose endpoints must be IP addresses or sockets: STATIC and EDS.
pub fn of_addresses(cx: &mut Cx, assignment: pb::ClusterLoadAssignment) -> Option<model::LoadAssignment> {
    let lowered = assignment.lower(cx)?;
    let endpoints = lowered.localities.iter().flat_map(|locality| &locality.endpoints);
    for endpoint in endpoints {
        if let Address::Host(host) = &endpoint.address {
            cx.reject(
                "endpoints",
                format!(
                    "malformed IP address: {}. Consider setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'",
                    host.host
                ),
            );
        }
    }
    Some(lowered)
}

lower! { "envoy.config.endpoint.v3.ClusterLoadAssignment" pb::ClusterLoadAssignment => model::LoadAssignment, cx;
    read { cluster_name, endpoints, named_endpoints, policy }
    {
        let cluster_name = cx.name("cluster_name", cluster_name);
        let mut names = named(cx, named_endpoints);
        let policy = policy.and_then(|policy| cx.lower("policy", policy)).unwrap_or_default();
        let mut pool = Pool::default();
        let localities = cx.field("endpoints", |cx| {
            let localities = endpoints.into_iter().enumerate();
            let resolve = |(i, l): (usize, pb::LocalityLbEndpoints)| {
                cx.index(i, |cx| l.lower(cx)?.resolve(cx, &mut names, &mut pool))
            };
            fitting(localities.filter_map(resolve).collect())
        });
        for (name, _) in names.into_iter().filter(|(_, named)| !named.used) {
            cx.field("named_endpoints", |cx| {
                cx.within(Segment::Key(name), |cx| cx.warn_here("is not used by any endpoint_name"));
            });
        }
        Some(model::LoadAssignment { cluster_name: cluster_name?, localities, policy })
    }
}

struct Named {
    endpoint: Option<model::Endpoint>,
    used: bool,
}

fn named(cx: &mut Cx, endpoints: HashMap<String, pb::Endpoint>) -> BTreeMap<String, Named> {
    let ordered: BTreeMap<_, _> = endpoints.into_iter().collect();
    cx.field("named_endpoints", |cx| {
        let lowered = ordered.into_iter().map(|(name, endpoint)| {
            let endpoint = cx.within(Segment::Key(name.clone()), |cx| endpoint.lower(cx));
            (name, Named { endpoint, used: false })
        });
        lowered.collect()
    })
}

/// What is one allocation in an assignment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    metadata: HashMap<u64, Vec<Arc<Metadata>>>,
    text: BTreeMap<Arc<str>, Arc<str>>,
}

impl Pool {
    pub(crate) fn len(&self) -> usize {
        self.metadata.len() + self.text.len()
    }

    fn metadata(&mut self, metadata: Metadata) -> Arc<Metadata> {
        let mut hasher = DefaultHasher::new();
        metadata.0.hash(&mut hasher);
        let same = self.metadata.entry(hasher.finish()).or_default();
        if let Some(known) = same.iter().find(|known| ***known == metadata) {
            return Arc::clone(known);
        }
        let new = Arc::new(metadata);
        same.push(Arc::clone(&new));
        new
    }

    fn text(&mut self, text: &mut Arc<str>) {
        *text = Arc::clone(self.text.entry(Arc::clone(text)).or_insert_with(|| Arc::clone(text)));
    }
}

lower! { "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy" Policy => model::AssignmentPolicy, cx;
    read { drop_overloads, overprovisioning_factor, weighted_priority_health }
    warn { endpoint_stale_after: "endpoints do not go stale: the last assignment holds" }
    {
        if drop_overloads.len() > 1 {
            cx.reject("drop_overloads", format!("has {} categories: only one is supported", drop_overloads.len()));
        }
        let factor = at_least(cx, "overprovisioning_factor", number(overprovisioning_factor), 1);
        positive(cx, "endpoint_stale_after", endpoint_stale_after);
        Some(model::AssignmentPolicy {
            drop_overloads: cx.list("drop_overloads", drop_overloads),
            overprovisioning_factor: factor.unwrap_or(140),
            weighted_priority_health,
        })
    }
}

lower! { "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy.DropOverload"
    DropOverload => (Arc<str>, FractionalPercent), cx;
    read { category, drop_percentage }
    {
        let category = cx.name("category", category);
        let part = match drop_percentage {
            Some(part) => cx.lower("drop_percentage", part)?,
            None => {
                cx.warn("drop_percentage", "without it nothing is dropped");
                FractionalPercent { numerator: 0, denominator: 100 }
            }
        };
        if part.numerator > part.denominator {
            cx.reject("drop_percentage", format!("{}/{} is more than all", part.numerator, part.denominator));
        }
        Some((category?, part))
    }
}

const TRANSPORT_MATCH: &str = "envoy.transport_socket_match";

/// An endpoint apart from its assignment, where that has no names for endpoints.
pub(crate) fn alone(message: pb::LbEndpoint, pool: &mut Pool, cx: &mut Cx) -> Option<model::Endpoint> {
    message.lower(cx)?.resolve(cx, &mut BTreeMap::new(), pool)
}

/// A locality whose endpoints may still be names.
#[derive(Debug)]
pub struct Unresolved {
    locality: model::LocalityEndpoints,
    endpoints: Vec<UnresolvedEndpoint>,
}

#[derive(Debug)]
pub struct UnresolvedEndpoint {
    host: Host,
    health_status: model::HealthStatus,
    load_balancing_weight: u32,
    metadata: Metadata,
}

#[derive(Debug)]
enum Host {
    Here(model::Endpoint),
    Named(String),
}

impl Unresolved {
    fn resolve(
        self,
        cx: &mut Cx,
        names: &mut BTreeMap<String, Named>,
        pool: &mut Pool,
    ) -> Option<model::LocalityEndpoints> {
        let Self { mut locality, endpoints } = self;
        let (mut sum, mut lost) = (0_u64, false);
        for endpoint in endpoints {
            sum = sum.saturating_add(endpoint.load_balancing_weight.into());
            match endpoint.resolve(cx, names, pool) {
                Some(found) => locality.endpoints.push(found),
                None => lost = true,
            }
        }
        if sum > u32::MAX.into() {
            cx.warn(
                "lb_endpoints",
                format!("the weights add up to {sum}, which should not be more than 4294967295"),
            );
        }
        locality.endpoints.shrink_to_fit();
        for text in
            [&mut locality.locality.region, &mut locality.locality.zone, &mut locality.locality.sub_zone]
        {
            pool.text(text);
        }
        (!lost).then_some(locality)
    }
}

impl UnresolvedEndpoint {
    fn resolve(
        self,
        cx: &mut Cx,
        names: &mut BTreeMap<String, Named>,
        pool: &mut Pool,
    ) -> Option<model::Endpoint> {
        let mut found = match self.host {
            Host::Here(endpoint) => endpoint,
            Host::Named(name) => by_name(cx, names, &name)?,
        };
        pool.text(&mut found.hostname);
        pool.text(&mut found.health_check.hostname);
        found.health_status = self.health_status;
        found.load_balancing_weight = self.load_balancing_weight;
        found.metadata = pool.metadata(self.metadata);
        Some(found)
    }
}

fn by_name(cx: &mut Cx, names: &mut BTreeMap<String, Named>, name: &str) -> Option<model::Endpoint> {
    match names.get_mut(name) {
        Some(named) => {
            named.used = true;
            named.endpoint.clone()
        }
        None => {
            cx.reject("lb_endpoints", format!("endpoint_name \"{name}\" is not in named_endpoints"));
            None
        }
    }
}

lower! { "envoy.config.endpoint.v3.LocalityLbEndpoints" pb::LocalityLbEndpoints => Unresolved, cx;
    read { locality, lb_endpoints, load_balancing_weight, priority, lb_config, metadata }
    warn { proximity: "is not used, as in Envoy" }
    {
        use pb::locality_lb_endpoints::LbConfig;
        let mut metadata = self::metadata(cx, "metadata", metadata);
        let transport_match = metadata.0.remove(TRANSPORT_MATCH).unwrap_or_default();
        if !metadata.0.is_empty() {
            cx.warn("metadata", "is not used but for envoy.transport_socket_match: balancing and logs read that of endpoints");
        }
        match lb_config {
            Some(LbConfig::LoadBalancerEndpoints(_)) => {
                cx.warn("load_balancer_endpoints", "is not read, as in Envoy: use lb_endpoints");
            }
            Some(LbConfig::LedsClusterLocalityConfig(_)) => {
                cx.reject("leds_cluster_locality_config", "LEDS is not implemented");
            }
            None => {}
        }
        let endpoints = cx.list("lb_endpoints", lb_endpoints);
        let locality = model::LocalityEndpoints {
            locality: locality.and_then(|locality| cx.lower("locality", locality)).unwrap_or_default(),
            endpoints: Vec::with_capacity(endpoints.len()),
            load_balancing_weight: at_least(cx, "load_balancing_weight", number(load_balancing_weight), 1),
            priority: at_most(cx, "priority", Some(priority), 128)?,
            transport_match,
        };
        Some(Unresolved { locality, endpoints })
    }
}

lower! { "envoy.config.endpoint.v3.LbEndpoint" pb::LbEndpoint => UnresolvedEndpoint, cx;
    read { health_status, metadata, load_balancing_weight, host_identifier }
    {
        use pb::lb_endpoint::HostIdentifier;
        let weight = at_least(cx, "load_balancing_weight", number(load_balancing_weight), 1).unwrap_or(1);
        let health_status = status(cx, health_status)?;
        let metadata = self::metadata(cx, "metadata", metadata);
        let host = match host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => Host::Here(cx.lower("endpoint", endpoint)?),
            Some(HostIdentifier::EndpointName(name)) => Host::Named(cx.non_empty("endpoint_name", name)?),
            None => {
                cx.reject("host_identifier", "endpoint is required");
                return None;
            }
        };
        Some(UnresolvedEndpoint { host, health_status, load_balancing_weight: weight, metadata })
    }
}

fn status(cx: &mut Cx, value: i32) -> Option<model::HealthStatus> {
    use envoy_types::pb::envoy::config::core::v3::HealthStatus as Pb;
    Some(match cx.variant("health_status", value)? {
        Pb::Unknown => model::HealthStatus::Unknown,
        Pb::Healthy => model::HealthStatus::Healthy,
        Pb::Unhealthy => model::HealthStatus::Unhealthy,
        Pb::Draining => model::HealthStatus::Draining,
        Pb::Timeout => model::HealthStatus::Timeout,
        Pb::Degraded => model::HealthStatus::Degraded,
    })
}

lower! { "envoy.config.endpoint.v3.Endpoint" pb::Endpoint => model::Endpoint, cx;
    read { address, health_check_config, hostname }
    warn {
        additional_addresses: "is not implemented: an endpoint is reached at its address only",
        observability_name: "is not implemented: stats and logs show the address",
    }
    {
        let address = cx.required("address", address);
        let health_check = health_check_config.and_then(|config| cx.lower("health_check_config", config));
        let health_check = health_check.unwrap_or_default();
        if health_check.port.is_some() && matches!(address, Some(Address::Pipe { .. })) {
            cx.reject("health_check_config", "a port for an address that has none");
        }
        Some(model::Endpoint {
            address: address?,
            hostname: hostname.into(),
            health_check,
            health_status: model::HealthStatus::Unknown,
            load_balancing_weight: 1,
            metadata: Arc::default(),
        })
    }
}

lower! { "envoy.config.endpoint.v3.Endpoint.HealthCheckConfig"
    pb::endpoint::HealthCheckConfig => model::EndpointHealthCheck, cx;
    read { port_value, hostname, address, disable_active_health_check }
    {
        let port = cx.port("port_value", port_value);
        Some(model::EndpointHealthCheck {
            port: port.filter(|port| *port != 0),
            hostname: hostname.into(),
            address: address.and_then(|address| cx.lower("address", address)),
            disabled: disable_active_health_check,
        })
    }
}
