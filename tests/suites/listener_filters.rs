//! Listener filters: what they make of every kind of first bytes, in one segment and in many.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use shunt_tests::bootstrap::{
    chain, file_log, http_inspector, proxy_protocol, says, tcp_proxy, tls_inspector,
};
use shunt_tests::hello::{client_hello, client_hello_padded};
use shunt_tests::{Bootstrap, Cases, Client, Pair, Upstream, lab};

/// How the bytes are sent, and what follows them.
#[derive(Clone, Copy, PartialEq)]
enum Sent {
    Whole,
    Bytewise,
    /// The client closes its side after them.
    ThenFin,
}

fn send(client: &mut Client, bytes: &[u8], sent: Sent) -> Result<()> {
    match sent {
        Sent::Whole => client.send(bytes),
        Sent::Bytewise => client.send_bytewise(bytes),
        Sent::ThenFin => {
            client.send(bytes)?;
            client.half_close()
        }
    }
}

/// A table of first bytes to one listener: what is answered, and what is counted.
fn table(pair: &Pair, what: &str, stats: &[&str], rows: &[(&str, Vec<u8>, Sent)]) -> Result<()> {
    let mut cases = Cases::new();
    for (name, bytes, sent) in rows {
        let mut seen = Vec::new();
        pair.same_stats(&mut cases, format_args!("{what}, stats: {name}"), stats, |proxy| {
            let mut client = Client::connect(proxy.at(what)?)?;
            // The proxy may have closed before all is sent.
            let _ = send(&mut client, bytes, *sent);
            let (answer, _) = client.end_within(Duration::from_secs(3))?;
            seen.push(String::from_utf8_lossy(&answer).into_owned());
            Ok(())
        });
        let mut seen = seen.into_iter();
        pair.same(&mut cases, format_args!("{what}: {name}"), |_| Ok(json!(seen.next())));
    }
    cases.finish()
}

#[test]
fn tls_inspector_reads_names() -> Result<()> {
    lab(|lab| {
        let chains = [
            chain("server_names: [ a.example.com ]", &[says("a")]),
            chain("application_protocols: [ istio ]", &[says("istio")]),
            chain("transport_protocol: tls", &[says("tls")]),
            chain("", &[says("other")]),
        ];
        let fields = format!(
            "listener_filters: [ {} ], listener_filters_timeout: 0.4s, filter_chains: [ {} ]",
            tls_inspector(),
            chains.join(", ")
        );
        let pair = Pair::start(lab, &Bootstrap::new().listener("tls", &fields).yaml())?;
        let hello = client_hello(Some("a.example.com"), &["h2"]);
        let cut = hello[..hello.len() - 20].to_vec();
        let mut wrong_version = hello.clone();
        wrong_version[1] = 2;
        let mut bad_length = hello.clone();
        bad_length[6..9].copy_from_slice(&[0xff, 0xff, 0xff]);
        let rows = [
            ("a name", hello.clone(), Sent::Whole),
            ("a name, a byte at a time", hello.clone(), Sent::Bytewise),
            ("another name", client_hello(Some("b.example.com"), &[]), Sent::Whole),
            ("a protocol", client_hello(None, &["h2", "istio"]), Sent::Whole),
            ("no extension of interest", client_hello(None, &[]), Sent::Whole),
            (
                "padded to two records' worth",
                client_hello_padded(Some("a.example.com"), &[], 10_000),
                Sent::Whole,
            ),
            ("too large", client_hello_padded(Some("a.example.com"), &[], 40_000), Sent::Whole),
            ("plain text", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Sent::Whole),
            ("another content type", [&[23], &hello[1..]].concat(), Sent::Whole),
            ("SSLv2's version", wrong_version, Sent::Whole),
            ("a length beyond the record", bad_length, Sent::Whole),
            ("cut short, and silence", cut.clone(), Sent::Whole),
            ("cut short, and FIN", cut, Sent::ThenFin),
            ("garbage after the type", [&[22, 3, 1], [0xff; 300].as_slice()].concat(), Sent::Whole),
        ];
        let stats = ["tls_inspector.*", "listener.127.0.0.1_0.downstream_pre_cx_timeout"];
        table(&pair, "tls", &stats, &rows)
    })
}

#[test]
fn http_inspector_tells_versions() -> Result<()> {
    lab(|lab| {
        let chains = [
            chain("application_protocols: [ http/1.1 ]", &[says("http/1.1")]),
            chain("application_protocols: [ http/1.0 ]", &[says("http/1.0")]),
            chain("application_protocols: [ h2c ]", &[says("h2c")]),
            chain("", &[says("other")]),
        ];
        let fields = format!(
            "listener_filters: [ {} ], listener_filters_timeout: 0.4s, filter_chains: [ {} ]",
            http_inspector(),
            chains.join(", ")
        );
        let pair = Pair::start(lab, &Bootstrap::new().listener("http", &fields).yaml())?;
        let row = |name: &'static str, text: &str, sent: Sent| (name, text.as_bytes().to_vec(), sent);
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let rows = [
            row("1.1", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", Sent::Whole),
            row("1.1, a byte at a time", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", Sent::Bytewise),
            row("1.0", "HEAD /x HTTP/1.0\r\n\r\n", Sent::Whole),
            row("2", preface, Sent::Whole),
            row("2, a byte at a time", preface, Sent::Bytewise),
            row("an unknown method", "FROB / HTTP/1.1\r\n\r\n", Sent::Whole),
            row("an unknown version", "GET / HTTP/3.7\r\n\r\n", Sent::Whole),
            row("no version", "GET /\r\n", Sent::Whole),
            row("a protocol of its own", "\x01\x02\x03\x04 binary \r\n", Sent::Whole),
            row("a line that does not end", &"GET /".repeat(4_000), Sent::Whole),
            row("half a line, and silence", "GET / HT", Sent::Whole),
        ];
        table(&pair, "http", &["http_inspector.*"], &rows)
    })
}

/// A v2 header: command and family bytes, then the body.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[command, family], &len, body].concat()
}

const V4: [u8; 12] = [192, 0, 2, 1, 10, 9, 8, 7, 0x12, 0x34, 0, 80];

fn v6() -> Vec<u8> {
    let ip = |last: u8| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    [ip(1).as_slice(), &ip(2), &[0x12, 0x34, 0, 80]].concat()
}

fn proxy_headers() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let tlv = [V4.as_slice(), &[0x02, 0, 3, b'a', b'b', b'c', 0x04, 0, 1, 0]].concat();
    let bad_tlv = [V4.as_slice(), &[0x02, 0, 99, b'a']].concat();
    vec![
        ("v1", text("PROXY TCP4 192.0.2.1 10.9.8.7 4660 80\r\n")),
        ("v1, IPv6", text("PROXY TCP6 2001:db8::1 2001:db8::2 4660 80\r\n")),
        ("v1, UNKNOWN", text("PROXY UNKNOWN\r\n")),
        ("v1, UNKNOWN with words", text("PROXY UNKNOWN ffff:f... 65535 65535\r\n")),
        ("v1, a bad address", text("PROXY TCP4 192.0.2.256 10.9.8.7 4660 80\r\n")),
        ("v1, a bad port", text("PROXY TCP4 192.0.2.1 10.9.8.7 46600000 80\r\n")),
        ("v1, the wrong family", text("PROXY TCP6 192.0.2.1 10.9.8.7 4660 80\r\n")),
        ("v1, too few words", text("PROXY TCP4 192.0.2.1\r\n")),
        ("v1, no such family", text("PROXY UDP4 192.0.2.1 10.9.8.7 1 2\r\n")),
        ("v1, too long", text(&format!("PROXY TCP4 {}", "1".repeat(200)))),
        ("v2", v2(0x21, 0x11, &V4)),
        ("v2, IPv6", v2(0x21, 0x21, &v6())),
        ("v2, LOCAL", v2(0x20, 0x00, &[])),
        ("v2, LOCAL with addresses", v2(0x20, 0x11, &V4)),
        ("v2, UNIX", v2(0x21, 0x31, &[7; 216])),
        ("v2, UDP", v2(0x21, 0x12, &V4)),
        ("v2, UNSPEC", v2(0x21, 0x00, &[])),
        ("v2, with TLVs", v2(0x21, 0x11, &tlv)),
        ("v2, a TLV that is cut", v2(0x21, 0x11, &bad_tlv)),
        ("v2, addresses cut", v2(0x21, 0x11, &V4[..8])),
        ("v2, another version", v2(0x31, 0x11, &V4)),
        ("v2, another command", v2(0x22, 0x11, &V4)),
        ("v2, oversized", v2(0x21, 0x11, &[V4.as_slice(), &vec![4; 65_000]].concat())),
        ("none", Vec::new()),
        ("garbage", vec![0xff; 64]),
        ("an HTTP request", text("GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
    ]
}

#[test]
fn proxy_protocol_headers() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let mut config = Bootstrap::new().static_cluster("up", &[upstream.address], "");
        let kinds = [
            ("required", ""),
            ("optional", "allow_requests_without_proxy_protocol: true"),
            ("v2 only", "disallowed_versions: [ V1 ]"),
            ("prefixed", "stat_prefix: mine"),
        ];
        for (name, fields) in kinds {
            let format = "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %BYTES_RECEIVED% %RESPONSE_FLAGS%";
            let log = file_log(&format!("{name}.log"), format);
            let relay = chain("", &[tcp_proxy(name, &format!("cluster: up, access_log: [ {log} ]"))]);
            let filter = proxy_protocol(fields);
            config = config.listener(
                name,
                &format!(
                    "listener_filters_timeout: 0.4s, listener_filters: [ {filter} ], filter_chains: [ {relay} ]"
                ),
            );
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let stats = [
            "proxy_proto.*",
            "listener.127.0.0.1_0.downstream_cx_proxy_proto*",
            "listener.127.0.0.1_0.proxy_proto.*",
        ];
        for (listener, _) in kinds {
            for (name, header) in proxy_headers() {
                let id = format!("proxy_protocol, {listener}: {name}");
                // The stats of one row are those of its connection.
                let mut seen = Vec::new();
                pair.same_stats(&mut cases, format_args!("{id}, stats"), &stats, |proxy| {
                    seen.push(proxied(proxy, listener, &header, Sent::Whole)?);
                    Ok(())
                });
                let mut seen = seen.into_iter();
                pair.same(&mut cases, &id, |_| Ok(json!(seen.next())));
            }
        }
        for (name, header) in
            proxy_headers().into_iter().filter(|(name, _)| ["v1", "v2", "v2, with TLVs"].contains(name))
        {
            pair.same(&mut cases, format_args!("proxy_protocol, a byte at a time: {name}"), |proxy| {
                Ok(json!(proxied(proxy, "required", &header, Sent::Bytewise)?))
            });
        }
        cases.finish()
    })
}

/// The answer and the log line of a connection that begins with a header.
fn proxied(proxy: &shunt_tests::Proxy, listener: &str, header: &[u8], sent: Sent) -> Result<String> {
    let file = format!("{listener}.log");
    let before = std::fs::read_to_string(proxy.dir().join(&file)).unwrap_or_default().lines().count();
    let mut client = Client::connect(proxy.at(listener)?)?;
    let _ = send(&mut client, &[header, b"hello\n"].concat(), sent);
    let answer = match client.line() {
        Ok(line) => line,
        Err(_) => return Ok("closed".to_owned()),
    };
    client.half_close()?;
    let _ = client.end()?;
    let line = proxy.lines(&file, before + 1)?.remove(before);
    let (own, at) = (client.local()?.to_string(), proxy.at(listener)?.to_string());
    Ok(format!("{answer:?} {}", line.replace(&own, "client").replace(&at, "listener")))
}

#[test]
fn a_client_that_says_nothing() -> Result<()> {
    lab(|lab| {
        let served = chain("", &[says("served")]);
        let fields = |more: &str| {
            format!(
                "listener_filters: [ {} ], listener_filters_timeout: 0.5s, {more} filter_chains: [ {served} ]",
                tls_inspector()
            )
        };
        let config = Bootstrap::new()
            .listener("closes", &fields(""))
            .listener("continues", &fields("continue_on_listener_filters_timeout: true,"));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for listener in ["closes", "continues"] {
            let names = ["listener.127.0.0.1_0.downstream_pre_cx_timeout"];
            pair.same_stats(&mut cases, format_args!("silence, stats: {listener}"), &names, |proxy| {
                Client::connect(proxy.at(listener)?)?.end().map(drop)
            });
            pair.same(&mut cases, format_args!("silence: {listener}"), |proxy| {
                let start = Instant::now();
                let rest = Client::connect(proxy.at(listener)?)?.rest()?;
                let after = start.elapsed().as_millis();
                ensure!((400..1_500).contains(&after), "after {after} ms");
                Ok(json!(rest))
            });
        }
        cases.finish()
    })
}
