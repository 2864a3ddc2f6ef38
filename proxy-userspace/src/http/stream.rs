//! One request and its response, on their way.

use std::sync::Arc;
use std::time::SystemTime;

use http::Extensions;

use super::manager::traced::{self, Traced};
use super::route::Routed;
use super::router::{Followed, Timer};
use super::{Body, Hcm, RequestHead, ResponseHead, Routes, Upload};
use crate::clock::Start;
use crate::cluster::Cluster;
use crate::istio::Peers;
use crate::net::{Dial, Direction, Place, Shared};
use crate::task::workers;
use crate::telemetry::trace::Span;
use crate::telemetry::{Entry, Flags, HttpEntry, LogType, Outcome, Side};
use crate::world::{Base, Live};

/// What all streams of a client's connection share.
pub struct ConnCx {
    pub hcm: Arc<Hcm>,
    pub place: Arc<Place>,
    pub live: Arc<Live>,
    pub listener: Arc<Base>,
    /// The connection's own entry: its facts, where it was going, its filter chain.
    pub connection: Box<Entry>,
    /// The worker that carries it: connections upstream are kept for reuse by each worker.
    pub worker: workers::Place,
}

/// One request and its response. Filters, routes and the router work on it in turn.
pub struct Stream {
    pub conn: Arc<ConnCx>,
    /// Its heads, and all that is told of it. `http` is always there: see [`Self::http`].
    pub entry: Box<Entry>,
    pub start: Start,
    /// Its own: whatever is done at random is done alike for as long as it lasts.
    pub random: u64,
    pub request_body: Body,
    pub response_body: Body,
    /// Of a tunnel: what carries the client's bytes on, beside the response's body.
    pub upload: Option<Upload>,
    /// The routes of now, for as long as the stream lasts.
    pub routes: Option<Arc<Routes>>,
    /// Outer `None`: not looked for yet, or cleared; inner: there is none.
    route: Option<Option<Arc<Routed>>>,
    /// Of its trace, where it is part of one.
    pub span: Option<Box<Span>>,
    /// Of the attempt that is made.
    pub upstream_span: Option<Box<Span>>,
    pub traced: Traced,
    /// What filters leave for each other.
    pub extensions: Extensions,
    /// Each 1xx goes this way to the client.
    pub interim: Option<super::Interim>,
    /// The response is the proxy's own.
    pub local_reply: bool,
    /// Its connection's, for the router.
    pub timer: Timer,
    /// It came as one of gRPC, whatever filters make of it: the proxy's own responses are then.
    pub grpc: bool,
}

impl ConnCx {
    pub fn shared(&self) -> &Arc<Shared> {
        &self.place.shared
    }

    /// Makes its upstream sockets.
    pub fn dial(&self) -> &dyn Dial {
        self.place.dial.of(self.connection.origin.direction.unwrap_or(Direction::Outbound))
    }

    pub fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        self.live.cluster(name)
    }
}

impl Stream {
    pub fn new(conn: Arc<ConnCx>, head: RequestHead, request_body: Body) -> Self {
        let (start, grpc) = (Start::lately(), head.is_grpc());
        let entry = entry(&conn.connection, HttpEntry::new(head, start.at), start.wall);
        let routes = conn.hcm.routes.now();
        Self {
            conn,
            entry: Box::new(entry),
            start,
            random: rand::random(),
            request_body,
            response_body: Body::empty(),
            upload: None,
            routes,
            route: None,
            span: None,
            upstream_span: None,
            traced: Traced::default(),
            extensions: Extensions::new(),
            interim: None,
            local_reply: false,
            timer: None,
            grpc,
        }
    }

    /// The request as it is now, on its way again: what is known of its client and of how it came stays, what filters
    /// and routes have found out does not.
    pub fn renew(&mut self) {
        let http = self.http().renewed();
        let facts = self.entry.facts.clone();
        *self.entry = Entry { facts, ..entry(&self.conn.connection, http, self.start.wall) };
        self.random = rand::random();
        self.response_body = Body::empty();
        self.upload = None;
        self.routes = self.conn.hcm.routes.now();
        self.route = None;
        self.traced = Traced::default();
        let followed = self.extensions.remove::<Followed>();
        self.extensions.clear();
        if let Some(followed) = followed {
            self.extensions.insert(followed);
        }
        self.local_reply = false;
        self.grpc = self.request().is_grpc();
    }

    #[expect(clippy::expect_used, reason = "it is there from the start and is never taken")]
    pub fn http(&self) -> &HttpEntry {
        self.entry.http.as_deref().expect("a stream of HTTP")
    }

    #[expect(clippy::expect_used, reason = "as above")]
    pub fn http_mut(&mut self) -> &mut HttpEntry {
        self.entry.http.as_deref_mut().expect("a stream of HTTP")
    }

    pub fn request(&self) -> &RequestHead {
        &self.http().request
    }

    pub fn request_mut(&mut self) -> &mut RequestHead {
        &mut self.http_mut().request
    }

    pub fn response(&self) -> Option<&ResponseHead> {
        self.http().response.as_ref()
    }

    pub fn response_mut(&mut self) -> Option<&mut ResponseHead> {
        self.http_mut().response.as_mut()
    }

    /// The route of the request as it is now; looked for once, until it is cleared.
    pub fn route(&mut self) -> Option<Arc<Routed>> {
        if self.route.is_none() {
            let found = self.routes.as_ref().and_then(|routes| routes.find(self));
            self.set_route(found);
            traced::refresh(self);
        }
        self.route.clone().flatten()
    }

    /// As [`Self::route`], where it has been looked for.
    pub fn known_route(&self) -> Option<&Arc<Routed>> {
        self.route.as_ref()?.as_ref()
    }

    pub fn set_route(&mut self, route: Option<Arc<Routed>>) {
        let http = self.http_mut();
        http.route = route.as_ref().map(|route| route.name().clone());
        http.virtual_host = route.as_ref().and_then(|route| route.virtual_host().cloned());
        http.route_metadata = route.as_ref().and_then(|route| route.metadata());
        http.virtual_host_metadata = route.as_ref().and_then(|route| route.virtual_host_metadata());
        self.route = Some(route);
    }

    /// It is looked for again when somebody asks: a filter has changed what it depends on.
    pub fn clear_route(&mut self) {
        self.route = None;
    }

    pub fn flag(&mut self, flags: Flags) {
        self.entry.outcome.flags = self.entry.outcome.flags | flags;
    }

    pub fn details(&mut self, details: impl Into<std::borrow::Cow<'static, str>>) {
        self.entry.outcome.response_code_details = Some(details.into());
    }
}

/// Of a stream of that connection, of which nothing is known yet.
fn entry(parent: &Entry, http: HttpEntry, start: SystemTime) -> Entry {
    Entry {
        start,
        original_dst: parent.original_dst,
        filter_chain: parent.filter_chain.clone(),
        listener_metadata: parent.listener_metadata.clone(),
        filter_chain_metadata: parent.filter_chain_metadata.clone(),
        outcome: Outcome::new(Side::Internal, Flags::NONE, ""),
        peers: Peers { downstream: parent.peers.downstream.clone(), upstream: None },
        http: Some(Box::new(http)),
        ..Entry::new(parent.origin.clone(), parent.facts.clone(), LogType::DownstreamEnd)
    }
}
