//! What a mesh's control plane sends is never refused as a whole for what is not implemented.
//!
//! The files beside this one are responses in the shape of istiod's; each of its resource types, filters and sockets
//! that plain sidecars get is in one of them.

use std::sync::Arc;

use proxy_config::model::cluster::{Discovery, LbPolicy};
use proxy_config::model::config_source::ConfigSourceKind;
use proxy_config::model::http::RouteConfiguration;
use proxy_config::model::network_filter::NetworkFilter;
use proxy_config::model::tls::Secret;
use proxy_config::model::{Cluster, Listener, LoadAssignment};
use proxy_config::xds::file::Reader;
use proxy_config::xds::{Decoded, Decoder, Discover, Kind};

const CLUSTERS: &str = include_str!("clusters.yaml");
const ENDPOINTS: &str = include_str!("endpoints.yaml");
const LISTENERS: &str = include_str!("listeners.yaml");
const ROUTES: &str = include_str!("routes.yaml");
const SECRETS: &str = include_str!("secrets.yaml");

/// What such a sidecar is sent, and in which file it is, with words that are there only where it is.
const SURFACE: &[(&str, &str, &[&str])] = &[
    ("CDS", CLUSTERS, &["envoy.config.cluster.v3.Cluster"]),
    ("EDS", ENDPOINTS, &["envoy.config.endpoint.v3.ClusterLoadAssignment"]),
    ("LDS", LISTENERS, &["envoy.config.listener.v3.Listener"]),
    ("RDS", ROUTES, &["envoy.config.route.v3.RouteConfiguration"]),
    ("SDS", SECRETS, &["name: default", "name: ROOTCA", "file-cert:", "file-root:", "kubernetes://"]),
    ("envoy.filters.listener.original_dst", LISTENERS, &["original_dst.v3.OriginalDst"]),
    ("envoy.filters.listener.tls_inspector", LISTENERS, &["initial_read_buffer_size: 512"]),
    ("envoy.filters.listener.http_inspector", LISTENERS, &["http_inspector.v3.HttpInspector", "not_match"]),
    ("istio.metadata_exchange, listener", LISTENERS, &["envoy.tcp.metadataexchange.config.MetadataExchange"]),
    ("istio.metadata_exchange, cluster", CLUSTERS, &["envoy.tcp.metadataexchange.config.MetadataExchange"]),
    ("istio.stats", LISTENERS, &["stats.PluginConfig"]),
    (
        "envoy.filters.network.tcp_proxy",
        LISTENERS,
        &["weighted_clusters", "hash_policy", "tunneling_config", "idle_timeout"],
    ),
    ("envoy.filters.network.http_connection_manager", LISTENERS, &["rds:", "route_config:"]),
    ("istio.metadata_exchange, HTTP", LISTENERS, &["io.istio.http.peer_metadata.Config"]),
    ("envoy.filters.http.grpc_stats", LISTENERS, &["grpc_stats.v3.FilterConfig"]),
    ("istio.alpn", LISTENERS, &["istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"]),
    ("envoy.filters.http.fault", LISTENERS, &["fault.v3.HTTPFault"]),
    ("envoy.filters.http.fault, of a route", ROUTES, &["fault.v3.HTTPFault"]),
    ("envoy.filters.http.cors", LISTENERS, &["cors.v3.Cors"]),
    ("envoy.filters.http.cors, of a route", ROUTES, &["cors.v3.CorsPolicy"]),
    ("envoy.filters.http.router", LISTENERS, &["router.v3.Router"]),
    ("envoy.transport_sockets.tls", CLUSTERS, &["tlsMode-istio", "tlsMode-disabled", "UpstreamTlsContext"]),
    ("envoy.transport_sockets.tls, downstream", LISTENERS, &["DownstreamTlsContext"]),
    ("envoy.transport_sockets.raw_buffer", CLUSTERS, &["raw_buffer.v3.RawBuffer"]),
    (
        "typed_extension_protocol_options",
        CLUSTERS,
        &["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"],
    ),
    (
        "discovery",
        CLUSTERS,
        &["type: EDS", "type: STRICT_DNS", "type: LOGICAL_DNS", "type: STATIC", "type: ORIGINAL_DST"],
    ),
    (
        "balancing",
        CLUSTERS,
        &["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV", "CLUSTER_PROVIDED"],
    ),
    ("uuid request id", LISTENERS, &["request_id.uuid.v3.UuidRequestIdConfig"]),
    ("previous_hosts", ROUTES, &["previous_hosts.v3.PreviousHostsPredicate"]),
    ("file access log", LISTENERS, &["access_loggers.file.v3.FileAccessLog"]),
];

/// All resources of a file; one that is refused is a failure.
fn decoded<T: Discover>(text: &str) -> Vec<Decoded<T>> {
    let decoder = Decoder { clusters: Some(Arc::new([Arc::from("sds-grpc")].into())), ..Decoder::default() };
    let read = Reader::new(T::KIND).read(text).unwrap_or_else(|found| panic!("{found:#?}"));
    assert_eq!(read.warnings, [], "{:?}", T::KIND);
    let decode = |raw| decoder.decode::<T>(raw).unwrap_or_else(|found| panic!("{}: {found:#?}", raw.name));
    read.resources.iter().map(decode).collect()
}

fn model<T>(all: &[Decoded<T>], name: impl Fn(&T) -> bool) -> &T {
    &all.iter().find(|decoded| name(&decoded.resource.model)).expect("it is in the file").resource.model
}

#[test]
fn each_part_of_the_surface_is_in_a_file_and_no_file_is_refused() {
    for (part, file, words) in SURFACE {
        for word in *words {
            assert!(file.contains(word), "{part}: {word}");
        }
    }
    assert_eq!(decoded::<Cluster>(CLUSTERS).len(), 10);
    assert_eq!(decoded::<LoadAssignment>(ENDPOINTS).len(), 2);
    assert_eq!(decoded::<Listener>(LISTENERS).len(), 5);
    assert_eq!(decoded::<RouteConfiguration>(ROUTES).len(), 1);
    assert_eq!(decoded::<Secret>(SECRETS).len(), 5);
}

#[test]
fn the_kinds_are_as_they_are_said_to_be() {
    for (kind, file) in [
        (Kind::Cluster, CLUSTERS),
        (Kind::Endpoints, ENDPOINTS),
        (Kind::Listener, LISTENERS),
        (Kind::Route, ROUTES),
        (Kind::Secret, SECRETS),
    ] {
        for other in Kind::ALL {
            assert_eq!(Reader::new(other).read(file).is_ok(), other == kind, "{kind:?} as {other:?}");
        }
    }
}

#[test]
fn clusters_mean_what_they_say() {
    let all = decoded::<Cluster>(CLUSTERS);
    let named = |name: &'static str| model(&all, move |cluster: &Cluster| &*cluster.name == name);
    let mesh = named("outbound|8000||httpbin.default.svc.cluster.local");
    let Discovery::Eds(eds) = &mesh.discovery else { panic!("{:?}", mesh.discovery) };
    assert_eq!(eds.source.kind, ConfigSourceKind::Ads);
    assert_eq!(eds.source.initial_fetch_timeout, None, "0s is for ever");
    assert!(matches!(mesh.lb, LbPolicy::LeastRequest { .. }), "{:?}", mesh.lb);
    assert_eq!(mesh.transport_socket_matches.len(), 2);
    let tls = format!("{:?}", mesh.transport_socket_matches[0].transport_socket);
    assert!(tls.contains("sds-grpc") && tls.contains("ROOTCA") && tls.contains("spiffe://"), "{tls}");
    assert!(matches!(named("PassthroughCluster").discovery, Discovery::OriginalDst(_)));
    assert!(named("InboundPassthroughClusterIpv6").bind.is_some());
    assert_eq!(named("BlackHoleCluster").load_assignment.localities.len(), 0);
}

#[test]
fn what_is_not_implemented_closes_its_own_connections_only() {
    let all = decoded::<Listener>(LISTENERS);
    let named = |name: &'static str| model(&all, move |listener: &Listener| &*listener.name == name);
    let service = named("0.0.0.0_8000");
    let [filter] = service.filter_chains[0].filters.as_slice() else { panic!("{service:?}") };
    let NetworkFilter::Unserved(unserved) = &filter.filter else { panic!("{filter:?}") };
    assert_eq!(&*unserved.extension, "envoy.filters.network.http_connection_manager");
    let routes = unserved.routes.as_ref().expect("it asks for routes");
    assert_eq!((&*routes.name, &routes.source.kind), ("8000", &ConfigSourceKind::Ads));
    let other = service.default_filter_chain.as_ref().expect("there is one");
    assert!(matches!(other.filters.last().map(|last| &last.filter), Some(NetworkFilter::TcpProxy(_))));

    let inbound = named("virtualInbound");
    let ends = |filter: &NetworkFilter| matches!(filter, NetworkFilter::Unserved(u) if u.routes.is_none());
    let closed = inbound.filter_chains.iter().filter(|c| c.filters.last().is_some_and(|f| ends(&f.filter)));
    assert_eq!(closed.count(), 2, "those with routes of their own");

    let tunnel = &named("10.96.0.20_9000").filter_chains[1];
    assert!(matches!(tunnel.filters.last().map(|f| &f.filter), Some(NetworkFilter::Unserved(_))));

    let gateway = &named("0.0.0.0_15443").filter_chains[0];
    let [sni, ..] = &*gateway.filter_chain_match.server_names else { panic!("{gateway:?}") };
    assert_eq!(&**sni, "outbound_.5000_._.helloworld.sample.svc.cluster.local");
    assert_eq!(gateway.filter_chain_match.application_protocols.len(), 5);
    let said = all.iter().flat_map(|decoded| &decoded.warnings).map(ToString::to_string);
    let about_http = said.filter(|line| line.contains("http_connection_manager"));
    assert_eq!(about_http.count(), 3, "each is said");
}

#[test]
fn endpoints_keep_what_tells_them_apart() {
    let all = decoded::<LoadAssignment>(ENDPOINTS);
    let assignment = &all[0].resource.model;
    let [near, far] = assignment.localities.as_slice() else { panic!("{assignment:?}") };
    assert_eq!((near.priority, far.priority), (0, 1));
    assert_eq!(near.endpoints.len(), 2);
    let tls_mode = format!("{:?}", near.endpoints[0].metadata);
    assert!(tls_mode.contains("tlsMode") && tls_mode.contains("istio"), "{tls_mode}");
}

#[test]
fn a_server_that_the_bootstrap_does_not_have_is_named() {
    let decoder = Decoder { clusters: Some(Arc::default()), ..Decoder::default() };
    let read = Reader::new(Kind::Cluster).read(CLUSTERS).unwrap();
    let found = decoder.decode::<Cluster>(&read.resources[0]).unwrap_err();
    assert_eq!(found.len(), 2, "the certificate's and the root's: {found:?}");
    let line = found[0].to_string();
    assert!(line.contains("grpc_services[0].envoy_grpc.cluster_name: no cluster 'sds-grpc'"), "{line}");
}

#[test]
fn filters_that_decide_who_may_connect_are_refused() {
    let listener = |filter: &str| {
        format!(
            "resources:\n- '@type': {}\n  name: l\n  address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}\n  \
             filter_chains:\n  - filters:\n    - {{name: f, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.{filter}}}}}\n",
            Kind::Listener.type_url()
        )
    };
    let decode = |filter: &str| {
        let read = Reader::new(Kind::Listener).read(&listener(filter)).unwrap();
        Decoder::default().decode::<Listener>(&read.resources[0])
    };
    for refused in [
        "ext_authz.v3.ExtAuthz",
        "wasm.v3.Wasm",
        "ext_proc.v3.NetworkExternalProcessor",
        "ratelimit.v3.RateLimit",
    ] {
        assert!(decode(refused).is_err(), "{refused}");
    }
    for closes in ["redis_proxy.v3.RedisProxy", "mongo_proxy.v3.MongoProxy", "thrift_proxy.v3.ThriftProxy"] {
        let decoded = decode(closes).unwrap();
        assert_eq!(decoded.warnings.len(), 1, "{closes}");
    }
    let scoped = "http_connection_manager.v3.HttpConnectionManager, scoped_routes: {name: s}";
    let found = decode(scoped).unwrap_err();
    assert!(found[0].why.contains("SRDS"), "{found:?}");
    let vhds = "http_connection_manager.v3.HttpConnectionManager, route_config: {name: r, vhds: {config_source: {ads: {}}}}";
    assert!(decode(vhds).unwrap_err()[0].why.contains("VHDS"));
    // A filter after one that closes is never reached, and still has to be right.
    let listener = listener("redis_proxy.v3.RedisProxy").replace(
        "- {name: f",
        "- {name: e, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.zookeeper_proxy.v3.ZooKeeperProxy, stat_prefix: z}}\n    - {name: f",
    );
    let read = Reader::new(Kind::Listener).read(&listener).unwrap();
    let decoded = Decoder::default().decode::<Listener>(&read.resources[0]).unwrap();
    assert_eq!(decoded.resource.model.filter_chains[0].filters.len(), 1);
}
