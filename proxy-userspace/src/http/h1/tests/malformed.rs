//! What is refused, whole and in pieces: each parser sees the same in both.

use bytes::BytesMut;
use http::{Method, StatusCode};

use super::super::parse::{self, Scan};
use super::super::reader::{Read, Reader};
use super::super::{BadRequest, Settings};
use super::corpus;

/// What was understood of a connection's bytes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// First lines, in the order they came.
    pub(super) messages: Vec<String>,
    pub(super) bodies: Vec<u8>,
    /// The last message is complete.
    pub(super) complete: bool,
    pub(super) error: Option<StatusCode>,
}

/// One side's messages as they come in, without a socket.
pub(super) struct Machine {
    request: bool,
    settings: Settings,
    input: BytesMut,
    scan: Scan,
    reader: Option<Reader>,
    pub(super) seen: Seen,
    pub(super) bad: Option<BadRequest>,
}

impl Machine {
    pub(super) fn new(request: bool, settings: &Settings) -> Self {
        Self {
            request,
            settings: settings.clone(),
            input: BytesMut::new(),
            scan: Scan::default(),
            reader: None,
            seen: Seen { complete: true, ..Seen::default() },
            bad: None,
        }
    }

    pub(super) fn feed(&mut self, data: &[u8]) {
        if self.bad.is_some() {
            return;
        }
        self.input.extend_from_slice(data);
        while self.step().unwrap_or_else(|bad| {
            self.seen.error = Some(bad.status);
            self.bad = Some(bad);
            false
        }) {}
    }

    /// Whether there may be more.
    fn step(&mut self) -> Result<bool, BadRequest> {
        let Some(reader) = &mut self.reader else { return self.head() };
        match reader.read(&mut self.input, &self.settings)? {
            Read::Frame(frame) => self.seen.bodies.extend(frame.into_data().unwrap_or_default()),
            Read::More => return Ok(false),
            Read::End => {
                self.reader = None;
                self.seen.complete = true;
            }
        }
        Ok(true)
    }

    fn head(&mut self) -> Result<bool, BadRequest> {
        let Self { input, scan, settings, .. } = self;
        let (line, extent) = if self.request {
            let Some(parsed) = parse::request(input, scan, settings)? else { return Ok(false) };
            (format!("{} {} {}", parsed.head.method, parsed.head.authority, parsed.head.path), parsed.extent)
        } else {
            let Some(parsed) = parse::response(input, scan, &Method::GET, settings)? else {
                return Ok(false);
            };
            (parsed.head.status.as_str().to_owned(), parsed.extent)
        };
        self.seen.messages.push(line);
        self.seen.complete = false;
        self.reader = Some(Reader::new(extent));
        Ok(true)
    }
}

fn whole(case: &corpus::Case, request: bool) -> Machine {
    let mut machine = Machine::new(request, &Settings::default());
    machine.feed(&case.input);
    machine
}

#[test]
fn the_corpus_of_requests() {
    let cases = corpus::requests();
    assert!(cases.iter().filter(|case| case.details.is_some()).count() >= 80);
    for case in &cases {
        let machine = whole(case, true);
        let got = machine.bad.map(|bad| (bad.status.as_u16(), bad.details));
        assert_eq!(got, case.details.map(|details| (case.status, details)), "{}", case.id);
        assert!(machine.seen.messages.len() <= 1, "{}: {:?}", case.id, machine.seen);
        assert_eq!(machine.seen.error.is_none(), case.details.is_none(), "{}", case.id);
    }
}

#[test]
fn the_corpus_of_responses() {
    let cases = corpus::responses();
    assert!(cases.iter().filter(|case| case.details.is_some()).count() >= 40);
    for case in &cases {
        let machine = whole(case, false);
        assert_eq!(machine.bad.map(|bad| bad.details), case.details, "{}", case.id);
    }
}

#[test]
fn where_it_is_split_does_not_matter() {
    for (request, cases) in [(true, corpus::requests()), (false, corpus::responses())] {
        for case in cases {
            let whole = whole(&case, request);
            let step = case.input.len().div_ceil(600);
            for at in (1..case.input.len()).step_by(step) {
                let mut split = Machine::new(request, &Settings::default());
                split.feed(&case.input[..at]);
                split.feed(&case.input[at..]);
                assert_eq!(split.seen, whole.seen, "{} at {at}", case.id);
            }
        }
    }
}

#[test]
fn byte_by_byte_it_is_the_same() {
    for (request, cases) in [(true, corpus::requests()), (false, corpus::responses())] {
        for case in cases {
            let whole = whole(&case, request);
            let mut slow = Machine::new(request, &Settings::default());
            for byte in case.input.chunks(1) {
                slow.feed(byte);
            }
            assert_eq!(slow.seen.error, whole.seen.error, "{}", case.id);
            if whole.seen.error.is_none() {
                assert_eq!(slow.seen, whole.seen, "{}", case.id);
            }
        }
    }
}

/// 60 KiB of a head that trickles in are not looked at sixty thousand times.
#[test]
fn a_slow_head_costs_no_more_than_a_fast_one() {
    let mut input = b"GET / HTTP/1.1\r\nHost: h\r\n".to_vec();
    input.extend_from_slice(format!("X: {}\r\n\r\n", "a".repeat(59 * 1024)).as_bytes());
    let mut machine = Machine::new(true, &Settings::default());
    let start = crate::clock::now();
    for byte in input.chunks(1) {
        machine.feed(byte);
    }
    assert_eq!(machine.seen.messages, ["GET h /"]);
    // Quadratic it would be minutes in a debug build.
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn settings_say_what_is_taken() {
    let run = |settings: &Settings, input: &str| {
        let mut machine = Machine::new(true, settings);
        machine.feed(input.as_bytes());
        machine.bad.map_or(0, |bad| bad.status.as_u16())
    };
    let old = Settings { accept_http_10: true, default_host: Some("d".into()), ..Settings::default() };
    assert_eq!(run(&old, "GET / HTTP/1.0\r\n\r\n"), 0);
    assert_eq!(run(&old, "GET / HTTP/1.1\r\n\r\n"), 0, "the connection manager refuses it");
    assert_eq!(run(&old, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
    let both =
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(run(&Settings::default(), both), 400);
    assert_eq!(run(&Settings { allow_chunked_length: true, ..Settings::default() }, both), 0);
    let custom = "FROB / HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(run(&Settings::default(), custom), 400);
    assert_eq!(run(&Settings { allow_custom_methods: true, ..Settings::default() }, custom), 0);
    let few = Settings { max_headers: 2, ..Settings::default() };
    assert_eq!(run(&few, "GET / HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n"), 0);
    assert_eq!(run(&few, "GET / HTTP/1.1\r\nHost: h\r\nX: y\r\nX: y\r\n\r\n"), 431);
    let many = Settings { max_headers: 1000, ..Settings::default() };
    assert_eq!(run(&many, &format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(999))), 0);
    assert_eq!(run(&many, &format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(1000))), 431);
    let small = Settings { max_head_bytes: 100, ..Settings::default() };
    assert_eq!(run(&small, &format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "a".repeat(100))), 431);
}
