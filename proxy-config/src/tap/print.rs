//! Protobuf's two kinds of text, as Envoy has them printed.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::node::{Field, Node};
use crate::decode::scalar::{Seconds, timestamp_text};

/// JSON by proto field names, one space a level, with all that is not set; a line feed at the end.
pub(super) fn json(fields: &[Field<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    json_object(fields, 0, &mut out);
    out.push(b'\n');
    out
}

fn json_object(fields: &[Field<'_>], level: usize, out: &mut Vec<u8>) {
    json_items(fields, level, (b'{', b'}'), out, |field, out| {
        out.push(b'"');
        out.extend_from_slice(field.name.as_bytes());
        out.extend_from_slice(b"\": ");
        json_value(&field.value, level + 1, out);
    });
}

fn json_items<T>(
    items: &[T],
    level: usize,
    (open, close): (u8, u8),
    out: &mut Vec<u8>,
    mut item: impl FnMut(&T, &mut Vec<u8>),
) {
    out.push(open);
    for (at, one) in items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        new_line(level + 1, out);
        item(one, out);
    }
    if !items.is_empty() {
        new_line(level, out);
    }
    out.push(close);
}

fn new_line(level: usize, out: &mut Vec<u8>) {
    out.push(b'\n');
    out.resize(out.len() + level, b' ');
}

fn json_value(value: &Node<'_>, level: usize, out: &mut Vec<u8>) {
    match value {
        Node::Message(fields) => json_object(fields, level, out),
        Node::List(list) => json_items(list, level, (b'[', b']'), out, |one, out| {
            json_value(one, level + 1, out);
        }),
        Node::Uint32(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Node::Uint64(number) => out.extend_from_slice(format!("\"{number}\"").as_bytes()),
        Node::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Node::String(text) => json_string(text, out),
        Node::Bytes(bytes) => out.extend_from_slice(format!("\"{}\"", STANDARD.encode(bytes)).as_bytes()),
        Node::Enum(name, _) => out.extend_from_slice(format!("\"{name}\"").as_bytes()),
        Node::Timestamp(seconds, nanos) => {
            let text = timestamp_text(Seconds { seconds: *seconds, nanos: *nanos });
            out.extend_from_slice(format!("\"{text}\"").as_bytes());
        }
    }
}

/// What is no UTF-8 becomes a space, as protobuf has it: the first byte, and of those that should follow all up to
/// the one that does not fit, and that one too.
fn json_string(bytes: &[u8], out: &mut Vec<u8>) {
    let mut text = String::with_capacity(bytes.len() + 2);
    text.push('"');
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let following: usize = match first.leading_ones() {
            2 => 1,
            3 => 2,
            4 => 3,
            _ => 0,
        };
        let fit = after.iter().take(following).take_while(|byte| **byte >> 6 == 0b10).count();
        let taken = if fit < following { (fit + 1).min(after.len()) } else { following };
        let (unit, next) = rest.split_at(taken + 1);
        rest = next;
        let scalar = std::str::from_utf8(unit).ok().and_then(|one| one.chars().next());
        json_char(scalar, &mut text);
    }
    text.push('"');
    out.extend_from_slice(text.as_bytes());
}

fn json_char(scalar: Option<char>, out: &mut String) {
    let Some(scalar) = scalar else { return out.push(' ') };
    match scalar {
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '"' => out.push_str("\\\""),
        '\u{c}' => out.push_str("\\f"),
        '\u{8}' => out.push_str("\\b"),
        '\\' => out.push_str("\\\\"),
        _ if is_escaped(scalar) => {
            for unit in scalar.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
        _ => out.push(scalar),
    }
}

/// What protobuf escapes beyond what JSON asks for: what could be markup, and what cannot be seen.
fn is_escaped(scalar: char) -> bool {
    matches!(scalar,
        '<' | '>' | '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{600}'..='\u{603}' | '\u{6dd}'
        | '\u{70f}' | '\u{17b4}' | '\u{17b5}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

/// Protobuf's text format: what is not set is not printed.
pub(super) fn text(fields: &[Field<'_>]) -> Vec<u8> {
    let mut out = String::new();
    text_fields(fields, 0, &mut out);
    out.into_bytes()
}

fn text_fields(fields: &[Field<'_>], level: usize, out: &mut String) {
    for Field { name, value, presence } in fields {
        if let Node::List(list) = value {
            list.iter().for_each(|one| text_field(name, one, level, out));
        } else if *presence || !is_default(value) {
            text_field(name, value, level, out);
        }
    }
}

fn is_default(value: &Node<'_>) -> bool {
    match value {
        Node::Message(_) | Node::Timestamp(..) => false,
        Node::List(list) => list.is_empty(),
        Node::Uint32(number) | Node::Enum(_, number) => *number == 0,
        Node::Uint64(number) => *number == 0,
        Node::Bool(value) => !value,
        Node::String(text) => text.is_empty(),
        Node::Bytes(bytes) => bytes.is_empty(),
    }
}

fn text_field(name: &str, value: &Node<'_>, level: usize, out: &mut String) {
    let indent = "  ".repeat(level);
    let scalar = match value {
        Node::Message(fields) => {
            let _ = writeln!(out, "{indent}{name} {{");
            text_fields(fields, level + 1, out);
            let _ = writeln!(out, "{indent}}}");
            return;
        }
        Node::Timestamp(seconds, nanos) => {
            let _ = writeln!(out, "{indent}{name} {{");
            for (name, value) in [("seconds", *seconds), ("nanos", i64::from(*nanos))] {
                if value != 0 {
                    let _ = writeln!(out, "{indent}  {name}: {value}");
                }
            }
            let _ = writeln!(out, "{indent}}}");
            return;
        }
        // Lists of lists there are none.
        Node::List(_) => return,
        Node::Uint32(number) => number.to_string(),
        Node::Uint64(number) => number.to_string(),
        Node::Bool(value) => value.to_string(),
        Node::String(text) => quoted(text),
        Node::Bytes(bytes) => quoted(bytes),
        Node::Enum(name, _) => (*name).to_owned(),
    };
    let _ = writeln!(out, "{indent}{name}: {scalar}");
}

/// As C would write it: octal for what cannot be seen.
fn quoted(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for byte in bytes {
        match byte {
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b'"' | b'\'' | b'\\' => {
                out.push('\\');
                out.push(char::from(*byte));
            }
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => {
                let _ = write!(out, "\\{byte:03o}");
            }
        }
    }
    out.push('"');
    out
}
