//! What of a configuration shows only where its certificates and keys are read: for `shunt check` and
//! `--mode validate`. Nothing is started, and no socket is opened.

use std::sync::Arc;

use proxy_config::model::{Bootstrap, TransportSocket};

use crate::secret::Secrets;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::transport::{self, Env, Side};

/// Everything that is wrong, each with its place. Secrets of SDS are not asked for: they may come later.
pub fn transports(bootstrap: &Bootstrap) -> Vec<String> {
    let secrets = match Secrets::fixed(&bootstrap.secrets) {
        Ok(secrets) => Arc::new(secrets),
        Err(error) => return vec![error.to_string()],
    };
    let stats = Arc::new(Stats::new());
    let env = Env::new(stats.clone(), Tasks::new(&stats), secrets);
    let mut problems = Vec::new();
    let mut build = |model: &TransportSocket, side, place: String| {
        if let Err(error) = transport::build(model, side, &Arc::from("check"), &env) {
            problems.push(format!("{place}: {error}"));
        }
    };
    for listener in bootstrap.listeners.iter().map(|resource| &resource.model) {
        let chains = listener.filter_chains.iter().enumerate();
        let chains = chains.map(|(at, chain)| (format!("filter_chains[{at}]"), chain));
        let default = listener.default_filter_chain.iter();
        for (at, chain) in chains.chain(default.map(|chain| ("default_filter_chain".to_owned(), chain))) {
            let place = format!("listener {}: {at}.transport_socket", listener.name);
            build(&chain.transport_socket, Side::Downstream, place);
        }
    }
    for cluster in bootstrap.clusters.iter().map(|resource| &resource.model) {
        let own = format!("cluster {}: transport_socket", cluster.name);
        build(&cluster.transport_socket, Side::Upstream, own);
        for one in &cluster.transport_socket_matches {
            let place = format!("cluster {}: transport_socket_matches \"{}\"", cluster.name, one.name);
            build(&one.transport_socket, Side::Upstream, place);
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use proxy_config::load::{Options, bootstrap};

    #[test]
    fn every_file_that_cannot_be_used_is_named() {
        let tls = |direction: &str, chain: &str, key: &str| {
            format!(
                r#"{{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{direction}TlsContext, common_tls_context: {{tls_certificates: [{{certificate_chain: {{{chain}}}, private_key: {{{key}}}}}]}}}}}}"#
            )
        };
        let text = format!(
            r#"
static_resources:
  listeners:
  - name: front
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    filter_chains:
    - filters: [{{name: echo, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}}}]
      transport_socket: {}
  clusters:
  - name: back
    transport_socket: {}
"#,
            tls("Downstream", "filename: /nowhere/a.pem", "inline_string: x"),
            tls("Upstream", "inline_string: no certificate", "inline_string: no key"),
        );
        let loaded = bootstrap(&text, None, Options::default()).unwrap();
        let problems = super::transports(&loaded.bootstrap);
        let [front, back] = problems.as_slice() else { panic!("{problems:?}") };
        assert!(front.starts_with("listener front: filter_chains[0].transport_socket: "), "{front}");
        assert!(front.contains("/nowhere/a.pem"), "{front}");
        assert!(back.starts_with("cluster back: transport_socket: "), "{back}");
        assert!(!back.contains("no key"), "a key is never shown: {back}");
    }
}
