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
use shunt_tests::{Daemon, Lab, Pod, eventually, lab};

const SOON: Duration = Duration::from_secs(10);
/// Nobody is there: what answers is the proxy.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The file of a workload's bootstrap, replaced as a ConfigMap would be.
struct File(PathBuf);

impl File {
    fn new(lab: &Lab, name: &str, text: &str) -> Result<Self> {
        let file = Self(lab.dir().join(format!("{name}.yaml")));
        file.write(text)?;
        Ok(file)
    }

    fn write(&self, text: &str) -> Result<()> {
        let new = self.0.with_extension("new");
        fs::write(&new, text)?;
        Ok(fs::rename(&new, &self.0)?)
    }
}

/// The entry of a workload that brings a bootstrap.
fn bringing(pod: &Pod, file: &Path, policy: &str) -> Result<String> {
    let mut entry: Value = serde_json::from_str(&pod.entry(policy))?;
    entry["bootstrap"] = file.display().to_string().into();
    Ok(entry.to_string())
}

/// A sidecar whose outbound listener answers everything with a word.
fn answering(node: &str, word: &str) -> Bootstrap {
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

fn expect(lab: &Lab, pod: &Pod, word: &str) -> Result<()> {
    let heard = heard(lab, pod)?;
    ensure!(heard == word, "{} hears {heard:?}, not {word:?}", pod.name);
    Ok(())
}

fn refused(lab: &Lab, pod: &Pod) -> Result<()> {
    let to = SocketAddr::from((pod.gateway4, 80));
    Connect::new(pod.place(), to).steps("addr").report(lab)?.expect_errno(&["ECONNREFUSED"])
}

fn configuration(admin: &Admin, pod: &Pod) -> Result<Value> {
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

        // Nor does one that waits for its endpoints let anybody through.
        let endpoints = lab.dir().join("eds.yaml");
        let eds = format!(
            "type: EDS, eds_cluster_config: {{ eds_config: {{ path_config_source: {{ path: {:?} }}, \
             initial_fetch_timeout: 0s }} }}",
            endpoints.display().to_string()
        );
        let relay = chain("", &[tcp_proxy("out", "cluster: app")]);
        let fields = format!("traffic_direction: OUTBOUND, filter_chains: [ {relay} ]");
        let waiting = Bootstrap::new()
            .top("node: { id: a, cluster: test }")
            .listener_at("virtualOutbound", &address("0.0.0.0", 15_001), &fields)
            .cluster("app", &eds)
            .yaml();
        file.write(&waiting)?;
        eventually("it waits", SOON, || {
            let shown = configuration(&admin, &a)?;
            ensure!(shown["state"] == "warming", "{shown}");
            ensure!(shown["waits_for"].to_string().contains("cluster app"), "{shown}");
            Ok(())
        })?;
        refused(lab, &a)?;
        fs::write(&endpoints, shared_endpoints(server.address(a.gateway4)))?;
        eventually("it is served", SOON, || through(lab, &a, SocketAddr::from((NOWHERE, 80))).map(drop))?;
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

fn shared_endpoints(to: SocketAddr) -> String {
    let endpoint = shunt_tests::bootstrap::endpoint(to, "");
    let locality = shunt_tests::bootstrap::locality(&[endpoint], "");
    let assignment = shunt_tests::bootstrap::assignment("app", &[locality], "");
    let (open, rest) = assignment.split_at(1);
    format!(
        "version_info: one\nresources: [ {open} \"@type\": \
         type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment, {rest} ]\n"
    )
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
