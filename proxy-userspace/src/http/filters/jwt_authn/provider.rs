//! A provider: what it signs, and what its tokens are good for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use proxy_config::model::http::jwt::JwtProvider as Model;

use super::JwtStats;
use super::effects;
use super::find::{self, Found};
use super::keys::{Remote, Source};
use super::status::Status;
use super::token::Token;
use crate::clock;
use crate::http::Stream;

pub(super) struct Provider {
    pub(super) model: Model,
    keys: Source,
    /// Tokens whose signature was found good, the last one last.
    known: Mutex<VecDeque<Arc<Token>>>,
    stats: Arc<JwtStats>,
}

impl Provider {
    pub(super) fn new(model: &Model, stats: Arc<JwtStats>) -> Result<Self, String> {
        let keys = Source::new(&model.keys, stats.clone())?;
        Ok(Self { model: model.clone(), keys, known: Mutex::default(), stats })
    }

    pub(super) fn remote(&self) -> Option<&Arc<Remote>> {
        self.keys.remote()
    }

    /// All of a request's tokens for it have to be good.
    pub(super) async fn check(&self, audiences: &[Arc<str>], stream: &mut Stream) -> Result<(), Status> {
        let found = find::tokens(&self.model, stream.request());
        if found.is_empty() {
            return Err(Status::Missing);
        }
        for found in found {
            self.verify(&found, audiences, stream).await.inspect_err(|status| {
                effects::failed(&self.model, *status, stream);
            })?;
        }
        Ok(())
    }

    pub(super) async fn verify(
        &self,
        found: &Found,
        audiences: &[Arc<str>],
        stream: &mut Stream,
    ) -> Result<(), Status> {
        let token = match self.remembered(&found.text) {
            Some(token) => token,
            None => Arc::new(Token::parse(&found.text)?),
        };
        self.judge(&token, audiences)?;
        if self.remembered(&found.text).is_none() {
            let conn = stream.conn.clone();
            self.keys.verify(&token, &conn).await?;
            self.remember(&token);
        }
        effects::good(&self.model, &token, stream);
        if !self.model.forward {
            found.remove(stream.request_mut());
        }
        if self.model.clear_route_cache && !self.model.claim_to_headers.is_empty() {
            stream.clear_route();
        }
        Ok(())
    }

    /// Whether it is of this provider, for us, and of now.
    fn judge(&self, token: &Token, audiences: &[Arc<str>]) -> Result<(), Status> {
        let model = &self.model;
        if !model.issuer.is_empty() && *model.issuer != *token.issuer {
            return Err(Status::UnknownIssuer);
        }
        if model.subjects.as_ref().is_some_and(|subjects| !subjects.is_match(&token.subject)) {
            return Err(Status::SubjectNotAllowed);
        }
        if model.require_expiration && token.expires.is_none() {
            return Err(Status::NoExpiration);
        }
        if let Some(most) = model.max_lifetime {
            let begins = token.issued_at.or(token.not_before).unwrap_or_default();
            let lives = token.expires.map(|expires| Duration::from_secs(expires.saturating_sub(begins)));
            if lives.is_none_or(|lives| lives > most) {
                return Err(Status::LivesTooLong);
            }
        }
        let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let skew = model.clock_skew.as_secs();
        if token.not_before.is_some_and(|from| now.saturating_add(skew) < from) {
            return Err(Status::NotYetValid);
        }
        if token.expires.is_some_and(|until| now > until.saturating_add(skew)) {
            return Err(Status::Expired);
        }
        if allows(audiences, &token.audiences) { Ok(()) } else { Err(Status::AudienceNotAllowed) }
    }

    fn remembered(&self, text: &str) -> Option<Arc<Token>> {
        self.model.cache?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|token| token.text() == text).cloned();
        match found {
            Some(_) => self.stats.jwt_cache_hit.inc(),
            None => self.stats.jwt_cache_miss.inc(),
        }
        found
    }

    fn remember(&self, token: &Arc<Token>) {
        let Some(cache) = self.model.cache else { return };
        if token.text().len() > cache.max_token_size as usize {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= cache.size as usize {
            known.pop_front();
        }
        known.push_back(token.clone());
    }
}

/// Schemes and slashes at the end do not matter, as in Envoy.
fn allows(wanted: &[Arc<str>], told: &[String]) -> bool {
    fn bare(audience: &str) -> &str {
        let audience =
            audience.strip_prefix("https://").or(audience.strip_prefix("http://")).unwrap_or(audience);
        audience.strip_suffix('/').unwrap_or(audience)
    }
    wanted.is_empty() || told.iter().any(|told| wanted.iter().any(|wanted| bare(wanted) == bare(told)))
}
