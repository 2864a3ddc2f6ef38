//! Which connections are captured: for each rule, what the kernel did, which counter it moved, and what
//! `policy explain` says of it, all three alike. Each policy replaces the one before on the running workload.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::backend::Backend;
use shunt_tests::cases::canonical;
use shunt_tests::daemon::counter;
use shunt_tests::probe::Connect;
use shunt_tests::{Cases, Daemon, Family, Lab, Pod, PodOptions, eventually, lab};

/// Ports of servers, the same inside and outside.
const PLAIN: u16 = 9_000;
const LISTED: u16 = 9_001;

struct World<'l> {
    lab: &'l Lab,
    pod: Pod,
    daemon: Daemon<'l>,
    _servers: Vec<Backend>,
}

/// A connection of the workload's, by whom, and the rule that decides it.
struct Outbound {
    to: SocketAddr,
    user: Option<(u32, u32)>,
    rule: &'static str,
    captured: bool,
}

impl fmt::Display for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.rule, self.to)?;
        self.user.map_or(Ok(()), |(uid, gid)| write!(f, " by {uid}:{gid}"))
    }
}

fn out(to: SocketAddr, rule: &'static str, captured: bool) -> Outbound {
    Outbound { to, user: None, rule, captured }
}

impl<'l> World<'l> {
    fn new(lab: &'l Lab) -> Result<Self> {
        let pod = lab.pod_with("a", PodOptions { second_link: true, ..PodOptions::default() })?;
        // Networks behind the gateway, to be told apart by range.
        let far =
            ["10.88.0.1/32", "10.88.1.1/32", "10.88.1.2/32", "fd88::1/128", "fd88:1::1/128", "fd88:1::2/128"];
        let lines: String = far.iter().map(|ip| format!("addr add {ip} dev lo\n")).collect();
        lab.outside_netns().batch(&lines)?;
        let mut servers = Vec::new();
        for port in [PLAIN, LISTED] {
            let listen = format!("0.0.0.0:{port}");
            servers.push(Backend::start(lab, &lab.outside(), &["--listen", &listen])?);
            servers.push(Backend::start(lab, pod.place(), &["--listen", &listen])?);
        }
        let daemon = Daemon::start(lab, &[])?;
        Ok(Self { lab, pod, daemon, _servers: servers })
    }

    /// Changes the policy while the workload runs.
    fn policy(&self, flags: &str) -> Result<()> {
        let answer = self.daemon.admin().post("/workloads", &self.pod.entry(flags))?;
        ensure!(answer.status == 200, "policy {flags}: {answer:?}");
        Ok(())
    }

    fn gateway(&self, family: Family, port: u16) -> SocketAddr {
        family.address(self.pod.gateway4, self.pod.gateway6, port)
    }

    fn second_gateway(&self, family: Family, port: u16) -> SocketAddr {
        family.address(self.pod.second_gateway4(), self.pod.second_gateway6(), port)
    }

    fn own(&self, family: Family, port: u16) -> SocketAddr {
        family.address(self.pod.v4, self.pod.v6, port)
    }

    /// Connects, and compares the path taken, the counter moved and the explanation.
    fn check(&self, case: &Outbound) -> Result<()> {
        let place = match case.user {
            Some((uid, gid)) => self.pod.place().user_group(uid, gid),
            None => self.pod.place().clone(),
        };
        let before = counter(&self.daemon.maps()?, case.rule)?;
        let report = Connect::new(&place, case.to).steps("addr").run(self.lab)?;
        let after = self.daemon.maps()?;
        let direct = report.server_peer()? == report.local()?;
        ensure!(direct != case.captured, "captured: {}, expected {}: {report:?}", !direct, case.captured);
        let moved = counter(&after, case.rule)? - before;
        ensure!(moved == 1, "the counter moved by {moved}, the others are {}", after["COUNTERS"]);
        let (uid, gid) = case.user.unwrap_or((0, 0));
        let (to, uid, gid) = (case.to.to_string(), uid.to_string(), gid.to_string());
        let text = self.daemon.explain("a", &["--to", &to, "--uid", &uid, "--gid", &gid])?;
        explains(&text, case.rule)
    }

    /// As [`World::check`] for a connection from outside.
    fn check_inbound(&self, to: SocketAddr, rule: &str, captured: bool, explained: bool) -> Result<()> {
        let before = counter(&self.daemon.maps()?, rule)?;
        let report = Connect::new(&self.lab.outside(), to).steps("addr").run(self.lab)?;
        let moved = self.daemon.counter(rule)? - before;
        let direct = report.server_peer()? == report.local()?;
        ensure!(direct != captured, "captured: {}, expected {captured}: {report:?}", !direct);
        ensure!(moved >= 1, "the counter did not move");
        if !explained {
            return Ok(());
        }
        let (from, port) = (report.local()?.ip().to_string(), to.port().to_string());
        explains(&self.daemon.explain("a", &["--from", &from, "--port", &port])?, rule)
    }
}

fn explains(text: &str, rule: &str) -> Result<()> {
    ensure!(text.contains(&format!("rule {rule}:")), "explain says: {text}");
    Ok(())
}

fn far(family: Family, third: u8, last: u8) -> Result<SocketAddr> {
    let v4 = [10, 88, third, last].into();
    let v6 = format!("fd88:{third:x}::{last:x}").parse().context("an address")?;
    Ok(family.address(v4, v6, PLAIN))
}

#[test]
fn kernel_counters_and_explain_agree() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab)?;
        let mut cases = Cases::new();
        exclusions(&w, &mut cases)?;
        inclusions(&w, &mut cases)?;
        switched_off(&w, &mut cases)?;
        cases.case("nothing is left in FLOWS", || w.daemon.expect_no_flows());
        cases.finish()
    })
}

fn exclusions(w: &World<'_>, cases: &mut Cases) -> Result<()> {
    w.policy(
        "-o 9001 -x 10.88.0.0/24,fd88:0::/32 -c eth1 -d 9001 --istio-outbound-owner-groups-exclude 777",
    )?;
    let lo = |family: Family| family.address([127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into(), PLAIN);
    for family in Family::ALL {
        let mut table = vec![
            out(w.gateway(family, PLAIN), "out_all", true),
            out(far(family, 1, 1)?, "out_all", true),
            out(w.gateway(family, LISTED), "out_port_excluded", false),
            out(far(family, 0, 1)?, "cidr_excluded", false),
            out(w.second_gateway(family, PLAIN), "out_interface", false),
            out(lo(family), "loopback", false),
            out(w.own(family, PLAIN), "own_address", false),
        ];
        let by = |user, rule, captured| Outbound {
            to: w.gateway(family, PLAIN),
            user: Some(user),
            rule,
            captured,
        };
        table.push(by((1_000, 777), "group_excluded", false));
        table.push(by((1_000, 1_000), "out_all", true));
        // The daemon's cgroup is known, so a uid alone is no proxy.
        table.push(by((1_337, 1_337), "out_all", true));
        for case in table {
            cases.case(format_args!("{family}: {case}"), || w.check(&case));
        }
        let own = w.own(family, PLAIN);
        cases.case(format_args!("{family}: in_all"), || w.check_inbound(own, "in_all", true, true));
        let own = w.own(family, LISTED);
        cases.case(format_args!("{family}: in_port_excluded"), || {
            w.check_inbound(own, "in_port_excluded", false, true)
        });
    }
    by_interface(w, cases);
    Ok(())
}

/// By eth1, whose address is the one after its gateway's. What interface it will be, explain cannot know.
fn by_interface(w: &World<'_>, cases: &mut Cases) {
    let [a, b, c, _] = w.pod.second_gateway4().octets();
    let own = SocketAddr::from(([a, b, c, 2], PLAIN));
    cases.case("in_interface", || w.check_inbound(own, "in_interface", false, false));
}

fn inclusions(w: &World<'_>, cases: &mut Cases) -> Result<()> {
    w.policy("-i 10.88.1.0/24,fd88:1::/64 -x 10.88.1.2/32,fd88:1::2/128 -q 9001 -b 9001 -d ''")?;
    for family in Family::ALL {
        let table = [
            out(far(family, 1, 1)?, "cidr_included", true),
            out(far(family, 1, 2)?, "cidr_excluded", false),
            out(SocketAddr::new(far(family, 1, 2)?.ip(), LISTED), "cidr_excluded", false),
            out(w.gateway(family, LISTED), "out_port_included", true),
            out(w.gateway(family, PLAIN), "cidr_not_included", false),
        ];
        for case in table {
            cases.case(format_args!("{family}: {case}"), || w.check(&case));
        }
        for (port, rule, captured) in
            [(LISTED, "in_port_included", true), (PLAIN, "in_port_not_included", false)]
        {
            let own = w.own(family, port);
            cases.case(format_args!("{family}: {rule}"), || w.check_inbound(own, rule, captured, true));
        }
    }
    w.policy("--istio-outbound-owner-groups 777")?;
    for (gid, rule, captured) in [(777, "out_all", true), (778, "group_not_included", false)] {
        let case = Outbound { to: w.gateway(Family::V4, PLAIN), user: Some((1_000, gid)), rule, captured };
        cases.case(format_args!("group {gid}: {case}"), || w.check(&case));
    }
    Ok(())
}

fn switched_off(w: &World<'_>, cases: &mut Cases) -> Result<()> {
    w.policy("-i '' -b ''")?;
    for family in Family::ALL {
        let case = out(w.gateway(family, PLAIN), "out_off", false);
        cases.case(format_args!("{family}: {case}"), || w.check(&case));
        let own = w.own(family, PLAIN);
        cases.case(format_args!("{family}: no inbound capture"), || {
            let report = Connect::new(&w.lab.outside(), own).steps("addr").run(w.lab)?;
            ensure!(report.server_peer()? == report.local()?, "{report:?}");
            Ok(())
        });
    }
    Ok(())
}

#[test]
fn a_live_change_leaves_open_connections_alone() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab)?;
        w.policy("")?;
        let to = w.gateway(Family::V4, PLAIN);
        let mut carried = Connect::new(w.pod.place(), to).session(lab)?;
        ensure!(carried.opened.redirected()?, "{:?}", carried.opened);
        w.policy("-o 9000")?;
        let mut direct = Connect::new(w.pod.place(), to).session(lab)?;
        ensure!(!direct.opened.redirected()?, "{:?}", direct.opened);
        w.policy("-p 16001 -z 16006")?;
        let mut moved = Connect::new(w.pod.place(), to).session(lab)?;
        ensure!(moved.opened.redirected()?, "{:?}", moved.opened);
        ensure!(moved.opened.peer()? == canonical(to), "{:?}", moved.opened);
        let mut cases = Cases::new();
        for (name, session) in [("carried", &mut carried), ("direct", &mut direct), ("moved", &mut moved)] {
            cases.case(name, || session.step("echo:100000").map(drop));
        }
        cases.case("other ports, inbound", || {
            let own = w.own(Family::V4, PLAIN);
            let report = Connect::new(&lab.outside(), own).steps("addr").run(lab)?;
            ensure!(report.server_peer()? != report.local()?, "{report:?}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn a_flip_under_load_loses_nothing() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab)?;
        w.policy("")?;
        let to = w.gateway(Family::V4, PLAIN).to_string();
        let spawn = lab.probe(w.pod.place())?.args(["load", "--interval", "0", "--to", &to]).with_stdin();
        let mut load = spawn.spawn()?;
        load.wait_event("start", 0, Duration::from_secs(5), |event| Some(event.clone()))?;
        let before = w.daemon.access_log().mark();
        for round in 0..20 {
            // Long lists: a hook that saw half of one would let connections through.
            let ports: Vec<String> = (20_000..20_200).map(|port| (port + round).to_string()).collect();
            w.policy(&format!("-o {} -x 192.0.2.{round}/32", ports.join(",")))?;
            std::thread::sleep(Duration::from_millis(50));
        }
        let tally = load.finish()?.json()?;
        let ok = tally["ok"].as_u64().unwrap_or(0);
        ensure!(tally["errors"] == serde_json::json!({}) && tally["direct"] == 0 && ok > 100, "{tally}");
        let lines = w.daemon.access_log().lines().split_off(before);
        let wrong: Vec<_> = lines.iter().filter(|l| l["original_dst"] != to.as_str()).take(3).collect();
        ensure!(wrong.is_empty(), "{wrong:?}");
        // The replaced policies' tables are dropped after a while.
        eventually("one policy's rules are left", Duration::from_secs(5), || {
            let rules = w.daemon.maps()?["RULES"].as_array().map_or(0, Vec::len);
            ensure!(rules < 300, "{rules} rules");
            Ok(())
        })?;
        w.daemon.expect_no_flows()
    })
}

#[test]
fn a_change_of_listeners_under_load_lets_nothing_past() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab)?;
        w.policy("")?;
        let to = w.gateway(Family::V4, PLAIN).to_string();
        let spawn = lab.probe(w.pod.place())?.args(["load", "--interval", "0", "--to", &to]).with_stdin();
        let mut load = spawn.spawn()?;
        load.wait_event("start", 0, Duration::from_secs(5), |event| Some(event.clone()))?;
        let table =
            ["-b ''", "", "-p 16001", "-p 16001 -z 16006", "-z 16006", "-b ''", "--wait-for-proxy=5s", ""];
        for flags in table {
            w.policy(flags)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        let tally = load.finish()?.json()?;
        ensure!(tally["direct"] == 0, "went past the proxy: {tally}");
        let errors = tally["errors"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64());
        // Two at a time, and a listener that closes may have one in its queue.
        ensure!(errors.sum::<u64>() <= 2 * table.len() as u64, "{tally}");
        Ok(())
    })
}

#[test]
fn a_wrong_policy_is_refused_with_its_place_and_changes_nothing() -> Result<()> {
    lab(|lab| {
        let w = World::new(lab)?;
        w.policy("-o 9001")?;
        for (flags, word) in [("-o 99999", "99999"), ("--no-such-flag", "no-such-flag"), ("-k eth0", "-k")] {
            let answer = w.daemon.admin().post("/workloads", &w.pod.entry(flags))?;
            ensure!(answer.status == 400 && answer.body.contains(word), "{flags}: {answer:?}");
        }
        let case = out(w.gateway(Family::V4, LISTED), "out_port_excluded", false);
        w.check(&case)
    })
}
