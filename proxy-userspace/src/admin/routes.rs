//! The admin API's paths.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use proxy_config::enrol::Workload;
use proxy_config::model::StringMatcher;

use super::body::{self, Answer, Body, text};
use super::query::Params;
use super::view::State;
use super::{Access, Context, clusters, config_dump, help, matching, server, stats, updates};
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
    let read_only = || text(StatusCode::FORBIDDEN, "changes are taken on the unix socket only\n");
    let endpoint = help::find(&path);
    Ok(match (&method, path.as_str()) {
        (&Method::GET, "/workloads") => list(&context).await,
        (&Method::POST | &Method::DELETE, path)
            if path.starts_with("/workloads") && access != Access::Workloads =>
        {
            read_only()
        }
        (&Method::POST, "/workloads") => post(request, &context).await,
        (&Method::DELETE, path) if path.starts_with("/workloads/") => {
            delete(path.trim_start_matches("/workloads/"), &context).await
        }
        (_, "/workloads") => {
            text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not a method of {path}\n"))
        }
        (_, "/ready") => ready(&context).await,
        _ => match endpoint {
            None => text(StatusCode::NOT_FOUND, format!("invalid path. {}", help::text())),
            Some(endpoint) if endpoint.mutates && method != Method::POST => {
                text(StatusCode::METHOD_NOT_ALLOWED, format!("Method {method} not allowed, POST required."))
            }
            Some(endpoint) if endpoint.mutates && access == Access::ReadOnly => read_only(),
            Some(_) if path == "/tap" => tap(request, &context).await,
            Some(_) => envoy(path, Params::parse(request.uri().query()), context).await,
        },
    })
}

/// Envoy's endpoints. Their work is done on another thread: sorting 400,000 stats takes longer than `/ready` may.
async fn envoy(path: String, params: Params, context: Arc<Context>) -> Answer {
    let answered = tokio::task::spawn_blocking(move || {
        let (view, stats) = (&context.view, &context.shared.stats);
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

async fn ready(context: &Context) -> Answer {
    let state = context.view.state();
    if state != State::Live {
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", state.name()));
    }
    let Some(workloads) = workloads(context).await else { return stopping() };
    let pending = |w: &Summary| match &w.status {
        Status::Ready => None,
        Status::Pending { reason } => Some(format!("{}: {reason}\n", w.name)),
    };
    let missing: String = workloads.iter().filter_map(pending).collect();
    if missing.is_empty() {
        // Envoy's word.
        text(StatusCode::OK, "LIVE\n")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, missing)
    }
}

async fn list(context: &Context) -> Answer {
    match workloads(context).await {
        Some(workloads) => json(StatusCode::OK, &workloads),
        None => stopping(),
    }
}

async fn body_of(request: Request<Incoming>) -> Result<String, Answer> {
    let refused = |why: String| text(StatusCode::BAD_REQUEST, why);
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect().await;
    let body = body.map_err(|e| refused(format!("cannot read the body: {e}\n")))?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| refused("the body is not UTF-8\n".to_owned()))
}

/// The answer lasts for as long as somebody reads it, and the tapping with it.
async fn tap(request: Request<Incoming>, context: &Context) -> Answer {
    let refused = |why: String| text(StatusCode::BAD_REQUEST, why);
    let taps = &context.shared.taps;
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

async fn post(request: Request<Incoming>, context: &Context) -> Answer {
    let body = match body_of(request).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let spec = match Workload::parse(&body) {
        Ok(spec) => spec,
        Err(problems) => {
            let lines: String = problems.iter().map(|p| format!("{p}\n")).collect();
            return text(StatusCode::BAD_REQUEST, lines);
        }
    };
    let Some(control) = context.control.get() else { return uncaptured() };
    match control.put(spec).await {
        Some(summary) if summary.status == Status::Ready => json(StatusCode::OK, &summary),
        // Kept and tried again.
        Some(summary) => json(StatusCode::ACCEPTED, &summary),
        None => stopping(),
    }
}

async fn delete(name: &str, context: &Context) -> Answer {
    let Some(control) = context.control.get() else { return uncaptured() };
    match control.remove(name.to_owned()).await {
        Some(Ok(())) => text(StatusCode::OK, "OK\n"),
        Some(Err(e)) => text(StatusCode::NOT_FOUND, format!("{e}\n")),
        None => stopping(),
    }
}

/// None while the daemon stops.
async fn workloads(context: &Context) -> Option<Vec<Summary>> {
    match context.control.get() {
        Some(control) => control.list().await,
        None => Some(Vec::new()),
    }
}

fn uncaptured() -> Answer {
    text(StatusCode::NOT_FOUND, "this daemon captures no workloads\n")
}

fn stopping() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n")
}

fn json<T: serde::Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(text) => body::json(status, text),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

fn html(page: String) -> Answer {
    body::reply(StatusCode::OK, "text/html; charset=UTF-8", Body::Whole(Some(page.into())))
}
