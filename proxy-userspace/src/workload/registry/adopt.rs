//! What an earlier process left: adopted where it is wanted again, purged where it is gone.

use proxy_config::enrol::Workload;

use super::{Origin, Registry, Running};
use crate::workload::{Error, Owner, Record, State};

impl Registry {
    /// The dead goes now; the living stays captured, and closed until somebody asks for it.
    pub(super) fn purge(&mut self) -> Result<(), Error> {
        let file = self.state.clone();
        let adopted = file.change(|state| -> Result<_, Error> {
            for record in std::mem::take(&mut state.workloads) {
                if record.is_alive() {
                    state.workloads.push(record);
                } else {
                    log::info!("workload {}: gone since the last run, purged", record.name);
                    self.kernel.detach(&record.name, Some(record.cookie))?;
                }
            }
            Ok(state.workloads.iter().filter(|r| r.owner == Owner::Api).cloned().collect::<Vec<_>>())
        })?;
        for record in adopted {
            match respecify(&record) {
                Ok(spec) => self.put(spec, Origin::Api),
                Err(e) => log::error!("workload {}: cannot be adopted: {e}", record.name),
            }
        }
        Ok(())
    }

    /// Pins and entries that no record speaks of.
    fn purge_unknown(&self, state: &State) -> Result<(), Error> {
        for name in self.kernel.pins().workloads() {
            if state.get(&name).is_none() {
                log::warn!("workload {name}: pinned, but not in the state file; purged");
                self.kernel.detach(&name, None)?;
            }
        }
        for netns in self.kernel.maps.enrolled()? {
            if !state.workloads.iter().any(|r| r.cookie == netns) {
                self.kernel.maps.remove_pod(netns)?;
            }
        }
        Ok(())
    }

    /// Drops what was adopted but is not asked for by anyone, once all sources have spoken.
    pub fn drop_unwanted(&mut self) -> Result<(), Error> {
        let file = self.state.clone();
        file.change(|state| {
            for record in state.workloads.clone() {
                if record.owner == Owner::Daemon && !self.entries.contains_key(&record.name) {
                    log::info!("workload {}: no longer asked for, taken out", record.name);
                    self.kernel.detach(&record.name, Some(record.cookie))?;
                    state.remove(&record.name);
                }
            }
            // Only now: where the state file was lost, what is wanted has been captured again without a gap.
            self.purge_unknown(state)
        })
    }
}

/// What is remembered of a workload.
pub(super) fn record(spec: &Workload, running: &Running, origin: Origin) -> Record {
    Record {
        name: spec.name.as_str().to_owned(),
        cgroup: spec.cgroup.clone(),
        cgroup_id: running.installed.cgroup_id,
        netns: spec.netns.clone(),
        cookie: running.netns.cookie(),
        policy: spec.policy.to_string(),
        proxy_cgroup: None,
        bootstrap: spec.bootstrap.clone(),
        owner: if origin == Origin::Api { Owner::Api } else { Owner::Daemon },
    }
}

/// The workload that a record describes.
pub(crate) fn respecify(record: &Record) -> Result<Workload, String> {
    let mut entry = serde_json::json!({
        "name": record.name,
        "cgroup": record.cgroup,
        "netns": record.netns,
        "policy": record.policy,
    });
    if let Some(file) = &record.bootstrap {
        entry["bootstrap"] = serde_json::json!(file);
    }
    Workload::parse(&entry.to_string())
        .map_err(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}
