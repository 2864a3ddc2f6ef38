//! The words for what is wrong, and where.

use proxy_config::load::{self, Options};

use super::{ANY, BOOTSTRAP, CLUSTER, errors, lines};

/// What loading says.
fn load(text: &str, overlay: Option<&str>, options: Options) -> Vec<String> {
    match load::bootstrap(text, overlay, options) {
        Ok(loaded) => lines(&loaded.warnings),
        Err(errors) => lines(&errors),
    }
}

#[test]
fn an_unknown_field_is_named_with_its_place() {
    let text = "static_resources:
  clusters:
  - name: a
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        sni: x
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        # A comment.
        common_tls_context:
          tls_params: {}
          alpnProtocol: [h2]
";
    let expected =
        ["line 12:11 at static_resources.clusters[0].transport_socket.typed_config<UpstreamTlsContext>\
                     .common_tls_context: unknown field \"alpnProtocol\" (did you mean alpn_protocols?)"];
    assert_eq!(errors(BOOTSTRAP, text), expected);
    assert_eq!(load(text, None, Options::default()), expected);
}

#[test]
fn all_problems_are_told_at_once() {
    let text = "static_resources:
  clusters:
  - {name: a, conect_timeout: 1s, lb_policy: nope}
  - {name: [], connect_timeout: soon}
admin: {address: 5}
";
    assert_eq!(
        load(text, None, Options::default()),
        [
            "line 3:15 at static_resources.clusters[0]: unknown field \"conect_timeout\" (did you mean \
             connect_timeout?)",
            "line 3:46 at static_resources.clusters[0].lb_policy: unknown value \"nope\" of \
             envoy.config.cluster.v3.Cluster.LbPolicy (one of ROUND_ROBIN, LEAST_REQUEST, RING_HASH, RANDOM, \
             MAGLEV, CLUSTER_PROVIDED, LOAD_BALANCING_POLICY_CONFIG)",
            "line 4:12 at static_resources.clusters[1].name: expected a string, found a list",
            "line 4:33 at static_resources.clusters[1].connect_timeout: expected a duration in seconds such as \
             \"0.25s\", found \"soon\"",
            "line 5:18 at admin.address: expected a mapping with the fields of envoy.config.core.v3.Address, \
             found the number 5 (quote it to make it a string)",
        ]
    );
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (text, expected) in [
        ("name: a\nname: b", "line 2:1: the key \"name\" is given twice, first at line 1:1"),
        (
            "eds_cluster_config: {service_name: a, service_name: b}",
            "line 1:39 at eds_cluster_config: the key \"service_name\" is given twice, first at line 1:22",
        ),
        (
            "connect_timeout: 1s\nconnectTimeout: 2s",
            "line 2:1: connect_timeout is set twice, first at line 1:1",
        ),
        (
            "type: STATIC\nclusterType: {name: x}",
            "line 2:1: cluster_type and type exclude each other (both are cluster_discovery_type)",
        ),
    ] {
        assert_eq!(errors(CLUSTER, text), [expected], "{text}");
    }
}

#[test]
fn types_are_named() {
    for (text, expected) in [
        ("{a: 1}", "line 1:1: needs \"@type\", such as type.googleapis.com/envoy.config.core.v3.Node"),
        ("{'@type': x.io/a.B}", "line 1:11: unknown type \"x.io/a.B\""),
        ("{'@type': a.B}", "line 1:11: the type \"a.B\" must be written as type.googleapis.com/NAME"),
        (
            "{'@type': x.io/envoy.config.filter.network.tcp_proxy.v2.TcpProxy}",
            "line 1:11: envoy.config.filter.network.tcp_proxy.v2.TcpProxy is of the v2 API, which is gone; write \
             envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        ),
    ] {
        assert_eq!(errors(ANY, text), [expected]);
    }
    assert_eq!(
        errors("envoy.config.listener.v3.Filter", "{name: a, config: {}}"),
        ["line 1:11: unknown field \"config\": the v2 API's; put it under typed_config, with its \"@type\""]
    );
}

#[test]
fn a_document_is_one_mapping() {
    for (text, expected) in [
        ("", "line 1:1: the document is empty"),
        ("# nothing\n", "line 2:1: the document is empty"),
        ("[1, 2]", "line 1:1: the document must be a mapping, and is a list"),
        ("hello", "line 1:1: the document must be a mapping, and is \"hello\""),
        ("name: a\n---\nname: b\n", "line 2:1: a second document: a configuration is one document"),
        ("name: \"a\0\"", "line 1:9: a NUL character"),
        ("name: a\n  b: c\n", "line 2:4: mapping values are not allowed in this context"),
        ("{\"name\": \"a\"", "line 1:13: expected \",\" or \"}\""),
        ("{\"name\" \"a\"}", "line 1:9: expected \":\""),
        ("? [a]\n: b", "line 1:3: a key must be a scalar"),
        ("a: *b", "line 1:4: while parsing node, found unknown anchor"),
        ("&a name: &b {x: *b}", "line 1:17: an alias inside of what it stands for"),
        ("<<: 5\nname: a", "line 1:1: \"<<\" takes a mapping or a list of mappings"),
    ] {
        assert_eq!(errors(CLUSTER, text).first().map(String::as_str), Some(expected), "{text:?}");
    }
    let broken = proxy_config::decode::text(b"name: a\nx: \xff").unwrap_err();
    assert_eq!(broken.to_string(), "line 2:4: not UTF-8");
}

#[test]
fn duplicate_clusters_are_refused() {
    let text = "static_resources:
  clusters:
  - {name: a, connect_timeout: 1s}
  - {name: b, connect_timeout: 1s}
  - {connect_timeout: 1s, name: a}
";
    assert_eq!(
        load(text, None, Options::default()),
        ["line 5:27 at static_resources.clusters[2].name: the name \"a\" is given twice, first at line 3:6"]
    );
    let overlay = "{static_resources: {clusters: [{name: b}]}}";
    assert_eq!(
        load(&text.replace("name: a}", "name: c}"), Some(overlay), Options::default()),
        [
            "line 1:33 at static_resources.clusters[3].name: the name \"b\" is given twice, first at line 4:6 (in \
          --config-yaml)"
        ]
    );
}

#[test]
fn options_move_the_line() {
    let text = "{nod: {}, static_resources: {clusters: [{name: a, connect_timeout: 1m, nam: b}]}}";
    let unknown = |at: &str| format!("{at}: unknown field");
    let lenient = Options { allow_unknown_fields: true, ..Options::default() };
    let said = load(text, None, lenient);
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].starts_with(&unknown("line 1:2")), "{said:?}");
    assert!(load::bootstrap(text, None, lenient).is_ok());
    assert!(load::bootstrap(text, None, Options { strict: true, ..lenient }).is_err());
}

#[test]
fn many_alike_are_one_warning_and_many_errors_are_counted() {
    let clusters = |field: &str| {
        let list: Vec<_> = (0..1500).map(|n| format!("{{name: c{n}, {field}}}")).collect();
        format!("static_resources: {{clusters: [{}]}}", list.join(", "))
    };
    assert_eq!(
        load(&clusters("connect_timeout: 1m"), None, Options::default()),
        [
            "line 1:59 at static_resources.clusters[0].connect_timeout: \"1m\" is no duration to Envoy; write \"60s\" \
          (and 1499 more such places)"
        ]
    );
    let errors = load(&clusters("connect_timeout: x"), None, Options::default());
    assert_eq!((errors.len(), errors[1000].as_str()), (1001, "and 500 more errors"));
}

#[test]
fn an_overlay_is_merged_over() {
    let base = "node: {id: a, cluster: b}\nstatic_resources: {clusters: [{name: x}]}";
    let overlay = "{\"node\": {\"id\": \"c\", \"metadata\": {\"k\": 1}}, \"static_resources\": {\"clusters\": [{\"name\": \"y\"}]}}";
    let loaded = load::bootstrap(base, Some(overlay), Options::default()).unwrap();
    let names: Vec<_> = loaded.bootstrap.clusters.iter().map(|c| &*c.model.name).collect();
    assert_eq!(names, ["x", "y"]);
    let dumped = proxy_config::dump::json(BOOTSTRAP, &loaded.raw).unwrap();
    assert_eq!(dumped["node"], serde_json::json!({"id": "c", "cluster": "b", "metadata": {"k": 1}}));
    let errors = load(base, Some("{nod: 1}"), Options::default());
    assert_eq!(errors, ["line 1:2: unknown field \"nod\" (did you mean node?) (in --config-yaml)"]);
}

#[test]
fn anchors_and_merge_keys_work() {
    let text = "
static_resources:
  clusters:
  - &base {name: a, connect_timeout: 1s, lb_policy: MAGLEV}
  - {<<: *base, name: b}
  - <<: [{name: c}, *base]
    lb_policy: RANDOM
";
    let read = super::read(BOOTSTRAP, text).unwrap();
    assert_eq!(
        read["static_resources"]["clusters"],
        serde_json::json!([
            {"name": "a", "connect_timeout": "1s", "lb_policy": "MAGLEV"},
            {"name": "b", "connect_timeout": "1s", "lb_policy": "MAGLEV"},
            {"name": "c", "connect_timeout": "1s", "lb_policy": "RANDOM"},
        ])
    );
}
