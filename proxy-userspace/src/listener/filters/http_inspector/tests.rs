use proptest::prelude::*;

use super::*;

/// What the real Envoy 1.40 says of each, sent at once.
#[test]
fn judged_as_envoy_judges() {
    let (http10, http11, h2c) = (Some(Protocol::Http10), Some(Protocol::Http11), Some(Protocol::H2c));
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], http11),
        (b"GET / HTTP/1.1\n", http11),
        (b"GET / HTTP/1.0\r\n", http10),
        (b"GET / HTTP/2.0\r\n", http10),
        (b"GET / HTTP/0.9\r\n", http10),
        (b"GET / HTTP/1.2\r\n", http10),
        (b"GET /\r\n", http10),
        (b"FOO / HTTP/1.1\r\n", http11),
        (b"get / HTTP/1.1\r\n", http11),
        (b"GET  / HTTP/1.1\r\n", http11),
        (b"GET\t/ HTTP/1.1\r\n", http11),
        (b"GET / HTTP/1.1 \r\n", http11),
        (b"GET / HTTP/1.1\r\r\n", http11),
        (b"GET /\x01 HTTP/1.1\r\n", http11),
        (b"GET / HTTP/1.1\r\n\0", http11),
        (b"CONNECT a:1 HTTP/1.1\r\n", http11),
        (b"OPTIONS * HTTP/1.1\r\n", http11),
        (b"GET http://a.b/c HTTP/1.1\r\n", http11),
        (b"PRI * HTTP/1.1\r\n", http11),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", h2c),
        (b"PRI * HTTP/2.0\r\n\r\nXX", http10),
        (b"\0\x01\x02garbage", None),
        (b"\x16\x03\x01\0\x05hello", None),
        (b" GET / HTTP/1.1\r\n", None),
        (b"\r\nGET / HTTP/1.1\r\n", None),
        (b"\nGET", None),
        (b"hello\n", None),
        (b"hello world\n", None),
        (b"hello big world\n", None),
        (b"F\x01OO / HTTP/1.1\r\n", None),
        (b"G\rET / HTTP/1.1\r\n", None),
        (b"G@ET / HTTP/1.1\r\n", None),
        (b"{ET / HTTP/1.1\r\n", None),
        (b"GET foo HTTP/1.1\r\n", None),
        (b"GET \0 HTTP/1.1\r\n", None),
        (b"GET /\x80 HTTP/1.1\r\n", None),
        (b"GET / x HTTP/1.1\r\n", None),
        (b"GET / FTP/1.1\r\n", None),
        (b"GET / http/1.1\r\n", None),
        (b"GET / HTTP/1.10\r\n", None),
        (b"GET / HTTP/a.b\r\n", None),
        (b"GET / HTTP/1\r\n", None),
    ] {
        assert_eq!(inspect(bytes), Peek::Done(expected), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn every_prefix_asks_for_one_more() {
    for whole in [&b"GET /a?b HTTP/1.1\r\n"[..], PREFACE, b"PRI * HTTP/2.0\r\n"] {
        for len in 0..whole.len() {
            assert_eq!(inspect(&whole[..len]), Peek::NeedMore(len + 1), "{len}");
        }
    }
}

#[test]
fn a_line_without_end_is_refused() {
    let line = vec![b'A'; MAX_INSPECT_SIZE + 1];
    assert_eq!(inspect(&line[..MAX_INSPECT_SIZE - 1]), Peek::NeedMore(MAX_INSPECT_SIZE));
    assert_eq!(inspect(&line[..MAX_INSPECT_SIZE]), Peek::Refuse(TooLong));
    assert_eq!(inspect(&line), Peek::Refuse(TooLong));
    let long = [b"GET /", &vec![b'a'; 9_000][..], b" HTTP/1.1\r\n"].concat();
    assert_eq!(inspect(&long), Peek::Done(Some(Protocol::Http11)));
}

proptest! {
    #[test]
    fn no_bytes_break_it(bytes in "\\PC{0,20}[ \t/:@?]{0,4}\\PC{0,20}\r?\n?", raw: Vec<u8>) {
        let _ = inspect(bytes.as_bytes());
        if let Peek::NeedMore(total) = inspect(&raw) {
            prop_assert_eq!(total, raw.len() + 1);
        }
    }
}
