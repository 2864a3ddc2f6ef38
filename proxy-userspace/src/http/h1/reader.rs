//! A message's body, as it comes in.

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::chunked::{Decoder, Step};
use super::framing::Extent;
use super::{BadRequest, Settings};

#[derive(Debug)]
pub(super) enum Reader {
    Length(u64),
    Chunked(Decoder),
    /// Until the connection ends.
    Close,
    Done,
}

/// What there is of it in what was read.
pub(super) enum Read {
    Frame(Frame<Bytes>),
    More,
    End,
}

impl Reader {
    pub(super) fn new(extent: Extent) -> Self {
        match extent {
            Extent::None | Extent::Length(0) => Self::Done,
            Extent::Length(len) => Self::Length(len),
            Extent::Chunked => Self::Chunked(Decoder::default()),
            Extent::Close | Extent::Raw => Self::Close,
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    pub(super) fn read(&mut self, input: &mut BytesMut, settings: &Settings) -> Result<Read, BadRequest> {
        match self {
            Self::Done => Ok(Read::End),
            Self::Length(_) | Self::Close if input.is_empty() => Ok(Read::More),
            Self::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Read::Frame(Frame::data(input.split_to(n).freeze())))
            }
            Self::Close => Ok(Read::Frame(Frame::data(input.split().freeze()))),
            Self::Chunked(decoder) => {
                let step = decoder.step(input, settings)?;
                if decoder.is_done() {
                    *self = Self::Done;
                }
                Ok(match step {
                    Step::More => Read::More,
                    Step::Data(data) => Read::Frame(Frame::data(data)),
                    Step::Trailers(trailers) => Read::Frame(Frame::trailers(trailers)),
                    Step::End => Read::End,
                })
            }
        }
    }

    /// The connection has ended: whether the body has too.
    pub(super) fn end(&mut self) -> bool {
        if matches!(self, Self::Close) {
            *self = Self::Done;
        }
        self.is_done()
    }

    /// How much is worth reading at once.
    pub(super) fn want(&self) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            // The next chunk's size, and what it says.
            Self::Chunked(decoder) => {
                usize::try_from(decoder.left()).unwrap_or(usize::MAX).saturating_add(64)
            }
            Self::Close => usize::MAX,
            Self::Done => 0,
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Done => SizeHint::with_exact(0),
            Self::Length(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::Close => SizeHint::new(),
        }
    }
}
