//! Workloads come, change and go; the daemon dies and comes back; what the kernel holds follows.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::backend::Backend;
use shunt_tests::ports::free;
use shunt_tests::probe::{Connect, Report};
use shunt_tests::process::Process;
use shunt_tests::{Cases, Daemon, Lab, Pod, daemon, eventually, lab};

use crate::common::outbound_line;

const SOON: Duration = Duration::from_secs(5);

fn connect(lab: &Lab, pod: &Pod, server: &Backend) -> Result<Report> {
    Connect::new(pod.place(), server.address(pod.gateway4)).steps("addr echo:100").report(lab)
}

fn captured(lab: &Lab, pod: &Pod, server: &Backend) -> Result<()> {
    let report = connect(lab, pod, server)?;
    ensure!(report.ok() && report.redirected()?, "not captured: {report:?}");
    Ok(())
}

fn direct(lab: &Lab, pod: &Pod, server: &Backend) -> Result<()> {
    let report = connect(lab, pod, server)?;
    ensure!(report.ok() && !report.redirected()?, "not direct: {report:?}");
    Ok(())
}

fn refused(lab: &Lab, pod: &Pod, server: &Backend) -> Result<()> {
    connect(lab, pod, server)?.expect_errno(&["ECONNREFUSED"])
}

fn pods(lab: &Lab) -> Result<usize> {
    Ok(daemon::maps(lab)?["PODS"].as_array().context("no PODS")?.len())
}

/// Short connections in the background, one after the other.
fn load(lab: &Lab, pod: &Pod, to: SocketAddr) -> Result<Process> {
    let spawn = lab.probe(pod.place())?.args(["load", "--to", &to.to_string()]).with_stdin();
    let mut load = spawn.spawn()?;
    load.wait_event("start", 0, SOON, |event| Some(event.clone()))?;
    Ok(load)
}

#[test]
fn workloads_come_by_command_line_file_and_admin_api() -> Result<()> {
    lab(|lab| {
        let (a, b, c) = (lab.pod("a")?, lab.pod("b")?, lab.pod("c")?);
        let server = lab.serve(&lab.outside())?;
        let file = lab.dir().join("enrolment.yaml");
        fs::write(&file, "workloads: []\n")?;
        let path = file.to_string_lossy().into_owned();
        let daemon = Daemon::start_with(lab, &[a.entry("")], &["--enrolment", &path])?;
        let admin = daemon.admin();
        captured(lab, &a, &server).context("by command line")?;
        direct(lab, &b, &server).context("not enrolled yet")?;

        let write = |policy: &str| {
            let new = file.with_extension("new");
            fs::write(&new, format!("workloads:\n  - {}\n", b.entry(policy)))?;
            fs::rename(&new, &file)
        };
        write("")?;
        eventually("b is captured", SOON, || captured(lab, &b, &server))?;
        write(&format!("-o {}", server.port))?;
        eventually("b's port is excluded", SOON, || direct(lab, &b, &server))?;
        fs::write(&file, "workloads: [{name: b, cgroup: relative")?;
        std::thread::sleep(Duration::from_millis(300));
        ensure!(admin.workload("b")?.is_some(), "a broken file took the workload out");
        fs::write(&file, "workloads: []\n")?;
        eventually("b is taken out", SOON, || {
            ensure!(admin.workload("b")?.is_none(), "still listed");
            direct(lab, &b, &server)
        })?;

        by_admin_api(lab, &daemon, &c, &server)?;
        captured(lab, &a, &server).context("a, all the while")?;
        daemon.expect_no_flows()
    })
}

/// Enrols a workload and takes it out again; a connection that was open lives on.
fn by_admin_api(lab: &Lab, daemon: &Daemon<'_>, c: &Pod, server: &Backend) -> Result<()> {
    let admin = daemon.admin();
    let answer = admin.post("/workloads", &c.entry(""))?;
    ensure!(answer.status == 200, "{answer:?}");
    let entry = admin.workload("c")?.context("c is not listed")?;
    ensure!(entry["state"] == "ready" && entry["origin"] == "api", "{entry}");
    captured(lab, c, server).context("by admin API")?;
    let mut open = Connect::new(c.place(), server.address(c.gateway4)).session(lab)?;
    let answer = admin.delete("/workloads/c")?;
    ensure!(answer.status == 200, "{answer:?}");
    direct(lab, c, server).context("after DELETE")?;
    open.step("echo:100000").context("a connection open before DELETE")?;
    ensure!(admin.delete("/workloads/c")?.status == 404, "a second DELETE");
    Ok(())
}

#[test]
fn readiness_names_what_is_missing() -> Result<()> {
    lab(|lab| {
        let a = lab.pod("a")?;
        let missing = a.entry("").replace(a.netns.name(), "no-such-namespace");
        let daemon = Daemon::launch(lab, &[missing], &[])?;
        let admin = daemon.admin();
        let answer = eventually("an answer", Duration::from_secs(15), || admin.get("/ready"))?;
        ensure!(answer.status == 503 && answer.body.contains("no-such-namespace"), "{answer:?}");
        let entry = admin.workload("a")?.context("not listed")?;
        ensure!(entry["state"] == "pending", "{entry}");
        let answer = admin.post("/workloads", &a.entry(""))?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(admin.get("/ready")?.status == 200, "not ready after it was put right");
        Ok(())
    })
}

#[test]
fn many_workloads_are_carried_by_one_daemon() -> Result<()> {
    lab(|lab| {
        let pods = (0..25).map(|n| lab.pod(&format!("w{n}"))).collect::<Result<Vec<_>>>()?;
        let server = lab.serve(&lab.outside())?;
        let entries: Vec<String> = pods.iter().map(|pod| pod.entry("")).collect();
        let mut daemon = Daemon::start(lab, &entries)?;
        let mut cases = Cases::new();
        for pod in &pods {
            cases.case(&pod.name, || {
                let report = connect(lab, pod, &server)?;
                ensure!(report.server_peer()?.ip() == pod.v4, "not from its own address: {report:?}");
                outbound_line(&daemon.access_log(), &pod.name, &report, server.address(pod.gateway4))
                    .map(drop)
            });
        }
        cases.finish()?;
        daemon.interrupt()?;
        ensure!(!lab.pins().exists(), "pins are left: {:?}", lab.pins().pins());
        Ok(())
    })
}

#[test]
fn the_admin_tcp_address_only_reads() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let admin = free()?.to_string();
        let _daemon = Daemon::start_with(lab, &[pod.entry("")], &["--admin-address", &admin])?;
        let curl = |args: &[&str], path: &str| -> Result<String> {
            let url = format!("http://{admin}{path}");
            let spawn =
                lab.program("curl", &shunt_tests::Place::default())?.args(["-s", "-w", " %{http_code}"]);
            Ok(spawn.args(["--noproxy", "*"]).args(args).arg(&url).run()?.stdout)
        };
        let mut cases = Cases::new();
        let entry = pod.entry_named("b", "");
        let table: [(&[&str], &str, &str); 5] = [
            (&[], "/ready", "200"),
            (&[], "/workloads", "200"),
            (&[], "/stats", "200"),
            (&["-d", &entry], "/workloads", "403"),
            (&["-X", "DELETE"], "/workloads/a", "403"),
        ];
        for (args, path, status) in table {
            cases.case(format_args!("{args:?} {path}"), || {
                let text = curl(args, path)?;
                ensure!(text.ends_with(status), "{text}");
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn a_workload_that_goes_away_is_cleaned_up() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.pod("a")?, lab.pod("b")?);
        let daemon = Daemon::start(lab, &[])?;
        for pod in [&a, &b] {
            let answer = daemon.admin().post("/workloads", &pod.entry(""))?;
            ensure!(answer.status == 200, "{answer:?}");
        }
        ensure!(pods(lab)? == 2, "PODS: {}", daemon.maps()?["PODS"]);
        let netns = a.netns.path();
        drop(a);
        eventually("a is cleaned up", SOON, || {
            ensure!(pods(lab)? == 1, "PODS: {}", daemon.maps()?["PODS"]);
            ensure!(daemon.admin().workload("a")?.is_none(), "still listed");
            Ok(())
        })
        .with_context(|| format!("{} was deleted", netns.display()))?;
        shunt_tests::cgroup::remove(&b.cgroup)?;
        eventually("b is cleaned up", SOON, || {
            ensure!(pods(lab)? == 0, "PODS: {}", daemon.maps()?["PODS"]);
            ensure!(daemon.admin().workload("b")?.is_none(), "still listed");
            let links: Vec<_> =
                lab.pins().pins().into_iter().filter(|pin| pin.iter().any(|part| part == "b")).collect();
            ensure!(links.is_empty(), "{links:?}");
            Ok(())
        })?;
        let maps = daemon.maps()?;
        ensure!(maps["LISTENERS"].as_array().is_some_and(Vec::is_empty), "{}", maps["LISTENERS"]);
        ensure!(maps["OWN_IPS"].as_array().is_some_and(Vec::is_empty), "{}", maps["OWN_IPS"]);
        Ok(())
    })
}

/// What connections see while the daemon is killed and started again.
struct Crash {
    tally: Value,
    downtime: Duration,
}

/// Kills the daemon under load, lets `while_dead` look, starts it again.
fn crash(lab: &Lab, policy: &str, while_dead: impl FnOnce(&Pod, &Backend) -> Result<()>) -> Result<Crash> {
    let pod = lab.pod("a")?;
    let server = lab.serve(&lab.outside())?;
    let excluded = lab.serve(&lab.outside())?;
    let policy = format!("{policy} -o {}", excluded.port);
    let mut daemon = Daemon::start(lab, &[pod.entry(&policy)])?;
    let mut unharmed = Connect::new(pod.place(), excluded.address(pod.gateway4)).session(lab)?;
    let load = load(lab, &pod, server.address(pod.gateway4))?;
    std::thread::sleep(Duration::from_millis(300));
    daemon.kill()?;
    let start = Instant::now();
    while_dead(&pod, &server)?;
    unharmed.step("echo:100000").context("a connection to an excluded port, while the daemon is dead")?;
    daemon.restart()?;
    let downtime = start.elapsed();
    captured(lab, &pod, &server).context("after the restart")?;
    std::thread::sleep(Duration::from_millis(300));
    let tally = load.finish()?.json()?;
    unharmed.step("echo:100000").context("a connection to an excluded port, after the restart")?;
    daemon.expect_no_flows()?;
    Ok(Crash { tally, downtime })
}

/// Connects that failed, and those whose bytes were cut off by the kill.
fn failures(tally: &Value) -> (u64, u64) {
    let errors = tally["errors"].as_object().into_iter().flatten();
    errors.fold((0, 0), |(connect, other), (name, n)| {
        let n = n.as_u64().unwrap_or(0);
        if name.starts_with("connect ") { (connect + n, other) } else { (connect, other + n) }
    })
}

#[test]
fn without_a_daemon_a_workload_is_closed() -> Result<()> {
    lab(|lab| {
        let crash = crash(lab, "", |pod, server| {
            refused(lab, pod, server)?;
            let inside = lab.serve(pod.place())?;
            let to = inside.address(pod.v4);
            let report = Connect::new(&lab.outside(), to).with("--timeout 700").steps("addr").report(lab)?;
            ensure!(!report.ok(), "inbound got through: {report:?}");
            Ok(())
        })?;
        ensure!(crash.tally["direct"] == 0, "went past the proxy: {}", crash.tally);
        ensure!(failures(&crash.tally).0 > 0 && crash.tally["ok"].as_u64() > Some(50), "{}", crash.tally);
        Ok(())
    })
}

#[test]
fn without_a_daemon_a_workload_that_fails_open_is_direct() -> Result<()> {
    lab(|lab| {
        let crash = crash(lab, "--fail-open", |pod, server| {
            direct(lab, pod, server)?;
            let inside = lab.serve(pod.place())?;
            let report = Connect::new(&lab.outside(), inside.address(pod.v4)).steps("addr").run(lab)?;
            ensure!(report.server_peer()? == report.local()?, "{report:?}");
            Ok(())
        })?;
        let (refused, cut) = failures(&crash.tally);
        // Two at a time: no more can have been under way when it was killed.
        ensure!(refused + cut <= 4 && crash.tally["direct"].as_u64() > Some(0), "{}", crash.tally);
        Ok(())
    })
}

#[test]
fn without_a_daemon_a_connect_can_wait_for_it() -> Result<()> {
    lab(|lab| {
        let crash = crash(lab, "--wait-for-proxy=20s", |_, _| {
            std::thread::sleep(Duration::from_millis(700));
            Ok(())
        })?;
        let (refused, cut) = failures(&crash.tally);
        ensure!(refused == 0 && cut <= 4, "{}", crash.tally);
        ensure!(crash.tally["direct"] == 0, "went past the proxy: {}", crash.tally);
        let slowest = Duration::from_millis(crash.tally["slowest_ms"].as_u64().unwrap_or(0));
        let limit = crash.downtime + Duration::from_secs(3);
        ensure!(
            slowest >= Duration::from_millis(600) && slowest < limit,
            "{slowest:?} of {:?}",
            crash.downtime
        );
        Ok(())
    })
}

#[test]
fn a_connect_waits_no_longer_than_it_may() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start(lab, &[pod.entry("--wait-for-proxy=1500ms")])?;
        captured(lab, &pod, &server)?;
        daemon.kill()?;
        let start = Instant::now();
        refused(lab, &pod, &server)?;
        let waited = start.elapsed();
        // One that gives up while it is held leaves nothing behind.
        let impatient =
            Connect::new(pod.place(), server.address(pod.gateway4)).with("--timeout 300").report(lab)?;
        impatient.expect_errno(&["EINPROGRESS", "EAGAIN", "ETIMEDOUT"])?;
        daemon.expect_no_flows()?;
        ensure!((Duration::from_millis(1_400)..Duration::from_secs(6)).contains(&waited), "{waited:?}");
        Ok(())
    })
}

#[test]
fn a_signal_decides_what_stays() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let entries = [pod.entry("")];
        let mut cases = Cases::new();
        let table: [(&[&str], bool, bool); 4] = [
            (&[], true, true),
            (&[], false, false),
            (&["--on-exit", "detach"], true, false),
            (&["--on-exit", "keep"], false, true),
        ];
        for (args, terminate, stays) in table {
            let signal = if terminate { "SIGTERM" } else { "SIGINT" };
            cases.case(format_args!("{signal} {args:?}"), || {
                let mut daemon = Daemon::start_with(lab, &entries, args)?;
                captured(lab, &pod, &server)?;
                let status = if terminate { daemon.terminate()? } else { daemon.interrupt()? };
                ensure!(status.success(), "it ended with {status}");
                if stays {
                    ensure!(pods(lab)? == 1, "no entry is left in PODS");
                    return refused(lab, &pod, &server);
                }
                ensure!(!lab.pins().exists(), "pins are left: {:?}", lab.pins().pins());
                direct(lab, &pod, &server)
            });
        }
        cases.finish()
    })
}

#[test]
fn a_connection_that_is_open_at_the_end_has_its_line() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start(lab, &[pod.entry("")])?;
        for terminate in [true, false] {
            let mut open = Connect::new(pod.place(), server.address(pod.gateway4)).session(lab)?;
            open.step("echo:1000")?;
            let status = if terminate { daemon.terminate()? } else { daemon.interrupt()? };
            ensure!(status.success(), "it ended with {status}");
            let line = daemon.access_log().of(&open.opened, "outbound")?;
            ensure!(line["bytes_sent"].as_u64() >= Some(1_000), "{line}");
            daemon.restart()?;
        }
        Ok(())
    })
}

#[test]
fn a_restart_adopts_what_is_wanted_and_purges_the_rest() -> Result<()> {
    lab(|lab| {
        let (a, b, c) = (lab.pod("a")?, lab.pod("b")?, lab.pod("c")?);
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start(lab, &[a.entry(""), b.entry("")])?;
        let answer = daemon.admin().post("/workloads", &c.entry(""))?;
        ensure!(answer.status == 200, "{answer:?}");
        daemon.kill()?;
        ensure!(pods(lab)? == 3, "the kill took an entry out");
        daemon.restart_with(&["--workload".to_owned(), a.entry("")])?;
        captured(lab, &a, &server).context("a is asked for again")?;
        direct(lab, &b, &server).context("b is not")?;
        captured(lab, &c, &server).context("c was asked for by the API")?;
        ensure!(pods(lab)? == 2, "PODS: {}", daemon.maps()?["PODS"]);
        daemon.kill()?;
        // Gone while nobody looked.
        drop(c);
        daemon.restart_with(&["--workload".to_owned(), a.entry("")])?;
        ensure!(pods(lab)? == 1, "PODS: {}", daemon.maps()?["PODS"]);
        ensure!(daemon.admin().workload("c")?.is_none(), "c is listed");
        Ok(())
    })
}

#[test]
fn connections_that_the_kill_cut_off_leave_no_flow() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start(lab, &[pod.entry("")])?;
        let mut cut = Connect::new(pod.place(), server.address(pod.gateway4)).session(lab)?;
        cut.step("echo:10")?;
        for _ in 0..3 {
            let load = load(lab, &pod, server.address(pod.gateway4))?;
            std::thread::sleep(Duration::from_millis(100));
            daemon.kill()?;
            std::thread::sleep(Duration::from_millis(50));
            drop(load);
            daemon.restart()?;
        }
        let answer = cut.attempt("echo:10")?;
        ensure!(answer["ok"] == false, "a carried connection outlived the daemon: {answer}");
        daemon.expect_no_flows()?;
        let report = connect(lab, &pod, &server)?;
        outbound_line(&daemon.access_log(), "a", &report, server.address(pod.gateway4)).map(drop)
    })
}

#[test]
fn the_workloads_own_addresses_are_followed() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let inside = lab.serve(pod.place())?;
        let daemon = Daemon::start(lab, &[pod.entry("")])?;
        let mut cases = Cases::new();
        for ip in ["10.66.0.1", "fd66::1"] {
            cases.case(ip, || {
                pod.netns.batch(&format!(
                    "addr add {ip} dev eth0 {}\n",
                    if ip.contains(':') { "nodad" } else { "" }
                ))?;
                let to = SocketAddr::new(ip.parse()?, inside.port);
                eventually("the new address is the workload's own", SOON, || {
                    let report = Connect::new(pod.place(), to).steps("addr").report(lab)?;
                    ensure!(report.ok() && report.server_peer()? == report.local()?, "{report:?}");
                    Ok(())
                })
            });
        }
        cases.finish()?;
        daemon.expect_no_flows()
    })
}

#[test]
fn a_namespace_is_enrolled_by_a_process_in_it() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let holder = lab.program("sleep", pod.place())?.arg("600").spawn()?;
        let by_process = format!("/proc/{}/ns/net", holder.pid());
        let entry = pod.entry("").replace(&*pod.netns.path().to_string_lossy(), &by_process);
        let daemon = Daemon::start(lab, &[])?;
        let answer = daemon.admin().post("/workloads", &entry)?;
        ensure!(answer.status == 200, "{answer:?}");
        captured(lab, &pod, &server)?;
        let again = daemon.admin().post("/workloads", &pod.entry_named("other", ""))?;
        ensure!(again.body.contains("enrolled already"), "one namespace, two workloads: {again:?}");
        captured(lab, &pod, &server)?;
        // As when a container ends: nothing but the process named the namespace for us.
        drop(holder);
        eventually("it is cleaned up", SOON, || {
            ensure!(daemon.admin().workload("a")?.is_none(), "still listed");
            Ok(())
        })
    })
}

#[test]
fn the_daemon_finds_a_cgroup_of_its_own() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start_with(lab, &[pod.entry("")], &["--proxy-cgroup", "own"])?;
        captured(lab, &pod, &server)?;
        let pid = daemon.process().pid();
        let own = shunt_tests::cgroup::mount()?.join(format!("shunt/proxy-{pid}"));
        ensure!(shunt_tests::cgroup::processes(&own) == [pid], "{}", own.display());
        daemon.interrupt()?;
        ensure!(!own.exists(), "{} is left", own.display());
        direct(lab, &pod, &server)
    })
}

#[test]
fn the_command_line_speaks_to_the_running_daemon() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let daemon = Daemon::start(lab, &[])?;
        let run_dir = daemon.run_dir().to_string_lossy().into_owned();
        let shunt = |args: &[&str]| {
            let all = [&["workload"], args, &["--run-dir", &run_dir]].concat();
            lab.shunt(&shunt_tests::Place::default())?.args(all).run()
        };
        shunt(&["add", &pod.entry("")])?;
        captured(lab, &pod, &server)?;
        let list = shunt(&["list"])?.stdout;
        ensure!(list.contains('a') && list.contains("ready"), "{list}");
        shunt(&["remove", "a"])?;
        direct(lab, &pod, &server)?;
        let stats = daemon.admin().ok("/stats")?;
        ensure!(stats.lines().any(|line| line.contains("downstream_cx_total")), "{stats}");
        Ok(())
    })
}
