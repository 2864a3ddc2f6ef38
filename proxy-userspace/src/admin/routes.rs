//! The admin API's paths.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use proxy_config::model::StringMatcher;

use super::body::{self, Answer, Body, text};
use super::query::Params;
use super::view::State;
use super::{
    Access, Context, Subject, clusters, config_dump, help, matching, server, stats, updates, workloads,
};
use crate::transport::tap::admin::Refusal;
use crate::workload::{Status, Summary};

/// An entry is a few hundred bytes; its exclusions may be long.
const BODY_LIMIT: usize = 1 << 20;

pub(super) async fn answer(
    request: Request<Incoming>,
    context: Arc<Context>,
    access: Access,
    allow: Arc<[StringMatcher]>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    if !allow.is_empty() && !allow.iter().any(|matcher| matcher.is_match(&path)) {
        return Ok(text(StatusCode::FORBIDDEN, format!("request to path {path} not allowed\n")));
    }
    let terms = (method, access);
    Ok(match About::of(&path) {
        About::Workloads => workloads::all(request, terms, &context).await,
        About::Workload(name) => workloads::one(name, terms, &context).await,
        About::Daemon("/ready") => ready(&context).await,
        About::Daemon(path) => envoy(path, request, terms, &context.own).await,
        // The daemon's, and with it everybody's.
        About::Sidecar(_, "/quitquitquit") => {
            text(StatusCode::FORBIDDEN, "this would end the daemon: ask for it there\n")
        }
        About::Sidecar(name, path) => match workloads::sidecar(name, &context).await {
            Ok(sidecar) => {
                let own = if access == Access::Workloads { access } else { Access::ReadOnly };
                envoy(path, request, (terms.0, own), &Subject::of(&sidecar)).await
            }
            Err(answer) => answer,
        },
    })
}

/// What a path is about.
#[derive(Debug, PartialEq)]
enum About<'p> {
    Daemon(&'p str),
    /// All of them.
    Workloads,
    Workload(&'p str),
    /// A workload's own configuration, and the path that its own proxy would be asked for.
    Sidecar(&'p str, &'p str),
}

impl<'p> About<'p> {
    fn of(path: &'p str) -> Self {
        match path.strip_prefix("/workloads") {
            Some("") => Self::Workloads,
            Some(rest) => match rest.strip_prefix('/') {
                Some(rest) => match rest.find('/') {
                    Some(at) => Self::Sidecar(&rest[..at], &rest[at..]),
                    None => Self::Workload(rest),
                },
                None => Self::Daemon(path),
            },
            None => Self::Daemon(path),
        }
    }
}

/// Envoy's endpoints, of one configuration.
async fn envoy(
    path: &str,
    request: Request<Incoming>,
    (method, access): (Method, Access),
    subject: &Subject,
) -> Answer {
    match help::find(path) {
        None => text(StatusCode::NOT_FOUND, format!("invalid path. {}", help::text())),
        Some(endpoint) if endpoint.mutates && method != Method::POST => {
            text(StatusCode::METHOD_NOT_ALLOWED, format!("Method {method} not allowed, POST required."))
        }
        Some(endpoint) if endpoint.mutates && access == Access::ReadOnly => read_only(),
        Some(_) if path == "/tap" => tap(request, subject).await,
        Some(_) if path == "/ready" => ready_of(subject),
        Some(_) => worked_out(path.to_owned(), Params::parse(request.uri().query()), subject.clone()).await,
    }
}

pub(super) fn read_only() -> Answer {
    text(StatusCode::FORBIDDEN, "changes are taken on the unix socket only\n")
}

/// What takes work is done on another thread: sorting 400,000 stats takes longer than `/ready` may.
async fn worked_out(path: String, params: Params, subject: Subject) -> Answer {
    let answered = tokio::task::spawn_blocking(move || {
        let Subject { view, stats, .. } = &subject;
        match path.as_str() {
            "/" => html(help::html()),
            "/help" => text(StatusCode::OK, help::text()),
            "/stats" => stats::answer(&params, stats, view.as_ref(), false),
            "/stats/prometheus" => stats::answer(&params, stats, view.as_ref(), true),
            "/clusters" => clusters::clusters(&params, view),
            "/listeners" => clusters::listeners(&params, view.as_ref()),
            "/config_dump" => config_dump::answer(&params, view),
            "/server_info" => server::info(view.as_ref()),
            "/memory" => server::memory(),
            "/runtime" => server::runtime(view.as_ref()),
            "/logging" => server::logging(&params),
            "/shunt/match" => matching::answer(&params, view.as_ref()),
            "/shunt/listeners" => matching::listeners(view.as_ref()),
            "/shunt/updates" => updates::answer(&params, view.as_ref()),
            "/shunt/watch" => updates::watch(&params, view.as_ref()),
            path => server::small(path, &params, view.as_ref(), stats)
                .unwrap_or_else(|| text(StatusCode::NOT_FOUND, format!("invalid path. {}", help::text()))),
        }
    });
    match answered.await {
        Ok(answer) => answer,
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn ready_of(subject: &Subject) -> Answer {
    let state = subject.view.state();
    let live = state == State::Live;
    let status = if live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, format!("{}\n", state.name()))
}

/// The daemon is ready when all of its workloads are.
async fn ready(context: &Context) -> Answer {
    let own = ready_of(&context.own);
    if own.status() != StatusCode::OK {
        return own;
    }
    let Some(workloads) = workloads::list(context).await else { return stopping() };
    let pending = |w: &Summary| match &w.status {
        Status::Ready => None,
        Status::Pending { reason } => Some(format!("{}: {reason}\n", w.name)),
    };
    let missing: String = workloads.iter().filter_map(pending).collect();
    if missing.is_empty() { own } else { text(StatusCode::SERVICE_UNAVAILABLE, missing) }
}

pub(super) async fn body_of(request: Request<Incoming>) -> Result<String, Answer> {
    let refused = |why: String| text(StatusCode::BAD_REQUEST, why);
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect().await;
    let body = body.map_err(|e| refused(format!("cannot read the body: {e}\n")))?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| refused("the body is not UTF-8\n".to_owned()))
}

/// The answer lasts for as long as somebody reads it, and the tapping with it.
async fn tap(request: Request<Incoming>, subject: &Subject) -> Answer {
    let refused = |why: String| text(StatusCode::BAD_REQUEST, why);
    let taps = &subject.taps;
    if taps.is_attached() {
        return refused(Refusal::Attached.to_string());
    }
    let body = match body_of(request).await {
        Ok(body) if body.is_empty() => return refused("/tap requires a JSON/YAML body".to_owned()),
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let request = match proxy_config::tap::request(&body) {
        Ok(request) => request,
        Err(problems) => {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            return refused(lines.join("\n"));
        }
    };
    match taps.attach(&request.config_id, &request.config) {
        Ok(attached) => body::reply(StatusCode::OK, body::TEXT, Body::Tap(Box::new(attached))),
        Err(refusal) => refused(refusal.to_string()),
    }
}

pub(super) fn stopping() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n")
}

pub(super) fn json<T: serde::Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(text) => body::json(status, text),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

fn html(page: String) -> Answer {
    body::reply(StatusCode::OK, "text/html; charset=UTF-8", Body::Whole(Some(page.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_is_about() {
        for (path, about) in [
            ("/", About::Daemon("/")),
            ("/stats", About::Daemon("/stats")),
            ("/workloadsx", About::Daemon("/workloadsx")),
            ("/workloads", About::Workloads),
            ("/workloads/web", About::Workload("web")),
            ("/workloads/web/", About::Sidecar("web", "/")),
            ("/workloads/web/stats/prometheus", About::Sidecar("web", "/stats/prometheus")),
            ("/workloads//stats", About::Sidecar("", "/stats")),
        ] {
            assert_eq!(About::of(path), about, "{path}");
        }
    }
}
