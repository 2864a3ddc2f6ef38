//! What an expression of CEL says of a stream or a connection: Envoy's attributes.

use std::borrow::Cow;
use std::net::SocketAddr;

use http::HeaderMap;
use proxy_config::model::expression::{ATTRIBUTES, Expression, Function, Operator};
use proxy_config::model::metadata::{self, Metadata, Struct};

use super::{Local, Peer};
use crate::clock;
use crate::net::Direction;
use crate::telemetry::access_log::http::{grpc_or_http, protocol};
use crate::telemetry::{Entry, HttpEntry};
use crate::transport::{Certificate, TlsInfo};

/// What is asked about.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    pub entry: &'a Entry,
    pub local: &'a Local,
}

#[derive(Clone, Debug)]
enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
    Object(Object<'a>),
}

/// Something that has fields.
#[derive(Clone, Copy, Debug)]
enum Object<'a> {
    Attribute(&'a str),
    RequestHeaders,
    Headers(&'a HeaderMap),
    Struct(&'a Struct),
    Values(&'a [metadata::Value]),
    Metadata(&'a Metadata),
    Peer(&'a Peer),
    PeerLabels(&'a Peer),
    Locality,
    NodeOf,
}

impl<'a> Scope<'a> {
    /// As text: `None` where it cannot be known.
    pub fn text(&self, expression: &'a Expression) -> Option<Cow<'a, str>> {
        Some(match self.value(expression)? {
            Value::Null => "NULL".into(),
            Value::Bool(bool) => if bool { "true" } else { "false" }.into(),
            Value::Int(number) => number.to_string().into(),
            Value::Double(number) => number.to_string().into(),
            Value::Text(text) => text,
            Value::List(_) => "CelList".into(),
            Value::Object(_) => "CelMap".into(),
        })
    }

    /// As a number, 0 where it is none.
    pub fn amount(&self, expression: &'a Expression) -> u64 {
        self.text(expression).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn value(&self, expression: &'a Expression) -> Option<Value<'a>> {
        Some(match expression {
            Expression::Null => Value::Null,
            Expression::Bool(bool) => Value::Bool(*bool),
            Expression::Int(number) => Value::Int(*number),
            Expression::Double(number) => Value::Double(*number),
            Expression::Text(text) => Value::Text(Cow::Borrowed(text)),
            Expression::List(list) => {
                Value::List(list.iter().map(|one| self.value(one)).collect::<Option<_>>()?)
            }
            Expression::Name(name) if ATTRIBUTES.contains(&&**name) => Value::Object(Object::Attribute(name)),
            Expression::Name(_) => return None,
            Expression::Field { of, field } => self.field(self.object(of)?, field)?,
            Expression::Index { of, at } => self.index(self.value(of)?, &self.value(at)?)?,
            Expression::Has(of) => {
                let Expression::Field { of, field } = &**of else { return None };
                Value::Bool(self.object(of).and_then(|object| self.field(object, field)).is_some())
            }
            Expression::Not(of) => Value::Bool(!self.truth(of)?),
            Expression::Negative(of) => match self.value(of)? {
                Value::Int(number) => Value::Int(number.checked_neg()?),
                Value::Double(number) => Value::Double(-number),
                Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Object(_) => {
                    return None;
                }
            },
            Expression::Binary { operator, left, right } => self.binary(*operator, left, right)?,
            Expression::If { condition, then, other } => {
                self.value(if self.truth(condition)? { then } else { other })?
            }
            Expression::Call { function, on, argument } => self.call(*function, on, argument.as_deref())?,
            Expression::Matches { on, regex } => match self.value(on)? {
                Value::Text(text) => Value::Bool(regex.0.is_match(&text)),
                Value::Null
                | Value::Bool(_)
                | Value::Int(_)
                | Value::Double(_)
                | Value::List(_)
                | Value::Object(_) => return None,
            },
        })
    }

    fn object(&self, expression: &'a Expression) -> Option<Object<'a>> {
        match self.value(expression)? {
            Value::Object(object) => Some(object),
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Double(_)
            | Value::Text(_)
            | Value::List(_) => None,
        }
    }

    fn truth(&self, expression: &'a Expression) -> Option<bool> {
        match self.value(expression)? {
            Value::Bool(bool) => Some(bool),
            Value::Null
            | Value::Int(_)
            | Value::Double(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Object(_) => None,
        }
    }

    fn binary(&self, operator: Operator, left: &'a Expression, right: &'a Expression) -> Option<Value<'a>> {
        // One side may decide what the other cannot say.
        if let Operator::Or | Operator::And = operator {
            let decides = operator == Operator::Or;
            return Some(Value::Bool(match (self.truth(left), self.truth(right)) {
                (Some(one), _) | (_, Some(one)) if one == decides => decides,
                (Some(_), Some(_)) => !decides,
                (_, _) => return None,
            }));
        }
        let (left, right) = (self.value(left)?, self.value(right)?);
        Some(match operator {
            Operator::Or | Operator::And => return None,
            Operator::Equal => Value::Bool(equal(&left, &right)),
            Operator::NotEqual => Value::Bool(!equal(&left, &right)),
            Operator::Less => Value::Bool(order(&left, &right)?.is_lt()),
            Operator::LessOrEqual => Value::Bool(order(&left, &right)?.is_le()),
            Operator::Greater => Value::Bool(order(&left, &right)?.is_gt()),
            Operator::GreaterOrEqual => Value::Bool(order(&left, &right)?.is_ge()),
            Operator::In => Value::Bool(match (&left, right) {
                (_, Value::List(list)) => list.iter().any(|one| equal(&left, one)),
                (Value::Text(key), Value::Object(object)) => self.field(object, key).is_some(),
                (_, _) => return None,
            }),
            Operator::Add => match (left, right) {
                (Value::Text(left), Value::Text(right)) => Value::Text((left + right).into_owned().into()),
                (left, right) => number(operator, &left, &right)?,
            },
            Operator::Subtract | Operator::Multiply | Operator::Divide | Operator::Remainder => {
                number(operator, &left, &right)?
            }
        })
    }

    fn call(
        &self,
        function: Function,
        on: &'a Expression,
        argument: Option<&'a Expression>,
    ) -> Option<Value<'a>> {
        let on = self.value(on)?;
        let argument = argument.map(|argument| self.value(argument));
        Some(match (function, on, argument) {
            (Function::Size, Value::Text(text), None) => {
                Value::Int(i64::try_from(text.chars().count()).ok()?)
            }
            (Function::Size, Value::List(list), None) => Value::Int(i64::try_from(list.len()).ok()?),
            (Function::ToString, text @ Value::Text(_), None) => text,
            (Function::ToString, Value::Int(number), None) => Value::Text(number.to_string().into()),
            (Function::ToString, Value::Double(number), None) => Value::Text(number.to_string().into()),
            (Function::ToString, Value::Bool(bool), None) => Value::Text(bool.to_string().into()),
            (Function::ToInt, number @ Value::Int(_), None) => number,
            (Function::ToInt, Value::Double(number), None) => Value::Int(number as i64),
            (Function::ToInt, Value::Text(text), None) => Value::Int(text.parse().ok()?),
            (Function::StartsWith, Value::Text(text), Some(Some(Value::Text(part)))) => {
                Value::Bool(text.starts_with(&*part))
            }
            (Function::EndsWith, Value::Text(text), Some(Some(Value::Text(part)))) => {
                Value::Bool(text.ends_with(&*part))
            }
            (Function::Contains, Value::Text(text), Some(Some(Value::Text(part)))) => {
                Value::Bool(text.contains(&*part))
            }
            (_, _, _) => return None,
        })
    }

    fn index(&self, of: Value<'a>, at: &Value<'a>) -> Option<Value<'a>> {
        match (of, at) {
            (Value::Object(Object::Values(list)), Value::Int(at)) => {
                Some(of_value(list.get(usize::try_from(*at).ok()?)?))
            }
            (Value::List(list), Value::Int(at)) => list.get(usize::try_from(*at).ok()?).cloned(),
            (Value::Object(object), Value::Text(key)) => self.field(object, key),
            (_, _) => None,
        }
    }

    fn field(&self, of: Object<'a>, name: &str) -> Option<Value<'a>> {
        let http = self.entry.http.as_deref();
        match of {
            Object::Attribute("request") => self.request(http?, name),
            Object::Attribute("response") => self.response(http?, name),
            Object::Attribute("connection") => self.connection(name),
            Object::Attribute("upstream") => self.upstream(name),
            Object::Attribute("source") => address(self.entry.facts.remote, name),
            Object::Attribute("destination") => address(self.entry.facts.local, name),
            Object::Attribute("metadata") => match name {
                "filter_metadata" => Some(Value::Object(Object::Metadata(&http?.dynamic_metadata))),
                _ => None,
            },
            Object::Attribute("filter_state") => match self.entry.peers.by_key(name) {
                Some(peer) => Some(Value::Object(Object::Peer(peer))),
                None => http?.filter_state.get(name).map(|value| text(value)),
            },
            Object::Attribute("node") | Object::NodeOf => self.node(name),
            Object::Attribute("xds") => self.xds(name),
            Object::Attribute(_) => None,
            Object::RequestHeaders => owned(http?.request.header(&name.to_ascii_lowercase())?),
            Object::Headers(headers) => owned(crate::http::message::joined(headers, name)?),
            Object::Struct(fields) => fields.get(name).map(of_value),
            Object::Values(_) => None,
            Object::Metadata(metadata) if name == "filter_metadata" => {
                Some(Value::Object(Object::Metadata(metadata)))
            }
            Object::Metadata(metadata) => Some(Value::Object(Object::Struct(metadata.of(name)?))),
            Object::Peer(peer) if name == "labels" => Some(Value::Object(Object::PeerLabels(peer))),
            Object::Peer(peer) => peer.field(name).filter(|value| !value.is_empty()).map(text),
            Object::PeerLabels(peer) => peer.label_value(name).map(text),
            Object::Locality => match name {
                "region" => Some(text(&self.local.region)),
                "zone" => Some(text(&self.local.zone)),
                "sub_zone" => Some(text(&self.local.sub_zone)),
                _ => None,
            },
        }
    }

    fn request(&self, http: &'a HttpEntry, name: &str) -> Option<Value<'a>> {
        let request = &http.request;
        let header = |name: &str| request.header(name).and_then(owned);
        let size = i64::try_from(http.request_body).unwrap_or(i64::MAX);
        Some(match name {
            "path" => text(&request.path),
            "url_path" => text(request.path_alone()),
            "query" => text(request.query().unwrap_or_default()),
            "host" => text(&request.authority),
            "scheme" => text(request.scheme.as_str()),
            "method" => text(request.method.as_str()),
            "headers" => Value::Object(Object::RequestHeaders),
            "referer" => return header("referer"),
            "useragent" => return header("user-agent"),
            "id" => return header("x-request-id"),
            "protocol" => text(protocol(request.version)),
            "size" => Value::Int(size),
            "total_size" => Value::Int(size.saturating_add(i64::try_from(request.size).ok()?)),
            "duration" => Value::Text(format!("{}ms", http.start.elapsed().as_millis()).into()),
            "time" => Value::Text(clock::rfc3339(self.entry.start).into()),
            _ => return None,
        })
    }

    fn response(&self, http: &'a HttpEntry, name: &str) -> Option<Value<'a>> {
        let sent = &http.sent;
        let int = |number: u64| Value::Int(i64::try_from(number).unwrap_or(i64::MAX));
        Some(match name {
            "code" => Value::Int(i64::from(http.response.as_ref()?.status.as_u16())),
            "code_details" => text(self.entry.outcome.response_code_details.as_deref()?),
            "headers" => Value::Object(Object::Headers(&http.response.as_ref()?.headers)),
            "trailers" => Value::Object(Object::Headers(http.response_trailers.as_ref()?)),
            "flags" => Value::Int(i64::from(self.entry.outcome.flags.bits())),
            "grpc_status" => Value::Int(i64::from(grpc_or_http(http)?)),
            "size" => int(sent.body_bytes),
            "total_size" => int(sent.head_bytes + sent.body_bytes + sent.trailer_bytes),
            _ => return None,
        })
    }

    fn connection(&self, name: &str) -> Option<Value<'a>> {
        let facts = &self.entry.facts;
        let tls = facts.tls.as_deref();
        Some(match name {
            "mtls" => Value::Bool(tls.is_some_and(|tls| tls.peer.is_some())),
            "id" => Value::Int(i64::try_from(self.entry.origin.connection_id).ok()?),
            "requested_server_name" => text(facts.server_name.as_deref().unwrap_or_default()),
            "termination_details" => text(self.entry.outcome.termination_details.as_deref()?),
            "transport_failure_reason" => text(self.entry.outcome.downstream_failure.as_deref()?),
            name => return certified(tls?, name),
        })
    }

    fn upstream(&self, name: &str) -> Option<Value<'a>> {
        let upstream = &self.entry.upstream;
        Some(match name {
            "address" | "port" => return address(upstream.host?, name),
            "local_address" => Value::Text(upstream.local?.to_string().into()),
            "transport_failure_reason" => text(self.entry.outcome.upstream_failure.as_deref()?),
            "request_attempt_count" => Value::Int(i64::from(upstream.attempts)),
            name => return certified(upstream.tls.as_deref()?, name),
        })
    }

    fn node(&self, name: &str) -> Option<Value<'a>> {
        Some(match name {
            "id" => text(&self.local.id),
            "cluster" => text(&self.local.cluster),
            "metadata" => Value::Object(Object::Struct(&self.local.metadata)),
            "locality" => Value::Object(Object::Locality),
            _ => return None,
        })
    }

    fn xds(&self, name: &str) -> Option<Value<'a>> {
        let (entry, http) = (self.entry, self.entry.http.as_deref());
        let metadata = |metadata: &'a Metadata| Value::Object(Object::Metadata(metadata));
        Some(match name {
            "node" => Value::Object(Object::NodeOf),
            "cluster_name" => text(entry.upstream.cluster.as_deref()?),
            "cluster_metadata" => metadata(entry.upstream.cluster_model.as_deref()?.metadata.get()),
            "upstream_host_metadata" => metadata(entry.upstream.host_metadata.as_deref()?),
            "route_name" => text(http?.route.as_deref()?),
            "route_metadata" => metadata(http?.route_metadata.as_deref()?),
            "virtual_host_name" => text(http?.virtual_host.as_deref()?),
            "virtual_host_metadata" => metadata(http?.virtual_host_metadata.as_deref()?),
            "filter_chain_name" => text(entry.filter_chain.as_deref()?),
            "listener_metadata" => metadata(entry.listener_metadata.as_deref()?),
            "listener_direction" => Value::Int(match entry.origin.direction {
                None => 0,
                Some(Direction::Inbound) => 1,
                Some(Direction::Outbound) => 2,
            }),
            _ => return None,
        })
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(Cow::Borrowed(text))
}

fn owned(bytes: Cow<'_, [u8]>) -> Option<Value<'static>> {
    Some(Value::Text(String::from_utf8_lossy(&bytes).into_owned().into()))
}

fn address(address: SocketAddr, name: &str) -> Option<Value<'static>> {
    match name {
        "address" => Some(Value::Text(address.to_string().into())),
        "port" => Some(Value::Int(i64::from(address.port()))),
        _ => None,
    }
}

/// What TLS has shown.
fn certified<'a>(tls: &'a TlsInfo, name: &str) -> Option<Value<'a>> {
    let (peer, local) = (tls.peer.as_deref(), tls.local.as_deref());
    let first = |of: Option<&'a Certificate>, sans: fn(&Certificate) -> &[String]| {
        of.and_then(|of| sans(of).first()).map(|san| text(san))
    };
    match name {
        "tls_version" => Some(text(tls.version)),
        "subject_peer_certificate" => Some(text(&peer?.subject)),
        "subject_local_certificate" => Some(text(&local?.subject)),
        "uri_san_peer_certificate" => first(peer, |of| &of.uri_sans),
        "uri_san_local_certificate" => first(local, |of| &of.uri_sans),
        "dns_san_peer_certificate" => first(peer, |of| &of.dns_sans),
        "dns_san_local_certificate" => first(local, |of| &of.dns_sans),
        "sha256_peer_certificate_digest" => Some(text(&peer?.fingerprint_256)),
        _ => None,
    }
}

fn of_value(value: &metadata::Value) -> Value<'_> {
    match value {
        metadata::Value::Null => Value::Null,
        metadata::Value::Bool(bool) => Value::Bool(*bool),
        metadata::Value::Number(number) => Value::Double(*number),
        metadata::Value::String(string) => text(string),
        metadata::Value::List(list) => Value::Object(Object::Values(list)),
        metadata::Value::Struct(fields) => Value::Object(Object::Struct(fields)),
    }
}

fn equal(one: &Value<'_>, other: &Value<'_>) -> bool {
    match (one, other) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(one), Value::Bool(other)) => one == other,
        (Value::List(one), Value::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (_, _) => order(one, other).is_some_and(std::cmp::Ordering::is_eq),
    }
}

fn order(one: &Value<'_>, other: &Value<'_>) -> Option<std::cmp::Ordering> {
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => Some(one.cmp(other)),
        (Value::Text(one), Value::Text(other)) => Some(one.cmp(other)),
        (one, other) => double(one)?.partial_cmp(&double(other)?),
    }
}

fn double(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Double(number) => Some(*number),
        Value::Null | Value::Bool(_) | Value::Text(_) | Value::List(_) | Value::Object(_) => None,
    }
}

/// Of two whole numbers a whole one, which must fit.
fn number(operator: Operator, left: &Value<'_>, right: &Value<'_>) -> Option<Value<'static>> {
    if let (Value::Int(left), Value::Int(right)) = (left, right) {
        return Some(Value::Int(match operator {
            Operator::Add => left.checked_add(*right)?,
            Operator::Subtract => left.checked_sub(*right)?,
            Operator::Multiply => left.checked_mul(*right)?,
            Operator::Divide => left.checked_div(*right)?,
            Operator::Remainder => left.checked_rem(*right)?,
            Operator::Or
            | Operator::And
            | Operator::Equal
            | Operator::NotEqual
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::Greater
            | Operator::GreaterOrEqual
            | Operator::In => return None,
        }));
    }
    let (left, right) = (double(left)?, double(right)?);
    Some(Value::Double(match operator {
        Operator::Add => left + right,
        Operator::Subtract => left - right,
        Operator::Multiply => left * right,
        Operator::Divide => left / right,
        Operator::Remainder
        | Operator::Or
        | Operator::And
        | Operator::Equal
        | Operator::NotEqual
        | Operator::Less
        | Operator::LessOrEqual
        | Operator::Greater
        | Operator::GreaterOrEqual
        | Operator::In => return None,
    }))
}

#[cfg(test)]
mod tests;
