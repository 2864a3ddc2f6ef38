//! What the connection manager does with a request before any filter sees it, in Envoy's order: what it does not take,
//! the path, the host, who the client is, what is told of that, the route, the trace.

mod address;
mod certificate;
mod host;
mod path;
mod referer;
pub(super) mod request_id;
mod underscores;

use std::net::SocketAddr;

use http::header::{TE, USER_AGENT, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use proxy_config::model::http::hcm::{EscapedSlashes, SchemeHeader};
use proxy_config::model::matcher::StringMatcher;

pub(crate) use self::address::own_address;

use super::outbound::append;
use crate::http::filter::Stop;
use crate::http::{Hcm, LocalReply, RequestHead, Scheme, Stream};
use crate::telemetry::Flags;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");
const X_ENVOY_EXTERNAL_ADDRESS: HeaderName = HeaderName::from_static("x-envoy-external-address");
const X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER: HeaderName =
    HeaderName::from_static("x-envoy-downstream-service-cluster");
const X_ENVOY_DOWNSTREAM_SERVICE_NODE: HeaderName =
    HeaderName::from_static("x-envoy-downstream-service-node");

/// Envoy's own headers that a client outside may not send.
const EDGE: [HeaderName; 5] = [
    HeaderName::from_static("x-envoy-decorator-operation"),
    X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER,
    X_ENVOY_DOWNSTREAM_SERVICE_NODE,
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-envoy-original-host"),
];
/// Those that only an internal one may.
const INTERNAL: [HeaderName; 14] = [
    HeaderName::from_static("x-envoy-retriable-status-codes"),
    HeaderName::from_static("x-envoy-retriable-header-names"),
    HeaderName::from_static("x-envoy-retry-on"),
    HeaderName::from_static("x-envoy-retry-grpc-on"),
    HeaderName::from_static("x-envoy-max-retries"),
    HeaderName::from_static("x-envoy-upstream-alt-stat-name"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms"),
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response"),
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms"),
    HeaderName::from_static("x-envoy-force-trace"),
    HeaderName::from_static("x-envoy-ip-tags"),
    HeaderName::from_static("x-envoy-original-url"),
    HeaderName::from_static("x-envoy-hedge-on-per-try-timeout"),
];

pub(super) fn prepare(stream: &mut Stream) -> Result<(), Stop> {
    let hcm = stream.conn.hcm.clone();
    ignore_upgrade(stream.request_mut(), &hcm.model.http1.ignore_http_11_upgrade);
    underscores::check(stream, hcm.model.common.headers_with_underscores)?;
    check(stream, &hcm)?;
    normalize_path(stream, &hcm)?;
    let port = stream.conn.connection.facts.local.port();
    host::normalize(stream.request_mut(), hcm.model.host, port);
    for mutation in &hcm.prepared.early {
        mutation.apply(&mut stream.entry);
    }
    mutate(stream, &hcm)?;
    stream.route();
    Ok(())
}

/// Of a request that has become another one by a redirect.
pub(super) fn prepare_again(stream: &mut Stream) -> Result<(), Stop> {
    let hcm = stream.conn.hcm.clone();
    check(stream, &hcm)?;
    normalize_path(stream, &hcm)?;
    let port = stream.conn.connection.facts.local.port();
    host::normalize(stream.request_mut(), hcm.model.host, port);
    stream.route();
    Ok(())
}

/// The request goes on as if it had not asked.
fn ignore_upgrade(head: &mut RequestHead, ignored: &[StringMatcher]) {
    if head.version == Version::HTTP_11
        && head.upgrade.as_ref().is_some_and(|to| ignored.iter().any(|matcher| matcher.is_match(to)))
    {
        head.upgrade = None;
    }
}

fn refusal(status: StatusCode, details: &'static str) -> Stop {
    LocalReply::new(status, "", Flags::NONE, details).into()
}

fn check(stream: &mut Stream, hcm: &Hcm) -> Result<(), Stop> {
    let head = stream.request();
    // A Host of HTTP/1.1 may be empty.
    if head.no_host || (head.authority.is_empty() && head.version != Version::HTTP_11) {
        return Err(refusal(StatusCode::BAD_REQUEST, "missing_host_header"));
    }
    if head.path.is_empty() && !head.is_connect() {
        return Err(refusal(StatusCode::NOT_FOUND, "missing_path_rejected"));
    }
    if !head.path.is_empty() && !head.path.starts_with('/') {
        hcm.stats.downstream_rq_non_relative_path.inc();
        return Err(refusal(StatusCode::NOT_FOUND, "absolute_path_rejected"));
    }
    Ok(())
}

fn normalize_path(stream: &mut Stream, hcm: &Hcm) -> Result<(), Stop> {
    const DETAILS: &str = "path_normalization_failed";
    let settings = hcm.model.path;
    let head = stream.request_mut();
    let unescaped = match path::normalize(&mut head.path, settings) {
        Ok(unescaped) => unescaped,
        Err(path::Refused) => {
            hcm.stats.downstream_rq_failed_path_normalization.inc();
            return Err(refusal(StatusCode::BAD_REQUEST, DETAILS));
        }
    };
    if !unescaped || settings.escaped_slashes != EscapedSlashes::UnescapeAndRedirect {
        return Ok(());
    }
    if head.is_grpc() {
        // Its clients follow no redirects.
        hcm.stats.downstream_rq_failed_path_normalization.inc();
        return Err(refusal(StatusCode::BAD_REQUEST, DETAILS));
    }
    hcm.stats.downstream_rq_redirected_with_normalized_path.inc();
    let mut reply = LocalReply::new(StatusCode::TEMPORARY_REDIRECT, "", Flags::NONE, DETAILS);
    if let Ok(location) = HeaderValue::from_str(&head.path) {
        reply.headers.insert(http::header::LOCATION, location);
    }
    Err(reply.into())
}

/// Envoy's `mutateRequestHeaders`.
fn mutate(stream: &mut Stream, hcm: &Hcm) -> Result<(), Stop> {
    let conn = stream.conn.clone();
    let facts = &conn.connection.facts;
    let model = &hcm.model;
    let routes = stream.routes.clone();
    let head = stream.request_mut();
    let headers = &mut head.headers;
    headers.remove(X_ENVOY_INTERNAL);
    sanitize_te(headers);
    referer::sanitize(headers);
    let detected = address::detect(headers, facts, model, hcm.prepared.own_address);
    let detected = detected.map_err(|status| {
        hcm.stats.downstream_rq_rejected_via_ip_detection.inc();
        refusal(status, "rejecting_because_detection_failed")
    })?;
    forwarded(headers, facts, hcm);
    head.scheme = scheme(headers, head.scheme, head.version, model);
    let remote = detected.remote.unwrap_or(facts.remote);
    let internal = detected.trusted
        && detected.remote.is_some_and(|remote| address::is_internal(&model.client.internal, remote.ip()));
    let edge = !internal && model.client.use_remote_address;
    if internal {
        headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    } else {
        clean(headers, edge);
        for name in routes.iter().flat_map(|routes| routes.internal_only_headers()) {
            headers.remove(name);
        }
    }
    tell(headers, hcm, edge.then_some(remote));
    request_id::set(headers, model, edge);
    certificate::tell(headers, facts.tls.as_deref(), model.client_cert);
    stream.entry.facts.remote = remote;
    Ok(())
}

/// Envoy's own headers are few and mostly not there.
fn clean(headers: &mut HeaderMap, edge: bool) {
    if !headers.keys().any(|name| name.as_str().starts_with("x-envoy-")) {
        return;
    }
    let edge = EDGE.into_iter().filter(|_| edge);
    for name in edge.chain(INTERNAL) {
        headers.remove(name);
    }
}

/// `trailers` is all that may be said to the next hop.
fn sanitize_te(headers: &mut HeaderMap) {
    let Some(te) = headers.get(TE) else { return };
    if te.as_bytes() == b"trailers" {
        return;
    }
    let mut values = te.as_bytes().split(|byte| *byte == b',');
    if values.any(|value| value.trim_ascii() == b"trailers") {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(TE);
    }
}

/// `x-forwarded-proto` and `x-forwarded-port`.
fn forwarded(headers: &mut HeaderMap, facts: &crate::net::facts::Facts, hcm: &Hcm) {
    let model = &hcm.model;
    let client = &model.client;
    // The hop before is not trusted with it.
    let overwrites = client.use_remote_address && client.xff_num_trusted_hops == 0;
    if overwrites || !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto(facts, model)));
    }
    let port = model.identity.append_x_forwarded_port;
    if port && (overwrites || !headers.contains_key(X_FORWARDED_PORT)) {
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(facts.local.port()));
    }
    if let SchemeHeader::Overwrite(scheme) = &model.identity.scheme
        && let Ok(scheme) = HeaderValue::from_str(scheme)
    {
        headers.insert(X_FORWARDED_PROTO, scheme);
    }
}

fn proto(facts: &crate::net::facts::Facts, model: &proxy_config::model::http::Hcm) -> &'static str {
    if let Some(by_port) = model.identity.forward_proto.as_ref().filter(|_| facts.local_restored) {
        let port = facts.local.port();
        if by_port.https_ports.contains(&port) {
            return "https";
        }
        if by_port.http_ports.contains(&port) {
            return "http";
        }
    }
    if facts.tls.is_some() { "https" } else { "http" }
}

/// HTTP/1 has no scheme of its own: it is what the hop before says of its client.
fn scheme(
    headers: &HeaderMap,
    now: Scheme,
    version: Version,
    model: &proxy_config::model::http::Hcm,
) -> Scheme {
    let parse = |text: &[u8]| match text {
        text if text.eq_ignore_ascii_case(b"https") => Some(Scheme::Https),
        text if text.eq_ignore_ascii_case(b"http") => Some(Scheme::Http),
        _ => None,
    };
    if let SchemeHeader::Overwrite(scheme) = &model.identity.scheme {
        return parse(scheme.as_bytes()).unwrap_or(now);
    }
    if version == Version::HTTP_2 {
        return now;
    }
    headers.get(X_FORWARDED_PROTO).and_then(|proto| parse(proto.as_bytes())).unwrap_or(now)
}

/// Who we are, and who the client is: `external`, where this is the first proxy that it comes to.
fn tell(headers: &mut HeaderMap, hcm: &Hcm, external: Option<SocketAddr>) {
    if let Some(node) = &hcm.prepared.user_agent {
        headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_CLUSTER, node.cluster.clone());
        if headers.get(USER_AGENT).is_none_or(HeaderValue::is_empty) {
            headers.insert(USER_AGENT, node.cluster.clone());
        }
        if !node.id.is_empty() {
            headers.insert(X_ENVOY_DOWNSTREAM_SERVICE_NODE, node.id.clone());
        }
    }
    if let Some(via) = &hcm.prepared.via {
        append(headers, VIA, via, ", ");
    }
    if let Some(external) = external {
        headers.insert(X_ENVOY_EXTERNAL_ADDRESS, address::value(external.ip()));
    }
}
