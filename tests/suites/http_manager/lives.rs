//! How connections end: after so many requests, after so long, when a listener drains.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use shunt_tests::{Cases, Client, Pair, Proxy, lab};

use super::{backend, compared, config, rest, sorted, take, whole};

const MANAGERS: &[(&str, &str)] = &[
    ("thrice", "common_http_protocol_options: { max_requests_per_connection: 3 }"),
    ("short", "common_http_protocol_options: { max_connection_duration: 0.2s }, drain_timeout: 0.8s"),
    (
        "safe",
        "common_http_protocol_options: { max_connection_duration: 0.2s }, drain_timeout: 0.1s, \
         http1_safe_max_connection_duration: true",
    ),
    ("failed", ""),
    ("drained", ""),
];

const DIRECT: &str = "GET /direct HTTP/1.1\r\nhost: a\r\n\r\n";

/// Requests one after another, with a pause between them; what comes for each, and how much was counted.
fn asked(proxy: &Proxy, name: &str, pauses: &[u64]) -> Result<Value> {
    let before = proxy.stats()?;
    let mut client = Client::connect(proxy.at(name)?)?;
    let mut answers = Vec::new();
    for pause in pauses {
        std::thread::sleep(Duration::from_millis(*pause));
        client.send(DIRECT)?;
        answers.push(sorted(&take(&client, Duration::from_secs(3), |text| whole(text, false, 1))));
    }
    let gauge = proxy.stat(&format!("http.{name}.downstream_cx_http1_soft_drain"))?;
    let end = rest(&client, Duration::from_secs(3));
    drop(client);
    proxy.expect_stat(&format!("http.{name}.downstream_cx_active"), 0)?;
    let counts = compared(proxy.stats()?.since(&before, &[&format!("http.{name}.*")]));
    Ok(json!([answers, end, gauge, counts]))
}

#[test]
fn connections_end_when_envoys_do() -> Result<()> {
    lab(|lab| {
        let managers: Vec<_> = MANAGERS
            .iter()
            .map(|(name, fields)| {
                let more = if fields.is_empty() { "" } else { ", " };
                (*name, format!("{fields}{more}delayed_close_timeout: 0.1s"))
            })
            .collect();
        let config = config(&managers, backend::start()?);
        let pair = Pair::start_with(lab, &config, &["--drain-strategy", "immediate"])?;
        let mut cases = Cases::new();
        for (name, pauses) in [("thrice", &[0, 0, 0][..]), ("short", &[0, 400]), ("safe", &[0, 500])] {
            pair.same(&mut cases, format!("http-lives-{name}"), |proxy| asked(proxy, name, pauses));
        }
        pair.same(&mut cases, "http-lives-failed", |proxy| {
            proxy.admin().post("/healthcheck/fail", "")?;
            let answer = asked(proxy, "failed", &[0]);
            proxy.admin().post("/healthcheck/ok", "")?;
            answer
        });
        pair.same(&mut cases, "http-lives-drained", |proxy| {
            let mut client = Client::connect(proxy.at("drained")?)?;
            let mut ask = || -> Result<String> {
                client.send(DIRECT)?;
                Ok(sorted(&take(&client, Duration::from_secs(3), |text| whole(text, false, 1))))
            };
            let before = ask()?;
            proxy.admin().post("/drain_listeners?graceful", "")?;
            let after = ask()?;
            Ok(json!([before, after, proxy.stat("http.drained.downstream_cx_drain_close")?]))
        });
        cases.finish()
    })
}
