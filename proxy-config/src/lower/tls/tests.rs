use crate::diagnostic::Diagnostic;
use crate::dump;
use crate::load::{self, Loaded, Options};
use crate::model::TransportSocket;
use crate::model::tls::{SecretKind, TlsVersion, ValidationSource};

const KEY: &str = "THE-KEY-THAT-NOBODY-MAY-SEE";

fn bootstrap(secrets: &str, upstream: &str, downstream: &str) -> String {
    let typed = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    format!(
        "static_resources:
  secrets: [ {secrets} ]
  clusters:
  - name: c
    load_assignment: {{ cluster_name: c }}
    transport_socket: {{ name: tls, typed_config: {{ \"@type\": {typed}.UpstreamTlsContext, {upstream} }} }}
  listeners:
  - name: l
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters: []
      transport_socket: {{ name: tls, typed_config: {{ \"@type\": {typed}.DownstreamTlsContext, {downstream} }} }}
"
    )
}

fn load(text: &str) -> Result<Loaded, Vec<Diagnostic>> {
    load::bootstrap(text, None, Options::default())
}

const CERTIFICATE: &str =
    "tls_certificates: [ { certificate_chain: { filename: /c }, private_key: { filename: /k } } ]";

fn served() -> String {
    format!("common_tls_context: {{ {CERTIFICATE} }}")
}

#[test]
fn static_secrets_are_loaded_and_may_be_named() {
    let secrets = "{ name: ca, validation_context: { trusted_ca: { filename: /ca } } }, \
        { name: ca, tls_certificate: { certificate_chain: { filename: /c }, private_key: { filename: /k } } }";
    let upstream = "common_tls_context: { validation_context_sds_secret_config: { name: ca } }";
    let loaded = load(&bootstrap(secrets, upstream, &served())).unwrap().bootstrap;
    let kinds: Vec<_> = loaded.secrets.iter().map(|secret| &secret.model.kind).collect();
    assert!(matches!(kinds.as_slice(), [SecretKind::Validation(_), SecretKind::Certificate(_)]), "{kinds:?}");
    let shown =
        dump::json("envoy.extensions.transport_sockets.tls.v3.Secret", &loaded.secrets[0].raw.bytes());
    assert_eq!(shown.unwrap()["validation_context"]["trusted_ca"]["filename"], "/ca");
    let TransportSocket::UpstreamTls(context) = &loaded.clusters[0].model.transport_socket else { panic!() };
    let ValidationSource::Secret(secret) = &context.common.validation else { panic!("{context:?}") };
    assert_eq!((&*secret.name, &secret.source), ("ca", &None));
}

#[test]
fn a_name_that_is_no_static_secret_is_refused_with_its_place() {
    let secrets = "{ name: ca, session_ticket_keys: { keys: [ { filename: /k } ] } }";
    let upstream = "common_tls_context: { validation_context_sds_secret_config: { name: ca } }";
    let found = load(&bootstrap(secrets, upstream, &served())).unwrap_err();
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        only.to_string(),
        "line 6:205 at static_resources.clusters[0].transport_socket.typed_config<UpstreamTlsContext>.common_tls_context.\
         validation_context_sds_secret_config.name: \"ca\" is no validation_context of static_resources.secrets, \
         and there is no sds_config"
    );
}

#[test]
fn a_secret_that_is_refused_is_the_only_reason() {
    let upstream = "common_tls_context: { validation_context_sds_secret_config: { name: ca } }";
    let secrets = "{ name: ca, validation_context: { max_verify_depth: 101 } }";
    let found = load(&bootstrap(secrets, upstream, &served())).unwrap_err();
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert!(only.to_string().contains(" at static_resources.secrets[0].validation_context.max_verify_depth"));
}

#[test]
fn a_secret_of_the_same_kind_and_name_is_refused() {
    let secret = "{ name: ca, validation_context: {} }";
    let found = load(&bootstrap(&format!("{secret}, {secret}"), "sni: a", &served())).unwrap_err();
    assert!(found[0].to_string().contains("\"ca\" is given twice"), "{found:?}");
}

#[test]
fn a_client_stops_at_1_2_and_a_server_at_1_3_by_default() {
    let loaded = load(&bootstrap("", "sni: a", &served())).unwrap().bootstrap;
    let TransportSocket::UpstreamTls(client) = &loaded.clusters[0].model.transport_socket else { panic!() };
    assert_eq!(
        (client.common.params.minimum, client.common.params.maximum),
        (TlsVersion::V1_2, TlsVersion::V1_2)
    );
    let chain = &loaded.listeners[0].model.filter_chains[0];
    let TransportSocket::DownstreamTls(server) = &chain.transport_socket else { panic!() };
    assert_eq!(
        (server.common.params.minimum, server.common.params.maximum),
        (TlsVersion::V1_2, TlsVersion::V1_3)
    );
}

/// In places where it belongs, and in some where somebody may have put it.
fn certificates_with_the_key() -> Vec<String> {
    let pem = format!("{{ inline_string: \"{KEY}\" }}");
    vec![
        format!("{{ certificate_chain: {{ filename: /c }}, private_key: {pem}, password: {pem} }}"),
        format!("{{ pkcs12: {pem}, password: {pem} }}"),
        format!("{{ pkcs12: {pem}, private_key: {pem} }}"),
        format!("{{ certificate_chain: {{ filename: /c }}, private_key: \"{KEY}\" }}"),
        format!("{{ certificate_chain: {{ filename: /c }}, private_key: {KEY} }}"),
        format!("{{ certificate_chain: {{ filename: /c }}, private_key: [ {KEY} ] }}"),
        format!("{{ certificate_chain: {{ filename: /c }}, private_key: {{ inline_bytes: \"{KEY}\" }} }}"),
        format!("{{ certificate_chain: {{ filename: /c }}, private_key: {{ inline_string: [ {KEY} ] }} }}"),
        format!("{{ certificate_chain: {{ filename: /c }}, private_key: {pem}, ocsp_staple: {{}} }}"),
    ]
}

#[test]
fn a_key_is_in_no_model_and_no_message_and_no_dump() {
    let mut accepted = 0;
    let tickets = format!("session_ticket_keys: {{ keys: [ {{ inline_string: \"{}\" }} ] }}", KEY.repeat(3));
    let short = tickets.replace(&KEY.repeat(3), KEY);
    let long =
        tickets.replace(&KEY.repeat(3), &format!("{}{}", KEY.repeat(2), "x".repeat(80 - 2 * KEY.len())));
    let mut texts = vec![
        bootstrap("", "sni: a", &format!("{}, {short}", served())),
        bootstrap("", "sni: a", &format!("{}, {long}", served())),
        bootstrap(&format!("{{ name: s, {long} }}"), "sni: a", &served()),
        bootstrap(
            &format!("{{ name: s, generic_secret: {{ secret: {{ inline_string: {KEY} }} }} }}"),
            "",
            &served(),
        ),
    ];
    for certificate in certificates_with_the_key() {
        let context = format!("common_tls_context: {{ tls_certificates: [ {certificate} ] }}");
        texts.push(bootstrap(&format!("{{ name: s, tls_certificate: {certificate} }}"), &context, &context));
    }
    for text in texts {
        match load(&text) {
            Ok(loaded) => {
                accepted += 1;
                let Loaded { bootstrap, warnings, .. } = &loaded;
                let listeners = bootstrap.listeners.iter().map(|l| (LISTENER, &l.raw));
                let clusters = bootstrap.clusters.iter().map(|c| (CLUSTER, &c.raw));
                let secrets = bootstrap.secrets.iter().map(|s| (SECRET, &s.raw));
                for (name, raw) in listeners.chain(clusters).chain(secrets) {
                    let shown = dump::json(name, &raw.bytes()).unwrap().to_string();
                    assert!(!shown.contains(KEY), "{shown}");
                }
                let shown = (
                    bootstrap.secrets.iter().map(|s| &s.model).collect::<Vec<_>>(),
                    bootstrap.listeners.iter().map(|l| &l.model).collect::<Vec<_>>(),
                    bootstrap.clusters.iter().map(|c| &c.model).collect::<Vec<_>>(),
                );
                assert!(!format!("{shown:?}{warnings:?}").contains(KEY), "{shown:?}");
            }
            Err(found) => assert!(!format!("{found:?}").contains(KEY), "{found:?}"),
        }
    }
    assert_eq!(accepted, 6);
}

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const SECRET: &str = "envoy.extensions.transport_sockets.tls.v3.Secret";
