//! Workloads as the admin API shows them.

use std::path::PathBuf;

use proxy_common::{ListenerKey, direction};
use proxy_config::policy::Note;
use serde::Serialize;

use super::brought::{Brought, Configuration};
use super::{Entry, Origin, Phase, Registry};

/// Whether a workload is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Status {
    Ready,
    Pending { reason: String },
}

/// A workload as the admin API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub name: String,
    #[serde(flatten)]
    pub status: Status,
    pub origin: Origin,
    pub cgroup: PathBuf,
    pub netns: PathBuf,
    pub cookie: Option<u64>,
    pub outbound_port: Option<u16>,
    pub policy: String,
    /// What it has brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Configuration>,
    pub notes: Vec<Note>,
}

impl Registry {
    /// Every workload with its state.
    pub fn list(&self) -> Vec<Summary> {
        let listening = self.kernel.maps.listeners().unwrap_or_default();
        let all = self.entries.iter().map(|(name, entry)| summary(name, entry));
        all.map(|s| confirm(s, &listening)).collect()
    }
}

/// Ready is what the kernel says: a listening socket is there for the hooks to use.
fn confirm(summary: Summary, listening: &[ListenerKey]) -> Summary {
    let heard =
        listening.iter().any(|l| Some(l.netns) == summary.cookie && l.direction == direction::OUTBOUND);
    if summary.status == Status::Ready && !heard {
        let reason = "no listening socket of the proxy is registered".to_owned();
        return Summary { status: Status::Pending { reason }, ..summary };
    }
    summary
}

fn summary(name: &str, entry: &Entry) -> Summary {
    let (status, running) = match &entry.phase {
        Phase::Pending(reason) => (Status::Pending { reason: reason.clone() }, None),
        Phase::Ready(running) => match (&running.serving, &running.brought) {
            (None, Some(brought)) => (Status::Pending { reason: brought.closed() }, Some(running)),
            (Some(_), _) | (None, None) => (Status::Ready, Some(running)),
        },
    };
    let mut notes = entry.spec.notes.clone();
    if let Some((wanted, reason)) = &entry.wanted {
        let reason = format!("'{}' is not in force: {reason}", wanted.policy);
        notes.push(Note { flag: "policy".to_owned(), reason });
    }
    notes.extend(running.iter().flat_map(|r| r.installed.compiled.notes.clone()));
    Summary {
        name: name.to_owned(),
        status,
        origin: entry.origin,
        cgroup: entry.spec.cgroup.clone(),
        netns: entry.spec.netns.clone(),
        cookie: running.map(|r| r.netns.cookie()),
        outbound_port: running.and_then(|r| r.serving.as_ref()).map(|serving| serving.view.out_port),
        policy: entry.spec.policy.to_string(),
        configuration: running.and_then(|r| r.brought.as_ref()).map(Brought::summary),
        notes,
    }
}
