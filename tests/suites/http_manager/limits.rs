//! Limits in time, and upgrades.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::file_log;
use shunt_tests::{Cases, Client, Pair, lab};

use super::{backend, compared, config, rest, sorted, take};

const LINE: &str = "%REQ(:METHOD)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%";

/// What is sent, and which limit ends it.
const SLOW: &[(&str, &str, &str)] = &[
    ("headers", "request_headers_timeout: 0.2s", "GET / HTTP/1.1\r\nho"),
    ("request", "request_timeout: 0.2s", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"),
    ("request-head", "request_timeout: 0.2s", "GET / HTTP/1.1\r\nho"),
    ("idle", "stream_idle_timeout: 0.2s", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc"),
    ("idle-head", "stream_idle_timeout: 0.2s", "GET / HTTP/1.1\r\nho"),
    ("idle-response", "stream_idle_timeout: 0.3s", "GET /pause HTTP/1.1\r\nhost: a\r\n\r\n"),
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
        let managers: Vec<_> = SLOW
            .iter()
            .map(|(name, fields, _)| {
                let log = file_log(&format!("{name}.log"), LINE);
                (*name, format!("{fields}, delayed_close_timeout: 0.1s, access_log: [ {log} ]"))
            })
            .collect();
        let pair = Pair::start(lab, &config(&managers, backend::start()?))?;
        let mut cases = Cases::new();
        for (name, _, bytes) in SLOW {
            pair.same(&mut cases, format!("http-limits-{name}"), |proxy| {
                let before = proxy.stats()?;
                let mut client = Client::connect(proxy.at(name)?)?;
                client.send(bytes)?;
                let response = rest(&client, Duration::from_secs(3));
                drop(client);
                let lines =
                    if bytes.is_empty() { Vec::new() } else { proxy.lines(&format!("{name}.log"), 1)? };
                proxy.expect_stat(&format!("http.{name}.downstream_cx_active"), 0)?;
                let counts = compared(proxy.stats()?.since(&before, &[&format!("http.{name}.*")]));
                // Here an answer that is not whole ends with a reset, so that nobody takes it for one that is.
                Ok(json!([sorted(response.trim_end_matches(" RESET")), lines, counts]))
            });
        }
        cases.finish()
    })
}

/// A request that is complete is not one that does not come, however long its answer takes.
#[test]
fn a_long_answer_is_no_late_request() -> Result<()> {
    lab(|lab| {
        let fields = "request_timeout: 0.2s, request_headers_timeout: 0.2s".to_owned();
        let pair = Pair::start(lab, &config(&[("l", fields)], backend::start()?))?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "http-limits-long-answer", |proxy| {
            let answer = super::exchange(proxy.at("l")?, b"GET /pause HTTP/1.1\r\nhost: a\r\n\r\n", 1)?;
            ensure!(answer.ends_with("abcd"), "{answer}");
            Ok(json!(sorted(&answer)))
        });
        cases.finish()
    })
}

#[test]
fn upgrades_are_let_through_where_they_may_be() -> Result<()> {
    lab(|lab| {
        let log = format!("access_log: [ {} ]", file_log("up.log", LINE));
        let upgrade = format!("upgrade_configs: [ {{ upgrade_type: websocket }} ], {log}");
        let pair = Pair::start(lab, &config(&[("up", upgrade)], backend::start()?))?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "http-upgrade", |proxy| {
            let before = proxy.stats()?;
            let mut client = Client::connect(proxy.at("up")?)?;
            client
                .send("GET /ws HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")?;
            let head = take(&client, Duration::from_secs(3), |text| text.contains("\r\n\r\n"));
            for text in ["abc", "12345"] {
                client.send(text)?;
                let turned: String = text.chars().rev().collect();
                let got = client.exactly(text.len()).context("after the upgrade")?;
                ensure!(got == turned.as_bytes(), "{got:?}");
            }
            let during = proxy.stat("http.up.downstream_cx_upgrades_active")?;
            drop(client);
            let lines = proxy.lines("up.log", 1)?;
            proxy.expect_stat("http.up.downstream_cx_active", 0)?;
            Ok(json!([sorted(&head), during, lines, compared(proxy.stats()?.since(&before, &["http.up.*"]))]))
        });
        cases.finish()
    })
}
