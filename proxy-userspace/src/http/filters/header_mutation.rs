//! `envoy.filters.http.header_mutation`: changes headers, trailers and the query.

mod query;

use std::sync::Arc;

use http::HeaderMap;
use proxy_config::model::http::filters::{Mutations as Model, MutationsFilter};

use self::query::Query;
use super::edits::{Edits, Resolved};
use super::watch::{Watcher, watched};
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, Step, StreamFilter};
use crate::http::{BuildError, Routed, Stream};

/// What is changed, at one level.
#[derive(Debug)]
pub struct Mutations {
    request: Edits,
    query: Query,
    response: Edits,
    request_trailers: Edits,
    response_trailers: Edits,
}

pub(super) struct HeaderMutation {
    name: Arc<str>,
    own: Arc<Mutations>,
    most_specific_wins: bool,
}

struct One {
    name: Arc<str>,
    own: Arc<Mutations>,
    most_specific_wins: bool,
    /// That of the request: the response's changes are of the same.
    route: Option<Arc<Routed>>,
}

impl Mutations {
    pub(super) fn new(model: &Model) -> Result<Self, BuildError> {
        Ok(Self {
            request: Edits::of_mutations(&model.request)?,
            query: Query::new(&model.query)?,
            response: Edits::of_mutations(&model.response)?,
            request_trailers: Edits::of_mutations(&model.request_trailers)?,
            response_trailers: Edits::of_mutations(&model.response_trailers)?,
        })
    }

    fn on_request(&self, stream: &mut Stream) {
        self.request.request(&mut stream.entry);
        self.query.apply(&mut stream.entry);
        if !self.request_trailers.is_empty() {
            let edits = self.request_trailers.resolve(&stream.entry);
            stream.request_body = watched(stream.request_body.take(), Trailers(edits));
        }
    }

    fn on_response(&self, stream: &mut Stream) {
        self.response.response(&mut stream.entry);
        if !self.response_trailers.is_empty() {
            let edits = self.response_trailers.resolve(&stream.entry);
            stream.response_body = watched(stream.response_body.take(), Trailers(edits));
        }
    }
}

struct Trailers(Resolved);

impl Watcher for Trailers {
    fn trailers(&mut self, trailers: &mut HeaderMap) {
        self.0.apply(trailers);
    }
}

impl HeaderMutation {
    pub(super) fn new(model: &MutationsFilter, cx: &FilterCx<'_>) -> Result<Self, BuildError> {
        Self::of(model, cx.name)
    }

    pub(super) fn of(model: &MutationsFilter, name: &Arc<str>) -> Result<Self, BuildError> {
        let own = Arc::new(Mutations::new(&model.mutations)?);
        Ok(Self { name: name.clone(), own, most_specific_wins: model.most_specific_wins })
    }

    fn one(&self, route: Option<Arc<Routed>>) -> One {
        let Self { name, own, most_specific_wins } = self;
        One { name: name.clone(), own: own.clone(), most_specific_wins: *most_specific_wins, route }
    }

    /// Of an attempt.
    pub(super) fn on_request(&self, stream: &mut Stream) {
        self.one(stream.known_route().cloned()).each(|mutations| mutations.on_request(stream));
    }

    /// Of its response.
    pub(super) fn on_response(&self, stream: &mut Stream) {
        self.one(stream.known_route().cloned()).each(|mutations| mutations.on_response(stream));
    }
}

impl Filter for HeaderMutation {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(self.one(None)))
    }
}

impl One {
    /// What comes last wins: the least specific level, unless it is said otherwise.
    fn each(&self, mut apply: impl FnMut(&Mutations)) {
        apply(&self.own);
        let Some(filters) = self.route.as_deref().map(|route| route.filters()).filter(|all| !all.is_empty())
        else {
            return;
        };
        let mut one = |config: &RouteConfig| {
            if let RouteConfig::HeaderMutation(mutations) = config {
                apply(mutations);
            }
        };
        if self.most_specific_wins {
            filters.configs(&self.name).for_each(&mut one);
        } else {
            filters.configs(&self.name).rev().for_each(&mut one);
        }
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        self.route = stream.route();
        self.each(|mutations| mutations.on_request(stream));
        Step::Next
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        if self.route.is_none() {
            self.route = stream.known_route().cloned();
        }
        self.each(|mutations| mutations.on_response(stream));
        Step::Next
    }
}
