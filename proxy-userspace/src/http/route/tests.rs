//! Routes as a whole, of models made by hand.

mod changes;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode};
use proxy_config::model::FractionalPercent;
use proxy_config::model::http::action::{
    Action, ClusterName, ClusterSpecifier, DirectResponse, HashCookie, HashPolicy, HashSource, HostRewrite,
    PathRewrite, Redirect, RedirectPath, RouteAction, SchemeRewrite, TemplateRewrite, WeightedChoice,
    WeightedCluster, WeightedClusters,
};
use proxy_config::model::http::header::{AppendAction, HeaderEdit, HeaderEdits, HeaderMatch, HeaderOption};
use proxy_config::model::http::route::{RequireTls, VirtualCluster};
use proxy_config::model::http::route_match::{
    CookieMatcher, PathTemplate, QueryParameterMatch, QueryParameterMatcher, TlsContextMatch,
};
use proxy_config::model::http::{
    self as model, Content, Format, HeaderMatcher, PathMatch, RouteConfiguration,
};
use proxy_config::model::matcher::{Regex, RegexSubstitution, StringMatcher, StringPattern};
use proxy_config::model::metadata::{Metadata, Value};

use super::finalize::{answer, request};
use super::*;
use crate::clock;
use crate::http::RequestHead;
use crate::http::testing::{any_route, header_map, to};
use crate::net::facts::Facts;
use crate::telemetry::stats::Stats;
use crate::telemetry::{Entry, HttpEntry, LogType, Origin};
use crate::transport::TlsInfo;

fn entry(head: RequestHead) -> Entry {
    let facts = Facts::new("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
    let origin = Origin { connection_id: 1, workload: None, direction: None, listener: "l".into() };
    let http = Some(Box::new(HttpEntry::new(head, clock::now())));
    Entry { http, ..Entry::new(origin, facts, LogType::DownstreamEnd) }
}

fn get(path: &str, headers: &[(&str, &str)]) -> Entry {
    let mut head = RequestHead::new(Method::GET, "h", path);
    head.headers = header_map(headers);
    entry(head)
}

fn head(entry: &Entry) -> &RequestHead {
    &entry.http.as_deref().unwrap().request
}

fn text(pattern: StringPattern) -> StringMatcher {
    StringMatcher { pattern, ignore_case: false }
}

fn exact(value: &str) -> StringMatcher {
    text(StringPattern::Exact(value.to_owned()))
}

/// One virtual host with these routes, whose names are their places.
fn routes(all: Vec<model::Route>) -> RouteConfiguration {
    let mut routes = any_route();
    routes.virtual_hosts[0].routes = all;
    for (index, route) in routes.virtual_hosts[0].routes.iter_mut().enumerate() {
        route.name = index.to_string().into();
    }
    routes
}

fn route(change: impl FnOnce(&mut model::Route)) -> model::Route {
    let mut route = any_route().virtual_hosts.remove(0).routes.remove(0);
    change(&mut route);
    route
}

fn path(matched: PathMatch) -> model::Route {
    route(|route| route.matcher.path = matched)
}

fn forward(change: impl FnOnce(&mut RouteAction)) -> Action {
    let mut action = to("c");
    change(&mut action);
    Action::Route(Box::new(action))
}

fn built(model: RouteConfiguration) -> Arc<Routes> {
    Routes::new(Arc::new(model), &Stats::new()).unwrap()
}

fn found(routes: &Routes, entry: &Entry) -> Option<String> {
    routes.look(entry, 7).map(|routed| routed.name().to_string())
}

#[test]
fn paths() {
    let mut folded = path(PathMatch::Path("/Folded".into()));
    folded.matcher.case_sensitive = false;
    let table = built(routes(vec![
        path(PathMatch::Connect),
        path(PathMatch::Path("/exact".into())),
        folded,
        path(PathMatch::SafeRegex(Regex::new("/r[0-9]+").unwrap())),
        path(PathMatch::PathSeparatedPrefix("/sep".into())),
        path(PathMatch::Template(PathTemplate::parse("/t/{x}/z").unwrap())),
        path(PathMatch::Prefix("/pre".into())),
    ]));
    for (path, expected) in [
        ("/exact", Some("1")),
        ("/exact?q", Some("1")),
        ("/exact#f", Some("1")),
        ("/exact/", None),
        ("/FOLDED", Some("2")),
        ("/Folde", None),
        ("/r12?a", Some("3")),
        ("/r12a", None),
        ("/sep", Some("4")),
        ("/sep/x", Some("4")),
        ("/sep?x", Some("4")),
        ("/sepx", None),
        ("/t/a/z", Some("5")),
        ("/t/a/b/z", None),
        ("/prefixed", Some("6")),
        ("/Pre", None),
        ("", None),
        ("*", None),
    ] {
        assert_eq!(found(&table, &get(path, &[])).as_deref(), expected, "{path}");
    }
    let connect = RequestHead::new(Method::CONNECT, "h:1", "");
    assert_eq!(found(&table, &entry(connect)).as_deref(), Some("0"));
}

#[test]
fn parameters_of_paths_are_ignored_where_that_is_asked_for() {
    let mut model = routes(vec![path(PathMatch::Path("/a".into())), path(PathMatch::Prefix("/a;".into()))]);
    assert_eq!(found(&built(model.clone()), &get("/a;b=c", &[])).as_deref(), Some("1"));
    model.ignore_path_parameters_in_path_matching = true;
    let table = built(model);
    assert_eq!(found(&table, &get("/a;b=c?d", &[])).as_deref(), Some("0"));
    assert_eq!(found(&table, &get("/a;b/x", &[])), None);
}

#[test]
fn what_else_a_request_has() {
    let header = |name: &str, matches| HeaderMatcher {
        name: name.into(),
        matches,
        invert: false,
        treat_missing_as_empty: false,
    };
    let query = |name: &str, matches| QueryParameterMatcher { name: name.into(), matches };
    let cookie = |invert| CookieMatcher { name: "c".into(), matches: exact("1"), invert };
    let table = built(routes(vec![
        route(|r| r.matcher.headers = vec![header("x-a", HeaderMatch::String(exact("1")))]),
        route(|r| r.matcher.headers = vec![header(":method", HeaderMatch::String(exact("POST")))]),
        route(|r| r.matcher.headers = vec![header("host", HeaderMatch::String(exact("other")))]),
        route(|r| r.matcher.headers = vec![header("x-n", HeaderMatch::Range(1, 5))]),
        route(|r| {
            r.matcher.query_parameters = vec![query("q", QueryParameterMatch::String(exact("1")))];
        }),
        route(|r| r.matcher.query_parameters = vec![query("p", QueryParameterMatch::Present(true))]),
        route(|r| r.matcher.cookies = vec![cookie(false)]),
        route(|r| r.matcher.grpc = true),
        route(|r| {
            r.matcher.cookies = vec![cookie(true)];
            r.matcher.headers = vec![header("x-cookie", HeaderMatch::Present(true))];
        }),
    ]));
    for (path, headers, expected) in [
        ("/", vec![("x-a", "1"), ("x-a", "2")], Some("0")),
        ("/", vec![("x-a", "2"), ("x-a", "1")], Some("0")),
        ("/", vec![("x-a", "1,2")], None),
        ("/", vec![("x-n", "4")], Some("3")),
        ("/", vec![("x-n", "5")], None),
        ("/?q=1&q=2", vec![], Some("4")),
        ("/?q=2&q=1", vec![], None),
        ("/?p", vec![], Some("5")),
        ("/", vec![("cookie", "b=1; c=1")], Some("6")),
        ("/", vec![("cookie", "c=2"), ("x-cookie", "")], Some("8")),
        ("/", vec![("content-type", "application/grpc+proto")], Some("7")),
        ("/", vec![("content-type", "application/grpc-web")], None),
    ] {
        assert_eq!(found(&table, &get(path, &headers)).as_deref(), expected, "{path} {headers:?}");
    }
    let post = RequestHead::new(Method::POST, "h", "/");
    assert_eq!(found(&table, &entry(post)).as_deref(), Some("1"));
    let other = RequestHead::new(Method::GET, "other", "/");
    assert_eq!(found(&table, &entry(other)).as_deref(), Some("2"));
}

#[test]
fn certificates_of_clients() {
    let tls = |presented, validated| {
        route(move |r| r.matcher.tls_context = Some(TlsContextMatch { presented, validated }))
    };
    let table =
        built(routes(vec![tls(Some(true), Some(true)), tls(Some(true), None), tls(Some(false), None)]));
    let mut entry = get("/", &[]);
    assert_eq!(found(&table, &entry).as_deref(), Some("2"));
    let mut info = TlsInfo { peer: Some(Arc::default()), ..TlsInfo::default() };
    entry.facts.tls = Some(Arc::new(info.clone()));
    assert_eq!(found(&table, &entry).as_deref(), Some("1"));
    info.peer_validated = true;
    entry.facts.tls = Some(Arc::new(info));
    assert_eq!(found(&table, &entry).as_deref(), Some("0"));
}

#[test]
fn fractions_and_weights_are_of_the_streams_own_number() {
    let fraction = FractionalPercent { numerator: 30, denominator: 100 };
    let table = built(routes(vec![
        route(|r| r.matcher.runtime_fraction = Some(fraction)),
        route(|r| {
            let cluster = |name: &str, weight| WeightedCluster {
                cluster: ClusterName::Name(name.into()),
                weight,
                metadata_match: Metadata::default(),
                headers: HeaderEdits::default(),
                per_filter: model::PerFilters::default(),
                host_rewrite: None,
            };
            let clusters = vec![cluster("six", 6), cluster("none", 0), cluster("four", 4)];
            let choice = WeightedChoice::Header("x-pick".into());
            let weighted = Box::new(WeightedClusters { clusters, choice });
            r.action = forward(|action| action.cluster = ClusterSpecifier::Weighted(weighted));
        }),
    ]));
    let name = |entry: &Entry, random| {
        let routed = table.look(entry, random).unwrap();
        routed.cluster(head(entry)).map_or_else(|| "direct".to_owned(), |name| name.to_string())
    };
    let plain = get("/", &[]);
    let all: Vec<_> = (100..200).map(|random| name(&plain, random)).collect();
    let count = |name: &str| all.iter().filter(|one| *one == name).count();
    assert_eq!([count("direct"), count("six"), count("four"), count("none")], [30, 42, 28, 0]);
    for (pick, expected) in [("5", "six"), ("6", "four"), ("19", "four"), ("x", "six"), ("-1", "six")] {
        assert_eq!(name(&get("/", &[("x-pick", pick)]), 100 + 90 + 1), expected, "{pick}");
    }
    let twice = get("/", &[("x-pick", "6"), ("x-pick", "6")]);
    assert_eq!(name(&twice, 191), "six");
}

#[test]
fn clusters_by_header_and_metadata() {
    let by = ClusterSpecifier::Header("x-cluster".into());
    let mut metadata = Metadata::default();
    let lb = [("version".to_owned(), Value::String("v1".to_owned()))].into_iter().collect();
    metadata.0.insert("envoy.lb".into(), lb);
    let action = forward(|action| {
        action.cluster = by;
        action.metadata_match = metadata;
    });
    let table = built(routes(vec![route(|r| r.action = action)]));
    let asked = get("/", &[("x-cluster", "one"), ("x-cluster", "two")]);
    let routed = table.look(&asked, 0).unwrap();
    assert_eq!(routed.cluster(head(&asked)).as_deref(), Some("one"));
    assert_eq!(routed.cluster(head(&get("/", &[]))), None);
    assert!(routed.metadata_match().unwrap().contains_key("version"));
}

#[test]
fn virtual_hosts_that_want_tls() {
    let mut model = routes(vec![path(PathMatch::Prefix("/".into()))]);
    for (require, proto, internal, expected) in [
        (RequireTls::All, "http", true, true),
        (RequireTls::All, "https", false, false),
        (RequireTls::ExternalOnly, "http", false, true),
        (RequireTls::ExternalOnly, "http", true, false),
        (RequireTls::None, "http", false, false),
    ] {
        model.virtual_hosts[0].require_tls = require;
        let internal: &[_] = if internal { &[("x-envoy-internal", "true")] } else { &[] };
        let mut entry = get("/x?y", &[&[("x-forwarded-proto", proto)], internal].concat());
        let routed = built(model.clone()).look(&entry, 0).unwrap();
        let reply = answer(&mut entry, &routed, true).unwrap();
        let location = reply.headers.get("location").map(|value| value.to_str().unwrap());
        assert_eq!(location, expected.then_some("https://h/x?y"));
    }
}

#[test]
fn hashes() {
    let policy = |source, terminal| HashPolicy { source, terminal };
    let header = |name: &str| HashSource::Header { name: name.into(), rewrite: None };
    let cookie = |ttl| {
        let attributes = vec![("SameSite".into(), "Strict".into()), ("Secure".into(), "".into())];
        HashSource::Cookie(HashCookie { name: "c".into(), ttl, path: "/p".into(), attributes })
    };
    let of = |policies: Vec<HashPolicy>, entry: &Entry| {
        let mut cookies = Vec::new();
        let hash = Hashing::new(&policies).unwrap().hash(entry, Some(&mut cookies));
        (hash, cookies.into_iter().map(|c| c.to_str().unwrap().to_owned()).collect::<Vec<_>>())
    };
    let xx = |text: &str, seed| xxhash_rust::xxh64::xxh64(text.as_bytes(), seed);
    let entry = get("/?q=1", &[("x-a", "2"), ("x-a", "1")]);
    let values = xx("2", xx("1", 0));
    assert_eq!(of(vec![policy(header("x-a"), false)], &entry).0, Some(values));
    assert_eq!(of(vec![policy(header("x-b"), false)], &entry).0, None);
    let source_ip = xx("10.0.0.1", 0);
    let both = vec![policy(header("x-a"), false), policy(HashSource::SourceIp, false)];
    assert_eq!(of(both, &entry).0, Some(values.rotate_left(1) ^ source_ip));
    let first = vec![policy(header("x-a"), true), policy(HashSource::SourceIp, false)];
    assert_eq!(of(first, &entry).0, Some(values));
    let query = HashSource::QueryParameter("q".into());
    assert_eq!(of(vec![policy(query, false)], &entry).0, Some(xx("1", 0)));
    assert_eq!(of(vec![policy(cookie(None), false)], &entry), (None, vec![]));
    let (hash, set) = of(vec![policy(cookie(Some(Duration::from_secs(60))), false)], &entry);
    let value = format!("{:016x}", xx("10.0.0.1:100010.0.0.2:80", 0));
    assert_eq!(hash, Some(xx(&value, 0)));
    let expected = format!("c=\"{value}\"; Max-Age=60; Path=/p; SameSite=Strict; Secure; HttpOnly");
    assert_eq!(set, [expected]);
    let with = get("/", &[("cookie", "c=known")]);
    let ttl = Some(Duration::from_secs(60));
    assert_eq!(of(vec![policy(cookie(ttl), false)], &with), (Some(xx("known", 0)), vec![]));
}

#[test]
fn virtual_clusters() {
    let matches = HeaderMatch::String(exact("POST"));
    let headers =
        vec![HeaderMatcher { name: ":method".into(), matches, invert: false, treat_missing_as_empty: false }];
    let mut model = routes(vec![path(PathMatch::Prefix("/".into()))]);
    let none = built(model.clone());
    model.virtual_hosts[0].virtual_clusters = vec![VirtualCluster { name: "writes".into(), headers }];
    let some = built(model);
    let name = |table: &Routes, method| {
        let mut entry = entry(RequestHead::new(method, "h", "/"));
        let routed = table.look(&entry, 0).unwrap();
        let http = entry.http.as_deref_mut().unwrap();
        let counted = routed.tallies(http).virtual_cluster.is_some();
        (http.virtual_cluster.clone(), counted)
    };
    assert_eq!(name(&none, Method::POST), (None, false));
    assert_eq!(name(&some, Method::POST), (Some("writes".into()), true));
    assert_eq!(name(&some, Method::GET), (None, true), "the others have no name");
}

#[test]
fn hosts_by_a_header() {
    let mut model = routes(vec![path(PathMatch::Prefix("/".into()))]);
    model.virtual_hosts[0].domains = vec!["h".into()];
    model.vhost_header = Some("x-host".into());
    let table = built(model);
    assert_eq!(found(&table, &get("/", &[])), None);
    assert_eq!(found(&table, &get("/", &[("x-host", "H")])).as_deref(), Some("0"));
}
