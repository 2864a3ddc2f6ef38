//! Stopping: tell listeners to stop accepting, wait for connections, cut what is left at the deadline.
//!
//! [`Drain`] is the owner's side, [`Watch`] what a listener follows, [`Guard`] what each connection holds. A
//! guard has its own waker slot instead of a shared channel, because every connection looks at it on every
//! wake-up: a shared lock would be contended by all cores.
//!
//! A [`Roster`] is who holds guards, without the news that a drain has begun: what a filter chain has of the
//! connections that it serves.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// How long cut connections get to write their log lines: they only have to be polled once.
const CUT_GRACE: Duration = Duration::from_secs(2);

/// Stops everything that follows its watches.
#[derive(Debug)]
pub struct Drain {
    inner: Arc<Inner>,
}

/// Starts a drain whose owner is somebody else.
#[derive(Debug)]
pub struct Starter {
    inner: Arc<Inner>,
}

impl Starter {
    pub fn start(&self) {
        self.inner.draining.send_replace(true);
        self.inner.roster.announce();
    }

    /// Holders of guards are told, now and later; nothing stops to take new work yet.
    pub fn announce(&self) {
        self.inner.roster.announce();
    }
}

impl Drain {
    pub fn new() -> Self {
        let inner = Inner { draining: watch::Sender::new(false), roster: Arc::default() };
        Self { inner: Arc::new(inner) }
    }

    pub fn watch(&self) -> Watch {
        Watch { inner: self.inner.clone(), draining: self.inner.draining.subscribe() }
    }

    /// The means to start it later, from elsewhere.
    pub fn starter(&self) -> Starter {
        Starter { inner: self.inner.clone() }
    }

    pub fn is_draining(&self) -> bool {
        *self.inner.draining.borrow()
    }

    /// How many guards are held.
    pub fn live(&self) -> usize {
        self.inner.roster.live()
    }

    /// Tells every watch to stop taking new work; does not wait.
    pub fn start(&self) {
        self.starter().start();
    }

    /// Starts, waits until every guard is gone or `deadline` has passed, then cuts the rest. Returns how many
    /// were cut.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.start();
        wait(std::slice::from_ref(&self.inner.roster), deadline, Cut::Reset).await
    }
}

/// How those are ended that are left at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nobody may take what was cut for complete.
    Reset,
    /// As Envoy closes connections of a listener that was replaced.
    Close,
}

/// Waits until nobody is left on any of the rosters or `deadline` has passed, then closes the rest. Returns how many
/// those were.
pub async fn finish(rosters: &[Arc<Roster>], deadline: Duration) -> usize {
    wait(rosters, deadline, Cut::Close).await
}

async fn wait(rosters: &[Arc<Roster>], deadline: Duration, how: Cut) -> usize {
    rosters.iter().for_each(|roster| roster.announce());
    let idle = || async {
        for roster in rosters {
            roster.idle().await;
        }
    };
    if timeout(deadline, idle()).await.is_ok() {
        return 0;
    }
    let cut = rosters.iter().map(|roster| roster.cut(how)).sum();
    if timeout(CUT_GRACE, idle()).await.is_err() {
        let left: usize = rosters.iter().map(|roster| roster.live()).sum();
        log::warn!("{left} of {cut} cut connections have not ended yet");
    }
    cut
}

/// Who holds guards.
#[derive(Debug, Default)]
pub struct Roster {
    live: Mutex<Live>,
    idle: Notify,
}

impl Roster {
    /// How many guards are held.
    pub fn live(&self) -> usize {
        lock(&self.live).slots.len()
    }

    /// The holder of a guard counts here as well, until [`Self::leave`]; the deadline of either ends it.
    pub fn join(&self, guard: &Guard) -> u64 {
        self.add(guard.slot.clone())
    }

    pub fn leave(&self, id: u64) {
        let mut live = lock(&self.live);
        live.slots.remove(&id);
        if live.slots.is_empty() {
            self.idle.notify_waiters();
        }
    }

    fn enter(self: &Arc<Self>) -> Guard {
        let slot = Arc::<Slot>::default();
        Guard { id: self.add(slot.clone()), slot, roster: self.clone() }
    }

    /// Its holders are told that their time is limited: who can ends in good order.
    fn announce(&self) {
        let mut live = lock(&self.live);
        live.draining = true;
        live.slots.values().for_each(|slot| slot.announce());
    }

    fn add(&self, slot: Arc<Slot>) -> u64 {
        let mut live = lock(&self.live);
        if live.draining {
            slot.announce();
        }
        if let Some(how) = live.cut {
            slot.cut(how);
        }
        let id = live.next;
        live.next += 1;
        live.slots.insert(id, slot);
        id
    }

    async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            // Registered before the check, or the last guard could slip between the two.
            idle.as_mut().enable();
            if self.live() == 0 {
                return;
            }
            idle.await;
        }
    }

    fn cut(&self, how: Cut) -> usize {
        let mut live = lock(&self.live);
        live.cut = Some(how);
        for slot in live.slots.values() {
            slot.cut(how);
        }
        live.slots.len()
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

/// Sees the start of a drain, and hands out guards.
#[derive(Clone, Debug)]
pub struct Watch {
    inner: Arc<Inner>,
    draining: watch::Receiver<bool>,
}

impl Watch {
    /// Resolves once the drain has started, also if it started before, or if its owner is gone.
    pub async fn draining(&mut self) {
        // An error means that the owner is gone, which ends the work as well.
        let _ = self.draining.wait_for(|draining| *draining).await;
    }

    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Counts as live until dropped.
    pub fn guard(&self) -> Guard {
        self.inner.roster.enter()
    }
}

/// Keeps a drain waiting.
#[derive(Debug)]
pub struct Guard {
    id: u64,
    slot: Arc<Slot>,
    roster: Arc<Roster>,
}

impl Guard {
    /// Ready once the deadline has passed and the holder must end.
    pub fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.slot.poll(cx)
    }

    pub async fn cut(&self) {
        poll_fn(|cx| self.poll_cut(cx)).await;
    }

    /// A drain has begun: of all, or of what its holder is served by. Who waits by [`Self::poll_cut`] is woken by it.
    pub fn is_draining(&self) -> bool {
        self.slot.draining.load(Ordering::SeqCst)
    }

    /// Whether the holder ends by a reset, once it has to.
    pub fn resets(&self) -> bool {
        self.slot.cut.load(Ordering::SeqCst) != CLOSED
    }

    /// The means to end its holder alone.
    pub fn cutter(&self) -> Cutter {
        Cutter { slot: self.slot.clone() }
    }
}

/// Ends the holder of one guard, as the deadline of its drain would.
#[derive(Debug)]
pub struct Cutter {
    slot: Arc<Slot>,
}

impl Cutter {
    pub fn cut(&self) {
        self.slot.cut(Cut::Reset);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.roster.leave(self.id);
    }
}

#[derive(Debug)]
struct Inner {
    draining: watch::Sender<bool>,
    roster: Arc<Roster>,
}

#[derive(Debug, Default)]
struct Live {
    cut: Option<Cut>,
    draining: bool,
    next: u64,
    slots: HashMap<u64, Arc<Slot>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// 0, or how it was cut.
    cut: AtomicU8,
    draining: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

const RESET: u8 = 1;
const CLOSED: u8 = 2;

impl Slot {
    /// The first who does it says how.
    fn cut(&self, how: Cut) {
        let how = match how {
            Cut::Reset => RESET,
            Cut::Close => CLOSED,
        };
        let _ = self.cut.compare_exchange(0, how, Ordering::SeqCst, Ordering::SeqCst);
        self.wake();
    }

    fn announce(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = lock(&self.waker).take() {
            waker.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waker = lock(&self.waker);
        if self.cut.load(Ordering::SeqCst) != 0 {
            return Poll::Ready(());
        }
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// A panic while one of these locks is held leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Tasks;
    use crate::telemetry::stats::Stats;

    #[tokio::test]
    async fn waits_for_guards() {
        let drain = Drain::new();
        let mut watch = drain.watch();
        let guard = watch.guard();
        let holder = Tasks::new(&Stats::new()).spawn("holder", async move {
            watch.draining().await;
            drop(guard);
        });
        assert_eq!(drain.drain(Duration::from_secs(10)).await, 0);
        holder.await.unwrap();
    }

    #[tokio::test]
    async fn cuts_at_the_deadline() {
        let drain = Drain::new();
        let guard = drain.watch().guard();
        let holder = Tasks::new(&Stats::new()).spawn("holder", async move { guard.cut().await });
        assert_eq!(drain.drain(Duration::from_millis(20)).await, 1);
        holder.await.unwrap();
        assert_eq!(drain.live(), 0);
        // One that comes too late is cut at once.
        drain.watch().guard().cut().await;
    }

    #[tokio::test]
    async fn holders_are_told_of_a_drain_and_those_that_come_later_too() {
        let (drain, roster) = (Drain::new(), Arc::<Roster>::default());
        let (first, second) = (drain.watch().guard(), drain.watch().guard());
        roster.join(&second);
        let waits = poll_fn(|cx| match (second.is_draining(), second.poll_cut(cx)) {
            (true, _) => Poll::Ready(()),
            (false, _) => Poll::Pending,
        });
        let rosters = [roster];
        let (cut, ()) = tokio::join!(finish(&rosters, Duration::ZERO), waits);
        assert_eq!((cut, first.is_draining(), second.is_draining()), (1, false, true));
        drain.start();
        assert!(first.is_draining() && drain.watch().guard().is_draining());
    }

    #[tokio::test]
    async fn who_is_on_two_rosters_is_cut_by_the_first_deadline() {
        let (drain, roster) = (Drain::new(), Arc::<Roster>::default());
        let guard = drain.watch().guard();
        let (id, left) = (roster.join(&guard), roster.clone());
        assert_eq!((drain.live(), roster.live()), (1, 1));
        let holder = Tasks::new(&Stats::new()).spawn("holder", async move {
            guard.cut().await;
            left.leave(id);
        });
        assert_eq!(finish(&[roster.clone(), Arc::default()], Duration::from_millis(20)).await, 1);
        holder.await.unwrap();
        assert_eq!((drain.live(), roster.live()), (0, 0));
    }
}
