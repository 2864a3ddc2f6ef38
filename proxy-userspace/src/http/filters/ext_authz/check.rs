//! What a service is told of a request.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use ::http::Version;
use proxy_config::authz::{Check, Peer, Request, text};
use proxy_config::model::Metadata;
use proxy_config::model::http::ext_authz::{AuthzService, ExtAuthz};
use proxy_config::model::matcher::StringMatcher;

use super::{Question, Shared};
use crate::http::{RequestHead, Stream};
use crate::telemetry::access_log::url_encoded_pem;
use crate::transport::Certificate;

/// Tells of a body whether it is all of it.
const PARTIAL: &str = "x-envoy-auth-partial-body";

pub(super) fn of(shared: &Shared, question: &Question, stream: &Stream) -> Check {
    let (model, facts, http) = (&shared.model, &stream.entry.facts, stream.http());
    let tls = facts.tls.as_deref();
    let of_header = |name: &str| stream.request().header(name).map(|value| text(&value).into_owned());
    let peer = tls.and_then(|tls| tls.peer.as_deref());
    let certificate = peer.filter(|_| model.include_peer_certificate);
    let connection = facts.extra.as_ref().map(|extra| &extra.dynamic_metadata);
    Check {
        source: Peer {
            address: Some(facts.remote),
            service: of_header("x-envoy-downstream-service-cluster").unwrap_or_default(),
            principal: peer.map(name).unwrap_or_default(),
            certificate: certificate.map(|peer| url_encoded_pem(&peer.der)).unwrap_or_default(),
            ..Peer::default()
        },
        destination: Peer {
            address: Some(facts.local),
            principal: tls.and_then(|tls| tls.local.as_deref()).map(name).unwrap_or_default(),
            labels: shared.labels.clone(),
            ..Peer::default()
        },
        request: request(model, question, stream),
        context_extensions: question.context_extensions.clone(),
        metadata: only(&model.metadata_context_namespaces, &[Some(&http.dynamic_metadata), connection]),
        route_metadata: only(&model.route_metadata_context_namespaces, &[http.route_metadata.as_deref()]),
        server_name: model.include_tls_session.then(|| {
            let agreed = tls.and_then(|tls| tls.server_name.as_deref());
            agreed.or(facts.server_name.as_deref()).unwrap_or_default().to_owned()
        }),
    }
}

fn request(model: &ExtAuthz, question: &Question, stream: &Stream) -> Request {
    let head = stream.request();
    let bytes = match &model.service {
        AuthzService::Http(_) => true,
        AuthzService::Grpc(_) => model.with_request_body.is_some_and(|body| body.pack_as_bytes),
    };
    let body = question.body.as_ref();
    Request {
        time: stream.start.wall.duration_since(UNIX_EPOCH).unwrap_or_default(),
        id: stream.random.to_string(),
        method: head.method.to_string(),
        headers: headers(model, question, head),
        raw_headers: model.encode_raw_headers,
        path: text(head.path.as_bytes()).into_owned(),
        host: text(head.authority.as_bytes()).into_owned(),
        scheme: head.scheme.as_str().to_owned(),
        protocol: match head.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        size: body.map_or(0, |told| i64::try_from(told.size).unwrap_or(i64::MAX)),
        body: body.map(|told| told.data.to_vec()).unwrap_or_default(),
        body_as_bytes: bytes,
    }
}

/// Those that the service may see, pseudo-headers first, and what is to be known of the body.
pub(super) fn headers(model: &ExtAuthz, question: &Question, head: &RequestHead) -> Vec<(String, Vec<u8>)> {
    let pseudo = [
        (":authority", head.authority.as_bytes()),
        (":path", head.path.as_bytes()),
        (":method", head.method.as_str().as_bytes()),
        (":scheme", head.scheme.as_str().as_bytes()),
    ];
    let plain = head.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let upgrade = head.upgrade.as_ref().filter(|_| head.version != Version::HTTP_2);
    let upgrade = upgrade.map(|to| [("connection", &b"upgrade"[..]), ("upgrade", to.as_bytes())]);
    let all = pseudo.into_iter().chain(plain).chain(upgrade.into_iter().flatten());
    // A client does not say what it is told itself.
    let told = all.filter(|(name, _)| *name != PARTIAL && goes(model, name));
    let mut told: Vec<_> = told.map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    if let Some(body) = &question.body {
        told.push((PARTIAL.to_owned(), body.partial.to_string().into_bytes()));
    }
    told
}

fn goes(model: &ExtAuthz, name: &str) -> bool {
    if any(&model.disallowed_headers, name) {
        return false;
    }
    match &model.service {
        AuthzService::Grpc(_) => model.allowed_headers.as_ref().is_none_or(|listed| any(listed, name)),
        AuthzService::Http(service) => {
            let listed = service.allowed_headers.as_ref().or(model.allowed_headers.as_ref());
            matches!(name, "authorization" | ":method" | ":path" | ":authority")
                || listed.is_some_and(|listed| any(listed, name))
        }
    }
}

fn any(matchers: &[StringMatcher], name: &str) -> bool {
    matchers.iter().any(|matcher| matcher.is_match(name))
}

/// A URI, else a DNS name, else the subject.
fn name(certificate: &Certificate) -> String {
    let Certificate { uri_sans, dns_sans, subject, .. } = certificate;
    uri_sans.first().or_else(|| dns_sans.first()).unwrap_or(subject).clone()
}

/// Of each name that which is found first.
fn only(names: &[Arc<str>], metadata: &[Option<&Metadata>]) -> Metadata {
    let mut told = Metadata::default();
    for name in names {
        if let Some(found) = metadata.iter().flatten().find_map(|metadata| metadata.of(name)) {
            told.0.insert(name.to_string(), found.clone());
        }
    }
    told
}
