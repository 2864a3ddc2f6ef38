use proptest::prelude::*;

use super::*;

const MAX: usize = 16 * 1024;
const OPENSSL: &[u8] = include_bytes!("../../../../../fuzz/corpus/tls_inspector/openssl-sni-alpn");
const OPENSSL_12: &[u8] = include_bytes!("../../../../../fuzz/corpus/tls_inspector/openssl-tls12");

fn vec16(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vec16(body)].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    extension(SERVER_NAME, &vec16(&[&[0], &vec16(name)[..]].concat()))
}

fn alpn_of(protocols: &[&[u8]]) -> Vec<u8> {
    let list = protocols.iter().flat_map(|p| [&[p.len() as u8], *p].concat()).collect::<Vec<_>>();
    extension(ALPN, &vec16(&list))
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], body].concat()
}

fn body(version: u16, extensions: &[u8]) -> Vec<u8> {
    let random = [7; 32];
    [&version.to_be_bytes()[..], &random, &[0], &[0, 2, 0x13, 1], &[1, 0], &vec16(extensions)].concat()
}

fn in_record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1], &vec16(body)[..]].concat()
}

fn hello(extensions: &[u8]) -> Vec<u8> {
    in_record(HANDSHAKE, &message(CLIENT_HELLO, &body(0x0303, extensions)))
}

fn seen(buf: &[u8]) -> Option<Hello> {
    match inspect(buf, MAX) {
        Peek::Done(inspected) => inspected.hello,
        other @ (Peek::NeedMore(_) | Peek::Refuse(_)) => panic!("{other:?}"),
    }
}

#[test]
fn what_openssl_sends() {
    let Peek::Done(inspected) = inspect(OPENSSL, MAX) else { panic!() };
    assert_eq!(inspected.bytes, OPENSSL.len());
    let hello = inspected.hello.unwrap();
    assert_eq!(hello.server_name.as_deref(), Some("example.com"));
    assert_eq!(hello.alpn, ["h2".into(), "http/1.1".into()]);
    assert_eq!(seen(OPENSSL_12), Some(Hello::default()));
}

#[test]
fn every_prefix_asks_for_more() {
    for whole in [OPENSSL, OPENSSL_12, &hello(&sni(b"a.b"))] {
        for len in 0..whole.len() {
            match inspect(&whole[..len], MAX) {
                Peek::NeedMore(total) => assert!(total > len && total <= whole.len(), "{len}"),
                other @ (Peek::Done(_) | Peek::Refuse(_)) => panic!("{len}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_hello_in_many_records_and_among_others() {
    let handshake = &OPENSSL[HEADER..];
    let of = |size: usize| handshake.chunks(size).flat_map(|c| in_record(HANDSHAKE, c)).collect::<Vec<_>>();
    let expected = seen(OPENSSL);
    for size in [1, 3, 4, 100, 511] {
        assert_eq!(seen(&of(size)), expected, "{size}");
    }
    assert_eq!(seen(&[&in_record(HANDSHAKE, b""), OPENSSL].concat()), expected);
    assert_eq!(seen(&[&in_record(ALERT, &[1, 90]), OPENSSL].concat()), expected);
    assert_eq!(seen(&[OPENSSL, b"early data"].concat()), expected);
    assert_eq!(seen(&in_record(HANDSHAKE, b"").repeat(40)), None);
}

#[test]
fn what_is_no_tls_and_when_it_is_known() {
    for (what, bytes, known_after) in [
        ("text", &b"GET / HTTP/1.1\r\n"[..], 5),
        ("another version", &[22, 2, 9, 0, 5], 5),
        ("a record too long", &[22, 3, 1, 0x41, 0x41], 5),
        ("another record", &in_record(23, b"hello"), 10),
        ("a fatal alert", &in_record(ALERT, &[2, 40]), 7),
        ("another message", &in_record(HANDSHAKE, &message(2, b"ab")), 11),
        ("a message too long", &in_record(HANDSHAKE, &[1, 0, 0x40, 1, 0]), 10),
        ("a hello of nothing", &in_record(HANDSHAKE, &message(1, b"abcde")), 14),
    ] {
        for len in 0..known_after {
            assert!(matches!(inspect(&bytes[..len], MAX), Peek::NeedMore(_)), "{what}: {len}");
        }
        let expected = Inspected { hello: None, bytes: known_after };
        assert_eq!(inspect(bytes, MAX), Peek::Done(expected), "{what}");
    }
    assert_eq!(inspect(&in_record(ALERT, &[1, 0]), MAX), Peek::Refuse(Refusal::Closed));
}

#[test]
fn server_names_as_the_library_takes_them() {
    let long = [b'a'; 256];
    for (what, extension, expected) in [
        ("plain", sni(b"A.b"), Some("a.b")),
        ("an address", sni(b"1.2.3.4"), Some("1.2.3.4")),
        ("odd letters", sni(b"a_b."), Some("a_b.")),
        ("no text", sni(b"a\xff"), Some("a\u{fffd}")),
        ("long", sni(&long[..255]), Some(std::str::from_utf8(&long[..255]).unwrap())),
        ("too long", sni(&long), None),
        ("empty", sni(b""), None),
        ("with NUL", sni(b"a\0b"), None),
        ("another type", extension(SERVER_NAME, &vec16(&[1, 0, 1, b'a'])), None),
        ("two names", extension(SERVER_NAME, &vec16(b"\0\0\x01a\0\0\x01b")), None),
        ("more behind", extension(SERVER_NAME, b"\0\x04\0\0\x01ax"), None),
        ("twice", [sni(b"a"), sni(b"a")].concat(), None),
    ] {
        let name = seen(&hello(&extension)).map(|hello| hello.server_name.unwrap());
        assert_eq!(name.as_deref(), expected, "{what}");
    }
}

#[test]
fn broken_alpn_is_no_alpn_and_versions_must_be_known() {
    assert_eq!(seen(&hello(&alpn_of(&[b"h2", b"x"]))).unwrap().alpn, ["h2".into(), "x".into()]);
    for broken in [alpn_of(&[b""]), extension(ALPN, b"\0\x03\x02h"), extension(ALPN, b"")] {
        assert_eq!(seen(&hello(&broken)), Some(Hello::default()));
    }
    let versions = |list: &[u8]| extension(SUPPORTED_VERSIONS, list);
    let first = |version| in_record(HANDSHAKE, &message(CLIENT_HELLO, &body(version, b"")));
    for (what, bytes, tls) in [
        ("1.3", hello(&versions(&[2, 3, 4])), true),
        ("grease only", hello(&versions(&[2, 0x1a, 0x1a])), false),
        ("odd list", hello(&versions(&[3, 3, 4, 3])), false),
        ("SSL 3.0", first(0x0300), false),
        ("1.0", first(0x0301), true),
    ] {
        assert_eq!(seen(&bytes).is_some(), tls, "{what}");
    }
}

#[test]
fn an_oversized_hello_is_refused_and_oversized_text_is_not() {
    assert_eq!(inspect(OPENSSL, 256), Peek::Refuse(Refusal::TooLarge));
    assert_eq!(inspect(&OPENSSL[..200], 256), Peek::NeedMore(256));
    assert!(matches!(inspect(&[b'G'; 300], 256), Peek::Done(Inspected { hello: None, .. })));
    let largest = in_record(HANDSHAKE, &[1, 0, 0x40, 0]);
    assert!(matches!(inspect(&largest, MAX), Peek::NeedMore(_)));
}

proptest! {
    #[test]
    fn no_bytes_break_it(mut bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..300usize) {
        let _ = inspect(&bytes, MAX);
        // Near misses of a real hello.
        let mut real = OPENSSL.to_vec();
        bytes.truncate(4);
        for (i, byte) in bytes.iter().enumerate() {
            if let Some(slot) = real.get_mut(at + i) {
                *slot = *byte;
            }
        }
        if let Peek::NeedMore(total) = inspect(&real, MAX) {
            prop_assert!(total > real.len());
        }
    }
}
