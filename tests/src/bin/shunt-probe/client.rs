//! The client: one connection or many at once, steps from the command line or from stdin.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};

use crate::options::Options;
use crate::report::{failure, print};
use crate::socket::open;
use crate::steps::{self, Step};

pub(crate) fn run(options: &Options, args: &[String]) -> Result<bool, String> {
    if options.exec {
        return exec(args);
    }
    let steps: Vec<Step> = options.steps.iter().map(|text| Step::parse(text)).collect::<Result<_, _>>()?;
    if options.parallel > 1 {
        return many(options, &steps);
    }
    let report = if options.session { return session(options) } else { one(options, &steps, 1, || {})? };
    print(&report);
    Ok(report["ok"] == true)
}

/// The connect is that of a forked and executed child.
fn exec(args: &[String]) -> Result<bool, String> {
    let args = args.iter().filter(|arg| *arg != "--exec");
    let status = Command::new("/proc/self/exe").arg("connect").args(args).status();
    status.map(|status| status.success()).map_err(|error| error.to_string())
}

/// Opens a connection, does the steps, and reports.
fn one(options: &Options, steps: &[Step], seed: u64, opened: impl FnOnce()) -> Result<Value, String> {
    let started = Instant::now();
    let first = steps.first().and_then(Step::request).unwrap_or_default();
    let result = open(options, options.destination()?, first.as_bytes());
    let connect_ms = started.elapsed().as_millis() as u64;
    opened();
    let stream = match result {
        Ok(stream) => stream,
        Err(error) => {
            let mut report = failure("connect", &error);
            report["connect_ms"] = connect_ms.into();
            return Ok(report);
        }
    };
    let mut report = addresses(&stream);
    report["connect_ms"] = connect_ms.into();
    let mut stream = Some(stream);
    let mut results = Vec::new();
    for (index, step) in steps.iter().enumerate() {
        let sent = if index == 0 { Ok(()) } else { request(stream.as_ref(), step) };
        let result = match sent {
            Ok(()) => steps::client(&mut stream, step, seed),
            Err(error) => failure(&step.name, &error),
        };
        let good = result["ok"] == true;
        if !good {
            report["errno"] = result["errno"].clone();
        }
        results.push(result);
        if !good {
            break;
        }
    }
    report["ok"] = results.iter().all(|result| result["ok"] == true).into();
    report["steps"] = results.into();
    Ok(report)
}

fn addresses(stream: &TcpStream) -> Value {
    let text =
        |address: io::Result<SocketAddr>| address.map_or_else(|error| error.to_string(), |a| a.to_string());
    json!({ "ok": true, "local": text(stream.local_addr()), "peer": text(stream.peer_addr()) })
}

fn request(stream: Option<&TcpStream>, step: &Step) -> io::Result<()> {
    match (stream, step.request()) {
        (Some(mut stream), Some(text)) => stream.write_all(text.as_bytes()),
        (None, _) => Err(io::Error::other("the connection is closed")),
        (_, None) => Ok(()),
    }
}

/// Many connections, none of which goes on before all are open.
fn many(options: &Options, steps: &[Step]) -> Result<bool, String> {
    options.destination()?;
    let barrier = Arc::new(Barrier::new(options.parallel));
    let start = |seed: usize| {
        let (options, steps, barrier) = (options.clone(), steps.to_vec(), barrier.clone());
        let all_open = move || {
            barrier.wait();
        };
        let body = move || one(&options, &steps, seed as u64, all_open);
        thread::Builder::new().stack_size(256 * 1024).spawn(body).map_err(|error| error.to_string())
    };
    let threads: Vec<_> = (0..options.parallel).map(start).collect::<Result<_, _>>()?;
    let (mut good, mut errors) = (0, BTreeMap::<String, usize>::new());
    for thread in threads {
        let report = thread.join().map_err(|_| "a connection's thread panicked".to_owned())??;
        if report["ok"] == true {
            good += 1;
        } else {
            *errors.entry(report.to_string()).or_default() += 1;
        }
    }
    let shown: BTreeMap<_, _> = errors.iter().take(5).collect();
    print(&json!({ "ok": good == options.parallel, "good": good, "errors": shown }));
    Ok(good == options.parallel)
}

/// Reports the open connection, then does one step for each line of stdin.
fn session(options: &Options) -> Result<bool, String> {
    let stream = match open(options, options.destination()?, b"") {
        Ok(stream) => stream,
        Err(error) => {
            print(&failure("connect", &error));
            return Ok(false);
        }
    };
    print(&addresses(&stream));
    let mut stream = Some(stream);
    for text in io::stdin().lock().lines() {
        let step = Step::parse(&text.map_err(|error| error.to_string())?)?;
        let result = match request(stream.as_ref(), &step) {
            Ok(()) => steps::client(&mut stream, &step, 1),
            Err(error) => failure(&step.name, &error),
        };
        print(&result);
    }
    Ok(true)
}
