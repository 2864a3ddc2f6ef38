//! What a backend is to do with a request.

use std::time::Duration;

/// Words of `x-do`, with spaces between them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `status=503`
    pub status: u16,
    /// `h:name=value`
    pub headers: Vec<(String, String)>,
    /// `t:name=value`
    pub trailers: Vec<(String, String)>,
    /// `body=1000`, in bytes; otherwise a few.
    pub body: Option<usize>,
    /// `message=0801`: a message of gRPC, in hexadecimal digits.
    pub message: Option<Vec<u8>>,
    /// `wait=200`: before anything is said, in milliseconds.
    pub wait: Duration,
    /// `pause=200`: between both halves of the body.
    pub pause: Duration,
    /// `early`: the request's body is not read.
    pub early: bool,
    /// `open`: of HTTP/2, a response without a body does not end with its head.
    pub open: bool,
    /// `goaway`: of HTTP/2, with the response. `last`: of HTTP/1.
    pub last: bool,
    pub end: End,
}

/// How it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    #[default]
    Whole,
    /// `reset`: the connection of HTTP/1 is, or the stream of HTTP/2. By a code of `reset=7`.
    Reset(u32),
    /// `close`: the connection.
    Close,
    /// `half-reset`: after the head and half of the body.
    HalfReset(u32),
    /// `half-close`
    HalfClose,
    /// `silent`: nothing is said.
    Silent,
    /// `garbage`: what is no response.
    Garbage,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            status: 200,
            headers: vec![],
            trailers: vec![],
            body: None,
            message: None,
            wait: Duration::ZERO,
            pause: Duration::ZERO,
            early: false,
            open: false,
            last: false,
            end: End::Whole,
        }
    }
}

/// INTERNAL_ERROR
const INTERNAL: u32 = 2;

impl Plan {
    pub(super) fn parse(text: &str) -> Self {
        text.split_whitespace().fold(Self::default(), Self::word)
    }

    fn word(mut self, word: &str) -> Self {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<u32>().ok();
        let millis = || Duration::from_millis(number().unwrap_or_default().into());
        match key {
            "status" => self.status = value.parse().unwrap_or(200),
            "body" => self.body = value.parse().ok(),
            "message" => self.message = hex(value),
            "wait" => self.wait = millis(),
            "pause" => self.pause = millis(),
            "early" => self.early = true,
            "open" => self.open = true,
            "goaway" | "last" => self.last = true,
            "reset" => self.end = End::Reset(number().unwrap_or(INTERNAL)),
            "half-reset" => self.end = End::HalfReset(number().unwrap_or(INTERNAL)),
            "close" => self.end = End::Close,
            "half-close" => self.end = End::HalfClose,
            "silent" => self.end = End::Silent,
            "garbage" => self.end = End::Garbage,
            _ => match key.split_once(':') {
                Some(("h", name)) => self.headers.push((name.to_owned(), value.to_owned())),
                Some(("t", name)) => self.trailers.push((name.to_owned(), value.to_owned())),
                // What nobody understands shows in the test.
                Some(_) | None => self.status = 599,
            },
        }
        self
    }

    pub(super) fn body(&self) -> Vec<u8> {
        match (&self.message, self.body) {
            (Some(message), _) => {
                [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap_or(u8::MAX)], &**message].concat()
            }
            (None, Some(length)) => vec![b'x'; length],
            // What is not read to its end is another matter.
            (None, None) if (200..300).contains(&self.status) && self.status != 204 => b"said so".to_vec(),
            (None, None) => Vec::new(),
        }
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}
