//! `POST /tap`: who may be asked for, and the one request that is attached.
//!
//! Chains and clusters whose tap has a `config_id` share a [`Slot`] by that id. A request puts its plan there, and
//! takes it out again when it ends; connections that began before are not tapped. Their traces come through a
//! channel of bounded size, so that a slow reader loses traces and delays nobody.

use std::collections::{HashMap, VecDeque};
use std::future::Future as _;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use proxy_config::model::transport::{TapConfig, TapFormat, TapSink};
use proxy_config::tap::{self, Trace};
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};

use super::plan::Plan;
use super::{TapStats, Taps};

/// Traces and bytes of traces that may wait for the reader.
const TRACES: usize = 4_096;
const LIMIT: usize = 16 * 1024 * 1024;

/// The taps of a `config_id`.
pub(super) struct Slot {
    plan: ArcSwapOption<Plan>,
}

impl Slot {
    pub(super) fn plan(&self) -> Option<Arc<Plan>> {
        self.plan.load_full()
    }
}

/// All slots, and whether there is a request.
#[derive(Default)]
pub(super) struct Attachments {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Forgotten with the last tap.
    slots: HashMap<Arc<str>, Weak<Slot>>,
    attached: bool,
}

impl Attachments {
    pub(super) fn slot(&self, id: &Arc<str>) -> Arc<Slot> {
        let mut state = lock(&self.state);
        state.slots.retain(|_, slot| slot.strong_count() > 0);
        if let Some(slot) = state.slots.get(id).and_then(Weak::upgrade) {
            return slot;
        }
        let slot = Arc::new(Slot { plan: ArcSwapOption::empty() });
        state.slots.insert(id.clone(), Arc::downgrade(&slot));
        slot
    }
}

/// Why a request is not attached, in Envoy's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("An attached /tap admin stream already exists. Detach it.")]
    Attached,
    #[error("Unknown config id '{0}'. No extension has registered with this id.")]
    UnknownId(String),
    #[error("{0} admin output only supports JSON or length delimited proto binary formats")]
    Format(&'static str),
}

impl Taps {
    /// Whether a request is attached: Envoy refuses another before it looks at it.
    pub fn is_attached(&self) -> bool {
        lock(&self.attachments.state).attached
    }

    /// Taps the connections that begin from now on, until what is returned is dropped.
    pub fn attach(self: &Arc<Self>, config_id: &str, config: &TapConfig) -> Result<Attached, Refusal> {
        let mut state = lock(&self.attachments.state);
        if state.attached {
            return Err(Refusal::Attached);
        }
        let slot = state.slots.get(config_id).and_then(Weak::upgrade);
        let slot = slot.ok_or_else(|| Refusal::UnknownId(config_id.to_owned()))?;
        let format = config.output.format;
        let gather = match &config.output.sink {
            TapSink::FilePerTap { .. } => None,
            TapSink::StreamingAdmin => {
                readable(format, "streaming")?;
                None
            }
            TapSink::BufferedAdmin { max_traces, timeout } => {
                readable(format, "buffered")?;
                Some(Gather {
                    most: usize::try_from(*max_traces).unwrap_or(usize::MAX).max(1),
                    traces: VecDeque::new(),
                    bytes: 0,
                    timeout: timeout.filter(|timeout| !timeout.is_zero()).map(|time| Box::pin(sleep(time))),
                    done: false,
                })
            }
        };
        let (sender, receiver) = mpsc::channel(TRACES);
        let session = Arc::new(Session { sender, waiting: AtomicUsize::new(0) });
        slot.plan.store(Some(Arc::new(Plan::of_request(config, &session, &self.files))));
        state.attached = true;
        drop(state);
        log::info!("tap: a request for config id {config_id} is attached");
        Ok(Attached { taps: self.clone(), slot, session, receiver, format, gather })
    }
}

fn readable(format: TapFormat, sink: &'static str) -> Result<(), Refusal> {
    match format {
        TapFormat::JsonBodyAsBytes | TapFormat::JsonBodyAsString | TapFormat::ProtoBinaryLengthDelimited => {
            Ok(())
        }
        TapFormat::ProtoBinary | TapFormat::ProtoText => Err(Refusal::Format(sink)),
    }
}

/// The data path's end of a request.
pub(super) struct Session {
    sender: mpsc::Sender<Trace>,
    /// Bytes of traces on their way.
    waiting: AtomicUsize,
}

/// Where the traces of one connection go.
pub(super) struct AdminTrace {
    session: Arc<Session>,
    stats: Arc<TapStats>,
    lost: bool,
}

impl Session {
    pub(super) fn trace(self: &Arc<Self>, stats: Arc<TapStats>) -> AdminTrace {
        AdminTrace { session: self.clone(), stats, lost: false }
    }

    /// False where there is no room for it. With nobody to read it there is no loss.
    fn send(&self, trace: Trace) -> bool {
        let cost = trace.cost();
        if self.waiting.fetch_add(cost, Ordering::Relaxed).saturating_add(cost) <= LIMIT {
            match self.sender.try_send(trace) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    self.waiting.fetch_sub(cost, Ordering::Relaxed);
                    return true;
                }
                Err(mpsc::error::TrySendError::Full(_)) => {}
            }
        }
        self.waiting.fetch_sub(cost, Ordering::Relaxed);
        false
    }
}

impl AdminTrace {
    /// Never waits for the reader.
    pub(super) fn submit(&mut self, trace: Trace) {
        if self.lost || self.session.send(trace) {
            return;
        }
        self.lost = true;
        self.stats.trace_dropped.inc();
        log::debug!("tap: a trace is incomplete: the reader of /tap is too slow");
    }
}

/// The admin's end of a request: tapping stops with it.
pub struct Attached {
    taps: Arc<Taps>,
    slot: Arc<Slot>,
    session: Arc<Session>,
    receiver: mpsc::Receiver<Trace>,
    format: TapFormat,
    /// `buffered_admin`: none: traces are passed on as they come.
    gather: Option<Gather>,
}

struct Gather {
    most: usize,
    traces: VecDeque<Trace>,
    /// Of all that were gathered.
    bytes: usize,
    timeout: Option<Pin<Box<Sleep>>>,
    /// Nothing more is gathered.
    done: bool,
}

impl Attached {
    /// The next piece of the answer; none at its end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(gather) = &mut self.gather
                && gather.is_done(cx)
            {
                let next = gather.traces.pop_front();
                return Poll::Ready(next.map(|trace| self.encoded(&trace)));
            }
            // The session holds a sender, so it never ends by itself.
            let Poll::Ready(Some(trace)) = self.receiver.poll_recv(cx) else { return Poll::Pending };
            let cost = trace.cost();
            self.session.waiting.fetch_sub(cost, Ordering::Relaxed);
            match &mut self.gather {
                Some(gather) => {
                    gather.bytes = gather.bytes.saturating_add(cost);
                    gather.traces.push_back(trace);
                }
                None => return Poll::Ready(Some(self.encoded(&trace))),
            }
        }
    }

    fn encoded(&self, trace: &Trace) -> Bytes {
        tap::encode(trace, self.format).into()
    }
}

impl Gather {
    fn is_done(&mut self, cx: &mut Context<'_>) -> bool {
        let timed_out = |sleep: &mut Pin<Box<Sleep>>| sleep.as_mut().poll(cx).is_ready();
        let full = self.traces.len() >= self.most || self.bytes >= LIMIT;
        self.done = self.done || full || self.timeout.as_mut().is_some_and(timed_out);
        self.done
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.slot.plan.store(None);
        lock(&self.taps.attachments.state).attached = false;
        log::info!("tap: the request is detached");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
