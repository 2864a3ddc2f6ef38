//! TCP through HTTP: `tunneling_config` opens tunnels and `connect_config` ends them, by Envoy and by shunt at either
//! end.

mod ends;
mod limits;
mod rig;

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::payload::{CHUNK, Digest, Pattern};
use shunt_tests::ports::nobody;
use shunt_tests::{Cases, Client, Does, End, Kind, Lab, Pair, Pki, Proxy, TlsContext, Upstream, lab};

use self::rig::{Ends, Rig, Way, ending, fields, line, manager, mark, opens};

/// How much goes through in bulk.
const BULK: u64 = 12 << 20;

#[test]
fn lines_go_both_ways_and_both_ends_log_alike() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let rig = Rig::start(lab, up.address, "end", "")?;
        let mut cases = Cases::new();
        for way in Way::SHARED {
            rig.same(&mut cases, way, "an echo", |ends| {
                let own = format!("{}.log", way.name());
                let before = (mark(ends.start, &own), mark(ends.end, "end.log"));
                let mut client = Client::connect(ends.at(way)?)?;
                for text in ["hello", "again"] {
                    ensure!(client.ask(text)? == format!("up {text}"), "no echo");
                }
                drop(client);
                let (start, end) = (line(ends.start, &own, before.0)?, line(ends.end, "end.log", before.1)?);
                let (start, mut end) = (fields(&start), fields(&end));
                if !way.is_http2()
                    && let Some(end) = end.as_array_mut()
                {
                    // A client's FIN ends Envoy's half of a tunnel at once: it knows no half of one in HTTP/1.
                    end.truncate(14);
                }
                Ok(json!([start, end]))
            });
        }
        let (way, ends) = (Way::Http1Post, rig.shunt()?);
        cases.case("POST by HTTP/1.1", || {
            let before = mark(ends.end, "end.log");
            let mut client = Client::connect(ends.at(way)?)?;
            ensure!(client.ask("hello")? == "up hello", "no echo");
            drop(client);
            let line = line(ends.end, "end.log", before)?;
            ensure!(line.starts_with("POST|127.0.0.1:443|/|HTTP/1.1|200|6|9|<127.0.0.1>|"), "{line}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn stats_of_both_ends() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let rig = Rig::start(lab, up.address, "end", "")?;
        let mut cases = Cases::new();
        for way in Way::SHARED {
            let of = |proxy: &str| format!("cluster.{proxy}.upstream");
            let name = way.name();
            let start: Vec<String> = [
                "cx_total",
                "cx_active",
                "rq_total",
                "rq_active",
                "rq_pending_total",
                "cx_http1_total",
                "cx_http2_total",
                "cx_connect_fail",
                "rq_completed",
                "rq_rx_reset",
            ]
            .iter()
            .map(|stat| format!("{}_{stat}", of(name)))
            .chain(
                ["cx_total", "cx_rx_bytes_total", "cx_tx_bytes_total"]
                    .iter()
                    .map(|stat| format!("tcp.{name}.downstream_{stat}")),
            )
            .collect();
            let end: Vec<String> = [
                "cx_total",
                "cx_active",
                "rq_total",
                "rq_active",
                "rq_200",
                "rq_2xx",
                "rq_completed",
                "cx_rx_bytes_total",
                "cx_tx_bytes_total",
                "cx_http1_total",
                "cx_http2_total",
            ]
            .iter()
            .map(|stat| format!("{}_{stat}", of("up")))
            .chain(
                ["rq_total", "rq_2xx", "rq_completed", "cx_upgrades_total", "cx_upgrades_active"]
                    .iter()
                    .map(|stat| format!("http.end.downstream_{stat}")),
            )
            .collect();
            rig.same(&mut cases, way, "stats", |ends| {
                let names = |all: &[String]| all.to_vec();
                let (first, second) = (ends.start.stats()?, ends.end.stats()?);
                let before = (mark(ends.start, &format!("{name}.log")), mark(ends.end, "end.log"));
                let mut client = Client::connect(ends.at(way)?)?;
                client.ask("hello")?;
                drop(client);
                line(ends.start, &format!("{name}.log"), before.0)?;
                line(ends.end, "end.log", before.1)?;
                let delta = |proxy: &Proxy, before: &shunt_tests::proxy::Stats, all: &[String]| {
                    let all: Vec<&str> = all.iter().map(String::as_str).collect();
                    Ok::<_, anyhow::Error>(proxy.stats()?.since(before, &all))
                };
                // A connection of HTTP/2 outlives the first tunnel.
                let (start, end) = (names(&start), names(&end));
                let start = start
                    .into_iter()
                    .filter(|stat| !way.is_http2() || !stat.contains("upstream_cx_"))
                    .collect::<Vec<_>>();
                std::thread::sleep(std::time::Duration::from_millis(100));
                Ok(json!([delta(ends.start, &first, &start)?, delta(ends.end, &second, &end)?]))
            });
        }
        cases.finish()
    })
}

/// Reads to the end, and says whether it was the whole pattern.
fn is_pattern(client: &mut Client) -> Result<bool> {
    let (bytes, end) = client.end()?;
    let mut digest = Digest::default();
    digest.update(&bytes);
    Ok(end == End::Eof && digest.hex() == Digest::of(1, BULK).hex())
}

fn send_bulk(client: &mut Client) -> Result<()> {
    let (mut pattern, mut buf) = (Pattern::new(1, BULK), vec![0; CHUNK]);
    loop {
        match pattern.fill(&mut buf) {
            0 => return client.half_close(),
            n => client.send(&buf[..n])?,
        }
    }
}

#[test]
fn bulk_is_carried_whole() -> Result<()> {
    lab(|lab| {
        let (pump, sum) = (Upstream::start("pump", Does::Pump(BULK))?, Upstream::start("sum", Does::Sum)?);
        let mut cases = Cases::new();
        let rig = Rig::start(lab, pump.address, "end", "")?;
        for way in Way::ALL {
            for ends in rig.all().filter(|ends| way != Way::Http1Post || ends.are_shunt()) {
                cases.case(format_args!("{}, {}, down", way.name(), ends.name()), || {
                    let mut client = Client::connect(ends.at(way)?)?;
                    if way.is_http2() {
                        // Envoy resets a stream whose client has not ended, and loses what no window was open for.
                        client.half_close()?;
                    }
                    ensure!(is_pattern(&mut client)?, "another pattern");
                    Ok(())
                });
            }
        }
        drop(rig);
        let rig = Rig::start(lab, sum.address, "end", "")?;
        for way in Way::ALL {
            // Envoy ends a tunnel of HTTP/1.1 with its client's FIN, and with it the answer.
            for ends in rig.all().filter(|ends| way.is_http2() || ends.are_shunt()) {
                cases.case(format_args!("{}, {}, up", way.name(), ends.name()), || {
                    let mut client = Client::connect(ends.at(way)?)?;
                    send_bulk(&mut client)?;
                    let line = client.line()?;
                    let expected = format!("sum {BULK} {}", Digest::of(1, BULK).hex());
                    ensure!(line == expected, "{line}");
                    Ok(())
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn each_direction_ends_by_itself() -> Result<()> {
    lab(|lab| {
        let greets = Upstream::start("greets", Does::Greet("bye".to_owned()))?;
        let rig = Rig::start(lab, greets.address, "end", "")?;
        let mut cases = Cases::new();
        for way in Way::SHARED {
            for ends in rig.all() {
                cases.case(format_args!("{}, {}: the server goes first", way.name(), ends.name()), || {
                    let seen = greets.mark();
                    let mut client = Client::connect(ends.at(way)?)?;
                    let (said, end) = client.end()?;
                    ensure!(said == b"bye" && end == End::Eof, "{said:?} {end}");
                    if ends.are_shunt() {
                        client.send("later\n")?;
                        client.half_close()?;
                        let seen = greets.ended(seen)?;
                        ensure!(seen.head == b"later\n" && seen.end == End::Eof, "{seen:?}");
                        return Ok(());
                    }
                    drop(client);
                    // Else it is taken for the next one's.
                    greets.ended(seen).map(drop)
                });
            }
        }
        cases.finish()
    })
}

#[test]
fn a_reset_is_no_good_end() -> Result<()> {
    lab(|lab| {
        let (resets, echo) = (Upstream::start("resets", Does::Reset)?, Upstream::echo("up")?);
        let mut cases = Cases::new();
        let rig = Rig::start(lab, resets.address, "end", "")?;
        for way in Way::ALL {
            let ends = rig.shunt()?;
            cases.case(format_args!("{}: by the server", way.name()), || {
                let own = format!("{}.log", way.name());
                let before = mark(ends.start, &own);
                let mut client = Client::connect(ends.at(way)?)?;
                client.send("hello\n")?;
                let (_, end) = client.end()?;
                ensure!(end == End::Reset, "{end}");
                let line = line(ends.start, &own, before)?;
                ensure!(line.starts_with("UR|6|0|"), "{line}");
                Ok(())
            });
        }
        drop(rig);
        let rig = Rig::start(lab, echo.address, "end", "")?;
        for way in Way::ALL {
            let ends = rig.shunt()?;
            cases.case(format_args!("{}: by the client", way.name()), || {
                let seen = echo.mark();
                let mut client = Client::connect(ends.at(way)?)?;
                ensure!(client.ask("hello")? == "up hello", "no echo");
                client.reset()?;
                let seen = echo.ended(seen)?;
                ensure!(seen.end == End::Reset, "{seen:?}");
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn who_is_refused_tries_again_and_says_why() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let rig = Rig::start(lab, up.address, "closed", "max_connect_attempts: 2")?;
        let mut cases = Cases::new();
        for way in Way::SHARED {
            rig.same(&mut cases, way, "refused", |ends| {
                let name = way.name();
                let own = format!("{name}.log");
                let before = (mark(ends.start, &own), mark(ends.end, "closed.log"));
                let stats = ends.start.stats()?;
                let mut client = Client::connect(ends.at(way)?)?;
                let (said, end) = client.end()?;
                ensure!(said.is_empty() && end == End::Eof, "{said:?} {end}");
                let start = fields(&line(ends.start, &own, before.0)?);
                let end = fields(&line(ends.end, "closed.log", before.1 + 1)?);
                let all =
                    ["upstream_cx_connect_attempts_exceeded", "upstream_rq_total", "upstream_rq_tx_reset"];
                let all = all.map(|stat| format!("cluster.{name}.{stat}"));
                let all: Vec<&str> = all.iter().map(String::as_str).collect();
                Ok(json!([start, end, ends.start.stats()?.since(&stats, &all)]))
            });
        }
        ensure!(up.accepted() == 0, "somebody got through");
        cases.finish()
    })
}

#[test]
fn nobody_there() -> Result<()> {
    lab(|lab| {
        let nobody = nobody()?;
        let mut cases = Cases::new();
        let pair = Pair::start(lab, &opens(nobody, "", "", ""))?;
        for way in Way::SHARED {
            pair.same(&mut cases, format_args!("tunnels, {}: no connection", way.name()), |proxy| {
                let (said, end) = Client::connect(proxy.at(way.name())?)?.end()?;
                ensure!(said.is_empty(), "{said:?}");
                let line = line(proxy, &format!("{}.log", way.name()), 0)?;
                Ok(json!([end.to_string(), fields(&line)]))
            });
        }
        // The tunnel's own end finds nobody: the client of it is told by a 503.
        let rig = Rig::start(lab, nobody, "end", "")?;
        for way in Way::SHARED {
            rig.same(&mut cases, way, "nobody behind", |ends| {
                let own = format!("{}.log", way.name());
                let before = (mark(ends.start, &own), mark(ends.end, "end.log"));
                Client::connect(ends.at(way)?)?.end()?;
                let (start, end) = (line(ends.start, &own, before.0)?, line(ends.end, "end.log", before.1)?);
                Ok(json!([fields(&start), fields(&end)]))
            });
        }
        cases.finish()
    })
}

#[test]
fn tls_between_the_ends() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let pki = Pki::new(lab)?;
        let ca = pki.root("ca")?;
        let server = ca.issue("server", &shunt_tests::Leaf::new().dns("tunnel.example.com"))?;
        let downstream = TlsContext::new().certificate(&server).alpn(&["h2", "http/1.1"]).downstream();
        let chain = shunt_tests::tls_context::tls_chain("", &downstream, &[manager("end", &ending(""), "")]);
        let config = shunt_tests::Bootstrap::new()
            .static_cluster("up", &[up.address], "")
            .listener("end", &format!("filter_chains: [ {chain} ]"))
            .yaml();
        let upstream = TlsContext::new().trust(ca.file()).field("sni: tunnel.example.com").cluster();
        let mut cases = Cases::new();
        for end_kind in Kind::BOTH {
            let end = Proxy::start(lab, end_kind, &config)?;
            for kind in Kind::BOTH {
                let start = Proxy::start(lab, kind, &opens(end.at("end")?, "", "", &upstream))?;
                for way in Way::SHARED {
                    let ends = Ends { start: &start, end: &end };
                    cases.case(format_args!("{}, {}, TLS", way.name(), ends.name()), || {
                        let mut client = Client::connect(ends.at(way)?)?;
                        ensure!(client.ask("hello")? == "up hello", "no echo");
                        Ok(())
                    });
                }
            }
        }
        cases.finish()
    })
}

#[test]
fn a_client_that_does_not_read_is_heard() -> Result<()> {
    lab(|lab: &Lab| {
        // Each side says more than fits anywhere before it reads.
        let pump = Upstream::start("pump", Does::Pump(BULK))?;
        let rig = Rig::start(lab, pump.address, "end", "")?;
        let mut cases = Cases::new();
        for way in Way::ALL {
            let ends = rig.shunt()?;
            cases.case(way.name(), || {
                let seen = pump.mark();
                let mut client = Client::connect_narrow(ends.at(way)?)?;
                // As much as is surely read only once the other direction has stalled.
                client.send(vec![b'x'; 64 * 1024])?;
                std::thread::sleep(std::time::Duration::from_millis(300));
                let memory = ends.start.rss()?;
                ensure!(memory < 512 << 20, "{memory} bytes");
                ensure!(is_pattern(&mut client)?, "another pattern");
                client.half_close()?;
                let seen = pump.ended(seen)?;
                ensure!(way == Way::Http1Post || seen.bytes == 64 * 1024, "{} bytes", seen.bytes);
                Ok(())
            });
        }
        cases.finish()
    })
}
