//! A login: whatever is said goes on to the other side, until the server has said how it ended.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::timeout;

use super::super::dialogue::{Dialogue, Half};
use super::super::{Leftover, Stop};
use super::packet::word;

/// A login that takes longer is relayed, and not counted.
const LIMIT: Duration = Duration::from_secs(120);
/// What a side has said and the other has not taken.
const MOST_HELD: usize = 64 * 1024;
/// Messages of a login are short; PostgreSQL's own limit for a client's.
const LONGEST: u32 = 65_535;

/// Ends with whether somebody has logged in, and with what is on its way.
pub(super) async fn watch(mut talk: Dialogue<'_>) -> Result<(Leftover, bool), Stop> {
    let mut scan = Scan::default();
    let mut scanned = 0;
    let ended = timeout(LIMIT, poll_fn(|cx| poll(cx, &mut talk, &mut scan, &mut scanned))).await;
    let logged_in = ended.unwrap_or(Ok(false))?;
    Ok((talk.leave(), logged_in))
}

/// Ready with whether the login has succeeded, once that is known.
fn poll(
    cx: &mut Context<'_>,
    talk: &mut Dialogue<'_>,
    scan: &mut Scan,
    scanned: &mut usize,
) -> Poll<Result<bool, Stop>> {
    loop {
        let Dialogue { down, up, .. } = talk;
        let heard = [hear(cx, down)?, hear(cx, up)?];
        let state = scan.feed(up.heard.get(*scanned..).unwrap_or_default());
        *scanned = up.heard.len();
        // What is still held is the relay's to pass on.
        match state {
            State::Going => {}
            State::LoggedIn => return Poll::Ready(Ok(true)),
            State::Over => return Poll::Ready(Ok(false)),
        }
        if heard.contains(&Some(0)) {
            return Poll::Ready(Ok(false));
        }
        let passed = [pass(cx, down, up)?, pass(cx, up, down)?];
        *scanned = scanned.saturating_sub(passed[1]);
        if heard == [None; 2] && passed == [0; 2] {
            return Poll::Pending;
        }
    }
}

/// How much was heard; 0 at the end, which the relay hears again.
fn hear(cx: &mut Context<'_>, half: &mut Half<'_>) -> Result<Option<usize>, Stop> {
    if half.heard.len() >= MOST_HELD {
        return Ok(None);
    }
    match half.poll_hear(cx) {
        Poll::Ready(heard) => heard.map(Some),
        Poll::Pending => Ok(None),
    }
}

/// Passes on what was heard from one side; how many bytes.
fn pass(cx: &mut Context<'_>, from: &mut Half<'_>, to: &mut Half<'_>) -> Result<usize, Stop> {
    let mut passed = 0;
    while let Some(rest) = from.heard.get(passed..).filter(|rest| !rest.is_empty()) {
        match to.poll_say(cx, rest) {
            Poll::Ready(n) => passed += n?,
            Poll::Pending => break,
        }
    }
    from.heard.drain(..passed);
    if let Poll::Ready(Err(stop)) = to.poll_flush(cx) {
        return Err(stop);
    }
    Ok(passed)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Going,
    LoggedIn,
    /// It has failed, or this is no login.
    Over,
}

/// What the server says, message by message: a type, a length that counts itself, a body.
#[derive(Debug, Default)]
struct Scan {
    state: State,
    /// The beginning of the message at hand: type, length, and the kind of authentication.
    head: Vec<u8>,
    /// What is left of its body.
    skip: usize,
}

impl Scan {
    fn feed(&mut self, mut data: &[u8]) -> State {
        while self.state == State::Going && !data.is_empty() {
            let skipped = self.skip.min(data.len());
            self.skip -= skipped;
            data = data.get(skipped..).unwrap_or_default();
            if let Some((first, rest)) = data.split_first() {
                self.head.push(*first);
                data = rest;
                self.look();
            }
        }
        self.state
    }

    /// After each byte of a head.
    fn look(&mut self) {
        let Some(length) = word(&self.head, 1) else { return };
        let kind = self.head.first().copied().unwrap_or_default();
        let body = match length {
            4..=LONGEST => usize::try_from(length - 4).unwrap_or(usize::MAX),
            _ => return self.state = State::Over,
        };
        match kind {
            // Authentication: its kind follows, and 0 says that it is done.
            b'R' if body < 4 => self.state = State::Over,
            b'R' => {
                let Some(request) = word(&self.head, 5) else { return };
                if request == 0 {
                    self.state = State::LoggedIn;
                }
                self.skip(body - 4);
            }
            // NoticeResponse, NegotiateProtocolVersion.
            b'N' | b'v' => self.skip(body),
            // ErrorResponse, or something that no login has.
            _ => self.state = State::Over,
        }
    }

    fn skip(&mut self, body: usize) {
        self.skip = body;
        self.head.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind], length.to_be_bytes().as_slice(), body].concat()
    }

    fn scan(chunks: &[&[u8]]) -> State {
        let mut scan = Scan::default();
        chunks.iter().map(|chunk| scan.feed(chunk)).last().unwrap()
    }

    #[test]
    fn a_login_with_a_password_is_followed_to_its_end() {
        let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        let notice = message(b'N', b"SNOTICE\0\0");
        let more = message(b'R', b"\0\0\0\x0br=abc");
        let done = message(b'R', &[0; 4]);
        let all = [sasl.as_slice(), &notice, &more, &done, b"Z\0\0\0\x05I"].concat();
        assert_eq!(scan(&[&all]), State::LoggedIn);
        assert_eq!(scan(&[&sasl, &notice, &more]), State::Going);
        let bytes: Vec<&[u8]> = all.chunks(1).collect();
        assert_eq!(scan(&bytes), State::LoggedIn);
    }

    #[test]
    fn a_refused_login_and_what_is_none_are_over() {
        let cases = [
            message(b'E', b"SFATAL\0\0"),
            message(b'Z', b"I"),
            b"R\0\0\0\x03".to_vec(),
            b"R\0\0\0\x05\0".to_vec(),
            b"N\xff\xff\xff\xff".to_vec(),
            b"HTTP/1.1 400".to_vec(),
        ];
        for case in cases {
            assert_eq!(scan(&[&case]), State::Over, "{case:?}");
        }
    }

    proptest! {
        #[test]
        fn how_it_is_cut_does_not_matter(
            data in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'R'), Just(8), any::<u8>()], 0..64),
            cut in 1_usize..7,
        ) {
            let chunks: Vec<&[u8]> = data.chunks(cut).collect();
            if !chunks.is_empty() {
                prop_assert_eq!(scan(&chunks), scan(&[&data]));
            }
        }
    }
}
