//! What is the same for all connections of a connection manager, made once.

use std::sync::Arc;

use http::HeaderValue;
use proxy_config::model::http as model;
use proxy_config::model::http::options::HeaderKeyFormat;

use super::date::Date;
use crate::http::{BuildError, h1};
use crate::telemetry::stats::{Stats, stats_block};

pub(crate) struct Prepared {
    /// Of plaintext, and of TLS.
    http1: [Arc<h1::Settings>; 2],
    pub(super) server_name: HeaderValue,
    pub(super) via: Option<HeaderValue>,
    pub(super) date: Date,
    pub(super) listener: Arc<ListenerHttpStats>,
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

impl Prepared {
    /// `listener`: the prefix of its stats.
    pub(crate) fn new(model: &model::Hcm, listener: &str, stats: &Stats) -> Result<Self, BuildError> {
        let text = |text: &str| {
            HeaderValue::from_str(text).map_err(|_| BuildError(format!("{text:?} is no value of a header")))
        };
        let via = &model.identity.via;
        Ok(Self {
            http1: [false, true].map(|https| Arc::new(http1(model, https))),
            server_name: text(&model.identity.server_name)?,
            via: if via.is_empty() { None } else { Some(text(via)?) },
            date: Date::default(),
            listener: stats.block(format!("{listener}.http.{}", model.stat_prefix)),
        })
    }

    pub(super) fn http1(&self, secure: bool) -> Arc<h1::Settings> {
        let [plain, https] = &self.http1;
        if secure { https.clone() } else { plain.clone() }
    }
}

fn http1(model: &model::Hcm, https: bool) -> h1::Settings {
    let options = &model.http1;
    let format = options.header_key_format;
    h1::Settings {
        max_head_bytes: model.max_request_headers_kb as usize * 1024,
        max_headers: model.common.max_headers_count as usize,
        accept_http_10: options.accept_http_10,
        default_host: options.default_host_for_http_10.as_deref().map(Into::into),
        preserve_case: matches!(format, HeaderKeyFormat::PreserveCase { .. }),
        proper_case: matches!(format, HeaderKeyFormat::ProperCaseWords),
        allow_absolute_url: options.allow_absolute_url,
        enable_trailers: options.enable_trailers,
        allow_chunked_length: options.allow_chunked_length,
        allow_custom_methods: options.allow_custom_methods,
        send_fully_qualified_url: false,
        https,
    }
}
