//! Workloads that bring their own bootstraps: one daemon, many configurations that know nothing of each other.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::admin::Admin;
use shunt_tests::bootstrap::{Bootstrap, address, chain, says, tcp_proxy};
use shunt_tests::probe::{Connect, Report};
use shunt_tests::xds::{Push, Resource, Type, file};
use shunt_tests::{ControlPlane, Daemon, Lab, Pod, eventually, lab};

use crate::xds_common::{bad_listener, cluster};

const SOON: Duration = Duration::from_secs(10);
/// Nobody is there: what answers is the proxy.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The file of a workload's bootstrap, replaced as a ConfigMap would be.
pub(crate) struct File(pub(crate) PathBuf);

impl File {
    pub(crate) fn new(lab: &Lab, name: &str, text: &str) -> Result<Self> {
        let file = Self(lab.dir().join(format!("{name}.yaml")));
        file.write(text)?;
        Ok(file)
    }

    pub(crate) fn write(&self, text: &str) -> Result<()> {
        let new = self.0.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(&new, &self.0)?)
    }
}

/// The entry of a workload that brings a bootstrap.
pub(crate) fn bringing(pod: &Pod, file: &Path, policy: &str) -> Result<String> {
    let mut entry: Value = serde_json::from_str(&pod.entry(policy))?;
    entry["bootstrap"] = file.display().to_string().into();
    Ok(entry.to_string())
}

/// A sidecar whose outbound listener answers everything with a word.
pub(crate) fn answering(node: &str, word: &str) -> Bootstrap {
    let chain = chain("", &[says(&format!("{word}\n"))]);
    Bootstrap::new().top(&format!("node: {{ id: {node:?}, cluster: test }}")).listener_at(
        "virtualOutbound",
        &address("0.0.0.0", 15_001),
        &format!("traffic_direction: OUTBOUND, filter_chains: [ {chain} ]"),
    )
}

/// What is heard on a connection from a workload to anywhere.
fn heard(lab: &Lab, pod: &Pod) -> Result<String> {
    heard_from(lab, pod, SocketAddr::from((NOWHERE, 80)))
}

fn heard_from(lab: &Lab, pod: &Pod, to: SocketAddr) -> Result<String> {
    let report = Connect::new(pod.place(), to).steps("greet").run(lab)?;
    Ok(report.0["steps"][0]["greeting"].as_str().unwrap_or_default().to_owned())
}

pub(crate) fn expect(lab: &Lab, pod: &Pod, word: &str) -> Result<()> {
    let heard = heard(lab, pod)?;
    ensure!(heard == word, "{} hears {heard:?}, not {word:?}", pod.name);
    Ok(())
}

fn refused(lab: &Lab, pod: &Pod) -> Result<()> {
    let to = SocketAddr::from((pod.gateway4, 80));
    Connect::new(pod.place(), to).steps("addr").report(lab)?.expect_errno(&["ECONNREFUSED"])
}

pub(crate) fn configuration(admin: &Admin, pod: &Pod) -> Result<Value> {
    let entry = admin.workload(&pod.name)?.with_context(|| format!("{} is not listed", pod.name))?;
    Ok(entry["configuration"].clone())
}

fn stat(admin: &Admin, pod: &Pod, name: &str) -> Result<u64> {
    let text = admin.ok(&format!("/workloads/{}/stats?filter=^{name}$", pod.name))?;
    let value = text.trim().rsplit(": ").next().and_then(|value| value.parse().ok());
    value.with_context(|| format!("no {name} in {text:?}"))
}

#[test]
fn each_workload_runs_on_what_it_brings() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.pod("a")?, lab.pod("b")?);
        let (red, blue) = (lab.serve(&lab.outside())?, lab.serve(&lab.outside())?);
        // The same names, and something else behind them.
        let bootstrap = |pod: &Pod, to: SocketAddr| {
            let word = format!("says {}", pod.name);
            let node = format!("sidecar~{}~{}.default~default.svc.cluster.local", pod.v4, pod.name);
            let relay = chain("", &[tcp_proxy("front", "cluster: app")]);
            answering(&node, &word)
                .listener_at("front", &address("0.0.0.0", 18_080), &format!("filter_chains: [ {relay} ]"))
                .static_cluster("app", &[to], "")
                .yaml()
        };
        let files = [(&a, red.address(a.gateway4)), (&b, blue.address(b.gateway4))]
            .map(|(pod, to)| File::new(lab, &pod.name, &bootstrap(pod, to)));
        let [of_a, of_b] = files;
        let policy = "-b 1";
        let entries = [bringing(&a, &of_a?.0, policy)?, bringing(&b, &of_b?.0, policy)?];
        let mut daemon = Daemon::start(lab, &entries)?;
        let admin = daemon.admin();
        expect(lab, &a, "says a")?;
        expect(lab, &b, "says b")?;

        // The other listeners are inside, each in its own namespace; what they connect on comes from there.
        let front = SocketAddr::from((Ipv4Addr::LOCALHOST, 18_080));
        for (pod, server) in [(&a, &red), (&b, &blue)] {
            let report = Connect::new(pod.place(), front).steps("addr echo:100").run(lab)?;
            ensure!(report.server_peer()?.ip() == pod.v4, "not from {}: {report:?}", pod.v4);
            ensure!(report.server_local()? == server.address(pod.gateway4), "to another server: {report:?}");
        }
        let outside = Connect::new(&lab.outside(), front).steps("addr").report(lab)?;
        outside.expect_errno(&["ECONNREFUSED"]).context("from outside")?;

        as_the_admin_shows_it(&admin, &a, &b)?;
        let log = daemon.process().stderr();
        ensure!(
            log.contains("workload a: bootstrap") && log.contains("is not opened"),
            "no word of the admin: {log}"
        );
        daemon.expect_no_flows()
    })
}

/// Each below its own path, and nothing of it anywhere else.
fn as_the_admin_shows_it(admin: &Admin, a: &Pod, b: &Pod) -> Result<()> {
    for (pod, other) in [(a, b), (b, a)] {
        let shown = configuration(admin, pod)?;
        ensure!(shown["state"] == "ready", "{shown}");
        let id = |pod: &Pod| format!("sidecar~{}~{}.default", pod.v4, pod.name);
        ensure!(shown["node"].as_str().is_some_and(|node| node.starts_with(&id(pod))), "{shown}");
        let path = |path: &str| format!("/workloads/{}{path}", pod.name);
        ensure!(admin.ok(&path("/ready"))? == "LIVE\n", "{} is not live", pod.name);
        let dump = admin.ok(&path("/config_dump"))?;
        ensure!(dump.contains(&id(pod)) && !dump.contains(&id(other)), "{dump}");
        let info = admin.json(&path("/server_info"))?;
        ensure!(info["node"]["id"].as_str().is_some_and(|node| node.starts_with(&id(pod))), "{info}");
        let listeners = admin.ok(&path("/listeners"))?;
        for line in ["virtualOutbound::0.0.0.0:15001\n", "front::0.0.0.0:18080\n"] {
            ensure!(listeners.contains(line), "no {line} in {listeners}");
        }
        let clusters = admin.ok(&path("/clusters"))?;
        ensure!(clusters.contains(&format!("app::{}:", pod.gateway4)), "{clusters}");
        ensure!(!clusters.contains(&other.gateway4.to_string()), "{clusters}");
        ensure!(stat(admin, pod, "tcp.front.downstream_cx_total")? == 1, "front's connections");
        let metrics = admin.ok(&path("/stats/prometheus?filter=tcp"))?;
        ensure!(metrics.contains("envoy_tcp_downstream_cx_total{envoy_tcp_prefix=\"front\"} 1"), "{metrics}");
    }
    let own = admin.ok("/stats")?;
    ensure!(!own.contains("tcp.front") && !own.contains("cluster.app"), "in the daemon's own: {own}");
    let dump = admin.ok("/config_dump")?;
    ensure!(!dump.contains("sidecar~"), "in the daemon's own: {dump}");
    ensure!(admin.get("/workloads/c/stats")?.status == 404, "of nobody");
    ensure!(admin.post("/workloads/a/quitquitquit", "")?.status == 403, "a workload ends the daemon");
    Ok(())
}

#[test]
fn a_bootstrap_is_followed_and_a_bad_one_changes_nothing() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.pod("a")?, lab.pod("b")?);
        let file = File::new(lab, "a", &answering("one", "one").yaml())?;
        let relay = chain("", &[tcp_proxy("front", "cluster: app")]);
        let server = lab.serve(&lab.outside())?;
        let with_front = |node: &str, word: &str| {
            answering(node, word)
                .listener_at("front", &address("0.0.0.0", 18_080), &format!("filter_chains: [ {relay} ]"))
                .static_cluster("app", &[server.address(a.gateway4)], "")
                .yaml()
        };
        file.write(&with_front("one", "one"))?;
        let entries = [bringing(&a, &file.0, "-b 1")?, b.entry("")];
        let mut daemon = Daemon::start(lab, &entries)?;
        let admin = daemon.admin();
        expect(lab, &a, "one")?;
        let front = SocketAddr::from((Ipv4Addr::LOCALHOST, 18_080));
        let mut open = Connect::new(a.place(), front).session(lab)?;
        open.step("echo:1000")?;

        // The same text by another file: nothing happens.
        file.write(&with_front("one", "one"))?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(stat(&admin, &a, "tcp.front.downstream_cx_total")? == 1, "it began anew");

        // Garbage, what Envoy would refuse, and nothing at all: the last good one serves.
        let unknown = with_front("one", "one").replace("stat_prefix: \"front\"", "stat_prefixx: \"front\"");
        for (text, why) in [("{", "line"), (unknown.as_str(), "stat_prefixx")] {
            file.write(text)?;
            eventually("the refusal", SOON, || {
                let shown = configuration(&admin, &a)?;
                ensure!(shown["state"] == "invalid", "{shown}");
                ensure!(shown["problem"].as_str().is_some_and(|said| said.contains(why)), "{shown}");
                Ok(())
            })?;
            expect(lab, &a, "one")?;
        }
        fs::remove_file(&file.0)?;
        eventually("the missing file", SOON, || {
            let shown = configuration(&admin, &a)?;
            ensure!(shown["problem"].as_str().is_some_and(|said| said.contains("No such file")), "{shown}");
            Ok(())
        })?;
        expect(lab, &a, "one")?;
        open.step("echo:1000").context("a connection of the first")?;

        // A good one again, on the same sockets; who is connected stays.
        file.write(&with_front("two", "two"))?;
        eventually("the second", SOON, || expect(lab, &a, "two"))?;
        let shown = configuration(&admin, &a)?;
        ensure!(shown["state"] == "ready" && shown["node"] == "two", "{shown}");
        open.step("echo:1000").context("a connection of the first")?;
        Connect::new(a.place(), front).steps("echo:100").run(lab)?;
        ensure!(stat(&admin, &a, "tcp.front.downstream_cx_total")? == 1, "not its own stats");
        ensure!(configuration(&admin, &b)? == Value::Null, "b brings nothing");
        daemon.interrupt()?;
        Ok(())
    })
}

#[test]
fn without_a_good_bootstrap_a_workload_is_captured_and_closed() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.pod("a")?, lab.pod("b")?);
        let server = lab.serve(&lab.outside())?;
        let file = File::new(lab, "a", "static_resources: { listeners: [ { name: l } ] }")?;
        let mut daemon = Daemon::launch(lab, &[bringing(&a, &file.0, "")?, b.entry("")], &[])?;
        let admin = daemon.admin();
        eventually("b is captured", Duration::from_secs(20), || {
            let report = through(lab, &b, server.address(b.gateway4))?;
            ensure!(report.redirected()?, "not captured: {report:?}");
            Ok(())
        })?;
        refused(lab, &a)?;
        let entry = admin.workload("a")?.context("a is not listed")?;
        let reason = entry["reason"].as_str().unwrap_or_default().to_owned();
        let file_name = file.0.display().to_string();
        for part in ["captured and closed", file_name.as_str(), "listeners[0]"] {
            ensure!(entry["state"] == "pending" && reason.contains(part), "no {part}: {entry}");
        }
        let ready = admin.get("/ready")?;
        ensure!(ready.status == 503 && ready.body.contains("a: captured and closed"), "{ready:?}");
        let dump = admin.get("/workloads/a/config_dump")?;
        ensure!(dump.status == 404 && dump.body.contains("listeners[0]"), "{dump:?}");

        // A file that does not say what it should is read again when it changes.
        file.write(&answering("a", "a").yaml())?;
        eventually("it is served", SOON, || expect(lab, &a, "a"))?;
        eventually("ready", SOON, || {
            ensure!(admin.get("/ready")?.status == 200, "not ready");
            Ok(())
        })?;
        daemon.interrupt()?;
        Ok(())
    })
}

fn through(lab: &Lab, pod: &Pod, to: SocketAddr) -> Result<Report> {
    Connect::new(pod.place(), to).steps("addr echo:100").run(lab)
}

#[test]
fn what_a_workload_brings_comes_and_goes_with_its_entry() -> Result<()> {
    lab(|lab| {
        let a = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let to = server.address(a.gateway4);
        let (one, two) = (
            File::new(lab, "one", &answering("one", "one").yaml())?,
            File::new(lab, "two", &answering("two", "two").yaml())?,
        );
        let mut daemon = Daemon::start(lab, &[])?;
        let admin = daemon.admin();
        let put = |entry: &str| {
            let answer = admin.post("/workloads", entry)?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        };
        put(&bringing(&a, &one.0, "-b 1")?)?;
        expect(lab, &a, "one")?;
        put(&bringing(&a, &two.0, "-b 1")?)?;
        expect(lab, &a, "two")?;
        // The policy alone: the configuration goes on.
        put(&bringing(&a, &two.0, &format!("-b 1 -o {}", server.port))?)?;
        expect(lab, &a, "two")?;
        ensure!(stat(&admin, &a, "listener.0.0.0.0_15001.downstream_cx_total")? == 2, "it began anew");
        ensure!(!through(lab, &a, to)?.redirected()?, "the new policy is not in force");

        // The next daemon adopts it with what it brought.
        daemon.terminate()?;
        refused(lab, &a)?;
        daemon.restart()?;
        expect(lab, &a, "two").context("after a restart")?;

        put(&a.entry("-b 1"))?;
        ensure!(through(lab, &a, to)?.redirected()?, "not captured");
        ensure!(admin.get("/workloads/a/stats")?.status == 404, "its own configuration is still there");
        put(&bringing(&a, &one.0, "-b 1")?)?;
        expect(lab, &a, "one")?;
        ensure!(admin.delete("/workloads/a")?.status == 200, "DELETE");
        ensure!(!through(lab, &a, to)?.redirected()?, "still captured");
        ensure!(admin.get("/workloads/a/stats")?.status == 404, "its own configuration is still there");
        daemon.interrupt()?;
        ensure!(!lab.pins().exists(), "pins are left: {:?}", lab.pins().pins());
        Ok(())
    })
}

/// As Istio calls a sidecar.
fn node(pod: &Pod) -> String {
    format!("sidecar~{}~{}.default~default.svc.cluster.local", pod.v4, pod.name)
}

/// What takes captured connections and says a word.
fn outbound(word: &str) -> Result<Resource> {
    let chain = chain("", &[says(&format!("{word}\n"))]);
    let at = address("0.0.0.0", 15_001);
    let fields = format!("traffic_direction: OUTBOUND, filter_chains: [ {chain} ]");
    Resource::new(Type::Listener, &format!("{{ name: virtualOutbound, address: {at}, {fields} }}"))
}

fn control_plane(admin: &Admin, pod: &Pod, connected: bool) -> Result<()> {
    let shown = configuration(admin, pod)?;
    ensure!(shown["control_planes"][0]["connected"] == connected, "{shown}");
    Ok(())
}

#[test]
fn one_control_plane_tells_each_workload_its_own() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.pod("a")?, lab.pod("b")?);
        let mut plane = ControlPlane::start_unix(&lab.dir().join("xds.sock"))?;
        plane.hold(Type::Listener);
        plane.set(cluster("app", SocketAddr::from((NOWHERE, 80)))?);
        let ads = "{ ads: {}, resource_api_version: V3 }";
        let api = "{ api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, \
                   grpc_services: [ { envoy_grpc: { cluster_name: xds } } ] }";
        let bootstrap = |pod: &Pod| {
            Bootstrap::new()
                .top(&format!(
                    "node: {{ id: {:?}, cluster: test, metadata: {{ NAME: {:?} }} }}",
                    node(pod),
                    pod.name
                ))
                .top(&format!(
                    "dynamic_resources: {{ ads_config: {api}, lds_config: {ads}, cds_config: {ads} }}"
                ))
                .cluster("xds", &plane.cluster())
                .yaml()
        };
        let (of_a, of_b) = (File::new(lab, "a", &bootstrap(&a))?, File::new(lab, "b", &bootstrap(&b))?);
        let entries = [bringing(&a, &of_a.0, "-b 1")?, bringing(&b, &of_b.0, "-b 1")?];
        let mut daemon = Daemon::launch(lab, &entries, &[])?;
        let admin = daemon.admin();
        for pod in [&a, &b] {
            eventually("it waits for LDS", Duration::from_secs(20), || {
                let shown = configuration(&admin, pod)?;
                ensure!(
                    shown["state"] == "warming" && shown["waits_for"].to_string().contains("LDS"),
                    "{shown}"
                );
                control_plane(&admin, pod, true)
            })?;
            refused(lab, pod)?;
            let said = plane.node(&node(pod))?;
            ensure!(said["metadata"]["NAME"] == pod.name.as_str(), "{said}");
        }
        for pod in [&a, &b] {
            plane.push(&node(pod), &Push::new(Type::Listener).version("1").resource(outbound(&pod.name)?))?;
        }
        daemon.wait_ready()?;
        expect(lab, &a, "a")?;
        expect(lab, &b, "b")?;

        // An update of one, a refusal, and the end of the server.
        plane.push(&node(&a), &Push::new(Type::Listener).version("2").resource(outbound("again a")?))?;
        eventually("the update", SOON, || expect(lab, &a, "again a"))?;
        plane.push(&node(&b), &Push::new(Type::Listener).version("2").resource(bad_listener("bad")?))?;
        let refused = plane.settled(&node(&b))?;
        ensure!(refused.contains_key(&Type::Listener), "{refused:?}");
        ensure!(plane.settled(&node(&a))?.is_empty(), "a has refused something");
        expect(lab, &b, "b")?;
        plane.stop();
        for pod in [&a, &b] {
            eventually("it is alone", SOON, || control_plane(&admin, pod, false))?;
            let line = format!("workload {}: ADS of cluster xds: ", pod.name);
            ensure!(daemon.process().stderr().contains(&line), "the log does not say whose ADS it is");
        }
        expect(lab, &a, "again a")?;
        plane.restart()?;
        for pod in [&a, &b] {
            eventually("it is back", Duration::from_secs(40), || control_plane(&admin, pod, true))?;
        }

        // Its session ends with the workload; the other's does not.
        ensure!(admin.delete("/workloads/a")?.status == 200, "DELETE");
        eventually("a's session has ended", SOON, || {
            let open = plane.streams(&node(&a)).into_iter().filter(|stream| stream.open).count();
            ensure!(open == 0, "{open} streams");
            Ok(())
        })?;
        ensure!(plane.streams(&node(&b)).iter().any(|stream| stream.open), "b's session has ended too");
        expect(lab, &b, "b")?;
        daemon.interrupt()?;
        Ok(())
    })
}

#[test]
fn what_many_workloads_have_alike_is_there_once() -> Result<()> {
    const WORKLOADS: usize = 50;
    const CLUSTERS: usize = 500;
    lab(|lab| {
        let pods = (0..WORKLOADS).map(|n| lab.pod(&format!("w{n}"))).collect::<Result<Vec<_>>>()?;
        let clusters = (0..CLUSTERS).map(|n| cluster(&service(n), SocketAddr::from((NOWHERE, 80))));
        let clusters = clusters.collect::<Result<Vec<_>>>()?;
        let cds = lab.dir().join("cds.yaml");
        fs::write(&cds, file("1", &clusters))?;
        let daemon = Daemon::start(lab, &[])?;
        let admin = daemon.admin();
        let resident = || -> Result<u64> {
            let memory = admin.json("/memory")?;
            memory["total_physical_bytes"].as_str().and_then(|text| text.parse().ok()).context("no memory")
        };
        let enrol = |pod: &Pod| -> Result<()> {
            let cds =
                format!("cds_config: {{ path_config_source: {{ path: {:?} }} }}", cds.display().to_string());
            let text =
                answering(&node(pod), &pod.name).top(&format!("dynamic_resources: {{ {cds} }}")).yaml();
            let file = File::new(lab, &pod.name, &text)?;
            admin.post("/workloads", &bringing(pod, &file.0, "-b 1")?)?;
            eventually("it is served", SOON, || expect(lab, pod, &pod.name))
        };
        let (first, others) = pods.split_first().context("no pods")?;
        enrol(first)?;
        let before = resident()?;
        others.iter().try_for_each(enrol)?;
        let each = resident()?.saturating_sub(before) / (WORKLOADS as u64 - 1);
        eprintln!("a workload with {CLUSTERS} clusters: {} KiB more", each >> 10);
        let dump = admin.ok("/workloads/w7/clusters")?;
        ensure!(dump.contains(&format!("{}::", service(CLUSTERS - 1))), "w7 lacks clusters");
        ensure!(each < 4 << 20, "{each} bytes for each workload");
        Ok(())
    })
}

fn service(n: usize) -> String {
    format!("outbound|{}||service-{n}.default.svc.cluster.local", 8_000 + n)
}
