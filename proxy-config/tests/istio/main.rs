//! What a mesh's control plane sends is never refused as a whole for what is not implemented.
//!
//! The files beside this one are responses in the shape of istiod's; each of its resource types, filters and sockets
//! that plain sidecars get is in one of them.

use std::sync::Arc;

use proxy_config::model::cluster::{Discovery, LbPolicy};
use proxy_config::model::config_source::ConfigSourceKind;
use proxy_config::model::http::RouteConfiguration;
use proxy_config::model::http::action::Action;
use proxy_config::model::http::istio::PeerDiscovery;
use proxy_config::model::http::retry::{RetryHostPredicate, RetryOn};
use proxy_config::model::http::{FilterKind, Hcm, PerRoute, RouteSource};
use proxy_config::model::network_filter::{NetworkFilter, NetworkFilterConfig};
use proxy_config::model::tls::Secret;
use proxy_config::model::{Cluster, FilterChain, Listener, LoadAssignment};
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

fn hcm(filters: &[NetworkFilterConfig]) -> &Hcm {
    let Some(NetworkFilter::Http(hcm)) = filters.last().map(|last| &last.filter) else {
        panic!("{filters:?}")
    };
    hcm
}

#[test]
fn connection_managers_mean_what_they_say() {
    let all = decoded::<Listener>(LISTENERS);
    let named = |name: &'static str| model(&all, move |listener: &Listener| &*listener.name == name);
    let service = named("0.0.0.0_8000");
    let outbound = hcm(&service.filter_chains[0].filters);
    let RouteSource::Rds(routes) = &outbound.routes else { panic!("it asks for routes: {outbound:?}") };
    assert_eq!((&*routes.name, &routes.source.kind), ("8000", &ConfigSourceKind::Ads));
    let names: Vec<&str> = outbound.filters.iter().map(|filter| &*filter.name).collect();
    assert_eq!(names[..2], ["istio.metadata_exchange", "envoy.filters.http.grpc_stats"]);
    let kinds = &outbound.filters;
    assert!(
        matches!(&kinds[0].kind, FilterKind::MetadataExchange(peer) if peer.upstream_discovery == [PeerDiscovery::IstioHeaders])
    );
    assert!(kinds.iter().any(|f| matches!(&f.kind, FilterKind::IstioAlpn(alpn) if alpn.http11.len() == 3)));
    assert!(kinds.iter().any(|f| matches!(&f.kind, FilterKind::IstioStats(_))));
    assert!(matches!(kinds.last().map(|last| &last.kind), Some(FilterKind::Router(_))));
    let other = service.default_filter_chain.as_ref().expect("there is one");
    assert!(matches!(other.filters.last().map(|last| &last.filter), Some(NetworkFilter::TcpProxy(_))));

    let inbound = named("virtualInbound");
    let http = |chain: &FilterChain| {
        let last = chain.filters.last().map(|last| &last.filter);
        matches!(last, Some(NetworkFilter::Http(hcm)) if matches!(hcm.routes, RouteSource::Inline(_)))
    };
    let own = inbound.filter_chains.iter().filter(|chain| http(chain));
    assert_eq!(own.count(), 2, "those with routes of their own");

    let tunnel = &named("10.96.0.20_9000").filter_chains[1];
    let Some(NetworkFilter::TcpProxy(proxy)) = tunnel.filters.last().map(|f| &f.filter) else {
        panic!("{tunnel:?}")
    };
    assert!(proxy.tunneling.is_some());

    let gateway = &named("0.0.0.0_15443").filter_chains[0];
    let [sni, ..] = &*gateway.filter_chain_match.server_names else { panic!("{gateway:?}") };
    assert_eq!(&**sni, "outbound_.5000_._.helloworld.sample.svc.cluster.local");
    assert_eq!(gateway.filter_chain_match.application_protocols.len(), 5);
}

#[test]
fn routes_mean_what_they_say() {
    let all = decoded::<RouteConfiguration>(ROUTES);
    let routes = &all[0].resource.model;
    assert!(routes.ignore_port_in_host_matching);
    assert_eq!(
        (routes.validate_clusters, routes.max_direct_response_body_size_bytes),
        (Some(false), 1 << 20)
    );
    let clusters = routes.clusters();
    let named: Vec<&str> = clusters.iter().map(|name| &**name).collect();
    assert_eq!(named, ["PassthroughCluster", "outbound|8000||httpbin.default.svc.cluster.local"]);
    let route = &routes.virtual_hosts[1].routes[0];
    let Action::Route(action) = &route.action else { panic!("{route:?}") };
    assert_eq!(
        (action.timeout, action.max_grpc_timeout.map(|max| max.max)),
        (None, Some(None)),
        "0s is for ever"
    );
    let retries = action.retry_policy.as_deref().expect("there is one");
    assert!(
        retries.retry_on.has(RetryOn::CONNECT_FAILURE) && retries.retry_on.has(RetryOn::GRPC_UNAVAILABLE)
    );
    assert!(!retries.retry_on.has(RetryOn::SERVER_ERROR));
    assert_eq!(retries.host_predicates, [RetryHostPredicate::PreviousHosts]);
    assert_eq!((retries.num_retries, retries.host_selection_max_attempts), (2, 5));
    let fault = route.per_filter.get("envoy.filters.http.fault").and_then(|fault| fault.config.as_ref());
    assert!(matches!(fault, Some(PerRoute::Fault(fault)) if fault.abort.is_some()), "{fault:?}");
}

#[test]
fn a_wrong_route_is_named_by_its_place() {
    let text = ROUTES.replace("num_retries: 2", "num_retries: 2\n          per_try_timeout: -1s");
    let read = Reader::new(Kind::Route).read(&text).unwrap();
    let found = Decoder::default().decode::<RouteConfiguration>(&read.resources[0]).unwrap_err();
    let said: Vec<_> = found.iter().map(ToString::to_string).collect();
    let place = "at <RouteConfiguration>.virtual_hosts[1].routes[0].route.retry_policy.per_try_timeout";
    assert_eq!(said, [format!("{place}: must be a duration from 0s to 315576000000s")]);
}

#[test]
fn http_filters_that_are_not_implemented() {
    let listener = |filter: &str| {
        format!(
            "resources:\n- '@type': {}\n  name: l\n  address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}\n  \
             filter_chains:\n  - filters:\n    - name: h\n      typed_config:\n        '@type': \
             type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n        \
             stat_prefix: s\n        route_config: {{}}\n        http_filters:\n        - {{name: f, typed_config: {{'@type': \
             type.googleapis.com/envoy.extensions.filters.http.{filter}}}}}\n        - {{name: envoy.filters.http.router}}\n",
            Kind::Listener.type_url()
        )
    };
    let decode = |filter: &str| {
        let read = Reader::new(Kind::Listener).read(&listener(filter)).unwrap();
        Decoder::default().decode::<Listener>(&read.resources[0])
    };
    for refused in
        ["wasm.v3.Wasm", "ext_proc.v3.ExternalProcessor", "ratelimit.v3.RateLimit", "oauth2.v3.OAuth2"]
    {
        let found = decode(refused).unwrap_err();
        assert!(found[0].why.contains("is not implemented"), "{refused}: {found:?}");
    }
    for (filter, fails) in [
        ("stateful_session.v3.StatefulSession", false),
        ("tap.v3.Tap", false),
        ("dynamic_forward_proxy.v3.FilterConfig", true),
        ("grpc_json_transcoder.v3.GrpcJsonTranscoder", true),
    ] {
        let decoded = decode(filter).unwrap();
        let filters = &hcm(&decoded.resource.model.filter_chains[0].filters).filters;
        let FilterKind::Unserved(unserved) = &filters[0].kind else { panic!("{filters:?}") };
        assert_eq!(unserved.fails, fails, "{filter}");
        assert!(decoded.warnings[0].why.contains(&*unserved.extension), "{:?}", decoded.warnings);
    }
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
    assert!(found.iter().any(|found| found.why.contains("SRDS")), "{found:?}");
    let vhds = "http_connection_manager.v3.HttpConnectionManager, route_config: {name: r, vhds: {config_source: {ads: {}}}}";
    assert!(decode(vhds).unwrap_err().iter().any(|found| found.why.contains("VHDS")));
    // A filter after one that closes is never reached, and still has to be right.
    let listener = listener("redis_proxy.v3.RedisProxy").replace(
        "- {name: f",
        "- {name: e, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.zookeeper_proxy.v3.ZooKeeperProxy, stat_prefix: z}}\n    - {name: f",
    );
    let read = Reader::new(Kind::Listener).read(&listener).unwrap();
    let decoded = Decoder::default().decode::<Listener>(&read.resources[0]).unwrap();
    assert_eq!(decoded.resource.model.filter_chains[0].filters.len(), 1);
}
