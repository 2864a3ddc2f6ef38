//! ECDS, RDS, and what is not served.

use std::time::Duration;

use proxy_config::xds::Kind;

use super::rig::*;
use crate::xds::Failure;

const RBAC: &str = "envoy.extensions.filters.network.rbac.v3.RBAC";

/// A chain whose first filter comes by ECDS.
fn discovering(more: &str) -> String {
    discovering_from("/the/script", more)
}

fn discovering_from(file: &str, more: &str) -> String {
    format!(
        r#"{{"name": "x", "filters": [{{"name": "gate", "config_discovery": {{
        "config_source": {{"path_config_source": {{"path": "{file}"}}}},
        "type_urls": ["type.googleapis.com/{RBAC}"] {more}}}}}, {}]}}"#,
        tcp_proxy("a")
    )
}

fn rbac(action: &str) -> String {
    format!(
        r#"{{"@type": "type.googleapis.com/{RBAC}", "stat_prefix": "gate", "rules": {{"action": "{action}",
        "policies": {{"all": {{"permissions": [{{"any": true}}], "principals": [{{"any": true}}]}}}}}}}}"#
    )
}

fn gate(action: &str) -> String {
    format!(r#"{{"name": "gate", "typed_config": {}}}"#, rbac(action))
}

/// Whether a client gets through: rbac judges by the first byte.
async fn passes(rig: &Rig) -> bool {
    passes_by(rig, "l").await
}

async fn passes_by(rig: &Rig, listener: &str) -> bool {
    let (mut stream, said) = greeted(rig.address(listener)).await;
    !said.is_empty() && lives(&mut stream).await
}

async fn rig(chain: &str) -> Rig {
    let one = server("one").await;
    let rig = Rig::with(&[cluster("a", one, "")], &[], LONG).await;
    rig.script.say(Kind::Listener, "2", &[listener("l", "127.0.0.1:0", &[chain.to_owned()], "")]).unwrap();
    rig
}

#[tokio::test]
async fn a_listener_waits_for_its_filter_and_follows_it() {
    let rig = rig(&discovering("")).await;
    assert_eq!(rig.script.asked(Kind::Extension), ["gate"]);
    assert_eq!(rig.stat("listener_manager.total_listeners_warming"), 1);
    assert_eq!(rig.world.unready()[0].targets, ["shared target FilterConfigSubscription init gate"]);
    rig.script.say(Kind::Extension, "1", &[gate("ALLOW")]).unwrap();
    rig.until("the listener", || rig.stat("listener_manager.total_listeners_active") == 1).await;
    let (mut kept, _) = greeted(rig.address("l")).await;
    assert!(lives(&mut kept).await);
    rig.script.say(Kind::Extension, "2", &[gate("DENY")]).unwrap();
    rig.until("the change", || {
        let snapshot = rig.world.snapshot();
        let model = format!("{:?}", snapshot.listeners()[0].model);
        model.contains("Deny")
    })
    .await;
    assert!(!passes(&rig).await);
    assert!(lives(&mut kept).await, "what is there keeps its filters");
    // What cannot be here is refused, and changes nothing.
    let other = format!(r#"{{"name": "gate", "typed_config": {}}}"#, tcp_proxy_config());
    let why = rig.script.say(Kind::Extension, "3", &[other]).unwrap_err();
    assert!(why.starts_with("gate: Error: filter config has type URL"), "{why}");
    assert!(!passes(&rig).await);
    let prefix = "extension_config_discovery.network_filter.gate";
    assert_eq!(rig.stat(&format!("{prefix}.config_reload")), 2);
    assert_eq!(rig.stat(&format!("{prefix}.config_fail")), 1);
    let view = &rig.world.dynamic(Kind::Extension)[0];
    assert_eq!(&*view.active.as_ref().unwrap().version, "2");
    assert_eq!(&*view.error.as_ref().unwrap().version, "3");
    // With the listener it goes.
    rig.script.say(Kind::Listener, "3", &[]).unwrap();
    drop(kept);
    rig.until("nobody asks", || rig.script.asked(Kind::Extension).is_empty()).await;
}

#[tokio::test]
async fn two_sources_may_say_something_else_of_one_name() {
    let one = server("one").await;
    let rig = Rig::with(&[cluster("a", one, "")], &[], LONG).await;
    let by = |name: &str, file: &str| listener(name, "127.0.0.1:0", &[discovering_from(file, "")], "");
    rig.script.say(Kind::Listener, "2", &[by("l", "/one"), by("m", "/other"), by("n", "/one")]).unwrap();
    assert_eq!(rig.script.asked(Kind::Extension), ["gate", "gate"], "each source once");
    rig.script.say_in("/one", Kind::Extension, &[gate("ALLOW")]).unwrap();
    rig.until("two listeners", || rig.stat("listener_manager.total_listeners_active") == 2).await;
    assert_eq!(rig.stat("listener_manager.total_listeners_warming"), 1, "the other source has said nothing");
    rig.script.say_in("/other", Kind::Extension, &[gate("DENY")]).unwrap();
    rig.until("all listeners", || rig.stat("listener_manager.total_listeners_active") == 3).await;
    assert!(passes(&rig).await && passes_by(&rig, "n").await);
    assert!(!passes_by(&rig, "m").await);
    // A change of the one is none of the other's.
    rig.script.say_in("/other", Kind::Extension, &[gate("ALLOW")]).unwrap();
    rig.script.say_in("/one", Kind::Extension, &[gate("DENY")]).unwrap();
    while passes(&rig).await || !passes_by(&rig, "m").await {}
    assert!(!passes_by(&rig, "n").await);
}

fn tcp_proxy_config() -> String {
    let filter = tcp_proxy("a");
    let (_, config) = filter.split_once(r#""typed_config": "#).unwrap();
    config.strip_suffix('}').unwrap().to_owned()
}

#[tokio::test]
async fn without_its_filter_a_chain_closes_and_with_a_default_it_serves() {
    let bare = rig(&discovering("")).await;
    bare.script.fail(Kind::Extension, &Failure::TimedOut(Duration::ZERO));
    bare.until("the listener", || bare.stat("listener_manager.total_listeners_active") == 1).await;
    assert!(!passes(&bare).await);
    let address = bare.address("l").to_string().replace(':', "_");
    // By the address that was asked for, as all its stats.
    let missing = address.split_once('_').map(|(ip, _)| format!("listener.{ip}_0"));
    assert_eq!(bare.stat(&format!("{}.network_extension_config_missing", missing.unwrap())), 1);
    bare.script.say(Kind::Extension, "1", &[gate("ALLOW")]).unwrap();
    while !passes(&bare).await {}
    let default = format!(r#", "default_config": {}"#, rbac("ALLOW"));
    let waiting = rig(&discovering(&default)).await;
    assert_eq!(waiting.stat("listener_manager.total_listeners_warming"), 1);
    let at_once =
        rig(&discovering(&format!(r#"{default}, "apply_default_config_without_warming": true"#))).await;
    assert_eq!(at_once.stat("listener_manager.total_listeners_warming"), 0);
    assert!(passes(&at_once).await);
}
