//! Who the client is: the connection's peer, or who the proxies before this one say it is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use nix::ifaddrs::getifaddrs;
use proxy_config::model::http::Hcm;
use proxy_config::model::http::hcm::{ClientAddress, InternalAddresses, IpDetection};

use super::X_FORWARDED_FOR;
use crate::http::manager::outbound::append;
use crate::net::facts::Facts;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::http::manager) struct Detection {
    /// None: nobody has said it in a way that can be understood.
    pub(super) remote: Option<SocketAddr>,
    /// It may make the request an internal one.
    pub(super) trusted: bool,
}

/// Finds the client and appends the peer to `x-forwarded-for`. `own`: what stands there for a peer on this machine.
pub(super) fn detect(
    headers: &mut HeaderMap,
    facts: &Facts,
    model: &Hcm,
    own: IpAddr,
) -> Result<Detection, StatusCode> {
    let client = &model.client;
    let peer = facts.remote;
    let there = join(headers, X_FORWARDED_FOR);
    if client.use_remote_address {
        let trusted = !there;
        let said = match client.xff_num_trusted_hops.checked_sub(1) {
            Some(skip) if there => forwarded(headers, skip).remote,
            Some(_) | None => None,
        };
        if !client.skip_xff_append {
            append_peer(headers, peer.ip(), client, own);
        }
        return Ok(Detection { remote: Some(said.unwrap_or(peer)), trusted });
    }
    if client.detection.is_empty() {
        let none = Detection::default();
        return Ok(if there { forwarded(headers, client.xff_num_trusted_hops) } else { none });
    }
    for detection in &client.detection {
        let (found, skip_append) = extension(headers, peer.ip(), detection)?;
        if !skip_append {
            append_peer(headers, peer.ip(), client, own);
        }
        if found.remote.is_some() {
            return Ok(found);
        }
    }
    Ok(Detection::default())
}

/// What an extension finds, and whether the peer is left out of `x-forwarded-for`.
fn extension(
    headers: &HeaderMap,
    peer: IpAddr,
    detection: &IpDetection,
) -> Result<(Detection, bool), StatusCode> {
    match detection {
        IpDetection::Xff { num_trusted_hops, trusted: None, skip_append } => {
            Ok((forwarded(headers, *num_trusted_hops), *skip_append))
        }
        IpDetection::Xff { trusted: Some(trusted), skip_append, .. } => {
            let is_trusted = |ip: IpAddr| trusted.iter().any(|range| range.contains(ip));
            let found =
                if is_trusted(peer) { last_untrusted(headers, is_trusted) } else { Detection::default() };
            Ok((found, *skip_append))
        }
        IpDetection::CustomHeader { name, allow_trusted, reject_with } => {
            let found = headers.get(&**name).and_then(|value| parse(value.as_bytes()));
            match (found, reject_with) {
                (Some(remote), _) => Ok((Detection { remote: Some(remote), trusted: *allow_trusted }, true)),
                (None, Some(status)) => Err(StatusCode::from_u16(*status).unwrap_or(StatusCode::FORBIDDEN)),
                (None, None) => Ok((Detection::default(), true)),
            }
        }
    }
}

/// The last address but `skip`. It is trusted where it is the only one.
fn forwarded(headers: &HeaderMap, skip: u32) -> Detection {
    let mut values = headers.get_all(X_FORWARDED_FOR).iter();
    let Some(first) = values.next() else { return Detection::default() };
    let only = values.next().is_none() && !first.as_bytes().contains(&b',');
    let parts = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let parts: Vec<_> = parts.collect();
    let place = usize::try_from(skip).ok().and_then(|skip| parts.len().checked_sub(skip.checked_add(1)?));
    let remote = place.and_then(|place| parse(parts.get(place)?));
    Detection { remote, trusted: remote.is_some() && only && skip == 0 }
}

/// The last one that is no proxy of ours.
fn last_untrusted(headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Detection {
    let values: Vec<_> = headers.get_all(X_FORWARDED_FOR).iter().collect();
    let parts = values.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let parts: Vec<_> = parts.collect();
    let mut last = None;
    for part in parts.iter().rev() {
        let Some(address) = parse(part) else { return Detection::default() };
        last = Some(address);
        if !is_trusted(address.ip()) {
            break;
        }
    }
    Detection { remote: last, trusted: false }
}

fn parse(text: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(text).ok()?.trim_matches([' ', '\t']);
    Some(SocketAddr::new(text.parse().ok()?, 0))
}

fn append_peer(headers: &mut HeaderMap, peer: IpAddr, client: &ClientAddress, own: IpAddr) {
    let address = if peer.is_loopback() { own } else { peer };
    let address = match address {
        IpAddr::V4(v4) if client.represent_ipv4_as_mapped_ipv6 => v4.to_ipv6_mapped().into(),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    };
    append(headers, X_FORWARDED_FOR, &value(address), ",");
}

/// Several values become one, as Envoy's codecs have it. Whether there is any.
pub(super) fn join(headers: &mut HeaderMap, name: HeaderName) -> bool {
    let mut values = headers.get_all(&name).iter();
    let first = values.next();
    if first.is_none() || values.next().is_none() {
        return first.is_some();
    }
    let joined = crate::http::message::joined(headers, name.as_str());
    if let Some(Ok(joined)) = joined.map(|joined| HeaderValue::from_bytes(&joined)) {
        headers.insert(name, joined);
    }
    true
}

pub(super) fn value(address: IpAddr) -> HeaderValue {
    let text = address.to_string();
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

pub(super) fn is_internal(internal: &InternalAddresses, ip: IpAddr) -> bool {
    internal.ranges.iter().any(|range| range.contains(ip))
}

/// Of this machine: as Envoy, the first of its addresses of IPv4 that is not loopback.
pub(crate) fn own_address() -> IpAddr {
    let addresses = getifaddrs().into_iter().flatten();
    let of = |address: nix::ifaddrs::InterfaceAddress| {
        let ip = address.address?.as_sockaddr_in()?.ip();
        (!ip.is_loopback()).then_some(ip)
    };
    addresses.filter_map(of).next().unwrap_or(Ipv4Addr::LOCALHOST).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_address_but_those_of_proxies() {
        for (values, skip, remote, trusted) in [
            (&["1.2.3.4"][..], 0, Some("1.2.3.4"), true),
            (&["1.2.3.4"], 1, None, false),
            (&["1.2.3.4, 10.0.0.1"], 0, Some("10.0.0.1"), false),
            (&["1.2.3.4, 10.0.0.1"], 1, Some("1.2.3.4"), false),
            (&["1.2.3.4", "10.0.0.1"], 1, Some("1.2.3.4"), false),
            (&["::1"], 0, Some("::1"), true),
            (&["nonsense"], 0, None, false),
            (&["1.2.3.4:80"], 0, None, false),
            (&[], 0, None, false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(X_FORWARDED_FOR, value.parse().unwrap());
            }
            let remote = remote.map(|ip| SocketAddr::new(ip.parse().unwrap(), 0));
            assert_eq!(forwarded(&headers, skip), Detection { remote, trusted }, "{values:?} {skip}");
        }
    }
}
