//! The chunked coding, as it comes in.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;

use super::parse::{self, HeadEnd};
use super::{BadRequest, Settings};

/// Longer than any number needs; what an extension says is dropped.
const MAX_LINE: usize = 4096;
/// Of all chunks of a message: there is no other bound to what is read and dropped.
const MAX_EXTENSIONS: usize = 16 * 1024;

#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    extensions: usize,
    /// How much of the trailers has been searched for their end.
    searched: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Size,
    Data(u64),
    /// The line break after a chunk.
    DataEnd,
    Trailers,
    Done,
}

#[derive(Debug)]
pub(super) enum Step {
    More,
    Data(Bytes),
    /// The body is at its end with these.
    Trailers(HeaderMap),
    End,
}

impl Decoder {
    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// How much is known to come: how much is worth reading at once.
    pub(super) fn left(&self) -> u64 {
        match self.state {
            State::Data(left) => left,
            State::Size | State::DataEnd | State::Trailers | State::Done => 0,
        }
    }

    /// Takes what it understands off the front of `input`.
    pub(super) fn step(&mut self, input: &mut BytesMut, settings: &Settings) -> Result<Step, BadRequest> {
        loop {
            match &mut self.state {
                State::Size => {
                    let Some((size, extension, len)) = size_line(input)? else { return Ok(Step::More) };
                    input.advance(len);
                    self.extensions += extension;
                    if self.extensions > MAX_EXTENSIONS {
                        return Err(BadRequest::codec());
                    }
                    self.state = if size == 0 { State::Trailers } else { State::Data(size) };
                }
                State::Data(_) if input.is_empty() => return Ok(Step::More),
                State::Data(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= n as u64;
                    if *left == 0 {
                        self.state = State::DataEnd;
                    }
                    return Ok(Step::Data(input.split_to(n).freeze()));
                }
                State::DataEnd => match input.get(..2) {
                    Some(b"\r\n") => {
                        input.advance(2);
                        self.state = State::Size;
                    }
                    Some(_) => return Err(BadRequest::codec()),
                    None if matches!(input.first(), None | Some(b'\r')) => return Ok(Step::More),
                    None => return Err(BadRequest::codec()),
                },
                State::Trailers => return self.trailers(input, settings),
                State::Done => return Ok(Step::End),
            }
        }
    }

    fn trailers(&mut self, input: &mut BytesMut, settings: &Settings) -> Result<Step, BadRequest> {
        match input.get(..2) {
            Some(b"\r\n") => {
                input.advance(2);
                self.state = State::Done;
                return Ok(Step::End);
            }
            Some(_) => {}
            None => return Ok(Step::More),
        }
        let len = match parse::head_end(input, &mut self.searched, settings.max_head_bytes)? {
            HeadEnd::At(len) => len,
            HeadEnd::More => return Ok(Step::More),
        };
        let trailers = parse::trailers(&input.split_to(len).freeze(), settings)?;
        self.state = State::Done;
        Ok(if settings.enable_trailers { Step::Trailers(trailers) } else { Step::End })
    }
}

/// The size, how long its extension is, and how long the line.
fn size_line(input: &[u8]) -> Result<Option<(u64, usize, usize)>, BadRequest> {
    let searched = &input[..input.len().min(MAX_LINE)];
    let Some(end) = searched.iter().position(|byte| *byte == b'\n') else {
        // What is wrong already stays so.
        let digits = hex(input)?.1;
        let odd = input.get(digits).is_some_and(|byte| !matches!(byte, b';' | b' ' | b'\t' | b'\r'));
        return if odd || input.len() >= MAX_LINE { Err(BadRequest::codec()) } else { Ok(None) };
    };
    let line = searched[..end].strip_suffix(b"\r").ok_or(BadRequest::codec())?;
    let (size, digits) = hex(line)?;
    let extension = &line[digits..];
    let blank = extension.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    // Some pad the size with spaces, and Envoy lets them.
    let is_extension = matches!(extension.get(blank), Some(b';') | None);
    let is_text = extension.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    if digits == 0 || !is_extension || !is_text {
        return Err(BadRequest::codec());
    }
    Ok(Some((size, extension.len(), end + 1)))
}

/// The number in front, and of how many digits it is.
fn hex(line: &[u8]) -> Result<(u64, usize), BadRequest> {
    let mut size = 0_u64;
    for (at, byte) in line.iter().enumerate() {
        let Some(digit) = char::from(*byte).to_digit(16) else { return Ok((size, at)) };
        // More than 16 digits, and what cannot be a length of anything.
        if size >> 59 != 0 || at == 16 {
            return Err(BadRequest::codec());
        }
        size = size << 4 | u64::from(digit);
    }
    Ok((size, line.len()))
}
