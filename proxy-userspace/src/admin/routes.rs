//! The admin API's paths.

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use proxy_config::enrol::Workload;

use super::{Access, Context};
use crate::workload::{Status, Summary};

/// An entry is a few hundred bytes; its exclusions may be long.
const BODY_LIMIT: usize = 1 << 20;

const HELP: &str = "\
GET /ready                200 once every workload is captured, else 503 and what is missing
GET /workloads            every workload with its state, as JSON
POST /workloads           enrol or change one: {name, cgroup, netns, policy}, YAML or JSON (unix socket only)
DELETE /workloads/NAME    take one out (unix socket only)
GET /stats                counters and gauges
";

type Answer = Response<Full<Bytes>>;

pub(super) async fn answer(
    request: Request<Incoming>,
    context: Arc<Context>,
    access: Access,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    Ok(match (&method, path.as_str()) {
        (&Method::GET, "/" | "/help") => text(StatusCode::OK, HELP),
        (&Method::GET, "/ready") => ready(&context).await,
        (&Method::GET, "/workloads") => list(&context).await,
        (&Method::GET, "/stats") => text(StatusCode::OK, context.shared.stats.render_text()),
        (&Method::POST | &Method::DELETE, _) if access == Access::ReadOnly => {
            text(StatusCode::FORBIDDEN, "changes are taken on the unix socket only\n")
        }
        (&Method::POST, "/workloads") => post(request, &context).await,
        (&Method::DELETE, path) if path.starts_with("/workloads/") => {
            delete(path.trim_start_matches("/workloads/"), &context).await
        }
        (_, "/" | "/help" | "/ready" | "/workloads" | "/stats") => {
            text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not a method of {path}\n"))
        }
        _ => text(StatusCode::NOT_FOUND, format!("no path {path}\n{HELP}")),
    })
}

async fn ready(context: &Context) -> Answer {
    let Some(workloads) = context.control.list().await else { return stopping() };
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
    match context.control.list().await {
        Some(workloads) => json(StatusCode::OK, &workloads),
        None => stopping(),
    }
}

async fn post(request: Request<Incoming>, context: &Context) -> Answer {
    let body = match Limited::new(request.into_body(), BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) => return text(StatusCode::BAD_REQUEST, format!("cannot read the body: {e}\n")),
    };
    let Ok(body) = std::str::from_utf8(&body) else {
        return text(StatusCode::BAD_REQUEST, "the body is not UTF-8\n");
    };
    let spec = match Workload::parse(body) {
        Ok(spec) => spec,
        Err(problems) => {
            let lines: String = problems.iter().map(|p| format!("{p}\n")).collect();
            return text(StatusCode::BAD_REQUEST, lines);
        }
    };
    match context.control.put(spec).await {
        Some(summary) if summary.status == Status::Ready => json(StatusCode::OK, &summary),
        // Kept and tried again.
        Some(summary) => json(StatusCode::ACCEPTED, &summary),
        None => stopping(),
    }
}

async fn delete(name: &str, context: &Context) -> Answer {
    match context.control.remove(name.to_owned()).await {
        Some(Ok(())) => text(StatusCode::OK, "OK\n"),
        Some(Err(e)) => text(StatusCode::NOT_FOUND, format!("{e}\n")),
        None => stopping(),
    }
}

fn stopping() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping\n")
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    reply(status, "text/plain; charset=UTF-8", body.into())
}

fn json<T: serde::Serialize + ?Sized>(status: StatusCode, value: &T) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => reply(status, "application/json", body.into()),
        Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let value = hyper::header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, value);
    response
}
