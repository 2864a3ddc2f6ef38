//! `envoy.filters.http.compressor`: gzip, brotli or zstd, for whoever accepts it.

mod accept;
mod body;
mod encoder;
mod headers;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use proxy_config::model::http::filters::{
    Compressor as Model, CompressorDirection, CompressorLibrary as Library, CompressorPerRoute,
};

use self::accept::{Choice, Decision, Offer, Offers};
use self::body::Squeezed;
use self::encoder::Encoder;
use self::headers::{Refused, Told};
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, Step, StreamFilter};
use crate::http::{Body, Stream};
use crate::telemetry::stats::stats_block;

stats_block! {
    /// `http.<stat_prefix>.compressor.<library name>.<library>.[request.]`
    pub struct CompressorStats {
        counter compressed;
        counter content_length_too_small;
        counter not_compressed;
        counter total_compressed_bytes;
        counter total_uncompressed_bytes;
    }
}

stats_block! {
    /// `http.<stat_prefix>.compressor.<library name>.<library>.`
    pub struct AcceptStats {
        counter header_compressor_overshadowed;
        counter header_compressor_used;
        counter header_identity;
        counter header_not_valid;
        counter header_wildcard;
        counter no_accept_header;
        counter not_compressed_etag;
    }
}

pub(super) struct Compressor(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    model: Model,
    response: Arc<CompressorStats>,
    request: Option<(CompressorDirection, Arc<CompressorStats>)>,
    accept: Arc<AcceptStats>,
}

struct One {
    shared: Arc<Shared>,
    /// As the client sent it.
    accepts: Option<HeaderValue>,
    enabled: bool,
    library: Library,
}

impl Compressor {
    pub(super) fn new(model: &Model, cx: &FilterCx<'_>) -> Self {
        let library = match model.library {
            Library::Gzip { .. } => "gzip",
            Library::Brotli { .. } => "brotli",
            Library::Zstd { .. } => "zstd",
        };
        let prefix = format!("{}.compressor.{}.{library}", cx.prefix, model.library_name);
        let stats = &cx.parts.cluster.stats;
        let request = model.request.clone().map(|one| (one, stats.block(format!("{prefix}.request"))));
        let (response, accept) = (stats.block(prefix.as_str()), stats.block(prefix.as_str()));
        let shared = Shared { name: cx.name.clone(), model: model.clone(), response, request, accept };
        Self(Arc::new(shared))
    }
}

impl Filter for Compressor {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        let shared = self.0.clone();
        let accepts = stream.request().headers.get(ACCEPT_ENCODING).cloned();
        let (enabled, library) = (shared.model.response.enabled, shared.model.library);
        Some(Box::new(One { shared, accepts, enabled, library }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let shared = &*self.shared;
        let mut remove = shared.model.remove_accept_encoding_header;
        let route = stream.route();
        match route.as_deref().and_then(|route| route.filters().config(&shared.name)) {
            Some(RouteConfig::Compressor(CompressorPerRoute::Disabled)) => self.enabled = false,
            Some(RouteConfig::Compressor(CompressorPerRoute::Enabled {
                remove_accept_encoding_header,
                library,
            })) => {
                self.enabled = true;
                self.library = library.unwrap_or(self.library);
                remove = remove_accept_encoding_header.unwrap_or(remove);
            }
            Some(_) | None => {}
        }
        let mut offers = stream.extensions.remove::<Offers>().unwrap_or_default();
        offers.0.push(self.offer());
        stream.extensions.insert(offers);
        if self.enabled && remove {
            stream.request_mut().headers.remove(ACCEPT_ENCODING);
        }
        if let Some((direction, stats)) = &shared.request {
            self.compress_request(direction, stats, stream);
        }
        Step::Next
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let shared = &*self.shared;
        let squeezed = self.compress_response(stream);
        if squeezed {
            shared.response.compressed.inc();
            let body = stream.response_body.take();
            stream.response_body = squeeze(body, self.library, &shared.response);
        } else {
            shared.response.not_compressed.inc();
        }
        Step::Next
    }
}

fn squeeze(body: Body, library: Library, stats: &Arc<CompressorStats>) -> Body {
    match Encoder::new(library) {
        Ok(encoder) => Body::stream(Squeezed::new(body, encoder, stats.clone())),
        // It cannot be: what was asked for has been checked.
        Err(_) => body,
    }
}

impl One {
    fn offer(&self) -> Offer {
        Offer {
            encoding: encoder::encoding(self.library),
            content_type: self.shared.model.response.content_type.clone(),
            first: self.shared.model.choose_first,
        }
    }

    fn compress_request(
        &self,
        direction: &CompressorDirection,
        stats: &Arc<CompressorStats>,
        stream: &mut Stream,
    ) {
        let has_body = !stream.request_body.is_end() && !stream.request().is_upgrade();
        let (head, length) = (stream.request_mut(), direction.min_content_length);
        let small = headers::is_small(&head.headers, length);
        if direction.enabled && small {
            stats.content_length_too_small.inc();
        }
        let fits = direction.enabled && !small && headers::is_type(&head.headers, &direction.content_type);
        if !has_body || !fits || head.headers.contains_key(CONTENT_ENCODING) {
            stats.not_compressed.inc();
            return;
        }
        stats.compressed.inc();
        head.headers.remove(CONTENT_LENGTH);
        head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoder::encoding(self.library)));
        stream.request_body = squeeze(stream.request_body.take(), self.library, stats);
    }

    /// Says whether the response is to be compressed, and changes its head for that.
    fn compress_response(&self, stream: &mut Stream) -> bool {
        let shared = &*self.shared;
        let (ends, upgrade) = (stream.response_body.is_end(), stream.request().is_upgrade());
        let Some(head) = stream.response() else { return false };
        let small = headers::is_small(&head.headers, shared.model.response.min_content_length);
        if self.enabled && small {
            shared.response.content_length_too_small.inc();
        }
        let refused = match (upgrade, small) {
            (true, _) => Some(Refused::Other),
            (false, true) => Some(Refused::Small),
            (false, false) => headers::refused(&shared.model, head),
        };
        if refused == Some(Refused::Etag) {
            shared.accept.not_compressed_etag.inc();
        }
        let asked = self.enabled && !small && !ends;
        let accepted = asked && self.is_accepted(stream);
        let compress = accepted && refused.is_none();
        let told =
            Told { encoding: encoder::encoding(self.library), compress, refused, asked: asked && accepted };
        let Some(head) = stream.response_mut() else { return false };
        let length = head.headers.get(CONTENT_LENGTH).cloned();
        if compress {
            headers::weaken(&mut head.headers, shared.model.weaken_etag_on_compress);
            head.headers.remove(CONTENT_LENGTH);
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(told.encoding));
        }
        if self.enabled && refused.is_none() {
            headers::vary(&mut head.headers);
        }
        if shared.model.status_header_enabled && self.enabled {
            told.put(&mut head.headers, length.as_ref());
        }
        compress
    }

    fn is_accepted(&self, stream: &mut Stream) -> bool {
        let stats = &self.shared.accept;
        let Some(accepts) = &self.accepts else {
            stats.no_accept_header.inc();
            return false;
        };
        let decision = match stream.extensions.get::<Decision>() {
            Some(decision) => *decision,
            None => {
                let own = Offers(vec![self.offer()]);
                let offers = stream.extensions.get::<Offers>().unwrap_or(&own);
                let content_type = stream.response().and_then(|head| headers::media_type(&head.headers));
                let decision = accept::choose(accepts, &content_type.unwrap_or_default(), offers);
                stream.extensions.insert(decision);
                decision
            }
        };
        let own = decision.encoding == encoder::encoding(self.library);
        match decision.choice {
            Choice::Encoding if own => stats.header_compressor_used.inc(),
            Choice::Encoding => stats.header_compressor_overshadowed.inc(),
            Choice::Identity => stats.header_identity.inc(),
            Choice::Wildcard => stats.header_wildcard.inc(),
            Choice::NotValid => stats.header_not_valid.inc(),
        }
        own
    }
}

impl CompressorStats {
    fn passed(&self, plain: usize, squeezed: &Bytes) {
        self.total_uncompressed_bytes.add(plain as u64);
        self.total_compressed_bytes.add(squeezed.len() as u64);
    }
}
