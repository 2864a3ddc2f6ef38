//! Traffic in the background: one short connection after the other until stdin ends, then what became of them.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::options::Options;
use crate::report::{errno, print};
use crate::socket::open;
use crate::steps::{self, Step};

const THREADS: usize = 2;

#[derive(Default)]
struct Tally {
    ok: u64,
    errors: BTreeMap<String, u64>,
    slowest: Duration,
    /// Connections that did not go through the proxy.
    direct: u64,
}

pub(crate) fn run(options: &Options) -> Result<bool, String> {
    let to = options.destination()?;
    let stop = Arc::new(AtomicBool::new(false));
    let tally = Arc::new(Mutex::new(Tally::default()));
    print(&json!({ "event": "started" }));
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (options, stop, tally) = (options.clone(), stop.clone(), tally.clone());
            thread::spawn(move || work(&options, to, &stop, &tally))
        })
        .collect();
    // The end of the input is the sign to stop.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| drop(thread.join()));
    let t = tally.lock().unwrap_or_else(PoisonError::into_inner);
    print(&json!({
        "ok": t.ok, "errors": t.errors, "slowest_ms": t.slowest.as_millis() as u64, "direct": t.direct,
    }));
    Ok(true)
}

fn work(options: &Options, to: SocketAddr, stop: &AtomicBool, tally: &Mutex<Tally>) {
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let result = exchange(options, to);
        {
            let mut t = tally.lock().unwrap_or_else(PoisonError::into_inner);
            t.slowest = t.slowest.max(started.elapsed());
            match result {
                Ok(direct) => {
                    t.ok += 1;
                    t.direct += u64::from(direct);
                }
                Err((step, name)) => *t.errors.entry(format!("{step} {name}")).or_default() += 1,
            }
        }
        thread::sleep(options.interval);
    }
}

/// Whether it went past the proxy.
fn exchange(options: &Options, to: SocketAddr) -> Result<bool, (&'static str, String)> {
    let failed = |step| move |error: io::Error| (step, errno(&error));
    let mut stream = open(options, to, b"").map_err(failed("connect"))?;
    let direct = !stream.local_addr().map_err(failed("getsockname"))?.ip().to_canonical().is_loopback();
    let step = Step { name: "echo".to_owned(), len: 100, pause: Duration::ZERO };
    stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(failed("setsockopt"))?;
    stream.write_all(step.request().unwrap_or_default().as_bytes()).map_err(failed("write"))?;
    let mut stream: Option<TcpStream> = Some(stream);
    let result = steps::client(&mut stream, &step, 1);
    if result["ok"] == true {
        return Ok(direct);
    }
    Err(("echo", result["errno"].as_str().or(result["error"].as_str()).unwrap_or("wrong bytes").to_owned()))
}
