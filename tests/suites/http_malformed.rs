//! HTTP/1 that two implementations may read in two ways: what is refused, beside what Envoy does, and that nothing of
//! it gets further than it should.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{chain, extension};
use shunt_tests::corpus::{self, Input};
use shunt_tests::{Bootstrap, Cases, Client, End, Kind, Pair, Proxy, lab};

/// So many inputs are tried at once, each lane with a listener and a backend of its own.
const LANES: usize = 6;
/// How long nothing has to come to say that nothing will.
const QUIET: Duration = Duration::from_millis(400);

/// A backend that takes down what it gets.
struct Recorder {
    address: SocketAddr,
    got: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    /// It answers each complete request with `answer`, as it is by then.
    fn start(answer: Arc<Mutex<Vec<u8>>>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let got = Arc::<Mutex<Vec<u8>>>::default();
        let shared = Arc::clone(&got);
        // They end with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (got, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                std::thread::spawn(move || record(stream, &got, &answer));
            }
        });
        Ok(Self { address, got })
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *lock(&self.got))
    }
}

fn record(mut stream: TcpStream, got: &Mutex<Vec<u8>>, answer: &Mutex<Vec<u8>>) {
    let mut unread = Vec::new();
    let mut piece = [0; 65536];
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        unread.extend_from_slice(&piece[..n]);
        lock(got).extend_from_slice(&piece[..n]);
        while let Some(len) = request_len(&unread) {
            unread.drain(..len);
            let answer = lock(answer).clone();
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
    }
}

/// Of a complete request: what a proxy writes is well formed.
fn request_len(data: &[u8]) -> Option<usize> {
    let end = find(data, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&data[..end]).to_ascii_lowercase();
    if head.contains("\r\ntransfer-encoding: chunked\r\n") {
        let from = end - 2;
        let last = find(&data[from..], b"\r\n0\r\n")? + from + 5;
        return find(&data[last - 2..], b"\r\n\r\n").map(|at| last - 2 + at + 4);
    }
    let length = head.split_once("\r\ncontent-length: ").and_then(|(_, rest)| rest.split_once('\r'));
    let length = length.and_then(|(digits, _)| digits.parse().ok()).unwrap_or(0);
    (data.len() >= end + length).then_some(end + length)
}

fn find(data: &[u8], what: &[u8]) -> Option<usize> {
    data.windows(what.len()).position(|window| window == what)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A manager that passes all to one cluster.
fn manager(cluster: &str, fields: &str) -> String {
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: http, codec_type: HTTP1, http_filters: [ {router} ], {fields} route_config: {{ \
             virtual_hosts: [ {{ name: all, domains: [ \"*\" ], routes: [ {{ match: {{ prefix: / }}, \
             route: {{ cluster: {cluster:?} }} }} ] }} ] }}"
        ),
    )
}

fn bootstrap(backends: &[Recorder]) -> String {
    let mut bootstrap = Bootstrap::new();
    for (n, backend) in backends.iter().enumerate() {
        let lane = lane(n);
        let chain = chain("", &[manager(&lane, "delayed_close_timeout: 0.05s,")]);
        bootstrap = bootstrap.listener(&lane, &format!("filter_chains: [ {chain} ]")).static_cluster(
            &lane,
            &[backend.address],
            "",
        );
    }
    bootstrap.yaml()
}

fn lane(n: usize) -> String {
    format!("lane{n}")
}

/// Each input in some lane; what was observed, in their order.
fn observe_all(
    inputs: &[Input],
    observe: impl Fn(usize, &Input) -> Result<Value> + Sync,
) -> Result<Vec<Value>> {
    let observe = &observe;
    let lanes: Vec<Vec<(usize, Result<Value>)>> = std::thread::scope(|scope| {
        let run = |n: usize| {
            let mine = inputs.iter().enumerate().skip(n).step_by(LANES);
            mine.map(|(at, input)| (at, observe(n, input))).collect::<Vec<_>>()
        };
        let lanes: Vec<_> = (0..LANES).map(|n| scope.spawn(move || run(n))).collect();
        lanes.into_iter().map(|lane| lane.join().unwrap_or_default()).collect()
    });
    let mut all: Vec<_> = lanes.into_iter().flatten().collect();
    all.sort_by_key(|(at, _)| *at);
    ensure!(all.len() == inputs.len(), "a lane broke off");
    all.into_iter().map(|(_, value)| value).collect()
}

/// The statuses of the answers in what a client was sent.
fn statuses(answer: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(answer);
    let of = |line: &str| {
        line.strip_prefix("HTTP/1.1 ").or(line.strip_prefix("HTTP/1.0 ")).map(|rest| rest[..3].to_owned())
    };
    // A body without a line's end is followed by the next head.
    text.replace("HTTP/1.", "\nHTTP/1.").lines().filter_map(of).collect()
}

/// The answers to an input, how many requests the backend saw, and whether one of them should have been none.
fn observe_request(proxy: &Proxy, backends: &[Recorder], n: usize, input: &Input) -> Result<Value> {
    backends[n].take();
    let mut client = Client::connect(proxy.at(&lane(n))?)?;
    // It may be refused before all of it is sent.
    let _ = client.send(&input.bytes);
    let (answer, _) = client.end_within(QUIET)?;
    let got = backends[n].take();
    let requests = String::from_utf8_lossy(&got).matches(" HTTP/1.1\r\n").count();
    let smuggled = find(&got, b"SMUGGLED").is_some();
    Ok(json!({ "answers": statuses(&answer), "requests": requests, "smuggled": smuggled }))
}

#[test]
fn requests_are_refused_before_they_are_two() -> Result<()> {
    lab(|lab| {
        let answer = Arc::new(Mutex::new(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()));
        let backends: Vec<Recorder> =
            (0..LANES).map(|_| Recorder::start(Arc::clone(&answer))).collect::<Result<_>>()?;
        let pair = Pair::start(lab, &bootstrap(&backends))?;
        let inputs = corpus::http1_requests()?;
        let run =
            |proxy: &Proxy| observe_all(&inputs, |n, input| observe_request(proxy, &backends, n, input));
        let (envoy, shunt) = (run(&pair.envoy)?, run(&pair.shunt)?);
        let mut cases = Cases::new();
        for (at, input) in inputs.iter().enumerate() {
            cases.case(format_args!("{}: what shunt does", input.id), || expect(input, &shunt[at]));
            pair.same(&mut cases, format_args!("http1 request: {}", input.id), |proxy| {
                let seen = if proxy.kind == Kind::Envoy { &envoy[at] } else { &shunt[at] };
                // How much of a request that breaks off gets through is a matter of time.
                Ok(json!({ "answers": seen["answers"], "smuggled": seen["smuggled"] }))
            });
        }
        cases.finish()
    })
}

fn expect(input: &Input, seen: &Value) -> Result<()> {
    ensure!(seen["answers"] == json!([input.status.to_string()]), "{seen}");
    ensure!(seen["requests"].as_u64() <= Some(1) && seen["smuggled"] == false, "{seen}");
    ensure!(input.status != 200 || seen["requests"] == 1, "{seen}");
    Ok(())
}

#[test]
fn responses_are_refused_before_they_are_two() -> Result<()> {
    lab(|lab| {
        let inputs = corpus::http1_responses()?;
        let answers: Vec<Arc<Mutex<Vec<u8>>>> = (0..LANES).map(|_| Arc::default()).collect();
        let backends: Vec<Recorder> =
            answers.iter().map(|answer| Recorder::start(Arc::clone(answer))).collect::<Result<_>>()?;
        let pair = Pair::start(lab, &bootstrap(&backends))?;
        let observe = |proxy: &Proxy, n: usize, input: &Input| -> Result<Value> {
            lock(&answers[n]).clone_from(&input.bytes);
            let mut client = Client::connect(proxy.at(&lane(n))?)?;
            client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")?;
            let (answer, _) = client.end_within(QUIET)?;
            Ok(json!({ "answers": statuses(&answer) }))
        };
        let run = |proxy: &Proxy| observe_all(&inputs, |n, input| observe(proxy, n, input));
        let (envoy, shunt) = (run(&pair.envoy)?, run(&pair.shunt)?);
        let mut cases = Cases::new();
        for (at, input) in inputs.iter().enumerate() {
            cases.case(format_args!("{}: what shunt does", input.id), || {
                ensure!(shunt[at]["answers"] == json!([input.status.to_string()]), "{}", shunt[at]);
                Ok(())
            });
            pair.same(&mut cases, format_args!("http1 response: {}", input.id), |proxy| {
                Ok(if proxy.kind == Kind::Envoy { envoy[at].clone() } else { shunt[at].clone() })
            });
        }
        cases.finish()
    })
}

/// Envoy has no such limit of its own; here it is 15 s where nothing else is said.
#[test]
fn slow_heads_are_closed_and_others_are_served() -> Result<()> {
    const CLIENTS: usize = 2_000;
    lab(|lab| {
        let answer = Arc::new(Mutex::new(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()));
        let backends = [Recorder::start(answer)?];
        let proxy = Proxy::start(lab, Kind::Shunt, &bootstrap(&backends))?;
        let at = proxy.at(&lane(0))?;
        let start = Instant::now();
        let mut slow = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            let mut client = Client::connect(at)?;
            client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX: ")?;
            slow.push(client);
        }
        let opened = start.elapsed();
        while start.elapsed() < Duration::from_secs(12) {
            for client in &mut slow {
                client.send(b"a")?;
            }
            let asked = Instant::now();
            let mut other = Client::connect(at)?;
            other.send(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
            let (answer, _) = other.end_within(Duration::from_secs(5))?;
            ensure!(
                statuses(&answer) == ["200"],
                "another client got {:?}",
                String::from_utf8_lossy(&answer)
            );
            // A debug build, on whatever machine: without the slow ones in the way it is milliseconds.
            ensure!(asked.elapsed() < Duration::from_secs(4), "it took {:?}", asked.elapsed());
            std::thread::sleep(Duration::from_secs(2));
        }
        std::thread::sleep((Duration::from_secs(17) + opened).saturating_sub(start.elapsed()));
        for mut client in slow {
            let (answer, end) = client.end_within(QUIET)?;
            ensure!(statuses(&answer) == ["408"], "a slow client got {:?}", String::from_utf8_lossy(&answer));
            ensure!(end != End::Open, "a slow client is still connected");
        }
        Ok(())
    })
}
