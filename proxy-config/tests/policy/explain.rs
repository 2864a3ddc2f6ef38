//! Verdicts in words.

use proxy_common::AF_INET;
use proxy_common::verdict::{self, Arrival, Connect};
use proxy_config::policy::{CompiledTables, Environment, Facts, compile, explain};

use crate::world::{APP, OWN, PROXY, Who, environment, ip, parsed, tcp, udp, wide};

fn outbound(flags: &str, connect: Connect, who: Who) -> Vec<String> {
    let policy = parsed(flags).policy;
    let env = Environment { resolvers: vec![ip("8.8.8.8")], ..environment() };
    let compiled = compile(&policy, &env);
    let tables = CompiledTables::new(&compiled, OWN.map(ip));
    let verdict = verdict::outbound(&compiled.pod, &connect, &tables, &who);
    explain(&policy, &env, &Facts::Outbound { connect: &connect, uid: who.uid, gid: who.gid }, verdict)
}

#[test]
fn names_what_happens_the_rule_and_the_entry() {
    assert_eq!(
        outbound("-x 10.0.0.0/8,10.1.0.0/16", tcp("10.1.2.3", 5432), APP),
        [
            "TCP to 10.1.2.3:5432 by uid 1000 gid 1000: left alone",
            "rule cidr_excluded: the destination is in an excluded range (-x)",
            "by -x 10.1.0.0/16",
        ]
    );
    assert_eq!(
        outbound("", tcp("2001:db8::9", 80), APP)[0],
        "TCP to [2001:db8::9]:80 by uid 1000 gid 1000: captured, to [::1]:15001"
    );
}

#[test]
fn the_entry_that_matched() {
    for (flags, connect, who, entry) in [
        ("", tcp("8.8.8.8", 80), APP, "-i '*'"),
        ("-i ''", tcp("8.8.8.8", 80), APP, "-i '' without -q"),
        ("-i fd00::/8,10.0.0.0/8", tcp("8.8.8.8", 80), APP, "-i '10.0.0.0/8,fd00::/8'"),
        ("-i fd00::/8,10.0.0.0/8", tcp("fd00::9", 80), APP, "-i fd00::/8"),
        ("-o 25,5432", tcp("8.8.8.8", 5432), APP, "-o 5432"),
        ("-i '' -q 80,81", tcp("8.8.8.8", 81), APP, "-q 81"),
        ("", tcp("8.8.8.8", 80), PROXY, "-u 1337"),
        ("-u 5", tcp("8.8.8.8", 80), Who { gid: 5, ..APP }, "-g 5"),
        ("-c eth+", tcp("10.1.2.3", 80), APP, "-c eth+ and the route 10.0.0.0/8 dev eth1"),
        ("-c lo", tcp("127.0.0.9", 80), APP, "-c lo and the route 127.0.0.0/8 dev lo"),
        ("", tcp("127.0.0.1", 80), APP, "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.1/32"),
        ("", tcp("127.0.0.9", 80), APP, "no range of -i that starts in loopback"),
        ("--redirect-dns", udp("8.8.8.8", 53), APP, "--redirect-dns and the resolver 8.8.8.8"),
        ("--redirect-dns --dns-servers fd00::9", udp("fd00::9", 53), APP, "--dns-servers fd00::9"),
        ("--istio-outbound-owner-groups 4", tcp("8.8.8.8", 80), APP, "ISTIO_OUTBOUND_OWNER_GROUPS=4"),
    ] {
        assert_eq!(outbound(flags, connect, who).last(), Some(&format!("by {entry}")), "{flags}");
    }
}

#[test]
fn inbound() {
    let line = |flags: &str, port: u16| {
        let policy = parsed(flags).policy;
        let env = environment();
        let compiled = compile(&policy, &env);
        let (local, remote) = (wide(ip(OWN[0])), wide(ip("10.0.0.9")));
        let a = Arrival { netns: 1, local, remote, local_port: port, interface: 2, family: AF_INET };
        let verdict = verdict::inbound(&compiled.pod, &a, &CompiledTables::new(&compiled, OWN.map(ip)));
        explain(&policy, &env, &Facts::Inbound(&a), verdict)
    };
    assert_eq!(
        line("", 15021),
        [
            "TCP from 10.0.0.9 to 10.0.0.1:15021: left alone",
            "rule in_port_excluded: the port is excluded (-d)",
            "by -d 15021",
        ]
    );
    assert!(line("", 80)[0].ends_with("captured, to the listener on port 15006"));
    assert_eq!(line("-b 80,81", 82)[2], "by -b '80,81'");
    assert_eq!(line("-c eth0", 80)[2], "by -c eth0, interface eth0 of index 2");
    assert_eq!(line("-b ''", 80)[2], "by -b ''");
}
