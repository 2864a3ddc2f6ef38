//! Streams without a connection, for tests of what works on streams.
//!
//! ```ignore
//! let rig = Rig::new(vec![("cors", FilterKind::Cors)], RouteConfiguration::default());
//! let mut stream = rig.get("/");
//! let sent = rig.exchange(&mut stream, |stream| respond(stream, 200, "body")).await;
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proxy_config::model::http as model;
use proxy_config::model::http::action::{
    ClusterSpecifier, DirectResponse, HostRewrite, PathRewrite, Priority, RouteAction,
};
use proxy_config::model::http::hcm::{
    ClientAddress, ClientCert, Codec, HcmTimeouts, HostNormalization, Identity, LocalReplies,
    PathNormalization, RequestId, SchemeHeader, ServerHeader,
};
use proxy_config::model::http::{
    Action, CommonHttpOptions, Content, FilterKind, HeaderEdits, Http1Options, Http2Options, HttpFilter,
    PathMatch, PerFilter, PerFilters, PerRoute, Route, RouteConfiguration, RouteMatch, RouteSource,
    VirtualHost,
};
use proxy_config::model::{self as base, Metadata};

use super::filter::{LocalReply, Stop, StreamFilter};
use super::{Body, Common, ConnCx, Hcm, RequestHead, Reset, ResponseHead, Stream};
use crate::cluster::Env;
use crate::net::facts::Facts;
use crate::net::{Direction, HostDial, Options, Place, Shared};
use crate::network::local_ratelimit::Buckets;
use crate::task::Tasks;
use crate::telemetry::access_log::Sinks;
use crate::telemetry::stats::Stats;
use crate::telemetry::{AccessLog, ConnRecord, Origin};
use crate::world::{Base, Listener, Live, Parts, Snapshot};

/// One connection manager, and all that its streams need.
pub(crate) struct Rig {
    pub(crate) stats: Arc<Stats>,
    pub(crate) hcm: Arc<Hcm>,
    pub(crate) live: Arc<Live>,
    pub(crate) place: Arc<Place>,
    pub(crate) listener: Arc<Base>,
    /// Of the next connection.
    pub(crate) facts: Facts,
}

impl Rig {
    /// Of the stat prefix `test`. Only inside of a runtime.
    pub(crate) fn new(filters: Vec<(&str, FilterKind)>, routes: RouteConfiguration) -> Self {
        let filters =
            filters.into_iter().map(|(name, kind)| HttpFilter { name: name.into(), disabled: false, kind });
        Self::of(&manager(filters.collect(), routes), [])
    }

    pub(crate) fn of(manager: &model::Hcm, clusters: impl IntoIterator<Item = base::Cluster>) -> Self {
        let stats = Arc::new(Stats::new());
        let env =
            Env::new(stats.clone(), Tasks::new(&stats), Arc::new(HostDial), Arc::new(crate::xds::Nowhere));
        let (sinks, buckets) = (Sinks::new(Duration::from_secs(1), &stats), Buckets::default());
        let http = Common::default();
        let parts = Parts { cluster: &env, sinks: &sinks, buckets: &buckets, http: &http };
        let snapshot = Snapshot::build([], clusters.into_iter().map(Arc::new), &parts).unwrap();
        snapshot.start(&env);
        let live = Arc::new(Live::of(snapshot));
        let log = AccessLog::start(None, 1_000, &stats).unwrap();
        let shared = Arc::new(Shared::new(log, Options::default(), false, &parts).unwrap());
        let listener = Arc::new(base::Listener::new("test", Vec::new()));
        Self {
            hcm: Hcm::new(manager, "listener.test", &parts).unwrap(),
            listener: Listener::new(listener, &parts).unwrap().base().clone(),
            place: Arc::new(Place::own(Vec::new(), live.clone(), shared)),
            facts: Facts::new("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap()),
            stats,
            live,
        }
    }

    pub(crate) fn connection(&self) -> Arc<ConnCx> {
        let origin = Origin {
            connection_id: 1,
            workload: None,
            direction: Some(Direction::Outbound),
            listener: self.listener.name.clone(),
        };
        let log = self.place.shared.access_log.clone();
        let record = ConnRecord::new(log, origin, self.facts.clone());
        Arc::new(ConnCx {
            hcm: self.hcm.clone(),
            place: self.place.clone(),
            live: self.live.clone(),
            listener: self.listener.clone(),
            connection: record.entry.clone(),
            worker: 0,
        })
    }

    /// Of a connection of its own, with its route looked for.
    pub(crate) fn stream(&self, head: RequestHead, body: Body) -> Stream {
        let mut stream = Stream::new(self.connection(), head, body);
        stream.route();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Stream {
        self.with(path, &[])
    }

    pub(crate) fn with(&self, path: &str, headers: &[(&str, &str)]) -> Stream {
        self.stream(request(Method::GET, path, headers), Body::empty())
    }

    /// Through all filters, to `upstream` unless one of them answers, and back.
    pub(crate) async fn exchange(
        &self,
        stream: &mut Stream,
        upstream: impl FnOnce(&mut Stream),
    ) -> Result<Sent, Reset> {
        let mut chain = self.begin(stream);
        match forward(&mut chain, stream).await {
            Ok(()) => upstream(stream),
            Err(Stop::Reply(reply)) => answer(stream, *reply),
            Err(Stop::Reset(reset)) => return Err(reset),
        }
        for filter in chain.iter_mut().rev() {
            match filter.response(stream).done().await {
                Ok(()) => {}
                Err(Stop::Reply(reply)) => answer(stream, *reply),
                Err(Stop::Reset(reset)) => return Err(reset),
            }
        }
        let sent = Sent::of(stream).await?;
        chain.iter_mut().for_each(|filter| filter.end(stream));
        Ok(sent)
    }

    pub(crate) fn begin(&self, stream: &Stream) -> Vec<Box<dyn StreamFilter>> {
        let slots = self.hcm.slots(stream.request().upgrade.as_deref()).iter();
        slots.filter(|slot| slot.is_on(stream)).filter_map(|slot| slot.filter.begin(stream)).collect()
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.stats.value(name).unwrap_or_else(|| panic!("no stat {name}"))
    }
}

async fn forward(chain: &mut [Box<dyn StreamFilter>], stream: &mut Stream) -> Result<(), Stop> {
    for filter in chain {
        filter.request(stream).done().await?;
    }
    Ok(())
}

fn answer(stream: &mut Stream, reply: LocalReply) {
    let mut head = ResponseHead::new(reply.status);
    head.headers = reply.headers;
    stream.flag(reply.flags);
    stream.details(reply.details);
    stream.local_reply = true;
    stream.response_body = Body::full(reply.body);
    stream.http_mut().response = Some(head);
}

/// What the client got.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Sent {
    async fn of(stream: &mut Stream) -> Result<Self, Reset> {
        let (body, trailers) = read(stream.response_body.take()).await?;
        let head = stream.response().expect("a response");
        Ok(Self { status: head.status.as_u16(), headers: head.headers.clone(), body, trailers })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// All of a body.
pub(crate) async fn read(mut body: Body) -> Result<(Bytes, Option<HeaderMap>), Reset> {
    let (mut all, mut trailers) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => all.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((all.into(), trailers))
}

/// Frames, one by one.
pub(crate) fn frames(data: &[&[u8]], trailers: Option<HeaderMap>) -> Body {
    let data = data.iter().map(|data| http_body::Frame::data(Bytes::copy_from_slice(data)));
    let all: Vec<_> = data.chain(trailers.map(http_body::Frame::trailers)).map(Ok).collect();
    Body::stream(http_body_util::StreamBody::new(tokio_stream::iter(all)))
}

/// As an upstream would.
pub(crate) fn respond(stream: &mut Stream, status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) {
    let mut head = ResponseHead::new(StatusCode::from_u16(status).unwrap());
    head.headers = header_map(headers);
    stream.response_body = Body::full(body);
    stream.http_mut().response = Some(head);
}

pub(crate) fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter().map(pair) {
        map.append(name, value);
    }
    map
}

pub(crate) fn request(method: Method, path: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::new(method, "test.example", path);
    head.headers = header_map(headers);
    head
}

/// One route for everything, which says this to filters.
pub(crate) fn route_with(said: Vec<(&str, PerRoute)>) -> RouteConfiguration {
    let mut routes = any_route();
    routes.virtual_hosts[0].routes[0].per_filter = per_filters(said);
    routes
}

pub(crate) fn per_filters(said: Vec<(&str, PerRoute)>) -> PerFilters {
    let said = said
        .into_iter()
        .map(|(name, config)| (name.to_owned(), PerFilter { disabled: false, config: Some(config) }));
    said.collect()
}

/// To a cluster, and no more.
pub(crate) fn to(cluster: &str) -> RouteAction {
    RouteAction {
        cluster: ClusterSpecifier::Cluster(cluster.into()),
        cluster_not_found_status: 503,
        metadata_match: Metadata::default(),
        path_rewrite: PathRewrite::None,
        host_rewrite: HostRewrite::None,
        append_x_forwarded_host: false,
        timeout: None,
        idle_timeout: None,
        flush_timeout: None,
        retry_policy: None,
        mirror: Vec::new(),
        priority: Priority::Default,
        hash_policy: Vec::new(),
        max_grpc_timeout: None,
        upgrades: Vec::new(),
        internal_redirect: None,
        max_stream_duration: None,
        rate_limits: Vec::new(),
        include_vh_rate_limits: false,
    }
}

/// One route for everything.
pub(crate) fn routed(action: RouteAction) -> RouteConfiguration {
    let mut routes = any_route();
    routes.virtual_hosts[0].routes[0].action = Action::Route(Box::new(action));
    routes
}

/// One route for everything.
pub(crate) fn any_route() -> RouteConfiguration {
    let route = Route {
        name: "route".into(),
        matcher: RouteMatch {
            path: PathMatch::Prefix("/".into()),
            case_sensitive: true,
            runtime_fraction: None,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            cookies: Vec::new(),
            grpc: false,
            tls_context: None,
            dynamic_metadata: Vec::new(),
            filter_state: Vec::new(),
        },
        action: Action::DirectResponse(Box::new(DirectResponse {
            status: 200,
            body: Content::inline("direct"),
            body_format: None,
        })),
        headers: HeaderEdits::default(),
        metadata: Metadata::default(),
        decorator: None,
        per_filter: PerFilters::default(),
        tracing: None,
        request_body_buffer_limit: None,
        stat_prefix: None,
    };
    let host = VirtualHost {
        name: "host".into(),
        domains: vec!["*".into()],
        routes: vec![route],
        ..VirtualHost::default()
    };
    RouteConfiguration {
        name: "routes".into(),
        virtual_hosts: vec![host],
        max_direct_response_body_size_bytes: 4096,
        ..RouteConfiguration::default()
    }
}

/// With Envoy's defaults.
pub(crate) fn manager(filters: Vec<HttpFilter>, routes: RouteConfiguration) -> model::Hcm {
    model::Hcm {
        stat_prefix: "test".into(),
        codec: Codec::Auto,
        routes: RouteSource::Inline(Arc::new(routes)),
        filters,
        common: CommonHttpOptions::default(),
        http1: Http1Options::default(),
        http2: Http2Options::default(),
        http1_safe_max_connection_duration: false,
        identity: Identity {
            server_name: "envoy".into(),
            server_header: ServerHeader::Overwrite,
            via: "".into(),
            add_user_agent: false,
            scheme: SchemeHeader::AsReceived,
            append_x_forwarded_port: false,
            forward_proto: None,
        },
        timeouts: HcmTimeouts::default(),
        max_request_headers_kb: 60,
        client: ClientAddress::default(),
        request_id: RequestId::default(),
        client_cert: ClientCert::default(),
        path: PathNormalization::default(),
        host: HostNormalization::default(),
        proxy_100_continue: false,
        upgrades: Vec::new(),
        early_header_mutation: Vec::new(),
        local_reply: LocalReplies::default(),
        proxy_status: None,
        tracing: None,
        access_log: Vec::new(),
        access_log_flush_interval: None,
        flush_access_log_on_new_request: false,
        flush_log_on_tunnel_successfully_established: false,
    }
}
