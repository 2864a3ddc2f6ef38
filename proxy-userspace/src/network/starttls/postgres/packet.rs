//! The packets that begin a PostgreSQL connection: a length, which counts itself, and a code.

/// PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`.
const LONGEST: usize = 10_000;
/// Requests have a protocol version of this major number.
const REQUEST: u32 = 1234;
const CANCEL: u32 = 5678;
const SSL: u32 = 5679;
const GSS_ENC: u32 = 5680;
/// A secret key has 4 to 256 bytes, behind the length, the code and the process id.
const CANCEL_LENGTHS: std::ops::RangeInclusive<usize> = 16..=12 + 256;

pub(super) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet {
    SslRequest,
    GssEncRequest,
    CancelRequest,
    /// Of any protocol version: the server knows which it speaks.
    Startup,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    NeedMore,
    /// What it is, and how long.
    Done(Packet, usize),
    Malformed,
}

/// What `data` begins with.
pub(super) fn parse(data: &[u8]) -> Parsed {
    let Some(length) = word(data, 0) else { return Parsed::NeedMore };
    let length = match usize::try_from(length) {
        Ok(length @ 8..=LONGEST) => length,
        Ok(_) | Err(_) => return Parsed::Malformed,
    };
    let Some(code) = word(data, 4) else { return Parsed::NeedMore };
    let packet = match (code >> 16, code & 0xffff) {
        (REQUEST, SSL) if length == 8 => Packet::SslRequest,
        (REQUEST, GSS_ENC) if length == 8 => Packet::GssEncRequest,
        (REQUEST, CANCEL) if CANCEL_LENGTHS.contains(&length) => Packet::CancelRequest,
        (REQUEST, _) => return Parsed::Malformed,
        (_, _) => Packet::Startup,
    };
    if data.len() < length { Parsed::NeedMore } else { Parsed::Done(packet, length) }
}

/// A big-endian number.
pub(super) fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*bytes))
}

/// An ErrorResponse that ends the session.
pub(super) fn fatal(sqlstate: &str, message: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message)] {
        body.push(field);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [b"E".as_slice(), &length.to_be_bytes(), &body].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(length: u32, code: u32, rest: &[u8]) -> Vec<u8> {
        [&length.to_be_bytes(), &code.to_be_bytes(), rest].concat()
    }

    #[test]
    fn the_codes_are_postgresqls() {
        assert_eq!(packet(8, 80_877_103, b""), SSL_REQUEST);
        assert_eq!(parse(&SSL_REQUEST), Parsed::Done(Packet::SslRequest, 8));
        assert_eq!(parse(&packet(8, 80_877_104, b"")), Parsed::Done(Packet::GssEncRequest, 8));
        assert_eq!(parse(&packet(16, 80_877_102, &[0; 8])), Parsed::Done(Packet::CancelRequest, 16));
        assert_eq!(parse(&packet(268, 80_877_102, &[0; 260])), Parsed::Done(Packet::CancelRequest, 268));
        let startup = packet(17, 196_608, b"user\0a\0\0\0");
        assert_eq!(parse(&startup), Parsed::Done(Packet::Startup, 17));
        assert_eq!(parse(&packet(9, 196_610, b"\0more")), Parsed::Done(Packet::Startup, 9));
    }

    #[test]
    fn what_is_cut_short_needs_more() {
        let startup = packet(17, 196_608, b"user\0a\0\0\0");
        for len in 0..17 {
            assert_eq!(parse(&startup[..len]), Parsed::NeedMore, "{len}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        for (length, code) in [
            (0, 0),
            (7, 196_608),
            (10_001, 196_608),
            (u32::MAX, 196_608),
            (9, 80_877_103),
            (12, 80_877_104),
            (15, 80_877_102),
            (269, 80_877_102),
            (8, 80_877_105),
        ] {
            assert_eq!(parse(&packet(length, code, &[0; 300])), Parsed::Malformed, "{length} {code}");
        }
        // A ClientHello.
        assert_eq!(parse(&[0x16, 3, 1, 2]), Parsed::Malformed);
    }

    #[test]
    fn an_error_response_is_well_formed() {
        let error = fatal("28000", "why");
        assert_eq!(error, b"E\0\0\0\x1fSFATAL\0VFATAL\0C28000\0Mwhy\0\0".to_vec());
        assert_eq!(word(&error, 1), Some(u32::try_from(error.len() - 1).unwrap()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Parsed::Done(_, len) = parse(&data) {
                prop_assert!(len <= data.len());
            }
        }
    }
}
