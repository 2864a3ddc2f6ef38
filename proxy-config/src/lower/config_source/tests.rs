//! Each case was shown to the real Envoy 1.40: `envoy` says what it did there, and `ours` exactly what is said here.

use serde_json::Value;

use super::*;
use crate::diagnostic::{Diagnostic, Severity};
use crate::load::{self, Identity, Loaded, Options};
use crate::model::cluster::Discovery;
use crate::model::grpc::{Backoff, GoogleChannel, GrpcTarget};
use crate::model::tls::DataSource;

/// `name`, `bootstrap` (proto JSON), `envoy` (`accepts`, `refuses` or `crashes`), `ours`, and `differs` where the two
/// disagree.
const CASES: &str = include_str!("cases.json");

fn cases() -> Vec<Value> {
    serde_json::from_str(CASES).unwrap()
}

fn load(bootstrap: &Value) -> Result<Loaded, Vec<Diagnostic>> {
    load::bootstrap(&bootstrap.to_string(), None, Options::default())
}

/// Without the places: they are in a text that nobody has written.
fn said(loaded: &Result<Loaded, Vec<Diagnostic>>) -> Vec<String> {
    let found = match loaded {
        Ok(loaded) => &loaded.warnings,
        Err(found) => found,
    };
    let sign = |severity| if severity == Severity::Error { "error" } else { "warning" };
    let line =
        |d: &Diagnostic| format!("{} {}", sign(d.severity), Diagnostic { position: None, ..d.clone() });
    found.iter().map(line).collect()
}

#[test]
fn each_case_says_what_it_should() {
    let cases = cases();
    assert!(cases.len() > 150);
    let mut wrong = serde_json::Map::new();
    for case in &cases {
        let said = said(&load(&case["bootstrap"]));
        let ours: Vec<&str> = case["ours"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        if said != ours {
            wrong.insert(case["name"].as_str().unwrap().to_owned(), said.into());
        }
    }
    assert!(wrong.is_empty(), "said instead: {}", Value::Object(wrong));
}

#[test]
fn what_envoy_refuses_is_refused_and_nothing_else_unless_a_case_says_why() {
    for case in cases() {
        let ours = case["ours"].as_array().unwrap();
        let refused = ours.iter().any(|v| v.as_str().unwrap().starts_with("error"));
        let same = refused == (case["envoy"] != "accepts");
        assert_eq!(same, case["differs"].is_null(), "{}", case["name"]);
    }
}

/// The bootstrap of a case.
fn case(name: &str) -> Loaded {
    let cases = cases();
    let case = cases.iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("{name}"));
    load(&case["bootstrap"]).unwrap()
}

fn ads(name: &str) -> ApiSource {
    let ads = case(name).bootstrap.dynamic.ads;
    (*ads.unwrap()).clone()
}

#[test]
fn sources_are_what_they_say() {
    let dynamic = case("ads").bootstrap.dynamic;
    assert_eq!(dynamic.cds.unwrap().kind, ConfigSourceKind::Ads);
    assert_eq!(dynamic.lds.unwrap().initial_fetch_timeout, Some(INITIAL_FETCH_TIMEOUT));
    let ads_config = dynamic.ads.unwrap();
    assert!(!ads_config.delta && !ads_config.set_node_on_first_message_only);
    let GrpcTarget::Cluster { name, authority: None } = &ads_config.service.target else { panic!() };
    assert_eq!(&**name, "xds");
    assert_eq!(ads_config.service.backoff, Backoff::default());

    let delta = case("delta cds").bootstrap.dynamic.cds.unwrap();
    assert!(matches!(delta.kind, ConfigSourceKind::Api(api) if api.delta));
    let endless = case("cds fetch 0").bootstrap.dynamic.cds.unwrap();
    assert_eq!(endless.initial_fetch_timeout, None);
    assert!(ads("snofmo").set_node_on_first_message_only);
    let clusters = case("eds by grpc").bootstrap.clusters;
    let eds = clusters.iter().find_map(|cluster| match &cluster.model.discovery {
        Discovery::Eds(eds) => Some(eds.source.kind.clone()),
        Discovery::Static
        | Discovery::StrictDns(_)
        | Discovery::LogicalDns(_)
        | Discovery::OriginalDst(_) => None,
    });
    assert!(matches!(eds, Some(ConfigSourceKind::Api(api)) if !api.delta));
}

#[test]
fn limits_and_pauses_are_what_they_say() {
    let limit = |name| ads(name).rate_limit.unwrap();
    let default = RateLimit { max_tokens: 100, fill_interval: Duration::from_millis(100) };
    assert_eq!(limit("rate"), default);
    assert_eq!(limit("rate small").fill_interval, Duration::from_secs(10_000_000));
    assert_eq!(ads("ads").rate_limit, None);
    let (base, max) = (Duration::from_secs(1), Duration::from_secs(10));
    assert_eq!(ads("retry in envoy_grpc").service.backoff, Backoff { base, max });
    assert_eq!(ads("retry_policy").service.backoff, Backoff::default(), "it is about calls");
    assert_eq!(
        ads("authority").service.target,
        GrpcTarget::Cluster { name: "xds".into(), authority: Some("a.b".into()) }
    );
    let metadata = |name| ads(name).service.initial_metadata;
    assert_eq!(metadata("initial metadata"), [("a".to_owned(), "b".to_owned())]);
    assert_eq!(metadata("initial metadata raw"), [("a".to_owned(), "ab".to_owned())]);
}

#[test]
fn google_grpc_has_its_channel_and_its_token() {
    let google = |name| match ads(name).service.target {
        GrpcTarget::Google(google) => *google,
        GrpcTarget::Cluster { .. } => panic!("{name}"),
    };
    let plain = google("google");
    assert_eq!((plain.target_uri.as_str(), plain.stat_prefix.as_str()), ("127.0.0.1:1", "g"));
    assert_eq!((plain.channel, plain.token), (GoogleChannel::Plaintext, None));
    let system = GoogleChannel::Tls { root_certs: None, cert_chain: None, private_key: None };
    assert_eq!(google("google ssl empty").channel, system);
    assert_eq!(google("google local").channel, GoogleChannel::Plaintext);
    assert_eq!(google("call access_token").token, Some(DataSource::Inline((*b"x").into())));
    assert_eq!(google("cred factory fbm").token, Some(DataSource::File("/tmp/token".into())));
    let shown = format!("{:?}", google("call access_token"));
    assert!(shown.contains("Inline(1 bytes)"), "a token is not shown: {shown}");
}

#[test]
fn the_node_says_who_we_are() {
    use envoy_types::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
    use prost::Message as _;
    let text = "node: {id: sidecar~10.1.1.1~pod.ns~ns.svc.cluster.local, cluster: c, user_agent_name: x, \
        locality: {region: r, zone: z}, metadata: {GENERATOR: istiod, n: [1]}}\n";
    let sent = |identity: &Identity| {
        let loaded = load::bootstrap_as(text, None, Options::default(), identity).unwrap();
        (Node::decode(loaded.bootstrap.node.raw.clone()).unwrap(), loaded.bootstrap.node)
    };
    let (node, model) = sent(&Identity::default());
    assert_eq!(node.id, "sidecar~10.1.1.1~pod.ns~ns.svc.cluster.local");
    assert_eq!((node.cluster.as_str(), node.user_agent_name.as_str()), ("c", "shunt"));
    assert_eq!(node.client_features, ["xds.config.resource-in-sotw"]);
    assert_eq!(node.metadata.unwrap().fields.len(), model.metadata.len());
    assert_eq!(node.locality.unwrap().zone, "z");
    let Some(UserAgentVersionType::UserAgentBuildVersion(build)) = node.user_agent_version_type else {
        panic!()
    };
    let version = build.version.unwrap();
    let version = format!("{}.{}.{}", version.major_number, version.minor_number, version.patch);
    assert_eq!(version, env!("CARGO_PKG_VERSION"));

    let flags = Identity { id: Some("flag".into()), cluster: None, zone: Some("other".into()) };
    let (node, model) = sent(&flags);
    let locality = node.locality.unwrap();
    assert_eq!((node.id.as_str(), node.cluster.as_str(), locality.region.as_str()), ("flag", "c", "r"));
    assert_eq!((model.id.as_str(), model.zone.as_str(), locality.zone.as_str()), ("flag", "other", "other"));

    // Also one that the bootstrap does not mention.
    let nobody = load::bootstrap("{}", None, Options::default()).unwrap().bootstrap.node;
    assert_eq!(Node::decode(nobody.raw).unwrap().user_agent_name, "shunt");
    let dynamic = "dynamic_resources: {cds_config: {path: /dev/null}}\n";
    assert!(load::bootstrap(dynamic, None, Options::default()).is_err());
    let named = Identity { id: Some("n".into()), cluster: Some("c".into()), zone: None };
    assert!(load::bootstrap_as(dynamic, None, Options::default(), &named).is_ok());
}
