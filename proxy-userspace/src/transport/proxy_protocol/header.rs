//! The bytes of PROXY headers; `listener::filters::proxy_protocol` reads them.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::listener::filters::proxy_protocol::{V1_SIGNATURE, V2_SIGNATURE};

/// Type and value.
pub(super) type Tlv<'a> = (u8, &'a [u8]);

/// Client and destination; `None` where there are none to name.
pub(super) type Addresses = Option<(SocketAddr, SocketAddr)>;

/// Version 2 with the command PROXY, and with LOCAL.
const ON_BEHALF: u8 = 0x21;
const LOCAL: u8 = 0x20;
/// The family's bits; the transport is always a stream.
const UNSPEC: u8 = 0x00;
const INET_STREAM: u8 = 0x11;
const INET6_STREAM: u8 = 0x21;
/// Type and length.
const TLV_HEAD: usize = 3;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct V2 {
    pub(super) bytes: Vec<u8>,
    /// TLVs for which there was no room.
    pub(super) left_out: usize,
}

pub(super) fn v1(addresses: Addresses) -> Vec<u8> {
    let mut bytes = V1_SIGNATURE.to_vec();
    // Writing to a Vec cannot fail.
    let _ = match addresses.map(one_family) {
        Some((from, to)) => {
            let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            write!(bytes, "{family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
        }
        None => write!(bytes, "UNKNOWN\r\n"),
    };
    bytes
}

/// A TLV that would take the header past the 65535 bytes that its length can say is left out, as in Envoy; a smaller
/// one behind it may still fit.
pub(super) fn v2<'a>(addresses: Addresses, tlvs: impl Iterator<Item = Tlv<'a>>) -> V2 {
    let mut body = Vec::new();
    let family = match addresses.map(one_family) {
        Some((from, to)) => {
            push_ip(&mut body, from.ip());
            push_ip(&mut body, to.ip());
            body.extend(from.port().to_be_bytes());
            body.extend(to.port().to_be_bytes());
            if from.is_ipv4() { INET_STREAM } else { INET6_STREAM }
        }
        None => UNSPEC,
    };
    let mut left_out = 0;
    for (kind, value) in tlvs {
        match u16::try_from(value.len()) {
            Ok(len) if body.len() + TLV_HEAD + value.len() <= usize::from(u16::MAX) => {
                body.push(kind);
                body.extend(len.to_be_bytes());
                body.extend_from_slice(value);
            }
            Ok(_) | Err(_) => left_out += 1,
        }
    }
    V2 { bytes: framed(ON_BEHALF, family, &body), left_out }
}

/// V2's header of a connection that the proxy makes for itself.
pub(super) fn local() -> Vec<u8> {
    framed(LOCAL, UNSPEC, &[])
}

fn framed(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    // No more was let in.
    let len = u16::try_from(body.len()).unwrap_or(u16::MAX);
    [V2_SIGNATURE, &[version_command, family][..], &len.to_be_bytes(), body].concat()
}

fn push_ip(bytes: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => bytes.extend(ip.octets()),
        IpAddr::V6(ip) => bytes.extend(ip.octets()),
    }
}

/// A header has one family for both: an IPv4 address beside an IPv6 one is written as that, as HAProxy does. (Envoy
/// throws an exception.)
fn one_family((from, to): (SocketAddr, SocketAddr)) -> (SocketAddr, SocketAddr) {
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    if from.is_ipv4() == to.is_ipv4() { (from, to) } else { (mapped(from), mapped(to)) }
}
