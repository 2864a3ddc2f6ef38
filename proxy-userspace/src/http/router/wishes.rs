//! What a request asks of its connection beyond a host: names for TLS, a source, a connection of its own.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cluster::{Cluster, Host, Source, SourceAddress};
use crate::http::pool::{More, Settings, SourceKey};
use crate::http::{RequestHead, Stream, UpstreamAlpn};
use crate::transport::Names;

/// `auto_sni` and `auto_san_validation`: of the host as the router finds it, before the route rewrites it.
pub(super) fn names(stream: &Stream, settings: &Settings) -> Option<Names> {
    let alpn = stream.extensions.get::<UpstreamAlpn>().map(|alpn| alpn.0.clone());
    if !settings.auto_sni && !settings.auto_san_validation {
        return alpn.map(|alpn| Names { alpn: Some(alpn), ..Names::default() });
    }
    let name = host_name(stream.request(), settings.override_auto_sni_header.as_deref());
    let sni = settings.auto_sni.then_some(&name).filter(|name| name.parse::<IpAddr>().is_err());
    Some(Names {
        sni: sni.filter(|name| !name.is_empty()).map(|name| Arc::from(&**name)),
        san: settings.auto_san_validation.then(|| name.as_str().into()),
        alpn,
    })
}

/// Without its port, and an IPv6 address without brackets.
fn host_name(head: &RequestHead, header: Option<&str>) -> String {
    let given = header.and_then(|name| head.header(name)).filter(|value| !value.is_empty());
    let text = match &given {
        Some(value) => String::from_utf8_lossy(value),
        None => head.authority.as_str().into(),
    };
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default().to_owned();
    }
    match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host.to_owned(),
        Some(_) | None => text.into_owned(),
    }
}

/// For a connection to that host.
pub(super) fn of(
    stream: &Stream,
    cluster: &Cluster,
    host: &Host,
    names: &Option<Names>,
) -> (Option<Source>, Option<More>) {
    let facts = &stream.entry.facts;
    let transport = cluster.transport(host);
    let alone = cluster.pools().settings().per_connection
        || transport.is_some_and(|transport| transport.is_of_one_client());
    let names = names.clone().filter(|_| transport.is_some());
    let original = facts.extra.as_ref().and_then(|extra| extra.original_src);
    if !alone && names.is_none() && original.is_none() {
        return (None, None);
    }
    let source = original.map(|original| {
        let mut address = facts.remote;
        if !original.bind_port {
            address.set_port(0);
        }
        let mark = Some(original.mark).filter(|mark| *mark != 0);
        SourceAddress { address, freebind: false, transparent: true, mark }
    });
    let more = More {
        names: names.unwrap_or_default(),
        connection: alone.then_some(stream.entry.origin.connection_id),
        source: source.as_ref().map(|source| SourceKey { address: source.address, mark: source.mark }),
    };
    (source.map(Source::Address), Some(more))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn host_names() {
        for (authority, expected) in [
            ("a.test", "a.test"),
            ("a.test:8080", "a.test"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("", ""),
        ] {
            let head = RequestHead::new(Method::GET, authority, "/");
            assert_eq!(host_name(&head, Some("x-not-there")), expected);
        }
        let mut head = RequestHead::new(Method::GET, "a.test", "/");
        head.headers.insert("x-sni", "b.test:1".parse().unwrap());
        assert_eq!(host_name(&head, Some("x-sni")), "b.test");
    }
}
