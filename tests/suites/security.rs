//! What a workload cannot do to its interception, and whom the daemon refuses to trust.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::probe::Connect;
use shunt_tests::{Cases, Daemon, Lab, Place, Pod, lab};

use crate::common::outbound_line;

const NOBODY_WE_KNOW: u32 = 12_345;

/// Tries something in a place; it must fail with one of these.
fn denied(lab: &Lab, place: &Place, action: &[&str], errors: &[&str]) -> Result<()> {
    let answer = lab.probe(place)?.arg("try").args(action).json()?;
    let errno = answer["errno"].as_str().unwrap_or_default();
    ensure!(answer["ok"] == false && errors.contains(&errno), "expected {errors:?}: {answer}");
    Ok(())
}

/// The namespace that the daemon and this test run in. Not by way of process 1: a container's root may not look.
fn host_netns() -> String {
    format!("/proc/{}/ns/net", std::process::id())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn an_unprivileged_process_cannot_touch_its_interception() -> Result<()> {
    lab(|lab| {
        let (pod, other) = (lab.pod("a")?, lab.cgroup().child("other")?);
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start(lab, &[pod.entry("")])?;
        let user = pod.place().user(NOBODY_WE_KNOW);
        ensure!(!lab.pins().pins().is_empty(), "no pins under {}", lab.pins().path().display());
        let mut cases = Cases::new();
        state_is_out_of_reach(lab, &daemon, &user, &mut cases);
        for cgroup in [daemon.cgroup(), &other, lab.cgroup().path()] {
            let procs = text(&cgroup.join("cgroup.procs"));
            cases.case(format_args!("leave for {}", cgroup.display()), || {
                denied(lab, &user, &["write", &procs, "0"], &["EACCES", "EPERM"])
            });
        }
        impersonation(lab, &pod, &mut cases);
        daemon.kill()?;
        cases.case("with the daemon dead", || {
            denied(lab, &user, &["listen", "127.0.0.1:15001"], &["EPERM"])?;
            denied(lab, &user, &["listen", "127.0.0.1:15006"], &["EPERM"])?;
            denied(lab, &user, &["listen-mptcp", "0.0.0.0:15006"], &["EPERM"])?;
            let report = Connect::new(&user, server.address(pod.gateway4)).steps("addr").report(lab)?;
            report.expect_errno(&["ECONNREFUSED"])
        });
        cases.finish()
    })
}

/// Pins, maps, run directory, admin socket, the host's namespace.
fn state_is_out_of_reach(lab: &Lab, daemon: &Daemon<'_>, user: &Place, cases: &mut Cases) {
    for pin in &lab.pins().pins() {
        cases.case(format_args!("unlink {}", pin.display()), || {
            denied(lab, user, &["unlink", &text(pin)], &["EACCES", "EPERM"])
        });
    }
    for name in ["PODS", "RULES", "CIDRS", "LISTENERS"] {
        cases.case(format_args!("open {name}"), || {
            denied(lab, user, &["bpf-get", &text(&lab.pins().map(name)?)], &["EACCES", "EPERM"])
        });
    }
    let (socket, host) = (daemon.run_dir().join("admin.sock"), host_netns());
    let denials = [
        ("list", lab.pins().path()),
        ("list", daemon.run_dir()),
        ("unix", &socket),
        ("setns", Path::new(&host)),
    ];
    for (action, path) in denials {
        cases.case(format_args!("{action} {}", path.display()), || {
            denied(lab, user, &[action, &text(path)], &["EACCES", "EPERM"])
        });
    }
}

/// Nobody inside may listen where the proxy does, root included.
fn impersonation(lab: &Lab, pod: &Pod, cases: &mut Cases) {
    for uid in [NOBODY_WE_KNOW, 1_337, 0] {
        for address in ["0.0.0.0:15006", "127.0.0.1:15001", "[::]:15006", "[::]:15001"] {
            cases.case(format_args!("uid {uid} listens on {address}"), || {
                denied(lab, &pod.place().user(uid), &["listen", address], &["EPERM"])?;
                denied(lab, &pod.place().user(uid), &["listen-mptcp", address], &["EPERM"])
            });
        }
    }
}

#[test]
fn the_proxys_uid_alone_is_captured() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let daemon = Daemon::start(lab, &[pod.entry("")])?;
        let mut cases = Cases::new();
        cases.each_family("uid and gid 1337", |family| {
            let to = family.address(pod.gateway4, pod.gateway6, server.port);
            let report = Connect::new(&pod.place().user(1_337), to).steps("addr echo:10").run(lab)?;
            outbound_line(&daemon.access_log(), "a", &report, to).map(drop)
        });
        cases.finish()
    })
}

#[test]
fn the_listeners_themselves_are_no_destination() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let daemon = Daemon::start(lab, &[pod.entry("")])?;
        let mut cases = Cases::new();
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        for to in loopback.into_iter().flat_map(|ip| [15_001, 15_006].map(|port| SocketAddr::new(ip, port))) {
            cases.case(format_args!("inside, to {to}"), || {
                let mark = daemon.access_log().mark();
                let report = Connect::new(pod.place(), to).steps("echo:10").report(lab)?;
                ensure!(!report.ok(), "{report:?}");
                daemon.access_log().wait("the refusal", mark, Duration::from_secs(5), |line| {
                    line["connection_termination_details"] == "original_destination_is_listener"
                        && line["upstream_host"].is_null()
                })?;
                Ok(())
            });
        }
        for to in [
            (IpAddr::from(pod.v4), 15_001),
            (pod.v4.into(), 15_006),
            (pod.v6.into(), 15_001),
            (pod.v6.into(), 15_006),
        ] {
            let to = SocketAddr::from(to);
            for place in [lab.outside(), pod.place().clone()] {
                cases.case(format_args!("from {:?} to {to}", place.cgroup), || {
                    let report = Connect::new(&place, to).steps("echo:10").report(lab)?;
                    ensure!(!report.ok(), "{report:?}");
                    Ok(())
                });
            }
        }
        cases.case("no loop was made", || {
            let lines = daemon.access_log().lines();
            ensure!(lines.len() < 20, "{} connections", lines.len());
            daemon.expect_no_flows()
        });
        cases.finish()
    })
}

#[test]
fn an_untrusted_pin_root_is_refused() -> Result<()> {
    let mut cases = Cases::new();
    for (mode, uid) in [(0o755, 0), (0o777, 0), (0o700, NOBODY_WE_KNOW)] {
        cases.case(format_args!("mode {mode:o}, uid {uid}"), || {
            lab(|lab| {
                lab.pins().make_with_mode(mode, uid)?;
                let spawn = lab.shunt(&Place::default())?.arg("run").arg("--pin-root").arg(lab.pins().path());
                let out = spawn
                    .arg("--run-dir")
                    .arg(lab.dir().join("run"))
                    .limit(Duration::from_secs(15))
                    .output()?;
                ensure!(!out.status.success(), "it ran");
                let path = text(lab.pins().path());
                ensure!(
                    out.stderr.contains(&path) && out.stderr.contains(&format!("{mode:04o}")),
                    "{}",
                    out.stderr
                );
                ensure!(lab.pins().pins().is_empty(), "it pinned there: {:?}", lab.pins().pins());
                Ok(())
            })
        });
    }
    cases.finish()
}

#[test]
fn the_hosts_namespace_is_refused() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let host = pod.entry("").replace(&text(&pod.netns.path()), &host_netns());
        let daemon = Daemon::start(lab, &[])?;
        let answer = daemon.admin().post("/workloads", &host)?;
        ensure!(answer.body.contains("host"), "{answer:?}");
        let ready = daemon.admin().get("/ready")?;
        ensure!(ready.status == 503 && ready.body.contains("host"), "{ready:?}");
        ensure!(daemon.maps()?["PODS"].as_array().is_some_and(Vec::is_empty), "{}", daemon.maps()?["PODS"]);
        let spawn = lab.shunt(&Place::default())?.args(["attach", "--netns", &host_netns(), "--cgroup"]);
        let spawn = spawn.arg(&pod.cgroup).arg("--pin-root").arg(lab.pins().path());
        let out = spawn.arg("--run-dir").arg(daemon.run_dir()).output()?;
        ensure!(!out.status.success() && out.stderr.contains("host"), "{}", out.stderr);
        ensure!(daemon.maps()?["PODS"].as_array().is_some_and(Vec::is_empty), "{}", daemon.maps()?["PODS"]);
        Ok(())
    })
}
