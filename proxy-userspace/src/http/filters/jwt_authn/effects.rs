//! What tokens bring: headers for the upstream, metadata for other filters.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use proxy_config::model::http::jwt::JwtProvider;
use proxy_config::model::metadata::{Struct, Value};
use serde_json::{Map, Value as Json};

use super::Shared;
use super::find;
use super::status::Status;
use super::token::Token;
use crate::http::Stream;

const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// Of a token that is good.
pub(super) fn good(provider: &JwtProvider, token: &Token, stream: &mut Stream) {
    if let Some(name) = &provider.forward_payload_header {
        let mut payload = token.payload_text().to_owned();
        while provider.pad_forward_payload_header && !payload.len().is_multiple_of(4) {
            payload.push('=');
        }
        put(stream, name, &payload);
    }
    for claim in &provider.claim_to_headers {
        if let Some(text) = text_of(&token.payload, &claim.claim) {
            put(stream, &claim.header, &text);
        }
    }
    if let Some(key) = &provider.payload_in_metadata {
        let mut payload = fields(&token.payload);
        for name in &provider.space_delimited_claims {
            split(&mut payload, name);
        }
        note(stream, key, payload);
    }
    if let Some(key) = &provider.header_in_metadata {
        note(stream, key, fields(&token.header));
    }
}

pub(super) fn failed(provider: &JwtProvider, status: Status, stream: &mut Stream) {
    if let Some(key) = &provider.failed_status_in_metadata {
        let code = Value::Number(f64::from(status as u32));
        let message = Value::String(status.text().to_owned());
        note(stream, key, [("code".to_owned(), code), ("message".to_owned(), message)].into());
    }
}

/// Tokens have their effects without being verified.
pub(super) fn extract(shared: &Shared, status_header: Option<&Arc<str>>, stream: &mut Stream) {
    let mut told = "missing";
    for provider in shared.providers.values() {
        for found in find::tokens(&provider.model, stream.request()) {
            match Token::parse(&found.text) {
                Ok(token) => {
                    good(&provider.model, &token, stream);
                    told = "extracted";
                }
                Err(_) if told == "missing" => told = "failed",
                Err(_) => {}
            }
        }
    }
    if let Some(name) = status_header {
        put(stream, name, told);
    }
}

fn put(stream: &mut Stream, name: &str, value: &str) {
    let name = HeaderName::from_bytes(name.as_bytes());
    if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
        stream.request_mut().headers.insert(name, value);
    }
}

fn note(stream: &mut Stream, key: &str, fields: Struct) {
    let all = stream.http_mut().dynamic_metadata.0.get_or_insert_with(NAMESPACE, Struct::new);
    all.insert(key.to_owned(), Value::Struct(fields));
}

fn text_of(payload: &Map<String, Json>, path: &[Arc<str>]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let mut value = payload.get(&**first)?;
    for key in rest {
        value = value.get(&**key)?;
    }
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(bool) => Some(bool.to_string()),
        Json::Null => None,
        // As Envoy, which tells what is no single value in base64url.
        Json::Array(_) | Json::Object(_) => {
            use base64::Engine;
            Some(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string()))
        }
    }
}

fn split(payload: &mut Struct, name: &str) {
    if let Some(Value::String(text)) = payload.get(name) {
        let words = text.split(' ').filter(|word| !word.is_empty());
        let words = words.map(|word| Value::String(word.to_owned())).collect();
        payload.insert(name.to_owned(), Value::List(words));
    }
}

fn fields(map: &Map<String, Json>) -> Struct {
    map.iter().map(|(key, value)| (key.clone(), read(value))).collect()
}

fn read(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(bool) => Value::Bool(*bool),
        Json::Number(number) => Value::Number(number.as_f64().unwrap_or_default()),
        Json::String(text) => Value::String(text.clone()),
        Json::Array(list) => Value::List(list.iter().map(read).collect()),
        Json::Object(map) => Value::Struct(fields(map)),
    }
}
