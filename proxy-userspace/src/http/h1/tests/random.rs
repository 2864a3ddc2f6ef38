//! No input is a panic, and what is written is read as it was meant.

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use proptest::prelude::*;

use super::super::encode::{self, Asked};
use super::super::framing::Extent;
use super::super::parse::{self, Scan};
use super::super::{Settings, fuzz_request, fuzz_response};
use super::malformed::Machine;
use crate::http::{RequestHead, ResponseHead};

/// Pieces that a grammar of HTTP trips over.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "GET ",
        "POST ",
        "/",
        " HTTP/1.1",
        "HTTP/1.1 200 OK",
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        "Host: h",
        ":",
        " ",
        "Content-Length: ",
        "Transfer-Encoding: chunked",
        "5",
        "0",
        "ffff",
        ";",
        "a",
        "\0",
        "Connection: upgrade",
        "Upgrade: websocket",
        "X: y",
        "http://h/",
        "\u{e9}",
    ]);
    prop_oneof![
        8 => words.prop_map(|word| word.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..8),
    ]
}

fn name() -> impl Strategy<Value = HeaderName> {
    "x-[a-z0-9_!#$%&'*+.^`|~-]{0,12}".prop_map(|name| name.parse().unwrap())
}

fn value() -> impl Strategy<Value = HeaderValue> {
    prop::collection::vec(prop_oneof![9 => 0x21_u8..=0x7e, 1 => 0x80_u8..=0xff], 0..20)
        .prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap())
}

proptest! {
    #[test]
    fn any_bytes_are_read_to_an_end(data in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz_request(&data);
        fuzz_response(&data);
    }

    #[test]
    fn any_pieces_are_read_alike_in_one_and_in_two(
        pieces in prop::collection::vec(piece(), 0..40),
        at in any::<prop::sample::Index>(),
        request in any::<bool>(),
    ) {
        let data = pieces.concat();
        let settings = Settings { accept_http_10: true, ..Settings::default() };
        let mut whole = Machine::new(request, &settings);
        whole.feed(&data);
        let mut split = Machine::new(request, &settings);
        let at = at.index(data.len() + 1);
        split.feed(&data[..at]);
        split.feed(&data[at..]);
        // What is wrong is the same, but not always what is found first.
        prop_assert_eq!(&split.seen.messages, &whole.seen.messages);
        prop_assert_eq!(&split.seen.bodies, &whole.seen.bodies);
        if split.seen.error.is_none() != whole.seen.error.is_none() {
            prop_assert!(split.seen.error.is_none(), "it was right in one piece: {:?}", split.bad);
        }
    }

    #[test]
    fn a_request_is_read_as_it_was_written(
        fields in prop::collection::vec((name(), value()), 0..20),
        path in "/[!-~]{0,30}",
        body in 0_u64..50,
    ) {
        let mut head = RequestHead::new(Method::POST, "example.com:80", path);
        head.headers.extend(fields.into_iter().map(|(name, value)| (Some(name), value)));
        let len = body;
        let mut out = BytesMut::new();
        let settings = Settings::default();
        encode::request(&mut out, &head, Some(len), &settings).unwrap();
        let parsed = parse::request(&mut out, &mut Scan::default(), &settings).unwrap().unwrap();
        prop_assert_eq!(parsed.extent, if len == 0 { Extent::None } else { Extent::Length(len) });
        let mut read = parsed.head;
        read.headers.remove("content-length");
        prop_assert_eq!(read.headers, head.headers);
        prop_assert_eq!((read.path, read.authority), (head.path, head.authority));
        prop_assert!(out.is_empty());
    }

    #[test]
    fn a_response_is_read_as_it_was_written(
        fields in prop::collection::vec((name(), value()), 0..20),
        status in 200_u16..600,
        chunked in any::<bool>(),
    ) {
        let status = StatusCode::from_u16(status).unwrap();
        let mut head = ResponseHead::new(status);
        head.headers.extend(fields.into_iter().map(|(name, value)| (Some(name), value)));
        let asked =
            Asked { method: Method::GET, version: Version::HTTP_11, upgrade: None, keep_alive: true };
        let mut out = BytesMut::new();
        let settings = Settings::default();
        encode::response(&mut out, &head, (!chunked).then_some(5), &asked, &mut false, &settings);
        let parsed = parse::response(&mut out, &mut Scan::default(), &Method::GET, &settings).unwrap().unwrap();
        let expected = match status.as_u16() {
            204 | 304 => Extent::None,
            _ if chunked => Extent::Chunked,
            _ => Extent::Length(5),
        };
        prop_assert_eq!(parsed.extent, expected);
        let mut read = parsed.head.headers;
        read.remove("content-length");
        prop_assert_eq!(read, head.headers);
    }
}
