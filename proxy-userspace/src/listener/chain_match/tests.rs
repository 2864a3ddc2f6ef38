use std::net::SocketAddr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn chain(filter_chain_match: Criteria) -> FilterChain {
    FilterChain::new("", filter_chain_match, Vec::new())
}

fn cidr(text: &str) -> Cidr {
    let (ip, len) = text.split_once('/').unwrap();
    Cidr::new(ip.parse().unwrap(), len.parse().unwrap()).unwrap()
}

fn facts(remote: &str, local: &str) -> Facts {
    Facts::new(remote.parse().unwrap(), local.parse().unwrap())
}

fn named(names: &[&str]) -> Criteria {
    Criteria { server_names: names.iter().map(|n| Arc::from(*n)).collect(), ..Criteria::default() }
}

fn find(chains: &[Criteria], facts: &Facts) -> Option<usize> {
    ChainMatch::new(&chains.iter().cloned().map(chain).collect::<Vec<_>>()).find(facts)
}

#[test]
fn no_chain_and_a_chain_without_conditions() {
    let connection = facts("10.0.0.1:1", "10.0.0.2:80");
    assert_eq!(find(&[], &connection), None);
    assert_eq!(find(&[Criteria::default()], &connection), Some(0));
}

#[test]
fn a_port_that_has_chains_is_never_left_for_one_without() {
    let port =
        Criteria { destination_port: Some(80), transport_protocol: "tls".into(), ..Criteria::default() };
    let chains = [port, Criteria::default()];
    assert_eq!(find(&chains, &facts("10.0.0.1:1", "10.0.0.2:81")), Some(1));
    assert_eq!(find(&chains, &facts("10.0.0.1:1", "10.0.0.2:80")), None);
}

#[test]
fn the_longest_prefix_holds_even_where_it_leads_nowhere() {
    let to = |range, tls: &str| Criteria {
        prefix_ranges: vec![cidr(range)],
        transport_protocol: tls.into(),
        ..Criteria::default()
    };
    let chains = [to("10.0.0.0/8", ""), to("10.1.0.0/16", "tls"), to("0.0.0.0/0", ""), Criteria::default()];
    for (local, expected) in [
        ("10.2.0.1:80", Some(0)),
        ("10.1.0.1:80", None),
        ("11.0.0.1:80", Some(2)),
        ("[::ffff:10.2.0.1]:80", Some(0)),
        ("[fd00::1]:80", Some(3)),
    ] {
        assert_eq!(find(&chains, &facts("10.9.9.9:1", local)), expected, "{local}");
    }
}

#[test]
fn server_names_from_exact_to_none() {
    let chains = [
        named(&["www.example.com"]),
        named(&["*.example.com", "other.org"]),
        named(&["*.com"]),
        Criteria::default(),
    ];
    for (name, expected) in [
        (Some("www.example.com"), 0),
        (Some("api.example.com"), 1),
        (Some("a.b.example.com"), 1),
        (Some("other.org"), 1),
        (Some("example.com"), 2),
        (Some("www.other.org"), 3),
        (Some("com"), 3),
        (Some("www.com."), 3),
        (None, 3),
    ] {
        let mut connection = facts("10.0.0.1:1", "10.0.0.2:443");
        connection.server_name = name.map(Arc::from);
        assert_eq!(find(&chains, &connection), Some(expected), "{name:?}");
    }
}

#[test]
fn the_clients_order_of_protocols_decides() {
    let alpn = |name: &str| Criteria { application_protocols: vec![name.into()], ..Criteria::default() };
    let chains = [alpn("http/1.1"), alpn("h2"), Criteria::default()];
    for (offered, expected) in [
        (&["h2", "http/1.1"][..], 1),
        (&["http/1.1", "h2"], 0),
        (&["spdy", "h2"], 1),
        (&["spdy"], 2),
        (&[], 2),
    ] {
        let mut connection = facts("10.0.0.1:1", "10.0.0.2:443");
        connection.application_protocols = offered.iter().map(|p| Arc::from(*p)).collect();
        assert_eq!(find(&chains, &connection), Some(expected), "{offered:?}");
    }
}

#[test]
fn source_type_comes_before_source_ports() {
    let of = |source_type, ports: &[u16]| Criteria {
        source_type,
        source_ports: ports.to_vec(),
        ..Criteria::default()
    };
    let chains =
        [of(SourceType::Any, &[7]), of(SourceType::External, &[8]), of(SourceType::SameIpOrLoopback, &[])];
    for (remote, local, expected) in [
        ("10.0.0.1:7", "10.0.0.2:80", None),
        ("10.0.0.1:8", "10.0.0.2:80", Some(1)),
        ("10.0.0.2:7", "10.0.0.2:80", Some(2)),
        ("127.0.0.1:7", "10.0.0.2:80", Some(2)),
        ("[::1]:7", "[fd00::1]:80", Some(2)),
        ("127.0.0.2:8", "10.0.0.2:80", Some(1)),
    ] {
        assert_eq!(find(&chains, &facts(remote, local)), expected, "{remote}");
    }
}

type Rank<'a> = &'a dyn Fn(&Criteria) -> Option<usize>;

/// What Envoy's documentation says: criteria in order, each keeps the chains with its most specific matching
/// value.
fn reference(chains: &[Criteria], facts: &Facts) -> Option<usize> {
    let ranks: [Rank<'_>; 9] = [
        &|c| match c.destination_port {
            None => Some(0),
            Some(port) => (port == facts.local.port()).then_some(1),
        },
        &|c| range(&c.prefix_ranges, facts.local.ip()),
        &|c| best(&c.server_names, |name| name_rank(name, facts.server_name.as_deref()?)),
        &|c| match &*c.transport_protocol {
            "" => Some(0),
            other => (other == facts.transport_protocol).then_some(1),
        },
        &|c| {
            best(&c.application_protocols, |protocol| {
                let offered = &facts.application_protocols;
                Some(offered.len() - offered.iter().position(|o| o == protocol)?)
            })
        },
        &|c| range(&c.direct_source_prefix_ranges, facts.direct_remote.ip()),
        &|c| {
            let ip = facts.remote.ip();
            let local = ip == facts.local.ip() || ["127.0.0.1", "::1"].contains(&&*ip.to_string());
            match c.source_type {
                SourceType::Any => Some(0),
                SourceType::SameIpOrLoopback => local.then_some(1),
                SourceType::External => (!local).then_some(1),
            }
        },
        &|c| range(&c.source_prefix_ranges, facts.remote.ip()),
        &|c| best(&c.source_ports, |port| (*port == facts.remote.port()).then_some(1)),
    ];
    let mut left: Vec<usize> = (0..chains.len()).collect();
    for rank in ranks {
        let most = left.iter().filter_map(|i| rank(&chains[*i])).max()?;
        // A less specific value of the same chain is in another branch.
        left.retain(|i| rank(&chains[*i]) == Some(most));
    }
    left.first().copied()
}

fn best<T>(values: &[T], rank: impl Fn(&T) -> Option<usize>) -> Option<usize> {
    if values.is_empty() { Some(0) } else { values.iter().filter_map(rank).max() }
}

fn range(ranges: &[Cidr], ip: IpAddr) -> Option<usize> {
    best(ranges, |range| range.contains(ip).then_some(1 + usize::from(range.prefix)))
}

fn name_rank(pattern: &str, name: &str) -> Option<usize> {
    match pattern.strip_prefix('*') {
        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(pattern.len()),
        None => (pattern == name).then_some(1_000),
    }
}

fn ranges() -> impl Strategy<Value = Vec<Cidr>> {
    vec(select(&["10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "127.0.0.0/8", "::/0", "fd00::/8", "fd00::1/128"][..]), 0..3)
        .prop_map(|texts| texts.into_iter().map(cidr).collect())
}

fn texts(choices: &'static [&'static str]) -> impl Strategy<Value = Vec<Arc<str>>> {
    vec(select(choices), 0..3).prop_map(|texts| texts.into_iter().map(Arc::from).collect())
}

const PROTOCOLS: &[&str] = &["h2", "http/1.1", "istio"];

fn criteria() -> impl Strategy<Value = Criteria> {
    let types = &[SourceType::Any, SourceType::SameIpOrLoopback, SourceType::External][..];
    (
        option::of(select(&[80u16, 443][..])),
        ranges(),
        texts(&["a.b.c", "b.c", "*.b.c", "*.c"]),
        select(&["", "tls", "raw_buffer"][..]),
        texts(PROTOCOLS),
        ranges(),
        select(types),
        ranges(),
        vec(1u16..4, 0..3),
    )
        .prop_map(
            |(
                destination_port,
                prefix_ranges,
                server_names,
                tls,
                alpn,
                direct,
                source_type,
                source,
                ports,
            )| {
                Criteria {
                    destination_port,
                    prefix_ranges,
                    server_names,
                    transport_protocol: tls.into(),
                    application_protocols: alpn,
                    direct_source_prefix_ranges: direct,
                    source_type,
                    source_prefix_ranges: source,
                    source_ports: ports,
                }
            },
        )
}

/// Few conditions each, so that chains compete.
fn sparse() -> impl Strategy<Value = Criteria> {
    (criteria(), any::<[bool; 9]>()).prop_map(|(mut c, keep)| {
        let none = Criteria::default();
        c.destination_port = c.destination_port.filter(|_| keep[0]);
        for (field, at) in [
            (&mut c.prefix_ranges, 1),
            (&mut c.direct_source_prefix_ranges, 5),
            (&mut c.source_prefix_ranges, 7),
        ] {
            field.retain(|_| keep[at]);
        }
        c.server_names.retain(|_| keep[2]);
        if !keep[3] {
            c.transport_protocol = none.transport_protocol;
        }
        c.application_protocols.retain(|_| keep[4]);
        if !keep[6] {
            c.source_type = none.source_type;
        }
        c.source_ports.retain(|_| keep[8]);
        c
    })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ips = &["10.0.0.1", "10.1.0.1", "10.1.1.1", "127.0.0.1", "11.0.0.1", "fd00::1", "fd00::2", "::1"][..];
    (select(ips), select(&[80u16, 443, 1, 2, 3, 9][..]))
        .prop_map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port))
}

fn connection() -> impl Strategy<Value = Facts> {
    let names = &["a.b.c", "b.c", "x.b.c", "x.c", "x"][..];
    (address(), address(), address(), option::of(select(names)), any::<bool>(), texts(PROTOCOLS)).prop_map(
        |(direct, remote, local, name, tls, alpn)| {
            let mut facts = Facts::new(direct, local);
            facts.remote = remote;
            facts.server_name = name.map(Arc::from);
            facts.transport_protocol = if tls { "tls" } else { "raw_buffer" };
            facts.application_protocols = alpn;
            facts
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn agrees_with_a_scan_of_all_chains(chains in vec(sparse(), 0..12), connection in connection()) {
        prop_assert_eq!(find(&chains, &connection), reference(&chains, &connection));
    }
}
