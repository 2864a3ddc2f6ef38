//! Which error a frame was that the crate refused the connection for as PROTOCOL_ERROR.
//!
//! Only looked at then, and only to name the error: whether a frame is refused is the crate's to say.

use h2::Reason;

use super::frames::{Head, Kind};
use super::huffman;

/// Where a frame stands on its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The highest stream that the peer had opened before.
    pub(crate) last: u32,
    /// A CONTINUATION where one must be, anything else where not.
    pub(crate) in_order: bool,
    /// Of the header table.
    pub(crate) table: usize,
}

/// `payload`: of a whole header block, or of SETTINGS. None where PROTOCOL_ERROR is right.
pub(super) fn reason(head: Head, payload: &[u8], place: Place) -> Option<Reason> {
    let sized = |right: bool| (!right).then_some(Reason::FRAME_SIZE_ERROR);
    if !place.in_order {
        return None;
    }
    match head.kind {
        Kind::Reset | Kind::WindowUpdate => sized(head.len == 4),
        Kind::Priority => sized(head.len == 5),
        Kind::Ping => sized(head.len == 8),
        Kind::GoAway => sized(head.len >= 8),
        Kind::Settings if head.is_ack() => sized(head.len == 0),
        Kind::Settings => sized(head.len.is_multiple_of(6)).or_else(|| window_too_large(payload)),
        // Of a stream that was, and takes no more.
        Kind::Data if head.stream != 0 && head.stream <= place.last && head.payload.is_some() => {
            Some(Reason::STREAM_CLOSED)
        }
        Kind::Headers | Kind::Continuation if is_of_a_stream(head) => {
            let block = Block { left: fragment(head, payload)?, first: true, table: place.table };
            let undecodable = match block.check() {
                Check::Undecodable => true,
                // A new stream is refused for its block alone, so what it names is not in the table.
                Check::Dynamic => head.stream > place.last,
                Check::Malformed | Check::Fine => false,
            };
            undecodable.then_some(Reason::COMPRESSION_ERROR)
        }
        Kind::Data | Kind::Headers | Kind::Continuation | Kind::PushPromise | Kind::Unknown => None,
    }
}

/// The end of a header block on a stream that was opened before.
pub(super) fn is_trailers(head: Head, place: Place) -> bool {
    let is_block = matches!(head.kind, Kind::Headers | Kind::Continuation);
    is_block && is_of_a_stream(head) && place.in_order && head.stream <= place.last
}

/// A block names a pseudo-header, by the static table or itself.
pub(super) fn has_pseudo(head: Head, payload: &[u8]) -> bool {
    let Some(left) = fragment(head, payload) else { return false };
    let mut block = Block { left, first: true, table: usize::MAX };
    while let Some(byte) = block.left.first().copied() {
        let before = block.left;
        match block.field(byte) {
            Ok(_) if (Block { left: before, ..block }).is_pseudo(byte) => return true,
            Ok(_) => {}
            Err(Undecodable) => return false,
        }
    }
    false
}

/// RFC 9113, 6.5.2.
fn window_too_large(payload: &[u8]) -> Option<Reason> {
    let large = |setting: &[u8]| matches!(setting, [0, 4, value, ..] if *value >= 0x80);
    payload.chunks_exact(6).any(large).then_some(Reason::FLOW_CONTROL_ERROR)
}

fn is_of_a_stream(head: Head) -> bool {
    head.stream % 2 == 1 && head.is_end_headers()
}

/// Without padding and priority; none where they are more than there is.
fn fragment(head: Head, payload: &[u8]) -> Option<&[u8]> {
    if head.kind == Kind::Continuation {
        return Some(payload);
    }
    let block = payload.get(..head.payload?)?;
    if head.has_priority() { block.get(5..) } else { Some(block) }
}

/// Of the static table, :authority to :status.
const LAST_PSEUDO: usize = 14;
/// Of the static table.
const METHOD: [usize; 2] = [2, 3];

/// A header block as far as it goes without its dynamic table.
struct Block<'a> {
    left: &'a [u8],
    /// No field yet: the table's size may change.
    first: bool,
    /// How large it may be.
    table: usize,
}

enum Check {
    /// It has a name or a value that no header may have, before anything else that is wrong.
    Malformed,
    Undecodable,
    /// It names entries of the dynamic table, and nothing else can be wrong.
    Dynamic,
    Fine,
}

enum Field {
    Fine,
    Malformed,
    Dynamic,
}

/// It cannot be decoded.
struct Undecodable;

/// How many entries the static table has.
const STATIC: usize = 61;

impl Block<'_> {
    fn check(mut self) -> Check {
        let mut dynamic = false;
        while let Some(byte) = self.left.first().copied() {
            match self.field(byte) {
                Ok(Field::Fine) => {}
                Ok(Field::Dynamic) => dynamic = true,
                Ok(Field::Malformed) => return Check::Malformed,
                Err(Undecodable) => return Check::Undecodable,
            }
        }
        if dynamic { Check::Dynamic } else { Check::Fine }
    }

    fn field(&mut self, byte: u8) -> Result<Field, Undecodable> {
        let first = std::mem::replace(&mut self.first, false);
        match byte {
            0x80.. => match self.integer(7)? {
                0 => Err(Undecodable),
                index => Ok(if index > STATIC { Field::Dynamic } else { Field::Fine }),
            },
            0x40..0x80 => self.literal(6),
            0x20..0x40 if first && self.integer(5)? <= self.table => {
                self.first = true;
                Ok(Field::Fine)
            }
            0x20..0x40 => Err(Undecodable),
            0..0x20 => self.literal(4),
        }
    }

    /// Of the field that is first.
    fn is_pseudo(mut self, byte: u8) -> bool {
        let prefix = match byte {
            0x80.. => 7,
            0x40..0x80 => 6,
            0x20..0x40 => return false,
            0..0x20 => 4,
        };
        match self.integer(prefix) {
            Ok(0) => self.string().is_ok_and(|name| name.first() == Some(&b':')),
            Ok(index) => index <= LAST_PSEUDO,
            Err(Undecodable) => false,
        }
    }

    fn literal(&mut self, prefix: u32) -> Result<Field, Undecodable> {
        let index = self.integer(prefix)?;
        let name = if index == 0 { self.string()? } else { Vec::new() };
        let value = self.string()?;
        let is_method = METHOD.contains(&index) || name == b":method";
        let good_value = if is_method { is_token(&value) } else { value.iter().all(is_of_a_value) };
        Ok(match index {
            0 if !is_name(&name) => Field::Malformed,
            _ if !good_value => Field::Malformed,
            index if index > STATIC => Field::Dynamic,
            _ => Field::Fine,
        })
    }

    fn string(&mut self) -> Result<Vec<u8>, Undecodable> {
        let huffman = self.left.first().is_some_and(|byte| byte & 0x80 != 0);
        let len = self.integer(7)?;
        let (string, left) = self.left.split_at_checked(len).ok_or(Undecodable)?;
        self.left = left;
        if huffman { huffman::decode(string).ok_or(Undecodable) } else { Ok(string.to_vec()) }
    }

    /// RFC 7541, 5.1.
    fn integer(&mut self, prefix: u32) -> Result<usize, Undecodable> {
        let mask = (1_usize << prefix) - 1;
        let value = usize::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        let mut value = value;
        for shift in [0, 7, 14, 21] {
            let byte = usize::from(self.byte()?);
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Undecodable)
    }

    fn byte(&mut self) -> Result<u8, Undecodable> {
        let (byte, left) = self.left.split_first().ok_or(Undecodable)?;
        self.left = left;
        Ok(*byte)
    }
}

/// RFC 9113, 8.2.1 and 8.3.
fn is_name(name: &[u8]) -> bool {
    const PSEUDO: [&[u8]; 6] = [b":method", b":scheme", b":authority", b":path", b":protocol", b":status"];
    PSEUDO.contains(&name) || (is_token(name) && !name.iter().any(u8::is_ascii_uppercase))
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

fn is_of_a_value(byte: &u8) -> bool {
    matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u32) -> Place {
        Place { last, in_order: true, table: 4096 }
    }

    fn head(kind: Kind, flags: u8, stream: u32, len: usize) -> Head {
        Head { kind, flags, stream, len, payload: Some(len) }
    }

    #[test]
    fn frames_of_a_wrong_size_are_told() {
        let size = Some(Reason::FRAME_SIZE_ERROR);
        for (kind, flags, len, expected) in [
            (Kind::Reset, 0, 3, size),
            (Kind::Reset, 0, 4, None),
            (Kind::WindowUpdate, 0, 5, size),
            (Kind::Priority, 0, 4, size),
            (Kind::Priority, 0, 5, None),
            (Kind::Ping, 0, 0, size),
            (Kind::Ping, 0, 8, None),
            (Kind::GoAway, 0, 7, size),
            (Kind::GoAway, 0, 20, None),
            (Kind::Settings, 1, 6, size),
            (Kind::Settings, 1, 0, None),
            (Kind::Settings, 0, 7, size),
            (Kind::Settings, 0, 12, None),
            (Kind::PushPromise, 0, 1, None),
        ] {
            assert_eq!(reason(head(kind, flags, 1, len), &[], at(1)), expected, "{kind:?} of {len}");
        }
    }

    #[test]
    fn a_window_that_is_too_large_is_told() {
        let settings = |payload: &[u8]| reason(head(Kind::Settings, 0, 0, payload.len()), payload, at(0));
        assert_eq!(settings(&[0, 3, 0x80, 0, 0, 0, 0, 4, 0x80, 0, 0, 0]), Some(Reason::FLOW_CONTROL_ERROR));
        assert_eq!(settings(&[0, 3, 0x80, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn data_of_a_stream_that_was_is_told() {
        for (stream, last, expected) in [
            (1, 1, Some(Reason::STREAM_CLOSED)),
            (1, 5, Some(Reason::STREAM_CLOSED)),
            (7, 5, None),
            (0, 5, None),
        ] {
            assert_eq!(reason(head(Kind::Data, 0, stream, 3), &[], at(last)), expected, "{stream} of {last}");
        }
        assert_eq!(reason(Head { payload: None, ..head(Kind::Data, 8, 1, 3) }, &[], at(1)), None);
    }

    #[test]
    fn header_blocks_that_cannot_be_decoded_are_told_from_those_that_may_not_be() {
        let bad = Some(Reason::COMPRESSION_ERROR);
        for (block, expected) in [
            (&b"\x80"[..], bad),
            (b"\x82\xbe", bad),
            (b"\xff\xff\xff\xff\xff\xff\xff", bad),
            (b"\xff\x80", bad),
            (b"\x82\x20", bad),
            (b"\x20\x3f\xff\xff\x07\x82", bad),
            (b"\x00\x01x\x05ab", bad),
            (b"\x00\x10x-a", bad),
            (b"\x00\x01x\x82\x1f\xff", bad),
            (b"\x00\x01x\x84\xff\xff\xff\xff", bad),
            (b"\x00\x03X-A\x011", None),
            (b"\x40\x03:xa\x011", None),
            (b"\x00\x00\x011", None),
            (b"\x00\x01x\x03a\0b", None),
            (b"\x04\x03/\na", None),
            (b"\x02\x04GE T", None),
            (b"\x02\x03GET\x80", bad),
            // X-A in Huffman code.
            (b"\x00\x84\xfc\xb7\x0f\xff\x011", bad),
            (b"\x00\x83\xfc\x5a\x1f\x011", None),
        ] {
            let told = reason(head(Kind::Headers, 4, 1, block.len()), block, at(0));
            assert_eq!(told, expected, "{block:x?}");
        }
    }

    #[test]
    fn padding_and_priority_are_no_part_of_a_header_block() {
        let payload = b"\0\0\0\0\x0f\x80\0\0";
        let padded = Head { payload: Some(6), ..head(Kind::Headers, 0x2c, 1, 9) };
        assert_eq!(reason(padded, payload, at(0)), Some(Reason::COMPRESSION_ERROR));
        assert_eq!(reason(Head { payload: None, ..padded }, payload, at(0)), None);
        assert_eq!(reason(Head { payload: Some(3), ..padded }, payload, at(0)), None);
        assert_eq!(reason(head(Kind::Headers, 4, 2, 1), b"\x80", at(0)), None);
    }

    #[test]
    fn pseudo_headers_are_found() {
        for (block, expected) in [
            (&b"\x84"[..], true),
            (b"\x0f\x01\x01x\x82", true),
            (b"\x44\x01/", true),
            (b"\x40\x05:path\x01/", true),
            (b"\x20\x00\x02:x\x011", true),
            (b"\x00\x03x-a\x011", false),
            (b"\x0f\x01\x01x\xbe", false),
            (b"\x80\x84", false),
            (b"", false),
        ] {
            let head = head(Kind::Headers, 5, 1, block.len());
            assert_eq!(has_pseudo(head, block), expected, "{block:x?}");
        }
        assert!(is_trailers(head(Kind::Headers, 5, 1, 0), at(1)));
        assert!(!is_trailers(head(Kind::Headers, 5, 3, 0), at(1)));
        assert!(!is_trailers(head(Kind::Headers, 1, 1, 0), at(1)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_much(block: Vec<u8>, flags: u8, payload: Option<u16>) {
            let payload = payload.map(usize::from);
            let head = Head { payload, ..head(Kind::Headers, flags, 1, block.len()) };
            let _ = (reason(head, &block, at(0)), has_pseudo(head, &block));
        }
    }
}
