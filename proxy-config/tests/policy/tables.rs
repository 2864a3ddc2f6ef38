//! Each flag by the verdict that it makes.

use proxy_common::verdict::{self, Action, Arrival, Connect, Rule, Verdict};
use proxy_common::{AF_INET, flag};
use proxy_config::policy::{Compiled, CompiledTables, Environment, compile};

use crate::world::{APP, OWN, PROXY, Who, environment, ip, parsed, tcp, udp, wide};

fn compiled(flags: &str) -> Compiled {
    compile(&parsed(flags).policy, &environment())
}

fn outbound(flags: &str, connect: Connect, who: Who) -> Verdict {
    let compiled = compiled(flags);
    verdict::outbound(&compiled.pod, &connect, &CompiledTables::new(&compiled, OWN.map(ip)), &who)
}

fn inbound(flags: &str, remote: &str, port: u16, interface: u32) -> Verdict {
    let compiled = compiled(flags);
    let (local, remote) = (wide(ip(OWN[0])), wide(ip(remote)));
    let arrival = Arrival { netns: 1, local, remote, local_port: port, interface, family: AF_INET };
    verdict::inbound(&compiled.pod, &arrival, &CompiledTables::new(&compiled, OWN.map(ip)))
}

#[test]
fn outbound_flags() {
    let to = |port| Action::Redirect(port);
    let pass = Action::Pass;
    for (flags, connect, action, rule) in [
        ("", tcp("8.8.8.8", 80), to(15001), Rule::OutAll),
        ("-p 2000", tcp("2001:db8::9", 80), to(2000), Rule::OutAll),
        ("-i ''", tcp("8.8.8.8", 80), pass, Rule::OutOff),
        ("-i 10.0.0.0/8", tcp("10.1.2.3", 80), to(15001), Rule::CidrIncluded),
        ("-i 10.0.0.0/8", tcp("8.8.8.8", 80), pass, Rule::CidrNotIncluded),
        ("-i ::/0", tcp("8.8.8.8", 80), pass, Rule::CidrNotIncluded),
        ("-i ::/0", tcp("2001:db8::9", 80), to(15001), Rule::CidrIncluded),
        ("-x ::/0", tcp("8.8.8.8", 80), to(15001), Rule::OutAll),
        ("-x 0.0.0.0/0", tcp("2001:db8::9", 80), to(15001), Rule::OutAll),
        ("-x 10.0.0.0/8 -i 10.0.0.9/32", tcp("10.0.0.9", 80), pass, Rule::CidrExcluded),
        ("-x 10.0.0.0/8 -q 80", tcp("10.0.0.9", 80), pass, Rule::CidrExcluded),
        ("-i '' -q 80", tcp("8.8.8.8", 80), to(15001), Rule::OutPortIncluded),
        ("-i '' -q 80", tcp("8.8.8.8", 81), pass, Rule::CidrNotIncluded),
        ("-o 80 -q 80", tcp("8.8.8.8", 80), pass, Rule::OutPortExcluded),
        ("", tcp("127.0.0.2", 80), pass, Rule::Loopback),
        ("-i 127.0.0.0/8", tcp("127.0.0.1", 80), pass, Rule::Loopback),
        ("-i 127.0.0.0/8", tcp("127.0.0.2", 80), to(15001), Rule::CidrIncluded),
        ("-i 127.0.0.0/8", tcp("10.0.0.1", 80), pass, Rule::CidrNotIncluded),
    ] {
        assert_eq!(outbound(flags, connect, APP), Verdict { action, rule }, "{flags} to {:?}", connect.dst);
    }
}

#[test]
fn outbound_flags_of_interface_group_and_dns() {
    let to = |port| Action::Redirect(port);
    let pass = Action::Pass;
    for (flags, connect, action, rule) in [
        ("-c eth1", tcp("10.1.2.3", 80), pass, Rule::OutInterface),
        ("-c eth1", tcp("10.0.0.9", 80), to(15001), Rule::OutAll),
        ("-c eth1", tcp("2001:db8::9", 80), pass, Rule::OutInterface),
        ("-c eth+", tcp("10.0.0.9", 80), pass, Rule::OutInterface),
        ("-c eth+", tcp("127.0.0.1", 80), pass, Rule::Loopback),
        ("-c lo", tcp("127.0.0.1", 80), pass, Rule::OutInterface),
        ("-c nil", tcp("10.0.0.9", 80), to(15001), Rule::OutAll),
        ("--istio-outbound-owner-groups 5", tcp("8.8.8.8", 80), pass, Rule::GroupNotIncluded),
        ("--istio-outbound-owner-groups 1000", tcp("8.8.8.8", 80), to(15001), Rule::OutAll),
        ("--istio-outbound-owner-groups ''", tcp("8.8.8.8", 80), pass, Rule::GroupNotIncluded),
        ("--istio-outbound-owner-groups-exclude 1000", tcp("8.8.8.8", 80), pass, Rule::GroupExcluded),
        ("--redirect-dns --capture-all-dns", udp("8.8.8.8", 53), to(15053), Rule::DnsCaptured),
        ("--redirect-dns --dns-servers 8.8.8.8 --dns-port 99", tcp("8.8.8.8", 53), to(99), Rule::DnsCaptured),
        ("--redirect-dns --dns-servers 8.8.8.8", udp("10.0.0.9", 53), pass, Rule::NotCaptured),
        ("--redirect-dns", udp("8.8.8.8", 53), pass, Rule::NotCaptured),
        ("-o 53 --redirect-dns --capture-all-dns", udp("8.8.8.8", 53), pass, Rule::OutPortExcluded),
    ] {
        assert_eq!(outbound(flags, connect, APP), Verdict { action, rule }, "{flags} to {:?}", connect.dst);
    }
}

#[test]
fn the_proxy_is_known_by_uid_gid_or_cgroup() {
    let gid_only = Who { uid: 0, ..PROXY };
    assert_eq!(outbound("", tcp("8.8.8.8", 80), PROXY).rule, Rule::ProxyUid);
    assert_eq!(outbound("", tcp("8.8.8.8", 80), gid_only).rule, Rule::ProxyGid);
    assert_eq!(outbound("-u 5,1337", tcp("8.8.8.8", 80), PROXY).rule, Rule::ProxyUid);
    assert_eq!(outbound("-u 5", tcp("8.8.8.8", 80), PROXY).rule, Rule::OutAll);
    assert_eq!(outbound("-z 9", tcp("10.0.0.1", 80), PROXY).action, Action::Redirect(9));
    assert_eq!(outbound("-e 80", tcp("10.0.0.1", 80), PROXY).rule, Rule::ProxyUid);
    let compiled = compile(&parsed("").policy, &Environment { proxy_cgroup: 9, ..environment() });
    let tables = CompiledTables::new(&compiled, []);
    let rule = |who| verdict::outbound(&compiled.pod, &tcp("8.8.8.8", 80), &tables, &who).rule;
    assert_eq!(rule(PROXY), Rule::ProxyCgroup);
    assert_eq!(rule(Who { cgroup: 7, ..PROXY }), Rule::OutAll);
}

#[test]
fn inbound_flags() {
    let captured = Action::Redirect(15006);
    for (flags, port, interface, action, rule) in [
        ("", 80, 2, captured, Rule::InAll),
        ("-z 9", 80, 2, Action::Redirect(9), Rule::InAll),
        ("-b ''", 80, 2, Action::Pass, Rule::InOff),
        ("-b 80", 80, 2, captured, Rule::InPortIncluded),
        ("-b 80", 81, 2, Action::Pass, Rule::InPortNotIncluded),
        ("", 15021, 2, Action::Pass, Rule::InPortExcluded),
        ("-d ''", 15021, 2, captured, Rule::InAll),
        ("-b 80 -d 80", 80, 2, captured, Rule::InPortIncluded),
        ("", 15008, 2, Action::Pass, Rule::InTunnelPort),
        ("-e 80", 80, 2, Action::Pass, Rule::InTunnelPort),
        ("-c eth0", 80, 2, Action::Pass, Rule::InInterface),
        ("-c eth0", 80, 3, captured, Rule::InAll),
        ("-c eth+", 80, 3, Action::Pass, Rule::InInterface),
    ] {
        assert_eq!(inbound(flags, "10.0.0.9", port, interface), Verdict { action, rule }, "{flags} {port}");
    }
}

#[test]
fn failure_policy() {
    let without = |flags: &str| {
        let compiled = compiled(flags);
        let tables = CompiledTables::new(&compiled, []).without_proxy();
        verdict::outbound(&compiled.pod, &tcp("8.8.8.8", 80), &tables, &APP).rule
    };
    assert_eq!(without(""), Rule::OutAll);
    assert_eq!(without("--fail-open"), Rule::OutFailOpen);
    let held = compiled("--wait-for-proxy=250ms");
    assert_eq!((held.holds(), held.pod.hold_ms), (true, 250));
    assert!(!compiled("").holds());
    let (out, r#in) = (compiled("-b ''"), compiled("-i ''"));
    assert!(out.captures_outbound() && !out.captures_inbound());
    assert!(!r#in.captures_outbound() && r#in.captures_inbound());
}

#[test]
fn the_environment_makes_notes_and_turns_inbound_off() {
    let notes =
        |flags: &str| -> Vec<String> { compiled(flags).notes.iter().map(|n| n.to_string()).collect() };
    assert_eq!(
        notes("-c eth0,net7"),
        ["-c/--istio-exclude-interfaces: net7: the workload has no such interface"]
    );
    assert!(notes("--redirect-dns")[0].starts_with("--redirect-dns: nothing is captured"));
    let resolvers = vec![ip("127.0.0.53")];
    let dns = compile(&parsed("--redirect-dns").policy, &Environment { resolvers, ..environment() });
    assert!(dns.notes.is_empty() && dns.pod.flags & flag::DNS != 0);
    let shared = compile(&parsed("").policy, &Environment { inbound: false, ..environment() });
    assert_eq!(shared.pod.flags & (flag::INBOUND | flag::IN_ALL), 0);
}

#[test]
fn equal_policies_compile_to_equal_tables() {
    let a = compiled("-b 443,80,80 -x 10.0.0.0/8,10.1.2.3/8 -u 2,1");
    assert_eq!(a, compiled("-u 1,2,2 -x 10.0.0.0/8 -b 80,443"));
    assert_eq!(compiled("-x 10.0.0.0/8").cidrs[0].2, 104);
    let loopback = compiled("--istio-outbound-ipv4-loopback-cidr 127.0.0.0/8").pod;
    assert_eq!((loopback.loopback_net, loopback.loopback_mask), (0x7f00_0000, 0xff00_0000));
}

#[test]
fn the_first_of_equal_routes_is_taken() {
    let mut env = environment();
    let mut second = env.routes[3].clone();
    second.interface = "eth0".into();
    env.routes.push(second);
    let compiled = compile(&parsed("-c eth1").policy, &env);
    let tables = CompiledTables::new(&compiled, []);
    let v = verdict::outbound(&compiled.pod, &tcp("10.1.2.3", 80), &tables, &APP);
    assert_eq!(v.rule, Rule::OutInterface);
}
