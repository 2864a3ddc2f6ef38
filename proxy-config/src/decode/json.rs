//! JSON into a [`Document`]. YAML's reader takes most of it too, but not `\ud83d\ude00`, and is slower.

use super::builder::{Builder, Text};
use super::document::Document;
use super::problem::{Fatal, Problems};
use crate::diagnostic::Position;

pub(super) fn parse(text: &str) -> Result<(Document<'_>, Problems), Fatal> {
    let mut reader = Reader { text, at: 0, line: 1, column: 1, counted: 0 };
    let mut builder = Builder::new(text, true);
    reader.value(&mut builder)?;
    reader.skip_space();
    let end = reader.position();
    if reader.peek().is_some() {
        return Err(Fatal::new(end, "something follows the end of the document"));
    }
    builder.finish(end)
}

struct Reader<'t> {
    text: &'t str,
    /// In bytes.
    at: usize,
    /// The place of the byte `counted`: it only moves forward, so that a long line is counted once.
    line: u32,
    column: u32,
    counted: usize,
}

impl Reader<'_> {
    /// The builder's limit on depth bounds this recursion.
    fn value(&mut self, builder: &mut Builder<'_>) -> Result<(), Fatal> {
        self.skip_space();
        let position = self.position();
        match self.peek() {
            Some(b'{') => self.container(builder, true, position),
            Some(b'[') => self.container(builder, false, position),
            Some(b'"') => self.string(builder, position),
            Some(_) => self.word(builder, position),
            None => Err(Fatal::new(position, "the text ends where a value is expected")),
        }
    }

    fn container(&mut self, builder: &mut Builder<'_>, mapping: bool, at: Position) -> Result<(), Fatal> {
        let close = if mapping { b'}' } else { b']' };
        builder.open(mapping, at, 0)?;
        self.at += 1;
        self.skip_space();
        if self.take(close) {
            return builder.close();
        }
        loop {
            if mapping {
                self.key(builder)?;
            }
            self.value(builder)?;
            self.skip_space();
            if self.take(close) {
                return builder.close();
            }
            if !self.take(b',') {
                let why = format!("expected \",\" or {:?}", char::from(close).to_string());
                return Err(Fatal::new(self.position(), why));
            }
        }
    }

    fn key(&mut self, builder: &mut Builder<'_>) -> Result<(), Fatal> {
        self.skip_space();
        let position = self.position();
        if self.peek() != Some(b'"') {
            return Err(Fatal::new(position, "expected a key in double quotes"));
        }
        self.string(builder, position)?;
        self.skip_space();
        if self.take(b':') { Ok(()) } else { Err(Fatal::new(self.position(), "expected \":\"")) }
    }

    fn string(&mut self, builder: &mut Builder<'_>, position: Position) -> Result<(), Fatal> {
        self.at += 1;
        let start = self.at;
        let mut unescaped = None;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    let known = self.text.get(start..self.at).unwrap_or_default();
                    let mut string = unescaped.take().unwrap_or_else(|| known.to_owned());
                    string.push(self.escape()?);
                    unescaped = Some(string);
                }
                Some(byte) if byte >= b' ' => {
                    let run = self.at;
                    while self.peek().is_some_and(|b| b >= b' ' && b != b'"' && b != b'\\') {
                        self.at += 1;
                    }
                    if let Some(string) = &mut unescaped {
                        string.push_str(self.text.get(run..self.at).unwrap_or_default());
                    }
                }
                Some(_) => return Err(Fatal::new(self.position(), "a control character in a string")),
                None => return Err(Fatal::new(position, "a string without an end")),
            }
        }
        let length = self.at - start;
        self.at += 1;
        match unescaped {
            Some(string) => builder.scalar(Text::Copy(&string), true, position, 0),
            None => builder.scalar(Text::At(start, length), true, position, 0),
        }
    }

    fn escape(&mut self) -> Result<char, Fatal> {
        let position = self.position();
        self.at += 1;
        let letter = self.peek();
        self.at += 1;
        Ok(match letter {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                return self.unicode().ok_or_else(|| Fatal::new(position, "an escape that is no character"));
            }
            Some(_) | None => return Err(Fatal::new(position, "an unknown escape")),
        })
    }

    /// After `\u`: four digits, and for a high surrogate its second half.
    fn unicode(&mut self) -> Option<char> {
        let high = self.hex()?;
        if !(0xd800..0xdc00).contains(&high) {
            return char::from_u32(high);
        }
        if !(self.take(b'\\') && self.take(b'u')) {
            return None;
        }
        let low = self.hex()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
        char::from_u32(0x10000 + ((high - 0xd800) << 10) + low)
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    fn word(&mut self, builder: &mut Builder<'_>, position: Position) -> Result<(), Fatal> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.')) {
            self.at += 1;
        }
        let word = self.text.get(start..self.at).unwrap_or_default();
        if !matches!(word, "true" | "false" | "null") && !is_number(word) {
            return Err(Fatal::new(position, "expected a value"));
        }
        builder.scalar(Text::At(start, word.len()), false, position, 0)
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.at += 1;
        }
        found
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn position(&mut self) -> Position {
        for byte in self.text.as_bytes().get(self.counted..self.at).unwrap_or_default() {
            match byte {
                b'\n' => (self.line, self.column) = (self.line.saturating_add(1), 1),
                // The further bytes of a character.
                0x80..0xc0 => {}
                _ => self.column = self.column.saturating_add(1),
            }
        }
        self.counted = self.counted.max(self.at);
        Position { line: self.line, column: self.column }
    }
}

/// By JSON's grammar: no `+1`, `01`, `.5` or `NaN`.
fn is_number(word: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let word = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (word, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(digits)
}
