//! Answers of an SMTP server.

const LONGEST_LINE: usize = 2048;
const MOST_LINES: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    NeedMore,
    /// An answer of this length, with its last CR LF.
    Done {
        code: u16,
        len: usize,
    },
    Malformed,
}

/// The answer that `data` begins with: lines of one code, all but the last with a hyphen behind it.
pub(super) fn parse(data: &[u8]) -> Parsed {
    let mut len = 0;
    let mut first = None;
    for _ in 0..MOST_LINES {
        let rest = data.get(len..).unwrap_or_default();
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return if rest.len() < LONGEST_LINE { Parsed::NeedMore } else { Parsed::Malformed };
        };
        len += end + 1;
        let Some(line) = rest.get(..=end).filter(|line| line.len() <= LONGEST_LINE).and_then(Line::of) else {
            return Parsed::Malformed;
        };
        if *first.get_or_insert(line.code) != line.code {
            return Parsed::Malformed;
        }
        if line.is_last {
            return Parsed::Done { code: line.code, len };
        }
    }
    Parsed::Malformed
}

struct Line<'a> {
    code: u16,
    is_last: bool,
    text: &'a [u8],
}

impl<'a> Line<'a> {
    fn of(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\r\n")?;
        let (code, rest) = line.split_first_chunk::<3>()?;
        if !matches!(code, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9']) || rest.contains(&b'\r') {
            return None;
        }
        let code = code.iter().fold(0, |code, digit| code * 10 + u16::from(digit - b'0'));
        let (is_last, text) = match rest {
            [b'-', text @ ..] => (false, text),
            [b' ', text @ ..] => (true, text),
            [] => (true, rest),
            [..] => return None,
        };
        Some(Self { code, is_last, text })
    }

    /// The first word, of a capability.
    fn is(&self, keyword: &str) -> bool {
        let word = self.text.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        // `AUTH=LOGIN` is an old way to say `AUTH LOGIN`.
        let word = word.split(|byte| *byte == b'=').next().unwrap_or_default();
        word.eq_ignore_ascii_case(keyword.as_bytes())
    }
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) code: u16,
    text: Vec<u8>,
}

impl Reply {
    /// `text` is what [`parse`] has found.
    pub(super) fn new(code: u16, text: Vec<u8>) -> Self {
        Self { code, text }
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Of an answer to EHLO: whether it has this capability.
    pub(super) fn offers(&self, keyword: &str) -> bool {
        self.lines().skip(1).any(|line| line.is(keyword))
    }

    /// An answer to EHLO as the client is to see it: with STARTTLS where that is on offer, and never the server's
    /// own. A password that may not be sent yet is not asked for.
    pub(super) fn capabilities(&self, offers_starttls: bool, hides_auth: bool) -> Vec<u8> {
        let shown = |line: &Line<'_>| !(line.is("STARTTLS") || hides_auth && line.is("AUTH"));
        let mut lines: Vec<&[u8]> = Vec::new();
        for (index, line) in self.lines().enumerate() {
            // The first one is the server's name.
            if index == 0 || shown(&line) {
                lines.push(line.text);
            }
        }
        if offers_starttls {
            lines.push(b"STARTTLS");
        }
        let last = lines.len().saturating_sub(1);
        let mut text = Vec::with_capacity(self.text.len() + 16);
        for (index, line) in lines.into_iter().enumerate() {
            text.extend_from_slice(if index == last { b"250 " } else { b"250-" });
            text.extend_from_slice(line);
            text.extend_from_slice(b"\r\n");
        }
        text
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.text.split_inclusive(|byte| *byte == b'\n').filter_map(Line::of)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EHLO: &[u8] =
        b"250-mx.test hi\r\n250-SIZE 1000\r\n250-starttls\r\n250-AUTH PLAIN\r\n250 8BITMIME\r\n";

    fn reply(text: &[u8]) -> Reply {
        match parse(text) {
            Parsed::Done { code, len } => Reply::new(code, text[..len].to_vec()),
            other @ (Parsed::NeedMore | Parsed::Malformed) => panic!("{other:?}"),
        }
    }

    fn capabilities(text: &[u8], offers: bool, hides: bool) -> String {
        String::from_utf8(reply(text).capabilities(offers, hides)).unwrap()
    }

    #[test]
    fn an_answer_has_one_line_or_many() {
        assert_eq!(parse(b"220 hi\r\nmore"), Parsed::Done { code: 220, len: 8 });
        assert_eq!(parse(b"250\r\n"), Parsed::Done { code: 250, len: 5 });
        assert_eq!(parse(EHLO), Parsed::Done { code: 250, len: EHLO.len() });
        for cut in 0..EHLO.len() {
            assert_eq!(parse(&EHLO[..cut]), Parsed::NeedMore, "{cut}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            b"hi\r\n".as_slice(),
            b"220 hi\n",
            b"220_hi\r\n",
            b"099 hi\r\n",
            b"22\r\n",
            b"250-a\r\n220 b\r\n",
            b"250 a\rb\r\n",
        ] {
            assert_eq!(parse(text), Parsed::Malformed, "{text:?}");
        }
        assert_eq!(parse(&vec![b'2'; LONGEST_LINE]), Parsed::Malformed);
        assert_eq!(parse(&b"250-a\r\n".repeat(MOST_LINES)), Parsed::Malformed);
    }

    #[test]
    fn starttls_is_the_proxys_and_not_the_servers() {
        assert!(reply(EHLO).offers("STARTTLS"));
        assert!(!reply(b"250-STARTTLS\r\n250 SIZE\r\n").offers("STARTTLS"), "that is a name");
        let with = "250-mx.test hi\r\n250-SIZE 1000\r\n250-AUTH PLAIN\r\n250-8BITMIME\r\n250 STARTTLS\r\n";
        assert_eq!(capabilities(EHLO, true, false), with);
        assert_eq!(
            capabilities(EHLO, false, false),
            "250-mx.test hi\r\n250-SIZE 1000\r\n250-AUTH PLAIN\r\n250 8BITMIME\r\n"
        );
        assert_eq!(capabilities(b"250 mx\r\n", true, false), "250-mx\r\n250 STARTTLS\r\n");
        assert_eq!(capabilities(b"250-mx\r\n250 STARTTLS\r\n", false, false), "250 mx\r\n");
    }

    #[test]
    fn nobody_is_asked_for_a_password_before_tls_where_tls_is_required() {
        let shown = capabilities(b"250-mx\r\n250-AUTH PLAIN\r\n250 AUTH=LOGIN\r\n", true, true);
        assert_eq!(shown, "250-mx\r\n250 STARTTLS\r\n");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(data in proptest::collection::vec(
            prop_oneof![Just(b'2'), Just(b'5'), Just(b'0'), Just(b'-'), Just(b' '), Just(b'\r'), Just(b'\n'),
                        any::<u8>()], 0..60)
        ) {
            if let Parsed::Done { code, len } = parse(&data) {
                let reply = Reply::new(code, data[..len].to_vec());
                let shown = reply.capabilities(true, true);
                prop_assert_eq!(parse(&shown), Parsed::Done { code: 250, len: shown.len() });
            }
        }
    }
}
