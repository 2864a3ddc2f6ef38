//! A small world, so that random policies and random connections meet: few addresses, ports and users.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proxy_common::verdict::Connect;
pub(crate) use proxy_common::verdict::Who;
use proxy_common::{IPPROTO_TCP, IPPROTO_UDP, Ip};
use proxy_config::policy::{Cidr, Environment, Mode, OutboundTrafficPolicy, Parsed, Policy, Route, Select};

/// Every address of the namespace but loopback's; istio-init puts `::6` on lo, and so does shunt.
pub(crate) const OWN: [&str; 3] = ["10.0.0.1", "fd00::1", "::6"];
pub(crate) const ADDRESSES: [&str; 13] = [
    "10.0.0.1",
    "10.0.0.9",
    "10.1.2.3",
    "8.8.8.8",
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.53",
    "::1",
    "::6",
    "fd00::1",
    "fd00::9",
    "fd01::9",
    "2001:db8::9",
];
pub(crate) const PORTS: [u16; 8] = [53, 80, 443, 5432, 15001, 15006, 15008, 15021];
pub(crate) const IDS: [u32; 4] = [0, 1000, 1337, 1338];
const RANGES: [&str; 14] = [
    "0.0.0.0/0",
    "8.8.8.8/32",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.9/32",
    "127.0.0.0/8",
    "127.0.0.1/32",
    "127.0.0.53/32",
    "::/0",
    "::/64",
    "::1/128",
    "fd00::/8",
    "fd00::/64",
    "fd00::9/128",
];
const INTERFACES: [&str; 5] = ["lo", "eth0", "eth1", "eth+", "net9"];
pub(crate) const ROUTES: [(&str, &str); 10] = [
    ("10.0.0.1/32", "lo"),
    ("127.0.0.0/8", "lo"),
    ("10.0.0.0/24", "eth0"),
    ("10.0.0.0/8", "eth1"),
    ("0.0.0.0/0", "eth0"),
    ("fd00::1/128", "lo"),
    ("::1/128", "lo"),
    ("::6/128", "lo"),
    ("fd00::/64", "eth0"),
    ("::/0", "eth1"),
];

pub(crate) fn ip(s: &str) -> IpAddr {
    s.parse().expect("an address")
}

pub(crate) fn wide(ip: IpAddr) -> Ip {
    match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

pub(crate) fn cidr(s: &str) -> Cidr {
    s.parse().expect("a range")
}

/// The flags of one string, with no environment.
pub(crate) fn parsed(text: &str) -> Parsed {
    Policy::parse_words(text).expect("flags")
}

pub(crate) fn environment() -> Environment {
    Environment {
        inbound: true,
        interfaces: vec![("lo".into(), 1), ("eth0".into(), 2), ("eth1".into(), 3)],
        routes: ROUTES.iter().map(|(p, i)| Route { prefix: cidr(p), interface: (*i).into() }).collect(),
        ..Environment::default()
    }
}

pub(crate) const APP: Who = Who { cgroup: 7, uid: 1000, gid: 1000 };
pub(crate) const PROXY: Who = Who { cgroup: 9, uid: 1337, gid: 1337 };

pub(crate) fn tcp(dst: &str, port: u16) -> Connect {
    let dst = wide(ip(dst));
    Connect { netns: 1, dst, src: [0; 16], port, protocol: IPPROTO_TCP, device: 0 }
}

pub(crate) fn udp(dst: &str, port: u16) -> Connect {
    Connect { protocol: IPPROTO_UDP, ..tcp(dst, port) }
}

fn some<T: Clone + std::fmt::Debug + 'static>(of: &'static [T], max: usize) -> impl Strategy<Value = Vec<T>> {
    subsequence(of, 0..=max)
}

fn ranges() -> impl Strategy<Value = Vec<Cidr>> {
    some(&RANGES, 3).prop_map(|names| {
        let mut list: Vec<Cidr> = names.into_iter().map(cidr).collect();
        list.sort();
        list
    })
}

fn selected<T: Clone + std::fmt::Debug + 'static>(
    list: impl Strategy<Value = Vec<T>> + 'static,
) -> impl Strategy<Value = Select<T>> {
    prop_oneof![Just(Select::All), list.prop_map(Select::Only)]
}

fn outbound_part(base: Policy) -> impl Strategy<Value = Policy> {
    let who = (subsequence(&IDS[2..], 1..=2), subsequence(&IDS[1..], 1..=2));
    let to = (selected(ranges()), ranges(), some(&PORTS, 2), some(&PORTS, 2), some(&INTERFACES, 2));
    let groups = (selected(some(&IDS, 2)), some(&IDS, 1));
    (who, to, groups).prop_map(move |(who, to, groups)| {
        let mut interfaces: Vec<String> = to.4.into_iter().map(String::from).collect();
        interfaces.sort();
        let all_groups = groups.0 == Select::All;
        Policy {
            proxy_uids: who.0,
            proxy_gids: who.1,
            include: to.0,
            exclude: to.1,
            outbound_ports: to.2,
            outbound_exclude: to.3,
            exclude_interfaces: interfaces,
            owner_groups: groups.0,
            owner_groups_exclude: if all_groups { groups.1 } else { Vec::new() },
            ..base.clone()
        }
    })
}

/// Any policy that the parser can yield, out of this world.
pub(crate) fn policies() -> impl Strategy<Value = Policy> {
    let inbound = (selected(some(&PORTS, 3)), some(&PORTS, 3));
    let loopback = select(&["127.0.0.1/32", "127.0.0.0/8", "127.0.0.53/32"][..]);
    let servers = some(&["8.8.8.8", "127.0.0.53", "fd00::9"], 2);
    let dns = (any::<bool>(), any::<bool>(), servers, loopback);
    let wait = prop_oneof![Just(0u64), Just(250), Just(90_000)];
    let ours = (any::<bool>(), wait, any::<bool>(), any::<bool>(), 20_000u16..20_003);
    (inbound, dns, ours).prop_flat_map(|(inbound, dns, ours)| {
        let mut dns_servers: Vec<IpAddr> = dns.2.into_iter().map(ip).collect();
        dns_servers.sort();
        outbound_part(Policy {
            inbound_ports: inbound.0,
            inbound_exclude: inbound.1,
            redirect_dns: dns.0,
            capture_all_dns: dns.1,
            dns_servers,
            loopback: cidr(dns.3),
            fail_open: ours.0,
            wait_for_proxy: Duration::from_millis(if ours.0 { 0 } else { ours.1 }),
            mode: if ours.2 { Mode::Tproxy } else { Mode::Redirect },
            outbound_traffic_policy: match ours.3 {
                true => OutboundTrafficPolicy::RegistryOnly,
                false => OutboundTrafficPolicy::AllowAny,
            },
            dns_port: ours.4,
            ..Policy::default()
        })
    })
}
