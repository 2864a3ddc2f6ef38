//! The two ends of a measurement, each a process of its own: the first byte of a connection says what it is for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde_json::json;

const ECHO_64: u8 = b'e';
const ECHO_16K: u8 = b'E';
const SINK: u8 = b's';
/// One echo, then the server closes: so TIME_WAIT stays on its side, and the clients do not run out of ports.
const ONCE: u8 = b'o';
const SMALL: usize = 64;
const LARGE: usize = 16 * 1024;
const BULK: usize = 256 * 1024;
/// Not measured: caches, the proxy's decision to splice, TCP's windows.
const WARM_UP: Duration = Duration::from_millis(200);

#[derive(Args)]
pub(crate) struct Client {
    #[arg(value_enum)]
    kind: Kind,
    address: SocketAddr,
    seconds: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Rtt64,
    Rtt16k,
    Bulk,
    Connections,
    Connections8,
}

impl Kind {
    /// Its name on the command line.
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Rtt64 => "rtt64",
            Self::Rtt16k => "rtt16k",
            Self::Bulk => "bulk",
            Self::Connections => "connections",
            Self::Connections8 => "connections8",
        }
    }
}

/// Serves on a free port of every address and prints it.
pub(crate) fn serve() -> Result<()> {
    let listener = TcpListener::bind("[::]:0").context("cannot listen")?;
    println!("{}", json!({"port": listener.local_addr()?.port()}));
    for stream in listener.incoming() {
        let stream = stream.context("accept")?;
        thread::spawn(move || {
            // A client that is done just closes.
            let _ = answer(stream);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut purpose = [0];
    stream.read_exact(&mut purpose)?;
    let size = match purpose[0] {
        ECHO_64 | ONCE => SMALL,
        ECHO_16K => LARGE,
        _ => BULK,
    };
    let mut buffer = vec![0; size];
    if purpose[0] == SINK {
        while stream.read(&mut buffer)? > 0 {}
        // The client's clock stops when all of it has arrived.
        return stream.write_all(&[1]);
    }
    loop {
        stream.read_exact(&mut buffer)?;
        stream.write_all(&buffer)?;
        if purpose[0] == ONCE {
            return Ok(());
        }
    }
}

impl Client {
    pub(crate) fn run(&self) -> Result<()> {
        let time = Duration::from_secs_f64(self.seconds);
        let (count, seconds) = match self.kind {
            Kind::Rtt64 => self.ping(ECHO_64, SMALL, time)?,
            Kind::Rtt16k => self.ping(ECHO_16K, LARGE, time)?,
            Kind::Bulk => self.push(time)?,
            Kind::Connections => self.connections(1, time)?,
            Kind::Connections8 => self.connections(8, time)?,
        };
        println!("{}", json!({"count": count, "per_second": count as f64 / seconds}));
        Ok(())
    }

    fn connect(&self, purpose: u8) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address).with_context(|| self.address.to_string())?;
        stream.set_nodelay(true)?;
        stream.write_all(&[purpose])?;
        Ok(stream)
    }

    /// Round trips.
    fn ping(&self, purpose: u8, size: usize, time: Duration) -> Result<(u64, f64)> {
        let mut stream = self.connect(purpose)?;
        let mut buffer = vec![1; size];
        let mut trip = || -> Result<()> {
            stream.write_all(&buffer)?;
            Ok(stream.read_exact(&mut buffer)?)
        };
        let warm = Instant::now();
        while warm.elapsed() < WARM_UP {
            trip()?;
        }
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < time {
            trip()?;
            count += 1;
        }
        Ok((count, start.elapsed().as_secs_f64()))
    }

    /// Bytes one way, until the other end has them all.
    fn push(&self, time: Duration) -> Result<(u64, f64)> {
        let mut stream = self.connect(SINK)?;
        let buffer = vec![1; BULK];
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < time {
            stream.write_all(&buffer)?;
            count += BULK as u64;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_exact(&mut [0])?;
        Ok((count, start.elapsed().as_secs_f64()))
    }

    /// Connect, one small exchange, close by the server.
    fn connections(&self, threads: usize, time: Duration) -> Result<(u64, f64)> {
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        let start = Instant::now();
        thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| -> Result<()> {
                        while !stop.load(Ordering::Relaxed) {
                            self.exchange()?;
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
            for worker in workers {
                worker.join().map_err(|_| anyhow::anyhow!("a client thread panicked"))??;
            }
            Ok(())
        })?;
        Ok((count.load(Ordering::Relaxed), start.elapsed().as_secs_f64()))
    }

    fn exchange(&self) -> Result<()> {
        let mut stream = TcpStream::connect(self.address).with_context(|| self.address.to_string())?;
        stream.set_nodelay(true)?;
        stream.write_all(&[ONCE; SMALL + 1])?;
        let mut answer = Vec::with_capacity(SMALL);
        stream.read_to_end(&mut answer)?;
        anyhow::ensure!(answer.len() == SMALL, "{} bytes came back", answer.len());
        Ok(())
    }
}
