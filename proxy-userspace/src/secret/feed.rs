//! What a source of SDS tells a slot.

use std::sync::Arc;
use std::time::SystemTime;

use proxy_config::model::bootstrap::Resource;
use proxy_config::model::tls::Secret;
use tokio::sync::mpsc;

use crate::clock;
use crate::watch::{Parse, Reader, Unusable};

/// A `DiscoveryResponse` of secrets.
#[derive(Clone, Debug, Default)]
pub struct SecretResponse {
    pub version: String,
    pub secrets: Vec<Resource<Secret>>,
}

/// The text of an SDS file to what it says, or to the reason of its refusal.
pub type SecretSource = Parse<SecretResponse>;

/// A secret as it was received.
#[derive(Clone, Debug)]
pub struct Answer {
    pub secret: Resource<Secret>,
    pub version: Arc<str>,
    pub received: SystemTime,
}

/// The way to one slot. Files and servers use the same.
pub struct Feed {
    name: Arc<str>,
    updates: mpsc::UnboundedSender<Update>,
}

#[derive(Debug)]
pub(super) enum Update {
    Secret(Arc<Answer>),
    /// There was an answer, which cannot be used.
    Rejected(String),
    /// There was none, or none that can be read.
    Failed(String),
    /// The source is not there yet; it may come.
    Missing(String),
}

impl Feed {
    pub(super) fn new(name: Arc<str>) -> (Arc<Self>, mpsc::UnboundedReceiver<Update>) {
        let (updates, receiver) = mpsc::unbounded_channel();
        (Arc::new(Self { name, updates }), receiver)
    }

    /// A response has come: of the secrets in it, one must be the slot's.
    pub fn response(&self, response: &SecretResponse) {
        let found = response.secrets.iter().find(|secret| secret.model.name == self.name);
        self.tell(match found {
            Some(secret) => Update::Secret(Arc::new(Answer {
                secret: secret.clone(),
                version: response.version.as_str().into(),
                received: clock::wall(),
            })),
            None if response.secrets.is_empty() => Update::Rejected("no secret in the response".to_owned()),
            None => {
                let names: Vec<_> = response.secrets.iter().map(|secret| &*secret.model.name).collect();
                Update::Rejected(format!("not in the response, which has {}", names.join(", ")))
            }
        });
    }

    /// The source could not be asked, or its answer could not be read.
    pub fn failed(&self, why: String) {
        self.tell(Update::Failed(why));
    }

    fn tell(&self, update: Update) {
        // It fails where the slot has gone.
        let _ = self.updates.send(update);
    }
}

impl Reader for Feed {
    type Content = SecretResponse;

    fn read(&self, content: Result<&SecretResponse, &Unusable>) {
        match content {
            Ok(response) => self.response(response),
            Err(why @ Unusable::Missing(_)) => self.tell(Update::Missing(why.to_string())),
            Err(why @ (Unusable::Unreadable(..) | Unusable::Malformed(..))) => self.failed(why.to_string()),
        }
    }
}
