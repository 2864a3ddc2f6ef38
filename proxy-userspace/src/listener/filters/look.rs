//! What the filters would find in a connection that is only asked about: the inspectors' own code on bytes that a
//! client would begin with. Nothing is counted.

use std::sync::Arc;

use super::{Failure, Filter, Filters, Peek, apply, holds, http_inspector, tls_inspector};
use crate::net::facts::Facts;

/// How a client begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum First {
    /// With bytes of no protocol that is looked for.
    #[default]
    Plain,
    /// With a request line of HTTP/1.1.
    Http,
    /// With a ClientHello.
    Tls { server_name: Option<Arc<str>>, alpn: Vec<Arc<str>> },
}

impl Filters {
    /// Fills in `facts` as [`Filters::run`] would. What a PROXY header would say is in them already, and limits of
    /// rates let it through.
    pub fn look(&self, first: &First, facts: &mut Facts) -> Result<(), Failure> {
        let bytes = first.bytes();
        for (disabled, filter) in &self.filters {
            if disabled.as_ref().is_some_and(|predicate| holds(predicate, facts)) {
                continue;
            }
            match filter {
                Filter::OriginalDst => facts.local_restored = true,
                Filter::OriginalSrc(_) | Filter::LocalRateLimit { .. } | Filter::ProxyProtocol(_) => {}
                Filter::TlsInspector { config, .. } => {
                    let max = config.max_client_hello_size as usize;
                    let hello = match tls_inspector::inspect(&bytes, max) {
                        Peek::NeedMore(_) => continue,
                        Peek::Done(inspected) => inspected.hello,
                        Peek::Refuse(_) => {
                            return Err(Failure::refused("tls_inspector", "client_hello_too_large"));
                        }
                    };
                    match hello {
                        Some(hello) => apply::hello(hello, facts),
                        None if config.close_connection_on_client_hello_parsing_errors => {
                            return Err(Failure::refused("tls_inspector", apply::NO_HELLO));
                        }
                        None => {}
                    }
                }
                Filter::HttpInspector(_) if facts.transport_protocol != "raw_buffer" => {}
                Filter::HttpInspector(_) => {
                    if let Peek::Done(Some(protocol)) = http_inspector::inspect(&bytes) {
                        apply::protocol(protocol, facts);
                    }
                }
            }
        }
        Ok(())
    }
}

impl First {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Plain => vec![0; 16],
            Self::Http => b"GET / HTTP/1.1\r\n".to_vec(),
            Self::Tls { server_name, alpn } => client_hello(server_name.as_deref(), alpn),
        }
    }
}

/// A record with a ClientHello of TLS 1.3.
fn client_hello(server_name: Option<&str>, alpn: &[Arc<str>]) -> Vec<u8> {
    let mut extensions = extension(43, &[2, 3, 4]);
    if let Some(name) = server_name {
        extensions
            .extend(extension(0, &with_length(&[&[0], with_length(name.as_bytes()).as_slice()].concat())));
    }
    if !alpn.is_empty() {
        let short = |name: &Arc<str>| Some([&[u8::try_from(name.len()).ok()?], name.as_bytes()].concat());
        let list: Vec<u8> = alpn.iter().filter_map(short).flatten().collect();
        extensions.extend(extension(16, &with_length(&list)));
    }
    // Version, random, no session, one cipher suite, no compression.
    let fixed = [&[3, 3], [7; 32].as_slice(), &[0, 0, 2, 0x13, 0x01, 1, 0]].concat();
    let body = [fixed, with_length(&extensions)].concat();
    let message = [&[1, 0], with_length(&body).as_slice()].concat();
    [&[22, 3, 1], with_length(&message).as_slice()].concat()
}

fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes(), with_length(data).as_slice()].concat()
}

/// Two bytes of length in front. Names are short: see the admin's limits.
fn with_length(data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), data].concat()
}

#[cfg(test)]
mod tests {
    use proxy_config::model::Listener;
    use proxy_config::model::listener_filter::{
        ListenerFilter, ListenerFilterConfig, Predicate, TlsInspector,
    };

    use super::*;
    use crate::telemetry::stats::Stats;

    fn filters(close: bool, disabled: Option<Predicate>) -> Filters {
        let tls = ListenerFilter::TlsInspector(TlsInspector {
            max_client_hello_size: 16_384,
            close_connection_on_client_hello_parsing_errors: close,
        });
        let config =
            |filter, filter_disabled| ListenerFilterConfig { name: "f".into(), filter_disabled, filter };
        let listener_filters = vec![config(tls, disabled), config(ListenerFilter::HttpInspector, None)];
        let listener = Listener { listener_filters, ..Listener::new("l", Vec::new()) };
        let stats = Stats::new();
        Filters::new(&listener, &stats, stats.block("listener.l"))
    }

    fn facts() -> Facts {
        Facts::new("192.0.2.1:1".parse().unwrap(), "10.0.0.1:80".parse().unwrap())
    }

    #[test]
    fn the_inspectors_see_what_a_client_would_send() {
        let tls = First::Tls {
            server_name: Some("A.example".into()),
            alpn: vec!["istio-peer-exchange".into(), "istio".into()],
        };
        let mut seen = facts();
        filters(true, None).look(&tls, &mut seen).unwrap();
        assert_eq!((seen.transport_protocol, seen.server_name.as_deref()), ("tls", Some("a.example")));
        assert_eq!(seen.application_protocols, ["istio-peer-exchange", "istio"].map(Arc::from));

        let mut bare = facts();
        filters(true, None).look(&First::Tls { server_name: None, alpn: Vec::new() }, &mut bare).unwrap();
        assert_eq!((bare.transport_protocol, bare.server_name), ("tls", None));

        let mut http = facts();
        filters(false, None).look(&First::Http, &mut http).unwrap();
        assert_eq!(
            (http.transport_protocol, &http.application_protocols[..]),
            ("raw_buffer", &["http/1.1".into()][..])
        );

        let mut plain = facts();
        filters(false, None).look(&First::Plain, &mut plain).unwrap();
        assert_eq!((plain.transport_protocol, plain.application_protocols.len()), ("raw_buffer", 0));
        assert!(filters(true, None).look(&First::Plain, &mut facts()).is_err());
        let mut disabled = facts();
        filters(true, Some(Predicate::DestinationPort(80, 81))).look(&tls, &mut disabled).unwrap();
        assert_eq!(disabled.transport_protocol, "raw_buffer");
    }
}
