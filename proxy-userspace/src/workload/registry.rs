//! The daemon's workloads: what is wanted, what is, and the way from one to the other.
//!
//! Every method blocks on the kernel, so the registry lives on a thread of its own ([`crate::control`]).

mod adopt;
mod brought;
mod change;
mod serving;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use proxy_config::enrol::Workload;
use proxy_config::policy::compile;
use serde::Serialize;
use tokio::runtime::Handle;

use self::adopt::record;
pub(crate) use self::adopt::respecify;
use self::brought::Brought;
pub use self::brought::{Configuration, ConfigurationState};
use self::serving::{Serves, Serving};
pub use self::view::{Status, Summary};
use super::install::own_ips;
use super::listeners::Listening;
use super::{Error, Installed, Owner, State, StateFile, environment, install};
use crate::drain::Drain;
use crate::ebpf::Kernel;
use crate::net::{Config, Shared};
use crate::sidecar::{Common, Rest, Sidecars};
use crate::sys::netns::Netns;
use crate::world::Live;

/// Where a workload was asked for. A source replaces only what it asked for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    CommandLine,
    File,
    Api,
}

/// How the daemon runs workloads.
pub struct Settings {
    /// The id of the daemon's own cgroup: the kernel knows the proxy by it.
    pub proxy_cgroup: u64,
    /// Addresses of the admin API, which no workload may be carried to.
    pub admin: Vec<SocketAddr>,
    /// The one exception to "never the host's namespace": `shunt exec`, which captures one cgroup, outbound.
    pub host_outbound: bool,
    /// Dial from this process's own namespace instead of the workload's (`shunt exec --netns new`).
    pub dial_from_host: bool,
    /// The daemon's own configuration, for workloads that bring none.
    pub live: Option<Arc<Live>>,
    /// How those that they bring are run, and where they are found.
    pub common: Common,
    pub sidecars: Arc<Sidecars>,
}

struct Entry {
    spec: Workload,
    origin: Origin,
    phase: Phase,
    /// A policy that could not be put in force, and why.
    wanted: Option<(Workload, String)>,
}

enum Phase {
    Pending(String),
    Ready(Box<Running>),
}

struct Running {
    netns: Arc<Netns>,
    installed: Installed,
    /// None: captured, and closed until what it has brought is in force.
    serving: Option<Serving>,
    brought: Option<Brought>,
}

impl Running {
    fn listening(&self) -> &[Listening] {
        self.serving.as_ref().map(|serving| serving.listening.as_slice()).unwrap_or_default()
    }
}

/// Has the registry look again, from wherever something has happened.
#[derive(Clone)]
pub struct Wake(pub Arc<dyn Fn() + Send + Sync>);

impl Wake {
    fn wake(&self) {
        (self.0)();
    }
}

/// All of the daemon's workloads.
pub struct Registry {
    kernel: Kernel,
    state: StateFile,
    settings: Settings,
    shared: Arc<Shared>,
    runtime: Handle,
    entries: BTreeMap<String, Entry>,
    /// Listeners that are gone, with connections that may not be.
    draining: Vec<Arc<Drain>>,
    /// Configurations that are no workload's any more, and may have connections.
    leaving: Vec<Arc<Rest>>,
    wake: Wake,
    /// Policies were replaced since the last tick: their tables can go at the next one.
    replaced: bool,
}

impl Registry {
    /// Takes over what an earlier process left: the living is adopted when it is wanted again, the dead is
    /// purged now. Until then the pins keep the living captured, and so closed.
    pub fn new(
        kernel: Kernel,
        state: StateFile,
        settings: Settings,
        shared: Arc<Shared>,
        (runtime, wake): (Handle, Wake),
    ) -> Result<Self, Error> {
        let mut this = Self {
            kernel,
            state,
            settings,
            shared,
            runtime,
            entries: BTreeMap::new(),
            draining: Vec::new(),
            leaving: Vec::new(),
            wake,
            replaced: false,
        };
        this.purge()?;
        Ok(this)
    }

    /// Makes `wanted` all that `origin` asks for: the rest of what it asked for before is taken out.
    pub fn replace(&mut self, origin: Origin, wanted: Vec<Workload>) {
        let mine = |e: &Entry| e.origin == origin;
        let gone: Vec<String> = (self.entries.iter())
            .filter(|(name, e)| mine(e) && !wanted.iter().any(|w| w.name.as_str() == *name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.remove(&name).unwrap_or_else(|e| log::error!("workload {name}: {e}"));
        }
        for spec in wanted {
            if let Some(other) = self.entries.get(spec.name.as_str()).filter(|e| !mine(e)) {
                log::error!(
                    "workload {}: asked for by {:?} already; the {origin:?}'s is ignored",
                    spec.name,
                    other.origin
                );
                continue;
            }
            self.put(spec, origin);
        }
    }

    /// Enrols a workload, or changes the one of that name. Where that is not possible (yet), it stays pending
    /// with the reason, and every tick tries again.
    pub fn put(&mut self, spec: Workload, origin: Origin) {
        let name = spec.name.as_str().to_owned();
        let phase = match self.entries.remove(&name) {
            Some(old) if old.spec == spec => {
                // Whatever else was wanted meanwhile is not wanted any more.
                self.entries.insert(name, Entry { origin, wanted: None, ..old });
                return;
            }
            Some(Entry { spec: old, phase: Phase::Ready(running), .. }) if same_place(&old, &spec) => {
                let (entry, done) = self.change((old, spec), running, origin);
                if let Err(e) = done {
                    log::error!("workload {name}: keeps its old policy, the new one is tried again: {e}");
                }
                self.entries.insert(name, entry);
                return;
            }
            Some(Entry { phase: Phase::Ready(running), .. }) => {
                self.stop(&name, *running);
                self.start(&spec, origin)
            }
            Some(_) | None => self.start(&spec, origin),
        };
        if let Phase::Pending(reason) = &phase {
            log::warn!("workload {name}: not captured yet: {reason}");
        }
        self.entries.insert(name, Entry { spec, origin, phase, wanted: None });
    }

    fn start(&mut self, spec: &Workload, origin: Origin) -> Phase {
        match self.try_start(spec, origin) {
            Ok(running) => {
                match (&running.serving, &running.brought) {
                    (None, Some(brought)) => log::warn!("workload {}: {}", spec.name, brought.closed()),
                    (Some(_), _) | (None, None) => log::info!(
                        "workload {}: captured; outbound listener on port {}",
                        spec.name,
                        running.installed.compiled.pod.out_port
                    ),
                }
                self.publish(spec, &running);
                Phase::Ready(Box::new(running))
            }
            Err(e) => Phase::Pending(e.to_string()),
        }
    }

    fn try_start(&mut self, spec: &Workload, origin: Origin) -> Result<Running, Error> {
        let open_netns = Netns::open(&spec.netns);
        let netns = Arc::new(open_netns.map_err(|source| Error::Netns { path: spec.netns.clone(), source })?);
        let host = netns.is_host();
        if host && !self.settings.host_outbound {
            return Err(Error::HostNetns(spec.netns.clone()));
        }
        let file = self.state.clone();
        file.change(|state| {
            if let Some(other) = taken(state, spec, &netns) {
                return Err(other);
            }
            let before = state.get(spec.name.as_str()).cloned();
            let cgroup_id = crate::cgroup::id(&spec.cgroup)?;
            let adopt = before.as_ref().is_some_and(|r| r.is_at(cgroup_id, netns.cookie()));
            let running = self.bring_up(spec, &netns, !host, adopt).inspect_err(|_| {
                // What was captured before this process stays so, and closed.
                if before.is_none() {
                    self.undo(spec);
                }
            })?;
            state.put(record(spec, &running, origin));
            // The name has moved: its old namespace is no longer its.
            if let Some(old) = before.filter(|r| r.cookie != netns.cookie()) {
                self.kernel.maps.remove_pod(old.cookie)?;
            }
            Ok(running)
        })
    }

    fn undo(&self, spec: &Workload) {
        let name = spec.name.as_str();
        self.kernel.detach(name, None).unwrap_or_else(|e| log::error!("workload {name}: {e}"));
    }

    /// Listeners before the flip: the first captured connect finds the proxy there.
    fn bring_up(
        &mut self,
        spec: &Workload,
        netns: &Arc<Netns>,
        inbound: bool,
        adopt: bool,
    ) -> Result<Running, Error> {
        let proxy = self.settings.proxy_cgroup;
        let mut installed = install(&self.kernel, spec, netns, proxy, inbound, adopt)?;
        let brought = self.bring(spec, netns);
        let serves =
            || Serves { config: Config::Daemon(self.settings.live.clone()), besides: None, before: None };
        let serving = match &brought {
            None => Some(self.serve(spec, netns, &mut installed, (&[], serves()))?),
            Some(_) => None,
        };
        installed.activate(&self.kernel, netns)?;
        let mut running = Running { netns: netns.clone(), installed, serving, brought };
        self.look_at(spec, &mut running);
        Ok(running)
    }

    /// Takes a workload out. Its established connections drain; its new ones are no longer captured.
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        let Some(entry) = self.entries.remove(name) else {
            return Err(Error::Unknown(name.to_owned()));
        };
        if let Phase::Ready(running) = entry.phase {
            self.stop(name, *running);
        }
        Ok(())
    }

    /// Brings everything in step: the gone are taken out, the pending tried again, addresses, routes and
    /// resolvers followed, replaced policies' tables dropped.
    pub fn tick(&mut self) {
        if std::mem::take(&mut self.replaced) {
            self.kernel.maps.drop_unused_policies().unwrap_or_else(|e| log::error!("{e}"));
        }
        self.draining.retain(|d| d.live() > 0);
        self.leaving.retain(|rest| rest.live() > 0);
        self.look();
        let names: Vec<String> = self.entries.keys().cloned().collect();
        for name in names {
            let Some(entry) = self.entries.remove(&name) else { continue };
            let Some(entry) = self.step(&name, entry) else { continue };
            let Entry { spec, origin, phase: Phase::Ready(running), wanted: Some((wanted, before)) } = entry
            else {
                self.entries.insert(name, entry);
                continue;
            };
            let (entry, done) = self.change((spec, wanted), running, origin);
            if let Err(e) = done.as_ref().map_err(ToString::to_string)
                && e != before
            {
                log::error!("workload {name}: keeps its old policy: {e}");
            }
            self.entries.insert(name, entry);
        }
    }

    fn step(&mut self, name: &str, entry: Entry) -> Option<Entry> {
        let phase = match entry.phase {
            Phase::Pending(before) => match self.start(&entry.spec, entry.origin) {
                Phase::Pending(reason) => {
                    if reason != before {
                        log::warn!("workload {name}: not captured yet: {reason}");
                    }
                    Phase::Pending(reason)
                }
                ready @ Phase::Ready(_) => ready,
            },
            Phase::Ready(running) if !is_there(&entry.spec, &running) => {
                log::info!("workload {name}: its cgroup or network namespace is gone");
                self.stop(name, *running);
                if entry.origin == Origin::Api {
                    return None;
                }
                Phase::Pending("its cgroup or network namespace is gone".to_owned())
            }
            Phase::Ready(mut running) => {
                self.follow(&entry.spec, &mut running)
                    .unwrap_or_else(|e| log::error!("workload {name}: {e}"));
                Phase::Ready(running)
            }
        };
        Some(Entry { phase, ..entry })
    }

    /// What the policy depends on and nobody announces: addresses, routes, resolvers.
    fn follow(&mut self, spec: &Workload, running: &mut Running) -> Result<(), Error> {
        let netns = running.netns.clone();
        let inbound = !netns.is_host();
        let ips = own_ips(&netns)?;
        if inbound && ips != running.installed.own_ips {
            self.kernel.maps.set_own_ips(netns.cookie(), &ips)?;
            running.installed.own_ips = ips;
        }
        let surroundings = environment(spec, &netns, self.settings.proxy_cgroup, inbound)?;
        let mut compiled = compile(&spec.policy, &surroundings);
        compiled.pod.out_port = running.installed.compiled.pod.out_port;
        if compiled != running.installed.compiled {
            self.kernel.maps.set_policy(netns.cookie(), &compiled)?;
            running.installed.compiled = compiled;
            self.replaced = true;
        }
        Ok(())
    }
}

fn same_place(a: &Workload, b: &Workload) -> bool {
    a.cgroup == b.cgroup && a.netns == b.netns
}

fn is_there(spec: &Workload, running: &Running) -> bool {
    running.netns.is_there()
        && crate::cgroup::id(&spec.cgroup).is_ok_and(|id| id == running.installed.cgroup_id)
}

/// A namespace can have one policy, so it can be one workload.
fn taken(state: &State, spec: &Workload, netns: &Netns) -> Option<Error> {
    let other = state.workloads.iter().find(|r| r.cookie == netns.cookie() && r.name != spec.name.as_str());
    if let Some(other) = other {
        return Some(Error::Taken { path: spec.netns.clone(), other: other.name.clone() });
    }
    let same = state.get(spec.name.as_str())?;
    (same.owner == Owner::Attach).then(|| Error::Attached(same.name.clone()))
}
