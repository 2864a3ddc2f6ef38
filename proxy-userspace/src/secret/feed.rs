//! What a source of SDS tells a slot.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use proxy_config::diagnostic::problems;
use proxy_config::model::bootstrap::Resource;
use proxy_config::model::tls::Secret;
use proxy_config::xds::{Decoder, RawResource};
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::xds::{self, Consumer, Failure, Verdict};

/// A secret as it was received.
#[derive(Clone, Debug)]
pub struct Answer {
    pub secret: Resource<Secret>,
    pub version: Arc<str>,
    pub received: SystemTime,
}

/// The way to one slot. Files and servers use the same.
pub(super) struct Feed {
    name: Arc<str>,
    decoder: Decoder,
    updates: mpsc::UnboundedSender<Update>,
    /// What becomes of the last secret.
    judged: Mutex<Option<oneshot::Receiver<Result<(), String>>>>,
}

#[derive(Debug)]
pub(super) enum Update {
    Secret(Arc<Answer>, oneshot::Sender<Result<(), String>>),
    /// There was an answer, which cannot be used.
    Rejected(String),
    /// There was none, or none that can be read.
    Failed(String),
    /// The source is not there yet; it may come.
    Missing(String),
    /// The server is away: the source says so, once for all.
    Disconnected,
    /// Nothing has come in time.
    TimedOut(Duration),
}

impl Feed {
    pub(super) fn new(name: Arc<str>, decoder: Decoder) -> (Arc<Self>, mpsc::UnboundedReceiver<Update>) {
        let (updates, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { name, decoder, updates, judged: Mutex::default() }), receiver)
    }

    fn tell(&self, update: Update) {
        // It fails where the slot has gone.
        let _ = self.updates.send(update);
    }

    fn supply(&self, resource: &RawResource) -> Result<(), String> {
        let decoded = self.decoder.decode::<Secret>(resource).map_err(|found| problems(&found))?;
        for warning in &decoded.warnings {
            log::warn!("secret {}: {warning}", self.name);
        }
        let (judge, judged) = oneshot::channel();
        *self.judged.lock().unwrap_or_else(PoisonError::into_inner) = Some(judged);
        let (secret, version) = (decoded.resource, resource.version.clone());
        let answer = Answer { secret, version, received: clock::wall() };
        self.tell(Update::Secret(Arc::new(answer), judge));
        Ok(())
    }
}

impl Consumer for Feed {
    /// Of the secrets in a response, one must be the slot's.
    fn update(&self, update: &xds::Update<'_>) -> Result<(), String> {
        let found = update.resources.iter().find(|resource| resource.name == self.name);
        let result = match found {
            Some(resource) => self.supply(resource),
            // As Envoy: what is gone stays in use.
            None if update.removed.contains(&self.name) => Ok(()),
            None if update.response.is_empty() => Err("no secret in the response".to_owned()),
            None => {
                let names: Vec<_> = update.response.iter().map(|resource| &*resource.name).collect();
                Err(format!("not in the response, which has {}", names.join(", ")))
            }
        };
        if let Err(why) = &result {
            self.tell(Update::Rejected(why.clone()));
        }
        result
    }

    fn verdict(&self) -> Option<Verdict<'_>> {
        let judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // Where the slot has gone, nobody objects.
        Some(Box::pin(async move { judged.await.unwrap_or(Ok(())) }))
    }

    fn failed(&self, failure: &Failure) {
        let why = failure.to_string();
        self.tell(match failure {
            Failure::Missing(_) => Update::Missing(why),
            Failure::Unreadable(_) => Update::Failed(why),
            Failure::Refused(_) => Update::Rejected(why),
            Failure::Disconnected(_) => Update::Disconnected,
            Failure::TimedOut(limit) => Update::TimedOut(*limit),
        });
    }
}
