//! The hand-off of `use_original_dst`: from an original destination to the listener of that address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use foldhash::fast::RandomState;
use proxy_config::model::{Address, Listener};

use crate::shards::Sharded;

/// All listeners of one snapshot, by where they would listen; `bind_to_port: false` ones, too. Cheap to clone, and to
/// change a clone.
#[derive(Clone, Debug)]
pub struct Handoff<T> {
    exact: Sharded<SocketAddr, Claims<T>>,
    /// Few listeners are of all addresses.
    wildcards: Arc<HashMap<(Wildcard, u16), Claims<T>, RandomState>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wildcard {
    V4,
    V6,
    /// One of IPv6 that takes IPv4 too.
    Compat,
}

/// Those that are at the same place, each with its rank: the first of them has it.
#[derive(Clone, Debug)]
pub enum Claims<T> {
    One(u64, T),
    Many(Vec<(u64, T)>),
}

impl<T> Default for Handoff<T> {
    fn default() -> Self {
        Self { exact: Sharded::default(), wildcards: Arc::default() }
    }
}

impl<T: Clone> Handoff<T> {
    /// Of two listeners at one address, the one of the lower rank is found. Ranks are unique.
    pub fn insert(&mut self, rank: u64, listener: &Listener, value: &T) {
        for (address, ipv4_compat) in addresses(listener) {
            for place in Place::of(address, ipv4_compat) {
                let claims = self.claims(place).cloned();
                self.set(place, Some(Claims::with(claims, rank, value.clone())));
            }
        }
    }

    /// Takes out what was put in for the same listener.
    pub fn remove(&mut self, rank: u64, listener: &Listener) {
        for (address, ipv4_compat) in addresses(listener) {
            for place in Place::of(address, ipv4_compat) {
                if let Some(claims) = self.claims(place).cloned() {
                    self.set(place, claims.without(rank));
                }
            }
        }
    }

    /// The listener of that very address, else of the wildcard address with its port; `None` leaves the connection
    /// with the listener that accepted it.
    pub fn find(&self, original_dst: SocketAddr) -> Option<&T> {
        let (ip, port) = (original_dst.ip().to_canonical(), original_dst.port());
        let wildcard = |kind| self.wildcards.get(&(kind, port));
        let claims = self.exact.get(&SocketAddr::new(ip, port)).or_else(|| match ip {
            IpAddr::V4(_) => wildcard(Wildcard::V4).or_else(|| wildcard(Wildcard::Compat)),
            IpAddr::V6(_) => wildcard(Wildcard::V6),
        });
        claims.and_then(Claims::first)
    }

    fn claims(&self, place: Place) -> Option<&Claims<T>> {
        match place {
            Place::Exact(address) => self.exact.get(&address),
            Place::Any(wildcard, port) => self.wildcards.get(&(wildcard, port)),
        }
    }

    fn set(&mut self, place: Place, claims: Option<Claims<T>>) {
        match (place, claims) {
            (Place::Exact(address), Some(claims)) => drop(self.exact.insert(address, claims)),
            (Place::Exact(address), None) => drop(self.exact.remove(&address)),
            (Place::Any(wildcard, port), Some(claims)) => {
                Arc::make_mut(&mut self.wildcards).insert((wildcard, port), claims);
            }
            (Place::Any(wildcard, port), None) => {
                Arc::make_mut(&mut self.wildcards).remove(&(wildcard, port));
            }
        }
    }
}

/// No original destination is a path or a name.
fn addresses(listener: &Listener) -> impl Iterator<Item = (SocketAddr, bool)> {
    listener.addresses.iter().filter_map(|at| match at.address {
        Address::Ip(address) => Some((address, at.ipv4_compat)),
        Address::Host(_) | Address::Pipe { .. } => None,
    })
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Exact(SocketAddr),
    Any(Wildcard, u16),
}

impl Place {
    fn of(address: SocketAddr, ipv4_compat: bool) -> impl Iterator<Item = Self> {
        let (ip, port) = (address.ip().to_canonical(), address.port());
        let first = match ip {
            _ if !ip.is_unspecified() => Self::Exact(SocketAddr::new(ip, port)),
            IpAddr::V4(_) => Self::Any(Wildcard::V4, port),
            IpAddr::V6(_) => Self::Any(Wildcard::V6, port),
        };
        let both = ip.is_unspecified() && ip.is_ipv6() && ipv4_compat;
        std::iter::once(first).chain(both.then_some(Self::Any(Wildcard::Compat, port)))
    }
}

impl<T> Claims<T> {
    pub fn first(&self) -> Option<&T> {
        match self {
            Self::One(_, value) => Some(value),
            Self::Many(all) => all.first().map(|(_, value)| value),
        }
    }

    /// With one more, or with another one in the place of the same rank.
    pub fn with(claims: Option<Self>, rank: u64, value: T) -> Self {
        let mut all = match claims {
            None => return Self::One(rank, value),
            Some(Self::One(known, _)) if known == rank => return Self::One(rank, value),
            Some(Self::One(known, other)) => vec![(known, other)],
            Some(Self::Many(all)) => all,
        };
        match all.binary_search_by_key(&rank, |(known, _)| *known) {
            Ok(at) => all.splice(at..=at, [(rank, value)]).for_each(drop),
            Err(at) => all.insert(at, (rank, value)),
        }
        Self::Many(all)
    }

    pub fn without(self, rank: u64) -> Option<Self> {
        match self {
            Self::One(known, _) if known == rank => None,
            Self::One(known, value) => Some(Self::One(known, value)),
            Self::Many(mut all) => {
                all.retain(|(known, _)| *known != rank);
                (!all.is_empty()).then_some(Self::Many(all))
            }
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
        let mut handoff = Handoff::default();
        for (rank, listener) in (0..).zip(&listeners) {
            handoff.insert(rank, listener, &rank);
        }
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
            assert_eq!(handoff.find(destination.parse().unwrap()).copied(), expected, "{destination}");
        }
        let mut compat = handoff.clone();
        for rank in [0, 1, 2, 4, 5] {
            compat.remove(rank, &listeners[rank as usize]);
        }
        assert_eq!(compat.find("10.0.0.2:90".parse().unwrap()), Some(&3));
        assert_eq!(compat.find("10.0.0.1:80".parse().unwrap()), None);
        compat.remove(3, &listeners[3]);
        assert!(compat.exact.is_empty() && compat.wildcards.is_empty());
    }

    #[test]
    fn the_next_one_has_the_address_of_one_that_is_gone() {
        let at = "10.0.0.1:80".parse().unwrap();
        let one = listener(&[("10.0.0.1:80", false), ("[::ffff:10.0.0.1]:80", false)]);
        let mut handoff = Handoff::default();
        for rank in [5, 3, 9] {
            handoff.insert(rank, &one, &rank);
        }
        let before = handoff.clone();
        assert_eq!(handoff.find(at), Some(&3));
        handoff.remove(3, &one);
        assert_eq!(handoff.find(at), Some(&5));
        handoff.insert(5, &one, &50);
        assert_eq!(handoff.find(at), Some(&50));
        handoff.remove(5, &one);
        handoff.remove(9, &one);
        assert_eq!(handoff.find(at), None);
        assert_eq!(before.find(at), Some(&3), "a copy stays as it was");
    }
}
