//! LDS.

use std::sync::Arc;
use std::time::Duration;

use proxy_config::xds::Kind;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};

use super::rig::*;

const FIRST: &str = r#""source_prefix_ranges": [{"address_prefix": "127.0.0.1", "prefix_len": 32}]"#;
const SECOND: &str = r#""source_prefix_ranges": [{"address_prefix": "127.0.0.2", "prefix_len": 32}]"#;
const SHORT: Duration = Duration::from_millis(100);

async fn from(source: &str, to: std::net::SocketAddr) -> (TcpStream, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let mut buffer = [0; 16];
    let n = tokio::time::timeout(LONG, stream.read(&mut buffer)).await.unwrap().unwrap_or(0);
    (stream, String::from_utf8_lossy(&buffer[..n]).into_owned())
}

#[tokio::test]
async fn connections_of_chains_that_stay_are_not_touched() {
    let (one, two) = (server("one").await, server("two").await);
    let clusters = [cluster("a", one, ""), cluster("b", two, "")];
    let with = |second: &str| {
        listener("l", "127.0.0.1:0", &[chain("x", FIRST, "a"), chain("y", SECOND, second)], "")
    };
    let rig = Rig::with(&clusters, &[with("a")], SHORT).await;
    let at = rig.address("l");
    let (mut kept, _) = from("127.0.0.1", at).await;
    let (mut drained, said) = from("127.0.0.2", at).await;
    assert_eq!(said, "one");
    rig.script.say(Kind::Listener, "2", &[with("b")]).unwrap();
    assert_eq!(rig.address("l"), at, "the socket is the same");
    assert_eq!(from("127.0.0.2", at).await.1, "two");
    assert!(lives(&mut drained).await, "until the drain time is over");
    assert_eq!(rig.stat("listener_manager.total_filter_chains_draining"), 1);
    assert_eq!(rig.stat("listener_manager.listener_in_place_updated"), 1);
    rig.until("the cut", || rig.stat("listener_manager.total_filter_chains_draining") == 0).await;
    assert!(!lives(&mut drained).await);
    assert!(lives(&mut kept).await);
    assert_eq!(rig.stat("listener_manager.total_listeners_draining"), 0);
    assert_eq!(rig.stat("listener_manager.listener_modified"), 1);
}

#[tokio::test]
async fn a_changed_listener_takes_over_the_sockets_and_the_old_connections_drain() {
    let one = server("one").await;
    let with = |more: &str| listener("l", "127.0.0.1:0", &[chain("x", "", "a")], more);
    let rig = Rig::with(&[cluster("a", one, "")], &[with("")], SHORT).await;
    let at = rig.address("l");
    let (mut old, _) = greeted(at).await;
    rig.script.say(Kind::Listener, "2", &[with(r#", "per_connection_buffer_limit_bytes": 4096"#)]).unwrap();
    assert_eq!(rig.address("l"), at);
    let (mut new, _) = greeted(at).await;
    assert!(lives(&mut old).await);
    assert_eq!(rig.stat("listener_manager.total_listeners_draining"), 1);
    assert_eq!(&*rig.world.dynamic(Kind::Listener)[0].draining.as_ref().unwrap().version, "1");
    rig.until("the cut", || rig.stat("listener_manager.total_listeners_draining") == 0).await;
    assert!(!lives(&mut old).await);
    assert!(lives(&mut new).await);
    assert_eq!(rig.stat("listener_manager.listener_in_place_updated"), 0);
}

#[tokio::test]
async fn a_listener_that_is_removed_stops_and_its_connections_are_cut_at_the_deadline() {
    let one = server("one").await;
    let listeners = [listener("l", "127.0.0.1:0", &[chain("x", "", "a")], "")];
    let rig = Rig::with(&[cluster("a", one, "")], &listeners, SHORT).await;
    let at = rig.address("l");
    let (mut old, _) = greeted(at).await;
    rig.script.delta(Kind::Listener, "2", &[], &["l"]).unwrap();
    assert!(lives(&mut old).await);
    loop {
        if TcpStream::connect(at).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.until("the cut", || rig.stat("listener_manager.total_listeners_draining") == 0).await;
    assert!(!lives(&mut old).await);
    assert_eq!(rig.stat("listener_manager.listener_removed"), 1);
    assert_eq!(rig.stat("listener_manager.total_listeners_active"), 0);
    assert!(rig.world.dynamic(Kind::Listener).is_empty());
}

#[tokio::test]
async fn a_listener_that_cannot_be_is_refused_by_name() {
    let one = server("one").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let chains = [chain("x", "", "a")];
    let rig = Rig::with(&[cluster("a", one, "")], &[], LONG).await;
    let one_socket = r#", "enable_reuse_port": false"#;
    let why = rig
        .script
        .say(
            Kind::Listener,
            "2",
            &[
                listener("l", "127.0.0.1:0", &chains, ""),
                listener("bound", &taken, &chains, one_socket),
                listener("u", "127.0.0.1:5", &chains, r#", "bind_to_port": false"#),
                listener("v", "127.0.0.1:5", &chains, r#", "bind_to_port": false"#),
                listener("bad", "127.0.0.1:0", &["{\"filters\": [{\"name\": \"nope\"}]}".to_owned()], ""),
                listener("l", "127.0.0.1:0", &chains, one_socket),
            ],
        )
        .unwrap_err();
    assert!(why.starts_with("Error adding/updating listener(s) "), "{why}");
    for part in [
        "bound: listener bound: cannot listen on 127.0.0.1:",
        "v: error adding listener: 'v' has duplicate address '127.0.0.1:5' as existing listener",
        "bad: at <Listener>.filter_chains[0].filters[0]",
        "l: duplicate listener l found",
    ] {
        assert!(why.contains(part), "{part} is not in {why}");
    }
    assert_eq!(greeted(rig.address("l")).await.1, "one");
    assert_eq!(rig.stat("listener_manager.listener_create_failure"), 1);
    assert_eq!(rig.stat("listener_manager.lds.update_rejected"), 1);
    assert_eq!(rig.stat("listener_manager.total_listeners_active"), 2);
    let views = rig.world.dynamic(Kind::Listener);
    let failed: Vec<_> = views.iter().filter(|v| v.error.is_some()).map(|v| v.name.to_string()).collect();
    assert_eq!(failed, ["bad", "bound", "l", "v"]);
}

#[tokio::test]
async fn an_address_that_changes_and_one_that_another_takes() {
    let (one, two) = (server("one").await, server("two").await);
    let clusters = [cluster("a", one, ""), cluster("b", two, "")];
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (first, second) = (free(), free());
    let one_socket = r#", "enable_reuse_port": false"#;
    let at = |name: &str, at: std::net::SocketAddr, cluster: &str| {
        listener(name, &at.to_string(), &[chain("x", "", cluster)], one_socket)
    };
    let rig = Rig::with(&clusters, &[at("l", first, "a")], LONG).await;
    assert_eq!(greeted(first).await.1, "one");
    rig.script.say(Kind::Listener, "2", &[at("l", second, "a")]).unwrap();
    assert_eq!(greeted(second).await.1, "one");
    rig.until("the old socket is closed", || std::net::TcpListener::bind(first).is_ok()).await;
    // Another name takes the address over, with its one socket.
    rig.script.say(Kind::Listener, "3", &[at("m", second, "b")]).unwrap();
    assert_eq!(greeted(second).await.1, "two");
    assert_eq!(rig.stat("listener_manager.listener_added"), 2);
    assert_eq!(rig.stat("listener_manager.listener_removed"), 1);
}

#[tokio::test]
async fn the_only_socket_of_an_address_goes_to_its_changed_listener() {
    let (one, two) = (server("one").await, server("two").await);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let with = |cluster: &str, backlog: u32| {
        let more = format!(r#", "enable_reuse_port": false, "tcp_backlog_size": {backlog}"#);
        listener("l", &free.to_string(), &[chain("x", "", cluster)], &more)
    };
    let clusters = [cluster("a", one, ""), cluster("b", two, "")];
    let rig = Rig::with(&clusters, &[with("a", 32)], LONG).await;
    let (mut kept, said) = greeted(free).await;
    assert_eq!(said, "one");
    rig.script.say(Kind::Listener, "2", &[with("b", 64)]).unwrap();
    assert_eq!(greeted(free).await.1, "two");
    assert!(lives(&mut kept).await, "it drains");
    rig.script.say(Kind::Listener, "3", &[]).unwrap();
    rig.until("the socket is closed", || std::net::TcpListener::bind(free).is_ok()).await;
}

#[tokio::test]
async fn unknown_destinations_are_refused_from_one_update_on() {
    let one = server("one").await;
    let with = |cluster: &str| {
        listener("virtualOutbound", "127.0.0.1:0", &[chain("virtualOutbound-catchall-tcp", "", cluster)], "")
    };
    let clusters = [
        cluster("PassthroughCluster", one, ""),
        r#"{"name": "BlackHoleCluster", "type": "STATIC", "connect_timeout": "5s"}"#.to_owned(),
    ];
    let rig = Rig::with(&clusters, &[with("PassthroughCluster")], SHORT).await;
    let at = rig.address("virtualOutbound");
    let (mut old, said) = greeted(at).await;
    assert_eq!(said, "one");
    rig.script.say(Kind::Listener, "2", &[with("BlackHoleCluster")]).unwrap();
    assert_eq!(greeted(at).await.1, "");
    assert!(lives(&mut old).await);
    rig.until("the drain", || rig.stat("listener_manager.total_filter_chains_draining") == 0).await;
    assert!(!lives(&mut old).await);
    rig.script.say(Kind::Listener, "3", &[with("PassthroughCluster")]).unwrap();
    assert_eq!(greeted(at).await.1, "one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_change_among_thousands() {
    const COUNT: usize = 5_000;
    let (one, two) = (server("one").await, server("two").await);
    let clusters: Vec<_> = (0..COUNT).map(|i| cluster(&format!("c{i}"), one, "")).collect();
    let unbound = r#", "bind_to_port": false"#;
    let at = |i: usize| format!("10.{}.{}.1:80", i / 250, i % 250);
    let listeners: Vec<_> = (0..COUNT)
        .map(|i| listener(&format!("l{i}"), &at(i), &[chain("x", "", &format!("c{i}"))], unbound))
        .collect();
    let rig = Rig::with(&clusters, &listeners, LONG).await;
    let before = rig.world.snapshot();
    assert_eq!(before.size(), (COUNT, COUNT));
    let start = crate::clock::now();
    rig.script.delta(Kind::Cluster, "2", &[cluster("c7", two, "")], &[]).unwrap();
    rig.script
        .delta(Kind::Listener, "2", &[listener("l7", &at(7), &[chain("x", "", "c8")], unbound)], &[])
        .unwrap();
    let took = start.elapsed();
    let after = rig.world.snapshot();
    let same = |i: usize| {
        let (c, destination) = (format!("c{i}"), at(i).parse().unwrap());
        Arc::ptr_eq(before.cluster(&c).unwrap(), after.cluster(&c).unwrap())
            && Arc::ptr_eq(before.handoff(destination).unwrap(), after.handoff(destination).unwrap())
    };
    assert!((0..COUNT).all(|i| same(i) == (i != 7)));
    // Unoptimised, and on a machine that does other things; in release it is a tenth.
    assert!(took < Duration::from_millis(500), "{took:?}");
    eprintln!("two deltas of one resource among {COUNT} and {COUNT}: {took:?}");
    // The state of the world, all the same: nothing is touched.
    rig.script.say(Kind::Cluster, "3", &clusters).unwrap();
    let start = crate::clock::now();
    rig.script.say(Kind::Cluster, "4", &clusters).unwrap();
    eprintln!("{COUNT} unchanged, with making and parsing the response: {:?}", start.elapsed());
    assert!(Arc::ptr_eq(before.cluster("c9").unwrap(), &rig.world.live.cluster("c9").unwrap()));
}
