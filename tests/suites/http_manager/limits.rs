//! Limits in time, upgrades, drains.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::file_log;
use shunt_tests::http_echo::HttpEcho;
use shunt_tests::{Bootstrap, Cases, Client, Pair, lab};

use super::{config, manager, rest, sorted};

const LINE: &str = "%REQ(:METHOD)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%";

/// What is sent, and which limit ends it.
const SLOW: &[(&str, &str, &str)] = &[
    ("headers", "request_headers_timeout: 0.2s", "GET / HTTP/1.1\r\nho"),
    ("request", "request_timeout: 0.2s", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"),
    ("request-head", "request_timeout: 0.2s", "GET / HTTP/1.1\r\nho"),
    ("idle", "stream_idle_timeout: 0.2s", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"),
    ("idle-head", "stream_idle_timeout: 0.2s", "GET / HTTP/1.1\r\nho"),
    (
        "duration",
        "common_http_protocol_options: { max_stream_duration: 0.2s }",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc",
    ),
    ("connection", "common_http_protocol_options: { idle_timeout: 0.2s }, drain_timeout: 0.1s", ""),
    (
        "lifetime",
        "common_http_protocol_options: { max_connection_duration: 0.2s }, drain_timeout: 0.1s",
        "GET /direct HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
];

#[test]
fn limits_end_what_they_end_in_envoy() -> Result<()> {
    lab(|lab| {
        let echo = HttpEcho::start("echo")?;
        let managers: Vec<_> = SLOW
            .iter()
            .map(|(name, fields, _)| {
                let log = file_log(&format!("{name}.log"), LINE);
                (*name, format!("{fields}, access_log: [ {log} ]"))
            })
            .collect();
        let pair = Pair::start(lab, &config(&managers, &echo))?;
        let mut cases = Cases::new();
        for (name, _, bytes) in SLOW {
            pair.same(&mut cases, format!("http-limits-{name}"), |proxy| {
                let mut client = Client::connect(proxy.at(name)?)?;
                client.send(bytes)?;
                let response = rest(&client, Duration::from_secs(3))?;
                let lines =
                    if bytes.is_empty() { Vec::new() } else { proxy.lines(&format!("{name}.log"), 1)? };
                Ok(json!([sorted(&response), lines]))
            });
        }
        cases.finish()
    })
}

/// Answers an upgrade, and then turns what it gets around.
fn turncoat() -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || -> Result<()> {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte)?;
                    head.push(byte[0]);
                }
                stream.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
                )?;
                let mut buf = [0; 1024];
                loop {
                    let n = stream.read(&mut buf)?;
                    ensure!(n > 0, "the end");
                    buf[..n].reverse();
                    stream.write_all(&buf[..n])?;
                }
            });
        }
    });
    Ok(address)
}

#[test]
fn upgrades_are_let_through_where_they_may_be() -> Result<()> {
    lab(|lab| {
        let backend = turncoat()?;
        let log = format!("access_log: [ {} ]", file_log("up.log", LINE));
        let upgrade = format!("upgrade_configs: [ {{ upgrade_type: websocket }} ], {log}");
        let config = Bootstrap::new()
            .listener("up", &manager("up", &upgrade))
            .static_cluster("echo", &[backend], "")
            .yaml();
        let pair = Pair::start(lab, &config)?;
        let mut cases = Cases::new();
        let stats = &["http.up.downstream_cx_upgrades*", "http.up.downstream_rq*"];
        pair.same_stats(&mut cases, "http-upgrade-stats", stats, |proxy| {
            let mut client = Client::connect(proxy.at("up")?)?;
            client.send("GET /x HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")?;
            let mut head = String::new();
            while !head.ends_with("\r\n\n") && !head.ends_with("\n\n") {
                head += &(client.line()? + "\n");
                if head.ends_with("\r\n") && head.lines().last() == Some("") {
                    break;
                }
            }
            ensure!(head.starts_with("HTTP/1.1 101 Switching Protocols"), "{head}");
            for text in ["abc", "12345"] {
                client.send(text)?;
                let turned: String = text.chars().rev().collect();
                let got = client.exactly(text.len()).context("after the upgrade")?;
                ensure!(got == turned.as_bytes(), "{got:?}");
            }
            Ok(())
        });
        pair.same(&mut cases, "http-upgrade-line", |proxy| Ok(json!(proxy.lines("up.log", 1)?)));
        cases.finish()
    })
}
