//! Filters that are not served, and those whose configuration has not come.

use std::sync::Arc;

use http::StatusCode;
use proxy_config::model::http::filter::UnservedHttpFilter;

use super::FilterCx;
use crate::http::Stream;
use crate::http::filter::{Filter, LocalReply, Step, StreamFilter};
use crate::telemetry::Flags;
use crate::telemetry::stats::Counter;

/// Answers each request itself.
#[derive(Clone)]
pub(super) struct Refusing {
    counter: Arc<Counter>,
    status: StatusCode,
    body: Arc<str>,
    flags: Flags,
    details: Arc<str>,
}

impl Refusing {
    /// None: requests pass it by.
    pub(super) fn unserved(model: &UnservedHttpFilter, cx: &FilterCx<'_>) -> Option<Self> {
        let extension = &model.extension;
        log::warn!("http filter {}: {extension} is not served: {}", cx.name, model.why);
        model.fails.then(|| Self {
            counter: cx.parts.cluster.stats.counter(format!("shunt.unserved.{extension}")),
            status: StatusCode::NOT_IMPLEMENTED,
            body: format!("{extension} is not served").into(),
            flags: Flags::NONE,
            details: format!("unserved_filter:{extension}").into(),
        })
    }

    /// It guards, and cannot: no request passes.
    #[cfg(not(feature = "lua"))]
    pub(super) fn unbuilt(extension: &str, cx: &FilterCx<'_>) -> Self {
        log::warn!("http filter {}: {extension} is not served yet: all requests are refused", cx.name);
        Self {
            counter: cx.parts.cluster.stats.counter(format!("shunt.unserved.{extension}")),
            status: StatusCode::FORBIDDEN,
            body: "".into(),
            flags: Flags::UAEX,
            details: format!("unserved_filter:{extension}").into(),
        }
    }

    /// As Envoy answers where a filter's configuration is missing.
    pub(super) fn missing(cx: &FilterCx<'_>) -> Self {
        let name = format!("{}.extension_config_missing", cx.prefix);
        Self {
            counter: cx.parts.cluster.stats.counter(name),
            status: StatusCode::INTERNAL_SERVER_ERROR,
            body: "".into(),
            flags: Flags::NFCF,
            details: "filter_config_not_found".into(),
        }
    }
}

impl Filter for Refusing {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(self.clone()))
    }
}

impl StreamFilter for Refusing {
    fn request<'a>(&'a mut self, _: &'a mut Stream) -> Step<'a> {
        self.counter.inc();
        let details = self.details.to_string();
        Step::reply(LocalReply::new(self.status, self.body.to_string(), self.flags, details))
    }
}
