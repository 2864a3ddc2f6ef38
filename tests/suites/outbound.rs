//! Connections that a workload makes: every kind of connect, carried to where it was going, bytes and ends intact.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::backend::Backend;
use shunt_tests::ports::free;
use shunt_tests::probe::{Connect, Report};
use shunt_tests::{Cases, Daemon, Family, Lab, Pod, PodOptions, eventually, lab};

use crate::common::{Ends, ended_well, outbound_line};

/// A workload, the daemon that captures it, and a server outside.
struct World<'l> {
    pod: Pod,
    backend: Backend,
    daemon: Daemon<'l>,
}

impl<'l> World<'l> {
    fn new(lab: &'l Lab, policy: &str) -> Result<Self> {
        Self::with(lab, policy, PodOptions::default())
    }

    fn with(lab: &'l Lab, policy: &str, options: PodOptions) -> Result<Self> {
        let pod = lab.pod_with("a", options)?;
        let backend = lab.serve(&lab.outside())?;
        let daemon = Daemon::start(lab, &[pod.entry(policy)])?;
        Ok(Self { pod, backend, daemon })
    }

    fn to(&self, family: Family) -> SocketAddr {
        family.address(self.pod.gateway4, self.pod.gateway6, self.backend.port)
    }

    fn connect(&self, family: Family) -> Connect {
        Connect::new(self.pod.place(), self.to(family))
    }
}

#[test]
fn every_kind_of_connect_is_carried() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "")?;
        let mut cases = Cases::new();
        for options in ["", "--nonblock", "--tfo sendto", "--tfo connect", "--exec", "--mptcp"] {
            cases.each_family(format_args!("connect {options}"), |family| {
                let to = w.to(family);
                let report = w.connect(family).with(options).steps("addr echo:5000").run(lab)?;
                ensure!(report.redirected()?, "went past the proxy: {report:?}");
                let source: std::net::IpAddr =
                    if family == Family::V6 { w.pod.v6.into() } else { w.pod.v4.into() };
                ensure!(report.server_peer()?.ip() == source, "not from the workload's address: {report:?}");
                // An MPTCP socket's getpeername is not of the subflow's hook.
                if options != "--mptcp" {
                    ensure!(report.peer()? == shunt_tests::cases::canonical(to), "getpeername: {report:?}");
                }
                ended_well(&outbound_line(&w.daemon.access_log(), "a", &report, to)?, 5_000)
            });
        }
        cases.each_family("bound to the workload's address", |family| {
            let ip = family.address(w.pod.v4, w.pod.v6, 0).ip();
            let report = w.connect(family).with(&format!("--bind {ip}")).steps("addr echo:5000").run(lab)?;
            ended_well(&outbound_line(&w.daemon.access_log(), "a", &report, w.to(family))?, 5_000)
        });
        cases.each_family("SO_BINDTODEVICE is no way past the proxy", |family| {
            let report = w.connect(family).with("--device eth0").steps("addr echo:5000").run(lab)?;
            ensure!(report.redirected()?, "went past the proxy: {report:?}");
            ended_well(&outbound_line(&w.daemon.access_log(), "a", &report, w.to(family))?, 5_000)
        });
        cases.each_family("SO_BINDTODEVICE without the capability to undo it is refused", |family| {
            let connect = Connect::new(&w.pod.place().user(12_345), w.to(family)).with("--device eth0");
            connect.steps("echo:5000").report(lab)?.expect_errno(&["EPERM"])
        });
        cases.case("nothing is left in FLOWS", || w.daemon.expect_no_flows());
        cases.finish()
    })
}

#[test]
fn fast_open_data_in_the_syn_finds_its_destination() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "")?;
        // Client and server without cookies, on every listener: the daemon's accepts before the handshake ends.
        w.pod.netns.sysctl(&[("net/ipv4/tcp_fastopen", "1543")])?;
        let mut cases = Cases::new();
        for mode in ["sendto", "connect"] {
            cases.each_family(mode, |family| {
                let options = format!("--tfo {mode} --parallel 20");
                w.connect(family).with(&options).steps("echo:3000").run(lab)?;
                let report = w.connect(family).with(&format!("--tfo {mode}")).steps("echo:3000").run(lab)?;
                ended_well(&outbound_line(&w.daemon.access_log(), "a", &report, w.to(family))?, 3_000)
            });
        }
        cases.case("nothing is left in FLOWS", || w.daemon.expect_no_flows());
        cases.finish()
    })
}

#[test]
fn both_ends_of_a_connection_end_as_they_are_told() -> Result<()> {
    lab(|lab| {
        let mut w = World::new(lab, "")?;
        let mut cases = Cases::new();
        for family in Family::ALL {
            let (to, log) = (w.to(family), w.daemon.access_log());
            let line = |report: &Report| outbound_line(&log, "a", report, to);
            let (client, server) = (w.pod.place(), &mut w.backend);
            Ends { lab, client, server, to, line: &line }.check(&mut cases, family);
        }
        cases.case("nothing is left in FLOWS", || w.daemon.expect_no_flows());
        cases.finish()
    })
}

#[test]
fn a_thousand_at_once_keep_their_bytes_apart() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "")?;
        let mut cases = Cases::new();
        for (family, count) in [(Family::V4, 1_000), (Family::V6, 1_000), (Family::Mapped, 300)] {
            cases.case(family, || {
                w.connect(family)
                    .with(&format!("--parallel {count}"))
                    .steps("echo:20000 hash:10000")
                    .run(lab)?;
                eventually("their lines", Duration::from_secs(10), || {
                    let to = shunt_tests::cases::canonical(w.to(family)).to_string();
                    let lines = w.daemon.access_log().lines();
                    let n = lines.iter().filter(|l| l["original_dst"] == to.as_str()).count();
                    ensure!(n >= count, "{n} of {count} lines");
                    Ok(())
                })
            });
        }
        cases.case("nothing is left in FLOWS", || w.daemon.expect_no_flows());
        cases.finish()
    })
}

/// Enough to be seen in the daemon's memory, had it been kept there.
const FLOOD: u64 = 200_000_000;
const GROWTH: u64 = 32 << 20;

#[test]
fn a_slow_reader_stops_the_sender_and_costs_no_memory() -> Result<()> {
    lab(|lab| {
        let mut w = World::new(lab, "")?;
        w.connect(Family::V4).steps("hash:1000000").run(lab)?;
        let before = w.daemon.process().rss()?;
        let mut cases = Cases::new();
        cases.case("the server reads late", || {
            let report = w.connect(Family::V4).steps(&format!("push:{FLOOD}:500")).run(lab)?;
            blocked(&report.0["steps"][0]["blocked_at"])
        });
        cases.case("the client reads late", || {
            let mark = w.backend.mark();
            w.connect(Family::V6).steps(&format!("pull:{FLOOD}:500")).run(lab)?;
            blocked(&w.backend.ended(mark, "pull")?["blocked_at"])
        });
        let peak = peak_rss(w.daemon.process().pid())?;
        cases.case("the daemon's memory", || {
            ensure!(peak.saturating_sub(before) < GROWTH, "from {before} to {peak} bytes");
            Ok(())
        });
        cases.finish()
    })
}

fn blocked(at: &serde_json::Value) -> Result<()> {
    ensure!(at.as_u64().is_some_and(|at| at < FLOOD / 4), "the sender was not held back: {at}");
    Ok(())
}

fn peak_rss(pid: i32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

#[test]
fn what_cannot_be_reached_fails_for_the_client_and_is_logged() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "")?;
        let mut cases = Cases::new();
        cases.each_family("refused", |family| {
            let to = SocketAddr::new(w.to(family).ip(), 1);
            let report = Connect::new(w.pod.place(), to).steps("echo:10").report(lab)?;
            report.expect_errno(&["ECONNREFUSED", "ECONNRESET", "EPIPE"])?;
            let to = shunt_tests::cases::canonical(to).to_string();
            let refused = |line: &serde_json::Value| line["original_dst"] == to.as_str();
            let line = w.daemon.access_log().wait(&to, 0, Duration::from_secs(5), refused)?;
            ensure!(line["response_flags"] == "UF,URX", "{line}");
            ensure!(line["connection_termination_details"] == "upstream_connect_refused", "{line}");
            Ok(())
        });
        cases.each_family("a socket used again shows its new peer", |family| {
            // Captured at first, then loopback, which is not: what the first connect left must not speak for it.
            let server = lab.serve(w.pod.place())?;
            let own =
                family.address(std::net::Ipv4Addr::LOCALHOST, std::net::Ipv6Addr::LOCALHOST, server.port);
            let first = format!("--first {}", w.to(family));
            let report = Connect::new(w.pod.place(), own).with(&first).steps("addr").run(lab)?;
            ensure!(report.peer()? == shunt_tests::cases::canonical(own), "{report:?}");
            let back = w.connect(family).with(&format!("--first {own}")).steps("addr echo:10").run(lab)?;
            outbound_line(&w.daemon.access_log(), "a", &back, w.to(family)).map(drop)
        });
        cases.each_family("a socket used again after a refused connect", |family| {
            let first = SocketAddr::new(w.to(family).ip(), 1);
            let report =
                w.connect(family).with(&format!("--first {first}")).steps("addr echo:10").run(lab)?;
            outbound_line(&w.daemon.access_log(), "a", &report, w.to(family)).map(drop)
        });
        cases.case("nothing is left in FLOWS", || w.daemon.expect_no_flows());
        cases.finish()
    })
}

#[test]
fn registry_only_sends_unknown_destinations_to_the_black_hole() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "--outbound-traffic-policy REGISTRY_ONLY")?;
        let mut cases = Cases::new();
        cases.each_family("refused", |family| {
            let mark = w.daemon.access_log().mark();
            let report = w.connect(family).steps("echo:10").report(lab)?;
            ensure!(!report.ok(), "{report:?}");
            let to = shunt_tests::cases::canonical(w.to(family)).to_string();
            let wanted = |line: &serde_json::Value| line["original_dst"] == to.as_str();
            let line = w.daemon.access_log().wait(&to, mark, Duration::from_secs(5), wanted)?;
            ensure!(
                line["upstream_cluster"] == "BlackHoleCluster" && line["response_flags"] == "UH",
                "{line}"
            );
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn a_namespace_without_ipv6_works() -> Result<()> {
    lab(|lab| {
        let w = World::with(lab, "", PodOptions { ipv6: false, ..PodOptions::default() })?;
        let mut cases = Cases::new();
        for family in [Family::V4, Family::Mapped] {
            cases.case(family, || {
                let report = w.connect(family).steps("addr echo:5000").run(lab)?;
                outbound_line(&w.daemon.access_log(), "a", &report, w.to(family)).map(drop)
            });
        }
        cases.case("v6 fails", || {
            let report = w.connect(Family::V6).steps("echo:10").report(lab)?;
            ensure!(!report.ok(), "{report:?}");
            Ok(())
        });
        cases.finish()
    })
}

/// Also where its port was left to the kernel.
#[test]
fn the_bootstraps_admin_is_no_destination() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let (file, told) = (lab.dir().join("envoy.yaml"), lab.dir().join("admin"));
        std::fs::write(
            &file,
            "admin: {address: {socket_address: {address: 0.0.0.0, port_value: 0}}}\nnode: {id: a}\n",
        )?;
        let (file, path) = (file.to_string_lossy(), told.to_string_lossy());
        let daemon =
            Daemon::start_with(lab, &[pod.entry("")], &["-c", &file, "--admin-address-path", &path])?;
        let admin: SocketAddr = std::fs::read_to_string(&told)?.trim().parse()?;
        let report =
            Connect::new(pod.place(), (pod.gateway4, admin.port()).into()).steps("echo:10").report(lab)?;
        ensure!(!report.ok(), "{report:?}");
        daemon.access_log().wait("the refusal", 0, Duration::from_secs(5), |line| {
            line["connection_termination_details"] == "original_destination_is_admin"
        })?;
        Ok(())
    })
}

#[test]
fn the_admin_address_is_no_destination() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let port = free()?.port();
        let admin = format!("0.0.0.0:{port}");
        let daemon = Daemon::start_with(lab, &[pod.entry("")], &["--admin-address", &admin])?;
        // A server there shows that nothing gets through.
        let _server = Backend::start(lab, &lab.outside(), &["--listen", &admin])?;
        let report = Connect::new(pod.place(), (pod.gateway4, port).into()).steps("echo:10").report(lab)?;
        ensure!(!report.ok(), "{report:?}");
        daemon.access_log().wait("the refusal", 0, Duration::from_secs(5), |line| {
            line["connection_termination_details"] == "original_destination_is_admin"
        })?;
        Ok(())
    })
}
