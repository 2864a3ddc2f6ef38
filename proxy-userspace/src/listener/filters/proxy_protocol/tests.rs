use proptest::prelude::*;

use super::*;

fn v2_of(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&V2_SIGNATURE[..], &[command, family], &len, body].concat()
}

fn v4() -> Vec<u8> {
    [&[1, 2, 3, 4, 5, 6, 7, 8][..], &1000u16.to_be_bytes(), &2000u16.to_be_bytes()].concat()
}

fn v4_with(more: &[u8]) -> Vec<u8> {
    v2_of(0x21, 0x11, &[&v4()[..], more].concat())
}

fn v6() -> Vec<u8> {
    [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 15], &[2], &1000u16.to_be_bytes(), &2000u16.to_be_bytes()]
        .concat()
}

fn one(buf: &[u8]) -> Peek<Option<Header<'_>>, Refusal> {
    parse(buf, &Config::default())
}

fn addresses(from: &str, to: &str) -> Option<(SocketAddr, SocketAddr)> {
    Some((from.parse().unwrap(), to.parse().unwrap()))
}

#[test]
fn headers_that_envoy_takes() {
    let pair = addresses("1.2.3.4:1000", "5.6.7.8:2000");
    let v6_pair = addresses("[::1]:1000", "[::2]:2000");
    let unknown = [b"PROXY UNKNOWN ", &[b'a'; 92][..], b"\r\n"].concat();
    assert_eq!(unknown.len(), V1_MAX);
    for (buf, expected) in [
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n".to_vec(), pair),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000 \r\n".to_vec(), pair),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 010 +20\r\n".to_vec(), addresses("1.2.3.4:10", "5.6.7.8:20")),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n".to_vec(), addresses("1.2.3.4:0", "5.6.7.8:0")),
        (b"PROXY TCP6 ::1 ::2 1000 2000\r\n".to_vec(), v6_pair),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN a b c d e f g\r\n".to_vec(), None),
        (unknown, None),
        (v2_of(0x21, 0x11, &v4()), pair),
        (v2_of(0x21, 0x12, &v4()), pair),
        (v2_of(0x21, 0x21, &v6()), v6_pair),
        (v4_with(b"\x03\0\x04\0\0\0\0"), pair),
        (v2_of(0x20, 0, b""), None),
        (v2_of(0x20, 0x11, &[&v4()[..], b"\xea\xff\xff"].concat()), None),
    ] {
        let rest = [&buf[..], b"rest"].concat();
        let Peek::Done(Some(header)) = one(&rest) else { panic!("{:?}", String::from_utf8_lossy(&buf)) };
        assert_eq!((header.addresses, header.len), (expected, buf.len()));
        for len in 0..buf.len() {
            match one(&buf[..len]) {
                Peek::NeedMore(total) => assert!(total > len && total <= buf.len()),
                other @ (Peek::Done(_) | Peek::Refuse(_)) => panic!("{len}: {other:?}"),
            }
        }
    }
}

#[test]
fn tlvs_of_any_length() {
    let long = [&[0xe0][..], &(u16::MAX - 15).to_be_bytes(), &vec![7; usize::from(u16::MAX) - 15]].concat();
    for (bytes, expected) in [
        (&b"\xea\0\x03abc\x04\0\0"[..], vec![(0xea, &b"abc"[..]), (4, b"")]),
        (b"\xea\0\0", vec![(0xea, b"")]),
        (&long, vec![(0xe0, &long[3..])]),
    ] {
        let buf = v4_with(bytes);
        let Peek::Done(Some(header)) = one(&buf) else { panic!() };
        assert_eq!(header.tlvs, expected);
        assert_eq!(header.len, buf.len());
    }
}

#[test]
fn what_envoy_refuses() {
    use Refusal::{Broken, NotFound};
    use Version::{V1, V2};
    let v1_long = [b"PROXY UNKNOWN ", &[b'a'; 93][..], b"\r\n"].concat();
    let v1_endless = [b"PROXY UNKNOWN ", &[b'a'; 95][..]].concat();
    for (buf, expected) in [
        (&b"PROXY  TCP4  1.2.3.4 5.6.7.8 1000 2000\r\n"[..], Broken(V1)),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000 5\r\n", Broken(V1)),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1000\r\n", Broken(V1)),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 65536\r\n", Broken(V1)),
        (b"PROXY TCP4 ::1 ::2 1000 2000\r\n", Broken(V1)),
        (b"PROXY TCP4 224.0.0.1 5.6.7.8 1000 2000\r\n", Broken(V1)),
        (b"PROXY TCP4 0.0.0.0 5.6.7.8 1000 2000\r\n", Broken(V1)),
        (b"PROXY TCP4 255.255.255.255 5.6.7.8 1000 2000\r\n", Broken(V1)),
        (b"PROXY UDP4 1.2.3.4 5.6.7.8 1000 2000\r\n", Broken(V1)),
        (b"PROXY hello\r\n", Broken(V1)),
        (b"PROXY \xff\r\n", Broken(V1)),
        (b"GET /\r\n", Broken(V1)),
        (&v1_long, Broken(V1)),
        (&v1_endless, NotFound),
        (b"proxy TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n", NotFound),
        (b"PROXY\tTCP4 1.2.3.4 5.6.7.8 1000 2000\r\n", NotFound),
        (b"PROXYTCP4 1.2.3.4 5.6.7.8 1000 2000\r\n", NotFound),
        (b"GARBAGE GARBAGE ", NotFound),
        (&v2_of(0x21, 0x10, &v4()), Broken(V2)),
        (&v2_of(0x21, 0x13, &v4()), Broken(V2)),
        (&v2_of(0x21, 0x31, &[0; 216]), Broken(V2)),
        (&v2_of(0x21, 0, b""), Broken(V2)),
        (&v2_of(0x22, 0x11, &v4()), Broken(V2)),
        (&v2_of(0x11, 0x11, &v4()), Broken(V2)),
        (&v2_of(0x21, 0x11, &v4()[..11]), Broken(V2)),
        (&v2_of(0x21, 0x11, &[0; 12]), Broken(V2)),
        (&v4_with(b"\xea\0\x09abc"), Broken(V2)),
        (&v4_with(b"\xea\0"), Broken(V2)),
        (&v4_with(b"\xea"), Broken(V2)),
    ] {
        assert_eq!(one(buf), Peek::Refuse(expected), "{:?}", String::from_utf8_lossy(buf));
    }
    for waits in [&b"GARBAGE "[..], b"\r\n", b"\r\nx\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000\n"] {
        assert_eq!(one(waits), Peek::NeedMore(waits.len() + 1));
    }
}

#[test]
fn headers_that_are_optional_or_unwanted() {
    let (v1, v2) = (&b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 2000\r\n"[..], v2_of(0x21, 0x11, &v4()));
    let optional = Config { allow_requests_without_proxy_protocol: true, ..Config::default() };
    let no_v1 = Config { disallow_v1: true, ..Config::default() };
    let no_v2 = Config { disallow_v2: true, ..Config::default() };
    let optional_v1 = Config { disallow_v2: true, ..optional.clone() };
    for none in [&b"h"[..], b"hello world hello", b"PROXx"] {
        assert_eq!(parse(none, &optional), Peek::Done(None));
    }
    assert_eq!(parse(b"", &optional), Peek::NeedMore(1));
    assert_eq!(parse(b"PRO", &optional), Peek::NeedMore(4));
    assert_eq!(parse(b"PROXY hello\r\n", &optional), Peek::Refuse(Refusal::Broken(Version::V1)));
    assert_eq!(parse(&v2[..16], &optional_v1), Peek::Done(None));
    assert!(matches!(parse(v1, &optional_v1), Peek::Done(Some(_))));
    assert_eq!(parse(v1, &no_v1), Peek::Refuse(Refusal::Disallowed(Version::V1)));
    assert_eq!(parse(b"PROXY hello\r\n", &no_v1), Peek::Refuse(Refusal::Disallowed(Version::V1)));
    assert!(matches!(parse(&v1[..14], &no_v1), Peek::NeedMore(_)));
    assert!(matches!(parse(&v2, &no_v1), Peek::Done(Some(_))));
    assert_eq!(parse(&v2[..16], &no_v2), Peek::Refuse(Refusal::Disallowed(Version::V2)));
}

proptest! {
    #[test]
    fn no_bytes_break_it(raw: Vec<u8>, text in "PROXY [TCP46UNKNOW .:0-9a-f]{0,60}\r\n", allow: bool) {
        let config = Config { allow_requests_without_proxy_protocol: allow, ..Config::default() };
        let with_signature = [&V2_SIGNATURE[..], &raw].concat();
        for buf in [&raw, &with_signature, text.as_bytes()] {
            match parse(buf, &config) {
                Peek::NeedMore(total) => prop_assert!(total > buf.len()),
                Peek::Done(Some(header)) => prop_assert!(header.len <= buf.len()),
                Peek::Done(None) | Peek::Refuse(_) => {}
            }
        }
    }
}
