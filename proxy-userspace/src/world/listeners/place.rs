//! A listener takes its place, and what it replaces drains.

use std::sync::Arc;
use std::time::Duration;

use super::{Draining, Entry, Listeners, Stage, State, settled};
use crate::drain::{self, Roster};
use crate::task::Abort;
use crate::telemetry::stats::{Held, ListenerManagerStats};
use crate::world::Listener;
use crate::world::door::{Door, Gate};
use crate::world::listener::differ_in_chains_alone;
use crate::world::stages::{Stages, Warming};

/// How long to leave others their turn with the state.
const TURN: Duration = Duration::from_millis(1);

impl Listeners {
    /// Gives a new or changed listener its place, or lets it warm first.
    pub(super) fn place(&self, state: &mut State, name: &Arc<str>, stage: Stage) {
        let known = state.entry(name).is_some();
        if known { &self.stats.listener_modified } else { &self.stats.listener_added }.inc();
        if !known {
            let name = name.clone();
            state.insert(Entry { name, stages: Stages::default() });
        }
        // Until connections are accepted, the start waits for all of them.
        if state.gate.is_none() || stage.is_warm() {
            self.replace(state, name, stage);
            return;
        }
        let generation = state.next();
        let (me, listener, wants) = (self.me.clone(), stage.listener.clone(), stage.wants.clone());
        let (live, tasks) = (self.live.clone(), self.env.cluster.tasks.clone());
        let name_of = name.clone();
        let task = async move {
            settled(&listener, &wants, &live, &tasks).await;
            loop {
                let Some(this) = me.upgrade() else { return };
                if this.warm(&name_of, generation) {
                    return;
                }
                drop(this);
                tokio::time::sleep(TURN).await;
            }
        };
        let _task = Abort::of(self.env.cluster.tasks.spawn("listener warming", task));
        let id = state.by_name.get(name).copied();
        if let Some(entry) = state.entry_mut(name) {
            entry.warming = Some(Box::new(Warming { stage, generation, _task }));
        }
        id.into_iter().for_each(|id| state.claim(id));
    }

    /// Its time has come. False where somebody is at work: no worker waits for an update of thousands.
    fn warm(&self, name: &str, generation: u64) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return self.state.is_poisoned() };
        let Some(stage) = state.entry_mut(name).and_then(|entry| entry.take_warm(generation)) else {
            return true;
        };
        self.replace(&mut state, name, self.current(stage));
        self.publish(&mut state);
        true
    }

    /// A filter of ECDS is another one: new connections of the chains that name it see it. Those that are there keep
    /// what they have, as in Envoy, which replaces the filter for them no more than this.
    pub(in crate::world) async fn extension_changed(&self, name: &str) {
        loop {
            if let Ok(mut state) = self.state.try_lock() {
                return self.fill_in(&mut state, name);
            }
            tokio::time::sleep(TURN).await;
        }
    }

    fn fill_in(&self, state: &mut State, extension: &str) {
        let mut changed = Vec::new();
        let gate = state.gate.clone();
        let active = state.entries.iter_mut().filter_map(|(id, entry)| Some((*id, entry.active.as_mut()?)));
        for (id, stage) in active.filter(|(_, stage)| stage.wants.names(extension)) {
            let model = stage.wants.effective(&stage.origin.resource.model);
            match Listener::refilled(model, &stage.listener, &self.env.parts()) {
                Ok(listener) => {
                    stage.listener = Arc::new(listener);
                    self.turn(stage, gate.as_ref());
                    changed.push(id);
                }
                Err(error) => log::warn!("{error}; what was known stays"),
            }
        }
        if !changed.is_empty() {
            state.moved.append(&mut changed);
            self.publish(state);
        }
    }

    /// With the extensions that have come while it warmed.
    fn current(&self, stage: Stage) -> Stage {
        let model = stage.wants.effective(&stage.origin.resource.model);
        if *model == *stage.listener.model {
            return stage;
        }
        match Listener::successor(model, &stage.listener, &self.env.parts()) {
            Ok(listener) => Stage { listener: Arc::new(listener), ..stage },
            Err(error) => {
                log::warn!("{error}; what was known stays");
                stage
            }
        }
    }

    /// The next connection is for `stage`; what was there before drains.
    fn replace(&self, state: &mut State, name: &str, stage: Stage) {
        self.lead(&stage, state.gate.as_ref());
        let Some(id) = state.by_name.get(name).copied() else { return };
        let Some(mut entry) = state.entries.remove(&id) else { return };
        state.release(&entry, id);
        entry.warming = None;
        let before = entry.active.take();
        if let Some(before) = before {
            let in_place = differ_in_chains_alone(&before.listener.model, &stage.listener.model);
            let rosters = before.listener.leaves(Some(&stage.listener));
            if in_place {
                self.drain_chains(rosters);
            } else {
                self.drain(state, &entry.name, &before, rosters);
            }
        }
        entry.active = Some(Box::new(stage));
        state.entries.insert(id, entry);
        state.moved.push(id);
        state.claim(id);
    }

    pub(super) fn lead(&self, stage: &Stage, gate: Option<&Gate>) {
        if self.turn(stage, gate) {
            self.stats.listener_create_success.inc();
        }
    }

    /// Says whether connections come to it now.
    fn turn(&self, stage: &Stage, gate: Option<&Gate>) -> bool {
        let Some(gate) = gate else { return false };
        let led: Result<Vec<()>, _> =
            stage.doors.iter().map(|door| door.lead_to(&stage.listener, gate)).collect();
        match led {
            Ok(_) => true,
            Err(error) => {
                self.stats.listener_create_failure.inc();
                log::error!("{error}");
                false
            }
        }
    }

    /// Says by which sockets it was reached; they close with the last who holds them.
    pub(super) fn remove(&self, state: &mut State, name: &str) -> Vec<Arc<Door>> {
        let Some(entry) = state.remove(name) else { return Vec::new() };
        self.stats.listener_removed.inc();
        let Some(active) = entry.stages.active else { return Vec::new() };
        let rosters = active.listener.leaves(None);
        self.drain(state, &entry.name, &active, rosters);
        active.doors
    }

    fn drain(&self, state: &mut State, name: &Arc<str>, stage: &Stage, rosters: Vec<Arc<Roster>>) {
        let generation = state.next();
        state.draining.push(Draining { generation, view: stage.origin.view(name) });
        let (me, time) = (self.me.clone(), self.env.drain_time);
        self.env.cluster.tasks.spawn("drain listener", async move {
            finish(&rosters, time).await;
            loop {
                let Some(this) = me.upgrade() else { return };
                if let Ok(mut state) = this.state.try_lock() {
                    state.draining.retain(|draining| draining.generation != generation);
                    this.stats.total_listeners_draining.set(state.draining.len() as u64);
                    return;
                }
                drop(this);
                tokio::time::sleep(TURN).await;
            }
        });
    }

    fn drain_chains(&self, rosters: Vec<Arc<Roster>>) {
        if rosters.is_empty() {
            return;
        }
        let time = self.env.drain_time;
        let held = |_| Held::new(&self.stats, |s: &ListenerManagerStats| &s.total_filter_chains_draining);
        let held: Vec<_> = rosters.iter().map(held).collect();
        self.env.cluster.tasks.spawn("drain filter chains", async move {
            finish(&rosters, time).await;
            drop(held);
        });
    }
}

async fn finish(rosters: &[Arc<Roster>], time: Duration) {
    let cut = drain::finish(rosters, time).await;
    if cut > 0 {
        log::info!("{cut} connections of a listener that was replaced were cut after {time:?}");
    }
}
