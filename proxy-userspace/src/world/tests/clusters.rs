//! CDS.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proxy_config::xds::Kind;

use super::rig::*;
use crate::xds::Failure;

#[tokio::test]
async fn what_is_said_again_is_not_touched() {
    let to = server("one").await;
    let rig = Rig::with(&[cluster("a", to, ""), cluster("b", to, "")], &[], LONG).await;
    let (a, b) = (rig.world.live.cluster("a").unwrap(), rig.world.live.cluster("b").unwrap());
    // The same bytes, the same meaning in other bytes, and a change.
    let spelled = cluster("a", to, r#", "lb_policy": "ROUND_ROBIN", "dns_lookup_family": "AUTO""#);
    rig.script.say(Kind::Cluster, "2", &[spelled, cluster("b", to, "")]).unwrap();
    assert!(Arc::ptr_eq(&a, &rig.world.live.cluster("a").unwrap()));
    assert!(Arc::ptr_eq(&b, &rig.world.live.cluster("b").unwrap()));
    let changed = cluster("b", to, r#", "per_connection_buffer_limit_bytes": 7"#);
    rig.script.say(Kind::Cluster, "3", &[cluster("a", to, ""), changed]).unwrap();
    assert!(Arc::ptr_eq(&a, &rig.world.live.cluster("a").unwrap()));
    assert!(!Arc::ptr_eq(&b, &rig.world.live.cluster("b").unwrap()));
    for (stat, value) in [
        ("cluster_manager.cluster_added", 2),
        ("cluster_manager.cluster_modified", 1),
        ("cluster_manager.active_clusters", 2),
        ("cluster_manager.cds.update_success", 3),
        ("cluster_manager.cds.update_attempt", 4),
    ] {
        assert_eq!(rig.stat(stat), value, "{stat}");
    }
    assert_eq!(&*rig.world.version(Kind::Cluster), "3");
}

#[tokio::test]
async fn of_a_half_bad_update_the_good_half_is_taken() {
    let to = server("one").await;
    let rig = Rig::with(&[cluster("a", to, ""), cluster("gone", to, "")], &[], LONG).await;
    let a = rig.world.live.cluster("a").unwrap();
    let sizes = r#", "ring_hash_lb_config": {"minimum_ring_size": "9", "maximum_ring_size": "3"}"#;
    let bad = cluster("a", to, &format!(r#", "lb_policy": "RING_HASH" {sizes}"#));
    let refused = rig.script.say(Kind::Cluster, "2", &[bad, cluster("b", to, ""), cluster("b", to, "")]);
    let why = refused.unwrap_err();
    assert!(why.starts_with("Error adding/updating cluster(s) a: at <Cluster>.ring_hash_lb_config"), "{why}");
    assert!(why.contains("b: duplicate cluster b found"), "{why}");
    assert!(Arc::ptr_eq(&a, &rig.world.live.cluster("a").unwrap()));
    assert!(rig.world.live.cluster("b").is_some() && rig.world.live.cluster("gone").is_none());
    assert_eq!(rig.stat("cluster_manager.cds.update_rejected"), 1);
    assert_eq!(rig.stat("cluster_manager.cluster_removed"), 1);
    // The last that was seen, as in Envoy.
    assert_eq!(&*rig.world.version(Kind::Cluster), "2");
    let view = rig.world.dynamic(Kind::Cluster).into_iter().find(|view| &*view.name == "a").unwrap();
    assert_eq!((&*view.active.unwrap().version, &*view.error.unwrap().version), ("1", "2"));
    // Good news clear it.
    rig.script.say(Kind::Cluster, "3", &[cluster("a", to, "")]).unwrap();
    assert!(rig.world.dynamic(Kind::Cluster).iter().all(|view| view.error.is_none()));
}

#[tokio::test]
async fn the_old_one_serves_while_the_new_one_warms() {
    let (one, two) = (server("one").await, server("two").await);
    let listeners = [listener("l", "127.0.0.1:0", &[chain("c", "", "a")], "")];
    let rig = Rig::with(&[cluster("a", one, "")], &listeners, LONG).await;
    let at = rig.address("l");
    let (mut old, said) = greeted(at).await;
    assert_eq!(said, "one");
    let before = rig.world.live.cluster("a").unwrap();
    rig.script.say(Kind::Cluster, "2", &[eds("a", "")]).unwrap();
    assert_eq!(rig.script.asked(Kind::Endpoints), ["a"]);
    assert!(Arc::ptr_eq(&before, &rig.world.live.cluster("a").unwrap()));
    assert_eq!(rig.stat("cluster_manager.warming_clusters"), 1);
    assert!(rig.world.dynamic(Kind::Cluster)[0].warming.is_some());
    assert_eq!(greeted(at).await.1, "one");
    rig.script.say(Kind::Endpoints, "1", &[endpoints("a", &[two])]).unwrap();
    rig.until("the new one", || rig.stat("cluster_manager.warming_clusters") == 0).await;
    assert_eq!(greeted(at).await.1, "two");
    assert!(lives(&mut old).await, "a connection keeps the cluster that it has");
    let before = rig.world.live.cluster("a").unwrap();
    // One that changes again while it warms: only the last counts.
    rig.script.say(Kind::Cluster, "3", &[eds("a", r#", "wait_for_warm_on_init": false"#)]).unwrap();
    rig.script.say(Kind::Cluster, "4", &[eds("a", r#", "per_connection_buffer_limit_bytes": 9"#)]).unwrap();
    // Of the one in place, and of the last.
    rig.until("the others let go", || rig.script.asked(Kind::Endpoints).len() == 2).await;
    assert!(Arc::ptr_eq(&before, &rig.world.live.cluster("a").unwrap()));
    rig.script.say(Kind::Cluster, "5", &[cluster("a", one, "")]).unwrap();
    assert_eq!(greeted(at).await.1, "one");
    assert_eq!(rig.stat("cluster_manager.warming_clusters"), 0);
    // Connections of a cluster that is removed go on, as in Envoy.
    rig.script.say(Kind::Cluster, "6", &[]).unwrap();
    assert!(lives(&mut old).await);
    assert_eq!(greeted(at).await.1, "");
}

#[tokio::test]
async fn the_bootstraps_own_stay() {
    let (one, two) = (server("one").await, server("two").await);
    let statics = format!(
        r#"{{"clusters": [{}], "listeners": [{}]}}"#,
        cluster("a", one, ""),
        listener("l", "127.0.0.1:0", &[chain("c", "", "a")], "")
    );
    let rig = Rig::new(&statics, LONG);
    let ready = rig.start();
    let at = rig.address("l");
    rig.until("CDS", || !rig.script.asked(Kind::Cluster).is_empty()).await;
    // LDS is asked for once CDS has been answered; nothing is accepted meanwhile.
    assert!(rig.script.asked(Kind::Listener).is_empty());
    assert!(tokio::net::TcpStream::connect(at).await.is_err());
    rig.script.say(Kind::Cluster, "1", &[cluster("a", two, "")]).unwrap();
    rig.until("LDS", || !rig.script.asked(Kind::Listener).is_empty()).await;
    assert!(!ready.load(Ordering::SeqCst));
    rig.script.fail(Kind::Listener, &Failure::Disconnected("no".to_owned()));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!ready.load(Ordering::SeqCst));
    rig.script.fail(Kind::Listener, &Failure::TimedOut(Duration::ZERO));
    rig.until("ready", || ready.load(Ordering::SeqCst)).await;
    assert_eq!(greeted(at).await.1, "one");
    rig.script.say(Kind::Listener, "1", &[listener("l", "127.0.0.1:0", &[chain("c", "", "b")], "")]).unwrap();
    rig.script.delta(Kind::Listener, "2", &[], &["l"]).unwrap();
    rig.script.delta(Kind::Cluster, "2", &[], &["a"]).unwrap();
    assert_eq!(greeted(at).await.1, "one");
    assert!(rig.world.dynamic(Kind::Listener).is_empty() && rig.world.dynamic(Kind::Cluster).is_empty());
    assert_eq!(rig.stat("listener_manager.lds.init_fetch_timeout"), 1);
    assert_eq!(rig.stat("listener_manager.lds.update_failure"), 1);
}
