//! The hand-off of `use_original_dst`: from an original destination to the listener of that address.

use std::collections::hash_map;
use std::net::{IpAddr, SocketAddr};

use foldhash::fast::RandomState;
use proxy_config::model::{Address, Listener};

/// Its keys are the configuration's: no peer can make them collide.
type HashMap<K, V> = hash_map::HashMap<K, V, RandomState>;

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
        let listeners = listeners.into_iter();
        let mut handoff = Self::default();
        // Most listeners are of one address.
        handoff.exact.reserve(listeners.size_hint().0);
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

#[cfg(test)]
pub(crate) mod tests {
    use proxy_config::model::HostPort;
    use proxy_config::model::listener::ListenAddress;

    use super::*;

    /// A listener with those addresses and nothing else.
    pub(crate) fn listener(addresses: &[(&str, bool)]) -> Listener {
        let at = |&(address, ipv4_compat): &(&str, bool)| ListenAddress {
            address: Address::Ip(address.parse().unwrap()),
            ipv4_compat,
            socket_options: Vec::new(),
        };
        Listener { bind_to_port: false, ..Listener::new("test", addresses.iter().map(at).collect()) }
    }

    #[test]
    fn exact_then_wildcard_then_none() {
        let mut named = listener(&[]);
        named.addresses.push(ListenAddress {
            address: Address::Host(HostPort { host: "a".into(), port: 5 }),
            ipv4_compat: false,
            socket_options: Vec::new(),
        });
        let listeners = [
            listener(&[("0.0.0.0:80", false), ("0.0.0.0:81", false)]),
            listener(&[("10.0.0.1:80", false)]),
            listener(&[("[::]:80", false)]),
            listener(&[("[::]:90", true), ("[fd00::1]:91", false)]),
            named,
            listener(&[("10.0.0.1:80", false), ("0.0.0.0:90", false)]),
        ];
        let handoff = Handoff::new(listeners.iter().enumerate());
        for (destination, expected) in [
            ("10.0.0.1:80", Some(1)),
            ("10.0.0.2:80", Some(0)),
            ("10.0.0.2:81", Some(0)),
            ("[::ffff:10.0.0.1]:80", Some(1)),
            ("[fd00::9]:80", Some(2)),
            ("[fd00::9]:81", None),
            ("10.0.0.2:90", Some(5)),
            ("[fd00::9]:90", Some(3)),
            ("[fd00::1]:91", Some(3)),
            ("10.0.0.2:91", None),
            ("10.0.0.2:5", None),
        ] {
            assert_eq!(handoff.find(destination.parse().unwrap()), expected, "{destination}");
        }
        let compat = Handoff::new([(7, &listeners[3])]);
        assert_eq!(compat.find("10.0.0.2:90".parse().unwrap()), Some(7));
    }
}
