//! Tells the consumers of one type what there is for them, in its order, and how they took it becomes an answer.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};

use proxy_config::xds::{Kind, RawResource};
use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::mux::{Call, Delivery, Part, Received, WatchId, What};
use super::session::Shared;
use super::{Consumer, Failure, Update};
use crate::clock;

/// After so many consumers, others may have the thread.
const AT_ONCE: usize = 64;

type Results = Vec<(WatchId, Part, Result<(), String>)>;

pub(super) async fn run(
    shared: Arc<Shared>,
    mut deliveries: mpsc::UnboundedReceiver<Delivery>,
    waiting: Arc<AtomicUsize>,
) {
    while let Some(delivery) = deliveries.recv().await {
        let calls = shared.mux().audience(&delivery);
        let kind = delivery.kind;
        match &delivery.what {
            What::Response(received) => respond(&shared, kind, received, calls).await,
            What::Known(id, resource) => {
                shared.mux().told(kind, *id);
                tell(&calls, &known(resource));
            }
            What::Expired(name) => {
                log::warn!("{}: {} {name} is gone: its TTL has passed", shared.status.name, kind.service());
                tell(&calls, &Update { removed: std::slice::from_ref(name), ..Update::default() });
            }
            What::Failed(_, failure) => fail(&calls, failure),
        }
        waiting.fetch_sub(1, Ordering::AcqRel);
        shared.applied.notify_waiters();
        shared.timed.notify_one();
    }
}

fn known(resource: &RawResource) -> Update<'_> {
    let resources = std::slice::from_ref(resource);
    Update { version: &resource.version, resources, response: resources, ..Update::default() }
}

/// Nobody is answered.
fn tell(calls: &[Call<Weak<dyn Consumer>>], update: &Update<'_>) {
    for consumer in calls.iter().filter_map(|call| call.to.upgrade()) {
        // It has said and counted what it refuses.
        let _ = consumer.update(update);
    }
}

fn fail(calls: &[Call<Weak<dyn Consumer>>], failure: &Failure) {
    for consumer in calls.iter().filter_map(|call| call.to.upgrade()) {
        consumer.failed(failure);
    }
}

async fn respond(shared: &Shared, kind: Kind, received: &Received, calls: Vec<Call<Weak<dyn Consumer>>>) {
    let held = Held::new(shared, kind);
    let results = match &received.unreadable {
        Some(why) => {
            fail(&calls, &Failure::Refused(why.clone()));
            calls.iter().map(|call| (call.watch, call.part, Err(why.clone()))).collect()
        }
        None => update(received, calls).await,
    };
    // What was asked for because of this goes out together.
    drop(held);
    let refused = shared.mux().applied(kind, received, &results, clock::now());
    shared.status.judged(kind, &received.version, refused.as_deref());
    shared.asked.notify_one();
}

async fn update(received: &Received, calls: Vec<Call<Weak<dyn Consumer>>>) -> Results {
    let mut told = Vec::with_capacity(calls.len());
    for (count, call) in calls.into_iter().enumerate() {
        if let Some(consumer) = call.to.upgrade() {
            let result = consumer.update(&part(received, call.part));
            told.push((call.watch, call.part, consumer, result));
        }
        if count % AT_ONCE == AT_ONCE - 1 {
            yield_now().await;
        }
    }
    let mut results = Results::with_capacity(told.len());
    for (watch, part, consumer, mut result) in told {
        if result.is_ok()
            && let Some(verdict) = consumer.verdict()
        {
            result = verdict.await;
        }
        results.push((watch, part, result));
    }
    results
}

fn part(received: &Received, part: Part) -> Update<'_> {
    let (resources, removed): (&[RawResource], &[Arc<str>]) = match part {
        Part::All => (&received.resources, &received.removed),
        Part::Resource(index) => (received.resources.get(index).map_or(&[], std::slice::from_ref), &[]),
        Part::Removed(index) => (&[], received.removed.get(index).map_or(&[], std::slice::from_ref)),
    };
    let (version, response) = (&*received.version, received.resources.as_slice());
    Update { version, resources, removed, whole: received.whole, response }
}

/// Types that are asked for because of what is applied now: their requests are gathered, as Envoy does.
struct Held<'a> {
    shared: &'a Shared,
    kinds: &'static [Kind],
}

impl<'a> Held<'a> {
    fn new(shared: &'a Shared, by: Kind) -> Self {
        let kinds: &[Kind] = match by {
            Kind::Cluster => &[Kind::Endpoints, Kind::Secret],
            Kind::Listener => &[Kind::Route, Kind::Secret, Kind::Extension],
            Kind::Endpoints | Kind::Route | Kind::Secret | Kind::Extension => &[],
        };
        let mut mux = shared.mux();
        kinds.iter().for_each(|kind| mux.pause(*kind));
        drop(mux);
        Self { shared, kinds }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut mux = self.shared.mux();
        self.kinds.iter().for_each(|kind| mux.resume(*kind));
        drop(mux);
        self.shared.asked.notify_one();
    }
}
