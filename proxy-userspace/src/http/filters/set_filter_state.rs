//! `envoy.filters.http.set_filter_state`: puts texts where other filters and logs find them.

use std::sync::Arc;

use proxy_config::model::http::filters::{FilterStateValue, SetFilterState as Model};

use super::edits::Text;
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, Step, StreamFilter};
use crate::http::{BuildError, Stream};

/// What is put, at one level.
#[derive(Debug)]
pub struct Values {
    values: Box<[(Arc<str>, Text, bool)]>,
    clear_route_cache: bool,
}

pub(super) struct SetFilterState {
    name: Arc<str>,
    own: Arc<Values>,
}

struct One {
    name: Arc<str>,
    own: Arc<Values>,
}

impl Values {
    pub(super) fn new(model: &Model) -> Result<Self, BuildError> {
        let value =
            |value: &FilterStateValue| Ok((value.key.clone(), Text::of(&value.value)?, value.skip_if_empty));
        let values = model.on_request_headers.iter().map(value).collect::<Result<_, BuildError>>()?;
        Ok(Self { values, clear_route_cache: model.clear_route_cache })
    }

    fn apply(&self, stream: &mut Stream) {
        for (key, text, skip_if_empty) in &self.values {
            let value = text.render(&stream.entry);
            if value.is_empty() && *skip_if_empty {
                continue;
            }
            let value: Arc<str> = String::from_utf8_lossy(&value).into();
            stream.http_mut().filter_state.insert(key.clone(), value);
        }
        if self.clear_route_cache {
            stream.clear_route();
        }
    }
}

impl SetFilterState {
    pub(super) fn new(model: &Model, cx: &FilterCx<'_>) -> Result<Self, BuildError> {
        Ok(Self { name: cx.name.clone(), own: Arc::new(Values::new(model)?) })
    }
}

impl Filter for SetFilterState {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(One { name: self.name.clone(), own: self.own.clone() }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let route = stream.route();
        self.own.apply(stream);
        if let Some(route) = route {
            for config in route.filters().configs(&self.name) {
                if let RouteConfig::SetFilterState(values) = config {
                    values.apply(stream);
                }
            }
        }
        Step::Next
    }
}
