//! `envoy.filters.listener.proxy_protocol`: the header in which a load balancer says who the client is.
//!
//! Text (v1) or binary (v2). Of v2's families IPv4 and IPv6 are taken, stream and datagram alike; a unix socket or
//! an unspecified family is an error, as in Envoy. The checksum TLV is not checked, as in Envoy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_config::model::listener_filter::ProxyProtocol as Config;

use super::Peek;
use super::reader::Reader;

pub const V1_SIGNATURE: &[u8] = b"PROXY ";
pub const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_HEADER: usize = 16;
/// One more than the specification's 107, as in Envoy.
const V1_MAX: usize = 108;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub version: Version,
    /// What to take off the connection.
    pub len: usize,
    /// Client and destination; `None` leaves the socket's own: LOCAL, UNKNOWN.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    pub tlvs: Vec<(u8, &'a [u8])>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no PROXY header, and there must be one.
    NotFound,
    /// It is a header of that version, and broken.
    Broken(Version),
    /// Headers of that version are not wanted.
    Disallowed(Version),
}

/// `None`: there is no header, and none is needed.
pub fn parse<'a>(buf: &'a [u8], config: &Config) -> Peek<Option<Header<'a>>, Refusal> {
    if config.allow_requests_without_proxy_protocol && !buf.is_empty() {
        let may_be_v1 = !config.disallow_v1 && common(buf, V1_SIGNATURE);
        let may_be_v2 = !config.disallow_v2 && common(buf, V2_SIGNATURE);
        if !may_be_v1 && !may_be_v2 {
            return Peek::Done(None);
        }
    }
    if buf.len() < V2_HEADER || !buf.starts_with(V2_SIGNATURE) {
        return v1(buf, config);
    }
    if config.disallow_v2 {
        return Peek::Refuse(Refusal::Disallowed(Version::V2));
    }
    v2(buf)
}

/// Whether one is how the other begins.
fn common(buf: &[u8], signature: &[u8]) -> bool {
    buf.iter().zip(signature).all(|(a, b)| a == b)
}

fn v1<'a>(buf: &'a [u8], config: &Config) -> Peek<Option<Header<'a>>, Refusal> {
    if buf.len() >= V2_HEADER && !buf.starts_with(V1_SIGNATURE) {
        return Peek::Refuse(Refusal::NotFound);
    }
    let end = buf.windows(2).position(|pair| pair == b"\r\n");
    match end {
        // An end of line at once may still begin a v2 header.
        Some(0) => Peek::NeedMore(buf.len() + 1),
        Some(end) if end + 2 > V1_MAX => Peek::Refuse(Refusal::Broken(Version::V1)),
        Some(_) if config.disallow_v1 => Peek::Refuse(Refusal::Disallowed(Version::V1)),
        Some(end) => match v1_line(buf.get(..end).unwrap_or_default()) {
            Some(addresses) => {
                Peek::Done(Some(Header { version: Version::V1, len: end + 2, addresses, tlvs: Vec::new() }))
            }
            None => Peek::Refuse(Refusal::Broken(Version::V1)),
        },
        None if buf.len() > V1_MAX => Peek::Refuse(Refusal::NotFound),
        None => Peek::NeedMore(buf.len() + 1),
    }
}

type Addresses = Option<(SocketAddr, SocketAddr)>;

fn v1_line(line: &[u8]) -> Option<Addresses> {
    let line = std::str::from_utf8(line).ok()?.trim_ascii_end();
    let mut words = line.split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (from, to, from_port, to_port) = (words.next()?, words.next()?, words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let (from, to): (IpAddr, IpAddr) = match family {
        "TCP4" => (from.parse::<Ipv4Addr>().ok()?.into(), to.parse::<Ipv4Addr>().ok()?.into()),
        "TCP6" => (from.parse::<Ipv6Addr>().ok()?.into(), to.parse::<Ipv6Addr>().ok()?.into()),
        _ => return None,
    };
    let pair = (SocketAddr::new(from, from_port.parse().ok()?), SocketAddr::new(to, to_port.parse().ok()?));
    unicast(pair).then_some(Some(pair))
}

fn v2(buf: &[u8]) -> Peek<Option<Header<'_>>, Refusal> {
    let broken = Peek::Refuse(Refusal::Broken(Version::V2));
    let mut reader = Reader(buf.get(V2_SIGNATURE.len()..).unwrap_or_default());
    let (Some(version_command), Some(family), Some(len)) = (reader.u8(), reader.u8(), reader.u16()) else {
        return Peek::NeedMore(V2_HEADER);
    };
    let local = match (version_command >> 4, version_command & 0xf) {
        (2, 0) => true,
        (2, 1) => false,
        _ => return broken,
    };
    let addresses_len = match (family >> 4, family & 0xf) {
        _ if local => 0,
        (1, 1 | 2) => 12,
        (2, 1 | 2) => 36,
        _ => return broken,
    };
    if usize::from(len) < addresses_len {
        return broken;
    }
    let whole = V2_HEADER + usize::from(len);
    let Some(body) = reader.take(len.into()) else {
        return Peek::NeedMore(whole);
    };
    let done =
        |addresses, tlvs| Peek::Done(Some(Header { version: Version::V2, len: whole, addresses, tlvs }));
    if local {
        return done(None, Vec::new());
    }
    let mut body = Reader(body);
    match (v2_addresses(&mut body, family >> 4).filter(|pair| unicast(*pair)), v2_tlvs(body)) {
        (Some(addresses), Some(tlvs)) => done(Some(addresses), tlvs),
        (None, _) | (_, None) => broken,
    }
}

fn v2_addresses(body: &mut Reader<'_>, family: u8) -> Option<(SocketAddr, SocketAddr)> {
    let (from, to): (IpAddr, IpAddr) = match family {
        1 => (body.array::<4>()?.into(), body.array::<4>()?.into()),
        _ => (body.array::<16>()?.into(), body.array::<16>()?.into()),
    };
    Some((SocketAddr::new(from, body.u16()?), SocketAddr::new(to, body.u16()?)))
}

fn v2_tlvs(mut body: Reader<'_>) -> Option<Vec<(u8, &[u8])>> {
    let mut tlvs = Vec::new();
    while !body.is_empty() {
        tlvs.push((body.u8()?, body.vec16()?));
    }
    Some(tlvs)
}

fn unicast((from, to): (SocketAddr, SocketAddr)) -> bool {
    let one = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    };
    one(from.ip()) && one(to.ip())
}

#[cfg(test)]
mod tests;
