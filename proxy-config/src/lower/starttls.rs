//! Filters that turn a `starttls` connection to TLS, and where such a filter may be.

use super::Cx;
use super::registry::registry;
use crate::model::TransportSocket;
use crate::model::network_filter::{
    DownstreamSwitch, NetworkFilter, NetworkFilterConfig, PostgresProxy, SmtpStarttls,
};
use crate::proto::pb::envoy::extensions::filters::network::postgres_proxy::v3alpha as postgres;
use crate::proto::pb::shunt::filters::network::smtp_starttls::v1 as smtp;

registry! { postgres::PostgresProxy, smtp::SmtpStarttls }

lower! { "envoy.extensions.filters.network.postgres_proxy.v3alpha.PostgresProxy"
    postgres::PostgresProxy => PostgresProxy, cx;
    read { stat_prefix, terminate_ssl, upstream_ssl, downstream_ssl }
    warn { enable_sql_parsing: "messages are not read once a session has begun: no statement is parsed" }
    {
        use postgres::postgres_proxy::SslMode;
        let stat_prefix = cx.name("stat_prefix", stat_prefix);
        let downstream_ssl = cx.variant("downstream_ssl", downstream_ssl).map(|mode| match mode {
            SslMode::Disable if terminate_ssl => DownstreamSwitch::Allow,
            SslMode::Disable => DownstreamSwitch::Disable,
            SslMode::Allow => DownstreamSwitch::Allow,
            SslMode::Require => DownstreamSwitch::Require,
        });
        let upstream_ssl = match cx.variant("upstream_ssl", upstream_ssl) {
            Some(SslMode::Disable) => Some(false),
            Some(SslMode::Require) => Some(true),
            Some(SslMode::Allow) => upstream_allow(cx, "upstream_ssl"),
            None => None,
        };
        Some(PostgresProxy {
            stat_prefix: stat_prefix?,
            downstream_ssl: downstream_ssl?,
            upstream_ssl: upstream_ssl?,
        })
    }
}

lower! { "shunt.filters.network.smtp_starttls.v1.SmtpStarttls" smtp::SmtpStarttls => SmtpStarttls, cx;
    read { stat_prefix, downstream_starttls, upstream_starttls }
    {
        use smtp::smtp_starttls::Mode;
        let stat_prefix = cx.name("stat_prefix", stat_prefix);
        let downstream_starttls = cx.variant("downstream_starttls", downstream_starttls).map(|mode| match mode {
            Mode::Disable => DownstreamSwitch::Disable,
            Mode::Allow => DownstreamSwitch::Allow,
            Mode::Require => DownstreamSwitch::Require,
        });
        let upstream_starttls = match cx.variant("upstream_starttls", upstream_starttls) {
            Some(Mode::Disable) => Some(false),
            Some(Mode::Require) => Some(true),
            Some(Mode::Allow) => upstream_allow(cx, "upstream_starttls"),
            None => None,
        };
        Some(SmtpStarttls {
            stat_prefix: stat_prefix?,
            downstream_starttls: downstream_starttls?,
            upstream_starttls: upstream_starttls?,
        })
    }
}

/// Envoy takes it for `DISABLE`, which somebody who wants TLS does not expect.
fn upstream_allow(cx: &mut Cx, field: &'static str) -> Option<bool> {
    cx.reject(field, "ALLOW is for downstream connections: DISABLE or REQUIRE");
    None
}

/// That such a filter is before tcp_proxy, which connects it, and has a connection that it can turn to TLS.
/// Whether the cluster's can is known when it is connected: without, the connection is closed.
pub(super) fn check(cx: &mut Cx, filters: &[NetworkFilterConfig], socket: Option<&TransportSocket>) {
    for (index, filter) in filters.iter().enumerate() {
        let Some(switch) = filter.filter.downstream_switch() else { continue };
        let next = filters.get(index + 1).map(|next| &next.filter);
        let place = ("filters", index);
        if !matches!(next, Some(NetworkFilter::TcpProxy(_))) {
            reject(cx, place, &filter.name, "must be directly before tcp_proxy");
        }
        let can_switch = socket.is_none_or(TransportSocket::is_starttls);
        if switch != DownstreamSwitch::Disable && !can_switch {
            reject(cx, place, &filter.name, "turns to TLS: transport_socket must be of type starttls");
        }
    }
}

fn reject(cx: &mut Cx, (field, index): (&'static str, usize), name: &str, why: &str) {
    cx.field(field, |cx| cx.index(index, |cx| cx.reject_here(format!("\"{name}\" {why}"))));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lower::Lower as _;

    fn filter(downstream_ssl: DownstreamSwitch) -> NetworkFilterConfig {
        let filter = PostgresProxy { stat_prefix: "p".into(), downstream_ssl, upstream_ssl: false };
        NetworkFilterConfig { name: "pg".into(), filter: NetworkFilter::PostgresProxy(filter) }
    }

    fn echo() -> NetworkFilterConfig {
        NetworkFilterConfig { name: Arc::from("echo"), filter: NetworkFilter::Echo }
    }

    fn said(filters: &[NetworkFilterConfig]) -> Vec<String> {
        let mut cx = Cx::default();
        check(&mut cx, filters, Some(&TransportSocket::RawBuffer));
        cx.diagnostics.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_filter_that_turns_to_tls_needs_a_socket_that_can_and_tcp_proxy_behind_it() {
        let place = "at filters[0]: \"pg\" must be directly before tcp_proxy";
        let socket = "at filters[0]: \"pg\" turns to TLS: transport_socket must be of type starttls";
        assert_eq!(said(&[filter(DownstreamSwitch::Disable), echo()]), [place]);
        assert_eq!(said(&[filter(DownstreamSwitch::Require), echo()]), [place, socket]);
        assert_eq!(said(&[filter(DownstreamSwitch::Allow), echo()]), [place, socket]);
        assert!(said(&[echo()]).is_empty());
    }

    #[test]
    fn terminate_ssl_is_allow_and_require_is_more() {
        use postgres::postgres_proxy::SslMode;
        let lowered = |terminate_ssl, mode: SslMode| {
            let message = postgres::PostgresProxy {
                stat_prefix: "p".to_owned(),
                terminate_ssl,
                downstream_ssl: mode.into(),
                ..postgres::PostgresProxy::default()
            };
            message.lower(&mut Cx::default()).unwrap().downstream_ssl
        };
        assert_eq!(lowered(false, SslMode::Disable), DownstreamSwitch::Disable);
        assert_eq!(lowered(true, SslMode::Disable), DownstreamSwitch::Allow);
        assert_eq!(lowered(false, SslMode::Allow), DownstreamSwitch::Allow);
        assert_eq!(lowered(true, SslMode::Require), DownstreamSwitch::Require);
    }

    #[test]
    fn allow_is_no_way_to_speak_to_a_server() {
        use smtp::smtp_starttls::Mode;
        let mut cx = Cx::default();
        let message = smtp::SmtpStarttls {
            stat_prefix: "s".to_owned(),
            upstream_starttls: Mode::Allow.into(),
            ..smtp::SmtpStarttls::default()
        };
        assert!(message.lower(&mut cx).is_none());
        assert_eq!(
            cx.diagnostics[0].to_string(),
            "at upstream_starttls: ALLOW is for downstream connections: DISABLE or REQUIRE"
        );
    }
}
