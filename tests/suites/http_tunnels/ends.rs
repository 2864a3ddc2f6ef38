//! Where tunnels end, seen by a client that asks for them itself; both proxies alike.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::chain;
use shunt_tests::{Bootstrap, Cases, Client, Pair, Proxy, Upstream, lab};

use super::rig::{CONNECTS, ending, ends, fields, line, manager, mark, protocol_options};

const CONNECT: &str = "CONNECT a.example:443 HTTP/1.1\r\nhost: a.example:443\r\n\r\n";

/// The head of a response, without what differs from time to time.
fn head(client: &mut Client) -> Result<Value> {
    let mut lines: Vec<String> = Vec::new();
    loop {
        let line = client.line()?.trim_end().to_owned();
        if line.is_empty() {
            // In what order is not told.
            lines.sort();
            return Ok(json!(lines));
        }
        if !line.starts_with("date: ") && !line.starts_with("x-envoy-upstream-service-time: ") {
            lines.push(line);
        }
    }
}

fn asked(proxy: &Proxy, listener: &str, request: &str) -> Result<(Client, Value)> {
    let mut client = Client::connect(proxy.at(listener)?)?;
    client.send(request)?;
    let head = head(&mut client)?;
    Ok((client, head))
}

#[test]
fn what_is_answered() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let pair = Pair::start(lab, &ends(up.address, ""))?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "tunnels: CONNECT is agreed to", |proxy| {
            let (mut client, head) = asked(proxy, "end", &format!("{CONNECT}early\n"))?;
            let early = client.line()?;
            Ok(json!([head, early, client.ask("hello")?]))
        });
        let post = "POST / HTTP/1.1\r\nhost: a.example\r\ncontent-length: 6\r\n\r\nhello\n";
        for (what, listener, request) in [
            ("CONNECT that no route takes", "closed", CONNECT),
            ("GET", "end", "GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"),
            ("POST with a length", "end", post),
        ] {
            pair.same(&mut cases, format_args!("tunnels: {what}"), |proxy| {
                let file = format!("{listener}.log");
                let before = mark(proxy, &file);
                let (mut client, head) = asked(proxy, listener, request)?;
                if request.starts_with("POST") {
                    while client.line()? != "0\r" {}
                }
                drop(client);
                Ok(json!([head, fields(&line(proxy, &file, before)?)]))
            });
        }
        cases.finish()
    })
}

#[test]
fn a_header_tells_who_is_there() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for version in ["V1", "V2"] {
            let up = Upstream::echo("up")?;
            let config = ends(up.address, &format!("proxy_protocol_config: {{ version: {version} }}"));
            let pair = Pair::start(lab, &config)?;
            pair.same(&mut cases, format_args!("tunnels: a PROXY header, {version}"), |proxy| {
                let seen = up.mark();
                let (mut client, _) = asked(proxy, "end", CONNECT)?;
                client.send("hello\n")?;
                client.line()?;
                let from = client.local()?;
                client.half_close()?;
                let head = up.ended(seen)?.head;
                let (own, to) = (from.port(), proxy.at("end")?.port());
                if version == "V1" {
                    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {to}\r\nhello\n");
                    ensure!(head == expected.as_bytes(), "{:?}", String::from_utf8_lossy(&head));
                }
                let steady = [&head[..head.len() - 10], &head[head.len() - 6..]].concat();
                Ok(if version == "V1" { json!(true) } else { json!(steady) })
            });
        }
        cases.finish()
    })
}

#[test]
fn connect_is_passed_on() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let (end, passes) = (
            ending(""),
            [format!(
                "{{ {CONNECTS}, route: {{ cluster: next, upgrade_configs: [ {{ upgrade_type: CONNECT }} ] }} }}"
            )],
        );
        let mut cases = Cases::new();
        for protocol in ["http_protocol_options", "http2_protocol_options"] {
            let last = Pair::start(
                lab,
                &Bootstrap::new()
                    .static_cluster("up", &[up.address], "")
                    .listener(
                        "end",
                        &format!("filter_chains: [ {} ]", chain("", &[manager("end", &end, "")])),
                    )
                    .yaml(),
            )?;
            let config = |next| {
                let chain = chain("", &[manager("passes", &passes, "")]);
                Bootstrap::new()
                    .static_cluster("next", &[next], &protocol_options(protocol))
                    .listener("passes", &format!("filter_chains: [ {chain} ]"))
                    .yaml()
            };
            let pair = Pair {
                envoy: Proxy::start(lab, shunt_tests::Kind::Envoy, &config(last.envoy.at("end")?))?,
                shunt: Proxy::start(lab, shunt_tests::Kind::Shunt, &config(last.shunt.at("end")?))?,
            };
            pair.same(&mut cases, format_args!("tunnels: CONNECT is passed on, {protocol}"), |proxy| {
                let (mut client, head) = asked(proxy, "passes", CONNECT)?;
                Ok(json!([head, client.ask("hello")?, client.ask("again")?]))
            });
        }
        cases.finish()
    })
}
