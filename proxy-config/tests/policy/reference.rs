//! istio-init's rules for one policy as iptables has them, and an interpreter that walks them in order.
//!
//! Written from the rules that istio-iptables adds, one line here for each line there, and from nothing in this
//! project: neither the compiler nor the verdict functions are used, and addresses are compared bit by bit.

use std::net::IpAddr;

use proxy_config::policy::{Mode, Policy, Select};

use crate::world::{OWN, ROUTES};

/// A new connection or datagram as netfilter sees it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) src: Option<IpAddr>,
    pub(crate) dst: IpAddr,
    pub(crate) dport: u16,
    pub(crate) tcp: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The interface that it leaves by, or arrives by.
    pub(crate) interface: String,
}

#[derive(Clone, Debug)]
enum Match {
    Interface(String),
    Src(String),
    Dst(String),
    NotDst(String),
    Tcp,
    Udp,
    Port(u16),
    NotPorts(Vec<u16>),
    Uid(u32),
    NotUid(u32),
    Gid(u32),
    NotGid(u32),
}

#[derive(Clone, Copy, Debug)]
enum Target {
    /// Ends the walk: every chain here is entered as the last rule of its caller's.
    Return,
    /// A jump to a chain whose only rule is `-p tcp -j REDIRECT --to-ports N`.
    RedirectTcp(u16),
    /// `-j REDIRECT --to-ports N`
    Redirect(u16),
}

type Rules = Vec<(Vec<Match>, Target)>;

use Match::*;
use Target::*;

/// The port that an outbound packet is redirected to.
pub(crate) fn output(policy: &Policy, packet: &Packet) -> Option<u16> {
    walk(&output_rules(policy, packet.dst.is_ipv4()), packet)
}

/// The port that an arriving connection is redirected to.
pub(crate) fn prerouting(policy: &Policy, packet: &Packet) -> Option<u16> {
    walk(&prerouting_rules(policy), packet)
}

/// The interface that a packet leaves by, from the world's routes.
pub(crate) fn route(dst: IpAddr) -> String {
    if OWN.iter().any(|own| dst.to_string() == *own) {
        return "lo".into();
    }
    let fits = ROUTES.iter().filter(|(net, _)| within(dst, net));
    let length = |net: &str| net.split_once('/').map_or(0, |(_, len)| len.parse::<u32>().unwrap_or(0));
    fits.max_by_key(|(net, _)| length(net)).map(|(_, dev)| (*dev).to_string()).unwrap_or_default()
}

fn output_rules(p: &Policy, v4: bool) -> Rules {
    let mut rules: Rules = Vec::new();
    for dev in &p.exclude_interfaces {
        rules.push((vec![Interface(dev.clone())], Return));
    }
    for port in &p.outbound_exclude {
        rules.push((vec![Tcp, Port(*port)], Return));
        rules.push((vec![Udp, Port(*port)], Return));
    }
    let passthrough = if v4 { "127.0.0.6/32" } else { "::6/128" };
    rules.push((vec![lo(), Src(passthrough.into())], Return));
    let loopback = if v4 { p.loopback.to_string() } else { "::1/128".into() };
    let dns = redirects_dns(p);
    for uid in &p.proxy_uids {
        let spared = if dns { vec![53, p.tunnel_port] } else { vec![p.tunnel_port] };
        rules.push((
            vec![lo(), NotDst(loopback.clone()), Tcp, NotPorts(spared), Uid(*uid)],
            RedirectTcp(p.inbound_port),
        ));
        local(&mut rules, p, NotUid(*uid));
        rules.push((vec![Uid(*uid)], Return));
    }
    for gid in &p.proxy_gids {
        rules.push((
            vec![lo(), NotDst(loopback.clone()), Tcp, NotPorts(vec![p.tunnel_port]), Gid(*gid)],
            RedirectTcp(p.inbound_port),
        ));
        local(&mut rules, p, NotGid(*gid));
        rules.push((vec![Gid(*gid)], Return));
    }
    groups(&mut rules, p);
    resolvers(&mut rules, p, v4);
    rules.push((vec![Dst(loopback)], Return));
    destinations(&mut rules, p, v4);
    rules
}

fn destinations(rules: &mut Rules, p: &Policy, v4: bool) {
    for net in p.exclude.iter().filter(|c| c.addr().is_ipv4() == v4) {
        rules.push((vec![Dst(net.to_string())], Return));
    }
    for port in &p.outbound_ports {
        rules.push((vec![Tcp, Port(*port)], RedirectTcp(p.envoy_port)));
    }
    match &p.include {
        Select::All => rules.push((vec![], RedirectTcp(p.envoy_port))),
        Select::Only(nets) => {
            for net in nets.iter().filter(|c| c.addr().is_ipv4() == v4) {
                rules.push((vec![Dst(net.to_string())], RedirectTcp(p.envoy_port)));
            }
        }
    }
}

fn lo() -> Match {
    Interface("lo".into())
}

/// "Do not redirect app calls to itself", after each identity.
fn local(rules: &mut Rules, p: &Policy, not_proxy: Match) {
    if names_loopback(p) {
        return;
    }
    let matches = match redirects_dns(p) {
        true => vec![lo(), Tcp, NotPorts(vec![53]), not_proxy],
        false => vec![lo(), not_proxy],
    };
    rules.push((matches, Return));
}

fn groups(rules: &mut Rules, p: &Policy) {
    match &p.owner_groups {
        Select::All => {
            for gid in &p.owner_groups_exclude {
                rules.push((vec![Gid(*gid)], Return));
            }
        }
        Select::Only(gids) => rules.push((gids.iter().map(|g| NotGid(*g)).collect(), Return)),
    }
}

fn resolvers(rules: &mut Rules, p: &Policy, v4: bool) {
    if !redirects_dns(p) {
        return;
    }
    for proto in [Tcp, Udp] {
        if p.capture_all_dns {
            rules.push((vec![proto, Port(53)], Redirect(p.dns_port)));
            continue;
        }
        for server in p.dns_servers.iter().filter(|s| s.is_ipv4() == v4) {
            let host = format!("{server}/{}", if v4 { 32 } else { 128 });
            rules.push((vec![proto.clone(), Port(53), Dst(host)], Redirect(p.dns_port)));
        }
    }
}

pub(crate) fn redirects_dns(p: &Policy) -> bool {
    p.redirect_dns && (p.capture_all_dns || !p.dns_servers.is_empty())
}

/// Istio's `HasLoopBackIP`, of either family.
pub(crate) fn names_loopback(p: &Policy) -> bool {
    match &p.include {
        Select::All => false,
        Select::Only(nets) => nets.iter().any(|net| net.addr().is_loopback()),
    }
}

fn prerouting_rules(p: &Policy) -> Rules {
    let mut rules: Rules = Vec::new();
    for dev in &p.exclude_interfaces {
        rules.push((vec![Interface(dev.clone())], Return));
    }
    // Both modes as REDIRECT: in TPROXY's table Istio leaves the tunnel port's rule out.
    let (Mode::Redirect | Mode::Tproxy) = p.mode;
    rules.push((vec![Tcp, Port(p.tunnel_port)], Return));
    match &p.inbound_ports {
        Select::All => {
            for port in &p.inbound_exclude {
                rules.push((vec![Tcp, Port(*port)], Return));
            }
            rules.push((vec![Tcp], RedirectTcp(p.inbound_port)));
        }
        Select::Only(ports) => {
            for port in ports {
                rules.push((vec![Tcp, Port(*port)], RedirectTcp(p.inbound_port)));
            }
        }
    }
    rules
}

fn walk(rules: &Rules, packet: &Packet) -> Option<u16> {
    for (matches, target) in rules {
        if !matches.iter().all(|m| holds(m, packet)) {
            continue;
        }
        match target {
            Return => return None,
            Redirect(port) => return Some(*port),
            RedirectTcp(port) if packet.tcp => return Some(*port),
            RedirectTcp(_) => {}
        }
    }
    None
}

fn holds(m: &Match, p: &Packet) -> bool {
    match m {
        Interface(name) => match name.strip_suffix('+') {
            Some(prefix) => p.interface.starts_with(prefix),
            None => p.interface == *name,
        },
        Src(net) => p.src.is_some_and(|src| within(src, net)),
        Dst(net) => within(p.dst, net),
        NotDst(net) => !within(p.dst, net),
        Tcp => p.tcp,
        Udp => !p.tcp,
        Port(port) => p.dport == *port,
        NotPorts(ports) => !ports.contains(&p.dport),
        Uid(id) => p.uid == *id,
        NotUid(id) => p.uid != *id,
        Gid(id) => p.gid == *id,
        NotGid(id) => p.gid != *id,
    }
}

fn within(ip: IpAddr, net: &str) -> bool {
    let (addr, len) = net.split_once('/').expect("a range");
    let len: usize = len.parse().expect("a length");
    match (ip, addr.parse::<IpAddr>().expect("an address")) {
        (IpAddr::V4(a), IpAddr::V4(b)) => bits(&a.octets())[..len] == bits(&b.octets())[..len],
        (IpAddr::V6(a), IpAddr::V6(b)) => bits(&a.octets())[..len] == bits(&b.octets())[..len],
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn bits(octets: &[u8]) -> Vec<bool> {
    octets.iter().flat_map(|o| (0..8).rev().map(move |i| o >> i & 1 == 1)).collect()
}
