//! Decisions that nobody heeds here: they are left to filter state.

use proxy_config::authz::{Answer, Header, Refused, Verdict, text};
use proxy_config::model::http::ext_authz::AuthzService;
use serde_json::{Value as Json, json};

use super::{Failure, Shared};
use crate::clock::{self, Instant};

const OK: u16 = 200;
const FORBIDDEN: u16 = 403;

/// Envoy's `ShadowDecision`, as logs show it: its fields in their order. Counts what would have stopped the request.
pub(super) fn decision(shared: &Shared, answer: &Result<Answer, Failure>, asked: Instant) -> String {
    let error = |refused: Option<&Refused>| {
        shared.stats.shadow_error.inc();
        let status = refused.and_then(|refused| refused.status);
        shown("ERROR", status.unwrap_or(shared.model.status_on_error), &[])
    };
    match answer.as_ref().map(|answer| &answer.verdict) {
        Ok(Verdict::Ok(_)) => shown("OK", OK, &[]),
        Ok(Verdict::Denied(refused)) => {
            shared.stats.shadow_denied.inc();
            let status = refused.status.unwrap_or(FORBIDDEN);
            shown("DENIED", status, &headers(shared, refused, status, asked))
        }
        Ok(Verdict::Error(refused)) => error(Some(refused)),
        Err(Failure) => error(None),
    }
}

/// By HTTP, also those that the answer's own head has beside its fields.
fn headers(shared: &Shared, refused: &Refused, status: u16, asked: Instant) -> Vec<Json> {
    let own = refused.headers.iter().map(|Header { name, value, .. }| header(name, &text(value)));
    match &shared.model.service {
        AuthzService::Grpc(_) => own.collect(),
        AuthzService::Http(_) => {
            let took = clock::now().saturating_duration_since(asked).as_millis();
            let first = header(":status", &status.to_string());
            let last = header("x-envoy-upstream-service-time", &took.to_string());
            std::iter::once(first).chain(own).chain([last]).collect()
        }
    }
}

fn header(key: &str, value: &str) -> Json {
    json!({ "key": key, "value": value })
}

fn shown(result: &str, status: u16, headers: &[Json]) -> String {
    let headers = match headers {
        [] => String::new(),
        headers => format!(",\"responseHeaders\":{}", json!(headers)),
    };
    format!("{{\"checkResult\":\"{result}\",\"statusCode\":{status}{headers}}}")
}
