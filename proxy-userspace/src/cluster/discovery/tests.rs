use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use proptest::prelude::*;
use proxy_config::model;
use proxy_config::model::cluster::{Discovery, Dns, DnsFamily, Eds};
use proxy_config::model::config_source::{ConfigSource, ConfigSourceKind};
use proxy_config::xds::{Kind, RawResource};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::cluster::testing::*;
use crate::cluster::{Cluster, Env, Host, Want};
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::xds::{Consumer, Update};

/// Answers every name with the same addresses, or with SERVFAIL.
#[derive(Clone)]
struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<Option<Vec<IpAddr>>>>,
}

/// An EDS file.
fn file(path: &Path) -> ConfigSource {
    let kind = ConfigSourceKind::File { path: path.to_owned(), watched_directory: None };
    ConfigSource { kind, initial_fetch_timeout: None }
}

impl Server {
    async fn start(addresses: &[&str]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: socket.local_addr().unwrap(), answer: Arc::default() };
        server.say(Some(addresses));
        Tasks::new(&Stats::new()).spawn("dns_server", server.clone().serve(socket));
        server
    }

    fn say(&self, addresses: Option<&[&str]>) {
        *self.answer.lock().unwrap() = addresses.map(|all| all.iter().map(|a| a.parse().unwrap()).collect());
    }

    async fn serve(self, socket: UdpSocket) {
        let mut buffer = [0; 1500];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let mut message = Message::from_vec(&buffer[..len]).unwrap();
            message.metadata.message_type = MessageType::Response;
            let query = message.queries[0].clone();
            match self.answer.lock().unwrap().as_ref() {
                None => message.metadata.response_code = ResponseCode::ServFail,
                Some(addresses) => {
                    let v4 = query.query_type() == RecordType::A;
                    for address in addresses.iter().filter(|address| address.is_ipv4() == v4) {
                        let data = RData::from(*address);
                        message.answers.push(Record::from_rdata(query.name().clone(), 1, data));
                    }
                }
            }
            socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
        }
    }
}

fn dns(server: &Server) -> Dns {
    Dns {
        refresh_rate: Duration::from_millis(20),
        failure_refresh_rate: Some((Duration::from_millis(10), Duration::from_millis(20))),
        jitter: Duration::ZERO,
        respect_ttl: false,
        family: DnsFamily::V4Only,
        resolvers: vec![server.address],
        use_tcp: false,
        no_default_search_domain: true,
        all_addresses_in_single_endpoint: false,
    }
}

fn start(discovery: Discovery, endpoints: &[&str]) -> Arc<Cluster> {
    start_in(&env(), discovery, endpoints)
}

fn start_in(env: &Env, discovery: Discovery, endpoints: &[&str]) -> Arc<Cluster> {
    let endpoints = endpoints.iter().map(|text| endpoint(text)).collect();
    let cluster = Cluster::new(Arc::new(model::Cluster { discovery, ..model(endpoints) }), env).unwrap();
    assert!(!cluster.is_warm());
    cluster.start(env);
    cluster
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    let mut all: Vec<_> =
        cluster.hosts().iter().map(|host| host.socket_address().unwrap().to_string()).collect();
    all.sort();
    all
}

#[tokio::test]
async fn every_address_of_a_strict_name_is_an_endpoint() {
    let server = Server::start(&["127.0.0.2", "127.0.0.3"]).await;
    let cluster = start(Discovery::StrictDns(Box::new(dns(&server))), &["web.test:80", "127.0.0.9:90"]);
    timeout(LONG, cluster.warmed()).await.unwrap();
    assert_eq!(addresses(&cluster), ["127.0.0.2:80", "127.0.0.3:80", "127.0.0.9:90"]);
    assert_eq!(&*cluster.hosts()[0].hostname, "web.test");
    let kept = cluster.hosts()[0].clone();
    server.say(Some(&["127.0.0.2", "127.0.0.4"]));
    until("the new address", || addresses(&cluster).contains(&"127.0.0.4:80".to_owned())).await;
    assert_eq!(addresses(&cluster), ["127.0.0.2:80", "127.0.0.4:80", "127.0.0.9:90"]);
    assert!(cluster.hosts().iter().any(|host| Arc::ptr_eq(host, &kept)));
    // A failure keeps what was known; an empty answer does not.
    server.say(None);
    until("a failure", || cluster.stats.update_failure.value() > 0).await;
    assert_eq!(addresses(&cluster).len(), 3);
    server.say(Some(&[]));
    until("no addresses", || addresses(&cluster) == ["127.0.0.9:90"]).await;
    assert!(cluster.stats.update_success.value() >= 3);
    let before = cluster.stats.membership_change.value();
    server.say(Some(&["127.0.0.2", "127.0.0.3"]));
    until("both again", || cluster.hosts().len() == 3).await;
    // The order of an answer says nothing.
    server.say(Some(&["127.0.0.3", "127.0.0.2"]));
    let unchanged = cluster.stats.update_no_rebuild.value();
    until("the same in another order", || cluster.stats.update_no_rebuild.value() > unchanged + 2).await;
    assert_eq!(cluster.stats.membership_change.value(), before + 1);
}

#[tokio::test]
async fn a_logical_name_is_one_endpoint_that_moves() {
    let server = Server::start(&["127.0.0.2", "127.0.0.3"]).await;
    let cluster = start(Discovery::LogicalDns(Box::new(dns(&server))), &["web.test:80"]);
    timeout(LONG, cluster.warmed()).await.unwrap();
    assert_eq!(cluster.hosts().len(), 1);
    let host = cluster.choose(&Want::default()).unwrap();
    server.say(Some(&["127.0.0.5"]));
    until("the move", || addresses(&cluster) == ["127.0.0.5:80"]).await;
    assert!(Arc::ptr_eq(&host, &cluster.hosts()[0]), "its stats and connections stay");
    assert_eq!(cluster.stats.membership_change.value(), 1);
    server.say(Some(&[]));
    until("an empty answer", || cluster.stats.update_empty.value() > 0).await;
    assert_eq!(addresses(&cluster), ["127.0.0.5:80"]);
}

#[tokio::test]
async fn families() {
    let server = Server::start(&["127.0.0.2", "::1"]).await;
    for (family, want) in [
        (DnsFamily::V4Only, &["127.0.0.2:80"][..]),
        (DnsFamily::V6Only, &["[::1]:80"]),
        (DnsFamily::Auto, &["[::1]:80"]),
        (DnsFamily::V4Preferred, &["127.0.0.2:80"]),
        (DnsFamily::All, &["127.0.0.2:80", "[::1]:80"]),
    ] {
        let dns = Dns { family, ..dns(&server) };
        let cluster = start(Discovery::StrictDns(Box::new(dns)), &["web.test:80"]);
        timeout(LONG, cluster.warmed()).await.unwrap();
        assert_eq!(addresses(&cluster), want, "{family:?}");
    }
}

#[tokio::test]
async fn localhost_needs_no_server() {
    let server = Server::start(&[]).await;
    server.say(None);
    let cluster = start(Discovery::StrictDns(Box::new(dns(&server))), &["localhost:80"]);
    timeout(LONG, cluster.warmed()).await.unwrap();
    assert_eq!(addresses(&cluster), ["127.0.0.1:80"]);
}

#[tokio::test]
async fn a_failing_name_warms_too_and_is_asked_again() {
    let server = Server::start(&[]).await;
    server.say(None);
    let cluster = start(Discovery::StrictDns(Box::new(dns(&server))), &["web.test:80"]);
    timeout(LONG, cluster.warmed()).await.unwrap();
    assert!(cluster.hosts().is_empty());
    server.say(Some(&["127.0.0.2"]));
    until("the answer", || !cluster.hosts().is_empty()).await;
}

#[tokio::test]
async fn eds_files_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("eds.yaml");
    std::fs::write(&path, eds("1 127.0.0.1:1")).unwrap();
    let source = file(&path);
    let env = env();
    let cluster = start_in(&env, Discovery::Eds(Box::new(Eds { service_name: "c".into(), source })), &[]);
    timeout(LONG, cluster.warmed()).await.unwrap();
    assert_eq!(addresses(&cluster), ["127.0.0.1:1"]);
    // By an atomic rename.
    let new = dir.path().join("new");
    std::fs::write(&new, eds("2 127.0.0.1:1 127.0.0.1:2")).unwrap();
    std::fs::rename(&new, &path).unwrap();
    until("the second version", || cluster.hosts().len() == 2).await;
    // A bad one changes nothing.
    std::fs::write(&path, "bad news").unwrap();
    until("the refusal", || env.stats.value("cluster.c.update_rejected") > Some(0)).await;
    assert_eq!(cluster.hosts().len(), 2);
    // As a ConfigMap does it: a link to another directory, swapped.
    std::fs::create_dir(dir.path().join("data")).unwrap();
    std::fs::write(dir.path().join("data/eds.yaml"), eds("3 127.0.0.1:3")).unwrap();
    std::os::unix::fs::symlink("data/eds.yaml", &new).unwrap();
    std::fs::rename(&new, &path).unwrap();
    until("the third version", || addresses(&cluster) == ["127.0.0.1:3"]).await;
    assert!(cluster.stats.update_success.value() >= 3);
    assert_ne!(cluster.stats.version.value(), 0);
}

#[tokio::test]
async fn an_eds_file_that_is_not_there_yet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("eds.yaml");
    let source = file(&path);
    let cluster = start(Discovery::Eds(Box::new(Eds { service_name: "c".into(), source })), &[]);
    timeout(LONG, cluster.warmed()).await.unwrap();
    assert!(cluster.hosts().is_empty());
    std::fs::write(&path, eds("1 127.0.0.1:1")).unwrap();
    until("the file", || cluster.hosts().len() == 1).await;
}

#[tokio::test]
async fn clusters_of_one_eds_file_share_its_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("eds.yaml");
    std::fs::write(&path, eds("1 127.0.0.1:1")).unwrap();
    let env = env();
    let (sources, parsed) = crate::xds::testing::sources(&env.stats, &env.tasks);
    let env = Env { sources, ..env };
    let join = || {
        let source = file(&path);
        let discovery = Discovery::Eds(Box::new(Eds { service_name: "c".into(), source }));
        let cluster =
            Cluster::new(Arc::new(model::Cluster { discovery, ..model(Vec::new()) }), &env).unwrap();
        cluster.start(&env);
        cluster
    };
    let clusters: Vec<_> = (0..20).map(|_| join()).collect();
    for cluster in &clusters {
        timeout(LONG, cluster.warmed()).await.unwrap();
        assert_eq!(addresses(cluster), ["127.0.0.1:1"]);
    }
    // They are of one name, and so have their stats together.
    assert_eq!(clusters[0].stats.update_attempt.value(), 20);
    assert!(parsed.load(Ordering::Relaxed) < 4, "{parsed:?}");
    // Who comes later gets what is there, the others nothing new.
    let late = join();
    timeout(LONG, late.warmed()).await.unwrap();
    assert_eq!(addresses(&late), ["127.0.0.1:1"]);
    std::fs::write(&path, eds("2 127.0.0.1:1 127.0.0.1:2")).unwrap();
    until("the second version", || clusters.iter().chain([&late]).all(|c| c.hosts().len() == 2)).await;
}

/// An assignment to `c`: of each locality its region, priority and weighted ports.
fn assignment(localities: &[(u8, u8, Vec<(u16, u8)>)]) -> RawResource {
    let mut text =
        format!("resources:\n- '@type': {}\n  cluster_name: c\n  endpoints:\n", Kind::Endpoints.type_url());
    for (region, priority, ports) in localities {
        text.push_str(&format!("  - locality: {{ region: r{region} }}\n    priority: {priority}\n"));
        text.push_str("    lb_endpoints:\n");
        for (port, weight) in ports {
            let address = format!("{{ address: 10.0.0.1, port_value: {port} }}");
            text.push_str(&format!(
                "    - {{ endpoint: {{ address: {{ socket_address: {address} }} }}, load_balancing_weight: {weight} }}\n"
            ));
        }
    }
    proxy_config::xds::file::Reader::new(Kind::Endpoints).read(&text).unwrap().resources.remove(0)
}

fn discovering(env: &Env) -> Arc<Cluster> {
    let eds = Eds { service_name: "c".into(), source: file(Path::new("/nowhere")) };
    let discovery = Discovery::Eds(Box::new(eds));
    Cluster::new(Arc::new(model::Cluster { discovery, ..model(Vec::new()) }), env).unwrap()
}

fn assign(cluster: &Cluster, raw: &RawResource) {
    let resources = std::slice::from_ref(raw);
    Consumer::update(cluster, &Update { resources, response: resources, ..Update::default() }).unwrap();
}

/// Everything that tells a host from another one.
fn described(cluster: &Cluster) -> Vec<(SocketAddr, u32, u32, Arc<str>)> {
    let of = |host: &Arc<Host>| {
        (host.socket_address().unwrap(), host.weight(), host.priority(), host.locality.region.clone())
    };
    cluster.hosts().iter().map(of).collect()
}

#[tokio::test]
async fn what_is_as_it_was_in_an_assignment_of_many_is_the_same_host() {
    let cluster = discovering(&env());
    let mut ports: Vec<_> = (1..=200).map(|port| (port, 1)).collect();
    assign(&cluster, &assignment(&[(0, 0, ports.clone())]));
    let before = cluster.hosts();
    assert_eq!(before.len(), 200);
    ports[3] = (1000, 1);
    ports[5].1 = 9;
    ports.remove(100);
    assign(&cluster, &assignment(&[(0, 0, ports.clone())]));
    let after = cluster.hosts();
    let kept = after.iter().filter(|host| before.iter().any(|old| Arc::ptr_eq(old, host))).count();
    assert_eq!((after.len(), kept), (199, 198), "another weight is the same host");
    assert_eq!((port(&after[3]), after[5].weight(), port(&after[100])), (1000, 9, 102));
    assert_eq!(cluster.stats.membership_change.value(), 2);
    assert_eq!(cluster.stats.membership_total.value(), 199);
    // The same again, and in another order, is no change of the members.
    assign(&cluster, &assignment(&[(0, 0, ports.clone())]));
    assert_eq!(cluster.stats.update_no_rebuild.value(), 1);
    ports.swap(0, 150);
    assign(&cluster, &assignment(&[(0, 0, ports)]));
    assert_eq!(cluster.stats.membership_change.value(), 2);
}

fn sets() -> impl Strategy<Value = Vec<(u8, u8, Vec<(u16, u8)>)>> {
    // Few ports: an address is often named twice, in one locality or in two.
    let some = prop::collection::vec((1_u16..60, 1_u8..4), 0..40);
    prop::collection::vec((0_u8..3, 0_u8..2, some), 1..4).prop_map(|mut all| {
        all.insert(all.len() / 2, (9, 0, (100..170).map(|port| (port, 1)).collect()));
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn one_assignment_after_the_other_is_as_the_last_alone(sequence in prop::collection::vec(sets(), 2..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _runtime = runtime.enter();
        let cluster = discovering(&env());
        for set in &sequence {
            let raw = assignment(set);
            assign(&cluster, &raw);
            let alone = discovering(&env());
            assign(&alone, &raw);
            prop_assert_eq!(described(&cluster), described(&alone));
            prop_assert_eq!(cluster.stats.membership_total.value(), alone.stats.membership_total.value());
        }
    }
}
