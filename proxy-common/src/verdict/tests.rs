//! Each rule once by name, and the orders that matter.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::*;

#[derive(Default)]
struct World {
    rules: HashSet<(u32, u32)>,
    /// Full-length matches are enough here: the trie is the kernel's.
    cidrs: HashMap<(u32, Ip), u32>,
    own: HashSet<Ip>,
    listening: bool,
}

impl Tables for World {
    fn rule(&self, key: &RuleKey) -> bool {
        self.rules.contains(&(key.kind, key.value))
    }
    fn cidr(&self, key: &CidrKey) -> Option<u32> {
        self.cidrs.get(&(u32::from_be_bytes(key.list), key.ip)).copied()
    }
    fn own_ip(&self, key: &OwnIpKey) -> bool {
        self.own.contains(&key.ip)
    }
    fn listener(&self, _: &ListenerKey) -> bool {
        self.listening
    }
}

const APP: Who = Who { cgroup: 7, uid: 1000, gid: 1000 };

fn ip(s: &str) -> Ip {
    match s.parse().expect("an address") {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

fn pod() -> Pod {
    Pod {
        flags: flag::OUTBOUND | flag::INBOUND | flag::OUT_ALL | flag::IN_ALL,
        out_port: 15001,
        in_port: 15006,
        dns_port: 15053,
        tunnel_port: 15008,
        loopback_net: 0x7f00_0001,
        loopback_mask: !0,
        ..Pod::default()
    }
}

fn tcp(dst: &str, port: u16) -> Connect {
    Connect { netns: 1, dst: ip(dst), src: [0; 16], port, protocol: IPPROTO_TCP, device: 0 }
}

fn out(pod: &Pod, c: Connect, w: &World) -> (Action, &'static str) {
    let v = outbound(pod, &c, w, &APP);
    (v.action, v.rule.name())
}

#[test]
fn defaults_capture_everything_but_loopback() {
    let w = World { own: [ip("10.0.0.1")].into(), ..World::default() };
    assert_eq!(out(&pod(), tcp("10.9.9.9", 80), &w), (Action::Redirect(15001), "out_all"));
    assert_eq!(out(&pod(), tcp("2001:db8::1", 80), &w), (Action::Redirect(15001), "out_all"));
    assert_eq!(out(&pod(), tcp("127.0.0.1", 80), &w), (Action::Pass, "loopback"));
    assert_eq!(out(&pod(), tcp("127.1.2.3", 80), &w), (Action::Pass, "loopback"));
    assert_eq!(out(&pod(), tcp("::1", 80), &w), (Action::Pass, "loopback"));
    assert_eq!(out(&pod(), tcp("10.0.0.1", 80), &w), (Action::Pass, "own_address"));
    let udp = Connect { protocol: IPPROTO_UDP, ..tcp("10.9.9.9", 80) };
    assert_eq!(out(&pod(), udp, &w), (Action::Pass, "not_captured"));
}

#[test]
fn excluded_port_comes_before_included_range_and_port() {
    let pod = Pod { flags: pod().flags | flag::HAS_OUT_PORT_EXCLUDE | flag::HAS_OUT_PORT_INCLUDE, ..pod() };
    let w = World {
        rules: [(kind::OUT_PORT_EXCLUDE, 5432), (kind::OUT_PORT_INCLUDE, 5432)].into(),
        ..World::default()
    };
    assert_eq!(out(&pod, tcp("10.9.9.9", 5432), &w), (Action::Pass, "out_port_excluded"));
}

#[test]
fn included_port_beats_a_missing_range_but_not_an_excluded_one() {
    let flags = flag::OUTBOUND | flag::HAS_OUT_PORT_INCLUDE | flag::HAS_CIDR_EXCLUDE;
    let pod = Pod { flags, ..pod() };
    let w = World {
        rules: [(kind::OUT_PORT_INCLUDE, 80)].into(),
        cidrs: [((list::EXCLUDE, ip("10.0.0.9")), 1)].into(),
        ..World::default()
    };
    assert_eq!(out(&pod, tcp("10.0.0.8", 80), &w), (Action::Redirect(15001), "out_port_included"));
    assert_eq!(out(&pod, tcp("10.0.0.9", 80), &w), (Action::Pass, "cidr_excluded"));
    assert_eq!(out(&pod, tcp("10.0.0.8", 81), &w), (Action::Pass, "cidr_not_included"));
}

#[test]
fn binding_to_a_device_is_no_way_out_unless_that_device_is_excluded() {
    let pod = Pod { flags: pod().flags | flag::HAS_INTERFACE, ..pod() };
    let w = World {
        rules: [(kind::INTERFACE_EXCLUDE, 3)].into(),
        cidrs: [((list::ROUTE, ip("10.9.9.9")), 1)].into(),
        ..World::default()
    };
    let bound = |device| Connect { device, ..tcp("10.9.9.9", 80) };
    assert_eq!(out(&pod, bound(0), &w), (Action::Pass, "out_interface"));
    assert_eq!(out(&pod, bound(3), &w), (Action::Pass, "out_interface"));
    assert_eq!(out(&pod, bound(2), &w), (Action::Redirect(15001), "out_all"));
}

#[test]
fn a_known_proxy_cgroup_decides_alone() {
    let w = World { rules: [(kind::PROXY_UID, 1337), (kind::PROXY_GID, 1337)].into(), ..World::default() };
    let proxy = Who { cgroup: 42, uid: 0, gid: 0 };
    let impostor = Who { cgroup: 7, uid: 1337, gid: 1337 };
    let known = Pod { proxy_cgroup: 42, ..pod() };
    let c = tcp("10.9.9.9", 80);
    assert_eq!(outbound(&known, &c, &w, &proxy).rule, Rule::ProxyCgroup);
    assert_eq!(outbound(&known, &c, &w, &impostor).action, Action::Redirect(15001));
    assert_eq!(outbound(&pod(), &c, &w, &impostor).rule, Rule::ProxyUid);
    assert_eq!(bind(&known, 15006, &w, &impostor).map(|v| v.action), Some(Action::Deny));
    assert_eq!(bind(&known, 15006, &w, &proxy).map(|v| v.action), Some(Action::Pass));
    assert_eq!(bind(&known, 8080, &w, &impostor), None);
}

#[test]
fn the_proxy_calling_its_own_workload_goes_through_inbound() {
    let w =
        World { rules: [(kind::PROXY_UID, 1337)].into(), own: [ip("10.0.0.1")].into(), ..World::default() };
    let proxy = Who { cgroup: 1, uid: 1337, gid: 0 };
    let v = outbound(&pod(), &tcp("10.0.0.1", 80), &w, &proxy);
    assert_eq!(v, Verdict { action: Action::Redirect(15006), rule: Rule::SelfCall });
    assert_eq!(outbound(&pod(), &tcp("10.0.0.1", 15008), &w, &proxy).rule, Rule::ProxyUid);
    let passthrough = Connect { src: ip("127.0.0.6"), ..tcp("10.0.0.1", 80) };
    assert_eq!(outbound(&pod(), &passthrough, &w, &proxy).rule, Rule::PassthroughSource);
}

#[test]
fn dns_goes_to_the_agent_even_on_loopback() {
    let listed = Pod { flags: pod().flags | flag::DNS, ..pod() };
    let w = World { cidrs: [((list::DNS, ip("127.0.0.53")), 1)].into(), ..World::default() };
    let udp = |dst: &str| Connect { protocol: IPPROTO_UDP, ..tcp(dst, 53) };
    assert_eq!(out(&listed, udp("127.0.0.53"), &w), (Action::Redirect(15053), "dns_captured"));
    assert_eq!(out(&listed, tcp("127.0.0.53", 53), &w), (Action::Redirect(15053), "dns_captured"));
    assert_eq!(out(&listed, udp("8.8.8.8"), &w), (Action::Pass, "not_captured"));
    assert_eq!(out(&listed, tcp("8.8.8.8", 53), &w), (Action::Redirect(15001), "out_all"));
    let all = Pod { flags: listed.flags | flag::DNS_ALL, ..listed };
    assert_eq!(out(&all, udp("8.8.8.8"), &w), (Action::Redirect(15053), "dns_captured"));
}

#[test]
fn owner_groups_include_or_exclude() {
    let include = Pod { flags: pod().flags | flag::HAS_GROUP_INCLUDE, ..pod() };
    let w = World { rules: [(kind::GROUP_INCLUDE, 202)].into(), ..World::default() };
    assert_eq!(out(&include, tcp("10.9.9.9", 80), &w), (Action::Pass, "group_not_included"));
    let w = World { rules: [(kind::GROUP_EXCLUDE, 1000)].into(), ..World::default() };
    let exclude = Pod { flags: pod().flags | flag::HAS_GROUP_EXCLUDE, ..pod() };
    assert_eq!(out(&exclude, tcp("10.9.9.9", 80), &w), (Action::Pass, "group_excluded"));
}

#[test]
fn fail_open_passes_only_while_nobody_listens() {
    let open = Pod { flags: pod().flags | flag::FAIL_OPEN, ..pod() };
    assert_eq!(out(&open, tcp("10.9.9.9", 80), &World::default()), (Action::Pass, "out_fail_open"));
    let w = World { listening: true, ..World::default() };
    assert_eq!(out(&open, tcp("10.9.9.9", 80), &w), (Action::Redirect(15001), "out_all"));
}

fn arrival(remote: &str, port: u16) -> Arrival {
    Arrival {
        netns: 1,
        local: ip("10.0.0.1"),
        remote: ip(remote),
        local_port: port,
        interface: 2,
        family: AF_INET,
    }
}

#[test]
fn inbound_exempts_the_workload_itself_and_what_is_excluded() {
    let pod = Pod { flags: pod().flags | flag::HAS_IN_PORT | flag::HAS_INTERFACE, ..pod() };
    let w = World {
        rules: [(kind::IN_PORT_EXCLUDE, 15021), (kind::INTERFACE_EXCLUDE, 9)].into(),
        own: [ip("10.0.0.2")].into(),
        listening: true,
        ..World::default()
    };
    let name = |a: Arrival| inbound(&pod, &a, &w).rule.name();
    assert_eq!(name(arrival("10.0.0.7", 80)), "in_all");
    assert_eq!(name(arrival("127.0.0.6", 80)), "in_loopback");
    assert_eq!(name(arrival("::6", 80)), "in_loopback");
    assert_eq!(name(arrival("10.0.0.1", 80)), "in_own_address");
    assert_eq!(name(arrival("10.0.0.2", 80)), "in_own_address");
    assert_eq!(name(arrival("10.0.0.7", 15006)), "in_proxy_port");
    assert_eq!(name(arrival("10.0.0.7", 15008)), "in_tunnel_port");
    assert_eq!(name(arrival("10.0.0.7", 15021)), "in_port_excluded");
    assert_eq!(name(Arrival { interface: 9, ..arrival("10.0.0.7", 80) }), "in_interface");
}

#[test]
fn inbound_without_a_listener_is_refused_unless_it_fails_open() {
    let w = World::default();
    let a = arrival("10.0.0.7", 80);
    assert_eq!(inbound(&pod(), &a, &w).action, Action::Deny);
    let open = Pod { flags: pod().flags | flag::FAIL_OPEN, ..pod() };
    assert_eq!(inbound(&open, &a, &w), Verdict { action: Action::Pass, rule: Rule::InFailOpen });
}

#[test]
fn inbound_port_list_captures_only_the_listed() {
    let flags = flag::INBOUND | flag::HAS_IN_PORT;
    let pod = Pod { flags, ..pod() };
    let w = World { rules: [(kind::IN_PORT_INCLUDE, 80)].into(), listening: true, ..World::default() };
    assert_eq!(inbound(&pod, &arrival("10.0.0.7", 80), &w).rule, Rule::InPortIncluded);
    assert_eq!(inbound(&pod, &arrival("10.0.0.7", 81), &w).rule, Rule::InPortNotIncluded);
}

#[test]
fn counters_are_dense_and_named_once() {
    let names: HashSet<_> = Rule::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), Rule::ALL.len());
    for (i, r) in Rule::ALL.iter().enumerate() {
        assert_eq!(*r as usize, i);
    }
}
