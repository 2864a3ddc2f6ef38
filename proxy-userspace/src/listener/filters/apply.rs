//! What each filter's findings do to a connection's facts and to the stats.

use std::sync::Arc;

use proxy_config::model::listener_filter::{PassThroughTlvs, ProxyProtocol as Config};
use proxy_config::model::metadata::Value;

use super::Failure;
use super::http_inspector::Protocol;
use super::proxy_protocol::{Header, Refusal, Version};
use super::stats::{HttpInspectorStats, ProxyProtocolStats, TlsInspectorStats};
use super::tls_inspector::{self, Hello, Inspected};
use crate::net::facts::Facts;
use crate::telemetry::stats::{Counter, Stats};

/// Where TLVs go whose rule names no namespace.
const NAMESPACE: &str = "envoy.filters.listener.proxy_protocol";

/// `Err` where a connection that is not TLS is to be closed.
pub(super) fn tls(
    inspected: Inspected,
    close_if_none: bool,
    stats: &TlsInspectorStats,
    facts: &mut Facts,
) -> Result<(), Failure> {
    stats.bytes_processed.record(inspected.bytes as u64);
    let Some(found) = inspected.hello else {
        stats.tls_not_found.inc();
        return if close_if_none { Err(Failure::refused("tls_inspector", NO_HELLO)) } else { Ok(()) };
    };
    stats.tls_found.inc();
    either(found.server_name.is_some(), &stats.sni_found, &stats.sni_not_found);
    either(!found.alpn.is_empty(), &stats.alpn_found, &stats.alpn_not_found);
    hello(found, facts);
    Ok(())
}

pub(super) const NO_HELLO: &str = "client_hello_not_detected";

pub(super) fn hello(Hello { server_name, alpn }: Hello, facts: &mut Facts) {
    facts.transport_protocol = "tls";
    facts.server_name = server_name;
    if !alpn.is_empty() {
        facts.application_protocols = alpn;
    }
}

pub(super) fn tls_refusal(refusal: tls_inspector::Refusal, max: usize, stats: &TlsInspectorStats) -> Failure {
    let why = match refusal {
        tls_inspector::Refusal::TooLarge => {
            stats.client_hello_too_large.inc();
            stats.bytes_processed.record(max as u64);
            "client_hello_too_large"
        }
        tls_inspector::Refusal::Closed => "close_notify",
    };
    Failure::refused("tls_inspector", why)
}

pub(super) fn http(found: Option<Protocol>, stats: &HttpInspectorStats, facts: &mut Facts) {
    let counter = match found {
        Some(Protocol::Http10) => &stats.http10_found,
        Some(Protocol::Http11) => &stats.http11_found,
        Some(Protocol::H2c) => &stats.http2_found,
        None => &stats.http_not_found,
    };
    counter.inc();
    if let Some(found) = found {
        protocol(found, facts);
    }
}

pub(super) fn protocol(found: Protocol, facts: &mut Facts) {
    facts.application_protocols = vec![Arc::from(found.name())];
}

/// The stats of one proxy_protocol filter.
pub(super) struct ProxyProtocol {
    pub(super) config: Config,
    stats: Arc<ProxyProtocolStats>,
    /// The one of old, at the root.
    errors: Arc<Counter>,
}

impl ProxyProtocol {
    pub(super) fn new(config: &Config, stats: &Stats) -> Self {
        let prefix = match &*config.stat_prefix {
            "" => "proxy_proto".to_owned(),
            prefix => format!("proxy_proto.{}", prefix.trim_end_matches('.')),
        };
        let errors = stats.counter("downstream_cx_proxy_proto_error");
        Self { config: config.clone(), stats: stats.block(prefix), errors }
    }

    pub(super) fn found(&self, header: Option<Header<'_>>, facts: &mut Facts) {
        let Some(header) = header else {
            self.stats.not_found_allowed.inc();
            return;
        };
        match header.version {
            Version::V1 => self.stats.v1_found.inc(),
            Version::V2 => self.stats.v2_found.inc(),
        }
        if let Some((remote, local)) = header.addresses {
            facts.remote = remote;
            if facts.local != local {
                facts.local = local;
                facts.local_restored = true;
            }
        }
        for (kind, value) in header.tlvs {
            self.keep(kind, value, facts);
        }
    }

    fn keep(&self, kind: u8, value: &[u8], facts: &mut Facts) {
        // Of two rules for a type, the last holds; of two TLVs of a type, the first.
        if let Some(rule) = self.config.rules.iter().rfind(|rule| rule.tlv_type == kind) {
            let namespace =
                Some(&*rule.metadata_namespace).filter(|name| !name.is_empty()).unwrap_or(NAMESPACE);
            let metadata = &mut facts.extra_mut().dynamic_metadata.0;
            let fields = metadata.get_or_insert_with(namespace, Default::default);
            fields.get_or_insert_with(&rule.key, || Value::String(sanitized(value)));
        }
        let passed = match &self.config.pass_through_tlvs {
            PassThroughTlvs::None => false,
            PassThroughTlvs::All => true,
            PassThroughTlvs::Include(kinds) => kinds.contains(&kind),
        };
        if passed {
            facts.extra_mut().proxy_tlvs.push((kind, value.to_vec()));
        }
    }

    pub(super) fn refused(&self, refusal: Refusal) -> Failure {
        let stats = &self.stats;
        let (counters, why): (&[&Counter], _) = match refusal {
            Refusal::NotFound => (&[&stats.not_found_disallowed, &self.errors], "not_found"),
            Refusal::Broken(Version::V1) => (&[&stats.v1_error, &self.errors], "v1_error"),
            Refusal::Broken(Version::V2) => (&[&stats.v2_error, &self.errors], "v2_error"),
            Refusal::Disallowed(Version::V1) => (&[&stats.v1_found, &stats.v1_disallowed], "v1_disallowed"),
            Refusal::Disallowed(Version::V2) => (&[&stats.v2_found, &stats.v2_disallowed], "v2_disallowed"),
        };
        counters.iter().for_each(|counter| counter.inc());
        Failure::refused("proxy_protocol", why)
    }
}

/// Envoy's way with bytes that are no text: each becomes an exclamation mark.
fn sanitized(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    text
}

fn either(which: bool, yes: &Counter, no: &Counter) {
    if which { yes.inc() } else { no.inc() }
}
