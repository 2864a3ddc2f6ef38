//! A slot of SDS, kept current: what its source says, and what the files have that the secret names.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::UNIX_EPOCH;

use proxy_config::model::tls::{CertificateKey, DataSource, SecretKind, TrustedCa};
use tokio::sync::mpsc;
use xxhash_rust::xxh64::xxh64;

use super::feed::{Answer, Update};
use super::material::{self, Loaded};
use super::slot::Slot;
use crate::clock;
use crate::telemetry::stats::SdsStats;
use crate::watch::{Changes, directory_of};

/// How often files are read again because they have changed meanwhile.
const ROUNDS: usize = 5;

pub(super) struct Follow {
    pub(super) slot: Weak<Slot>,
    pub(super) updates: mpsc::UnboundedReceiver<Update>,
    /// Of the files that the secret names.
    pub(super) changes: Changes,
    pub(super) stats: Arc<SdsStats>,
    /// The newest, be it good or bad: what makes it good may be a file that comes later.
    pub(super) answer: Option<Arc<Answer>>,
    /// What has become of the contents that were read.
    pub(super) supplied: Supplied,
}

#[derive(Default)]
pub(super) struct Supplied {
    /// One was taken.
    taken: bool,
    /// The last one was not: the same again is to be judged again.
    refused: bool,
}

enum Event {
    Update(Update),
    /// A file that the secret names may have changed.
    Files,
}

impl Follow {
    /// Ends with the slot, whose drop aborts this.
    pub(super) async fn run(mut self) {
        loop {
            let event = tokio::select! {
                biased;
                update = self.updates.recv() => match update {
                    Some(update) => Event::Update(update),
                    None => return,
                },
                () = self.changes.changed() => Event::Files,
            };
            let Some(slot) = self.slot.upgrade() else { return };
            match event {
                Event::Update(update) => self.updated(&slot, update).await,
                Event::Files => self.files_changed(&slot).await,
            }
        }
    }

    async fn updated(&mut self, slot: &Slot, update: Update) {
        self.stats.update_attempt.inc();
        match update {
            Update::Secret(answer, judge) => {
                // Whoever has asked may have gone.
                let _ = judge.send(self.answered(slot, answer).await);
            }
            Update::Rejected(why) => self.rejected(slot, &why),
            Update::Failed(why) => {
                self.stats.update_failure.inc();
                log::warn!("secret {}: {why}; {}", slot.name, self.what_stays());
                // Envoy's: the start goes on, and connections are refused.
                slot.give_up();
            }
            // Envoy does not start without the file. It may be mounted or written later, so it is waited for.
            Update::Missing(why) => {
                self.stats.update_failure.inc();
                log::warn!("secret {}: {why}; {}", slot.name, self.what_stays());
            }
            Update::Disconnected => self.stats.update_failure.inc(),
            Update::TimedOut(limit) => {
                self.stats.init_fetch_timeout.inc();
                log::warn!(
                    "{slot} has not come within {limit:?}: it is not waited for any longer, and connections that \
                     need it are refused until it comes"
                );
                slot.give_up();
            }
        }
    }

    async fn answered(&mut self, slot: &Slot, answer: Arc<Answer>) -> Result<(), String> {
        if slot.content().is_none() {
            slot.set_answer(answer.clone());
        }
        self.changes.follow(directories(&answer.secret.model.kind));
        let version = answer.version.clone();
        self.answer = Some(answer.clone());
        match self.reload(slot).await {
            Ok(_) => {
                slot.set_answer(answer);
                self.stats.update_success.inc();
                self.stats.version.set(xxh64(version.as_bytes(), 0));
                self.stats.version_text.set(&version);
                let wall = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.stats.update_time.set(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
                Ok(())
            }
            Err(why) => {
                self.rejected(slot, &why);
                Err(why)
            }
        }
    }

    fn rejected(&self, slot: &Slot, why: &str) {
        self.stats.update_rejected.inc();
        log::warn!("{slot}: {why}; {}", self.what_stays());
        // As for a failure.
        slot.give_up();
    }

    async fn files_changed(&mut self, slot: &Slot) {
        match self.reload(slot).await {
            Ok(false) => {}
            Ok(true) => {
                // Envoy's `last_updated` is then, too.
                let answer = self.answer.as_deref().cloned();
                let now = answer.map(|answer| Answer { received: clock::wall(), ..answer });
                now.into_iter().for_each(|answer| slot.set_answer(Arc::new(answer)));
            }
            Err(why) => {
                self.stats.key_rotation_failed.inc();
                log::warn!("{slot}: its files have changed: {why}; {}", self.what_stays());
            }
        }
    }

    /// Reads the newest secret's files and supplies what is in them. Whether that is news.
    async fn reload(&mut self, slot: &Slot) -> Result<bool, String> {
        let loaded = self.load().await?;
        if !self.supplied.refused && slot.content().as_deref() == Some(&loaded) {
            return Ok(false);
        }
        let supplied = slot.supply(Arc::new(loaded));
        self.supplied.refused = supplied.is_err();
        supplied?;
        self.supplied.taken = true;
        log::info!("{slot} is in use");
        Ok(true)
    }

    fn what_stays(&self) -> &'static str {
        if self.supplied.taken { "what was known stays" } else { "connections that need it are refused" }
    }

    /// What is read while files are being replaced may be half of the old and half of the new.
    async fn load(&mut self) -> Result<Loaded, String> {
        let secret = self.answer.as_ref().map(|answer| answer.secret.model.clone());
        let secret = secret.ok_or("there is no answer yet")?;
        let mut round = 0;
        loop {
            round += 1;
            let secret = secret.clone();
            let reading = tokio::task::spawn_blocking(move || material::load(&secret.kind));
            let loaded = reading.await.map_err(|error| error.to_string())?;
            if round == ROUNDS || !self.changes.again() {
                return loaded.map_err(|error| error.to_string());
            }
            self.changes.changed().await;
        }
    }
}

/// The directories whose changes say that a secret's files have changed.
fn directories(kind: &SecretKind) -> Vec<PathBuf> {
    let (sources, watched): (Vec<&DataSource>, _) = match kind {
        SecretKind::Certificate(model) => {
            let key = match &model.key {
                CertificateKey::Pem { chain, key } => vec![chain, key],
                CertificateKey::Pkcs12(source) => vec![source],
            };
            let more = [&model.password, &model.ocsp_staple].into_iter().flatten();
            (key.into_iter().chain(more).collect(), &model.watched_directory)
        }
        SecretKind::Validation(model) => {
            let ca = match &model.trusted_ca {
                Some(TrustedCa::Source(source)) => Some(source),
                Some(TrustedCa::System) | None => None,
            };
            let bundles = model.spiffe.iter().flatten().map(|domain| &domain.bundle);
            (ca.into_iter().chain(&model.crl).chain(bundles).collect(), &model.watched_directory)
        }
        SecretKind::TicketKeys(sources) => (sources.iter().collect(), &None),
        SecretKind::Generic => (Vec::new(), &None),
    };
    let files = sources.into_iter().filter_map(|source| match source {
        DataSource::File(path) => Some(directory_of(path, watched.as_deref())),
        DataSource::Inline(_) | DataSource::Environment(_) => None,
    });
    files.collect::<BTreeSet<_>>().into_iter().collect()
}
