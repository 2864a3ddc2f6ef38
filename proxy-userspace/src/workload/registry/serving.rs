//! A workload's listeners: opened in its namespace, served, registered in the kernel, and let go.

use std::sync::Arc;
use std::time::Duration;

use proxy_common::{Pod, flag};
use proxy_config::enrol::Workload;
use proxy_config::policy::OutboundTrafficPolicy;

use super::{Phase, Registry, Running};
use crate::clock;
use crate::drain::Drain;
use crate::net::accept::Spread;
use crate::net::{self, Direction, ListenerContext, OutboundPolicy, Place, Traffic};
use crate::sys::netns::Netns;
use crate::workload::listeners::{Listening, open};
use crate::workload::{Dialer, Error, Installed};

/// How long connections may take to end by themselves when the daemon stops.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// A connect that was sent to an old listener just before a flip has arrived there by then.
const LAST_CONNECTS: Duration = Duration::from_secs(1);

/// A workload's listeners.
pub(super) struct Serving {
    pub(super) view: Arc<Place>,
    /// Their sockets, to share with the listeners of a later policy.
    pub(super) listening: Vec<Listening>,
    pub(super) drain: Arc<Drain>,
}

impl Registry {
    /// Opens and serves the listeners that a policy asks for, and registers them.
    pub(super) fn serve(
        &self,
        spec: &Workload,
        netns: &Arc<Netns>,
        installed: &mut Installed,
        old: &[Listening],
    ) -> Result<Serving, Error> {
        let pod = &mut installed.compiled.pod;
        let listening = open(netns, pod.out_port, inbound_port(pod), old)?;
        if let Some(outbound) = listening.iter().find(|l| l.direction == Direction::Outbound) {
            // Where the port was left to the kernel.
            pod.out_port = outbound.address.port();
        }
        let view = Arc::new(self.view(spec, netns, pod));
        let drain = Arc::new(Drain::new());
        // All that can fail first: nothing is served that is not wanted.
        let mut accepting = Vec::new();
        let tasks = &self.shared.tasks;
        let _runtime = self.runtime.enter();
        for l in &listening {
            let spread = Spread::Evenly(tasks.crew().next());
            let _there = tasks.crew().enter(spread.place());
            let socket = tokio::net::TcpListener::from_std(l.share()?.socket)
                .map_err(|source| Error::Listen { address: l.address, source })?;
            self.kernel.maps.set_listener(&l.key(netns.cookie()), l.fd())?;
            accepting.push((socket, spread, ListenerContext::new(view.clone(), l.direction, l.address)));
        }
        for (socket, spread, context) in accepting {
            let run = net::accept::run(socket, Arc::new(context), drain.watch(), spread);
            tasks.spawn_on(spread.place(), "accept", run);
        }
        Ok(Serving { view, listening, drain })
    }

    fn view(&self, spec: &Workload, netns: &Arc<Netns>, pod: &Pod) -> Place {
        let inside: Arc<dyn net::Dial> = Arc::new(Dialer::new(netns.clone()));
        let outbound = if self.settings.dial_from_host { Arc::new(net::HostDial) } else { inside.clone() };
        Place::workload(
            spec.name.as_str(),
            net::Dialers { outbound, inbound: inside },
            (pod.out_port, pod.in_port),
            self.settings.admin.clone(),
            traffic(spec),
            self.shared.clone(),
        )
    }

    /// Lets listeners go a while after nobody is sent to them any more; their connections drain.
    pub(super) fn retire(&mut self, old: Serving) {
        self.draining.push(old.drain.clone());
        let time = self.settings.drain_time;
        let _runtime = self.runtime.enter();
        self.shared.tasks.spawn("drain", async move {
            tokio::time::sleep(LAST_CONNECTS).await;
            drop(old.listening);
            old.drain.drain(time).await;
        });
    }

    pub(super) fn stop(&mut self, name: &str, running: &Running) {
        self.uncapture(name, running);
        let (drain, time) = (running.serving.drain.clone(), self.settings.drain_time);
        self.draining.push(drain.clone());
        let _runtime = self.runtime.enter();
        self.shared.tasks.spawn("drain", async move {
            drain.drain(time).await;
        });
    }

    fn uncapture(&self, name: &str, running: &Running) {
        let done = self.state.change(|state| -> Result<(), Error> {
            self.kernel.detach(name, Some(running.netns.cookie()))?;
            state.remove(name);
            Ok(())
        });
        match done {
            Ok(()) => log::info!("workload {name}: taken out"),
            Err(e) => log::error!("workload {name}: {e}"),
        }
    }

    /// Takes everything out, or leaves it captured for the next daemon. Either way its connections end now, and
    /// each has said so when this returns.
    pub fn shut_down(mut self, keep: bool) {
        for (name, entry) in std::mem::take(&mut self.entries) {
            let Phase::Ready(running) = entry.phase else { continue };
            if !keep {
                self.uncapture(&name, &running);
            }
            self.draining.push(running.serving.drain.clone());
        }
        if !keep {
            self.kernel.detach_proxy();
        }
        self.draining.iter().for_each(|d| d.start());
        let deadline = clock::now() + LAST_BYTES;
        self.runtime.block_on(async {
            for drain in &self.draining {
                drain.drain(deadline.saturating_duration_since(clock::now())).await;
            }
        });
    }
}

pub(super) fn inbound_port(pod: &Pod) -> Option<u16> {
    (pod.flags & flag::INBOUND != 0).then_some(pod.in_port)
}

pub(super) fn traffic(spec: &Workload) -> Traffic {
    let outbound = match spec.policy.outbound_traffic_policy {
        OutboundTrafficPolicy::AllowAny => OutboundPolicy::AllowAny,
        OutboundTrafficPolicy::RegistryOnly => OutboundPolicy::RegistryOnly,
    };
    Traffic { outbound }
}
