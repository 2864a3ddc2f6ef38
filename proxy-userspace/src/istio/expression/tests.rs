use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use proxy_config::model::metadata::Value as Given;

use super::*;
use crate::http::{RequestHead, ResponseHead};
use crate::istio::Slot;
use crate::net::facts::Facts;
use crate::telemetry::{LogType, Origin};

fn entry() -> Entry {
    let address = "10.0.0.1:80".parse().unwrap();
    let origin = Origin { connection_id: 7, workload: None, direction: None, listener: "l".into() };
    let mut entry = Entry::new(origin, Facts::new(address, address), LogType::TcpConnectionEnd);
    let mut head = RequestHead::new(Method::GET, "a.test:8080", "/one/two?x=1");
    head.headers.insert("x-user", HeaderValue::from_static("jason"));
    let mut http = HttpEntry::new(head, clock::now());
    http.response = Some(ResponseHead::new(StatusCode::NOT_FOUND));
    http.filter_state.insert("wasm.class".into(), "4xx".into());
    http.route = Some("main".into());
    entry.http = Some(Box::new(http));
    let labels = vec![("role".into(), "backend".into())];
    let peer = Peer { canonical_name: "ratings".into(), labels, ..Peer::default() };
    entry.peers.upstream = Some(Arc::new(Slot::of(Arc::new(peer))));
    entry
}

fn local() -> Local {
    let mut labels = Struct::new();
    labels.insert("app".into(), Given::String("web".into()));
    let mut metadata = Struct::new();
    metadata.insert("LABELS".into(), Given::Struct(labels));
    metadata.insert("list".into(), Given::List(vec![Given::String("first".into())]));
    Local { metadata, ..Local::default() }
}

fn said(text: &str) -> Option<String> {
    let expression = Expression::parse(text).unwrap();
    let (entry, local) = (entry(), local());
    Scope { entry: &entry, local: &local }.text(&expression).map(Cow::into_owned)
}

#[test]
fn attributes() {
    for (text, expected) in [
        ("request.host", "a.test:8080"),
        ("request.method", "GET"),
        ("request.url_path", "/one/two"),
        ("request.query", "x=1"),
        ("request.protocol", "HTTP/1.1"),
        ("request.headers['x-user']", "jason"),
        ("response.code", "404"),
        ("string(destination.port)", "80"),
        ("source.address", "10.0.0.1:80"),
        ("connection.id", "7"),
        ("connection.mtls", "false"),
        ("xds.route_name + ',' + request.scheme", "main,http"),
        ("'_' + xds.node.metadata['LABELS'].app", "_web"),
        ("'_' + node.metadata.LABELS.app", "_web"),
        ("node.metadata.list[0]", "first"),
        ("filter_state['wasm.class']", "4xx"),
        ("filter_state.upstream_peer.labels['role']", "backend"),
        ("filter_state.upstream_peer.service", "ratings"),
    ] {
        assert_eq!(said(text).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn operators() {
    for (text, expected) in [
        ("request.url_path.startsWith('/one') ? 'first' : 'other'", "first"),
        ("request.url_path.matches('^/o.*two$') && !(response.code == 200)", "true"),
        ("response.code >= 400 && response.code < 500", "true"),
        ("has(request.headers.nothing) || true", "true"),
        ("nothing.at_all || true", "true"),
        ("nothing.at_all && false", "false"),
        ("'x-user' in request.headers", "true"),
        ("'x-other' in request.headers", "false"),
        ("request.method in ['GET', 'HEAD']", "true"),
        ("1 + 2 * 3", "7"),
        ("7 / 2", "3"),
        ("7.0 / 2", "3.5"),
        ("size('four')", "4"),
        ("int('12') - 2", "10"),
        ("-(3) == -3", "true"),
        ("null", "NULL"),
    ] {
        assert_eq!(said(text).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn what_cannot_be_known_is_not() {
    for text in [
        "request.headers['nothing']",
        "filter_state.downstream_peer.service",
        "filter_state.upstream_peer.namespace",
        "filter_state.nothing",
        "xds.cluster_name",
        "cannot_evaluate.at",
        "'a' + 1",
        "1 / 0",
        "9223372036854775807 + 1",
        "node.metadata.list[9]",
        "response.code && true",
        "request.nothing",
    ] {
        assert_eq!(said(text), None, "{text}");
    }
    let expression = Expression::parse("response.code").unwrap();
    assert_eq!(Scope { entry: &entry(), local: &local() }.amount(&expression), 404);
}
