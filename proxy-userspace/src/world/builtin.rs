//! What captured workloads run on without a configuration: Istio's virtual listeners and passthrough clusters.
//!
//! They are the same models that a configuration is lowered into, so there is one data path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use proxy_config::model::access_log::AccessLog;
use proxy_config::model::address::BindConfig;
use proxy_config::model::cluster::{CircuitBreakers, Discovery, OriginalDst, Thresholds};
use proxy_config::model::listener::{ChainMatch, TrafficDirection};
use proxy_config::model::network_filter::{NetworkFilterConfig, TcpProxy, WeightedCluster};
use proxy_config::model::{self, Cidr, Metadata, NetworkFilter};

use super::{BuildError, Listener, Live, Parts, Snapshot};
use crate::net::{Direction, Options, OutboundPolicy};

/// Istio's names, by which people look for them.
pub const PASSTHROUGH: &str = "PassthroughCluster";
pub const BLACK_HOLE: &str = "BlackHoleCluster";
pub const INBOUND_V4: &str = "InboundPassthroughClusterIpv4";
pub const INBOUND_V6: &str = "InboundPassthroughClusterIpv6";

/// The source of inbound passthrough connections: by it the kernel programs and the application tell them from
/// connections that the workload makes to itself.
const SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6));
const SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// The listeners, and what holds their clusters.
pub struct Builtin {
    pub live: Arc<Live>,
    allow_any: Arc<Listener>,
    registry_only: Arc<Listener>,
    inbound: Arc<Listener>,
}

impl Builtin {
    pub fn new(options: &Options, parts: &Parts<'_>) -> Result<Self, BuildError> {
        let clusters = [
            cluster(PASSTHROUGH, original_dst(), None, options),
            cluster(BLACK_HOLE, Discovery::Static, None, options),
            cluster(INBOUND_V4, original_dst(), Some(SOURCE_V4), options),
            cluster(INBOUND_V6, original_dst(), Some(SOURCE_V6), options),
        ];
        let snapshot = Snapshot::build([], clusters.map(Arc::new), parts)?;
        let listener = |model| {
            let listener = Listener::resetting(Arc::new(model), parts)?;
            Ok::<_, BuildError>(Arc::new(listener))
        };
        Ok(Self {
            live: Arc::new(Live::of(snapshot)),
            allow_any: listener(outbound(PASSTHROUGH, options))?,
            registry_only: listener(outbound(BLACK_HOLE, options))?,
            inbound: listener(inbound(options))?,
        })
    }

    pub fn listener(&self, direction: Direction, policy: OutboundPolicy) -> &Arc<Listener> {
        match (direction, policy) {
            (Direction::Inbound, _) => &self.inbound,
            (Direction::Outbound, OutboundPolicy::AllowAny) => &self.allow_any,
            (Direction::Outbound, OutboundPolicy::RegistryOnly) => &self.registry_only,
        }
    }
}

fn outbound(cluster: &str, options: &Options) -> model::Listener {
    let chain = chain(cluster, ChainMatch::default(), options);
    virtual_listener(Direction::Outbound, vec![chain])
}

fn inbound(options: &Options) -> model::Listener {
    let any = |address, cluster| {
        let prefix_ranges = Cidr::new(address, 0).into_iter().collect();
        chain(cluster, ChainMatch { prefix_ranges, ..ChainMatch::default() }, options)
    };
    let chains = vec![
        any(IpAddr::V4(Ipv4Addr::UNSPECIFIED), INBOUND_V4),
        any(IpAddr::V6(Ipv6Addr::UNSPECIFIED), INBOUND_V6),
    ];
    virtual_listener(Direction::Inbound, chains)
}

fn virtual_listener(direction: Direction, filter_chains: Vec<model::FilterChain>) -> model::Listener {
    let traffic_direction = match direction {
        Direction::Outbound => TrafficDirection::Outbound,
        Direction::Inbound => TrafficDirection::Inbound,
    };
    // Each workload has sockets of its own; the name is what people look for.
    let name = direction.listener();
    model::Listener {
        stat_prefix: Some(name.into()),
        bind_to_port: false,
        traffic_direction,
        filter_chains,
        ..model::Listener::new(name, vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()])
    }
}

fn chain(cluster: &str, filter_chain_match: ChainMatch, options: &Options) -> model::FilterChain {
    let proxy = TcpProxy {
        tunneling: None,
        stat_prefix: cluster.into(),
        clusters: vec![WeightedCluster {
            name: cluster.into(),
            weight: 1,
            metadata_match: Metadata::default(),
        }],
        idle_timeout: Some(options.idle_timeout),
        downstream_idle_timeout: None,
        upstream_idle_timeout: None,
        max_connect_attempts: 1,
        backoff: None,
        hash_policy: None,
        max_downstream_connection_duration: None,
        max_downstream_connection_duration_jitter: None,
        access_log: Vec::<AccessLog>::new(),
        access_log_flush_interval: None,
        flush_access_log_on_connected: false,
        flush_access_log_on_start: false,
    };
    let filter = NetworkFilter::TcpProxy(Box::new(proxy));
    let filters = vec![NetworkFilterConfig { name: "envoy.filters.network.tcp_proxy".into(), filter }];
    model::FilterChain::new(cluster, filter_chain_match, filters)
}

fn original_dst() -> Discovery {
    Discovery::OriginalDst(OriginalDst::default())
}

pub(crate) fn cluster(
    name: &str,
    discovery: Discovery,
    source: Option<IpAddr>,
    options: &Options,
) -> model::Cluster {
    let bind = source.map(|ip| BindConfig { source: Some(SocketAddr::new(ip, 0)), ..BindConfig::default() });
    // As Istio sets them: a passthrough is not where connections are limited.
    let unlimited = Thresholds {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        max_retries: u32::MAX,
        ..Thresholds::default()
    };
    model::Cluster {
        connect_timeout: options.connect_timeout,
        circuit_breakers: CircuitBreakers { default: unlimited, ..CircuitBreakers::default() },
        bind: bind.map(Box::new),
        ..model::Cluster::new(name, discovery)
    }
}
