//! What a control plane knows of its streams, and what it says on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use tonic::Status;

use super::cache::{Cache, Subscription};
use super::push::Push;
use super::request::Request;
use super::resource::Type;
use super::server::Out;

#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) cache: Cache,
    /// Types of which nothing is said by itself.
    pub(super) held: BTreeSet<Type>,
    streams: BTreeMap<usize, Stream>,
    pub(super) requests: Vec<Request>,
    /// Of each node.
    opened: BTreeMap<String, usize>,
    pub(super) connections: usize,
    pub(super) handshakes_failed: Vec<String>,
    /// What could not be read.
    pub(super) faults: Vec<String>,
}

struct Stream {
    method: String,
    delta: bool,
    metadata: Vec<(String, String)>,
    out: Out,
    node: Option<String>,
    ordinal: usize,
    open: bool,
    subscriptions: BTreeMap<Type, Subscription>,
}

/// What a test sees of a stream.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    pub method: String,
    pub metadata: Vec<(String, String)>,
    pub open: bool,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connected(&self) {
        self.lock().connections += 1;
    }

    pub(super) fn handshake_failed(&self, why: &str) {
        self.lock().handshakes_failed.push(why.to_owned());
    }

    /// A call: `/envoy.service.….v3.…Service/Stream…` or `/…/Delta…`.
    pub(super) fn opened(
        &self,
        path: &str,
        metadata: Vec<(String, String)>,
        out: Out,
    ) -> Result<usize, Status> {
        let method = path.rsplit('/').next().unwrap_or_default().to_owned();
        let known = path.starts_with("/envoy.service.") && path.contains(".v3.");
        let delta = method.starts_with("Delta");
        if !known || !(delta || method.starts_with("Stream")) {
            return Err(Status::unimplemented(path.to_owned()));
        }
        let mut state = self.lock();
        let id = state.streams.len();
        let subscriptions = BTreeMap::new();
        let stream =
            Stream { method, delta, metadata, out, node: None, ordinal: 0, open: true, subscriptions };
        state.streams.insert(id, stream);
        Ok(id)
    }

    pub(super) fn closed(&self, stream: usize) {
        if let Some(stream) = self.lock().streams.get_mut(&stream) {
            stream.open = false;
        }
    }

    pub(super) fn received(&self, stream: usize, bytes: Bytes) {
        self.lock().received(stream, bytes);
    }
}

impl State {
    fn received(&mut self, id: usize, bytes: Bytes) {
        let Self { cache, held, streams, requests, opened, faults, .. } = self;
        let Some(stream) = streams.get_mut(&id) else { return };
        let mut request = match Request::decode(stream.delta, &stream.method, bytes) {
            Ok(request) => request,
            Err(error) => return faults.push(format!("a request that cannot be read: {error:#}")),
        };
        if stream.node.is_none() {
            let id = request.node_message.as_ref().and_then(|node| node["id"].as_str()).unwrap_or_default();
            if id.is_empty() {
                faults.push(format!("the first request of a stream has no node: {request:?}"));
            }
            let ordinal = opened.entry(id.to_owned()).or_default();
            *ordinal += 1;
            (stream.node, stream.ordinal) = (Some(id.to_owned()), *ordinal);
        }
        request.node = stream.node.clone().unwrap_or_default();
        request.stream = stream.ordinal;
        let of = Type::of(&request.type_url);
        if let Some(of) = of {
            let first = || Subscription::new(of, stream.delta, &request);
            let subscription = stream.subscriptions.entry(of).or_insert_with(first);
            subscription.asked(&request);
            if !held.contains(&of)
                && let Some(answer) = subscription.answer(cache)
            {
                let _ = stream.out.send(Ok(answer));
            }
        }
        requests.push(request);
    }

    /// Tells every stream what is new to it.
    pub(super) fn tell(&mut self) {
        for of in Type::ALL {
            if self.held.contains(&of) {
                continue;
            }
            for stream in self.streams.values_mut().filter(|stream| stream.open) {
                let answer = stream.subscriptions.get_mut(&of).and_then(|sub| sub.answer(&self.cache));
                if let Some(answer) = answer {
                    let _ = stream.out.send(Ok(answer));
                }
            }
        }
    }

    /// The last streams of a node that are open, the newest first.
    fn of_node(&mut self, node: &str) -> impl Iterator<Item = &mut Stream> {
        let all = self.streams.values_mut().rev();
        all.filter(move |stream| stream.open && stream.node.as_deref() == Some(node))
    }

    /// To the stream on which this type was asked for. The nonce.
    pub(super) fn push(&mut self, node: &str, push: &Push) -> Option<String> {
        let stream = self.of_node(node).find(|stream| stream.subscriptions.contains_key(&push.of))?;
        let subscription = stream.subscriptions.get_mut(&push.of)?;
        let bytes = subscription.encode(push);
        stream.out.send(Ok(bytes)).ok()?;
        Some(subscription.nonce.clone())
    }

    /// Bytes that need be no message, to the stream of this type.
    pub(super) fn push_bytes(&mut self, node: &str, of: Type, bytes: Bytes) -> bool {
        let stream = self.of_node(node).find(|stream| stream.subscriptions.contains_key(&of));
        stream.is_some_and(|stream| stream.out.send(Ok(bytes)).is_ok())
    }

    /// Ends all streams of a node. How many there were.
    pub(super) fn end(&mut self, node: &str, status: &Status) -> usize {
        self.of_node(node)
            .map(|stream| {
                stream.open = false;
                let _ = stream.out.send(Err(status.clone()));
            })
            .count()
    }

    /// The server is gone, with all connections.
    pub(super) fn all_closed(&mut self) {
        for stream in self.streams.values_mut() {
            stream.open = false;
        }
    }

    /// What is not settled of a node: types whose last response has no answer yet. `None` without any stream.
    pub(super) fn unanswered(&mut self, node: &str) -> Option<Vec<Type>> {
        let mut any = false;
        let mut open = Vec::new();
        for stream in self.of_node(node) {
            any = true;
            open.extend(stream.subscriptions.iter().filter(|(_, sub)| !sub.answered).map(|(of, _)| *of));
        }
        any.then_some(open)
    }

    /// What the node refused last, by type.
    pub(super) fn refused(&mut self, node: &str) -> BTreeMap<Type, String> {
        let mut refused = BTreeMap::new();
        for stream in self.of_node(node) {
            let said = stream.subscriptions.iter();
            refused.extend(said.filter_map(|(of, sub)| Some((*of, sub.refused.clone()?))));
        }
        refused
    }

    pub(super) fn streams(&self, node: &str) -> Vec<StreamInfo> {
        let all = self.streams.values().filter(|stream| stream.node.as_deref() == Some(node));
        all.map(|stream| StreamInfo {
            method: stream.method.clone(),
            metadata: stream.metadata.clone(),
            open: stream.open,
        })
        .collect()
    }

    /// The node as it was told last.
    pub(super) fn node(&self, node: &str) -> Option<Value> {
        let told = self.requests.iter().rev().filter(|request| request.node == node);
        told.filter_map(|request| request.node_message.clone()).next()
    }
}
