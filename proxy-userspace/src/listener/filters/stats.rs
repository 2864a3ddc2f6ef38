//! The stats of listener filters. They have no listener in their names: listeners share them, as in Envoy.

use crate::telemetry::stats::stats_block;

stats_block! {
    /// `tls_inspector.`
    pub struct TlsInspectorStats {
        counter client_hello_too_large;
        counter tls_found;
        counter tls_not_found;
        counter alpn_found;
        counter alpn_not_found;
        counter sni_found;
        counter sni_not_found;
        histogram bytes_processed;
    }
}

stats_block! {
    /// `http_inspector.`
    pub struct HttpInspectorStats {
        counter read_error;
        counter http10_found;
        counter http11_found;
        counter http2_found;
        counter http_not_found;
    }
}

stats_block! {
    /// `proxy_proto.[<stat_prefix>.]`
    pub struct ProxyProtocolStats {
        counter not_found_allowed;
        counter not_found_disallowed;
        counter v1_found = "versions.v1.found";
        counter v1_disallowed = "versions.v1.disallowed";
        counter v1_error = "versions.v1.error";
        counter v2_found = "versions.v2.found";
        counter v2_disallowed = "versions.v2.disallowed";
        counter v2_error = "versions.v2.error";
    }
}

stats_block! {
    /// `listener_local_ratelimit.<stat_prefix>.`
    pub struct LocalRateLimitStats {
        counter rate_limited;
    }
}
