//! A JSON Web Token, read and not yet verified.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::status::Status;

#[derive(Debug)]
pub(super) struct Token {
    text: String,
    /// Of header and payload, with the dot between.
    signed: usize,
    pub(super) algorithm: String,
    pub(super) key_id: Option<String>,
    pub(super) header: Map<String, Value>,
    pub(super) payload: Map<String, Value>,
    pub(super) signature: Vec<u8>,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) audiences: Vec<String>,
    pub(super) issued_at: Option<u64>,
    pub(super) not_before: Option<u64>,
    pub(super) expires: Option<u64>,
}

const ALGORITHMS: &[&str] = &[
    "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384",
    "PS512", "EdDSA",
];

impl Token {
    pub(super) fn parse(text: &str) -> Result<Self, Status> {
        let parts: Vec<&str> = text.split('.').collect();
        let &[header, payload, signature] = parts.as_slice() else { return Err(Status::BadFormat) };
        let head = object(header, Status::HeaderBase64, Status::HeaderJson)?;
        let algorithm = head.get("alg").and_then(Value::as_str).ok_or(Status::HeaderAlgorithm)?.to_owned();
        if !ALGORITHMS.contains(&&*algorithm) {
            return Err(Status::AlgorithmUnknown);
        }
        let key_id = string(&head, "kid", Status::HeaderKeyId)?;
        let claims = object(payload, Status::PayloadBase64, Status::PayloadJson)?;
        Ok(Self {
            signed: header.len() + 1 + payload.len(),
            algorithm,
            key_id,
            issuer: string(&claims, "iss", Status::PayloadIssuer)?.unwrap_or_default(),
            subject: string(&claims, "sub", Status::PayloadSubject)?.unwrap_or_default(),
            audiences: audiences(&claims)?,
            issued_at: seconds(&claims, "iat", Status::PayloadIssuedAt)?,
            not_before: seconds(&claims, "nbf", Status::PayloadNotBefore)?,
            expires: seconds(&claims, "exp", Status::PayloadExpires)?,
            signature: URL_SAFE_NO_PAD.decode(signature).map_err(|_| Status::SignatureBase64)?,
            header: head,
            payload: claims,
            text: text.to_owned(),
        })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn signed(&self) -> &[u8] {
        &self.text.as_bytes()[..self.signed]
    }

    /// As it stands in the token.
    pub(super) fn payload_text(&self) -> &str {
        self.text.split('.').nth(1).unwrap_or_default()
    }
}

fn object(text: &str, bad_base64: Status, bad_json: Status) -> Result<Map<String, Value>, Status> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad_base64)?;
    serde_json::from_slice(&bytes).map_err(|_| bad_json)
}

fn string(of: &Map<String, Value>, name: &str, bad: Status) -> Result<Option<String>, Status> {
    match of.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(bad),
    }
}

/// Numbers with a fraction are taken, as dates of some issuers have one.
fn seconds(of: &Map<String, Value>, name: &str, bad: Status) -> Result<Option<u64>, Status> {
    match of.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => {
            let whole = number.as_u64().or_else(|| number.as_f64().filter(|n| *n >= 0.0).map(|n| n as u64));
            whole.map(Some).ok_or(bad)
        }
        Some(_) => Err(bad),
    }
}

fn audiences(of: &Map<String, Value>) -> Result<Vec<String>, Status> {
    match of.get("aud") {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(all)) => {
            let text = |one: &Value| one.as_str().map(str::to_owned).ok_or(Status::PayloadAudience);
            all.iter().map(text).collect()
        }
        Some(_) => Err(Status::PayloadAudience),
    }
}
