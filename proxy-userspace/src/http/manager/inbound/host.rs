//! The host that is asked for: without its port, without the dot at its end.

use proxy_config::model::http::hcm::{HostNormalization, StripPort};

use crate::http::RequestHead;

pub(super) fn normalize(head: &mut RequestHead, settings: HostNormalization, listener_port: u16) {
    if settings.strip_trailing_dot {
        strip_dot(&mut head.authority);
    }
    match settings.strip_port {
        StripPort::Never => {}
        StripPort::Any => strip_port(&mut head.authority, None),
        StripPort::Matching => strip_port(&mut head.authority, Some(listener_port)),
    }
}

fn strip_port(host: &mut String, only: Option<u16>) {
    let Some((name, port)) = host.rsplit_once(':') else { return };
    // An address of IPv6 without a port.
    if port.contains(']') {
        return;
    }
    let Ok(port) = port.parse::<u16>() else { return };
    if only.is_none_or(|only| only == port) {
        host.truncate(name.len());
    }
}

/// At the very end, or in front of a port.
fn strip_dot(host: &mut String) {
    if let Some(dot) = host.rfind('.') {
        match host.as_bytes().get(dot + 1) {
            None | Some(b':') => {
                host.remove(dot);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    #[test]
    fn ports_and_dots() {
        for (host, port, dot, expected) in [
            ("a:80", StripPort::Any, false, "a"),
            ("a:81", StripPort::Matching, false, "a:81"),
            ("a:80", StripPort::Matching, false, "a"),
            ("a:80", StripPort::Never, false, "a:80"),
            ("a:x", StripPort::Any, false, "a:x"),
            ("a:", StripPort::Any, false, "a:"),
            ("[::1]", StripPort::Any, false, "[::1]"),
            ("[::1]:80", StripPort::Any, false, "[::1]"),
            ("a.b.", StripPort::Never, true, "a.b"),
            ("a.b.:80", StripPort::Never, true, "a.b:80"),
            ("a.b.:80", StripPort::Any, true, "a.b"),
            ("a.b", StripPort::Any, true, "a.b"),
            (".", StripPort::Any, true, ""),
        ] {
            let mut head = RequestHead::new(Method::GET, host, "/");
            normalize(&mut head, HostNormalization { strip_port: port, strip_trailing_dot: dot }, 80);
            assert_eq!(head.authority, expected, "{host}");
        }
    }
}
