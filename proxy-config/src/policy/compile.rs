//! A policy as the entries of the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use proxy_common::{Ip, Pod, flag, kind, list};

use super::{Cidr, Note, Policy, Select};

/// What the policy is compiled for: facts of one workload that only its namespace knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// The id of the cgroup whose processes are the proxy; 0 where `-u` and `-g` decide.
    pub proxy_cgroup: u64,
    /// The workload's resolvers. Those of `--dns-servers` are used instead, where given.
    pub resolvers: Vec<IpAddr>,
    /// Every route of the namespace, its own addresses (`local` table, by `lo`) among them; of equal prefixes
    /// the preferred one first. Needed only with `-c`.
    pub routes: Vec<Route>,
    /// Every interface of the namespace: its name and index. Needed only with `-c`.
    pub interfaces: Vec<(String, u32)>,
    /// Whether the workload has a namespace of its own, so that inbound connections can be captured.
    pub inbound: bool,
}

/// A route of the workload's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub prefix: Cidr,
    /// The name of the interface that it leaves by.
    pub interface: String,
}

/// What the loader writes. Equal policies in equal environments are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// `policy` is 0: the loader numbers it.
    pub pod: Pod,
    /// `RULES`: kind and value, sorted, nothing twice.
    pub rules: Vec<(u32, u32)>,
    /// `CIDRS`: sorted, nothing twice.
    pub cidrs: Vec<CidrRow>,
    /// What the environment makes of the policy that its author may not expect.
    pub notes: Vec<Note>,
}

impl Compiled {
    /// Whether anything outbound but DNS is captured.
    pub fn captures_outbound(&self) -> bool {
        self.pod.flags & flag::OUTBOUND != 0
    }

    pub fn captures_inbound(&self) -> bool {
        self.pod.flags & flag::INBOUND != 0
    }

    /// Whether connects are held while no proxy listens.
    pub fn holds(&self) -> bool {
        self.pod.flags & flag::HOLD != 0
    }
}

/// One entry of `CIDRS`: the list ([`proxy_common::list`]), the address, its prefix length and the value.
///
/// The length is 0 to 128 bits of the 16-byte form, so 96 more than an IPv4 range's own, and without
/// [`proxy_common::CIDR_PREFIX`].
pub type CidrRow = (u32, Ip, u8, u32);

/// Values of the list `ROUTE`.
const EXCLUDED: u32 = 1;
const NOT_EXCLUDED: u32 = 2;
const PRESENT: u32 = 1;

/// Compiles a policy for one workload.
pub fn compile(policy: &Policy, environment: &Environment) -> Compiled {
    let mut out = Output { flags: 0, rules: BTreeSet::new(), cidrs: BTreeMap::new(), notes: Vec::new() };
    outbound(policy, &mut out);
    if environment.inbound {
        inbound(policy, &mut out);
    }
    dns(policy, environment, &mut out);
    interfaces(policy, environment, &mut out);
    failure(policy, &mut out);
    out.rules(kind::PROXY_UID, 0, policy.proxy_uids.iter().copied());
    out.rules(kind::PROXY_GID, 0, policy.proxy_gids.iter().copied());
    Compiled {
        pod: pod(policy, environment, out.flags),
        rules: out.rules.into_iter().collect(),
        cidrs: out.cidrs.into_iter().map(|((list, ip, prefix), value)| (list, ip, prefix, value)).collect(),
        notes: out.notes,
    }
}

struct Output {
    flags: u32,
    rules: BTreeSet<(u32, u32)>,
    cidrs: BTreeMap<(u32, Ip, u8), u32>,
    notes: Vec<Note>,
}

impl Output {
    /// Adds exact matches, and the bit that says that there are any.
    fn rules(&mut self, kind: u32, bit: u32, values: impl Iterator<Item = u32>) {
        for value in values {
            self.rules.insert((kind, value));
            self.flags |= bit;
        }
    }

    /// Adds a range; the first of equal ones stays.
    fn range(&mut self, list: u32, bit: u32, range: Cidr, value: u32) {
        self.flags |= bit;
        for (ip, prefix) in range.keys() {
            self.cidrs.entry((list, ip, prefix)).or_insert(value);
        }
    }

    fn note(&mut self, flag: &str, reason: String) {
        self.notes.push(Note { flag: flag.into(), reason });
    }
}

fn outbound(policy: &Policy, out: &mut Output) {
    if policy.captures_outbound() {
        out.flags |= flag::OUTBOUND;
    }
    if policy.include == Select::All {
        out.flags |= flag::OUT_ALL;
    }
    for range in policy.include.listed() {
        // As in Istio, the range's address tells, not whether a loopback address is somewhere within.
        let loopback = if range.addr().is_loopback() { flag::OUT_LOOPBACK } else { 0 };
        out.range(list::INCLUDE, flag::HAS_CIDR_INCLUDE | loopback, *range, PRESENT);
    }
    for range in &policy.exclude {
        out.range(list::EXCLUDE, flag::HAS_CIDR_EXCLUDE, *range, PRESENT);
    }
    let ports = |ports: &[u16]| ports.iter().map(|p| u32::from(*p)).collect::<Vec<_>>().into_iter();
    out.rules(kind::OUT_PORT_INCLUDE, flag::HAS_OUT_PORT_INCLUDE, ports(&policy.outbound_ports));
    out.rules(kind::OUT_PORT_EXCLUDE, flag::HAS_OUT_PORT_EXCLUDE, ports(&policy.outbound_exclude));
    match &policy.owner_groups {
        Select::All => {
            let gids = policy.owner_groups_exclude.iter().copied();
            out.rules(kind::GROUP_EXCLUDE, flag::HAS_GROUP_EXCLUDE, gids);
        }
        // The bit also without an entry: an empty list captures no group.
        Select::Only(gids) => {
            out.flags |= flag::HAS_GROUP_INCLUDE;
            out.rules(kind::GROUP_INCLUDE, 0, gids.iter().copied());
        }
    }
}

fn inbound(policy: &Policy, out: &mut Output) {
    let (kind, ports) = match &policy.inbound_ports {
        Select::All => {
            out.flags |= flag::INBOUND | flag::IN_ALL;
            (kind::IN_PORT_EXCLUDE, &policy.inbound_exclude)
        }
        Select::Only(ports) if ports.is_empty() => return,
        Select::Only(ports) => {
            out.flags |= flag::INBOUND;
            (kind::IN_PORT_INCLUDE, ports)
        }
    };
    out.rules(kind, flag::HAS_IN_PORT, ports.iter().map(|p| u32::from(*p)));
}

fn dns(policy: &Policy, environment: &Environment, out: &mut Output) {
    if !policy.redirect_dns {
        return;
    }
    if policy.capture_all_dns {
        out.flags |= flag::DNS | flag::DNS_ALL;
        return;
    }
    let resolvers = if policy.dns_servers.is_empty() { &environment.resolvers } else { &policy.dns_servers };
    if resolvers.is_empty() {
        out.note(
            "--redirect-dns",
            "nothing is captured: neither the workload's resolv.conf nor --dns-servers names a resolver, and \
             --capture-all-dns is not set"
                .into(),
        );
    }
    for resolver in resolvers {
        out.range(list::DNS, flag::DNS, Cidr::host(*resolver), PRESENT);
    }
}

fn interfaces(policy: &Policy, environment: &Environment, out: &mut Output) {
    if policy.exclude_interfaces.is_empty() {
        return;
    }
    out.flags |= flag::HAS_INTERFACE;
    for pattern in &policy.exclude_interfaces {
        let matching = environment.interfaces.iter().filter(|(name, _)| matches(pattern, name));
        let indices: Vec<u32> = matching.map(|(_, index)| *index).collect();
        if indices.is_empty() {
            out.note(
                "-c/--istio-exclude-interfaces",
                format!("{pattern}: the workload has no such interface"),
            );
        }
        out.rules(kind::INTERFACE_EXCLUDE, 0, indices.into_iter());
    }
    let value = |interface: &str| if excluded(policy, interface) { EXCLUDED } else { NOT_EXCLUDED };
    for route in &environment.routes {
        out.range(list::ROUTE, 0, route.prefix, value(&route.interface));
    }
    // Where the routes given lack those of the `local` table: a default route must not answer for loopback.
    let loopback = [Cidr::new([127, 0, 0, 0].into(), 8), Cidr::new(Ipv6Addr::LOCALHOST.into(), 128)];
    for range in loopback.into_iter().flatten() {
        out.range(list::ROUTE, 0, range, value("lo"));
    }
}

/// Whether `-c` names the interface.
pub(super) fn excluded(policy: &Policy, interface: &str) -> bool {
    policy.exclude_interfaces.iter().any(|pattern| matches(pattern, interface))
}

/// As iptables: a last `+` stands for any rest.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

fn failure(policy: &Policy, out: &mut Output) {
    if policy.fail_open {
        out.flags |= flag::FAIL_OPEN;
    }
    if !policy.wait_for_proxy.is_zero() {
        out.flags |= flag::HOLD;
    }
}

fn pod(policy: &Policy, environment: &Environment, flags: u32) -> Pod {
    let net = match policy.loopback.addr() {
        IpAddr::V4(a) => u32::from(a),
        // The parser takes no such range.
        IpAddr::V6(_) => 0x7f00_0001,
    };
    let host_bits = 32u32.saturating_sub(policy.loopback.prefix().into());
    Pod {
        proxy_cgroup: environment.proxy_cgroup,
        policy: 0,
        flags,
        hold_ms: u32::try_from(policy.wait_for_proxy.as_millis()).unwrap_or(u32::MAX),
        out_port: policy.envoy_port,
        in_port: policy.inbound_port,
        dns_port: policy.dns_port,
        tunnel_port: policy.tunnel_port,
        loopback_net: net,
        loopback_mask: u32::MAX.checked_shl(host_bits).unwrap_or(0),
        reserved: 0,
    }
}
