//! Copies of requests for other clusters, whose responses nobody waits for: `request_mirror_policies`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Version};
use proxy_config::model::FractionalPercent;
use proxy_config::model::http::action::{ClusterName, MirrorPolicy};
use proxy_config::model::http::header::HeaderMutation;

use super::call::{self, Outcome};
use crate::clock;
use crate::cluster::Cluster;
use crate::http::message::joined;
use crate::http::pool::Caller;
use crate::http::route::{Addition, Whose, add_headers};
use crate::http::{Body, Request, RequestHead, Routed, Stream};
use crate::telemetry::trace::Span;
use crate::telemetry::{Entry, HttpEntry};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The policies of the most specific level that has some.
pub(super) fn policies<'a>(routed: &'a Routed, cluster: &'a Cluster) -> &'a [MirrorPolicy] {
    let of_route = routed.action().map(|action| &*action.mirror).unwrap_or_default();
    let of_host = routed.host().map(|host| &*host.mirror).unwrap_or_default();
    let of_all = &*routed.configuration().mirror;
    let of_cluster = cluster.model.http.as_ref().map(|http| &*http.mirror).unwrap_or_default();
    [of_route, of_host, of_all, of_cluster].into_iter().find(|all| !all.is_empty()).unwrap_or_default()
}

/// Sends a copy by each policy that wants one, with what `body` gives.
pub(super) fn send(
    stream: &Stream,
    policies: &[MirrorPolicy],
    timeout: Option<Duration>,
    mut body: impl FnMut() -> Body,
) {
    for policy in policies.iter().filter(|policy| wants(policy.runtime_fraction, stream.random)) {
        let Some(cluster) = target(stream, policy) else { continue };
        let mut head = copy(&stream.entry, policy);
        forwarded_by(&mut head, stream.conn.hcm.prepared.own_address);
        let traced = Traced::new(stream, policy, &cluster, &mut head);
        let (caller, request) = (Caller::of(&stream.conn), Request { head, body: body() });
        let tasks = &stream.conn.shared().tasks;
        tasks.spawn_on(caller.worker, "request mirror", drained(cluster, caller, request, timeout, traced));
    }
}

async fn drained(
    cluster: Arc<Cluster>,
    caller: Caller,
    request: Request,
    timeout: Option<Duration>,
    traced: Option<Box<Traced>>,
) {
    let mut outcome = Outcome::default();
    match call::told(&cluster, &caller, request, timeout, &mut outcome).await {
        Ok(mut response) => while let Some(Ok(_)) = response.body.frame().await {},
        Err(reset) => log::debug!("{}: a mirrored request: {reset}", cluster.model.name),
    }
    if let Some(traced) = traced {
        traced.finish(&outcome);
    }
}

/// A copy's span, and what it says of the copy.
struct Traced {
    span: Span,
    entry: Entry,
}

impl Traced {
    /// None: the request has no span either. The copy says whose it is.
    fn new(
        stream: &Stream,
        policy: &MirrorPolicy,
        cluster: &Cluster,
        head: &mut RequestHead,
    ) -> Option<Box<Self>> {
        let span = stream.span.as_ref()?.mirrored(policy.trace_sampled);
        span.inject(head);
        let of_stream = &stream.entry;
        let mut entry = Entry::new(of_stream.origin.clone(), of_stream.facts.clone(), of_stream.log_type);
        entry.upstream.cluster = Some(cluster.model.name.clone());
        entry.upstream.cluster_model = Some(cluster.model.clone());
        let mut http = HttpEntry::new(head.clone(), clock::now());
        // As Envoy says of all requests of its own.
        http.upstream_protocol = Some(Version::HTTP_11);
        entry.http = Some(Box::new(http));
        Some(Box::new(Self { span, entry }))
    }

    fn finish(self, outcome: &Outcome) {
        let Self { span, mut entry } = self;
        entry.upstream.host = outcome.host;
        entry.outcome.flags = outcome.flags;
        span.finish_mirrored(&entry, outcome.status);
    }
}

/// As Envoy, whose copies are requests of its own: behind whomever the request came by.
fn forwarded_by(head: &mut RequestHead, own: IpAddr) {
    let mut all = joined(&head.headers, FORWARDED_FOR.as_str()).map(Cow::into_owned).unwrap_or_default();
    if !all.is_empty() {
        all.push(b',');
    }
    all.extend_from_slice(own.to_string().as_bytes());
    if let Ok(all) = HeaderValue::from_bytes(&all) {
        head.headers.insert(FORWARDED_FOR, all);
    }
}

fn wants(fraction: Option<FractionalPercent>, random: u64) -> bool {
    fraction.is_none_or(|part| random % u64::from(part.denominator.max(1)) < part.numerator.into())
}

fn target(stream: &Stream, policy: &MirrorPolicy) -> Option<Arc<Cluster>> {
    match &policy.cluster {
        ClusterName::Name(name) => stream.conn.cluster(name),
        ClusterName::Header(name) => {
            let name = stream.request().header(name)?;
            stream.conn.cluster(&String::from_utf8_lossy(&name))
        }
    }
}

fn copy(entry: &Entry, policy: &MirrorPolicy) -> RequestHead {
    let mut entry = entry.clone();
    for mutation in &policy.mutations {
        mutate(&mut entry, mutation);
    }
    let Some(http) = entry.http.take() else { return RequestHead::new(http::Method::GET, "", "/") };
    let mut head = http.request;
    if let Some(host) = &policy.host_rewrite {
        host.as_ref().clone_into(&mut head.authority);
    } else if !policy.disable_shadow_host_suffix {
        head.authority = shadow(&head.authority);
    }
    head.headers.insert("x-envoy-internal", HeaderValue::from_static("true"));
    head
}

fn mutate(entry: &mut Entry, mutation: &HeaderMutation) {
    match mutation {
        HeaderMutation::Add(option) => {
            if let Ok(addition) = Addition::new(option) {
                add_headers(&[addition], Whose::Request, entry);
            }
        }
        HeaderMutation::Remove(name) => {
            if let Some(http) = entry.http.as_deref_mut() {
                http.request.headers.remove(&**name);
            }
        }
        HeaderMutation::RemoveOnMatch(matcher) => {
            if let Some(http) = entry.http.as_deref_mut() {
                let headers = &mut http.request.headers;
                let gone: Vec<HeaderName> =
                    headers.keys().filter(|name| matcher.is_match(name.as_str())).cloned().collect();
                gone.iter().for_each(|name| drop(headers.remove(name)));
            }
        }
    }
}

/// `host-shadow`, before the port where there is one.
fn shadow(authority: &str) -> String {
    let after_brackets = authority.rfind(']').map_or(0, |at| at + 1);
    match authority.get(after_brackets..).and_then(|rest| rest.find(':')) {
        Some(colon) => {
            let (host, port) = authority.split_at(after_brackets + colon);
            format!("{host}-shadow{port}")
        }
        None => format!("{authority}-shadow"),
    }
}

#[cfg(test)]
mod tests {
    use super::shadow;

    #[test]
    fn hosts_of_copies() {
        for (host, expected) in [
            ("a.test", "a.test-shadow"),
            ("a.test:80", "a.test-shadow:80"),
            ("[::1]", "[::1]-shadow"),
            ("[::1]:80", "[::1]-shadow:80"),
        ] {
            assert_eq!(shadow(host), expected);
        }
    }
}
