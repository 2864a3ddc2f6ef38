//! The differential test: the verdict functions over compiled tables against istio-init's rules in their order.
//!
//! Where the two differ, [`KNOWN`] names the difference and says why. A difference that it does not name fails;
//! so does one that is no longer there.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use proxy_common::verdict::{self, Action, Arrival, Connect};
use proxy_common::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use proxy_config::policy::{CompiledTables, Policy, compile};

use crate::reference::{self, Packet, names_loopback, redirects_dns};
use crate::world::{ADDRESSES, IDS, OWN, PORTS, Who, environment, ip, parsed, policies, wide};

/// A difference between istio-init and shunt.
struct Difference {
    name: &'static str,
    why: &'static str,
    holds: fn(&Policy, &Packet) -> bool,
    /// Where istio-init sends it.
    istio: &'static [To],
    /// Where shunt sends it.
    shunt: To,
    /// A case of it.
    example: (&'static str, &'static str, u16, u32, u32, Option<&'static str>),
}

/// Flags, destination, port, uid, gid, source.
const KNOWN: &[Difference] = &[
    Difference {
        name: "self call of a second identity",
        why: "over lo, istio-init's rule for the first uid returns every other uid, so a proxy known by a \
              further uid or by its gid alone is not sent to the inbound listener; here each identity is",
        holds: |p, k| own(k) && k.tcp && is_proxy(p, k) && k.uid != p.proxy_uids[0] && !names_loopback(p),
        istio: &[To::Destination],
        shunt: To::Inbound,
        example: ("", "10.0.0.1", 80, 1000, 1337, None),
    },
    Difference {
        name: "self call with capture off",
        why: "istio-init redirects to the inbound listener also where nothing inbound, or nothing outbound, is \
              captured; here no listener is needed in a direction that is off",
        holds: |p, k| {
            own(k) && k.tcp && is_proxy(p, k) && (p.inbound_ports.is_none() || !p.captures_outbound())
        },
        istio: &[To::Inbound],
        shunt: To::Destination,
        example: ("-b ''", "10.0.0.1", 80, 1337, 1337, None),
    },
    Difference {
        name: "self call of a gid to port 53",
        why: "istio-init spares port 53 in the rule of the uid, but not in that of the gid",
        holds: |p, k| own(k) && k.tcp && k.dport == 53 && redirects_dns(p) && p.proxy_gids.contains(&k.gid),
        istio: &[To::Inbound],
        shunt: To::Destination,
        example: ("--redirect-dns --capture-all-dns", "10.0.0.1", 53, 1000, 1337, None),
    },
    Difference {
        name: "proxy to another loopback address",
        why: "to istio-init 127.0.0.2 is the workload, beyond ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR, so the \
              proxy's connect is sent to the inbound listener; here loopback is never the workload's address",
        holds: |p, k| k.dst.is_loopback() && k.tcp && is_proxy(p, k),
        istio: &[To::Inbound],
        shunt: To::Destination,
        example: ("", "127.0.0.2", 80, 1337, 1337, None),
    },
    Difference {
        name: "TCP to port 53 on loopback",
        why: "with DNS capture, istio-init no longer spares TCP port 53 on loopback, so a resolver there that \
              is not captured is sent to the outbound listener; here loopback stays loopback",
        holds: |p, k| k.dst.is_loopback() && k.tcp && k.dport == 53 && redirects_dns(p) && !names_loopback(p),
        istio: &[To::Outbound],
        shunt: To::Destination,
        example: ("--redirect-dns --dns-servers 8.8.8.8", "127.0.0.53", 53, 1000, 1000, None),
    },
    Difference {
        name: "::6 beyond lo",
        why: "istio-init spares the passthrough source only over lo; beyond lo nothing answers to ::6",
        holds: |_, k| k.src == Some(ip("::6")) && k.interface != "lo",
        istio: &[To::Outbound, To::Dns],
        shunt: To::Destination,
        example: ("", "2001:db8::9", 80, 1000, 1000, Some("::6")),
    },
];

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Destination,
    Outbound,
    Inbound,
    Dns,
}

fn to(policy: &Policy, action: Action) -> To {
    match action {
        Action::Pass => To::Destination,
        Action::Redirect(port) if port == policy.envoy_port => To::Outbound,
        Action::Redirect(port) if port == policy.inbound_port => To::Inbound,
        Action::Redirect(port) if port == policy.dns_port => To::Dns,
        Action::Redirect(_) | Action::Deny => panic!("{action:?}"),
    }
}

fn own(k: &Packet) -> bool {
    OWN.iter().any(|own| k.dst == ip(own))
}

fn is_proxy(p: &Policy, k: &Packet) -> bool {
    p.proxy_uids.contains(&k.uid) || p.proxy_gids.contains(&k.gid)
}

fn shunt_output(policy: &Policy, k: &Packet) -> Action {
    let compiled = compile(policy, &environment());
    let tables = CompiledTables::new(&compiled, OWN.map(ip));
    let connect = Connect {
        netns: 1,
        dst: wide(k.dst),
        src: k.src.map(wide).unwrap_or_default(),
        port: k.dport,
        protocol: if k.tcp { IPPROTO_TCP } else { IPPROTO_UDP },
        device: 0,
    };
    verdict::outbound(&compiled.pod, &connect, &tables, &Who { cgroup: 7, uid: k.uid, gid: k.gid }).action
}

fn as_action(redirect: Option<u16>) -> Action {
    redirect.map_or(Action::Pass, Action::Redirect)
}

fn packets() -> impl Strategy<Value = Packet> {
    let who = (select(&IDS[..]), select(&IDS[..]));
    (select(&ADDRESSES[..]), select(&PORTS[..]), any::<bool>(), who, 0..4u8).prop_map(
        |(dst, dport, tcp, (uid, gid), source)| {
            let dst = ip(dst);
            let interface = reference::route(dst);
            let src = match (source, dst.is_ipv4()) {
                // Beyond lo, the kernel refuses to send from a loopback address.
                (0, true) if interface == "lo" => Some(ip("127.0.0.6")),
                (0, false) => Some(ip("::6")),
                (1, v4) => Some(ip(if v4 { OWN[0] } else { OWN[1] })),
                _ => None,
            };
            Packet { src, dst, dport, tcp, uid, gid, interface }
        },
    )
}

/// An arrival: never from the workload itself, whose packets do not meet PREROUTING's nat rules.
fn arrivals() -> impl Strategy<Value = (IpAddr, Packet)> {
    let remotes = select(&["10.0.0.9", "8.8.8.8", "fd00::9", "2001:db8::9"][..]);
    (remotes, select(&PORTS[..]), select(&["eth0", "eth1"][..])).prop_map(|(remote, dport, interface)| {
        let remote = ip(remote);
        let dst = ip(if remote.is_ipv4() { OWN[0] } else { OWN[1] });
        let src = Some(remote);
        (remote, Packet { src, dst, dport, tcp: true, uid: 0, gid: 0, interface: interface.into() })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) })]

    #[test]
    fn outbound_is_what_istio_init_would_do(policy in policies(), packet in packets()) {
        let expected = to(&policy, as_action(reference::output(&policy, &packet)));
        let actual = to(&policy, shunt_output(&policy, &packet));
        let differ = |d: &Difference| d.shunt == actual && d.istio.contains(&expected);
        let known = KNOWN.iter().any(|d| differ(d) && (d.holds)(&policy, &packet));
        prop_assert!(actual == expected || known, "istio-init: {expected:?}, shunt: {actual:?}, {policy}");
    }

    #[test]
    fn inbound_is_what_istio_init_would_do(policy in policies(), (remote, packet) in arrivals()) {
        let compiled = compile(&policy, &environment());
        let tables = CompiledTables::new(&compiled, OWN.map(ip));
        let arrival = Arrival {
            netns: 1,
            local: wide(packet.dst),
            remote: wide(remote),
            local_port: packet.dport,
            interface: if packet.interface == "eth0" { 2 } else { 3 },
            family: if remote.is_ipv4() { AF_INET } else { AF_INET6 },
        };
        let actual = verdict::inbound(&compiled.pod, &arrival, &tables).action;
        let expected = as_action(reference::prerouting(&policy, &packet));
        // Redirecting to the port that it came for changes nothing.
        let same = packet.dport == policy.inbound_port;
        prop_assert!(actual == expected || same, "istio-init: {expected:?}, shunt: {actual:?}, {policy}");
    }
}

#[test]
fn each_known_difference_is_still_there() {
    for Difference { name, why, holds, istio, shunt, example } in KNOWN {
        let (flags, dst, dport, uid, gid, src) = example;
        let policy = parsed(flags).policy;
        let dst = ip(dst);
        let src = src.map(ip);
        let interface = reference::route(dst);
        let packet = Packet { src, dst, dport: *dport, tcp: true, uid: *uid, gid: *gid, interface };
        assert!(holds(&policy, &packet), "{name}");
        let expected = to(&policy, as_action(reference::output(&policy, &packet)));
        assert!(istio.contains(&expected), "{name}: not what istio-init does");
        let actual = to(&policy, shunt_output(&policy, &packet));
        assert_ne!(actual, expected, "{name}: gone, take it out of the list ({why})");
        assert_eq!(actual, *shunt, "{name}");
    }
}
