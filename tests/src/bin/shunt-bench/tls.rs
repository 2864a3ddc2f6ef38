//! TLS: handshakes for a CPU second, and bytes through it, beside Envoy and beside rustls with nothing around it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{self, Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
#[cfg(feature = "aws-lc-rs")]
use rustls::crypto::aws_lc_rs::kx_group;
#[cfg(not(feature = "aws-lc-rs"))]
use rustls::crypto::ring::kx_group;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{extension, tcp_proxy};
use shunt_tests::pki::{Identity, Key};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, Kind, Lab, Leaf, Pki, Proxy, TlsClient, TlsContext, lab};

use crate::figures::{Figures, Metric, metric};
use crate::floor;
use crate::machine::Machine;
use crate::proxy::{ENVOY, cpu_of};

/// The columns: the last is rustls with as little around it as there can be. For handshakes that is [`crate::floor`],
/// for bytes a relay of one thread.
const MODES: &[&str] = &["envoy", "shunt", "rustls"];
const RUSTLS: usize = 2;
const KINDS: [Kind; 2] = Kind::BOTH;
/// Of each server.
const THREADS: usize = 2;
/// Clients at a time, so that the proxy is never idle for long.
const CLIENTS: usize = 4;
const CHUNK: usize = 256 * 1024;
/// Both have it, and neither is asked for the hybrid that only Envoy has.
const CURVES: &str = "ecdh_curves: [ X25519 ]";
const TLS13: [&str; 2] = ["tls_minimum_protocol_version: TLSv1_3", "tls_maximum_protocol_version: TLSv1_3"];

#[derive(Args)]
pub(crate) struct Options {
    /// How often each is measured.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// How long handshakes are made for, in seconds.
    #[arg(long, default_value_t = 2.0)]
    duration_s: f64,
    /// Bytes of a transfer, in MB.
    #[arg(long, default_value_t = 1000)]
    megabytes: u64,
    /// Write every value here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const METRICS: &[Metric] = &[
    metric("P-256, full: handshakes / CPU s", 1.0, 0),
    metric("P-256, resumed: handshakes / CPU s", 1.0, 0),
    metric("RSA-2048, full: handshakes / CPU s", 1.0, 0),
    metric("RSA-2048, resumed: handshakes / CPU s", 1.0, 0),
    metric("P-256, full: handshakes / s", 1.0, 0),
    metric("P-256, resumed: handshakes / s", 1.0, 0),
    metric("RSA-2048, full: handshakes / s", 1.0, 0),
    metric("RSA-2048, resumed: handshakes / s", 1.0, 0),
    metric("TLS to plain text: CPU s / GB", 1.0, 3),
    metric("plain text to TLS: CPU s / GB", 1.0, 3),
    metric("TLS to plain text: MB/s", 1e-6, 0),
    metric("plain text to TLS: MB/s", 1e-6, 0),
];
/// Of the keys, for handshakes.
const LISTENERS: [&str; 2] = ["p256", "rsa"];
/// Of handshakes; after them come as many of their rates, then those of bytes.
const HANDSHAKES: usize = 4;

pub(crate) fn run(options: &Options) -> Result<()> {
    crate::interrupt::watch()?;
    let result = lab(|lab| measure(lab, options));
    if crate::interrupt::came() { Ok(()) } else { result }
}

fn measure(lab: &Lab, options: &Options) -> Result<()> {
    let pki = Pki::new(lab)?;
    let root = pki.root("root")?;
    let p256 = root.issue("p256", &Leaf::new().dns("a.example.com"))?;
    let rsa = root.issue("rsa", &Leaf::new().dns("a.example.com").key(Key::Rsa2048))?;
    let plain = sink(None)?;
    let secure = sink(Some(server_config(&p256.chain, &p256.key)?))?;
    let config = bootstrap(&p256, &rsa, plain, secure);
    let mut proxies = Vec::new();
    for kind in KINDS {
        proxies.push(Proxy::start_with(lab, kind, &config, &["--concurrency", &THREADS.to_string()])?);
    }
    let relays = [Alone::relay(Way::Decrypt, plain, &p256)?, Alone::relay(Way::Encrypt, secure, &p256)?];
    // Of the keys.
    let floors = [Alone::floor(&p256)?, Alone::floor(&rsa)?];
    let mut figures = Figures::new(METRICS, MODES, ENVOY);
    for n in 0..=options.repetitions {
        eprintln!("repetition {n} of {} (0 does not count)", options.repetitions);
        for metric in 0..HANDSHAKES {
            for which in (0..MODES.len()).map(|i| (i + n) % MODES.len()) {
                let (pid, to) = if which == RUSTLS {
                    let floor = &floors[metric / 2];
                    (floor.child.id(), floor.address)
                } else {
                    let proxy = &mut proxies[which];
                    (u32::try_from(proxy.process().pid())?, proxy.at(LISTENERS[metric / 2])?)
                };
                let (per_cpu, per_second) = handshakes((pid, to), metric % 2 == 1, options)?;
                if n > 0 {
                    figures.push(which, metric, per_cpu);
                    figures.push(which, HANDSHAKES + metric, per_second);
                }
            }
        }
        for way in [Way::Decrypt, Way::Encrypt] {
            for which in (0..MODES.len()).map(|i| (i + n) % MODES.len()) {
                let (pid, to) = if which == RUSTLS {
                    let relay = &relays[way as usize];
                    (relay.child.id(), relay.address)
                } else {
                    let proxy = &mut proxies[which];
                    (u32::try_from(proxy.process().pid())?, proxy.at(way.listener())?)
                };
                let (cpu, rate) = bulk(pid, to, way, options.megabytes * 1_000_000)?;
                if n > 0 {
                    figures.push(which, 2 * HANDSHAKES + way as usize, cpu);
                    figures.push(which, 2 * HANDSHAKES + 2 + way as usize, rate);
                }
            }
        }
    }
    report(options, &figures)
}

fn bootstrap(p256: &Identity, rsa: &Identity, plain: SocketAddr, secure: SocketAddr) -> String {
    let own = |identity| {
        TLS13.iter().fold(TlsContext::new().certificate(identity), |c, p| c.params(p)).params(CURVES)
    };
    let upstream = TLS13.iter().fold(TlsContext::new(), |context, params| context.params(params));
    let upstream = upstream.params(CURVES).field("sni: a.example.com");
    let mut config = Bootstrap::new()
        .static_cluster("plain", &[plain], "")
        .static_cluster("secure", &[secure], &upstream.cluster())
        .relay(Way::Encrypt.listener(), "secure");
    let bulk = tls_chain("", &own(p256).downstream(), &[tcp_proxy("bulk", "cluster: plain")]);
    config = config.listener(Way::Decrypt.listener(), &format!("filter_chains: [ {bulk} ]"));
    for (name, identity) in [("p256", p256), ("rsa", rsa)] {
        let echo = extension("echo", "envoy.extensions.filters.network.echo.v3.Echo", "");
        let chain = tls_chain("", &own(identity).downstream(), &[echo]);
        config = config.listener(name, &format!("filter_chains: [ {chain} ]"));
    }
    config.yaml()
}

fn client() -> TlsClient {
    let client = TlsClient::new().name("a.example.com").tls13().group(kx_group::X25519);
    client.suites(&[cipher_suite::TLS13_AES_128_GCM_SHA256])
}

/// Handshakes for a CPU second of a server, and for a second.
fn handshakes((pid, to): (u32, SocketAddr), resumed: bool, options: &Options) -> Result<(f64, f64)> {
    crate::interrupt::check()?;
    let (stop, count, reused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (before, start) = (cpu_of(pid)?, Instant::now());
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let client = if resumed { client().sessions() } else { client() }.ready()?;
                    while !stop.load(Ordering::Relaxed) {
                        let mut stream = client.connect(to)?;
                        // The tickets come before the answer.
                        ensure!(stream.ask("x")? == "x", "another answer");
                        stream.half_close()?;
                        count.fetch_add(1, Ordering::Relaxed);
                        reused.fetch_add(u64::from(stream.agreed()?.resumed), Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        thread::sleep(Duration::from_secs_f64(options.duration_s));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(())
    })?;
    let (count, reused) = (count.into_inner() as f64, reused.into_inner() as f64);
    let share = reused / count;
    ensure!(if resumed { share > 0.95 } else { share == 0.0 }, "{reused} of {count} were resumed");
    Ok((count / (cpu_of(pid)? - before), count / start.elapsed().as_secs_f64()))
}

/// CPU seconds of the proxy for a GB, and bytes a second.
fn bulk(pid: u32, to: SocketAddr, way: Way, bytes: u64) -> Result<(f64, f64)> {
    crate::interrupt::check()?;
    let buffer = vec![7; CHUNK];
    let rounds = bytes / CHUNK as u64;
    let (before, start);
    match way {
        Way::Decrypt => {
            let mut stream = client().connect(to)?;
            (before, start) = (cpu_of(pid)?, Instant::now());
            for _ in 0..rounds {
                stream.send(&buffer)?;
            }
            stream.half_close()?;
            ensure!(stream.end()?.0 == [1], "not all has come");
        }
        Way::Encrypt => {
            let mut stream = TcpStream::connect(to)?;
            (before, start) = (cpu_of(pid)?, Instant::now());
            for _ in 0..rounds {
                stream.write_all(&buffer)?;
            }
            stream.shutdown(Shutdown::Write)?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            ensure!(answer == [1], "not all has come");
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let sent = (rounds * CHUNK as u64) as f64;
    Ok(((cpu_of(pid)? - before) / (sent / 1e9), sent / seconds))
}

fn server_config(chain: &std::path::Path, key: &std::path::Path) -> Result<Arc<ServerConfig>> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    // As in shunt.
    provider.kx_groups = vec![kx_group::X25519];
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let builder = ServerConfig::builder_with_provider(Arc::new(provider));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?.with_no_client_auth();
    let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// A server that reads to the end and answers with one byte.
fn sink(config: Option<Arc<ServerConfig>>) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            thread::spawn(move || swallow(stream, config));
        }
    });
    Ok(address)
}

fn swallow(mut stream: TcpStream, config: Option<Arc<ServerConfig>>) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let Some(config) = config else {
        while stream.read(&mut buffer)? > 0 {}
        return Ok(stream.write_all(&[1])?);
    };
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    while stream.read(&mut buffer)? > 0 {}
    stream.write_all(&[1])?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(stream.sock.shutdown(Shutdown::Write)?)
}

/// What a relay does to what comes from the client.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    Decrypt,
    Encrypt,
}

impl Way {
    fn listener(self) -> &'static str {
        match self {
            Self::Decrypt => "decrypt",
            Self::Encrypt => "encrypt",
        }
    }
}

/// rustls alone, in a process of its own so that its CPU time can be told.
#[derive(Args)]
pub(crate) struct Relay {
    #[arg(value_enum)]
    way: Way,
    to: SocketAddr,
    chain: PathBuf,
    key: PathBuf,
}

impl Relay {
    pub(crate) fn run(&self) -> Result<()> {
        let config = server_config(&self.chain, &self.key)?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        println!("{}", listener.local_addr()?);
        for stream in listener.incoming() {
            self.carry(stream?, &config)?;
        }
        Ok(())
    }

    /// To the end of what the client says, then the answer.
    fn carry(&self, mut from: TcpStream, config: &Arc<ServerConfig>) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        match self.way {
            Way::Decrypt => {
                let mut from = StreamOwned::new(ServerConnection::new(Arc::clone(config))?, from);
                let mut to = TcpStream::connect(self.to)?;
                loop {
                    match from.read(&mut buffer)? {
                        0 => break,
                        n => to.write_all(&buffer[..n])?,
                    }
                }
                to.shutdown(Shutdown::Write)?;
                let n = to.read(&mut buffer)?;
                from.write_all(&buffer[..n])?;
                from.conn.send_close_notify();
                from.flush()?;
                Ok(from.sock.shutdown(Shutdown::Write)?)
            }
            Way::Encrypt => {
                let mut to = client().connect(self.to)?;
                loop {
                    match from.read(&mut buffer)? {
                        0 => break,
                        n => to.send(&buffer[..n])?,
                    }
                }
                to.half_close()?;
                Ok(from.write_all(&to.end()?.0)?)
            }
        }
    }
}

/// [`crate::floor`], in a process of its own for the same reason.
#[derive(Args)]
pub(crate) struct Floor {
    chain: PathBuf,
    key: PathBuf,
}

impl Floor {
    pub(crate) fn run(&self) -> Result<()> {
        floor::serve(&server_config(&self.chain, &self.key)?, THREADS, |address| println!("{address}"))
    }
}

/// A process of rustls alone.
struct Alone {
    child: Child,
    address: SocketAddr,
}

impl Alone {
    fn relay(way: Way, to: SocketAddr, identity: &Identity) -> Result<Self> {
        Self::start(&["relay", way.listener(), &to.to_string()], identity)
    }

    fn floor(identity: &Identity) -> Result<Self> {
        Self::start(&["floor"], identity)
    }

    fn start(args: &[&str], identity: &Identity) -> Result<Self> {
        let mut command = process::Command::new(std::env::current_exe()?);
        command.args(args).arg(&identity.chain).arg(&identity.key);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let out = child.stdout.take().context("no output")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
        let address = line.trim().parse().context("no address of the relay")?;
        Ok(Self { child, address })
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn report(options: &Options, figures: &Figures) -> Result<()> {
    let machine = Machine::read();
    let Options { repetitions, duration_s, megabytes, json } = options;
    println!("{}", machine.line());
    println!(
        "{repetitions} repetitions of {duration_s} s and {megabytes} MB, proxies interleaved; median (min-max)\n\n{}",
        figures.table()
    );
    let Some(path) = json else { return Ok(()) };
    let all: Value = json!({
        "machine": machine.json(),
        "repetitions": repetitions,
        "duration_s": duration_s,
        "megabytes": megabytes,
        "modes": figures.json(),
    });
    fs::write(path, serde_json::to_vec_pretty(&all)?).with_context(|| path.display().to_string())
}
