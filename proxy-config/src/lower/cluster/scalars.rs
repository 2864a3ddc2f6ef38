//! Durations and numbers as cluster messages bound them.

use std::fmt::Display;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf as google;

use crate::lower::Cx;
use crate::lower::registry::registry;

registry! { RuntimeDouble }

lower! { "envoy.config.core.v3.RuntimeDouble" RuntimeDouble => f64, cx;
    read { default_value }
    warn { runtime_key: "there is no runtime: the default value holds" }
    {
        let _ = cx;
        Some(default_value)
    }
}

/// A duration that must be more than nothing.
pub fn positive(cx: &mut Cx, name: &'static str, value: Option<google::Duration>) -> Option<Duration> {
    let value = cx.duration(name, value)?;
    if value.is_zero() {
        cx.reject(name, "must be greater than 0s");
        return None;
    }
    Some(value)
}

/// A DNS refresh rate, which Envoy wants to be more than a millisecond.
pub fn refresh_rate(cx: &mut Cx, name: &'static str, value: Option<google::Duration>) -> Option<Duration> {
    let value = cx.duration(name, value)?;
    if value <= Duration::from_millis(1) {
        cx.reject(name, "must be greater than 1ms");
        return None;
    }
    Some(value)
}

pub fn at_most<T: PartialOrd + Display>(
    cx: &mut Cx,
    name: &'static str,
    value: Option<T>,
    most: T,
) -> Option<T> {
    let value = value?;
    if value > most {
        cx.reject(name, format!("{value} is more than {most}"));
        return None;
    }
    Some(value)
}

pub fn at_least<T: PartialOrd + Display>(
    cx: &mut Cx,
    name: &'static str,
    value: Option<T>,
    least: T,
) -> Option<T> {
    let value = value?;
    if value < least {
        cx.reject(name, format!("{value} is less than {least}"));
        return None;
    }
    Some(value)
}

pub fn percent(cx: &mut Cx, name: &'static str, value: Option<Percent>) -> Option<f64> {
    value.and_then(|percent| cx.lower(name, percent))
}
