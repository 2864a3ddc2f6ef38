//! Protobuf's wire format, as far as it is needed without generated types.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint};

/// A field's value as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a protobuf message")]
pub(crate) struct Malformed;

/// The fields of an encoded message, in their order.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let (number, wire) = decode_key(&mut self.0).map_err(|_| Malformed)?;
        let value = match wire {
            WireType::Varint => Value::Varint(varint(&mut self.0)?),
            WireType::SixtyFourBit => Value::Fixed64(self.0.try_get_u64_le().map_err(|_| Malformed)?),
            WireType::ThirtyTwoBit => Value::Fixed32(self.0.try_get_u32_le().map_err(|_| Malformed)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(varint(&mut self.0)?).map_err(|_| Malformed)?;
                let (content, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
                self.0 = rest;
                Value::Bytes(content)
            }
            WireType::StartGroup | WireType::EndGroup => return Err(Malformed),
        };
        Ok((number, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Takes a varint from the front.
pub(crate) fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    decode_varint(bytes).map_err(|_| Malformed)
}

/// Appends a field.
pub(crate) fn put(out: &mut Vec<u8>, number: u32, value: Value<'_>) {
    let wire = match value {
        Value::Varint(_) => WireType::Varint,
        Value::Fixed64(_) => WireType::SixtyFourBit,
        Value::Fixed32(_) => WireType::ThirtyTwoBit,
        Value::Bytes(_) => WireType::LengthDelimited,
    };
    encode_key(number, wire, out);
    put_value(out, value);
}

/// Appends a value without its key, as packed lists have it.
pub(crate) fn put_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Varint(v) => encode_varint(v, out),
        Value::Fixed64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Fixed32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bytes(v) => {
            encode_varint(v.len() as u64, out);
            out.extend_from_slice(v);
        }
    }
}

/// Begins a length-delimited field whose content follows; the answer goes to [`end`].
pub(crate) fn begin(out: &mut Vec<u8>, number: u32) -> usize {
    encode_key(number, WireType::LengthDelimited, out);
    out.push(0);
    out.len()
}

/// Puts the length before the content. Most are below 128 and cost no move.
pub(crate) fn end(out: &mut Vec<u8>, start: usize) {
    let length = (out.len() - start) as u64;
    if let (Ok(short @ 0..0x80), Some(place)) = (u8::try_from(length), out.get_mut(start - 1)) {
        *place = short;
        return;
    }
    let mut prefix = Vec::with_capacity(encoded_len_varint(length));
    encode_varint(length, &mut prefix);
    out.splice(start - 1..start, prefix);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read() {
        let long = vec![7; 300];
        let values = [
            (1, Value::Varint(u64::MAX)),
            (2, Value::Fixed64(3)),
            (3, Value::Fixed32(4)),
            (1000, Value::Bytes(&long)),
        ];
        let mut out = Vec::new();
        for (number, value) in values {
            put(&mut out, number, value);
        }
        let read: Vec<_> = Fields(&out).map(Result::unwrap).collect();
        assert_eq!(read, values);
    }

    #[test]
    fn a_delimited_field_has_its_length_before_it() {
        for length in [0, 1, 127, 128, 16_384] {
            let mut out = Vec::new();
            let start = begin(&mut out, 5);
            out.extend(std::iter::repeat_n(9, length));
            end(&mut out, start);
            let content = vec![9; length];
            assert_eq!(Fields(&out).collect::<Vec<_>>(), [Ok((5, Value::Bytes(&content)))]);
        }
    }

    #[test]
    fn garbage_is_malformed() {
        for bytes in [&[0x0a, 5, 1][..], &[0xff; 11], &[0x0b], &[0x09, 1]] {
            assert_eq!(Fields(bytes).last(), Some(Err(Malformed)), "{bytes:?}");
        }
    }
}
