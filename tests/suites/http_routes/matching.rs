//! Virtual hosts and matchers: every host with every path, and every path with every header.

use std::collections::BTreeSet;
use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
use shunt_tests::http_echo::ask;
use shunt_tests::{Bootstrap, Cases, Pair, Proxy, lab};

use super::{host, inline, manager, named};
use crate::http_filters::peer::Message;

const TEMPLATE: &str =
    "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";

/// What routes match, by their names; the first that matches holds.
fn matchers() -> Vec<(&'static str, String)> {
    let header = |fields: &str| format!("prefix: /, headers: [ {{ {fields} }} ]");
    let query = |fields: &str| format!("prefix: /, query_parameters: [ {{ {fields} }} ]");
    let cookie = |fields: &str| format!("prefix: /c, cookies: [ {{ {fields} }} ]");
    let template = |text: &str| {
        format!(
            "path_match_policy: {{ name: t, typed_config: {{ \"@type\": {TEMPLATE}, path_template: {text:?} }} }}"
        )
    };
    vec![
        ("never", "prefix: /, runtime_fraction: { default_value: { numerator: 0 } }".to_owned()),
        ("connect", "connect_matcher: {}".to_owned()),
        ("header-exact", header("name: x-exact, string_match: { exact: a }")),
        ("header-prefix", header("name: x-prefix, string_match: { prefix: a, ignore_case: true }")),
        ("header-suffix", header("name: x-suffix, string_match: { suffix: a }")),
        ("header-contains", header("name: x-contains, string_match: { contains: a }")),
        ("header-regex", header("name: x-regex, string_match: { safe_regex: { regex: 'a[0-9]+' } }")),
        ("header-range", header("name: x-range, range_match: { start: -5, end: 10 }")),
        ("header-present", header("name: x-present, present_match: true")),
        (
            "header-inverted",
            "prefix: /, headers: [ { name: x-inverted, string_match: { exact: a }, invert_match: true } ]"
                .to_owned(),
        ),
        (
            "header-empty",
            "prefix: /empty, headers: [ { name: x-empty, string_match: { exact: '' }, \
             treat_missing_header_as_empty: true } ]"
                .to_owned(),
        ),
        ("method", header("name: ':method', string_match: { exact: PUT }")),
        ("authority", header("name: ':authority', string_match: { exact: By.Header }")),
        ("host", header("name: host, string_match: { exact: by.host }")),
        ("query-exact", query("name: exact, string_match: { exact: a }")),
        ("query-regex", query("name: regex, string_match: { safe_regex: { regex: 'a+' } }")),
        ("query-present", query("name: present, present_match: true")),
        ("cookie", cookie("name: one, string_match: { exact: a }")),
        ("cookie-inverted", cookie("name: two, string_match: { exact: a }, invert_match: true")),
        ("grpc", "prefix: /, grpc: {}".to_owned()),
        ("certificate", "prefix: /, tls_context: { presented: true }".to_owned()),
        ("path", "path: /exact".to_owned()),
        ("path-folded", "path: /Folded, case_sensitive: false".to_owned()),
        ("regex", "safe_regex: { regex: '/r[0-9]+(/.*)?' }".to_owned()),
        ("separated", "path_separated_prefix: /sep".to_owned()),
        ("separated-folded", "path_separated_prefix: /SEP, case_sensitive: false".to_owned()),
        ("template", template("/t/{one}/*/end")),
        ("template-rest", template("/u/{rest=**}.html")),
        ("prefix-folded", "prefix: /PreFix, case_sensitive: false".to_owned()),
        ("prefix", "prefix: /pre".to_owned()),
        ("half", "prefix: /all, runtime_fraction: { default_value: { numerator: 100 } }".to_owned()),
    ]
}

const PATHS: &[&str] = &[
    "/",
    "/exact",
    "/exact?q=1",
    "/exact/",
    "/exact;p=1",
    "/Exact",
    "/FOLDED",
    "/folded?x",
    "/foldedx",
    "/r1",
    "/r12/x",
    "/r12x",
    "/r?1",
    "/sep",
    "/sep/a",
    "/sep?a",
    "/sepa",
    "/Sep/b",
    "/t/a/b/end",
    "/t/a/b/c/end",
    "/t/a/b/end?x",
    "/u/a/b.html",
    "/u/a/b.htm",
    "/prefixed",
    "/pre",
    "/pre?x/y",
    "/Pre",
    "/all",
    "/none",
    "/%65xact",
    "/exact%3Fq",
    "/?exact=a",
    "/?exact=b&exact=a",
    "/?exact=a&exact=b",
    "/?exact=%61",
    "/?regex=aaa",
    "/?regex=ab",
    "/?present",
    "/?present=",
    "/?x&present=1#",
    "/?notpresent",
    "/empty",
    "/c",
];

const HOSTS: &[&str] = &[
    "example.com",
    "EXAMPLE.com",
    "example.com:80",
    "example.com:8080",
    "a.example.com",
    ".example.com",
    "a.b.example.com",
    "x.api.example.com",
    "a-x.example.com",
    "example.net",
    "example.co",
    "example.",
    "example.com.evil",
    "[::1]",
    "[::1]:81",
    "127.0.0.1",
    "other",
];

/// A request's own headers, each with a few paths.
const HEADERS: &[(&str, &str)] = &[
    ("x-exact", "a"),
    ("x-exact", "A"),
    ("x-exact", "a,b"),
    ("x-prefix", "Abc"),
    ("x-prefix", "bca"),
    ("x-suffix", "bca"),
    ("x-suffix", "bcA"),
    ("x-contains", "bab"),
    ("x-contains", "b"),
    ("x-regex", "a12"),
    ("x-regex", "ba12"),
    ("x-range", "-5"),
    ("x-range", "9"),
    ("x-range", "10"),
    ("x-range", "+7"),
    ("x-range", "7x"),
    ("x-range", ""),
    ("x-present", ""),
    ("x-present", "1"),
    ("x-inverted", "a"),
    ("x-inverted", "b"),
    ("x-empty", ""),
    ("x-empty", "1"),
    ("cookie", "one=a"),
    ("cookie", "zero=0; one=\"a\""),
    ("cookie", "one=b; one=a"),
    ("cookie", "one=a; one=b"),
    ("cookie", "onetwo=a"),
    ("cookie", "two=a"),
    ("cookie", "two=b"),
    ("cookie", "two"),
    ("content-type", "application/grpc"),
    ("content-type", "application/grpc+proto"),
    ("content-type", "application/grpc-web"),
    ("content-type", "application/json"),
];

fn config() -> String {
    let all = |of: &str| -> Vec<String> {
        matchers().iter().map(|(name, matched)| named(&format!("{of} {name}"), matched)).collect()
    };
    let hosts = [
        host("exact", &["example.com", "example.com:8080", "By.Header", "by.host"], &all("exact"), ""),
        host("suffix", &["*.example.com"], &all("suffix"), ""),
        host("longer", &["*.api.example.com", "*-x.example.com", "*.b.example.com"], &all("longer"), ""),
        host("prefix", &["example.*"], &all("prefix"), ""),
        host("longer-prefix", &["example.co*", "[::1]"], &all("longer-prefix"), ""),
        host("any", &["*"], &all("any"), ""),
    ];
    let hosts = format!("virtual_hosts: [ {} ]", hosts.join(", "));
    let without_any = format!(
        "virtual_hosts: [ {} ]",
        [host("a", &["example.com"], &all("a"), ""), host("b", &["*.example.com:81"], &all("b"), "")]
            .join(", ")
    );
    let upgrades = format!("upgrade_configs: [ {{ upgrade_type: CONNECT }} ], route_config: {{ {hosts} }}");
    Bootstrap::new()
        .listener("plain", &manager("plain", &upgrades))
        .listener("ports", &inline("ports", &format!("ignore_port_in_host_matching: true, {without_any}")))
        .listener(
            "parameters",
            &inline("parameters", &format!("ignore_path_parameters_in_path_matching: true, {hosts}")),
        )
        .listener("header", &inline("header", &format!("vhost_header: x-host, {without_any}")))
        .yaml()
}

/// What each request was answered with: a route's name, unless its status is another one.
fn answers(proxy: &Proxy, listener: &str, requests: &[(String, Vec<(&str, &str)>)]) -> Result<Value> {
    let at = proxy.at(listener)?;
    let mut all = Map::new();
    for (line, headers) in requests {
        let answer = ask(at, line, headers)?;
        let said = if answer.status == 200 { json!(answer.body) } else { json!(answer.status) };
        all.insert(format!("{line} {headers:?}"), said);
    }
    Ok(Value::Object(all))
}

#[test]
fn every_request_finds_the_route_that_it_finds_in_envoy() -> Result<()> {
    lab(|lab| {
        let pair = Pair::start(lab, &config())?;
        let mut cases = Cases::new();
        let (mut asked, mut found) = (0, BTreeSet::new());
        let mut compare = |listener: &str, name: &str, requests: Vec<(String, Vec<(&str, &str)>)>| {
            asked += requests.len();
            pair.same(&mut cases, format!("http-routes-{listener}-{name}"), |proxy| {
                let answers = answers(proxy, listener, &requests)?;
                found.extend(answers.as_object().into_iter().flat_map(Map::values).map(Value::to_string));
                Ok(answers)
            });
        };
        let get = |path: &&str| format!("GET {path}");
        for name in HOSTS {
            let requests = PATHS.iter().map(|path| (get(path), vec![("host", *name)]));
            compare("plain", name, requests.collect());
        }
        for (name, value) in HEADERS {
            let paths = ["/", "/exact", "/empty", "/c", "/none"];
            let headers = vec![("host", "example.com"), (*name, *value)];
            let requests = paths.iter().map(|path| (get(path), headers.clone()));
            compare("plain", &format!("{name}={value}"), requests.collect());
        }
        let several = [
            ("GET /", vec![("host", "example.com"), ("x-exact", "a"), ("x-exact", "")]),
            ("GET /", vec![("host", "example.com"), ("x-range", "1"), ("x-range", "2")]),
            ("GET /c", vec![("host", "example.com"), ("cookie", "x=1"), ("cookie", "one=a")]),
            ("PUT /", vec![("host", "example.com")]),
            ("GET /", vec![("host", "By.Header")]),
            ("GET /", vec![("host", "by.host")]),
            ("HEAD /none", vec![("host", "example.com")]),
        ];
        let several = several.map(|(line, headers)| (line.to_owned(), headers));
        compare("plain", "several", several.to_vec());
        for name in HOSTS {
            let requests = ["/exact", "/exact;p=1", "/exact;p=1/x", "/sep;p/a", "/t/a/b/end;p"];
            let requests = requests.iter().map(|path| (get(path), vec![("host", *name)]));
            compare("parameters", name, requests.collect());
        }
        for name in HOSTS.iter().chain(&["a.example.com:81", "example.com:99", "example.com:"]) {
            compare("ports", name, vec![("GET /exact".to_owned(), vec![("host", *name)])]);
            let requests = vec![
                ("GET /exact".to_owned(), vec![("host", "other"), ("x-host", *name)]),
                ("GET /exact".to_owned(), vec![("host", *name)]),
            ];
            compare("header", name, requests);
        }
        cases.case("the table", || {
            ensure!(asked >= 500, "{asked} requests");
            ensure!(found.len() >= 60, "{} different answers: {found:?}", found.len());
            Ok(())
        });
        cases.finish()
    })
}

/// Of so many requests the route gets its part, as far as chance goes: five times the deviation that there is.
#[test]
fn a_fraction_of_requests() -> Result<()> {
    const COUNT: f64 = 3_000.0;
    lab(|lab| {
        let fraction = |name: &str, of: &str| {
            let matched = format!("prefix: /{name}, runtime_fraction: {{ default_value: {{ {of} }} }}");
            named(name, &matched)
        };
        let parts = [
            ("quarter", "numerator: 25", 0.25),
            ("tenth", "numerator: 1000, denominator: TEN_THOUSAND", 0.1),
            ("most", "numerator: 900000, denominator: MILLION", 0.9),
        ];
        let mut routes: Vec<String> = parts.iter().map(|(name, of, _)| fraction(name, of)).collect();
        routes.push(named("rest", "prefix: /"));
        let hosts = host("v", &["*"], &routes, "");
        let config = Bootstrap::new().listener("l", &inline("l", &format!("virtual_hosts: [ {hosts} ]")));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        for proxy in pair.both() {
            for (name, _, part) in parts {
                cases.case(format_args!("{} of {}", name, proxy.kind.name()), || {
                    let mut client = TcpStream::connect(proxy.at("l")?)?;
                    client.set_read_timeout(Some(Duration::from_secs(20)))?;
                    client.set_nodelay(true)?;
                    let mut reader = BufReader::new(client.try_clone()?);
                    let mut found = 0.0;
                    for _ in 0..3_000 {
                        write!(client, "GET /{name} HTTP/1.1\r\nhost: a\r\n\r\n")?;
                        let answer = Message::read(&mut reader, Some(true))?.context("no answer")?;
                        found += f64::from(u8::from(answer.body == name.as_bytes()));
                    }
                    let (expected, deviation) = (COUNT * part, (COUNT * part * (1.0 - part)).sqrt());
                    ensure!((found - expected).abs() < 5.0 * deviation, "{found} instead of {expected}");
                    Ok(())
                });
            }
        }
        cases.finish()
    })
}
