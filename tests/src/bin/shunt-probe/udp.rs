//! Datagrams: a query and its answer; a server that says which of its addresses was reached.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::options::Options;
use crate::report::{failure, print};

pub(crate) fn query(options: &Options) -> Result<bool, String> {
    let to = options.destination()?;
    match exchange(options, to) {
        Ok(report) => {
            print(&report);
            Ok(true)
        }
        Err(error) => {
            print(&failure("query", &error));
            Ok(false)
        }
    }
}

fn exchange(options: &Options, to: SocketAddr) -> io::Result<serde_json::Value> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((options.bind.unwrap_or(any), 0))?;
    socket.set_read_timeout(Some(options.timeout.unwrap_or(Duration::from_secs(2))))?;
    if options.connect {
        socket.connect(to)?;
        socket.send(b"query")?;
    } else {
        socket.send_to(b"query", to)?;
    }
    let mut buf = [0; 512];
    // recvfrom tells the source also on a connected socket.
    let (n, from) = socket.recv_from(&mut buf)?;
    let peer = socket.peer_addr().map(|a| a.to_string()).ok();
    Ok(json!({
        "ok": true, "reply": String::from_utf8_lossy(&buf[..n]), "from": from.to_string(), "peer": peer,
        "local": socket.local_addr()?.to_string(),
    }))
}

pub(crate) fn serve(options: &Options) -> Result<bool, String> {
    let mut threads = Vec::new();
    let mut ports = Vec::new();
    for address in &options.listen {
        let socket = UdpSocket::bind(address).map_err(|error| format!("{address}: {error}"))?;
        ports.push(socket.local_addr().map_err(|error| error.to_string())?.port());
        let name = address.to_string();
        threads.push(thread::spawn(move || answer(&socket, &name)));
    }
    print(&json!({ "event": "listening", "ports": ports }));
    threads.into_iter().for_each(|thread| drop(thread.join()));
    Ok(true)
}

fn answer(socket: &UdpSocket, name: &str) {
    let mut buf = [0; 512];
    while let Ok((n, from)) = socket.recv_from(&mut buf) {
        let text = format!("{name}: {}", String::from_utf8_lossy(&buf[..n]));
        if let Err(error) = socket.send_to(text.as_bytes(), from) {
            eprintln!("answer to {from}: {error}");
        }
    }
}
