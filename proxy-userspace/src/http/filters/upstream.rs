//! Filters of requests upstream: each attempt passes them on its way to the codec, its response on the way back.
//!
//! Those of a cluster take the place of the router's. What they change of a request stays changed for the attempts that
//! follow, as in Envoy.

use std::sync::Arc;

use http::StatusCode;
use proxy_config::model::http::{FilterKind, HttpFilter};

use super::header_mutation::HeaderMutation;
use crate::http::{Body, BuildError, Response, ResponseHead, Stream};

/// In their order.
#[derive(Default)]
pub struct UpstreamFilters(Box<[Place]>);

struct Place {
    name: Arc<str>,
    disabled: bool,
    filter: HeaderMutation,
}

impl UpstreamFilters {
    pub fn new(models: &[HttpFilter]) -> Result<Self, BuildError> {
        let places = models.iter().filter_map(|HttpFilter { name, disabled, kind }| {
            // What else there is is the codec: others are refused with the configuration.
            let FilterKind::HeaderMutation(model) = kind else { return None };
            let filter = HeaderMutation::of(model, name);
            let filter = filter.map_err(|why| BuildError(format!("upstream filter {name}: {why}")));
            Some(filter.map(|filter| Place { name: name.clone(), disabled: *disabled, filter }))
        });
        Ok(Self(places.collect::<Result<_, BuildError>>()?))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn on<'a>(&'a self, stream: &Stream) -> impl DoubleEndedIterator<Item = &'a HeaderMutation> + use<'a> {
        let route = stream.known_route().cloned();
        let on = move |place: &&Place| {
            let said = route.as_deref().and_then(|route| route.filters().disabled(&place.name));
            !said.unwrap_or(place.disabled)
        };
        self.0.iter().filter(on).map(|place| &place.filter)
    }

    /// A request that an attempt is made with, and the body that it has left.
    pub fn request(&self, stream: &mut Stream, body: Body) -> Body {
        if self.is_empty() {
            return body;
        }
        stream.request_body = body;
        self.on(stream).for_each(|filter| filter.on_request(stream));
        stream.request_body.take()
    }

    pub fn response(&self, stream: &mut Stream, response: Response) -> Response {
        if self.is_empty() {
            return response;
        }
        let before = stream.http_mut().response.replace(response.head);
        stream.response_body = response.body;
        self.on(stream).rev().for_each(|filter| filter.on_response(stream));
        let body = stream.response_body.take();
        let head = std::mem::replace(&mut stream.http_mut().response, before);
        // Filters change it, and leave it there.
        Response { head: head.unwrap_or_else(|| ResponseHead::new(StatusCode::BAD_GATEWAY)), body }
    }
}
