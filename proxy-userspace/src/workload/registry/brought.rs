//! The configuration that a workload brings: read, built, warmed, put in force, and followed.
//!
//! Until it is in force for the first time the workload is captured and closed: nobody listens, so its connections
//! are refused. What comes after it takes its place only when it is good and warm; else what serves goes on.

use std::future::Future as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use proxy_config::enrol::Workload;
use proxy_config::load;
use proxy_config::model::Address;
use serde::Serialize;
use tokio::task::AbortHandle;
use xxhash_rust::xxh64::xxh64;

use super::serving::Serves;
use super::{Registry, Running};
use crate::clock;
use crate::net::Config;
use crate::sidecar::{Common, Sidecar, bootstrap};
use crate::sys::netns::Netns;
use crate::task::{self, Whose};
use crate::watch::{Changes, directory_of};
use crate::workload::Error;
use crate::xds::SessionView;

/// What a workload has brought.
pub(super) struct Brought {
    file: PathBuf,
    /// What the file said when it was last read, good or bad; none: it could not be.
    said: Option<Digest>,
    /// What serves, and what the file said then.
    current: Option<Current>,
    next: Option<Next>,
    /// Why what the file says is not in force, where that is not for something that will come.
    problem: Option<String>,
    changed: Arc<AtomicBool>,
    _follow: Task,
}

struct Current {
    sidecar: Arc<Sidecar>,
    digest: Digest,
    since: SystemTime,
}

/// Built, and not in force.
struct Next {
    sidecar: Arc<Sidecar>,
    digest: Digest,
    warm: Arc<AtomicBool>,
    _warming: Option<Task>,
}

/// What was accepted until the end of a configuration has found its cluster by then.
const LAST_LOOKUPS: Duration = Duration::from_secs(2);

/// A text's length and hash.
type Digest = (usize, u64);

/// Ends a task with its owner.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A workload's own configuration as the admin API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    pub bootstrap: PathBuf,
    pub state: ConfigurationState,
    /// Of the configuration that is in force, else of the one that is to be.
    pub node: String,
    /// What the one that is to be waits for.
    pub waits_for: Vec<String>,
    /// Why what the file says is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    pub control_planes: Vec<SessionView>,
    /// When the last update was taken: of the file, or of what it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigurationState {
    /// What the file says is in force.
    Ready,
    /// It is read, and waits; what was in force before still is.
    Warming,
    /// It cannot be used; what was in force before still is.
    Invalid,
}

impl Registry {
    /// Reads and follows what a workload brings, if it does.
    pub(super) fn bring(&self, spec: &Workload, netns: &Arc<Netns>) -> Option<Brought> {
        let file = spec.bootstrap.as_deref()?;
        let changed = Arc::<AtomicBool>::default();
        let follow = self.follow_file(file, &changed);
        let mut brought = Brought {
            file: file.to_owned(),
            said: None,
            current: None,
            next: None,
            problem: None,
            changed,
            _follow: follow,
        };
        self.reread(spec, netns, &mut brought);
        Some(brought)
    }

    /// The same workload with another entry: what it brought goes on where it is the same.
    pub(super) fn bring_again(&mut self, spec: &Workload, running: &mut Running) {
        match (&mut running.brought, &spec.bootstrap) {
            (None, None) => {}
            (Some(brought), Some(file)) => {
                if brought.file != *file {
                    brought._follow = self.follow_file(file, &brought.changed);
                    brought.file.clone_from(file);
                }
                brought.changed.store(true, Ordering::Release);
            }
            (None, Some(_)) => running.brought = self.bring(spec, &running.netns),
            (Some(_), None) => return self.back_to_the_daemons(spec, running),
        }
        self.look_at(spec, running);
    }

    fn follow_file(&self, file: &Path, changed: &Arc<AtomicBool>) -> Task {
        let _runtime = self.runtime.enter();
        let mut changes = Changes::new(&self.settings.common.directories, &self.shared.tasks);
        changes.follow(vec![directory_of(file, None)]);
        let (changed, wake) = (changed.clone(), self.wake.clone());
        let follow = async move {
            loop {
                changes.changed().await;
                changed.store(true, Ordering::Release);
                wake.wake();
            }
        };
        Task(self.shared.tasks.spawn("bootstrap", follow).abort_handle())
    }

    /// Reads the file and builds what it says, where that is news.
    fn reread(&self, spec: &Workload, netns: &Arc<Netns>, brought: &mut Brought) {
        let (name, file) = (&spec.name, brought.file.display().to_string());
        let text = match bootstrap::read(&brought.file) {
            Ok(text) => text,
            Err(error) => {
                brought.said = None;
                return brought.refuse(name.as_str(), format!("bootstrap {error:#}"));
            }
        };
        let digest = (text.len(), xxh64(text.as_bytes(), 0));
        if brought.said.replace(digest) == Some(digest) {
            return;
        }
        if brought.current.as_ref().is_some_and(|current| current.digest == digest) {
            (brought.next, brought.problem) = (None, None);
            return log::info!("workload {name}: bootstrap {file} says again what is in force");
        }
        match self.build(spec, netns, &file, &text) {
            Ok(sidecar) => {
                brought.problem = None;
                brought.next = Some(self.warm(spec, sidecar, digest));
            }
            Err(reason) => brought.refuse(name.as_str(), format!("bootstrap {file}: {reason}")),
        }
    }

    fn build(
        &self,
        spec: &Workload,
        netns: &Arc<Netns>,
        file: &str,
        text: &str,
    ) -> Result<Arc<Sidecar>, String> {
        let name = &spec.name;
        let loaded = load::bootstrap(text, None, self.settings.common.options);
        let loaded = loaded.map_err(|problems| bootstrap::summary(&problems))?;
        for warning in &loaded.warnings {
            log::warn!("workload {name}: bootstrap {file}: {warning}");
        }
        if let Some(admin) = &loaded.bootstrap.admin {
            let address = match &admin.address {
                Address::Ip(address) => address.to_string(),
                Address::Host(host) => format!("{}:{}", host.host, host.port),
                Address::Pipe { path, .. } => path.display().to_string(),
            };
            log::warn!(
                "workload {name}: bootstrap {file}: admin: {address} is not opened: the workload could change its \
                 proxy there; the daemon's admin API answers it under /workloads/{name}/"
            );
        }
        let _runtime = self.runtime.enter();
        let whose: Whose = Some(format!("workload {name}").into());
        let common = Common { whose: whose.clone(), ..self.settings.common.clone() };
        let dial = self.dialers(netns).outbound;
        let sidecar = task::on_behalf(whose, || Sidecar::new(Some(loaded), dial, &common));
        sidecar.map(Arc::new).map_err(|error| format!("{error:#}"))
    }

    /// Waits for what it needs before it can serve.
    fn warm(&self, spec: &Workload, sidecar: Arc<Sidecar>, digest: Digest) -> Next {
        let warm = Arc::<AtomicBool>::default();
        let (waiting, flag, wake) = (sidecar.clone(), warm.clone(), self.wake.clone());
        let whose = format!("workload {}: ", spec.name);
        let _runtime = self.runtime.enter();
        let mut warmed = Box::pin(async move { waiting.warmed(&whose).await });
        // Most wait for nothing, and can be in force at once.
        let at_once = warmed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        warm.store(at_once, Ordering::Release);
        let wait = async move {
            warmed.await;
            flag.store(true, Ordering::Release);
            wake.wake();
        };
        let warming = (!at_once).then(|| Task(self.shared.tasks.spawn("warming", wait).abort_handle()));
        Next { sidecar, digest, warm, _warming: warming }
    }

    /// Looks whether a file has changed, and whether what was waited for has come.
    pub fn look(&mut self) {
        for (name, mut entry) in std::mem::take(&mut self.entries) {
            if let super::Phase::Ready(running) = &mut entry.phase {
                self.look_at(&entry.spec, running);
            }
            self.entries.insert(name, entry);
        }
    }

    pub(super) fn look_at(&mut self, spec: &Workload, running: &mut Running) {
        let Some(brought) = &mut running.brought else { return };
        if brought.changed.swap(false, Ordering::AcqRel) {
            self.reread(spec, &running.netns, brought);
        }
        if let Some(next) = brought.next.take_if(|next| next.warm.load(Ordering::Acquire)) {
            self.put_in_force(spec, running, next);
        }
        self.publish(spec, running);
    }

    /// Whether what a workload brings may come into force in a moment.
    pub fn is_warming(&self, name: &str) -> bool {
        let Some(super::Phase::Ready(running)) = self.entries.get(name).map(|entry| &entry.phase) else {
            return false;
        };
        running.brought.as_ref().is_some_and(|brought| brought.next.is_some())
    }

    /// Where the admin API finds it.
    pub(super) fn publish(&self, spec: &Workload, running: &Running) {
        let shown = running.brought.as_ref().and_then(Brought::shown);
        self.settings.sidecars.set(spec.name.as_str(), shown.cloned());
    }

    /// New connections run on it from now on; those of the one before drain.
    fn put_in_force(&mut self, spec: &Workload, running: &mut Running, next: Next) {
        let name = &spec.name;
        match self.serve_with(spec, running, &next.sidecar) {
            Ok(()) => {
                let (listeners, clusters) = next.sidecar.size();
                log::info!(
                    "workload {name}: runs on its own configuration: {listeners} listeners, {clusters} clusters"
                );
                let Next { sidecar, digest, .. } = next;
                let Some(brought) = &mut running.brought else { return };
                brought.problem = None;
                let current = Current { sidecar, digest, since: clock::wall() };
                if let Some(before) = brought.current.replace(current) {
                    self.let_go(before.sidecar);
                }
            }
            Err(error) => {
                let Some(brought) = &mut running.brought else { return };
                brought.refuse(name.as_str(), error.to_string());
                // The address may be free later: every tick tries again.
                brought.next = Some(next);
            }
        }
    }

    /// Captured connections and the other listeners, all of them or none.
    fn serve_with(
        &mut self,
        spec: &Workload,
        running: &mut Running,
        sidecar: &Arc<Sidecar>,
    ) -> Result<(), Error> {
        let Some(world) = &sidecar.world else { return Ok(()) };
        let port = running.installed.compiled.pod.out_port;
        let before = running.serving.take();
        let shared = before.as_ref().map(|serving| serving.listening.as_slice()).unwrap_or_default();
        let (config, besides) = (Config::Workload(world.live.clone()), Some(sidecar.clone()));
        let current = running.brought.as_ref().and_then(Brought::current).cloned();
        let serves = Serves { config, besides, before: current };
        let serving = self.serve(spec, &running.netns, &mut running.installed, (shared, serves));
        let done = serving.and_then(|serving| {
            // Where the kernel chose the port, or nothing listened before.
            if port != running.installed.compiled.pod.out_port {
                running.installed.activate(&self.kernel, &running.netns)?;
            }
            Ok(serving)
        });
        match done {
            Ok(serving) => {
                running.serving = Some(serving);
                if let Some(before) = before {
                    // Both have the same sockets: the old one must not take what comes now.
                    self.retire(before, Duration::ZERO);
                }
                Ok(())
            }
            Err(error) => {
                running.serving = before;
                Err(error)
            }
        }
    }

    /// The entry names no bootstrap any more.
    fn back_to_the_daemons(&mut self, spec: &Workload, running: &mut Running) {
        let before = running.serving.take();
        let shared = before.as_ref().map(|serving| serving.listening.as_slice()).unwrap_or_default();
        let serves =
            Serves { config: Config::Daemon(self.settings.live.clone()), besides: None, before: None };
        match self.serve(spec, &running.netns, &mut running.installed, (shared, serves)) {
            Ok(serving) => {
                log::info!("workload {}: runs on the daemon's configuration", spec.name);
                running.serving = Some(serving);
                if let Some(before) = before {
                    self.retire(before, Duration::ZERO);
                }
                if let Some(current) = running.brought.take().and_then(|brought| brought.current) {
                    self.let_go(current.sidecar);
                }
            }
            Err(error) => {
                log::error!("workload {}: keeps its own configuration: {error}", spec.name);
                running.serving = before;
            }
        }
        self.publish(spec, running);
    }

    /// Its listeners close and its connections drain. Soon nothing is asked of its control planes any more.
    pub(super) fn let_go(&mut self, sidecar: Arc<Sidecar>) {
        let rest = Arc::new(sidecar.rest());
        rest.start();
        self.leaving.push(rest.clone());
        let time = self.settings.common.drain_time;
        let _runtime = self.runtime.enter();
        self.shared.tasks.spawn("last lookups", async move {
            tokio::time::sleep(LAST_LOOKUPS).await;
            drop(sidecar);
        });
        self.shared.tasks.spawn("drain", async move {
            rest.drain(time).await;
            let flush = tokio::task::spawn_blocking(move || rest.flush(Duration::from_secs(2)));
            // It fails where the daemon stops, which flushes too.
            let _ = flush.await;
        });
    }
}

impl Brought {
    fn refuse(&mut self, workload: &str, reason: String) {
        if self.problem.as_ref() != Some(&reason) {
            log::error!("workload {workload}: what serves stays: {reason}");
        }
        self.problem = Some(reason);
    }

    /// What runs was built for other ports: it is built again.
    pub(super) fn outdated(&mut self) {
        (self.said, self.next) = (None, None);
        if let Some(current) = &mut self.current {
            current.digest = Digest::default();
        }
    }

    /// What serves, else what is to.
    fn shown(&self) -> Option<&Arc<Sidecar>> {
        let current = self.current.as_ref().map(|current| &current.sidecar);
        current.or(self.next.as_ref().map(|next| &next.sidecar))
    }

    /// What serves.
    pub(super) fn current(&self) -> Option<&Arc<Sidecar>> {
        self.current.as_ref().map(|current| &current.sidecar)
    }

    /// Why nothing is served yet.
    pub(super) fn closed(&self) -> String {
        let waits = self
            .next
            .as_ref()
            .map(|next| format!("its configuration waits: {}", next.waits_for().join(", ")));
        format!("captured and closed: {}", self.problem.clone().or(waits).unwrap_or_default())
    }

    pub(super) fn summary(&self) -> Configuration {
        let state = match (&self.problem, &self.next) {
            (Some(_), _) => ConfigurationState::Invalid,
            (None, Some(_)) => ConfigurationState::Warming,
            (None, None) => ConfigurationState::Ready,
        };
        let shown = self.shown();
        let since = self.current.as_ref().map(|current| current.since);
        let updated = [since, shown.and_then(|sidecar| sidecar.updated())];
        Configuration {
            bootstrap: self.file.clone(),
            state,
            node: shown.map(|sidecar| sidecar.node()).unwrap_or_default(),
            waits_for: self.next.as_ref().map(Next::waits_for).unwrap_or_default(),
            problem: self.problem.clone(),
            control_planes: shown.map(|sidecar| sidecar.control_planes()).unwrap_or_default(),
            updated: updated.into_iter().flatten().max().map(clock::rfc3339),
        }
    }
}

impl Next {
    fn waits_for(&self) -> Vec<String> {
        self.sidecar.waits_for()
    }
}
