//! Where a provider's keys are from: the configuration, or a document that is fetched when it is needed.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{Method, StatusCode};
use proxy_config::model::http::Content;
use proxy_config::model::http::jwt::{JwksSource, RemoteJwks};
use tokio::sync::Mutex;

use super::JwtStats;
use super::jwks::Keys;
use super::status::Status;
use super::token::Token;
use crate::clock::{self, Instant};
use crate::http::filters::whole::Whole;
use crate::http::pool::Caller;
use crate::http::{Body, ConnCx, Request, RequestHead, Scheme, router};

/// No document is longer.
const LONGEST: usize = 1024 * 1024;

pub(super) enum Source {
    Local(Keys),
    Remote(Box<Remote>),
}

pub(super) struct Remote {
    model: RemoteJwks,
    kept: ArcSwapOption<(Keys, Instant)>,
    /// Held while it is fetched: once for all that wait.
    fetching: Mutex<Option<Instant>>,
    stats: Arc<JwtStats>,
}

impl Source {
    pub(super) fn new(model: &JwksSource, stats: Arc<JwtStats>) -> Result<Self, String> {
        match model {
            JwksSource::Local(content) => {
                Keys::parse(&read(content)?).map(Self::Local).map_err(|status| status.text().to_owned())
            }
            JwksSource::Remote(model) => {
                let model = model.as_ref().clone();
                Ok(Self::Remote(Box::new(Remote {
                    model,
                    kept: ArcSwapOption::empty(),
                    fetching: Mutex::default(),
                    stats,
                })))
            }
        }
    }

    pub(super) async fn verify(&self, token: &Token, conn: &ConnCx) -> Result<(), Status> {
        match self {
            Self::Local(keys) => keys.verify(token),
            Self::Remote(remote) => {
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
        let mut failed = self.fetching.lock().await;
        if let Some(kept) = self.fresh() {
            return Ok(kept);
        }
        // Who waited for one that failed does not try it all again.
        let wait =
            self.model.async_fetch.map_or(Duration::from_secs(1), |fetch| fetch.failed_refetch_duration);
        if failed.is_some_and(|at| clock::now() < at + wait) {
            return Err(Status::JwksFetch);
        }
        let mut keys = self.fetch(conn).await;
        for _ in 0..self.model.retries {
            if keys.is_ok() {
                break;
            }
            tokio::time::sleep(self.model.retry_backoff.0).await;
            keys = self.fetch(conn).await;
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

    async fn fetch(&self, conn: &ConnCx) -> Result<Keys, Status> {
        let failed = |_| Status::JwksFetch;
        let cluster = conn.cluster(&self.model.cluster).ok_or(Status::JwksFetch)?;
        let (scheme, rest) = self.model.uri.split_once("://").ok_or(Status::JwksFetch)?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let mut head = RequestHead::new(Method::GET, host, if path.is_empty() { "/" } else { path });
        head.scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
        let request = Request { head, body: Body::empty() };
        let caller = Caller::of(conn);
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
