//! Lines of an SMTP client.

/// Twice what RFC 5321 and the extensions that lengthen a command ask for.
pub(super) const LONGEST: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    NeedMore,
    /// A line of this length, with its CR LF.
    Done(usize),
    Malformed,
}

/// The line that `data` begins with. A CR or LF alone ends a line for some and not for others: it is refused.
pub(super) fn parse(data: &[u8]) -> Parsed {
    let Some(at) = data.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) else {
        return if data.len() < LONGEST { Parsed::NeedMore } else { Parsed::Malformed };
    };
    match data.get(at..) {
        _ if at + 2 > LONGEST => Parsed::Malformed,
        Some([b'\r', b'\n', ..]) => Parsed::Done(at + 2),
        Some([b'\r']) => Parsed::NeedMore,
        Some(_) | None => Parsed::Malformed,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Ehlo,
    Helo,
    Noop,
    Rset,
    Quit,
    StartTls,
    /// It has one answer, and changes nothing.
    Query,
    /// What a driver does not look into: mail, a login, and whatever else there may be.
    Other,
}

impl Command {
    pub(super) fn of(line: &[u8]) -> Self {
        const KNOWN: [(&str, Command); 9] = [
            ("EHLO", Command::Ehlo),
            ("HELO", Command::Helo),
            ("NOOP", Command::Noop),
            ("RSET", Command::Rset),
            ("QUIT", Command::Quit),
            ("STARTTLS", Command::StartTls),
            ("VRFY", Command::Query),
            ("EXPN", Command::Query),
            ("HELP", Command::Query),
        ];
        let (verb, _) = split(line);
        let known = KNOWN.into_iter().find(|(name, _)| verb.eq_ignore_ascii_case(name.as_bytes()));
        known.map_or(Self::Other, |(_, command)| command)
    }
}

pub(super) fn has_argument(line: &[u8]) -> bool {
    !split(line).1.trim_ascii().is_empty()
}

/// An EHLO of whoever has said EHLO or HELO.
pub(super) fn as_ehlo(line: &[u8]) -> Vec<u8> {
    [b"EHLO", split(line).1].concat()
}

/// The verb, and the rest with its CR LF.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    line.split_at_checked(end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_ends_with_cr_lf() {
        assert_eq!(parse(b"EHLO a\r\nMAIL"), Parsed::Done(8));
        assert_eq!(parse(b"\r\n"), Parsed::Done(2));
        for cut in 0..8 {
            assert_eq!(parse(&b"EHLO a\r\n"[..cut]), Parsed::NeedMore, "{cut}");
        }
        for line in [b"NOOP\nMAIL\r\n".as_slice(), b"NOOP\rMAIL\r\n", b"NOOP\r\r\n", b"NO\0OP\r\n", b"\n"] {
            assert_eq!(parse(line), Parsed::Malformed, "{line:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_refused() {
        let line = |len: usize| [vec![b'a'; len - 2], b"\r\n".to_vec()].concat();
        assert_eq!(parse(&line(LONGEST)), Parsed::Done(LONGEST));
        assert_eq!(parse(&line(LONGEST + 1)), Parsed::Malformed);
        assert_eq!(parse(&vec![b'a'; LONGEST]), Parsed::Malformed);
    }

    #[test]
    fn verbs_are_known_in_any_case_and_whole() {
        for (line, command) in [
            ("ehlo me\r\n", Command::Ehlo),
            ("HELO\r\n", Command::Helo),
            ("StartTLS\r\n", Command::StartTls),
            ("STARTTLS \r\n", Command::StartTls),
            ("STARTTLSX\r\n", Command::Other),
            ("MAIL FROM:<>\r\n", Command::Other),
            ("\r\n", Command::Other),
            ("vrfy a\r\n", Command::Query),
        ] {
            assert_eq!(Command::of(line.as_bytes()), command, "{line}");
        }
        assert!(has_argument(b"STARTTLS now\r\n"));
        assert!(!has_argument(b"STARTTLS \r\n"));
        assert_eq!(as_ehlo(b"helo me\r\n"), b"EHLO me\r\n");
    }

    proptest! {
        #[test]
        fn a_line_has_its_end_and_no_other(data in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), any::<u8>()], 0..40)
        ) {
            if let Parsed::Done(len) = parse(&data) {
                let (text, end) = data[..len].split_at(len - 2);
                prop_assert_eq!(end, b"\r\n");
                prop_assert!(!text.contains(&b'\r') && !text.contains(&b'\n'));
                let _ = (Command::of(&data[..len]), as_ehlo(&data[..len]));
            }
        }
    }
}
