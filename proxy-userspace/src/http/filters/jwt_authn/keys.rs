//! Where a provider's keys are from: the configuration, or a document that is fetched when it is needed, or before.
//!
//! With `async_fetch` a task follows the document from when its listener warms: again a little before what it has is too
//! old, and soon after a failure. A listener waits for the first answer, good or bad, unless it is to be fast.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{Method, StatusCode};
use proxy_config::model::http::Content;
use proxy_config::model::http::jwt::{JwksSource, RemoteJwks};
use tokio::sync::{Mutex, watch};

use super::JwtStats;
use super::jwks::Keys;
use super::status::Status;
use super::token::Token;
use crate::clock::{self, Instant};
use crate::http::filters::whole::Whole;
use crate::http::pool::Caller;
use crate::http::{Body, ConnCx, Request, RequestHead, Scheme, router};
use crate::task::{Abort, Tasks};
use crate::world::Live;

/// So long before they are too old, keys are fetched again.
const BEFORE_OLD: Duration = Duration::from_secs(5);
/// Between two fetches at least, whatever is configured.
const LEAST: Duration = Duration::from_millis(10);
/// No document is longer.
const LONGEST: usize = 1024 * 1024;

pub(super) enum Source {
    Local(Keys),
    Remote(Arc<Remote>),
}

/// A document with keys.
pub struct Remote {
    model: RemoteJwks,
    kept: ArcSwapOption<(Keys, Instant)>,
    /// Held while it is fetched: once for all that wait.
    fetching: Mutex<Option<Instant>>,
    stats: Arc<JwtStats>,
    /// Follows it.
    task: OnceLock<Abort>,
    /// The first answer has come.
    first: watch::Sender<bool>,
}

impl Source {
    pub(super) fn new(model: &JwksSource, stats: Arc<JwtStats>) -> Result<Self, String> {
        match model {
            JwksSource::Local(content) => {
                Keys::parse(&read(content)?).map(Self::Local).map_err(|status| status.text().to_owned())
            }
            JwksSource::Remote(model) => {
                let model = model.as_ref().clone();
                Ok(Self::Remote(Arc::new(Remote {
                    model,
                    kept: ArcSwapOption::empty(),
                    fetching: Mutex::default(),
                    stats,
                    task: OnceLock::new(),
                    first: watch::Sender::new(false),
                })))
            }
        }
    }

    /// Those that come from elsewhere.
    pub(super) fn remote(&self) -> Option<&Arc<Remote>> {
        match self {
            Self::Local(_) => None,
            Self::Remote(remote) => Some(remote),
        }
    }

    pub(super) async fn verify(&self, token: &Token, conn: &ConnCx) -> Result<(), Status> {
        match self {
            Self::Local(keys) => keys.verify(token),
            Self::Remote(remote) => {
                // Of a filter that has come later than its listener.
                remote.follow(&conn.live, &conn.shared().tasks);
                let kept = match remote.fresh() {
                    Some(kept) => kept,
                    None => remote.fetched(conn).await?,
                };
                kept.0.verify(token)
            }
        }
    }
}

fn read(content: &Content) -> Result<Vec<u8>, String> {
    match content {
        Content::Inline(bytes) => Ok(bytes.to_vec()),
        Content::File(path) => std::fs::read(path).map_err(|error| format!("{}: {error}", path.display())),
        Content::Environment(name) => {
            std::env::var(&**name).map(String::into_bytes).map_err(|error| format!("{name}: {error}"))
        }
    }
}

impl Remote {
    fn fresh(&self) -> Option<Arc<(Keys, Instant)>> {
        self.kept.load_full().filter(|kept| clock::now() < kept.1)
    }

    async fn fetched(&self, conn: &ConnCx) -> Result<Arc<(Keys, Instant)>, Status> {
        let asked = clock::now();
        let mut failed = self.fetching.lock().await;
        if let Some(kept) = self.fresh() {
            return Ok(kept);
        }
        // Who waited for one that failed does not try it all again; who comes later does, as in Envoy.
        if failed.is_some_and(|at| at >= asked) {
            return Err(Status::JwksFetch);
        }
        self.renew(&conn.live, Some(Caller::of(conn)), &mut failed).await
    }

    /// Fetches it, and keeps what has come.
    async fn renew(
        &self,
        live: &Live,
        caller: Option<Caller>,
        failed: &mut Option<Instant>,
    ) -> Result<Arc<(Keys, Instant)>, Status> {
        let mut keys = self.fetch(live, caller.as_ref()).await;
        for _ in 0..self.model.retries {
            if keys.is_ok() {
                break;
            }
            tokio::time::sleep(self.model.retry_backoff.0).await;
            keys = self.fetch(live, caller.as_ref()).await;
        }
        match keys {
            Ok(keys) => {
                self.stats.jwks_fetch_success.inc();
                *failed = None;
                let kept = Arc::new((keys, clock::now() + self.model.cache_duration));
                self.kept.store(Some(kept.clone()));
                Ok(kept)
            }
            Err(status) => {
                self.stats.jwks_fetch_failed.inc();
                *failed = Some(clock::now());
                Err(status)
            }
        }
    }

    /// Begins to follow it, where that is wanted and has not begun yet.
    pub fn follow(self: &Arc<Self>, live: &Arc<Live>, tasks: &Tasks) {
        if self.model.async_fetch.is_some() {
            self.task.get_or_init(|| {
                let (me, live) = (Arc::downgrade(self), Arc::downgrade(live));
                Abort::of(tasks.spawn("keys of tokens", follow(me, live)))
            });
        }
    }

    /// A listener whose requests need it is not ready yet.
    pub fn is_awaited(&self) -> bool {
        let Some(ahead) = self.model.async_fetch else { return false };
        self.task.get().is_none() || (!ahead.fast_listener && !*self.first.borrow())
    }

    /// Resolves once a listener need not wait for it.
    pub async fn settled(&self) {
        if self.model.async_fetch.is_some_and(|ahead| !ahead.fast_listener) {
            // Who sends lives as long as this.
            let _ = self.first.subscribe().wait_for(|come| *come).await;
        }
    }

    pub fn uri(&self) -> &str {
        &self.model.uri
    }

    /// How long until it is to be fetched again.
    async fn ahead(&self, live: &Live) -> Duration {
        let mut failed = self.fetching.lock().await;
        let renewed = self.renew(live, None, &mut failed).await;
        self.first.send_replace(true);
        match (renewed, self.model.async_fetch) {
            (Err(_), Some(ahead)) => ahead.failed_refetch_duration,
            (Ok(_) | Err(_), _) => {
                let kept = self.model.cache_duration;
                if kept > BEFORE_OLD { kept - BEFORE_OLD } else { kept }
            }
        }
    }

    async fn fetch(&self, live: &Live, caller: Option<&Caller>) -> Result<Keys, Status> {
        let failed = |_| Status::JwksFetch;
        let cluster = live.cluster(&self.model.cluster).ok_or(Status::JwksFetch)?;
        let (scheme, rest) = self.model.uri.split_once("://").ok_or(Status::JwksFetch)?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let mut head = RequestHead::new(Method::GET, host, if path.is_empty() { "/" } else { path });
        head.scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
        let request = Request { head, body: Body::empty() };
        let caller = caller.cloned().unwrap_or_else(|| cluster.pools().caller());
        let response =
            router::call(&cluster, &caller, request, Some(self.model.timeout)).await.map_err(failed)?;
        if response.head.status != StatusCode::OK {
            return Err(Status::JwksFetch);
        }
        let whole = Whole::read(response.body, LONGEST).await.map_err(failed)?;
        if whole.over {
            Err(Status::JwksFetch)
        } else {
            Keys::parse(&whole.data).map_err(|_| Status::JwksFetch)
        }
    }
}

/// For as long as somebody has it.
async fn follow(remote: Weak<Remote>, live: Weak<Live>) {
    loop {
        let wait = match (remote.upgrade(), live.upgrade()) {
            (Some(remote), Some(live)) => remote.ahead(&live).await,
            (_, _) => return,
        };
        tokio::time::sleep(wait.max(LEAST)).await;
    }
}
