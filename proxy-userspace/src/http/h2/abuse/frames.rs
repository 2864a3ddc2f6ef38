//! The heads of frames in a stream of bytes, wherever it is cut.

/// RFC 9113, 4.1, and for a padded frame the byte that says by how much.
const HEAD: usize = 9;
const PREFACE: usize = 24;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    Reset,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// Without padding.
    pub(super) payload: usize,
}

impl Head {
    pub(super) fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }

    pub(super) fn is_end_stream(self) -> bool {
        self.kind != Kind::Continuation && self.flags & END_STREAM != 0
    }

    pub(super) fn is_end_headers(self) -> bool {
        self.flags & END_HEADERS != 0
    }
}

/// Never fails: what is no HTTP/2 is for the crate to refuse.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; HEAD + 1],
    have: usize,
    /// Of the frame's payload, or of the preface.
    skip: usize,
}

impl Frames {
    /// Of a client, a connection begins with a preface.
    pub(super) fn new(preface: bool) -> Self {
        Self { head: [0; HEAD + 1], have: 0, skip: if preface { PREFACE } else { 0 } }
    }

    pub(super) fn feed(&mut self, mut data: &[u8], mut on: impl FnMut(Head)) {
        while !data.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(data.len());
                self.skip -= n;
                data = data.get(n..).unwrap_or_default();
                continue;
            }
            let need = if self.have < HEAD { HEAD } else { HEAD + 1 };
            let n = (need - self.have).min(data.len());
            let (some, rest) = data.split_at(n);
            if let Some(to) = self.head.get_mut(self.have..self.have + n) {
                to.copy_from_slice(some);
            }
            self.have += n;
            data = rest;
            if let Some((head, skip)) = self.parse() {
                self.have = 0;
                self.skip = skip;
                on(head);
            }
        }
    }

    /// The head, and how many bytes of the frame are still to come.
    fn parse(&self) -> Option<(Head, usize)> {
        if self.have < HEAD {
            return None;
        }
        let [a, b, c, kind, flags, s0, s1, s2, s3, pad] = self.head;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let kind = kind_of(kind);
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        let padded = matches!(kind, Kind::Data | Kind::Headers) && flags & PADDED != 0 && len > 0;
        if !padded {
            return Some((Head { kind, flags, stream, payload: len }, len));
        }
        let payload = (len - 1).saturating_sub(usize::from(pad));
        (self.have > HEAD).then_some((Head { kind, flags, stream, payload }, len - 1))
    }
}

fn kind_of(byte: u8) -> Kind {
    match byte {
        0 => Kind::Data,
        1 => Kind::Headers,
        2 => Kind::Priority,
        3 => Kind::Reset,
        4 => Kind::Settings,
        5 => Kind::PushPromise,
        6 => Kind::Ping,
        7 => Kind::GoAway,
        8 => Kind::WindowUpdate,
        9 => Kind::Continuation,
        _ => Kind::Unknown,
    }
}
