//! Addresses, prefixes and socket options.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// `config.core.v3.Address`, where something listens or connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Ip(SocketAddr),
    /// A name that a STRICT_DNS or LOGICAL_DNS cluster resolves.
    Host(HostPort),
    /// A unix socket; a path that begins with `@` is in the abstract namespace.
    Pipe {
        path: PathBuf,
        mode: u32,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub host: Arc<str>,
    pub port: u16,
}

/// `config.core.v3.CidrRange`: the address has no bits below the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

/// `config.core.v3.SocketOption`: set before bind, after bind, or on listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOption {
    pub level: i32,
    pub name: i32,
    pub value: SocketOptionValue,
    pub state: SocketState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketOptionValue {
    Int(i32),
    Bytes(Vec<u8>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    PreBind,
    Bound,
    Listening,
}

/// `config.core.v3.BindConfig`: where upstream connections come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindConfig {
    pub source: Option<SocketAddr>,
    /// For the other address family, in order.
    pub extra_sources: Vec<SocketAddr>,
    pub freebind: bool,
    pub socket_options: Vec<SocketOption>,
}

impl Cidr {
    /// With the host bits cleared; `None` where the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                IpAddr::V4((v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => IpAddr::V6(
                (v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into(),
            ),
            IpAddr::V4(_) | IpAddr::V6(_) => return None,
        };
        Some(Self { address, prefix })
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && Self::new(ip, self.prefix) == Some(*self)
    }
}
