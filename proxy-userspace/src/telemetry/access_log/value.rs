//! What an operator yields: typed, so that JSON keeps numbers as numbers.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use proxy_config::model::metadata::{Metadata, Value as Meta};
use serde_json::{Map, Number, Value as Json};

use super::write;

/// The value of one operator for one connection.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::telemetry) enum Value<'a> {
    /// `-` in text, null in JSON.
    Missing,
    Text(Cow<'a, str>),
    Number(u64),
    Address(SocketAddr),
    Ip(IpAddr),
    /// Of metadata.
    Json(Json),
}

impl<'a> Value<'a> {
    pub(in crate::telemetry) fn text(text: impl Into<Cow<'a, str>>) -> Self {
        Self::Text(text.into())
    }

    pub(in crate::telemetry) fn option(text: Option<impl Into<Cow<'a, str>>>) -> Self {
        text.map_or(Self::Missing, |text| Self::Text(text.into()))
    }

    /// As text; nothing where it is missing.
    pub(in crate::telemetry) fn to_text(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Missing => None,
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Number(number) => Some(number.to_string().into()),
            Self::Address(address) => Some(address.to_string().into()),
            Self::Ip(ip) => Some(ip.to_string().into()),
            Self::Json(Json::String(text)) => Some(Cow::Borrowed(text)),
            Self::Json(json) => Some(json.to_string().into()),
        }
    }

    /// As [`Self::to_text`], behind what is there. Whether there is any.
    pub(super) fn push_to(&self, out: &mut String) -> bool {
        match self {
            Self::Missing => return false,
            Self::Text(text) => out.push_str(text),
            Self::Number(number) => write::number(out, *number),
            Self::Address(address) => write::address(out, *address),
            Self::Ip(ip) => write::ip(out, *ip),
            Self::Json(Json::String(text)) => out.push_str(text),
            Self::Json(json) => out.push_str(&json.to_string()),
        }
        true
    }

    pub(in crate::telemetry) fn into_json(self) -> Option<Json> {
        match self {
            Self::Missing => None,
            Self::Text(text) => Some(Json::String(text.into_owned())),
            Self::Number(number) => Some(Json::from(number)),
            Self::Address(address) => Some(Json::String(address.to_string())),
            Self::Ip(ip) => Some(Json::String(ip.to_string())),
            Self::Json(json) => Some(json),
        }
    }
}

/// The value under `namespace` and a path of keys; null is as missing, as in Envoy.
pub(in crate::telemetry) fn metadata<'a>(metadata: Option<&Metadata>, path: &[String]) -> Value<'a> {
    let Some((namespace, keys)) = path.split_first() else { return Value::Missing };
    let Some(found) = metadata.and_then(|m| m.of(namespace)) else { return Value::Missing };
    let Some((first, rest)) = keys.split_first() else {
        return Value::Json(Json::Object(found.iter().map(|(k, v)| (k.clone(), json(v))).collect()));
    };
    let mut value = found.get(first);
    for key in rest {
        value = match value {
            Some(Meta::Struct(fields)) => fields.get(key),
            Some(Meta::Null | Meta::Bool(_) | Meta::Number(_) | Meta::String(_) | Meta::List(_)) | None => {
                None
            }
        };
    }
    match value {
        None | Some(Meta::Null) => Value::Missing,
        Some(value) => Value::Json(json(value)),
    }
}

fn json(value: &Meta) -> Json {
    match value {
        Meta::Null => Json::Null,
        Meta::Bool(b) => Json::Bool(*b),
        Meta::Number(n) => number(*n),
        Meta::String(s) => Json::String(s.clone()),
        Meta::List(list) => Json::Array(list.iter().map(json).collect()),
        Meta::Struct(fields) => {
            Json::Object(fields.iter().map(|(k, v)| (k.clone(), json(v))).collect::<Map<_, _>>())
        }
    }
}

/// A whole number without a point, as Envoy writes it.
pub(in crate::telemetry) fn number(n: f64) -> Json {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if n.fract() == 0.0 && n.abs() <= EXACT {
        return Json::from(n as i64);
    }
    Number::from_f64(n).map_or(Json::Null, Json::Number)
}
