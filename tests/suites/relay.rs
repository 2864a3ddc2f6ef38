//! tcp_proxy between two ends: half-closes, resets, back-pressure and bulk, as Envoy has them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;
use shunt_tests::payload::{CHUNK, Digest, Pattern};
use shunt_tests::ports::nobody;
use shunt_tests::{Bootstrap, Cases, Client, Does, Pair, Proxy, Upstream, lab};

const BULK: u64 = 200_000_000;

/// A listener and a cluster for each thing that a backend does.
struct Ends {
    all: Vec<Upstream>,
}

impl Ends {
    fn start() -> Result<Self> {
        let does = [
            ("echo", Does::Echo),
            ("sum", Does::Sum),
            ("greet", Does::Greet("welcome\n".to_owned())),
            ("reset", Does::Reset),
            ("stall", Does::Stall),
            ("pump", Does::Pump(BULK)),
        ];
        let all = does.into_iter().map(|(name, does)| Upstream::start(name, does)).collect::<Result<_>>()?;
        Ok(Self { all })
    }

    fn of(&self, name: &str) -> &Upstream {
        self.all.iter().find(|upstream| upstream.name == name).unwrap_or(&self.all[0])
    }

    fn config(&self) -> Result<String> {
        let mut config = Bootstrap::new();
        for upstream in &self.all {
            let name = upstream.name.as_str();
            let fields = "per_connection_buffer_limit_bytes: 32768";
            config = config.relay(name, name).static_cluster(name, &[upstream.address], fields);
        }
        Ok(config.relay("refused", "refused").static_cluster("refused", &[nobody()?], "").yaml())
    }
}

#[test]
fn every_end_of_a_connection() -> Result<()> {
    lab(|lab| {
        let ends = Ends::start()?;
        let pair = Pair::start(lab, &ends.config()?)?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the client half-closes first", |proxy| {
            let mut client = Client::connect(proxy.at("sum")?)?;
            send_pattern(&mut client, 1_000_000)?;
            client.half_close()?;
            let rest = client.rest()?;
            ensure!(rest == format!("sum 1000000 {}\n FIN", Digest::of(1, 1_000_000).hex()), "{rest}");
            Ok(json!(rest))
        });
        pair.same(&mut cases, "the upstream half-closes first", |proxy| {
            let (upstream, mark) = (ends.of("greet"), ends.of("greet").mark());
            let mut client = Client::connect(proxy.at("greet")?)?;
            let rest = client.rest()?;
            ensure!(rest == "welcome\n FIN", "{rest}");
            std::thread::sleep(Duration::from_millis(50));
            client.send("after the end")?;
            client.half_close()?;
            let seen = upstream.ended(mark)?;
            Ok(json!([rest, String::from_utf8_lossy(&seen.head), seen.end.to_string()]))
        });
        pair.same(&mut cases, "the client resets", |proxy| {
            let (upstream, mark) = (ends.of("echo"), ends.of("echo").mark());
            let mut client = Client::connect(proxy.at("echo")?)?;
            client.ask("hello")?;
            client.reset()?;
            Ok(json!(upstream.ended(mark)?.end.to_string()))
        });
        pair.same(&mut cases, "the client closes without reading", |proxy| {
            let (upstream, mark) = (ends.of("greet"), ends.of("greet").mark());
            let client = Client::connect(proxy.at("greet")?)?;
            std::thread::sleep(Duration::from_millis(50));
            drop(client);
            upstream.ended(mark).map(drop)?;
            Ok(json!("ended"))
        });
        pair.same(&mut cases, "the upstream resets", |proxy| {
            let mut client = Client::connect(proxy.at("reset")?)?;
            client.send("hello\n")?;
            Ok(json!(client.rest()?))
        });
        pair.same(&mut cases, "the upstream refuses", |proxy| {
            Ok(json!(Client::connect(proxy.at("refused")?)?.rest()?))
        });
        cases.finish()
    })
}

#[test]
fn what_is_counted() -> Result<()> {
    lab(|lab| {
        let ends = Ends::start()?;
        let pair = Pair::start(lab, &ends.config()?)?;
        let mut cases = Cases::new();
        let names = |name: &str| {
            let tcp = [
                "downstream_cx_total",
                "downstream_cx_no_route",
                "downstream_cx_rx_bytes_total",
                "downstream_cx_tx_bytes_total",
                "idle_timeout",
                "max_downstream_connection_duration",
            ];
            let cluster = [
                "upstream_cx_total",
                "upstream_cx_active",
                "upstream_cx_connect_fail",
                "upstream_cx_connect_timeout",
                "upstream_cx_connect_attempts_exceeded",
                "upstream_cx_destroy",
                "upstream_cx_destroy_local",
                "upstream_cx_destroy_remote",
                "upstream_cx_destroy_with_active_rq",
                "upstream_cx_destroy_local_with_active_rq",
                "upstream_cx_destroy_remote_with_active_rq",
                "upstream_cx_rx_bytes_total",
                "upstream_cx_tx_bytes_total",
                "upstream_cx_none_healthy",
                "upstream_cx_overflow",
                "upstream_rq_total",
                "upstream_rq_active",
                "upstream_rq_pending_total",
                "upstream_rq_pending_failure_eject",
            ];
            let tcp = tcp.iter().map(|stat| format!("tcp.{name}.{stat}"));
            tcp.chain(cluster.iter().map(|stat| format!("cluster.{name}.{stat}"))).collect::<Vec<_>>()
        };
        let counted = |cases: &mut Cases, what: &str, name: &str, traffic: &dyn Fn(Client) -> Result<()>| {
            let names = names(name);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            pair.same_stats(cases, format_args!("stats: {what}"), &names, |proxy| {
                traffic(Client::connect(proxy.at(name)?)?)?;
                // Both ends are closed when these are counted.
                proxy.expect_stat(&format!("cluster.{name}.upstream_cx_active"), 0)?;
                proxy.expect_stat(&format!("tcp.{name}.downstream_cx_active"), 0)
            });
        };
        counted(&mut cases, "a good connection", "sum", &|mut client| {
            client.send("12345\n")?;
            client.half_close()?;
            client.end().map(drop)
        });
        counted(&mut cases, "the upstream says FIN first", "greet", &|mut client| {
            client.end()?;
            client.send("123")?;
            client.half_close()
        });
        counted(&mut cases, "the client resets", "echo", &|mut client| {
            client.ask("hello")?;
            client.reset()
        });
        counted(&mut cases, "the upstream resets", "reset", &|mut client| {
            client.send("hello\n")?;
            client.end().map(drop)
        });
        counted(&mut cases, "the upstream refuses", "refused", &|mut client| client.end().map(drop));
        let listener = ["downstream_cx_total", "downstream_cx_active", "downstream_cx_destroy"];
        let listener = listener.map(|stat| format!("listener.127.0.0.1_0.{stat}"));
        let listener: Vec<&str> = listener.iter().map(String::as_str).collect();
        pair.same_stats(&mut cases, "stats: a listener", &listener, |proxy| {
            let mut open = Client::connect(proxy.at("echo")?)?;
            open.ask("hello")?;
            let mut closed = Client::connect(proxy.at("echo")?)?;
            closed.half_close()?;
            closed.end().map(drop)?;
            std::mem::forget(open);
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn a_slow_reader_stops_the_sender() -> Result<()> {
    lab(|lab| {
        let ends = Ends::start()?;
        let pair = Pair::start(lab, &ends.config()?)?;
        for proxy in pair.both() {
            let name = proxy.kind.name();
            let before = proxy.rss()?;
            let mut clients = Vec::new();
            for _ in 0..8 {
                let client = Client::connect(proxy.at("stall")?)?;
                let sent = send_until_stopped(&client)?;
                // The kernel's buffers of four sockets are more than the proxy's own 2 x 32 KiB.
                ensure!(sent < 40_000_000, "{name} took {sent} bytes that nobody reads");
                clients.push(client);
            }
            for _ in 0..8 {
                clients.push(Client::connect_narrow(proxy.at("pump")?)?);
            }
            std::thread::sleep(Duration::from_millis(400));
            let grown = proxy.rss()?.saturating_sub(before);
            ensure!(grown < 24_000_000, "{name} holds {grown} bytes more for 16 connections");
            let rx = proxy.stat("cluster.pump.upstream_cx_rx_bytes_total")?;
            ensure!(rx < 8 * 20_000_000, "{name} has read {rx} bytes for clients that do not");
        }
        Ok(())
    })
}

#[test]
fn bulk_is_unchanged() -> Result<()> {
    lab(|lab| {
        let ends = Ends::start()?;
        let pair = Pair::start(lab, &ends.config()?)?;
        let expected = Digest::of(1, BULK).hex();
        for proxy in pair.both() {
            let digest = pull(proxy)?;
            ensure!(digest.bytes() == BULK && digest.hex() == expected, "{}", proxy.kind.name());
        }
        Ok(())
    })
}

fn pull(proxy: &Proxy) -> Result<Digest> {
    let client = Client::connect(proxy.at("pump")?)?;
    let (mut digest, mut buf) = (Digest::default(), vec![0; CHUNK]);
    loop {
        match client.stream().read(&mut buf)? {
            0 => return Ok(digest),
            n => digest.update(&buf[..n]),
        }
    }
}

fn send_pattern(client: &mut Client, len: u64) -> Result<()> {
    let (mut pattern, mut buf) = (Pattern::new(1, len), vec![0; CHUNK]);
    loop {
        match pattern.fill(&mut buf) {
            0 => return Ok(()),
            n => client.send(&buf[..n])?,
        }
    }
}

/// How many bytes go out before nothing does for a while.
fn send_until_stopped(client: &Client) -> Result<u64> {
    let mut stream = client.stream();
    stream.set_nonblocking(true)?;
    let (mut sent, mut last, buf) = (0, Instant::now(), vec![7; CHUNK]);
    while last.elapsed() < Duration::from_millis(150) {
        match stream.write(&buf) {
            Ok(n) => {
                sent += n as u64;
                last = Instant::now();
                if sent > 200_000_000 {
                    bail!("{sent} bytes, and no end");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(2))
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}
