//! `tcp_stats`, beside Envoy: the same names, and the same values where the kernel gives the same to both.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{extension, tcp_proxy};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, Cases, Client, Does, End, Lab, Pair, Proxy, Upstream, lab, until};

fn tcp_stats(fields: &str) -> String {
    let raw = extension(
        "envoy.transport_sockets.raw_buffer",
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        "",
    );
    let of_type = "envoy.extensions.transport_sockets.tcp_stats.v3.Config";
    extension("envoy.transport_sockets.tcp_stats", of_type, &format!("{fields} transport_socket: {raw}"))
}

/// A listener and a cluster of one name, both measured.
fn measured(config: Bootstrap, name: &str, upstream: &Upstream, fields: &str) -> Bootstrap {
    let socket = tcp_stats(fields);
    let chain = tls_chain("", &socket, &[tcp_proxy(name, &format!("cluster: {name:?}"))]);
    config
        .static_cluster(name, &[upstream.address], &format!("transport_socket: {socket}"))
        .listener(name, &format!("stat_prefix: {name:?}, filter_chains: [ {chain} ]"))
}

fn ask(proxy: &Proxy, listener: &str) -> Result<()> {
    let mut client = Client::connect(proxy.at(listener)?)?;
    ensure!(client.ask("hello")? == "up hello", "another answer");
    client.half_close()?;
    ensure!(client.end()?.1 == End::Eof, "no end");
    Ok(())
}

/// The names of all statistics of this kind, histograms too.
fn names(proxy: &Proxy) -> Result<BTreeSet<String>> {
    let text = proxy.admin().ok("/stats?filter=tcp_stats")?;
    Ok(text.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect())
}

#[test]
fn the_names_and_the_counts_are_envoys() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let pair = Pair::start(lab, &measured(Bootstrap::new(), "end", &upstream, "").yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "tcp_stats: the names", |proxy| {
            let names = names(proxy)?;
            ensure!(names.len() == 24, "{names:?}");
            Ok(json!(names))
        });
        // Each line is one segment; acknowledgements come as they please. A FIN is a byte that was received.
        let exact = [
            "cx_tx_bytes_sent",
            "cx_rx_bytes_received",
            "cx_tx_data_segments",
            "cx_rx_data_segments",
            "cx_tx_retransmitted_segments",
            "cx_tx_unsent_bytes",
        ];
        let exact: Vec<String> = ["listener.end", "cluster.end"]
            .iter()
            .flat_map(|scope| exact.iter().map(move |name| format!("{scope}.tcp_stats.{name}")))
            .collect();
        let exact: Vec<&str> = exact.iter().map(String::as_str).collect();
        pair.same_stats(&mut cases, "tcp_stats: a connection", &exact, |proxy| ask(proxy, "end"));
        for proxy in pair.both() {
            cases.case(format_args!("{}: what is not the same each time", proxy.kind.name()), || {
                let stats = proxy.stats()?;
                for scope in ["listener.end", "cluster.end"] {
                    for name in ["cx_tx_segments", "cx_rx_segments"] {
                        let seen = stats.of(&format!("{scope}.tcp_stats.{name}"));
                        ensure!((2..20).contains(&seen), "{scope} {name}: {seen}");
                    }
                    ensure!(stats.of(&format!("{scope}.tcp_stats.cx_tx_bytes_sent")) > 0, "no bytes");
                }
                // Envoy shows what a histogram has recorded every five seconds.
                for name in ["cx_rtt_us", "cx_rtt_variance_us", "cx_tx_percent_retransmitted_segments"] {
                    let limit = Duration::from_secs(12);
                    let line = until("recorded values", limit, || {
                        let text =
                            proxy.admin().ok(&format!("/stats?filter=cluster.end.tcp_stats.{name}$"))?;
                        Ok((!text.contains("No recorded values")).then_some(text))
                    })?;
                    let none = name == "cx_tx_percent_retransmitted_segments";
                    ensure!(line.contains("P0(") && line.contains(",0)") == none, "{line}");
                }
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn a_connection_is_measured_while_it_lives() -> Result<()> {
    lab(|lab| {
        let echo = Upstream::echo("up")?;
        let config = measured(Bootstrap::new(), "live", &echo, "update_period: 0.1s,");
        let config = measured(config, "end", &echo, "");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for proxy in pair.both() {
            let name = proxy.kind.name();
            cases.case(format_args!("{name}: an idle connection"), || {
                let mut live = Client::connect(proxy.at("live")?)?;
                let mut end = Client::connect(proxy.at("end")?)?;
                ensure!(
                    live.ask("hello")? == "up hello" && end.ask("hello")? == "up hello",
                    "another answer"
                );
                proxy.expect_stat("listener.live.tcp_stats.cx_rx_bytes_received", 6)?;
                proxy.expect_stat("cluster.live.tcp_stats.cx_tx_bytes_sent", 6)?;
                ensure!(proxy.stat("cluster.end.tcp_stats.cx_tx_bytes_sent")? == 0, "it has not ended");
                drop(end);
                proxy.expect_stat("cluster.end.tcp_stats.cx_tx_bytes_sent", 6)
            });
        }
        cases.case("what waits is a gauge", || what_waits(lab));
        cases.finish()
    })
}

fn what_waits(lab: &Lab) -> Result<()> {
    let stall = Upstream::start("stall", Does::Stall)?;
    let config = measured(Bootstrap::new(), "stalled", &stall, "update_period: 0.1s,");
    let pair = Pair::start(lab, &config.yaml())?;
    let unsent = "cluster.stalled.tcp_stats.cx_tx_unsent_bytes";
    let mut clients = Vec::new();
    for proxy in pair.both() {
        let client = Client::connect(proxy.at("stalled")?)?;
        fill(&client)?;
        until("bytes that wait", Duration::from_secs(8), || Ok((proxy.stat(unsent)? > 0).then_some(())))?;
        clients.push(client);
    }
    clients.into_iter().try_for_each(Client::reset)?;
    // Envoy still tries to be rid of what the client has sent.
    drop(stall);
    for proxy in pair.both() {
        proxy.expect_stat(unsent, 0)?;
        proxy.expect_stat("cluster.stalled.tcp_stats.cx_tx_unacked_segments", 0)?;
    }
    Ok(())
}

/// Sends until nothing more is taken.
fn fill(client: &Client) -> Result<()> {
    let mut stream = client.stream();
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    let chunk = vec![0; 64 * 1024];
    for _ in 0..1_000 {
        if stream.write(&chunk).is_err() {
            return Ok(());
        }
    }
    anyhow::bail!("a backend that reads nothing has taken 64 MB")
}
