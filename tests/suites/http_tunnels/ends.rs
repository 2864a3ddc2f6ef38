//! Where tunnels end, seen by a client that asks for them itself; both proxies alike.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::chain;
use shunt_tests::{Bootstrap, Cases, Client, Does, Pair, Proxy, Upstream, lab};

use super::rig::{CONNECTS, ending, ends, fields, line, logged, manager, mark, protocol_options};

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
        let last = Pair::start(lab, &ends(up.address, ""))?;
        let upgrades = "upgrade_configs: [ { upgrade_type: CONNECT } ]";
        let passes = [format!("{{ {CONNECTS}, route: {{ cluster: next, {upgrades} }} }}")];
        let config = |next, protocol| {
            let chain = chain("", &[manager("passes", &passes, "")]);
            Bootstrap::new()
                .static_cluster("next", &[next], &protocol_options(protocol))
                .listener("passes", &format!("filter_chains: [ {chain} ]"))
                .yaml()
        };
        let mut cases = Cases::new();
        for protocol in ["http_protocol_options", "http2_protocol_options"] {
            for end in last.both() {
                let name = format!("CONNECT is passed on, {protocol}, {}", end.kind.name());
                let pair = Pair::start(lab, &config(end.at("end")?, protocol))?;
                pair.same(&mut cases, format_args!("tunnels: {name}"), |proxy| {
                    let (mut client, head) = asked(proxy, "passes", CONNECT)?;
                    Ok(json!([head, client.ask("hello")?, client.ask("again")?]))
                });
                let pair = Pair::start(lab, &config(end.at("closed")?, protocol))?;
                pair.same(&mut cases, format_args!("tunnels: {name}, and refused"), |proxy| {
                    let before = mark(proxy, "passes.log");
                    let (client, head) = asked(proxy, "passes", CONNECT)?;
                    let mut line = fields(&line(proxy, "passes.log", before)?);
                    drop(client);
                    if let Some(line) = line.as_array_mut() {
                        // Frames and HPACK are not counted.
                        line.drain(12..14);
                    }
                    Ok(json!([head, line]))
                });
            }
        }
        cases.finish()
    })
}

/// Agrees to WebSockets and echoes; its threads end with the test's process.
fn websockets() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || turn(stream));
        }
    });
    Ok(address)
}

fn turn(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    stream.write_all(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
    )?;
    std::io::copy(&mut reader, &mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)
}

#[test]
fn websockets_pass_http2_in_between() -> Result<()> {
    lab(|lab| {
        let up = websockets()?;
        let config = |next, cluster: &str| {
            let more = "upgrade_configs: [ { upgrade_type: websocket } ],";
            let routes = ["{ match: { prefix: / }, route: { cluster: next } }".to_owned()];
            let chain = chain("", &[manager("ws", &routes, more)]);
            Bootstrap::new()
                .static_cluster("next", &[next], cluster)
                .listener("ws", &format!("filter_chains: [ {chain} ]"))
                .yaml()
        };
        let http2 = protocol_options("http2_protocol_options").replace("{}", "{ allow_connect: true }");
        let last = Pair::start(lab, &config(up, ""))?;
        let mut cases = Cases::new();
        for end in last.both() {
            let pair = Pair::start(lab, &config(end.at("ws")?, &http2))?;
            pair.same(&mut cases, format_args!("tunnels: WebSockets to {}", end.kind.name()), |proxy| {
                let request = "GET /chat HTTP/1.1\r\nhost: a.example\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
                let (mut client, head) = asked(proxy, "ws", request)?;
                Ok(json!([head, client.ask("hello")?, client.ask("again")?]))
            });
        }
        cases.finish()
    })
}

#[test]
fn a_line_is_written_when_a_tunnel_is_there() -> Result<()> {
    lab(|lab| {
        let up = Upstream::echo("up")?;
        let more = "access_log_options: { flush_log_on_tunnel_successfully_established: true },";
        let format = "%ACCESS_LOG_TYPE% %REQ(:METHOD)% %RESPONSE_CODE%";
        let manager = logged("types", format, &ending(""), more);
        let config = Bootstrap::new()
            .static_cluster("up", &[up.address], "")
            .listener("end", &format!("filter_chains: [ {} ]", chain("", &[manager])));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "tunnels: a line at their begin", |proxy| {
            let (mut client, _) = asked(proxy, "end", CONNECT)?;
            client.ask("hello")?;
            let first = proxy.lines("types.log", 1)?;
            drop(client);
            Ok(json!([first, proxy.lines("types.log", 2)?]))
        });
        cases.finish()
    })
}

#[test]
fn a_tunnel_ends_as_tcp_does() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        let sum = Upstream::start("sum", Does::Sum)?;
        let pair = Pair::start(lab, &ends(sum.address, ""))?;
        pair.same(&mut cases, "tunnels: the client ends its half, HTTP/1.1", |proxy| {
            let (mut client, _) = asked(proxy, "end", CONNECT)?;
            client.send("hello")?;
            client.half_close()?;
            Ok(json!(client.rest()?.split(' ').take(2).collect::<Vec<_>>()))
        });
        let greets = Upstream::start("greets", Does::Greet("bye".to_owned()))?;
        let pair = Pair::start(lab, &ends(greets.address, ""))?;
        pair.same(&mut cases, "tunnels: the server ends its half, HTTP/1.1", |proxy| {
            let seen = greets.mark();
            let (mut client, _) = asked(proxy, "end", CONNECT)?;
            let said = client.rest()?;
            // Envoy may have gone by then.
            let _ = client.send("later\n").and_then(|()| client.half_close());
            Ok(json!([said, greets.ended(seen)?.bytes]))
        });
        let resets = Upstream::start("resets", Does::Reset)?;
        let pair = Pair::start(lab, &ends(resets.address, ""))?;
        pair.same(&mut cases, "tunnels: the server resets, HTTP/1.1", |proxy| {
            let (mut client, _) = asked(proxy, "end", CONNECT)?;
            client.send("hello\n")?;
            Ok(json!(client.rest()?))
        });
        cases.finish()
    })
}
