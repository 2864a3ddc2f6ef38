//! An address range, and its form in the kernel's longest-prefix table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use proxy_common::Ip;
use serde::{Serialize, Serializer};

/// A range: the network's address with no host bit set, and the prefix length in bits of its own family.
///
/// A range of v4-mapped addresses is the IPv4 range, because a connect to either is the same connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    addr: IpAddr,
    len: u8,
}

impl Cidr {
    pub const LOOPBACK_V4: Self = Self { addr: IpAddr::V4(Ipv4Addr::LOCALHOST), len: 32 };

    /// The range around an address; `None` where the length is more than the family has bits.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        match addr {
            IpAddr::V4(a) => v4(a, len),
            IpAddr::V6(a) => match a.to_ipv4_mapped() {
                Some(a) if len >= 96 => v4(a, len - 96),
                _ => v6(a, len),
            },
        }
    }

    /// The range of one address.
    pub fn host(addr: IpAddr) -> Self {
        let addr = addr.to_canonical();
        Self { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }

    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// In bits: at most 32 for IPv4, 128 for IPv6.
    pub fn prefix(&self) -> u8 {
        self.len
    }

    /// Whether the address is in the range. `::/0` holds no IPv4 address, mapped or not.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.addr, ip.to_canonical()) {
            (IpAddr::V4(_), IpAddr::V4(a)) => v4(a, self.len) == Some(*self),
            (IpAddr::V6(_), IpAddr::V6(a)) => v6(a, self.len) == Some(*self),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    /// The range as keys of the longest-prefix table: 16-byte addresses, lengths of 0 to 128 bits.
    ///
    /// One key, but for a short IPv6 prefix that would also cover the v4-mapped addresses: that one is written
    /// as everything around them.
    pub fn keys(&self) -> Vec<(Ip, u8)> {
        let (octets, len) = match self.addr {
            IpAddr::V4(a) => return vec![(a.to_ipv6_mapped().octets(), self.len + MAPPED_PREFIX)],
            IpAddr::V6(a) => (a.octets(), self.len),
        };
        if len > MAPPED_PREFIX || u128::from_be_bytes(octets) != MAPPED & mask6(self.len) {
            return vec![(octets, len)];
        }
        (len..MAPPED_PREFIX)
            .map(|bit| {
                let sibling = MAPPED ^ (1 << (127 - bit));
                let mask = u128::MAX << (127 - bit);
                ((sibling & mask).to_be_bytes(), bit + 1)
            })
            .collect()
    }
}

/// `::ffff:0:0`
const MAPPED: u128 = 0xffff_0000_0000;
const MAPPED_PREFIX: u8 = 96;

/// The 16 bytes by which the kernel's tables know an address.
pub(super) fn wide(ip: IpAddr) -> Ip {
    match ip {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// The reverse of [`wide`].
pub(super) fn narrow(ip: &Ip) -> IpAddr {
    IpAddr::from(*ip).to_canonical()
}

fn v4(a: Ipv4Addr, len: u8) -> Option<Cidr> {
    let mask = match len {
        0 => 0,
        1..=32 => u32::MAX << (32 - len),
        _ => return None,
    };
    Some(Cidr { addr: Ipv4Addr::from(u32::from(a) & mask).into(), len })
}

fn v6(a: Ipv6Addr, len: u8) -> Option<Cidr> {
    (len <= 128).then(|| Cidr { addr: Ipv6Addr::from(u128::from(a) & mask6(len)).into(), len })
}

fn mask6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let Some((addr, len)) = s.split_once('/') else {
            return Err(match s.parse::<IpAddr>() {
                Ok(ip) => format!("no prefix length: write {}", Self::host(ip)),
                Err(_) => "not an address range such as 10.0.0.0/8".into(),
            });
        };
        let addr: IpAddr = addr.parse().map_err(|_| format!("{addr} is not an IP address"))?;
        let max = if addr.is_ipv4() { 32 } else { 128 };
        // `parse` would take a sign.
        let digits = !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit());
        let length = len.parse::<u8>().ok().filter(|_| digits).and_then(|len| Self::new(addr, len));
        length.ok_or_else(|| format!("the prefix length is not 0 to {max}"))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> Cidr {
        s.parse().expect("a range")
    }

    #[test]
    fn host_bits_go_and_mapped_ranges_are_v4() {
        assert_eq!(cidr("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(cidr("2001:db8::5/32").to_string(), "2001:db8::/32");
        assert_eq!(cidr("::ffff:10.1.2.3/104"), cidr("10.0.0.0/8"));
        assert_eq!(cidr("::ffff:0:0/96"), cidr("0.0.0.0/0"));
        assert_eq!(cidr("::/0").to_string(), "::/0");
    }

    #[test]
    fn a_bad_range_says_what_is_wrong() {
        let why = |s: &str| s.parse::<Cidr>().expect_err("an error");
        assert_eq!(why("10.0.0.1"), "no prefix length: write 10.0.0.1/32");
        assert_eq!(why("fe80::1"), "no prefix length: write fe80::1/128");
        assert_eq!(why("10.0.0.0/33"), "the prefix length is not 0 to 32");
        assert_eq!(why("10.0.0.0/+8"), "the prefix length is not 0 to 32");
        assert_eq!(why("::/129"), "the prefix length is not 0 to 128");
        assert_eq!(why("10.0.0/8"), "10.0.0 is not an IP address");
        assert_eq!(why("web"), "not an address range such as 10.0.0.0/8");
    }

    #[test]
    fn a_v6_range_never_covers_v4() {
        assert_eq!(cidr("::/0").keys().len(), 96);
        assert_eq!(cidr("::/80").keys().len(), 16);
        assert_eq!(cidr("::ffff:0:0/90").keys().len(), 6);
        assert_eq!(cidr("::/90").keys().len(), 1);
        assert_eq!(cidr("::/97").keys().len(), 1);
        assert_eq!(cidr("fd00::/8").keys().len(), 1);
        let covers = |ip: &str| {
            let ip = u128::from_be_bytes(wide(ip.parse().expect("an address")));
            let hits = cidr("::/0").keys().into_iter().filter(|(net, len)| {
                let shift = 128 - u32::from(*len);
                ip.checked_shr(shift) == u128::from_be_bytes(*net).checked_shr(shift)
            });
            hits.count()
        };
        assert_eq!(covers("10.0.0.1"), 0);
        for ip in ["::1", "::6", "2001:db8::1", "ff02::1", "::fffe:0:1", "::1:0:0:0"] {
            assert_eq!(covers(ip), 1, "{ip}");
        }
    }
}
