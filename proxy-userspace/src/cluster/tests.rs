use std::collections::BTreeMap;

use proxy_config::model::cluster::{
    HashFunction, LbPolicy, LocalityLb, OriginalDst, SlowStart, TransportSocketMatch,
};
use proxy_config::model::endpoint::{HealthStatus, LoadAssignment, Locality, LocalityEndpoints};
use tokio::net::TcpListener;

use super::testing::*;
use super::*;
use crate::net::HostDial;

/// On nobody's behalf.
fn by(source: &Source) -> Client<'_> {
    Client { source, facts: None, connection_id: 0, alpn: &[], names: None }
}

fn locality(zone: &str, priority: u32, weight: u32, ports: &[u16]) -> LocalityEndpoints {
    LocalityEndpoints {
        locality: Locality { zone: zone.into(), ..Locality::default() },
        endpoints: ports.iter().map(|port| endpoint(&format!("127.0.0.1:{port}"))).collect(),
        load_balancing_weight: Some(weight),
        priority,
        ..LocalityEndpoints::default()
    }
}

fn with_localities(localities: Vec<LocalityEndpoints>) -> model::Cluster {
    model::Cluster {
        load_assignment: Arc::new(LoadAssignment { localities, ..LoadAssignment::default() }),
        ..model(Vec::new())
    }
}

#[test]
fn round_robin_goes_round() {
    let cluster = cluster(model(weighted(&[1, 1, 1])));
    let six = ports(&cluster, 6);
    assert_eq!(six[..3], six[3..]);
    assert_eq!(counts(&cluster, 30), BTreeMap::from([(1, 10), (2, 10), (3, 10)]));
    assert_eq!(cluster.stats.membership_total.value(), 3);
    assert_eq!(cluster.stats.membership_healthy.value(), 3);
    assert_eq!(cluster.stats.membership_change.value(), 1);
}

#[test]
fn weights_are_exact_under_round_robin() {
    let cluster = cluster(model(weighted(&[1, 2, 5])));
    assert_eq!(counts(&cluster, 800), BTreeMap::from([(1, 100), (2, 200), (3, 500)]));
}

#[test]
fn least_request_prefers_who_has_less() {
    let lb = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
    let cluster = cluster(model::Cluster { lb, ..model(weighted(&[1, 1])) });
    let busy: Vec<_> = cluster.hosts().into_iter().filter(|host| port(host) == 1).collect();
    let mut permits = Vec::new();
    for host in &busy {
        let mut permit = cluster.admit(host).unwrap();
        permit.attach(host);
        permits.push(permit);
    }
    // The busy one is only taken where both choices fall on it: a quarter.
    let quarter = counts(&cluster, 4_000)[&1];
    assert!((900..1_100).contains(&quarter), "{quarter}");
    drop(permits);
    let half = counts(&cluster, 4_000)[&1];
    assert!((1_850..2_150).contains(&half), "{half}");
}

#[test]
fn least_request_with_weights_shares_by_them_over_the_requests() {
    let lb = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
    let cluster = cluster(model::Cluster { lb, ..model(weighted(&[1, 4])) });
    assert_eq!(counts(&cluster, 500), BTreeMap::from([(1, 100), (2, 400)]));
    let heavy = cluster.hosts().into_iter().find(|host| port(host) == 2).unwrap();
    let mut permits: Vec<_> = (0..3).map(|_| cluster.admit(&heavy).unwrap()).collect();
    permits.iter_mut().for_each(|permit| permit.attach(&heavy));
    // 4 / (3 + 1) is 1: both alike, but for the schedule from before.
    let counts = counts(&cluster, 400);
    assert!(counts[&1].abs_diff(200) <= 2, "{counts:?}");
}

#[test]
fn random_heeds_no_weights() {
    let cluster = cluster(model::Cluster { lb: LbPolicy::Random, ..model(weighted(&[1, 9])) });
    let ones = counts(&cluster, 4_000)[&1];
    assert!((1_850..2_150).contains(&ones), "{ones}");
}

#[test]
fn the_same_hash_is_the_same_endpoint() {
    for lb in [
        LbPolicy::Maglev { table_size: 65_537 },
        LbPolicy::RingHash { minimum_ring_size: 1024, maximum_ring_size: 8192, hash: HashFunction::XxHash },
    ] {
        let cluster = cluster(model::Cluster { lb, ..model(weighted(&[1, 1, 1])) });
        for hash in [0, 1, u64::MAX, 0x1234_5678_9abc_def0] {
            let pick = || port(&cluster.choose(&Want { hash: Some(hash), ..Want::default() }).unwrap());
            assert_eq!(pick(), pick());
        }
        assert_eq!(counts(&cluster, 300).len(), 3, "without a hash it is random");
    }
}

#[test]
fn a_bounded_load_moves_on() {
    let lb = LbPolicy::Maglev { table_size: 65_537 };
    let mut model = model::Cluster { lb, ..model(weighted(&[1, 1, 1])) };
    model.common_lb.hash_balance_factor = Some(100);
    let cluster = cluster(model);
    let want = Want { hash: Some(42), ..Want::default() };
    let mut permits = Vec::new();
    let mut seen = BTreeMap::new();
    for _ in 0..30 {
        let host = cluster.choose(&want).unwrap();
        *seen.entry(port(&host)).or_insert(0) += 1;
        let mut permit = cluster.admit(&host).unwrap();
        permit.attach(&host);
        permits.push(permit);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(seen.values().all(|count| (8..=13).contains(count)), "{seen:?}");
}

#[test]
fn a_lower_priority_takes_over() {
    let cluster = cluster(with_localities(vec![locality("a", 0, 1, &[1, 2]), locality("a", 1, 1, &[3, 4])]));
    assert_eq!(counts(&cluster, 100).keys().copied().collect::<Vec<_>>(), [1, 2]);
    fail(&cluster, &[1]);
    // 50 % of 140 is 70.
    let first = counts(&cluster, 10_000)[&2];
    assert!((6_800..7_200).contains(&first), "{first}");
    fail(&cluster, &[1, 2]);
    assert_eq!(counts(&cluster, 100).keys().copied().collect::<Vec<_>>(), [3, 4]);
    fail(&cluster, &[1, 2, 3, 4]);
    assert_eq!(cluster.stats.lb_healthy_panic.value(), 0);
    assert_eq!(counts(&cluster, 1_000).len(), 4, "panic");
    assert_eq!(cluster.stats.lb_healthy_panic.value(), 1_000);
}

#[test]
fn without_panic_there_is_no_host() {
    let mut model = model(weighted(&[1, 1]));
    model.common_lb.healthy_panic_threshold = 0.0;
    let cluster = cluster(model);
    fail(&cluster, &[1, 2]);
    assert_eq!(cluster.choose(&Want::default()).unwrap_err(), NoHost::NoHealthy);
    assert_eq!(cluster.stats.upstream_cx_none_healthy.value(), 1);
}

#[test]
fn empty_clusters_have_no_host() {
    for lb in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::Maglev { table_size: 7 }] {
        let cluster = cluster(model::Cluster { lb, ..model(Vec::new()) });
        assert_eq!(cluster.choose(&Want::default()).unwrap_err(), NoHost::NoHealthy);
    }
}

#[test]
fn localities_by_weight_while_enough_of_them_is_healthy() {
    let mut model = with_localities(vec![locality("a", 0, 1, &[1, 2]), locality("b", 0, 2, &[3, 4])]);
    model.common_lb.locality = LocalityLb::Weighted;
    let cluster = cluster(model);
    let of = |counts: &BTreeMap<u16, usize>, ports: [u16; 2]| -> usize {
        ports.iter().filter_map(|port| counts.get(port)).sum()
    };
    let even = counts(&cluster, 3_000);
    assert_eq!((of(&even, [1, 2]), of(&even, [3, 4])), (1_000, 2_000));
    // Half of the second is left: 2 * 0.7 to 1.
    fail(&cluster, &[3]);
    let less = counts(&cluster, 2_400);
    assert!(of(&less, [1, 2]).abs_diff(1_000) <= 2, "{less:?}");
}

#[test]
fn degraded_endpoints_come_last() {
    let mut endpoints = weighted(&[1, 1]);
    endpoints[0].health_status = HealthStatus::Degraded;
    let cluster = cluster(model(endpoints));
    // 70 % healthy; the rest goes to the degraded one.
    let counts = counts(&cluster, 10_000);
    assert!((6_800..7_200).contains(&counts[&2]), "{counts:?}");
    assert_eq!(cluster.stats.membership_degraded.value(), 1);
    assert_eq!(cluster.hosts()[0].health_flags(), "/degraded_eds_health");
}

#[test]
fn hosts_survive_updates() {
    let cluster = cluster(model(weighted(&[1, 1])));
    let before = cluster.hosts();
    before[0].stats.cx_total.add(5);
    let apply = |endpoints| {
        let localities = vec![LocalityEndpoints { endpoints, ..LocalityEndpoints::default() }];
        let assignment = LoadAssignment { localities, ..LoadAssignment::default() };
        cluster.update(&mut discovery::fixed::groups(&assignment), &assignment.policy)
    };
    assert_eq!(apply(weighted(&[1, 1])), members::Change::Nothing);
    assert_eq!(cluster.stats.membership_change.value(), 1);
    assert_eq!(apply(weighted(&[3, 1])), members::Change::Rebuilt);
    assert_eq!(cluster.stats.membership_change.value(), 1, "a weight is no member");
    assert_eq!(apply(weighted(&[3, 1, 1])), members::Change::Rebuilt);
    assert_eq!(cluster.stats.membership_change.value(), 2);
    let after = cluster.hosts();
    assert!(Arc::ptr_eq(&before[0], &after[0]) && Arc::ptr_eq(&before[1], &after[1]));
    assert_eq!((after[0].stats.cx_total.value(), after[0].weight()), (5, 3));
    assert_eq!(apply(weighted(&[1])), members::Change::Rebuilt);
    assert_eq!(cluster.stats.membership_total.value(), 1);
}

#[tokio::test]
async fn another_set_of_hosts_closes_connections_on_wish() {
    for wish in [false, true] {
        let mut model = model(weighted(&[1]));
        model.common_lb.close_connections_on_host_set_change = wish;
        let cluster = cluster(model);
        let host = cluster.hosts()[0].clone();
        let closing = host.closing();
        tokio::pin!(closing);
        let told = tokio::time::timeout(Duration::from_millis(10), closing.as_mut()).await;
        assert!(told.is_err());
        let localities =
            vec![LocalityEndpoints { endpoints: weighted(&[1, 1]), ..LocalityEndpoints::default() }];
        let assignment = LoadAssignment { localities, ..LoadAssignment::default() };
        cluster.update(&mut discovery::fixed::groups(&assignment), &assignment.policy);
        let told = tokio::time::timeout(Duration::from_millis(10), closing.as_mut()).await;
        assert_eq!(told.is_ok(), wish);
    }
}

#[test]
fn original_destinations() {
    let with = |port| {
        let how = OriginalDst { upstream_port_override: port, http_header: None };
        cluster(model::Cluster {
            discovery: Discovery::OriginalDst(how),
            lb: LbPolicy::ClusterProvided,
            ..model(Vec::new())
        })
    };
    let to = |text: &str| Want { original_dst: Some(text.parse().unwrap()), ..Want::default() };
    let plain = with(None);
    assert_eq!(
        plain.choose(&to("10.1.2.3:80")).unwrap().socket_address(),
        Some("10.1.2.3:80".parse().unwrap())
    );
    assert_eq!(
        with(Some(15)).choose(&to("[::1]:80")).unwrap().socket_address(),
        Some("[::1]:15".parse().unwrap())
    );
    assert_eq!(plain.choose(&Want::default()).unwrap_err(), NoHost::NoOriginalDst);
    assert_eq!(plain.stats.upstream_cx_none_healthy.value(), 1);
    assert!(plain.hosts().is_empty());
}

#[test]
fn the_breaker_opens_and_closes() {
    let mut model = model(weighted(&[1, 1]));
    model.circuit_breakers.default.max_connections = 2;
    model.circuit_breakers.default.max_pending_requests = 1;
    model.circuit_breakers.default.track_remaining = true;
    model.circuit_breakers.per_host_max_connections = Some(1);
    let env = env();
    let cluster = Cluster::new(Arc::new(model), &env).unwrap();
    let value = |name: &str| env.stats.value(&format!("cluster.c.{name}")).unwrap();
    let hosts = cluster.hosts();
    let mut one = cluster.admit(&hosts[0]).unwrap();
    assert_eq!(cluster.admit(&hosts[1]).unwrap_err(), Overflow::Pending);
    assert_eq!(value("circuit_breakers.default.rq_pending_open"), 1);
    one.attach(&hosts[0]);
    assert_eq!(cluster.admit(&hosts[0]).unwrap_err(), Overflow::HostConnections);
    let mut two = cluster.admit(&hosts[1]).unwrap();
    two.attach(&hosts[1]);
    assert_eq!(cluster.admit(&hosts[1]).unwrap_err(), Overflow::Connections);
    assert_eq!(value("circuit_breakers.default.cx_open"), 1);
    assert_eq!(value("circuit_breakers.default.remaining_cx"), 0);
    assert_eq!((value("upstream_cx_overflow"), value("upstream_rq_pending_overflow")), (2, 1));
    assert_eq!((value("upstream_cx_active"), hosts[0].stats.rq_active.value()), (2, 1));
    drop((one, two));
    for gauge in ["upstream_cx_active", "upstream_rq_active", "upstream_rq_pending_active"] {
        assert_eq!(value(gauge), 0, "{gauge}");
    }
    assert_eq!(value("circuit_breakers.default.cx_open"), 0);
    assert_eq!(value("circuit_breakers.default.remaining_cx"), 2);
    assert_eq!((value("upstream_cx_total"), value("upstream_rq_total")), (2, 2));
}

#[tokio::test]
async fn connects_and_says_why_not() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = server.local_addr().unwrap();
    let closed = {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        gone.local_addr().unwrap()
    };
    let cluster = cluster(model(vec![endpoint(&open.to_string()), endpoint(&closed.to_string())]));
    let hosts = cluster.hosts();
    let up = cluster.connect(&hosts[0], &HostDial, &by(&Source::Cluster)).await.unwrap();
    assert!(matches!(up.connected.io, Io::Tcp(_)));
    assert_eq!(cluster.stats.upstream_cx_active.value(), 1);
    let error = cluster.connect(&hosts[1], &HostDial, &by(&Source::Cluster)).await.unwrap_err();
    assert_eq!(error.to_string(), "delayed connect error: Connection refused");
    assert_eq!(cluster.stats.upstream_cx_connect_fail.value(), 1);
    assert_eq!(hosts[1].stats.cx_connect_fail.value(), 1);
    assert_eq!(cluster.stats.upstream_rq_pending_failure_eject.value(), 1);
    assert_eq!(cluster.stats.upstream_cx_destroy_remote.value(), 1);
    assert_eq!(cluster.stats.upstream_rq_cancelled.value(), 0);
    drop(cluster.admit(&hosts[1]).unwrap());
    assert_eq!(cluster.stats.upstream_rq_cancelled.value(), 1);
    assert_eq!(cluster.stats.upstream_cx_active.value(), 1);
}

#[tokio::test]
async fn sources_are_bound() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut model = model(vec![endpoint(&server.local_addr().unwrap().to_string())]);
    model.bind = Some(Box::new(model::address::BindConfig {
        source: Some("[::6]:0".parse().unwrap()),
        extra_sources: vec!["127.0.0.6:0".parse().unwrap()],
        ..Default::default()
    }));
    let cluster = cluster(model);
    let host = &cluster.hosts()[0];
    let _up = cluster.connect(host, &HostDial, &by(&Source::Cluster)).await.unwrap();
    assert_eq!(server.accept().await.unwrap().1.ip().to_string(), "127.0.0.6");
    let own = SourceAddress {
        address: "127.0.0.7:0".parse().unwrap(),
        freebind: true,
        transparent: false,
        mark: None,
    };
    let _up = cluster.connect(host, &HostDial, &by(&Source::Address(own.clone()))).await.unwrap();
    assert_eq!(server.accept().await.unwrap().1.ip().to_string(), "127.0.0.7");
    let nobody = SourceAddress { address: "192.0.2.1:0".parse().unwrap(), freebind: false, ..own };
    let error = cluster.connect(host, &HostDial, &by(&Source::Address(nobody))).await.unwrap_err();
    assert_eq!(error.to_string(), "immediate connect error: Cannot assign requested address");
    assert_eq!(cluster.stats.bind_errors.value(), 1);
}

#[tokio::test]
async fn unix_sockets_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("up.sock");
    let _server = tokio::net::UnixListener::bind(&path).unwrap();
    let address = model::Address::Pipe { path, mode: 0 };
    let cluster = cluster(model(vec![model::endpoint::Endpoint { address, ..endpoint("127.0.0.1:1") }]));
    let host = cluster.choose(&Want::default()).unwrap();
    let up = cluster.connect(&host, &HostDial, &by(&Source::Cluster)).await.unwrap();
    assert!(matches!(up.connected.io, Io::Unix(_)));
}

#[tokio::test(start_paused = true)]
async fn slow_start_begins_with_little() {
    let mut model = model(weighted(&[1, 1]));
    model.slow_start = Some(Box::new(SlowStart {
        window: Duration::from_secs(100),
        aggression: 1.0,
        min_weight_percent: 10.0,
    }));
    let cluster = cluster(model);
    tokio::time::advance(Duration::from_secs(200)).await;
    let localities =
        vec![LocalityEndpoints { endpoints: weighted(&[1, 1, 1]), ..LocalityEndpoints::default() }];
    let assignment = LoadAssignment { localities, ..LoadAssignment::default() };
    cluster.update(&mut discovery::fixed::groups(&assignment), &assignment.policy);
    tokio::time::advance(Duration::from_secs(20)).await;
    // A fifth of the window: a fifth of the weight.
    let counts = counts(&cluster, 1_100);
    assert!(counts[&3].abs_diff(100) <= 10, "{counts:?}");
    tokio::time::advance(Duration::from_secs(100)).await;
    let counts = testing::counts(&cluster, 900);
    assert!(counts[&3].abs_diff(300) <= 10, "{counts:?}");
}

#[test]
fn transport_sockets_by_metadata() {
    let mut endpoints = weighted(&[1, 1]);
    endpoints[1].metadata = Arc::new(model::Metadata(
        [("envoy.transport_socket_match".to_owned(), fields("tlsMode=istio,other=1"))].into(),
    ));
    let matches = |name: &str, text: &str| TransportSocketMatch {
        name: name.into(),
        match_: fields(text),
        transport_socket: model::TransportSocket::TcpStats(Box::new(model::transport::TcpStats {
            inner: model::TransportSocket::RawBuffer,
            update_period: None,
        })),
    };
    let chosen = |transport_match, last: &[&str]| {
        let localities = vec![LocalityEndpoints {
            endpoints: endpoints.clone(),
            transport_match,
            ..LocalityEndpoints::default()
        }];
        let mut model = with_localities(localities);
        model.transport_socket_matches = vec![matches("istio", "tlsMode=istio"), matches("none", "x=y")];
        model.transport_socket_matches.extend(last.iter().map(|text| matches("last", text)));
        let cluster = cluster(model);
        cluster.hosts().iter().map(|host| host.transport()).collect::<Vec<_>>()
    };
    assert_eq!(chosen(fields(""), &[]), [0, 1], "its own, the first match");
    // The locality's metadata is for the endpoints whose own fits nothing.
    assert_eq!(chosen(fields("x=y"), &[]), [2, 1]);
    assert_eq!(chosen(fields("x=y"), &[""]), [3, 1]);
}

#[test]
fn an_idle_cluster_is_small() {
    // The stats are most of it; two hosts, the state and its lists are the rest.
    let host = size_of::<Host>() + 2 * size_of::<usize>();
    let lists = size_of::<LbState>() + 2 * size_of::<Arc<Host>>() + 128;
    let all = size_of::<Cluster>() + size_of::<ClusterStats>() + 2 * host + lists;
    assert!(
        all <= 1_544,
        "{all}: cluster {}, stats {}, host {host}",
        size_of::<Cluster>(),
        size_of::<ClusterStats>()
    );
}
