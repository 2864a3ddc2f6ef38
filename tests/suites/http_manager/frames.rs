//! What a client of HTTP/2 is told frame by frame: that its connection drains, that nobody waits for it any longer.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use shunt_tests::bootstrap::file_log;
use shunt_tests::frames::{DATA, Frames, GOAWAY, WINDOW};
use shunt_tests::{Cases, Pair, lab};

use super::{backend, config};

const LIMIT: Duration = Duration::from_secs(5);
const LINE: &str = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%";

const MANAGERS: &[(&str, &str)] = &[
    ("drained", "drain_timeout: 0.3s"),
    ("told", "drain_timeout: 0.3s"),
    ("twice", "common_http_protocol_options: { max_requests_per_connection: 2 }, drain_timeout: 0.3s"),
    ("short", "common_http_protocol_options: { max_connection_duration: 0.3s }, drain_timeout: 0.3s"),
    ("idle", "common_http_protocol_options: { idle_timeout: 0.3s }, drain_timeout: 0.3s"),
    ("stuck", "stream_flush_timeout: 0.3s"),
    ("stuck-idle", "stream_idle_timeout: 0.3s"),
    ("stuck-own", "stream_idle_timeout: 60s, stream_flush_timeout: 0.3s"),
    ("stuck-routes", "server_name: it"),
    ("stuck-routes-own", "stream_idle_timeout: 0.3s, stream_flush_timeout: 60s"),
    ("small", "max_request_headers_kb: 1"),
    ("field", "max_request_headers_kb: 96, http2_protocol_options: { max_header_field_size_kb: 64 }"),
];

#[test]
fn connections_drain_in_two_steps_and_nobody_is_waited_for() -> Result<()> {
    lab(|lab| {
        let managers: Vec<_> = MANAGERS
            .iter()
            .map(|(name, fields)| {
                (*name, format!("{fields}, access_log: [ {} ]", file_log(&format!("{name}.log"), LINE)))
            })
            .collect();
        let config = config(&managers, backend::start()?);
        let pair = Pair::start_with(lab, &config, &["--drain-strategy", "immediate"])?;
        let mut cases = Cases::new();
        // All that are asked for, one after the other, and what comes up to the end of the connection.
        for (name, requests) in [("twice", 2), ("short", 1), ("idle", 1), ("idle", 0)] {
            pair.same(&mut cases, format!("http-frames-{name}-{requests}"), |proxy| {
                let mut client = Frames::connect(proxy.at(name)?, &[])?;
                let mut seen = Vec::new();
                for n in 0..requests {
                    let stream = 2 * n + 1;
                    client.get(stream, "/direct", &[])?;
                    seen.push(client.shown(LIMIT, |frame| frame.ends(stream))?);
                }
                seen.push(client.shown(LIMIT, |_| false)?);
                Ok(json!(seen))
            });
        }
        // A request that comes between both steps is answered.
        pair.same(&mut cases, "http-frames-twice-and-one-more", |proxy| {
            let mut client = Frames::connect(proxy.at("twice")?, &[])?;
            let mut seen = Vec::new();
            for stream in [1, 3, 5] {
                client.get(stream, "/direct", &[])?;
                seen.push(client.shown(LIMIT, |frame| frame.ends(stream))?);
            }
            seen.push(client.shown(LIMIT, |_| false)?);
            Ok(json!(seen))
        });
        for (name, path) in [
            ("stuck", "/x"),
            ("stuck-idle", "/x"),
            ("stuck-own", "/x"),
            ("stuck-routes", "/flush"),
            ("stuck-routes-own", "/flush"),
        ] {
            pair.same(&mut cases, format!("http-frames-{name}{path}"), |proxy| {
                let (before, log) = (proxy.stats()?, format!("{name}.log"));
                let mark = proxy.lines(&log, 0)?.len();
                let mut client = Frames::connect(proxy.at(name)?, &[(WINDOW, 10)])?;
                client.get(1, path, &[])?;
                let seen = client.shown(LIMIT, |frame| frame.ends(1))?;
                // The connection goes on.
                client.get(3, "/teapot", &[])?;
                let after = client.shown(LIMIT, |frame| frame.ends(3))?;
                let lines = proxy.lines(&log, mark + 2)?.split_off(mark);
                let [timeouts, idle, reset] =
                    ["tx_flush_timeout", "downstream_rq_idle_timeout", "downstream_rq_tx_reset"].map(
                        |stat| {
                            let of = if stat.starts_with("tx") {
                                "http2".to_owned()
                            } else {
                                format!("http.{name}")
                            };
                            format!("{of}.{stat}")
                        },
                    );
                let counts = proxy.stats()?.since(&before, &[&timeouts, &idle, &reset]);
                Ok(json!([seen, after, lines, counts]))
            });
        }
        // A route's idle time-out is not for it.
        pair.same(&mut cases, "http-frames-stuck-idle-route", |proxy| {
            let mut client = Frames::connect(proxy.at("stuck-routes")?, &[(WINDOW, 10)])?;
            client.get(1, "/idle", &[])?;
            let mut seen = client.shown(LIMIT, |frame| frame.kind == DATA)?;
            std::thread::sleep(Duration::from_secs(1));
            client.get(3, "/teapot", &[])?;
            seen.extend(client.shown(LIMIT, |frame| frame.ends(3))?);
            Ok(json!(seen))
        });
        for (name, under, over) in [("small", 600, 2_000), ("field", 30_000, 70_000)] {
            for (size, length) in [("under", under), ("over", over)] {
                let value = "x".repeat(length);
                pair.same(&mut cases, format!("http-frames-{name}-{size}"), |proxy| {
                    let mut client = Frames::connect(proxy.at(name)?, &[])?;
                    client.get(1, "/direct", &[("x-big", &value)])?;
                    Ok(json!(client.shown(LIMIT, |frame| frame.ends(1) || frame.kind == GOAWAY)?))
                });
            }
        }
        // Last, for it holds for all listeners.
        pair.same(&mut cases, "http-frames-drained", |proxy| {
            let mut clients =
                [Frames::connect(proxy.at("drained")?, &[])?, Frames::connect(proxy.at("told")?, &[])?];
            let mut seen = Vec::new();
            for client in &mut clients {
                client.get(1, "/direct", &[])?;
                seen.push(client.shown(LIMIT, |frame| frame.ends(1))?);
            }
            proxy.admin().post("/drain_listeners?graceful", "")?;
            for client in &mut clients {
                client.get(3, "/direct", &[])?;
                seen.push(client.shown(LIMIT, |frame| frame.ends(3))?);
            }
            // One asks for more between both steps.
            clients[1].get(5, "/direct", &[])?;
            for client in &mut clients {
                seen.push(client.shown(LIMIT, |_| false)?);
            }
            Ok(json!(seen))
        });
        cases.finish()
    })
}
