//! Configurations with many filter chains, or many listeners that are handed connections; and the client that
//! shows by its answer which of them served it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// What a connection is told apart by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Filter chains of one listener, by destination prefix.
    Chains,
    /// Listeners without a socket: the original destination comes in a PROXY protocol header.
    Listeners,
}

/// One configuration that is measured.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) many: u32,
}

/// Connections go to these in turn, wherever they are in the table: a prime has no pattern.
const STRIDE: u32 = 7919;
/// Loopback is all of 127.0.0.0/8, so that each chain has an address that reaches it.
const CHAINS: u32 = 0x7f01_0000;
const LISTENERS: u32 = 0x0a01_0000;
const SERVICE_PORT: u16 = 80;

impl Case {
    /// The bootstrap.
    pub(crate) fn config(self, port: u16, admin: u16) -> Value {
        let listeners: Vec<_> = match self.kind {
            Kind::Chains => {
                let chains: Vec<_> = (0..self.many).map(|i| chain(self.kind, i, true)).collect();
                vec![json!({
                    "name": "entry",
                    "address": address(Ipv4Addr::UNSPECIFIED, port),
                    "filter_chains": chains,
                })]
            }
            Kind::Listeners => {
                let handed = (0..self.many).map(|i| {
                    json!({
                        "name": format!("listener-{i}"),
                        "address": address(ip(self.kind, i), SERVICE_PORT),
                        "bind_to_port": false,
                        "filter_chains": [chain(self.kind, i, false)],
                    })
                });
                std::iter::once(entry(port)).chain(handed).collect()
            }
        };
        let admin = json!({"address": address(Ipv4Addr::LOCALHOST, admin)});
        json!({"admin": admin, "static_resources": {"listeners": listeners}})
    }

    /// Connections one after the other for a while; how many a second. Each must have been served by its own.
    pub(crate) fn connect(self, port: u16, time: Duration) -> Result<(u64, f64)> {
        let (start, mut count, mut i) = (Instant::now(), 0, 0);
        while start.elapsed() < time {
            crate::interrupt::check()?;
            self.exchange(port, i)?;
            i = (i + STRIDE) % self.many;
            count += 1;
        }
        Ok((count, count as f64 / start.elapsed().as_secs_f64()))
    }

    fn exchange(self, port: u16, i: u32) -> Result<()> {
        let ip = ip(self.kind, i);
        let to = match self.kind {
            Kind::Chains => ip,
            Kind::Listeners => Ipv4Addr::LOCALHOST,
        };
        let mut stream = TcpStream::connect(SocketAddr::from((to, port)))?;
        if self.kind == Kind::Listeners {
            stream.write_all(format!("PROXY TCP4 192.0.2.1 {ip} 40000 {SERVICE_PORT}\r\n").as_bytes())?;
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer == says(self.kind, i), "{ip} was served by {answer:?}");
        Ok(())
    }
}

/// Where connections arrive to be handed on.
fn entry(port: u16) -> Value {
    let proxy_protocol =
        "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
    json!({
        "name": "entry",
        "address": address(Ipv4Addr::LOCALHOST, port),
        "use_original_dst": true,
        "listener_filters": [
            {"name": "envoy.filters.listener.proxy_protocol", "typed_config": {"@type": proxy_protocol}},
        ],
        "filter_chains": [{"filters": [says_filter("nobody")]}],
    })
}

fn chain(kind: Kind, i: u32, by_prefix: bool) -> Value {
    let filters = json!([says_filter(&says(kind, i))]);
    if by_prefix {
        let range = json!({"address_prefix": ip(kind, i).to_string(), "prefix_len": 32});
        json!({"filter_chain_match": {"prefix_ranges": [range]}, "filters": filters})
    } else {
        json!({"filters": filters})
    }
}

fn says_filter(text: &str) -> Value {
    let direct_response = "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config";
    json!({
        "name": "envoy.filters.network.direct_response",
        "typed_config": {"@type": direct_response, "response": {"inline_string": text}},
    })
}

fn says(kind: Kind, i: u32) -> String {
    match kind {
        Kind::Chains => format!("chain-{i}"),
        Kind::Listeners => format!("listener-{i}"),
    }
}

fn ip(kind: Kind, i: u32) -> Ipv4Addr {
    let first = match kind {
        Kind::Chains => CHAINS,
        Kind::Listeners => LISTENERS,
    };
    Ipv4Addr::from_bits(first + i)
}

fn address(ip: Ipv4Addr, port: u16) -> Value {
    json!({"socket_address": {"address": ip.to_string(), "port_value": port}})
}
