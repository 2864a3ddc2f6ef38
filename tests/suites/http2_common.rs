//! A proxy that speaks HTTP/2 to its clients, and HTTP/1 to a backend that reads what it is asked.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result};
use shunt_tests::Bootstrap;
use shunt_tests::bootstrap::{chain, extension};

/// One listener, `h2`; everything goes to the backend.
pub(crate) fn config(backend: SocketAddr, fields: &str) -> String {
    let router = "envoy.extensions.filters.http.router.v3.Router";
    let router = extension("envoy.filters.http.router", router, "");
    let routes =
        r#"{ name: all, domains: [ "*" ], routes: [ { match: { prefix: "/" }, route: { cluster: up } } ] }"#;
    let manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: h2, codec_type: HTTP2, route_config: {{ name: r, virtual_hosts: [ {routes} ] }}, \
             http_filters: [ {router} ], {fields}"
        ),
    );
    let chain = chain("", &[manager]);
    Bootstrap::new()
        .static_cluster("up", &[backend], "")
        .listener("h2", &format!("filter_chains: [ {chain} ]"))
        .yaml()
}

/// Its threads end with the test's process.
pub(crate) fn backend() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("the backend")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(&stream));
        }
    });
    Ok(address)
}

/// Of `/big`.
const BIG: usize = 1024 * 1024;

/// Answers requests once they are whole, until the peer or a request ends in an odd way.
fn serve(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let line = line(&mut reader)?;
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let value =
            |name: &str| lines.iter().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        if value("transfer-encoding:").is_some() {
            chunks(&mut reader)?;
        } else if let Some(len) = value("content-length:") {
            reader.read_exact(&mut vec![0; len.parse().ok()?]).ok()?;
        }
        let first = lines.first()?;
        let body = if first.contains(" /big ") { vec![b'x'; BIG] } else { b"hello, world".to_vec() };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        let body = if first.starts_with("head ") { &[] } else { body.as_slice() };
        // At once: a small write waits for the answer to the one before it.
        let mut stream = stream;
        stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    }
}

/// In lower case, without its end.
fn line(reader: &mut impl std::io::BufRead) -> Option<String> {
    let mut line = String::new();
    let n = reader.read_line(&mut line).ok()?;
    (n > 0).then(|| line.trim_end().to_ascii_lowercase())
}

/// A chunked body with its trailers.
fn chunks(reader: &mut BufReader<&TcpStream>) -> Option<()> {
    loop {
        let size = usize::from_str_radix(line(reader)?.split(';').next()?, 16).ok()?;
        if size == 0 {
            while !line(reader)?.is_empty() {}
            return Some(());
        }
        reader.read_exact(&mut vec![0; size + 2]).ok()?;
    }
}
