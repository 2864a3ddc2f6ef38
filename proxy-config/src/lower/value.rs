//! Scalars and well-known types with Envoy's validation: lengths, ranges, durations, prefixes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::google::protobuf as pb;

use super::{Cx, fitting};
use crate::model::metadata::{Struct, Value};

/// What a protobuf duration may hold, about ten thousand years.
const MAX_SECONDS: i64 = 315_576_000_000;

impl Cx {
    /// A string that must not be empty.
    pub(super) fn non_empty(&mut self, field: &'static str, value: String) -> Option<String> {
        if value.is_empty() {
            self.reject(field, "must not be empty");
            return None;
        }
        Some(value)
    }

    pub(super) fn name(&mut self, field: &'static str, value: String) -> Option<Arc<str>> {
        self.non_empty(field, value).map(Into::into)
    }

    /// A duration, not negative. `None` where it is not given, or is refused.
    pub(super) fn duration(&mut self, field: &'static str, value: Option<pb::Duration>) -> Option<Duration> {
        let pb::Duration { seconds, nanos } = value?;
        match (u64::try_from(seconds), u32::try_from(nanos)) {
            (Ok(s), Ok(n)) if seconds <= MAX_SECONDS && n < 1_000_000_000 => Some(Duration::new(s, n)),
            (Ok(_) | Err(_), Ok(_) | Err(_)) => {
                self.reject(field, "must be a duration from 0s to 315576000000s");
                None
            }
        }
    }

    /// A duration at which `0s` means never, with its default.
    pub(super) fn timeout(
        &mut self,
        field: &'static str,
        value: Option<pb::Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        if value.is_none() {
            return default;
        }
        self.duration(field, value).filter(|d| !d.is_zero())
    }

    /// A duration of at least `least`.
    pub(super) fn duration_from(
        &mut self,
        field: &'static str,
        value: Option<pb::Duration>,
        least: Duration,
    ) -> Option<Duration> {
        let value = self.duration(field, value)?;
        if value < least {
            self.reject(field, format!("must be at least {least:?}"));
            return None;
        }
        Some(value)
    }

    /// A number within `range`, else an error.
    pub(super) fn ranged<T: PartialOrd + std::fmt::Display>(
        &mut self,
        field: &'static str,
        value: T,
        range: std::ops::RangeInclusive<T>,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let (from, to) = range.into_inner();
        self.reject(field, format!("must be from {from} to {to}"));
        None
    }

    pub(super) fn port(&mut self, field: &'static str, value: u32) -> Option<u16> {
        if value > 65_535 {
            self.reject(field, "must be from 0 to 65535");
            return None;
        }
        u16::try_from(value).ok()
    }

    /// A port of 1 or more.
    pub(super) fn port_from_1(&mut self, field: &'static str, value: u32) -> Option<u16> {
        self.ranged(field, value, 1..=65_535)?;
        u16::try_from(value).ok()
    }

    pub(super) fn ip(&mut self, field: &'static str, value: &str) -> Option<IpAddr> {
        let ip = value.parse().ok();
        if ip.is_none() {
            self.reject(field, format!("malformed IP address: {value}"));
        }
        ip
    }

    /// The value of an enum, which must be one that the descriptor has.
    pub(super) fn variant<E: TryFrom<i32>>(&mut self, field: &'static str, value: i32) -> Option<E> {
        let known = E::try_from(value).ok();
        if known.is_none() {
            self.reject(field, format!("{value} is not a value of this enum"));
        }
        known
    }
}

/// A wrapped flag, with its default.
pub(super) fn flag(value: Option<pb::BoolValue>, default: bool) -> bool {
    value.map_or(default, |v| v.value)
}

pub(super) fn number(value: Option<pb::UInt32Value>) -> Option<u32> {
    value.map(|v| v.value)
}

/// A `google.protobuf.Struct`.
pub(crate) fn structure(value: pb::Struct) -> Struct {
    value.fields.into_iter().map(|(key, value)| (key, json_value(value))).collect()
}

/// A `google.protobuf.Value`; one that has nothing in it is a null.
pub(super) fn json_value(value: pb::Value) -> Value {
    use pb::value::Kind;
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => Value::Number(number),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::StructValue(fields)) => Value::Struct(structure(fields)),
        Some(Kind::ListValue(list)) => {
            Value::List(fitting(list.values.into_iter().map(json_value).collect()))
        }
    }
}
