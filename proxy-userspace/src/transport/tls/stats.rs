//! The counters of a TLS context.

use std::sync::Arc;

use crate::telemetry::stats::{Stats, stats_block};
use crate::transport::Side;

stats_block! {
    /// `<prefix>.ssl.`: of a listener (`listener.<address>`) or a cluster (`cluster.<name>`), shared by all contexts
    /// under that prefix.
    pub struct SslStats in "ssl" {
        counter connection_error;
        counter handshake;
        counter session_reused;
        counter no_certificate;
        counter fail_verify_no_cert;
        counter fail_verify_error;
        counter fail_verify_san;
        counter fail_verify_cert_hash;
        counter ocsp_staple_failed;
        counter ocsp_staple_omitted;
        counter ocsp_staple_responses;
        counter ocsp_staple_requests;
    }
}

impl SslStats {
    /// `prefix` is that of the listener or the cluster, without a dot.
    pub fn of(stats: &Stats, prefix: &Arc<str>) -> Arc<Self> {
        stats.block(prefix.clone())
    }
}

stats_block! {
    /// `<prefix>.server_ssl_socket_factory.` and `<prefix>.client_ssl_socket_factory.`
    pub struct TlsFactoryStats {
        counter ssl_context_update_by_sds;
        counter upstream_context_secrets_not_ready;
        counter downstream_context_secrets_not_ready;
    }
}

impl TlsFactoryStats {
    pub fn of(stats: &Stats, prefix: &Arc<str>, side: Side) -> Arc<Self> {
        let factory = match side {
            Side::Downstream => "server_ssl_socket_factory",
            Side::Upstream => "client_ssl_socket_factory",
        };
        stats.block(format!("{prefix}.{factory}"))
    }
}
