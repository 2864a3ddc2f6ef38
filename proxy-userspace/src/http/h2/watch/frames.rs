//! The heads of frames in a stream of bytes, wherever it is cut.

/// RFC 9113, 4.1, and for a padded frame the byte that says by how much.
pub(crate) const HEAD: usize = 9;
const PREFACE: usize = 24;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const HAS_PRIORITY: u8 = 0x20;

/// Of a payload that is kept; a header block that is longer is too long for the crate as well.
const KEPT: usize = 128 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
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
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) len: usize,
    /// None: all of the frame is padding, and more.
    pub(crate) payload: Option<usize>,
}

impl Head {
    pub(crate) fn is_ack(self) -> bool {
        self.flags & ACK != 0
    }

    pub(crate) fn is_end_stream(self) -> bool {
        self.kind != Kind::Continuation && self.flags & END_STREAM != 0
    }

    pub(crate) fn is_end_headers(self) -> bool {
        self.flags & END_HEADERS != 0
    }

    pub(crate) fn is_padded(self) -> bool {
        self.flags & PADDED != 0
    }

    pub(crate) fn has_priority(self) -> bool {
        self.flags & HAS_PRIORITY != 0
    }
}

/// Never fails: what is no HTTP/2 is for the crate to refuse.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    head: [u8; HEAD + 1],
    have: usize,
    /// Of the frame's payload, or of the preface.
    skip: usize,
    current: Option<Head>,
    /// Of the current frame, or with those before it of one header block; only where it may be looked at.
    payload: Vec<u8>,
    keeps: bool,
}

impl Frames {
    /// Of a client, a connection begins with a preface.
    pub(crate) fn inbound(preface: bool) -> Self {
        Self { keeps: true, ..Self::outbound(preface) }
    }

    pub(crate) fn outbound(preface: bool) -> Self {
        let skip = if preface { PREFACE } else { 0 };
        Self { head: [0; HEAD + 1], have: 0, skip, current: None, payload: Vec::new(), keeps: false }
    }

    /// The frame that came last, or whose payload comes.
    pub(crate) fn current(&self) -> Option<Head> {
        self.current
    }

    /// Of HEADERS with its CONTINUATIONs, or of SETTINGS.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Neither a head nor a payload is unfinished.
    pub(crate) fn is_between(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    pub(crate) fn feed(&mut self, mut data: &[u8], mut on: impl FnMut(Head)) {
        while !data.is_empty() {
            let n = self.step(data, &mut on);
            data = data.get(n..).unwrap_or_default();
        }
    }

    /// Takes data up to the end of a frame, or all of it; how much it was.
    pub(crate) fn step(&mut self, data: &[u8], mut on: impl FnMut(Head)) -> usize {
        let mut at = 0;
        while at < data.len() {
            let rest = data.get(at..).unwrap_or_default();
            if self.skip > 0 {
                at += self.skip(rest);
            } else {
                at += self.take(rest);
                let Some(head) = self.parse() else { continue };
                self.have = 0;
                self.begin(head);
                on(head);
            }
            if self.skip == 0 && self.have == 0 {
                break;
            }
        }
        at
    }

    /// Of a payload.
    fn skip(&mut self, data: &[u8]) -> usize {
        let n = self.skip.min(data.len());
        self.skip -= n;
        if self.keeps && self.is_kept() && self.payload.len() + n <= KEPT {
            self.payload.extend_from_slice(data.get(..n).unwrap_or_default());
        }
        n
    }

    fn is_kept(&self) -> bool {
        matches!(self.current, Some(Head { kind: Kind::Headers | Kind::Continuation | Kind::Settings, .. }))
    }

    /// Of a head.
    fn take(&mut self, data: &[u8]) -> usize {
        let need = if self.have < HEAD { HEAD } else { HEAD + 1 };
        let n = (need - self.have).min(data.len());
        if let (Some(to), Some(some)) = (self.head.get_mut(self.have..self.have + n), data.get(..n)) {
            to.copy_from_slice(some);
        }
        self.have += n;
        n
    }

    fn begin(&mut self, head: Head) {
        self.skip = if self.is_with_padding(head) { head.len - 1 } else { head.len };
        self.current = Some(head);
        if self.keeps && head.kind != Kind::Continuation {
            self.payload.clear();
        }
    }

    fn is_with_padding(&self, head: Head) -> bool {
        matches!(head.kind, Kind::Data | Kind::Headers) && head.is_padded() && head.len > 0
    }

    /// The head, once it is all there.
    fn parse(&self) -> Option<Head> {
        if self.have < HEAD {
            return None;
        }
        let [a, b, c, kind, flags, s0, s1, s2, s3, pad] = self.head;
        let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        let head = Head { kind: kind_of(kind), flags, stream, len, payload: Some(len) };
        if !self.is_with_padding(head) {
            let lacks = matches!(head.kind, Kind::Data | Kind::Headers) && head.is_padded();
            return Some(Head { payload: head.payload.filter(|_| !lacks), ..head });
        }
        let payload = (len - 1).checked_sub(usize::from(pad));
        (self.have > HEAD).then_some(Head { payload, ..head })
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

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = &[
        0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100, // SETTINGS
        0, 0, 7, 0, 9, 0x80, 0, 0, 1, 2, b'h', b'e', b'y', b'!', 0, 0, // padded DATA with END_STREAM
        0, 0, 1, 0, 8, 0, 0, 0, 3, 5, // DATA with more padding than there is
        0, 0, 0, 0x16, 0xff, 0, 0, 0, 5, // unknown and empty
        0, 0, 2, 1, 0, 0, 0, 0, 7, 1, 2, // HEADERS
        0, 0, 1, 9, 4, 0, 0, 0, 7, 3, // CONTINUATION
    ];

    fn expected() -> Vec<Head> {
        let head = |kind, flags, stream, len, payload| Head { kind, flags, stream, len, payload };
        vec![
            head(Kind::Settings, 0, 0, 6, Some(6)),
            head(Kind::Data, 9, 1, 7, Some(4)),
            head(Kind::Data, 8, 3, 1, None),
            head(Kind::Unknown, 0xff, 5, 0, Some(0)),
            head(Kind::Headers, 0, 7, 2, Some(2)),
            head(Kind::Continuation, 4, 7, 1, Some(1)),
        ]
    }

    #[test]
    fn heads_are_found_wherever_the_bytes_are_cut() {
        for cut in 0..=BYTES.len() {
            let (mut frames, mut heads) = (Frames::inbound(false), Vec::new());
            let (one, other) = BYTES.split_at(cut);
            frames.feed(one, |head| heads.push(head));
            frames.feed(other, |head| heads.push(head));
            assert_eq!(heads, expected(), "cut at {cut}");
            assert!(frames.is_between());
            assert_eq!(frames.payload(), [1, 2, 3]);
        }
    }

    #[test]
    fn a_step_ends_with_its_frame() {
        let (mut frames, mut at, mut ends) = (Frames::inbound(false), 0, Vec::new());
        while at < BYTES.len() {
            at += frames.step(&BYTES[at..], |_| {});
            ends.push(at);
        }
        assert_eq!(ends, [15, 31, 41, 50, 61, 71]);
    }

    #[test]
    fn a_preface_is_no_frame() {
        let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BYTES].concat();
        let (mut frames, mut heads) = (Frames::inbound(true), Vec::new());
        assert_eq!(frames.step(&bytes, |head| heads.push(head)), PREFACE);
        frames.feed(&bytes[PREFACE..], |head| heads.push(head));
        assert_eq!(heads, expected());
    }
}
