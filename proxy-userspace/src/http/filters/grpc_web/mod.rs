//! `envoy.filters.http.grpc_web`: browsers speak gRPC, whose trailers come at the end of the body.

mod response;
mod text;

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::{HeaderName, HeaderValue, StatusCode};
use proxy_config::model::http::filters::{GrpcMethods, GrpcStats as StatsConfig};

use self::response::{Encoded, Encoding};
use self::text::Decoded;
use super::FilterCx;
use super::grpc_stats::{Method, Methods};
use super::whole::Whole;
use crate::http::filter::{Filter, Step, Stop, StreamFilter};
use crate::http::message::is_grpc;
use crate::http::{Body, ResponseHead, Stream};
use crate::telemetry::access_log::http::of_http_status;

const ACCEPTS: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// How much of a body that is not gRPC becomes a message.
const LONGEST_MESSAGE: usize = 16_384;

pub(super) struct GrpcWeb(Arc<Methods>);

struct One {
    methods: Arc<Methods>,
    /// The request is one of gRPC-Web.
    is: bool,
    text: bool,
    method: Option<Arc<Method>>,
}

impl GrpcWeb {
    pub(super) fn new(cx: &FilterCx<'_>) -> Self {
        let config = StatsConfig {
            emit_filter_state: false,
            enable_upstream_stats: false,
            replace_dots_in_grpc_service_name: false,
            methods: GrpcMethods::All,
        };
        Self(Arc::new(Methods::new(&config, cx.parts.cluster.stats.clone(), "grpc-web")))
    }
}

impl Filter for GrpcWeb {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        kind(stream.request().headers.get(CONTENT_TYPE)).is_some().then(|| {
            let one = One { methods: self.0.clone(), is: false, text: false, method: None };
            Box::new(one) as Box<dyn StreamFilter>
        })
    }
}

/// Whether it is one of gRPC-Web's types, and one of text.
fn kind(value: Option<&HeaderValue>) -> Option<bool> {
    match value?.as_bytes() {
        b"application/grpc-web" | b"application/grpc-web+proto" => Some(false),
        b"application/grpc-web-text" | b"application/grpc-web-text+proto" => Some(true),
        _ => None,
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let Some(text) = kind(stream.request().headers.get(CONTENT_TYPE)) else { return Step::Next };
        self.is = true;
        let route = stream.route();
        let cluster = route.as_deref().and_then(|route| route.cluster(stream.request()));
        if let Some(cluster) = cluster.and_then(|name| stream.conn.cluster(&name)) {
            let name = cluster.model.alt_stat_name.as_deref().unwrap_or(&cluster.model.name);
            self.method = self.methods.of(name, stream.request().path_alone());
        }
        let headers = &mut stream.request_mut().headers;
        headers.remove(CONTENT_LENGTH);
        self.text = kind(headers.get(ACCEPT)) == Some(true);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.entry(ACCEPTS).or_insert(HeaderValue::from_static("identity,deflate,gzip"));
        if text && !stream.request_body.is_end() {
            stream.request_body = Body::stream(Decoded::new(stream.request_body.take()));
        }
        Step::Next
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let ends = stream.response_body.is_end();
        let text = self.text;
        let Some(head) = stream.response_mut().filter(|_| self.is) else { return Step::Next };
        if let Some(method) = &self.method {
            method.ended(&head.headers);
        }
        let transform = !is_proto(head, ends);
        head.headers.remove(CONTENT_LENGTH);
        let own = match text {
            true => "application/grpc-web-text+proto",
            false => "application/grpc-web+proto",
        };
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(own));
        if ends {
            return Step::Next;
        }
        if transform {
            return Step::wait(message(stream));
        }
        let encoding = if text { Encoding::text() } else { Encoding::Binary };
        let encoded = Encoded::new(stream.response_body.take(), encoding, self.method.clone());
        stream.response_body = Body::stream(encoded);
        Step::Next
    }
}

/// It is gRPC's, or gRPC-Web's, already.
fn is_proto(head: &ResponseHead, ends: bool) -> bool {
    let ok = head.status == StatusCode::OK;
    let web = head.headers.get(CONTENT_TYPE).is_some_and(|value| {
        let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let value = value.split(';').next().unwrap_or_default().trim_end();
        matches!(value, "application/grpc-web" | "application/grpc-web+proto")
    });
    (ends && head.headers.contains_key(&STATUS)) || (ok && (web || is_grpc(&head.headers)))
}

/// What is said otherwise becomes the message of a status.
async fn message(stream: &mut Stream) -> Result<(), Stop> {
    let whole = Whole::read(stream.response_body.take(), LONGEST_MESSAGE).await?;
    let text = &whole.data[..whole.data.len().min(LONGEST_MESSAGE)];
    let text = response::percent_encoded(text);
    if let Some(head) = stream.response_mut() {
        if let Ok(text) = HeaderValue::from_str(&text) {
            head.headers.insert(MESSAGE, text);
        }
        let status = of_http_status(head.status.as_u16());
        head.headers.insert(STATUS, HeaderValue::from(status));
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    }
    Ok(())
}
