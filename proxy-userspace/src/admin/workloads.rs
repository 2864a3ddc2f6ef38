//! Workloads: the list, one of them, and the configuration that it has brought.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use proxy_config::enrol::Workload;

use super::body::{Answer, text};
use super::routes::{body_of, json, read_only, stopping};
use super::{Access, Context};
use crate::sidecar::Sidecar;
use crate::workload::{Status, Summary};

/// `/workloads`.
pub(super) async fn all(
    request: Request<Incoming>,
    (method, access): (Method, Access),
    context: &Context,
) -> Answer {
    match method {
        Method::GET => match list(context).await {
            Some(workloads) => json(StatusCode::OK, &workloads),
            None => stopping(),
        },
        Method::POST if access == Access::Workloads => post(request, context).await,
        Method::POST => read_only(),
        _ => no_method(&method, "/workloads"),
    }
}

/// `/workloads/NAME`.
pub(super) async fn one(name: &str, (method, access): (Method, Access), context: &Context) -> Answer {
    match method {
        Method::GET => match list(context).await {
            Some(workloads) => match workloads.iter().find(|workload| workload.name == name) {
                Some(workload) => json(StatusCode::OK, workload),
                None => unknown(name),
            },
            None => stopping(),
        },
        Method::DELETE if access == Access::Workloads => delete(name, context).await,
        Method::DELETE | Method::POST if access != Access::Workloads => read_only(),
        _ => no_method(&method, &format!("/workloads/{name}")),
    }
}

/// The configuration that it has brought; else why there is none.
pub(super) async fn sidecar(name: &str, context: &Context) -> Result<Arc<Sidecar>, Answer> {
    if let Some(sidecar) = context.sidecars.of(name) {
        return Ok(sidecar);
    }
    let workloads = list(context).await.ok_or_else(stopping)?;
    let workload = workloads.iter().find(|workload| workload.name == name).ok_or_else(|| unknown(name))?;
    let why = match (&workload.configuration, &workload.status) {
        (Some(configuration), _) => configuration.problem.clone().unwrap_or_default(),
        (None, Status::Pending { reason }) => reason.clone(),
        (None, Status::Ready) => "it brings no bootstrap and runs on the daemon's".to_owned(),
    };
    let why = format!("workload {name} has no configuration of its own: {why}\n");
    Err(text(StatusCode::NOT_FOUND, why))
}

/// None while the daemon stops.
pub(super) async fn list(context: &Context) -> Option<Vec<Summary>> {
    match context.control.get() {
        Some(control) => control.list().await,
        None => Some(Vec::new()),
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

fn uncaptured() -> Answer {
    text(StatusCode::NOT_FOUND, "this daemon captures no workloads\n")
}

fn unknown(name: &str) -> Answer {
    text(StatusCode::NOT_FOUND, format!("no workload {name} is enrolled\n"))
}

fn no_method(method: &Method, path: &str) -> Answer {
    text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not a method of {path}\n"))
}
