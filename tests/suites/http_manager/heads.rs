//! What upstreams are told of clients.

use anyhow::Result;
use shunt_tests::http_echo::{HttpEcho, ask};
use shunt_tests::{Cases, Pair, lab};

use super::config;

const RANGES: &str = "internal_address_config: { cidr_ranges: [ { address_prefix: 127.0.0.0, prefix_len: 8 }, \
    { address_prefix: 10.0.0.0, prefix_len: 8 } ] }";
const XFF: &str = "type.googleapis.com/envoy.extensions.http.original_ip_detection.xff.v3.XffConfig";
const CUSTOM: &str =
    "type.googleapis.com/envoy.extensions.http.original_ip_detection.custom_header.v3.CustomHeaderConfig";
const EARLY: &str =
    "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation";

fn managers() -> Vec<(&'static str, String)> {
    let detection = |of_type: &str, fields: &str| {
        format!(
            "original_ip_detection_extensions: [ {{ name: d, typed_config: {{ \"@type\": {of_type}, {fields} }} }} ]"
        )
    };
    let remote = |more: &str| format!("use_remote_address: true, {more}");
    vec![
        ("plain", String::new()),
        ("remote", remote("")),
        ("named", remote("append_x_forwarded_port: true, via: one, add_user_agent: true")),
        ("hop", remote("xff_num_trusted_hops: 1")),
        ("hops", "xff_num_trusted_hops: 1, append_x_forwarded_port: true".to_owned()),
        ("skip", remote("skip_xff_append: true")),
        ("internal", remote(RANGES)),
        ("behind", RANGES.to_owned()),
        ("kept-id", remote("preserve_external_request_id: true, always_set_request_id_in_response: true")),
        ("no-id", "generate_request_id: false".to_owned()),
        ("forwarded", "forward_client_cert_details: ALWAYS_FORWARD_ONLY".to_owned()),
        ("scheme", "scheme_header_transformation: { scheme_to_overwrite: https }".to_owned()),
        ("stripped", "strip_any_host_port: true, strip_trailing_host_dot: true".to_owned()),
        ("matching", "strip_matching_host_port: true".to_owned()),
        (
            "dropped",
            "common_http_protocol_options: { headers_with_underscores_action: DROP_HEADER }".to_owned(),
        ),
        ("xff", detection(XFF, "xff_num_trusted_hops: 1, skip_xff_append: false")),
        (
            "ranges",
            detection(
                XFF,
                "xff_trusted_cidrs: { cidrs: [ { address_prefix: 127.0.0.0, prefix_len: 8 }, \
                 { address_prefix: 10.0.0.0, prefix_len: 8 } ] }",
            ),
        ),
        (
            "custom",
            detection(CUSTOM, "header_name: x-ip, allow_extension_to_set_address_as_trusted: true")
                + ", "
                + RANGES,
        ),
        ("strict", detection(CUSTOM, "header_name: x-ip, reject_with_status: { code: 403 }")),
        (
            "early",
            format!(
                "early_header_mutation_extensions: [ {{ name: e, typed_config: {{ \"@type\": {EARLY}, mutations: [ \
                 {{ remove: x-ip }}, {{ append: {{ header: {{ key: x-early, value: '%REQ(:METHOD)%' }} }} }} ] }} }} ]"
            ),
        ),
    ]
}

/// A request's own headers.
const HEADERS: &[&[(&str, &str)]] = &[
    &[],
    &[("x-forwarded-for", "1.2.3.4")],
    &[("x-forwarded-for", "1.2.3.4, 10.0.0.5")],
    &[("x-forwarded-for", "10.1.1.1")],
    &[("x-forwarded-for", "10.1.1.1,10.1.1.2")],
    &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8")],
    &[("x-forwarded-for", "bad")],
    &[("x-forwarded-for", "1.2.3.4,")],
    &[("x-forwarded-for", "")],
    &[("x-forwarded-for", "::1")],
    &[("x-ip", "10.2.3.4")],
    &[("x-ip", "1.2.3.4")],
    &[("x-ip", "bad")],
    &[("x-forwarded-proto", "https"), ("x-forwarded-port", "99")],
    &[("x-forwarded-proto", "ftp")],
    &[
        ("x-envoy-max-retries", "3"),
        ("x-envoy-decorator-operation", "d"),
        ("x-envoy-downstream-service-node", "n"),
        ("x-envoy-downstream-service-cluster", "c"),
        ("x-envoy-original-path", "/o"),
        ("x-envoy-original-host", "h"),
        ("x-envoy-internal", "true"),
        ("x-envoy-external-address", "9.9.9.9"),
        ("x-envoy-attempt-count", "7"),
        ("x-envoy-foo", "1"),
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-ip-tags", "t"),
        ("x-envoy-expected-rq-timeout-ms", "7"),
        ("x-envoy-upstream-rq-timeout-ms", "9000"),
    ],
    &[("user-agent", ""), ("via", "1.0 x"), ("te", "gzip, trailers")],
    &[("user-agent", "mine"), ("te", "gzip")],
    &[("x-forwarded-client-cert", "By=a;Hash=b")],
    &[("referer", "http://u@a/")],
    &[("referer", "http://a/b?c")],
    &[("referer", "/a#b")],
    &[("referer", "about:blank")],
    &[("keep-alive", "5"), ("proxy-connection", "x")],
    &[("x_y", "1"), ("x-z", "2")],
];

const HOSTS: &[&str] = &["a:80", "a.:81", "a.:80", "a.b.", "[::1]:80", "[::1]", "a:", "A.b", "."];

#[test]
fn upstreams_are_told_what_envoy_tells_them() -> Result<()> {
    lab(|lab| {
        let echo = HttpEcho::start("echo")?;
        let managers = managers();
        let pair = Pair::start(lab, &config(&managers, echo.address))?;
        let mut cases = Cases::new();
        for (name, _) in &managers {
            for (n, headers) in HEADERS.iter().enumerate() {
                let mut all = vec![("host", "a")];
                all.extend_from_slice(headers);
                pair.same(&mut cases, format!("http-heads-{name}-{n}"), |proxy| {
                    let mut answer = ask(proxy.at(name)?, "GET /x", &all)?;
                    // Its own port is in it.
                    answer.body = answer.body.replace(&proxy.at(name)?.port().to_string(), "PORT");
                    Ok(if answer.status == 200 { answer.echoed() } else { answer.shown() })
                });
            }
            for host in HOSTS.iter().filter(|_| ["plain", "stripped", "matching"].contains(name)) {
                pair.same(&mut cases, format!("http-hosts-{name}-{host}"), |proxy| {
                    let host = host.replace("80", &proxy.at(name)?.port().to_string());
                    let mut answer = ask(proxy.at(name)?, "GET /x", &[("host", &host)])?;
                    answer.body = answer.body.replace(&proxy.at(name)?.port().to_string(), "PORT");
                    Ok(if answer.status == 200 { answer.echoed() } else { answer.shown() })
                });
            }
        }
        for id in ["b1b7ed07-5ff1-9ab9-8a51-000000000000", "short", ""] {
            for name in ["plain", "remote", "kept-id", "no-id"] {
                pair.same(&mut cases, format!("http-request-id-{name}-{id}"), |proxy| {
                    let answer = ask(proxy.at(name)?, "GET /x", &[("host", "a"), ("x-request-id", id)])?;
                    let line = |line: &&str| line.starts_with("x-request-id: ");
                    let told =
                        answer.body.lines().find(line).map(|told| told.trim_start_matches("x-request-id: "));
                    // One of its own is as long as any other.
                    let shown = |told: &str| {
                        if told.len() == 36 && told != id && !told.starts_with("b1b7ed07") {
                            "UUID".to_owned()
                        } else {
                            told.to_owned()
                        }
                    };
                    Ok(serde_json::json!([told.map(shown), answer.header("x-request-id").map(shown)]))
                });
            }
        }
        cases.finish()
    })
}
