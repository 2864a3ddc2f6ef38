//! A new policy for a workload that stays where it is: in force as a whole, or not at all.

use proxy_config::enrol::Workload;

use super::brought::Brought;
use super::serving::{LAST_CONNECTS, Serves, Serving, inbound_port, traffic};
use super::{Entry, Origin, Phase, Registry, Running};
use crate::workload::listeners::Listening;
use crate::workload::{Error, Installed, install};

impl Registry {
    /// A new policy in the same place. Where the ports stay, only the entry is flipped. Where they do not, the
    /// new listeners are there before the flip, and the old ones stay for those who were sent to them. Where it
    /// cannot be done, the old policy stays whole, and every tick tries the new one again.
    pub(super) fn change(
        &mut self,
        (old, new): (Workload, Workload),
        mut running: Box<Running>,
        origin: Origin,
    ) -> (Entry, Result<(), Error>) {
        match self.try_change(&new, &running) {
            Ok((installed, serving)) => {
                self.replaced = true;
                log::info!("workload {}: policy changed to '{}'", new.name, new.policy);
                running.installed = installed;
                if let Some(serving) = serving
                    && let Some(before) = running.serving.replace(serving)
                {
                    self.retire(before, LAST_CONNECTS);
                    running.brought.iter_mut().for_each(Brought::outdated);
                }
                if let Some(serving) = &running.serving {
                    serving.view.set_traffic(traffic(&new));
                }
                self.bring_again(&new, &mut running);
                let phase = Phase::Ready(running);
                (Entry { spec: new, origin, phase, wanted: None }, Ok(()))
            }
            Err(e) => {
                self.restore(&old, &running);
                let wanted = Some((new, e.to_string()));
                (Entry { spec: old, origin, phase: Phase::Ready(running), wanted }, Err(e))
            }
        }
    }

    /// Puts back what a failed change may have touched: hooks and registered listeners.
    fn restore(&self, spec: &Workload, running: &Running) {
        let (netns, proxy) = (&running.netns, self.settings.proxy_cgroup);
        let hooks = install(&self.kernel, spec, netns, proxy, !netns.is_host(), true).map(drop);
        let set = |l: &Listening| Ok(self.kernel.maps.set_listener(&l.key(netns.cookie()), l.fd())?);
        let listeners: Result<(), Error> = running.listening().iter().try_for_each(set);
        hooks.and(listeners).unwrap_or_else(|e| log::error!("workload {}: {e}", spec.name));
    }

    fn try_change(&self, spec: &Workload, running: &Running) -> Result<(Installed, Option<Serving>), Error> {
        let inbound = !running.netns.is_host();
        let mut installed =
            install(&self.kernel, spec, &running.netns, self.settings.proxy_cgroup, inbound, true)?;
        let old = &running.installed.compiled.pod;
        let new = &mut installed.compiled.pod;
        if spec.policy.envoy_port == 0 {
            new.out_port = old.out_port;
        }
        let same = old.out_port == new.out_port && inbound_port(old) == inbound_port(new);
        let serving = match &running.serving {
            Some(before) if !same => {
                let serves = Serves { config: before.view.config.clone(), besides: None, before: None };
                Some(self.serve(spec, &running.netns, &mut installed, (&before.listening, serves))?)
            }
            // Where nobody listens, nobody will before there is a configuration.
            Some(_) | None => None,
        };
        self.state.change(|state| {
            if let Some(record) = state.workloads.iter_mut().find(|r| r.name == spec.name.as_str()) {
                record.policy = spec.policy.to_string();
                record.bootstrap.clone_from(&spec.bootstrap);
            }
            installed.activate(&self.kernel, &running.netns)
        })?;
        Ok((installed, serving))
    }
}
