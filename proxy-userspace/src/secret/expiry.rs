//! Connections that outlive what they were let in by: `--drain-on-cert-expiry`.
//!
//! A handshake is the only time at which certificates are looked at. With the flag, a connection whose certificate
//! has expired since, its own or its peer's, or whose peer was judged by what has been replaced since, is drained: it
//! has the drain time to end, as when its listener goes, and is then cut.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::clock;
use crate::drain::Guard;
use crate::task::Tasks;
use crate::telemetry::stats::OwnStats;
use crate::transport::{Certificate, Factory, TlsInfo};

/// The longest sleep: the wall clock may be set meanwhile.
const TICK: Duration = Duration::from_secs(30);

/// Drains connections; there only with the flag.
pub struct Expiry {
    pub drain_time: Duration,
    pub tasks: Tasks,
    pub stats: Arc<OwnStats>,
}

/// One side of a connection, followed until this is dropped.
pub struct Lease {
    /// What its peer is judged by, since before its transport was made.
    judged_by: Vec<watch::Receiver<u64>>,
    watched: Option<Watched>,
}

struct Watched(AbortHandle);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Expiry {
    /// For a side whose transport is about to be made.
    pub fn lease(&self, factory: &dyn Factory) -> Lease {
        let mut slots = Vec::new();
        factory.secrets(&mut slots);
        Lease { judged_by: slots.iter().map(|slot| slot.replaced()).collect(), watched: None }
    }

    fn watch(&self, judged_by: Vec<watch::Receiver<u64>>, tls: &TlsInfo, guard: &Guard) -> Watched {
        let (cutter, drain_time, stats) = (guard.cutter(), self.drain_time, self.stats.clone());
        let expires = expires(tls);
        // Whose peer has shown nothing was not judged.
        let judged = if tls.peer.is_some() { judged_by } else { Vec::new() };
        let task = async move {
            let why = tokio::select! {
                () = past(expires) => "a certificate has expired",
                () = replaced(judged) => "what the peer was judged by has been replaced",
            };
            log::debug!("connection drained: {why}");
            stats.cert_expiry_drained.inc();
            sleep(drain_time).await;
            cutter.cut();
        };
        Watched(self.tasks.spawn("expiry", task).abort_handle())
    }
}

impl Lease {
    /// Follows the connection that `guard` is held for, from when this side is under TLS; asked again where it was
    /// not yet.
    pub fn follow(&mut self, expiry: &Expiry, tls: Option<&TlsInfo>, guard: &Guard) {
        if let (Some(tls), None) = (tls, &self.watched) {
            self.watched = Some(expiry.watch(std::mem::take(&mut self.judged_by), tls, guard));
        }
    }
}

/// Seconds since 1970 after which one of the two certificates is no longer valid. One that had expired when it was
/// accepted was accepted as that.
fn expires(tls: &TlsInfo) -> Option<i64> {
    let now = wall();
    let of = |certificate: &Option<Arc<Certificate>>| certificate.as_ref().map(|known| known.not_after);
    [of(&tls.local), of(&tls.peer)].into_iter().flatten().filter(|not_after| *not_after >= now).min()
}

async fn past(moment: Option<i64>) {
    let Some(moment) = moment else { return std::future::pending().await };
    loop {
        let left = moment.saturating_sub(wall());
        if left < 0 {
            return;
        }
        // The last second still counts.
        let left = Duration::from_secs(left.unsigned_abs().saturating_add(1));
        sleep(left.min(TICK)).await;
    }
}

async fn replaced(receivers: Vec<watch::Receiver<u64>>) {
    let each = receivers.into_iter().map(|mut receiver| -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            // The slot may go with its listener, which drains on its own.
            if receiver.changed().await.is_err() {
                std::future::pending().await
            }
        })
    });
    let mut each: Vec<_> = each.collect();
    poll_fn(|cx| {
        let any = each.iter_mut().any(|one| one.as_mut().poll(cx).is_ready());
        if any { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

fn wall() -> i64 {
    let now = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}
