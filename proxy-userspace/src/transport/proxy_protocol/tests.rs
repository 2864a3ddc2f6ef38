use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ppp::PartialResult as _;
use proptest::prelude::*;
use proxy_config::model::listener_filter::ProxyProtocol as Reader;
use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::listener::filters::Peek;
use crate::listener::filters::proxy_protocol::{self as filter, Version};
use crate::transport::Raw;

fn rules(version: ProxyVersion) -> Rules {
    let (pass_through, added) = (PassThroughTlvs::None, Vec::new());
    Rules { version, pass_through, added, allow_unspecified_address: false }
}

fn facts(from: &str, to: &str, tlvs: &[(u8, &[u8])]) -> Facts {
    let mut facts = Facts::new(from.parse().unwrap(), to.parse().unwrap());
    if !tlvs.is_empty() {
        facts.extra_mut().proxy_tlvs = tlvs.iter().map(|(kind, value)| (*kind, value.to_vec())).collect();
    }
    facts
}

fn written(rules: &Rules, facts: &Facts) -> Vec<u8> {
    rules.of_client(facts, &ProxyProtocolStats::default())
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(rest: &[&[u8]]) -> Vec<u8> {
    [&[SIGNATURE], rest].concat().concat()
}

/// What Envoy 1.40 sent for the same connections.
#[test]
fn the_bytes_of_each_version_and_family() {
    let four = facts("127.0.0.1:46528", "127.0.0.1:58913", &[]);
    let six = facts("[::1]:46888", "[::1]:45025", &[]);
    let ones = Ipv6Addr::LOCALHOST.octets();
    let (v1, v2_rules) = (rules(ProxyVersion::V1), rules(ProxyVersion::V2));
    assert_eq!(written(&v1, &four), b"PROXY TCP4 127.0.0.1 127.0.0.1 46528 58913\r\n");
    assert_eq!(written(&v1, &six), b"PROXY TCP6 ::1 ::1 46888 45025\r\n");
    let expected = v2(&[b"\x21\x11\x00\x0c\x7f\0\0\x01\x7f\0\0\x01\xb5\xc0\xe6\x21"]);
    assert_eq!(written(&v2_rules, &four), expected);
    let expected = v2(&[b"\x21\x21\x00\x24", &ones, &ones, b"\xb7\x28\xaf\xe1"]);
    assert_eq!(written(&v2_rules, &six), expected);
}

#[test]
fn an_ipv4_address_beside_an_ipv6_one_is_written_as_that() {
    let mixed = facts("1.2.3.4:5", "[2001:db8::1]:6", &[]);
    let expected: &[u8] = b"PROXY TCP6 ::ffff:1.2.3.4 2001:db8::1 5 6\r\n";
    assert_eq!(written(&rules(ProxyVersion::V1), &mixed), expected);
    let mapped = Ipv4Addr::new(1, 2, 3, 4).to_ipv6_mapped().octets();
    let other = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
    let expected = v2(&[b"\x21\x21\x00\x24", &mapped, &other, b"\0\x05\0\x06"]);
    assert_eq!(written(&rules(ProxyVersion::V2), &mixed), expected);
}

#[tokio::test]
async fn a_health_check_speaks_for_the_proxy_itself() {
    let (ours, mut peer) = pair().await;
    let (from, to) = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
    let text = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", from.port(), to.port());
    for (version, expected) in
        [(ProxyVersion::V1, text.into_bytes()), (ProxyVersion::V2, v2(&[b"\x20\0\0\0"]))]
    {
        let mut transport = Announced::new(rules(version).of_health_check(), Box::new(Raw));
        poll_fn(|cx| transport.poll_ready(cx, Socket::Tcp(&ours))).await.unwrap();
        let mut seen = vec![0; expected.len()];
        timeout(LONG, peer.read_exact(&mut seen)).await.unwrap().unwrap();
        assert_eq!(seen, expected);
    }
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut transport = Announced::new(rules(ProxyVersion::V1).of_health_check(), Box::new(Raw));
    poll_fn(|cx| transport.poll_ready(cx, Socket::Unix(&ours))).await.unwrap();
    let mut seen = [0; 15];
    timeout(LONG, peer.read_exact(&mut seen)).await.unwrap().unwrap();
    assert_eq!(&seen, b"PROXY UNKNOWN\r\n");
}

#[test]
fn an_unspecified_address_is_left_out_where_that_is_allowed() {
    let unspecified = facts("0.0.0.0:0", "10.0.0.1:80", &[(0xe2, b"x")]);
    for (version, kept, left_out) in [
        (ProxyVersion::V1, b"PROXY TCP4 0.0.0.0 10.0.0.1 0 80\r\n".to_vec(), b"PROXY UNKNOWN\r\n".to_vec()),
        (
            ProxyVersion::V2,
            v2(&[b"\x21\x11\0\x10\0\0\0\0\x0a\0\0\x01\0\0\0\x50\xe2\0\x01x"]),
            v2(&[b"\x21\0\0\x04\xe2\0\x01x"]),
        ),
    ] {
        let keeping = Rules { pass_through: PassThroughTlvs::All, ..rules(version) };
        assert_eq!(written(&keeping, &unspecified), kept);
        let allowing = Rules { allow_unspecified_address: true, ..keeping };
        assert_eq!(written(&allowing, &unspecified), left_out);
        let named = facts("10.0.0.2:1", "10.0.0.1:80", &[]);
        assert_eq!(written(&allowing, &named), written(&rules(version), &named));
    }
}

/// As Envoy 1.40 answered each of these.
#[test]
fn which_tlvs_are_sent() {
    type Tlvs = &'static [(u8, &'static [u8])];
    let none: Tlvs = &[];
    let own: Tlvs = &[(0xe2, b"x"), (0xe5, b"y"), (0xe5, b"z")];
    let twice: Tlvs = &[(0xe2, b"aa"), (0xe2, b"bb"), (0xe3, b"cc")];
    let all = PassThroughTlvs::All;
    let include = |kinds: &[u8]| PassThroughTlvs::Include(kinds.to_vec());
    for (pass_through, added, expected) in [
        (PassThroughTlvs::None, none, none),
        (all.clone(), none, own),
        (include(&[0xe5]), none, &[(0xe5, b"y"), (0xe5, b"z")]),
        (include(&[4]), none, none),
        (PassThroughTlvs::None, twice, twice),
        (all.clone(), &[(0xe2, b"aa")], &[(0xe2, b"aa"), (0xe5, b"y"), (0xe5, b"z")]),
        (all, &[(0xe5, b"")], &[(0xe5, b""), (0xe2, b"x")]),
    ] {
        let added = added.iter().map(|(kind, value)| (*kind, Arc::from(*value))).collect();
        let rules = Rules { pass_through, added, ..rules(ProxyVersion::V2) };
        let bytes = written(&rules, &facts("1.2.3.4:5", "5.6.7.8:9", own));
        let expected: Vec<_> = expected.iter().map(|(kind, value)| (*kind, value.to_vec())).collect();
        assert_eq!(read(&bytes).1, expected);
        // A text header has no room for any.
        let text = Rules { version: ProxyVersion::V1, ..rules };
        let bytes = written(&text, &facts("1.2.3.4:5", "5.6.7.8:9", own));
        assert_eq!(bytes, b"PROXY TCP4 1.2.3.4 5.6.7.8 5 9\r\n");
    }
}

#[test]
fn a_tlv_without_room_is_left_out_and_counted() {
    let stats = ProxyProtocolStats::default();
    let rules = Rules { pass_through: PassThroughTlvs::All, ..rules(ProxyVersion::V2) };
    let sent = |tlvs: &[(u8, &[u8])]| {
        let bytes = rules.of_client(&facts("1.2.3.4:5", "5.6.7.8:9", tlvs), &stats);
        let kinds: Vec<_> = read(&bytes).1.into_iter().map(|(kind, _)| kind).collect();
        (kinds, stats.v2_tlvs_exceed_max_length.value())
    };
    // 65535 bytes are 12 of addresses, 3 of type and length, and these.
    let fits = vec![b'y'; 65_520];
    assert_eq!(sent(&[(0xe5, &fits)]), (vec![0xe5], 0));
    assert_eq!(sent(&[(0xe5, &fits), (0xe6, b"")]), (vec![0xe5], 1));
    // The smaller one behind it still goes.
    let (large, small) = (vec![b'y'; 65_500], vec![0; 60]);
    let mixed: [(u8, &[u8]); 4] = [(0xe2, b"aa"), (0xe3, &small), (0xe5, &large), (0xe6, b"z")];
    assert_eq!(sent(&mixed), (vec![0xe2, 0xe3, 0xe6], 2));
    assert_eq!(sent(&[(0xe5, &vec![0; 70_000])]), (vec![], 3));
}

type Read = (Option<(SocketAddr, SocketAddr)>, Vec<(u8, Vec<u8>)>);

/// As our own listener filter reads it, and ppp: both must see the same.
fn read(bytes: &[u8]) -> Read {
    let Peek::Done(Some(header)) = filter::parse(bytes, &Reader::default()) else {
        panic!("{:?}", String::from_utf8_lossy(bytes))
    };
    assert_eq!(header.len, bytes.len());
    let tlvs: Vec<_> = header.tlvs.iter().map(|(kind, value)| (*kind, value.to_vec())).collect();
    let ours = (header.addresses, tlvs);
    let theirs = match header.version {
        Version::V1 => (v1_of_ppp(bytes), Vec::new()),
        Version::V2 => v2_of_ppp(bytes),
    };
    assert_eq!(ours, theirs);
    ours
}

fn v1_of_ppp(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    match ppp::v1::Header::try_from(bytes).unwrap().addresses {
        ppp::v1::Addresses::Unknown => None,
        ppp::v1::Addresses::Tcp4(pair) => Some((
            (pair.source_address, pair.source_port).into(),
            (pair.destination_address, pair.destination_port).into(),
        )),
        ppp::v1::Addresses::Tcp6(pair) => Some((
            (pair.source_address, pair.source_port).into(),
            (pair.destination_address, pair.destination_port).into(),
        )),
    }
}

fn v2_of_ppp(bytes: &[u8]) -> Read {
    let header = ppp::HeaderResult::parse(bytes);
    assert!(!header.is_incomplete());
    let ppp::HeaderResult::V2(Ok(header)) = header else { panic!("{header:?}") };
    let addresses = match header.addresses {
        ppp::v2::Addresses::IPv4(pair) => Some((
            (pair.source_address, pair.source_port).into(),
            (pair.destination_address, pair.destination_port).into(),
        )),
        ppp::v2::Addresses::IPv6(pair) => Some((
            (pair.source_address, pair.source_port).into(),
            (pair.destination_address, pair.destination_port).into(),
        )),
        ppp::v2::Addresses::Unspecified => None,
        ppp::v2::Addresses::Unix(_) => panic!("a unix address"),
    };
    let tlvs = header.tlvs().map(|tlv| tlv.unwrap()).map(|tlv| (tlv.kind, tlv.value.to_vec()));
    (addresses, tlvs.collect())
}

fn unicast() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![any::<Ipv4Addr>().prop_map(IpAddr::V4), any::<Ipv6Addr>().prop_map(IpAddr::V6)];
    let one = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    (ip.prop_filter("a header names one machine", one), any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        from in unicast(),
        to in unicast(),
        tlvs: Vec<(u8, Vec<u8>)>,
        binary: bool,
    ) {
        let mut facts = Facts::new(from, to);
        facts.extra_mut().proxy_tlvs = tlvs.clone();
        let version = if binary { ProxyVersion::V2 } else { ProxyVersion::V1 };
        let rules = Rules { pass_through: PassThroughTlvs::All, ..rules(version) };
        let (addresses, seen) = read(&written(&rules, &facts));
        let (seen_from, seen_to) = addresses.unwrap();
        prop_assert_eq!(canonical(seen_from), canonical(from));
        prop_assert_eq!(canonical(seen_to), canonical(to));
        prop_assert_eq!(seen, if binary { tlvs } else { Vec::new() });
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (ours, listener.accept().await.unwrap().0)
}

/// Longer than anything takes on a loaded machine.
const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_header_that_does_not_fit_is_sent_in_pieces_and_before_all_else() {
    let (ours, mut peer) = pair().await;
    SockRef::from(&ours).set_send_buffer_size(4_096).unwrap();
    // More than loopback takes into both buffers.
    let header: Vec<u8> = (0..4_000_000_u32).map(|n| n as u8).collect();
    let mut transport = Announced::new(Header::Bytes(header.clone()), Box::new(Raw));
    let socket = Socket::Tcp(&ours);
    let first = poll_fn(|cx| Poll::Ready(transport.poll_ready(cx, socket))).await;
    assert!(first.is_pending() && transport.sent > 0, "{}", transport.sent);
    let send = async {
        poll_fn(|cx| transport.poll_ready(cx, socket)).await.unwrap();
        poll_fn(|cx| transport.poll_write(cx, socket, b"hello")).await.unwrap();
        poll_fn(|cx| transport.poll_shutdown(cx, socket)).await.unwrap();
    };
    let mut received = Vec::new();
    let both = async { tokio::join!(send, peer.read_to_end(&mut received)).1 };
    timeout(LONG, both).await.unwrap().unwrap();
    assert!(received == [&header[..], b"hello"].concat(), "{} bytes", received.len());
}

#[tokio::test]
async fn a_peer_that_has_gone_is_no_failure_of_the_transports() {
    let (ours, peer) = pair().await;
    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
    drop(peer);
    let mut transport = Announced::new(Header::OwnEnds, Box::new(Raw));
    let failure = loop {
        transport.header = Header::OwnEnds;
        // The first writes may come before the RST does.
        if let Err(failure) = poll_fn(|cx| transport.poll_ready(cx, Socket::Tcp(&ours))).await {
            break failure;
        }
    };
    assert!(failure.remote && failure.reason.is_empty(), "{failure:?}");
}
