//! A service that is asked by plain HTTP.

use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HOST, LOCATION, TRANSFER_ENCODING, WWW_AUTHENTICATE};
use ::http::{HeaderName, HeaderValue, StatusCode};
use bytes::Bytes;
use proxy_config::authz::{Allowed, Answer, Header, Refused, Verdict};
use proxy_config::model::http::ext_authz::{AuthzHttpService as Model, AuthzRetry};
use proxy_config::model::http::header::AppendAction;
use proxy_config::model::http::retry::RetryOn;
use proxy_config::model::matcher::StringMatcher;
use proxy_config::model::metadata::{Struct, Value};
use rand::RngExt as _;

use super::{Call, Failure, Question, Shared, check};
use crate::clock;
use crate::http::filters::edits::Text;
use crate::http::filters::whole::Whole;
use crate::http::message::joined;
use crate::http::pool::Caller;
use crate::http::{
    Body, BuildError, Request, RequestHead, ResetReason, Response, ResponseHead, Scheme, Stream, router,
};

/// No answer is longer.
const LONGEST: usize = 1024 * 1024;
/// By it an answer says which headers are to go.
const REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

pub(super) struct Service {
    model: Model,
    scheme: Scheme,
    add: Box<[(HeaderName, Text)]>,
}

impl Service {
    pub(super) fn new(model: &Model) -> Result<Self, BuildError> {
        let add = |(name, format): &(Arc<str>, _)| {
            let header = HeaderName::from_bytes(name.as_bytes());
            let header = header.map_err(|_| BuildError(format!("{name:?} is no name of a header")))?;
            Ok((header, Text::new(format)?))
        };
        let scheme = if model.uri.starts_with("https://") { Scheme::Https } else { Scheme::Http };
        let add = model.headers_to_add.iter().map(add).collect::<Result<_, BuildError>>()?;
        Ok(Self { model: model.clone(), scheme, add })
    }
}

pub(super) fn call(
    service: &Service,
    shared: &Shared,
    question: &Question,
    stream: &Stream,
) -> Result<Call, Failure> {
    let model = &service.model;
    let cluster = stream.conn.cluster(&model.cluster).ok_or(Failure)?;
    let body = question.body.as_ref().map(|told| told.data.clone()).unwrap_or_default();
    let head = head(service, shared, question, &body, stream);
    let request = Request { head, body: Body::full(body) };
    let caller = Caller::of(&stream.conn);
    Ok(Call { cluster, caller, request, timeout: Some(patience(model)) })
}

/// How long an attempt may take.
fn patience(model: &Model) -> Duration {
    model.retry.map_or(model.timeout, |retry| model.timeout.min(retry.backoff.1))
}

/// `question`: what it was asked with.
pub(super) async fn answer(service: &Service, call: Call, question: &Question) -> Result<Answer, Failure> {
    let model = &service.model;
    let response = send(model, call, question).await?;
    let head = response.head;
    let whole = Whole::read(response.body, LONGEST).await.map_err(|_| Failure)?;
    if head.status.is_server_error() || whole.over {
        return Err(Failure);
    }
    let metadata = metadata(model, &head);
    let verdict = match head.status.as_u16() {
        200 => Verdict::Ok(allowed(model, &head)),
        status => Verdict::Denied(Refused {
            status: Some(status),
            headers: for_client(model, &head),
            body: whole.data.to_vec(),
        }),
    };
    Ok(Answer { verdict, metadata, invalid_action: false })
}

/// Again, where a policy says so. The time-out is for all attempts.
async fn send(model: &Model, mut call: Call, question: &Question) -> Result<Response, Failure> {
    let Some(AuthzRetry { on, times, backoff: (mut pause, longest) }) = model.retry else {
        return call.send().await.map_err(|_| Failure);
    };
    let until = clock::now() + model.timeout;
    for _ in 0..times {
        let body = question.body.as_ref().map(|told| told.data.clone()).unwrap_or_default();
        let again = call.again(body);
        let result = call.send().await;
        let wanted = match &result {
            Ok(response) => wants_status(on, response.head.status),
            Err(reset) => wants_reset(on, reset.reason),
        };
        let waits = pause.mul_f64(rand::rng().random_range(0.0..1.0));
        let left = until.saturating_duration_since(clock::now() + waits);
        if !wanted || left.is_zero() {
            return result.map_err(|_| Failure);
        }
        tokio::time::sleep(waits).await;
        pause = pause.saturating_mul(2).min(longest);
        call = Call { timeout: Some(left.min(longest)), ..again };
    }
    call.send().await.map_err(|_| Failure)
}

fn wants_status(on: RetryOn, status: StatusCode) -> bool {
    on.has(RetryOn::SERVER_ERROR) && status.is_server_error()
        || on.has(RetryOn::GATEWAY_ERROR) && matches!(status.as_u16(), 502..=504)
        || on.has(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT
}

fn wants_reset(on: RetryOn, reason: ResetReason) -> bool {
    on.has(RetryOn::RESET.with(RetryOn::SERVER_ERROR).with(RetryOn::GATEWAY_ERROR))
        || on.has(RetryOn::CONNECT_FAILURE) && reason == ResetReason::ConnectionFailure
        || on.has(RetryOn::REFUSED_STREAM) && reason == ResetReason::RemoteRefused
}

fn head(
    service: &Service,
    shared: &Shared,
    question: &Question,
    body: &Bytes,
    stream: &Stream,
) -> RequestHead {
    let (original, model) = (stream.request(), &service.model);
    let path = match &model.path_override {
        Some(path) => path.to_string(),
        None => format!("{}{}", model.path_prefix, original.path),
    };
    let mut head = RequestHead::new(original.method.clone(), original.authority.clone(), path);
    head.scheme = service.scheme;
    for (name, value) in check::headers(&shared.model, question, original) {
        // Pseudo-headers are no names of headers.
        let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| !is_own(name));
        let Some(name) = name else { continue };
        // As the text of a check has them.
        let before = joined(&head.headers, name.as_str()).filter(|_| !shared.model.encode_raw_headers);
        let all = before.map(|before| [&before[..], b",", &value].concat());
        if let Some(Ok(all)) = all.as_ref().map(|all| HeaderValue::from_bytes(all)) {
            head.headers.insert(name, all);
        } else if let Ok(value) = HeaderValue::from_bytes(&value) {
            head.headers.append(name, value);
        }
    }
    for (name, text) in &service.add {
        let value = text.render(&stream.entry);
        if let Ok(value) = HeaderValue::from_bytes(&value)
            && !value.is_empty()
        {
            head.headers.insert(name, value);
        }
    }
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    router::announce(&mut head, None, Some(patience(model)));
    head
}

/// What the question has of its own.
fn is_own(name: &HeaderName) -> bool {
    matches!(
        *name,
        CONTENT_LENGTH | TRANSFER_ENCODING | HOST | ::http::header::CONNECTION | ::http::header::UPGRADE
    )
}

fn has(matchers: &[StringMatcher], name: &HeaderName) -> bool {
    matchers.iter().any(|matcher| matcher.is_match(name.as_str()))
}

fn header(name: &HeaderName, value: &HeaderValue, append: AppendAction) -> Header {
    Header::new(name.as_str(), value.as_bytes(), append)
}

fn allowed(model: &Model, head: &ResponseHead) -> Allowed {
    let mut allowed = Allowed::default();
    let (mut appended, overwrites) = (Vec::new(), AppendAction::OverwriteIfExistsOrAdd);
    for (name, value) in &head.headers {
        if *name == REMOVE {
            let names = String::from_utf8_lossy(value.as_bytes());
            let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
            allowed.remove.extend(names.map(str::to_owned));
            continue;
        }
        if has(&model.allowed_upstream_headers, name) {
            allowed.headers.push(header(name, value, overwrites));
        }
        if has(&model.allowed_upstream_headers_to_append, name) {
            appended.push(header(name, value, AppendAction::AppendIfExistsOrAdd));
        }
        if has(&model.allowed_client_headers_on_success, name) {
            allowed.response_headers.push(header(name, value, AppendAction::AppendIfExistsOrAdd));
        }
    }
    allowed.headers.append(&mut appended);
    allowed
}

fn metadata(model: &Model, head: &ResponseHead) -> Struct {
    let mut told = Struct::new();
    for (name, value) in &head.headers {
        if *name != REMOVE && has(&model.dynamic_metadata_from_headers, name) {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            told.insert(name.as_str().to_owned(), Value::String(value));
        }
    }
    told
}

/// Of a refusal. Some go whatever is listed, as in Envoy.
fn for_client(model: &Model, head: &ResponseHead) -> Vec<Header> {
    let listed = &model.allowed_client_headers;
    let goes = |name: &HeaderName| {
        listed.is_empty() || *name == WWW_AUTHENTICATE || *name == LOCATION || has(listed, name)
    };
    let each = head.headers.iter().filter(|(name, _)| **name != REMOVE && goes(name));
    each.map(|(name, value)| header(name, value, AppendAction::AppendIfExistsOrAdd)).collect()
}
