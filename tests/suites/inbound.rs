//! Connections to a workload: steered to the proxy with their source intact, passed on from 127.0.0.6 and ::6.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::backend::Backend;
use shunt_tests::cases::canonical;
use shunt_tests::probe::{Connect, Report};
use shunt_tests::{Cases, Daemon, Family, Lab, Pod, PodOptions, lab};

use crate::common::{Ends, ended_well, inbound_line, is_passthrough_source, outbound_line};

/// A workload with a server in it, the daemon that captures it, clients outside.
struct World<'l> {
    lab: &'l Lab,
    pod: Pod,
    backend: Backend,
    daemon: Daemon<'l>,
}

impl<'l> World<'l> {
    fn new(lab: &'l Lab, policy: &str, options: PodOptions) -> Result<Self> {
        let pod = lab.pod_with("a", options)?;
        let backend = lab.serve(pod.place())?;
        let daemon = Daemon::start(lab, &[pod.entry(policy)])?;
        Ok(Self { lab, pod, backend, daemon })
    }

    fn to(&self, family: Family) -> SocketAddr {
        family.address(self.pod.v4, self.pod.v6, self.backend.port)
    }

    fn connect(&self, family: Family) -> Connect {
        Connect::new(&self.lab.outside(), self.to(family))
    }

    /// To a server on a fixed port inside.
    fn connect_to_port(&self, port: u16, family: Family) -> Connect {
        Connect::new(&self.lab.outside(), SocketAddr::new(self.to(family).ip(), port))
    }
}

#[test]
fn every_kind_of_connection_is_steered_and_keeps_its_source() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "", PodOptions::default())?;
        let mut cases = Cases::new();
        for options in ["", "--nonblock", "--tfo sendto", "--tfo connect", "--exec", "--mptcp", "--device p1"]
        {
            cases.each_family(format_args!("connect {options}"), |family| {
                // As a kubelet's probe: from the node, to a port that the application listens on.
                let report = w.connect(family).with(options).steps("addr echo:5000").run(lab)?;
                ensure!(is_passthrough_source(report.server_peer()?.ip()), "{report:?}");
                ensure!(report.peer()? == canonical(w.to(family)), "{report:?}");
                ended_well(&inbound_line(&w.daemon.access_log(), "a", &report, w.to(family))?, 5_000)
            });
        }
        cases.finish()
    })
}

#[test]
fn both_ends_of_a_connection_end_as_they_are_told() -> Result<()> {
    lab(|lab| {
        let mut w = World::new(lab, "", PodOptions::default())?;
        let mut cases = Cases::new();
        for family in Family::ALL {
            let (to, log) = (w.to(family), w.daemon.access_log());
            let line = |report: &Report| inbound_line(&log, "a", report, to);
            let (client, server) = (&lab.outside(), &mut w.backend);
            Ends { lab, client, server, to, line: &line }.check(&mut cases, family);
            cases.case(format_args!("nobody listens, {family}"), || {
                let report = w.connect_to_port(1, family).steps("echo:10").report(lab)?;
                report.expect_errno(&["ECONNREFUSED", "ECONNRESET", "EPIPE"])
            });
        }
        cases.case("a thousand at once", || {
            w.connect(Family::V4).with("--parallel 1000").steps("echo:20000 hash:10000").run(lab).map(drop)
        });
        cases.case("three hundred at once, v6", || {
            w.connect(Family::V6).with("--parallel 300").steps("echo:20000 hash:10000").run(lab).map(drop)
        });
        cases.finish()
    })
}

#[test]
fn a_slow_reader_stops_the_sender() -> Result<()> {
    lab(|lab| {
        let mut w = World::new(lab, "", PodOptions::default())?;
        w.connect(Family::V4).steps("hash:1000000").run(lab)?;
        let before = w.daemon.process().rss()?;
        let mut client = w.connect(Family::V4).session(lab)?;
        // The system's receive buffers alone may hold 33 MB on each of the two hops.
        let report = client.step("push:300000000:500")?;
        ensure!(report["blocked_at"].as_u64().is_some_and(|at| at < 150_000_000), "{report}");
        let growth = w.daemon.process().rss()?.saturating_sub(before);
        ensure!(growth < 32 << 20, "the daemon grew by {growth} bytes");
        Ok(())
    })
}

#[test]
fn what_is_not_captured_arrives_directly() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "-d 15020,7001", PodOptions::default())?;
        let mut servers = Vec::new();
        for port in ["7001", "15020", "15008", "7002"] {
            let listen = format!("0.0.0.0:{port}");
            servers.push(Backend::start(lab, w.pod.place(), &["--listen", &listen])?);
        }
        let mut cases = Cases::new();
        for (port, captured) in [(7_001, false), (15_020, false), (15_008, false), (7_002, true)] {
            cases.each_family(format_args!("port {port}"), |family| {
                let report = w.connect_to_port(port, family).steps("addr echo:100").run(lab)?;
                let peer = report.server_peer()?;
                ensure!((peer == report.local()?) != captured, "the server saw {peer}: {report:?}");
                ensure!(is_passthrough_source(peer.ip()) == captured, "the server saw {peer}: {report:?}");
                Ok(())
            });
        }
        cases.each_family("the workload to its own address", |family| {
            let report = Connect::new(w.pod.place(), w.to(family)).steps("addr echo:100").run(lab)?;
            ensure!(report.server_peer()? == report.local()?, "{report:?}");
            std::thread::sleep(Duration::from_millis(50));
            let carried = w.daemon.access_log().has(report.local()?);
            ensure!(!carried, "a pod-local connection was carried: {report:?}");
            Ok(())
        });
        cases.each_family("the workload to loopback", |family| {
            let to = family.address([127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into(), w.backend.port);
            let report = Connect::new(w.pod.place(), to).steps("addr echo:100").run(lab)?;
            ensure!(report.server_peer()? == report.local()?, "{report:?}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn only_listed_ports_are_captured() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "-b 7001", PodOptions::default())?;
        let _listed = Backend::start(lab, w.pod.place(), &["--listen", "0.0.0.0:7001"])?;
        let mut cases = Cases::new();
        cases.each_family("listed", |family| {
            let report = w.connect_to_port(7_001, family).steps("addr").run(lab)?;
            ensure!(is_passthrough_source(report.server_peer()?.ip()), "{report:?}");
            Ok(())
        });
        cases.each_family("not listed", |family| {
            let report = w.connect(family).steps("addr").run(lab)?;
            ensure!(report.server_peer()? == report.local()?, "{report:?}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn a_namespace_without_ipv6_works() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab, "", PodOptions { ipv6: false, ..PodOptions::default() })?;
        let report = w.connect(Family::V4).steps("addr echo:5000").run(lab)?;
        inbound_line(&w.daemon.access_log(), "a", &report, w.to(Family::V4)).map(drop)
    })
}

#[test]
fn one_daemon_carries_both_ends_between_two_workloads() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.pod("a")?, lab.pod("b")?);
        lab.outside_netns().sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let server = lab.serve(b.place())?;
        let daemon = Daemon::start(lab, &[a.entry(""), b.entry("")])?;
        let mut cases = Cases::new();
        cases.each_family("a to b", |family| {
            let to = family.address(b.v4, b.v6, server.port);
            let report = Connect::new(a.place(), to).steps("addr echo:5000 hash:70000").run(lab)?;
            let out = outbound_line(&daemon.access_log(), "a", &report, to)?;
            // The second hop's client is the first hop's upstream socket.
            let source = crate::common::address(&out, "upstream_local_address")?;
            let inbound = daemon.access_log().from(source, "inbound")?;
            ensure!(inbound["workload"] == "b", "{inbound}");
            ensure!(is_passthrough_source(report.server_peer()?.ip()), "{report:?}");
            ended_well(&inbound, 5_000)
        });
        cases.case("nothing is left in FLOWS", || daemon.expect_no_flows());
        cases.finish()
    })
}
