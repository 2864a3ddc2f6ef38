//! How peers tell each other who they are: a `google.protobuf.Struct`, in base64 in a header, or framed as the first
//! bytes of a connection.
//!
//! Written in one way only (keys in their order), read from whoever sends it: bounded in depth, and in length by whoever
//! calls.

use proxy_config::model::metadata::{Struct, Value};

pub const METADATA: &str = "x-envoy-peer-metadata";
pub const METADATA_ID: &str = "x-envoy-peer-metadata-id";

/// What a preamble begins with.
const MAGIC: [u8; 4] = 0x3D23_0467_u32.to_be_bytes();
const STRUCT_TYPE: &str = "type.googleapis.com/google.protobuf.Struct";

/// Longer ones are nobody's labels.
const LONGEST_PREAMBLE: usize = 64 * 1024;
const DEEPEST: usize = 16;
/// Of one struct or list: a node has some dozens.
const MOST: usize = 256;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq)]
pub enum Preamble {
    /// More of them are needed.
    Partial,
    /// Not one: they are the application's.
    Other,
    /// So many bytes; `None`: they hold nobody.
    Whole { told: Option<Struct>, length: usize },
    /// One that is too long to be waited for.
    TooLong(usize),
}

/// What a connection begins with, of somebody whose metadata and id these are.
pub fn preamble(told: Struct, id: &str) -> Vec<u8> {
    let mut fields = Struct::new();
    fields.insert(METADATA.to_owned(), Value::Struct(told));
    if !id.is_empty() {
        fields.insert(METADATA_ID.to_owned(), Value::String(id.to_owned()));
    }
    let mut any = Vec::new();
    put_bytes(&mut any, 1, STRUCT_TYPE.as_bytes());
    put_bytes(&mut any, 2, &encode(&fields));
    let length = u32::try_from(any.len()).unwrap_or(u32::MAX);
    [&MAGIC[..], &length.to_be_bytes(), &any].concat()
}

pub fn read_preamble(bytes: &[u8]) -> Preamble {
    let seen = bytes.len().min(MAGIC.len());
    if bytes.get(..seen) != MAGIC.get(..seen) {
        return Preamble::Other;
    }
    let Some(length) = bytes.get(4..).and_then(<[u8]>::first_chunk) else { return Preamble::Partial };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if length > LONGEST_PREAMBLE {
        return Preamble::TooLong(length);
    }
    match bytes.get(8..8 + length) {
        None => Preamble::Partial,
        Some(any) => Preamble::Whole { told: told(any), length: 8 + length },
    }
}

/// The metadata in an `Any`.
fn told(any: &[u8]) -> Option<Struct> {
    let (mut name, mut value) = (&[][..], &[][..]);
    each(any, |field, wire| match (field, wire) {
        (1, Wire::Bytes(bytes)) => name = bytes,
        (2, Wire::Bytes(bytes)) => value = bytes,
        (_, _) => {}
    })?;
    let name = std::str::from_utf8(name).ok()?;
    if name.rsplit('/').next() != Some("google.protobuf.Struct") {
        return None;
    }
    match decode(value)?.remove(METADATA)? {
        Value::Struct(told) => Some(told),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::List(_) => None,
    }
}

/// A `google.protobuf.Struct`, its keys in their order.
pub fn encode(fields: &Struct) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in fields.iter() {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, &encode_value(value));
        put_bytes(&mut out, 1, &entry);
    }
    out
}

fn encode_value(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    match value {
        Value::Null => out.extend([1 << 3, 0]),
        Value::Number(number) => {
            out.push(2 << 3 | 1);
            out.extend(number.to_le_bytes());
        }
        Value::String(text) => put_bytes(&mut out, 3, text.as_bytes()),
        Value::Bool(bool) => out.extend([4 << 3, u8::from(*bool)]),
        Value::Struct(fields) => put_bytes(&mut out, 5, &encode(fields)),
        Value::List(list) => {
            let mut values = Vec::new();
            list.iter().for_each(|value| put_bytes(&mut values, 1, &encode_value(value)));
            put_bytes(&mut out, 6, &values);
        }
    }
    out
}

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `None`: it is no such message, or nested too deeply.
pub fn decode(bytes: &[u8]) -> Option<Struct> {
    fields(bytes, 0)
}

fn fields(bytes: &[u8], depth: usize) -> Option<Struct> {
    if depth > DEEPEST {
        return None;
    }
    let (mut found, mut good) = (Struct::new(), true);
    each(bytes, |field, wire| {
        if let (1, Wire::Bytes(entry)) = (field, wire) {
            match pair(entry, depth) {
                Some((key, value)) if good && found.len() < MOST => {
                    found.insert(key, value);
                }
                Some(_) | None => good = false,
            }
        }
    })?;
    good.then_some(found)
}

fn pair(bytes: &[u8], depth: usize) -> Option<(String, Value)> {
    let (mut key, mut value) = (&[][..], None);
    each(bytes, |field, wire| match (field, wire) {
        (1, Wire::Bytes(bytes)) => key = bytes,
        (2, Wire::Bytes(bytes)) => value = Some(bytes),
        (_, _) => {}
    })?;
    let value = value.map_or(Some(Value::Null), |value| self::value(value, depth))?;
    Some((String::from_utf8(key.to_vec()).ok()?, value))
}

fn value(bytes: &[u8], depth: usize) -> Option<Value> {
    if depth > DEEPEST {
        return None;
    }
    let (mut found, mut good) = (Value::Null, true);
    each(bytes, |field, wire| {
        let read = match (field, wire) {
            (1, Wire::Varint(_)) => Some(Value::Null),
            (2, Wire::Eight(bits)) => Some(Value::Number(f64::from_bits(bits))),
            (3, Wire::Bytes(text)) => String::from_utf8(text.to_vec()).ok().map(Value::String),
            (4, Wire::Varint(bool)) => Some(Value::Bool(bool != 0)),
            (5, Wire::Bytes(bytes)) => fields(bytes, depth + 1).map(Value::Struct),
            (6, Wire::Bytes(bytes)) => list(bytes, depth + 1).map(Value::List),
            (_, _) => return,
        };
        match read {
            Some(value) => found = value,
            None => good = false,
        }
    })?;
    good.then_some(found)
}

fn list(bytes: &[u8], depth: usize) -> Option<Vec<Value>> {
    let (mut found, mut good) = (Vec::new(), true);
    each(bytes, |field, wire| {
        if let (1, Wire::Bytes(bytes)) = (field, wire) {
            match value(bytes, depth) {
                Some(value) if good && found.len() < MOST => found.push(value),
                Some(_) | None => good = false,
            }
        }
    })?;
    good.then_some(found)
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Eight(u64),
    Bytes(&'a [u8]),
    Four,
}

/// Calls `visit` with each field of a message; `None` where it is none.
fn each<'a>(mut bytes: &'a [u8], mut visit: impl FnMut(u64, Wire<'a>)) -> Option<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let wire = match key & 7 {
            0 => Wire::Varint(varint(&mut bytes)?),
            1 => Wire::Eight(u64::from_le_bytes(*take(&mut bytes, 8)?.first_chunk()?)),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Wire::Bytes(take(&mut bytes, length)?)
            }
            5 => {
                take(&mut bytes, 4)?;
                Wire::Four
            }
            _ => return None,
        };
        if key >> 3 == 0 {
            return None;
        }
        visit(key >> 3, wire);
    }
    Some(())
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::String(text.into())
    }

    fn sample() -> Struct {
        let mut labels = Struct::new();
        labels.insert("app".into(), text("web"));
        let mut fields = Struct::new();
        fields.insert("NAME".into(), text("web-1"));
        fields.insert("LABELS".into(), Value::Struct(labels));
        fields.insert("more".into(), Value::List(vec![Value::Null, Value::Bool(true), Value::Number(1.5)]));
        fields
    }

    #[test]
    fn a_struct_is_written_in_one_way_and_read_again() {
        let bytes = encode(&sample());
        assert_eq!(decode(&bytes), Some(sample()));
        // `fields { key: "LABELS" value { struct_value { fields { key: "app" value { string_value: "web" } } } } }`.
        let labels = b"\x0a\x1a\x0a\x06LABELS\x12\x10\x2a\x0e\x0a\x0c\x0a\x03app\x12\x05\x1a\x03web";
        assert!(bytes.starts_with(labels), "{bytes:02x?}");
        assert_eq!(bytes, encode(&decode(&bytes).unwrap()));
    }

    #[test]
    fn what_is_no_struct_is_none_and_never_a_panic() {
        let whole = encode(&sample());
        for end in 1..whole.len() {
            let _ = decode(&whole[..end]);
        }
        for byte in 0..whole.len() {
            for bit in 0..8 {
                let mut bent = whole.clone();
                bent[byte] ^= 1 << bit;
                let _ = decode(&bent);
            }
        }
        assert_eq!(decode(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), None);
        assert_eq!(decode(b"\x0a\x05ab"), None);
        assert_eq!(decode(b"\x07"), None);
        let mut deep = vec![0x1a, 1, b'x'];
        for _ in 0..100 {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, b"k");
            put_bytes(&mut entry, 2, &deep);
            let mut fields = Vec::new();
            put_bytes(&mut fields, 1, &entry);
            deep = Vec::new();
            put_bytes(&mut deep, 5, &fields);
        }
        assert_eq!(value(&deep, 0), None);
        let mut many = Struct::new();
        (0..=MOST).for_each(|key| drop(many.insert(key.to_string(), Value::Null)));
        assert_eq!(decode(&encode(&many)), None);
    }

    #[test]
    fn preambles() {
        let bytes = preamble(sample(), "sidecar~1");
        assert_eq!(&bytes[..4], b"\x3d\x23\x04\x67");
        assert_eq!(bytes.len(), 8 + u32::from_be_bytes(*bytes[4..].first_chunk().unwrap()) as usize);
        assert_eq!(&bytes[8..10], &[0x0a, 42], "the type's URL");
        for end in 0..bytes.len() {
            assert_eq!(read_preamble(&bytes[..end]), Preamble::Partial, "{end}");
        }
        let more = [&bytes[..], b"hello"].concat();
        assert_eq!(read_preamble(&more), Preamble::Whole { told: Some(sample()), length: bytes.len() });
        assert_eq!(read_preamble(b"GET / HTTP/1.1"), Preamble::Other);
        assert_eq!(read_preamble(b"\x3d#x"), Preamble::Other);
        assert_eq!(read_preamble(b"\x3d\x23\x04\x67\xff\xff\xff\xff"), Preamble::TooLong(0xffff_ffff));
        let nobody = [&MAGIC[..], &3_u32.to_be_bytes(), b"abcdef"].concat();
        assert_eq!(read_preamble(&nobody), Preamble::Whole { told: None, length: 11 });
        let mut any = Vec::new();
        put_bytes(&mut any, 1, b"type.googleapis.com/google.protobuf.StringValue");
        put_bytes(&mut any, 2, &encode(&sample()));
        assert_eq!(told(&any), None);
    }
}
