//! The hand-off of `use_original_dst`: from an original destination to the listener of that address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use proxy_config::model::{Address, Listener};

/// All listeners of one snapshot, by where they would listen; `bind_to_port: false` ones, too.
#[derive(Debug, Default)]
pub struct Handoff {
    exact: HashMap<SocketAddr, usize>,
    any_v4: HashMap<u16, usize>,
    any_v6: HashMap<u16, usize>,
    /// IPv6 wildcards that take IPv4 too.
    compat: HashMap<u16, usize>,
}

impl Handoff {
    /// Of two listeners at one address, the first is found.
    pub fn new<'a>(listeners: impl IntoIterator<Item = (usize, &'a Listener)>) -> Self {
        let mut handoff = Self::default();
        for (index, listener) in listeners {
            for at in &listener.addresses {
                match at.address {
                    Address::Ip(address) => handoff.insert(address, at.ipv4_compat, index),
                    // No original destination is a path or a name.
                    Address::Host(_) | Address::Pipe { .. } => {}
                }
            }
        }
        handoff
    }

    /// The listener of that very address, else of the wildcard address with its port; `None` leaves the connection
    /// with the listener that accepted it.
    pub fn find(&self, original_dst: SocketAddr) -> Option<usize> {
        let (ip, port) = (original_dst.ip().to_canonical(), original_dst.port());
        let exact = self.exact.get(&SocketAddr::new(ip, port));
        let wildcard = || match ip {
            IpAddr::V4(_) => self.any_v4.get(&port).or_else(|| self.compat.get(&port)),
            IpAddr::V6(_) => self.any_v6.get(&port),
        };
        exact.or_else(wildcard).copied()
    }

    fn insert(&mut self, address: SocketAddr, ipv4_compat: bool, index: usize) {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        if !ip.is_unspecified() {
            self.exact.entry(SocketAddr::new(ip, port)).or_insert(index);
            return;
        }
        let wildcards = if ip.is_ipv4() { &mut self.any_v4 } else { &mut self.any_v6 };
        wildcards.entry(port).or_insert(index);
        if ip.is_ipv6() && ipv4_compat {
            self.compat.entry(port).or_insert(index);
        }
    }
}
