//! What is the same for all connections of a connection manager, made once.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;
use proxy_config::model::access_log::AccessLog;
use proxy_config::model::http as model;
use proxy_config::model::http::header::{HeaderEdit, HeaderMutation};
use proxy_config::model::matcher::StringMatcher;

use super::date::Date;
use super::inbound::own_address;
use super::local_reply::Replies;
use super::proxy_status::ProxyStatus;
use crate::http::pool::{KeyFormat, http2_settings};
use crate::http::route::{Edit, Whose};
use crate::http::{BuildError, h1, h2};
use crate::telemetry::Entry;
use crate::telemetry::stats::{Stats, stats_block};
use crate::world::Parts;

pub(crate) struct Prepared {
    /// Of plaintext, and of TLS.
    http1: [Arc<h1::Settings>; 2],
    http2: [Arc<h2::Settings>; 2],
    pub(super) server_name: HeaderValue,
    pub(super) via: Option<HeaderValue>,
    pub(super) date: Date,
    pub(super) listener: Arc<ListenerHttpStats>,
    pub(super) replies: Replies,
    pub(super) proxy_status: Option<ProxyStatus>,
    pub(super) early: Box<[Mutation]>,
    /// With `add_user_agent`.
    pub(super) user_agent: Option<Node>,
    /// `/healthcheck/fail`: connections are to go elsewhere.
    failing: Arc<AtomicBool>,
    /// Stands in `x-forwarded-for` for peers on this machine.
    pub(crate) own_address: IpAddr,
    /// Some log says what a stream was on the wire.
    pub(super) logs_wire: bool,
}

/// This proxy, as it is told to upstreams.
pub(super) struct Node {
    pub(super) cluster: HeaderValue,
    pub(super) id: HeaderValue,
}

stats_block! {
    /// `listener.<address>.http.<stat_prefix>.`
    pub(crate) struct ListenerHttpStats {
        counter downstream_rq_completed;
        counter downstream_rq_1xx;
        counter downstream_rq_2xx;
        counter downstream_rq_3xx;
        counter downstream_rq_4xx;
        counter downstream_rq_5xx;
    }
}

/// Parts of the operators that tell of it.
const WIRE: [&str; 2] = ["WIRE_BYTES", "HEADER_BYTES"];

impl Prepared {
    /// `listener`: the prefix of its stats.
    pub(crate) fn new(model: &model::Hcm, listener: &str, parts: &Parts<'_>) -> Result<Self, BuildError> {
        let stats = &parts.cluster.stats;
        let node = &parts.http.node;
        let text = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| BuildError(format!("{text:?} is no value of a header")))
        };
        let via = &model.identity.via;
        let named = |log: &AccessLog| WIRE.iter().any(|name| log.format.mentions(name));
        let logs_wire = model.access_log.iter().any(named);
        // Its tags may name it too.
        let tallies = logs_wire || model.tracing.is_some();
        let status = model.proxy_status.as_ref();
        let status = status.map(|status| ProxyStatus::new(status, &model.identity, &node.id));
        Ok(Self {
            http1: [false, true].map(|https| Arc::new(http1(model, https))),
            http2: [false, true]
                .map(|https| Arc::new(h2::Settings { tallies, ..http2(model, https, stats) })),
            server_name: text(&model.identity.server_name)?,
            via: if via.is_empty() { None } else { Some(text(via)?) },
            date: Date::default(),
            listener: stats.block(format!("{listener}.http.{}", model.stat_prefix)),
            replies: Replies::new(&model.local_reply)?,
            proxy_status: status.transpose()?,
            early: model.early_header_mutation.iter().map(Mutation::new).collect::<Result<_, _>>()?,
            user_agent: if model.identity.add_user_agent {
                Some(Node { cluster: text(&node.cluster)?, id: text(&node.id)? })
            } else {
                None
            },
            failing: parts.http.failing.clone(),
            own_address: own_address(),
            logs_wire,
        })
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(super) fn http1(&self, secure: bool) -> Arc<h1::Settings> {
        let [plain, https] = &self.http1;
        if secure { https.clone() } else { plain.clone() }
    }

    pub(super) fn http2(&self, secure: bool) -> Arc<h2::Settings> {
        let [plain, https] = &self.http2;
        if secure { https.clone() } else { plain.clone() }
    }
}

fn http1(model: &model::Hcm, https: bool) -> h1::Settings {
    let options = &model.http1;
    let format = KeyFormat::new(options.header_key_format);
    h1::Settings {
        max_head_bytes: model.max_request_headers_kb as usize * 1024,
        max_headers: model.common.max_headers_count as usize,
        accept_http_10: options.accept_http_10,
        default_host: options.default_host_for_http_10.as_deref().map(Into::into),
        preserve_case: format.preserves,
        proper_case_own: format.proper_own,
        keep_reason: format.reason,
        proper_case: format.proper,
        allow_absolute_url: options.allow_absolute_url,
        enable_trailers: options.enable_trailers,
        allow_chunked_length: options.allow_chunked_length,
        allow_custom_methods: options.allow_custom_methods,
        send_fully_qualified_url: false,
        https,
    }
}

fn http2(model: &model::Hcm, https: bool, stats: &Stats) -> h2::Settings {
    h2::Settings {
        // All listeners' together, as in Envoy.
        stats: stats.block("http2"),
        max_headers_bytes: model.max_request_headers_kb.saturating_mul(1024),
        https,
        ..http2_settings(&model.http2, &model.common)
    }
}

/// A compiled `HeaderMutation`, of requests.
pub(super) enum Mutation {
    Edit(Edit),
    RemoveOnMatch(StringMatcher),
}

impl Mutation {
    fn new(model: &HeaderMutation) -> Result<Self, BuildError> {
        let edit = match model {
            HeaderMutation::Remove(name) => HeaderEdit { remove: vec![name.clone()], add: Vec::new() },
            HeaderMutation::Add(option) => HeaderEdit { remove: Vec::new(), add: vec![option.clone()] },
            HeaderMutation::RemoveOnMatch(matcher) => return Ok(Self::RemoveOnMatch(matcher.clone())),
        };
        Ok(Self::Edit(Edit::new(&edit)?))
    }

    pub(super) fn apply(&self, entry: &mut Entry) {
        match self {
            Self::Edit(edit) => edit.apply(Whose::Request, entry),
            Self::RemoveOnMatch(matcher) => {
                let Some(http) = entry.http.as_deref_mut() else { return };
                let headers = &mut http.request.headers;
                let names = headers.keys().filter(|name| matcher.is_match(name.as_str()));
                let names: Vec<_> = names.cloned().collect();
                names.iter().for_each(|name| drop(headers.remove(name)));
            }
        }
    }
}
