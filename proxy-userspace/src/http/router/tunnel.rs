//! `connect_config`: a tunnel ends here, and what goes through it goes on by TCP.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::Frame;
use proxy_config::model::http::RouteAction;
use proxy_config::model::http::action::ConnectConfig;

use super::wishes;
use crate::clock::{self, Instant};
use crate::cluster::{self, Client, Cluster, ConnectError, Host, Permit};
use crate::http::pool::Attached;
use crate::http::raw::Raw;
use crate::http::{Body, Io, Progress, RequestHead, Reset, Response, ResponseHead, Stream, Upload};
use crate::net::conn::canonical;
use crate::telemetry::Side;
use crate::transport::{Names, proxy_header};

/// What a request holds until its response is complete.
pub(super) enum Hold {
    Pooled(Attached),
    /// A connection that is nobody else's: its two directions hold it.
    Own,
}

impl Hold {
    pub(super) fn complete(&mut self) {
        match self {
            Self::Pooled(attached) => attached.complete(),
            Self::Own => {}
        }
    }

    pub(super) fn broke(&mut self, reset: &Reset) {
        match self {
            Self::Pooled(attached) => attached.broke(reset),
            Self::Own => {}
        }
    }

    /// The response is whole, and the request is not.
    pub(super) fn cut(&mut self, progress: &Progress) {
        match self {
            Self::Pooled(attached) => attached.cut(progress),
            Self::Own => {}
        }
    }
}

/// Of a request whose bytes go on by TCP.
pub(super) fn config<'a>(action: &'a RouteAction, head: &RequestHead) -> Option<&'a ConnectConfig> {
    let upgrade = action.upgrades.iter().find(|upgrade| &*upgrade.upgrade_type == "connect");
    let config = upgrade?.connect.as_ref()?;
    (head.is_connect() || (config.allow_post && head.method == Method::POST)).then_some(config)
}

/// A connection, and the 200 that the client is told of it.
pub(super) async fn open(
    stream: &mut Stream,
    (cluster, host): (&Arc<Cluster>, &Arc<Host>),
    names: &Option<Names>,
    config: &ConnectConfig,
    body: Body,
    progress: Arc<Progress>,
) -> Result<Response, ConnectError> {
    let id = stream.conn.shared().next_connection();
    let (source, _) = wishes::of(stream, cluster, host, names);
    let source = source.unwrap_or_default();
    let facts = Some(&stream.entry.facts);
    let client = Client { source: &source, facts, connection_id: id, alpn: &[], names: names.as_ref() };
    let cluster::Upstream { connected, permit } = cluster.connect(host, stream.conn.dial(), &client).await?;
    let upstream = &mut stream.entry.upstream;
    upstream.connection_id = id;
    upstream.connected_after = Some(connected.took);
    upstream.tls = connected.transport.as_ref().and_then(|transport| transport.tls()).cloned();
    upstream.local = match &connected.io {
        cluster::Io::Tcp(stream) => stream.local_addr().ok().map(canonical),
        cluster::Io::Unix(_) => None,
    };
    stream.http_mut().upstream_protocol = None;
    let limits = [stream.conn.listener.buffer_limit, cluster.model.per_connection_buffer_limit_bytes];
    let most = limits.into_iter().filter(|limit| *limit > 0).min().map_or(usize::MAX, |limit| limit as usize);
    let raw = Raw::new(Io::Upstream(connected), Side::Upstream, most);
    progress.sending();
    if let Some(version) = config.proxy_protocol {
        let header = proxy_header(version, &stream.entry.facts);
        progress.request_head.store(header.len() as u64, Ordering::Relaxed);
        raw.begin(header.into());
    }
    let line = Line { raw, cluster: cluster.clone(), since: clock::now(), _permit: permit };
    let head = ResponseHead::new(StatusCode::OK);
    Ok(Response { head, body: line.body(body, progress).await })
}

/// The connection, in both its directions.
struct Line {
    raw: Raw,
    cluster: Arc<Cluster>,
    since: Instant,
    _permit: Permit,
}

impl Line {
    async fn body(self, request: Body, progress: Arc<Progress>) -> Body {
        let line = Arc::new(self);
        let mut upload = line.clone().upload(request, progress.clone());
        // What there is of the request goes out at once.
        poll_fn(|cx| {
            if let Poll::Ready(done) = upload.as_mut().poll(cx) {
                upload = Box::pin(std::future::ready(done));
            }
            Poll::Ready(())
        })
        .await;
        let inner = line.raw.body();
        Body::tunnel(Download { _line: line, inner, progress }, upload)
    }

    fn upload(self: Arc<Self>, mut request: Body, progress: Arc<Progress>) -> Upload {
        Box::pin(poll_fn(move |cx| {
            let count = |frame: &Frame<Bytes>| {
                let len = frame.data_ref().map_or(0, Bytes::len) as u64;
                progress.request_body.fetch_add(len, Ordering::Relaxed);
            };
            let done = ready!(self.raw.poll_tell(cx, &mut request, count));
            progress.sent();
            Poll::Ready(done)
        }))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let (complete, stats) = (self.raw.is_complete(), &self.cluster.stats);
        if !complete {
            // What is there may not take half a stream for a whole one.
            self.raw.reset_on_close();
            stats.upstream_cx_destroy_with_active_rq.inc();
        }
        stats.upstream_cx_destroy.inc();
        let (all, active) = if self.raw.has_ended() {
            (&stats.upstream_cx_destroy_remote, &stats.upstream_cx_destroy_remote_with_active_rq)
        } else {
            (&stats.upstream_cx_destroy_local, &stats.upstream_cx_destroy_local_with_active_rq)
        };
        all.inc();
        if !complete {
            active.inc();
        }
        let lived = (clock::now() - self.since).as_millis();
        stats.upstream_cx_length_ms.record(u64::try_from(lived).unwrap_or(u64::MAX));
    }
}

/// The response's body. Its line goes first: whether it ends well is said before it is closed.
struct Download {
    _line: Arc<Line>,
    inner: Body,
    progress: Arc<Progress>,
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Reset;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reset>>> {
        let this = self.get_mut();
        let frame = ready!(this.inner.poll(cx));
        match &frame {
            Some(Ok(frame)) => {
                if this.progress.first_received().is_none() {
                    this.progress.receiving();
                }
                let len = frame.data_ref().map_or(0, Bytes::len) as u64;
                this.progress.response_body.fetch_add(len, Ordering::Relaxed);
            }
            None => this.progress.received(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }
}
