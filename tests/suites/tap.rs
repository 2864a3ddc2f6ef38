//! Tapped connections: the files and streams of both proxies for the same traffic, compared.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{MsgFlags, send};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{DIR, extension, tcp_proxy};
use shunt_tests::tls_context::tls_chain;
use shunt_tests::{Bootstrap, Cases, Client, Leaf, Pair, Pki, Proxy, TlsClient, TlsContext, lab, until};

/// Format and extension.
const FORMATS: [(&str, &str); 5] = [
    ("JSON_BODY_AS_BYTES", "json"),
    ("JSON_BODY_AS_STRING", "json"),
    ("PROTO_BINARY", "pb"),
    ("PROTO_BINARY_LENGTH_DELIMITED", "pb_length_delimited"),
    ("PROTO_TEXT", "pb_text"),
];

/// Answers each line, and says a last word together with its FIN.
struct Backend {
    address: SocketAddr,
    _acceptor: JoinHandle<()>,
}

impl Backend {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || Self::serve(&stream));
            }
        });
        Ok(Self { address, _acceptor: acceptor })
    }

    fn serve(mut stream: &TcpStream) -> Result<()> {
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            stream.write_all(&[b"echo ", line.as_slice()].concat())?;
            line.clear();
        }
        // One segment with the FIN: neither proxy sees one without the other.
        send(stream.as_raw_fd(), b"bye", MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        Ok(())
    }
}

/// One tap's configuration.
#[derive(Clone, Copy, Default)]
struct Case<'a> {
    name: &'a str,
    format: &'a str,
    /// Fields of `OutputConfig`, of `TapConfig`, and the `SocketTapConfig`.
    output: &'a str,
    config: &'a str,
    socket: &'a str,
}

impl Case<'_> {
    fn transport(&self, side: &str, inner: &str) -> String {
        let Self { name, format, output, config, socket } = self;
        let file = format!("file_per_tap: {{ path_prefix: \"{DIR}/{side}_{name}\" }}");
        let sinks = format!("sinks: [ {{ format: {format}, {file} }} ]");
        let predicate = if config.contains("match") { "" } else { "match: { any_match: true }," };
        let tap = format!("{predicate} {config} output_config: {{ {output} {sinks} }}");
        let socket =
            if socket.is_empty() { String::new() } else { format!("socket_tap_config: {{ {socket} }}, ") };
        let common = format!("common_config: {{ static_config: {{ {tap} }} }}");
        wrapped(&format!("{common}, {socket}"), inner)
    }
}

fn wrapped(fields: &str, inner: &str) -> String {
    let fields = format!("{fields} transport_socket: {inner}");
    extension("envoy.transport_sockets.tap", "envoy.extensions.transport_sockets.tap.v3.Tap", &fields)
}

fn raw() -> String {
    let of_type = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    extension("envoy.transport_sockets.raw_buffer", of_type, "")
}

/// A listener and a cluster of the same tap.
fn tapped(config: Bootstrap, case: Case<'_>, backend: SocketAddr) -> Bootstrap {
    let name = case.name;
    let filters = [tcp_proxy(name, &format!("cluster: {name:?}"))];
    let chain = tls_chain("", &case.transport("down", &raw()), &filters);
    let upstream = format!("transport_socket: {}", case.transport("up", &raw()));
    config.listener(name, &format!("filter_chains: [ {chain} ]")).static_cluster(name, &[backend], &upstream)
}

/// Some lines with all kinds of bytes, and an end.
fn talk(to: SocketAddr) -> Result<()> {
    let mut client = Client::connect(to)?;
    for line in [&b"hello"[..], b"w\"or'ld \\ \xff\xc3 <\x01\t\x7f> \xc3\xa9\xe2\x82", b"3"] {
        client.send([line, b"\n"].concat())?;
        let answer = client.exactly(line.len() + 6)?;
        ensure!(answer == [b"echo ", line, b"\n"].concat(), "{answer:?}");
        // Bytes and FIN that come apart are told apart.
        std::thread::sleep(Duration::from_millis(10));
    }
    client.half_close()?;
    let rest = client.rest()?;
    ensure!(rest == "bye FIN", "{rest}");
    Ok(())
}

/// The file of the only trace of a tap, once it is whole.
fn file(proxy: &Proxy, prefix: &str, extension: &str) -> Result<Vec<u8>> {
    let named = |entry: &fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let id = name.strip_prefix(prefix)?.strip_prefix('_')?.strip_suffix(extension)?.strip_suffix('.')?;
        id.parse::<u64>().ok().map(|_| entry.path())
    };
    let mut last = None;
    until(&format!("trace {prefix}"), Duration::from_secs(5), || {
        let entries = fs::read_dir(proxy.dir())?.flatten().collect::<Vec<_>>();
        let found: Vec<_> = entries.iter().filter_map(named).collect();
        ensure!(found.len() < 2, "{found:?}");
        let Some(path) = found.first() else { return Ok(None) };
        // Whole: nothing was added for a while.
        let now = fs::read(path)?;
        let settled = !now.is_empty() && last.as_ref() == Some(&now);
        std::thread::sleep(Duration::from_millis(30));
        Ok(if settled {
            Some(now)
        } else {
            last = Some(now);
            None
        })
    })
}

/// What a trace says, without what differs from one connection to the next.
struct Reader {
    wrapper: MessageDescriptor,
}

impl Reader {
    fn new() -> Result<Self> {
        let set = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy-config/proto/envoy.fds");
        let pool = DescriptorPool::decode(fs::read(set)?.as_slice())?;
        let wrapper =
            pool.get_message_by_name("envoy.data.tap.v3.TraceWrapper").context("no TraceWrapper")?;
        Ok(Self { wrapper })
    }

    fn read(&self, bytes: &[u8], format: &str, known: &[(u16, &str)]) -> Result<Value> {
        match format {
            "PROTO_BINARY" => {
                // Several are one message to protobuf: each field of it is a trace.
                let mut traces = Vec::new();
                let mut rest = bytes;
                while !rest.is_empty() {
                    let before = rest;
                    let _key = varint(&mut rest)?;
                    let length = usize::try_from(varint(&mut rest)?)?;
                    rest = rest.get(length..).context("a field that ends early")?;
                    traces.push(self.message(&before[..before.len() - rest.len()], known)?);
                }
                Ok(Value::Array(traces))
            }
            "PROTO_BINARY_LENGTH_DELIMITED" => {
                let (mut traces, mut rest) = (Vec::new(), bytes);
                while !rest.is_empty() {
                    let length = usize::try_from(varint(&mut rest)?)?;
                    let (one, after) = rest.split_at_checked(length).context("a trace that ends early")?;
                    traces.push(self.message(one, known)?);
                    rest = after;
                }
                Ok(Value::Array(traces))
            }
            // As text, so that white space counts.
            _ => Ok(json!(masked(std::str::from_utf8(bytes)?, known))),
        }
    }

    fn message(&self, bytes: &[u8], known: &[(u16, &str)]) -> Result<Value> {
        let message = DynamicMessage::decode(self.wrapper.clone(), bytes)?;
        let value = serde_json::to_string_pretty(&message)?;
        Ok(json!(masked(&value, known)))
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().context("a number that ends early")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number without an end")
}

/// Lines, with ids and times taken out and ports by their names.
fn masked(text: &str, known: &[(u16, &str)]) -> Vec<String> {
    let name = |port: &str| {
        let port: u16 = port.parse().ok()?;
        known.iter().find(|(known, _)| *known == port).map(|(_, name)| *name)
    };
    let line = |line: &str| {
        let Some((field, value)) = line.split_once(": ") else { return line.to_owned() };
        let (value, comma) = value.strip_suffix(',').map_or((value, ""), |value| (value, ","));
        let shown = match field.trim().trim_matches('"') {
            "trace_id" | "traceId" | "timestamp" | "seconds" | "nanos" => "…",
            "port_value" | "portValue" => name(value).unwrap_or("ephemeral"),
            _ => value,
        };
        format!("{field}: {shown}{comma}")
    };
    text.lines().map(line).collect()
}

fn ports(proxy: &Proxy, listener: &str, backend: SocketAddr) -> Result<[(u16, &'static str); 2]> {
    Ok([(proxy.at(listener)?.port(), "listener"), (backend.port(), "backend")])
}

#[test]
fn traces_are_envoys_in_every_format() -> Result<()> {
    lab(|lab| {
        let (backend, reader) = (Backend::start()?, Reader::new()?);
        let mut cases = Vec::new();
        let names: Vec<[String; 2]> = FORMATS
            .iter()
            .map(|(format, _)| ["buffered", "streamed"].map(|mode| format!("{format}_{mode}")))
            .collect();
        for ((format, extension), names) in FORMATS.iter().zip(&names) {
            for (name, output) in names.iter().zip(["", "streaming: true,"]) {
                cases.push((Case { name, format, output, ..Case::default() }, *extension));
            }
        }
        let bytes = Case { format: "JSON_BODY_AS_BYTES", ..Case::default() };
        for case in [
            Case { name: "cut", output: "max_buffered_rx_bytes: 9, max_buffered_tx_bytes: 14,", ..bytes },
            Case {
                name: "cut_to_nothing",
                output: "max_buffered_rx_bytes: 0, max_buffered_tx_bytes: 5,",
                ..bytes
            },
            Case { name: "cut_streamed", output: "streaming: true, max_buffered_rx_bytes: 4,", ..bytes },
            Case {
                name: "each",
                output: "streaming: true,",
                socket: "set_connection_per_event: true",
                ..bytes
            },
            Case { name: "gathered", output: "streaming: true, min_streamed_sent_bytes: 30,", ..bytes },
            Case { name: "gathered_little", output: "streaming: true, min_streamed_sent_bytes: 1,", ..bytes },
            Case { name: "gathered_none", output: "streaming: true, min_streamed_sent_bytes: 0,", ..bytes },
            Case {
                name: "gathered_each",
                output: "streaming: true, min_streamed_sent_bytes: 30,",
                socket: "set_connection_per_event: true",
                ..bytes
            },
            Case { name: "sampled", config: "tap_enabled: { default_value: { numerator: 100 } },", ..bytes },
            Case {
                name: "not_http",
                config: "match: { not_match: { http_request_headers_match: { headers: [ { name: a } ] } } },",
                ..bytes
            },
        ] {
            cases.push((case, "json"));
        }
        let config =
            cases.iter().fold(Bootstrap::new(), |config, (case, _)| tapped(config, *case, backend.address));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut table = Cases::new();
        for (case, extension) in &cases {
            for proxy in pair.both() {
                talk(proxy.at(case.name)?)
                    .with_context(|| format!("{} of {}", case.name, proxy.kind.name()))?;
            }
            for side in ["down", "up"] {
                pair.same(&mut table, format_args!("tap: {} {side}", case.name), |proxy| {
                    let bytes = file(proxy, &format!("{side}_{}", case.name), extension)?;
                    reader.read(&bytes, case.format, &ports(proxy, case.name, backend.address)?)
                });
            }
        }
        table.finish()
    })
}

#[test]
fn what_is_tapped_and_what_is_counted() -> Result<()> {
    lab(|lab| {
        let backend = Backend::start()?;
        let http = "http_request_headers_match: { headers: [ { name: a } ] }";
        let any = "any_match: true";
        let cases = [
            ("any", format!("match: {{ {any} }},"), true),
            ("http", format!("match: {{ {http} }},"), false),
            ("or", format!("match: {{ or_match: {{ rules: [ {{ {http} }}, {{ {any} }} ] }} }},"), true),
            ("and", format!("match: {{ and_match: {{ rules: [ {{ {http} }}, {{ {any} }} ] }} }},"), false),
            ("old", format!("match_config: {{ {any} }},"), true),
            ("never", "tap_enabled: { default_value: { numerator: 0 } },".to_owned(), false),
        ];
        let sockets = cases.clone().map(|(name, ..)| format!("stats_prefix: p_{name}"));
        let mut config = Bootstrap::new();
        for ((name, fields, _), socket) in cases.iter().zip(&sockets) {
            let case = Case { name, format: "JSON_BODY_AS_BYTES", config: fields, socket, ..Case::default() };
            config = tapped(config, case, backend.address);
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut table = Cases::new();
        for (name, _, is_tapped) in &cases {
            let stats = ["buffered_submit", "streamed_submit", "cx_sampled_out"]
                .map(|stat| format!("transport.tap.p_{name}.{stat}"));
            let stats: Vec<&str> = stats.iter().map(String::as_str).collect();
            pair.same_stats(&mut table, format_args!("tap stats: {name}"), &stats, |proxy| {
                talk(proxy.at(name)?)
            });
            table.case(format_args!("tapped: {name}"), || {
                for proxy in pair.both() {
                    let prefix = format!("down_{name}_");
                    let traces = || -> Result<usize> {
                        let entries = fs::read_dir(proxy.dir())?.flatten();
                        Ok(entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).count())
                    };
                    if *is_tapped {
                        // It is counted before its file is there.
                        let what = format!("a trace of {}", proxy.kind.name());
                        until(&what, Duration::from_secs(5), || Ok((traces()? > 0).then_some(())))?;
                    } else {
                        ensure!(traces()? == 0, "{} has written a trace", proxy.kind.name());
                    }
                }
                Ok(())
            });
        }
        table.finish()
    })
}

#[test]
fn over_tls_the_plaintext_is_tapped() -> Result<()> {
    lab(|lab| {
        let (backend, reader, pki) = (Backend::start()?, Reader::new()?, Pki::new(lab)?);
        let root = pki.root("root")?;
        let server = root.issue("server", &Leaf::new().dns("a.example.com"))?;
        let tls = TlsContext::new().certificate(&server).downstream();
        let modes = [("buffered", ""), ("streamed", "streaming: true,")];
        let mut config = Bootstrap::new().static_cluster("plain", &[backend.address], "");
        for (name, output) in modes {
            let case = Case { name, format: "JSON_BODY_AS_BYTES", output, ..Case::default() };
            let chain = tls_chain("", &case.transport("down", &tls), &[tcp_proxy(name, "cluster: plain")]);
            config = config.listener(name, &format!("filter_chains: [ {chain} ]"));
        }
        let pair = Pair::start(lab, &config.yaml())?;
        let mut table = Cases::new();
        for (name, _) in modes {
            pair.same(&mut table, format_args!("tap over tls: {name}"), |proxy| {
                let mut client =
                    TlsClient::new().trust(root.file()).name("a.example.com").connect(proxy.at(name)?)?;
                for line in ["hello", "world"] {
                    ensure!(client.ask(line)? == format!("echo {line}"), "another answer");
                    std::thread::sleep(Duration::from_millis(10));
                }
                client.half_close()?;
                client.end()?;
                let bytes = file(proxy, &format!("down_{name}"), "json")?;
                reader.read(&bytes, "JSON_BODY_AS_BYTES", &ports(proxy, name, backend.address)?)
            });
        }
        table.finish()
    })
}

/// A request to `/tap` that stays open.
struct Attached {
    stream: BufReader<TcpStream>,
}

impl Attached {
    fn open(proxy: &Proxy, body: &str) -> Result<Self> {
        let mut stream = TcpStream::connect(proxy.admin().address().context("an address")?)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let len = body.len();
        write!(stream, "POST /tap HTTP/1.1\r\nHost: admin\r\nContent-Length: {len}\r\n\r\n{body}")?;
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head)? > 0, "the end: {head}");
        }
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        ensure!(head.to_ascii_lowercase().contains("content-type: text/plain"), "{head}");
        Ok(Self { stream })
    }

    /// The next chunk; empty at the end.
    fn chunk(&mut self) -> Result<Vec<u8>> {
        let mut size = String::new();
        self.stream.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).with_context(|| format!("no chunk: {size:?}"))?;
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok(chunk)
    }

    /// Chunks until one has a text.
    fn through(&mut self, last: &str) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while !String::from_utf8_lossy(&all).contains(last) {
            let chunk = self.chunk()?;
            ensure!(!chunk.is_empty(), "the end: {}", String::from_utf8_lossy(&all));
            all.extend(chunk);
        }
        Ok(all)
    }

    fn rest(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            match self.chunk()? {
                end if end.is_empty() => return Ok(all),
                chunk => all.extend(chunk),
            }
        }
    }
}

fn tap_request(id: &str, output: &str) -> String {
    format!("config_id: {id}\ntap_config:\n  match: {{ any_match: true }}\n  output_config: {{ {output} }}\n")
}

#[test]
fn who_posts_to_tap_sees_connections_until_it_leaves() -> Result<()> {
    lab(|lab| {
        let (backend, reader) = (Backend::start()?, Reader::new()?);
        let tap = wrapped("common_config: { admin_config: { config_id: watched } },", &raw());
        let chain = tls_chain("", &tap, &[tcp_proxy("watched", "cluster: plain")]);
        let config = Bootstrap::new()
            .static_cluster("plain", &[backend.address], "")
            .listener("watched", &format!("filter_chains: [ {chain} ]"));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut table = Cases::new();
        let streamed = |format: &str| {
            tap_request(
                "watched",
                &format!("streaming: true, sinks: [ {{ format: {format}, streaming_admin: {{}} }} ]"),
            )
        };
        let known = |proxy: &Proxy| ports(proxy, "watched", backend.address);
        for format in ["JSON_BODY_AS_STRING", "JSON_BODY_AS_BYTES"] {
            pair.same(&mut table, format_args!("/tap, streamed: {format}"), |proxy| {
                // Whoever was attached before has gone, and that shows soon.
                let mut attached = until("place at /tap", Duration::from_secs(5), || {
                    Ok(Attached::open(proxy, &streamed(format)).ok())
                })?;
                let refused = proxy.admin().post("/tap", &streamed(format))?;
                talk(proxy.at("watched")?)?;
                let seen = attached.through("\"closed\"")?;
                let traces = reader.read(&seen, format, &known(proxy)?)?;
                Ok(json!({"refused": [refused.status, refused.body], "traces": traces}))
            });
        }
        pair.same(&mut table, "/tap, buffered", |proxy| {
            let output =
                "sinks: [ { format: PROTO_BINARY_LENGTH_DELIMITED, buffered_admin: { max_traces: 2 } } ]";
            let mut attached = until("place at /tap", Duration::from_secs(5), || {
                Ok(Attached::open(proxy, &tap_request("watched", output)).ok())
            })?;
            for _ in 0..3 {
                talk(proxy.at("watched")?)?;
            }
            reader.read(&attached.rest()?, "PROTO_BINARY_LENGTH_DELIMITED", &known(proxy)?)
        });
        pair.same(&mut table, "/tap, time is over", |proxy| {
            let output = "sinks: [ { buffered_admin: { max_traces: 2, timeout: 0.5s } } ]";
            let mut attached = until("place at /tap", Duration::from_secs(5), || {
                Ok(Attached::open(proxy, &tap_request("watched", output)).ok())
            })?;
            talk(proxy.at("watched")?)?;
            reader.read(&attached.rest()?, "JSON_BODY_AS_BYTES", &known(proxy)?)
        });
        let gone = |proxy: &Proxy| -> Result<()> {
            until("place at /tap", Duration::from_secs(5), || {
                Ok(Attached::open(proxy, &streamed("JSON_BODY_AS_BYTES")).ok().map(drop))
            })
        };
        for proxy in pair.both() {
            gone(proxy)?;
        }
        pair.same(&mut table, "/tap, refused", |proxy| {
            let admin = proxy.admin();
            let get = until("no place taken", Duration::from_secs(5), || {
                let answer = admin.post("/tap", "")?;
                Ok((!answer.body.contains("already exists")).then_some(answer))
            })?;
            let unknown = admin.post("/tap", &tap_request("nobody", "sinks: [ { streaming_admin: {} } ]"))?;
            let by_get = admin.get("/tap")?;
            let mut wrong = Vec::new();
            for body in ["config_id: [", "config_id: watched", "{ nosuch: 1 }"] {
                wrong.push(admin.post("/tap", body)?.status);
            }
            Ok(json!({
                "empty": [get.status, get.body], "unknown": [unknown.status, unknown.body],
                "get": [by_get.status, by_get.body], "wrong": wrong,
            }))
        });
        table.case("/tap, delimited", || {
            // Envoy stops at once, by an assertion.
            let mut attached = Attached::open(&pair.shunt, &streamed("PROTO_BINARY_LENGTH_DELIMITED"))?;
            talk(pair.shunt.at("watched")?)?;
            let mut all = Vec::new();
            // The connection, seven events, and its end.
            for _ in 0..9 {
                all.extend(attached.chunk()?);
            }
            let traces = reader.read(&all, "PROTO_BINARY_LENGTH_DELIMITED", &known(&pair.shunt)?)?;
            ensure!(traces.as_array().is_some_and(|traces| traces.len() == 9), "{traces}");
            Ok(())
        });
        table.finish()
    })
}

#[test]
fn a_directory_that_is_not_there_costs_no_connection() -> Result<()> {
    lab(|lab| {
        let backend = Backend::start()?;
        let case = Case { name: "missing/t", format: "PROTO_TEXT", ..Case::default() };
        let tap = case.transport("nowhere", &raw());
        let chain = tls_chain("", &tap, &[tcp_proxy("t", "cluster: plain")]);
        let config = Bootstrap::new()
            .static_cluster("plain", &[backend.address], "")
            .listener("t", &format!("filter_chains: [ {chain} ]"));
        let shunt = Proxy::start(lab, shunt_tests::Kind::Shunt, &config.yaml())?;
        for _ in 0..3 {
            talk(shunt.at("t")?)?;
        }
        shunt.expect_stat("transport.tap.trace_write_failed", 3)?;
        let log = shunt.log();
        ensure!(log.matches("nowhere_missing/t_").count() == 1, "{log}");
        Ok(())
    })
}
