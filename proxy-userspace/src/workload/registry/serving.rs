//! A workload's listeners: opened in its namespace, served, registered in the kernel, and let go.

use std::sync::Arc;
use std::time::Duration;

use proxy_common::{Pod, flag};
use proxy_config::enrol::Workload;
use proxy_config::policy::OutboundTrafficPolicy;

use super::brought::Brought;
use super::{Phase, Registry, Running};
use crate::clock;
use crate::drain::Drain;
use crate::net::accept::Spread;
use crate::net::{self, Direction, ListenerContext, OutboundPolicy, Place, Traffic};
use crate::sidecar::Sidecar;
use crate::sys::netns::Netns;
use crate::workload::listeners::{Inside, Listening, open};
use crate::workload::{Dialer, Error, Installed};
use crate::world::bind;

/// How long connections may take to end by themselves when the daemon stops.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// A connect that was sent to an old listener just before a flip has arrived there by then.
pub(super) const LAST_CONNECTS: Duration = Duration::from_secs(1);

/// What a workload's listeners serve.
pub(super) struct Serves {
    /// For its captured connections.
    pub(super) config: net::Config,
    /// Whose other listeners are to be opened too.
    pub(super) besides: Option<Arc<Sidecar>>,
    /// Whose listeners were open before.
    pub(super) before: Option<Arc<Sidecar>>,
}

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
        (old, serves): (&[Listening], Serves),
    ) -> Result<Serving, Error> {
        let pod = &mut installed.compiled.pod;
        let listening = open(netns, pod.out_port, inbound_port(pod), old)?;
        if let Some(outbound) = listening.iter().find(|l| l.direction == Direction::Outbound) {
            // Where the port was left to the kernel.
            pod.out_port = outbound.address.port();
        }
        let view = Arc::new(self.view(spec, netns, pod, serves.config));
        let drain = Arc::new(Drain::new());
        // All that can fail first: nothing is served that is not wanted.
        if let Some(sidecar) = &serves.besides {
            self.bind_besides(netns, &view, sidecar, serves.before.as_deref())?;
        }
        let mut accepting = Vec::new();
        let tasks = &self.shared.tasks;
        let _runtime = self.runtime.enter();
        for l in &listening {
            let spread = Spread::Evenly(tasks.crew().next());
            let _there = tasks.crew().enter(spread.place());
            let socket = tokio::net::TcpListener::from_std(l.share()?.socket)
                .map_err(|source| Error::Listen { address: l.address, source })?;
            accepting.push((socket, spread, ListenerContext::new(view.clone(), l.direction, l.address)));
        }
        for l in &listening {
            self.kernel.maps.set_listener(&l.key(netns.cookie()), l.fd())?;
        }
        for (socket, spread, context) in accepting {
            let run = net::accept::run(Arc::new(socket), Arc::new(context), drain.watch(), spread);
            tasks.spawn_on(spread.place(), "accept", run);
        }
        if let Some(sidecar) = &serves.besides {
            sidecar.accept(view.clone());
        }
        Ok(Serving { view, listening, drain })
    }

    /// The listeners of its configuration that captured connections do not enter by: in its namespace, as a sidecar
    /// would open them; those that come later, too.
    fn bind_besides(
        &self,
        netns: &Arc<Netns>,
        place: &Place,
        sidecar: &Sidecar,
        before: Option<&Sidecar>,
    ) -> Result<(), Error> {
        let Some(world) = &sidecar.world else { return Ok(()) };
        let workers = self.settings.common.workers;
        let (out_port, in_port) = (place.out_port, place.in_port);
        let _runtime = self.runtime.enter();
        let before = before.and_then(|before| before.world.as_ref()).map(Arc::downgrade).unwrap_or_default();
        let sockets = Inside { netns: netns.clone(), out_port, in_port, own: bind::Own { workers }, before };
        world.bind(Arc::new(sockets)).map_err(Error::Bind)
    }

    /// What makes its upstream sockets.
    pub(super) fn dialers(&self, netns: &Arc<Netns>) -> net::Dialers {
        let inside: Arc<dyn net::Dial> = Arc::new(Dialer::new(netns.clone()));
        let outbound = if self.settings.dial_from_host { Arc::new(net::HostDial) } else { inside.clone() };
        net::Dialers { outbound, inbound: inside }
    }

    fn view(&self, spec: &Workload, netns: &Arc<Netns>, pod: &Pod, config: net::Config) -> Place {
        Place::workload(
            spec.name.as_str(),
            self.dialers(netns),
            (pod.out_port, pod.in_port),
            self.settings.admin.clone(),
            (config, traffic(spec)),
            self.shared.clone(),
        )
    }

    /// Lets listeners go, `after` nobody is sent to them any more; their connections drain.
    pub(super) fn retire(&mut self, old: Serving, after: Duration) {
        self.draining.push(old.drain.clone());
        let time = self.settings.common.drain_time;
        let _runtime = self.runtime.enter();
        if after.is_zero() {
            old.drain.start();
        }
        self.shared.tasks.spawn("drain", async move {
            tokio::time::sleep(after).await;
            drop(old.listening);
            old.drain.drain(time).await;
        });
    }

    pub(super) fn stop(&mut self, name: &str, mut running: Running) {
        self.uncapture(name, &running);
        if let Some(serving) = running.serving.take() {
            self.retire(serving, Duration::ZERO);
        }
        self.settings.sidecars.set(name, None);
        if let Some(sidecar) = running.brought.as_ref().and_then(Brought::current) {
            self.let_go(sidecar.clone());
        }
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
        let mut rests = std::mem::take(&mut self.leaving);
        for (name, entry) in std::mem::take(&mut self.entries) {
            let Phase::Ready(running) = entry.phase else { continue };
            if !keep {
                self.uncapture(&name, &running);
            }
            self.draining.extend(running.serving.map(|serving| serving.drain));
            let own = running.brought.as_ref().and_then(Brought::current);
            rests.extend(own.map(|sidecar| Arc::new(sidecar.rest())));
        }
        if !keep {
            self.kernel.detach_proxy();
        }
        self.draining.iter().for_each(|d| d.start());
        let deadline = clock::now() + LAST_BYTES;
        let left = || deadline.saturating_duration_since(clock::now());
        self.runtime.block_on(async {
            for drain in &self.draining {
                drain.drain(left()).await;
            }
            for rest in &rests {
                rest.drain(left()).await;
            }
        });
        rests.iter().for_each(|rest| rest.flush(LAST_BYTES));
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
