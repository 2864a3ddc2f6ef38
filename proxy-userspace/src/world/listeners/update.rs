//! What LDS says, taken apart: what is the same, what is new, what is gone, what is refused.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use proxy_config::model;
use proxy_config::model::address::Address;
use proxy_config::xds::RawResource;

use super::{Listeners, Stage};
use crate::clock;
use crate::cluster::address_text;
use crate::task;
use crate::world::clusters::MANY;
use crate::world::discovered::Wants;
use crate::world::history::Change;
use crate::world::listener::differ_in_chains_alone;
use crate::world::resource::{Origin, refusal};
use crate::world::{Listener, listeners::State, routes};
use crate::xds::{Consumer, Failure, Update};

impl Consumer for Listeners {
    fn update(&self, update: &Update<'_>) -> Result<(), String> {
        if update.resources.len() > MANY { task::long(|| self.updated(update)) } else { self.updated(update) }
    }

    fn failed(&self, failure: &Failure) {
        self.subscribed.failed(failure);
    }
}

impl Listeners {
    fn updated(&self, update: &Update<'_>) -> Result<(), String> {
        let began = clock::now();
        let mut change = self.subscribed.change(update.version);
        let Read { fresh, mut refused, named } = self.read(update);
        let mut state = self.lock();
        let gone = gone(&state, update, &named);
        let dirty = !gone.is_empty() || !fresh.is_empty();
        // Their sockets stay open until it is known whether another listener takes them over.
        let mut doors = Vec::new();
        for name in &gone {
            state.errors.remove(name);
            change.note(name, state.entry(name).map(|_| Bytes::new()), None);
            doors.extend(self.remove(&mut state, name));
        }
        for name in &named {
            state.errors.remove(name);
        }
        for (raw, origin, wants) in fresh {
            if let Err(why) = self.take_and_note(&mut state, origin, wants, &mut change) {
                refused.push((raw, why));
            }
        }
        refused.iter().for_each(|(raw, why)| change.refuse(&raw.name, why.as_str()));
        let errors = refused.iter().map(|(raw, why)| (raw.name.clone(), refusal(raw, why)));
        state.errors.extend(errors);
        if dirty {
            self.publish(&mut state);
        }
        drop(state);
        drop(doors);
        let lines: Vec<_> = refused.iter().map(|(raw, why)| format!("{}: {why}", raw.name)).collect();
        let why =
            (!lines.is_empty()).then(|| format!("Error adding/updating listener(s) {}", lines.join("\n")));
        self.subscribed.answered(update.version, why.as_deref(), began);
        change.nack = why.as_deref().map(Arc::from);
        self.env.history.record(change);
        why.map_or(Ok(()), Err)
    }
}

struct Read<'a> {
    fresh: Vec<(&'a RawResource, Origin<model::Listener>, Wants)>,
    refused: Vec<(&'a RawResource, String)>,
    named: HashSet<Arc<str>>,
}

impl Listeners {
    /// What differs from what is known. No lock is held while resources are read, and while others are asked for
    /// what they name.
    fn read<'a>(&self, update: &Update<'a>) -> Read<'a> {
        let mut read = Read { fresh: Vec::new(), refused: Vec::new(), named: HashSet::new() };
        for raw in update.resources {
            match self.read_one(raw) {
                Ok((name, _)) if read.named.contains(&name) => {
                    read.refused.push((raw, format!("duplicate listener {name} found")));
                }
                Ok((name, origin)) => {
                    read.named.insert(name);
                    if let Some(origin) = origin {
                        let wants = self.hub.wants(&origin.resource.model);
                        read.fresh.push((raw, origin, wants));
                    }
                }
                Err(why) => {
                    read.named.insert(raw.name.clone());
                    read.refused.push((raw, why));
                }
            }
        }
        read
    }

    /// Its name, and nothing more of what is known already. A listener without a name has its address for one.
    fn read_one(&self, raw: &RawResource) -> Result<(Arc<str>, Option<Origin<model::Listener>>), String> {
        let known = {
            let state = self.lock();
            let entry = state.entry(&raw.name);
            if entry.is_some_and(|entry| entry.fixed) {
                log::debug!("lds: {}: it is the bootstrap's, and stays", raw.name);
                return Ok((raw.name.clone(), None));
            }
            entry.and_then(|entry| entry.latest()).map(|stage| stage.origin.clone())
        };
        if known.as_ref().is_some_and(|known| known.is(raw)) {
            return Ok((raw.name.clone(), None));
        }
        let resource = self.subscribed.decode::<model::Listener>(&self.env.decoder, raw)?.resource;
        let name = resource.model.name.clone();
        if !raw.name.is_empty() && raw.name != name {
            return Err(format!("the listener's own name is {name}"));
        }
        if known.is_some_and(|known| known.resource.model == resource.model) {
            return Ok((name, None));
        }
        Ok((name, Some(Origin::new(resource, raw.version.clone()))))
    }

    fn take_and_note(
        &self,
        state: &mut State,
        origin: Origin<model::Listener>,
        wants: Wants,
        change: &mut Change,
    ) -> Result<(), String> {
        let name = origin.resource.model.name.clone();
        let before = state.entry(&name).and_then(|entry| entry.latest());
        let before = before.map(|stage| stage.origin.resource.raw.bytes());
        // What is new can be seen where it is.
        let after = before.as_ref().map_or_else(Bytes::new, |_| origin.resource.raw.bytes());
        self.take(state, origin, wants)?;
        change.note(&name, before, Some(after));
        Ok(())
    }

    /// Builds a listener, opens its doors, and gives it its place or lets it warm first.
    fn take(&self, state: &mut State, origin: Origin<model::Listener>, wants: Wants) -> Result<(), String> {
        let template = &origin.resource.model;
        let name = template.name.clone();
        let effective = wants.effective(template);
        routes::inline(&effective, &self.clusters)?;
        if let Some(taken) = taken(state, &effective) {
            return Err(format!(
                "error adding listener: '{name}' has duplicate address '{taken}' as existing listener, to check if \
                 the listener has duplicated addresses with other listeners or 'enable_reuse_port' is set to 'false' \
                 for the listener"
            ));
        }
        let before = state.entry(&name).and_then(|entry| entry.active.as_ref());
        let before = before.map(|stage| stage.listener.clone());
        let in_place = before.filter(|before| differ_in_chains_alone(&before.model, &effective));
        let parts = self.env.parts();
        let built = match &in_place {
            Some(before) => Listener::successor(effective, before, &parts),
            None => Listener::new(effective, &parts),
        };
        let listener = Arc::new(built.map_err(|error| error.to_string())?);
        let doors = state.open(&listener).map_err(|error| {
            self.stats.listener_create_failure.inc();
            error.to_string()
        })?;
        if in_place.is_some() {
            self.stats.listener_in_place_updated.inc();
        }
        self.place(state, &name, Stage { origin, listener, wants, doors });
        Ok(())
    }
}

/// The names that are no longer there.
fn gone(state: &State, update: &Update<'_>, named: &HashSet<Arc<str>>) -> Vec<Arc<str>> {
    let mut gone = update.removed.to_vec();
    if update.whole {
        let entries = state.entries.values().filter(|entry| !entry.fixed && !named.contains(&entry.name));
        gone.extend(entries.map(|entry| entry.name.clone()));
        gone.extend(state.errors.keys().filter(|name| !named.contains(*name)).cloned());
    }
    gone.retain(|name| state.entry(name).is_none_or(|entry| !entry.fixed));
    gone
}

/// An address of a listener that another one has. A port that the kernel chooses is nobody's.
fn taken(state: &State, listener: &model::Listener) -> Option<String> {
    let own = state.by_name.get(&listener.name);
    let addresses = listener.addresses.iter().map(|at| &at.address);
    let chosen = |address: &Address| {
        listener.bind_to_port && matches!(address, Address::Ip(address) if address.port() == 0)
    };
    let mut addresses = addresses.filter(|address| !chosen(address));
    let taken = addresses.find(|address| state.by_address.get(*address).is_some_and(|id| Some(id) != own));
    taken.map(address_text)
}
