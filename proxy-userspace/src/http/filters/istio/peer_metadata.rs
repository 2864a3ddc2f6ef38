//! `envoy.filters.http.peer_metadata`, Istio's `istio.metadata_exchange`: who the peers of a request are, by headers.
//!
//! Headers that a peer has sent to us go no further, whatever is in them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, HeaderName, HeaderValue};
use proxy_config::model::http::istio::{PeerDiscovery, PeerMetadata as Model, PeerPropagation};

use super::{cluster, is_true, istio};
use crate::cluster::Cluster;
use crate::http::Stream;
use crate::http::filter::{Filter, Step, StreamFilter};
use crate::http::filters::FilterCx;
use crate::http::message::joined;
use crate::istio::{Local, Peer, Slot, wire};

const METADATA: HeaderName = HeaderName::from_static(wire::METADATA);
const METADATA_ID: HeaderName = HeaderName::from_static(wire::METADATA_ID);
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// With padding or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is kept of peers that were read: so many, none of them longer than this.
const MOST: usize = 500;
const LONGEST_KEPT: usize = 8 * 1024;
/// Longer ones are nobody's.
const LONGEST: usize = 64 * 1024;

pub(in crate::http::filters) struct PeerMetadata(Arc<Shared>);

struct Shared {
    model: Model,
    id: Option<HeaderValue>,
    metadata: Option<HeaderValue>,
    baggage: Option<HeaderValue>,
    /// By the header's value: an id alone could be anybody's.
    read: Mutex<HashMap<Box<[u8]>, Arc<Peer>>>,
}

struct One {
    shared: Arc<Shared>,
    /// The client has told its id, and its metadata.
    told: (bool, bool),
    cluster: Option<Arc<Cluster>>,
}

impl PeerMetadata {
    pub(in crate::http::filters) fn new(model: &Model, cx: &FilterCx<'_>) -> Self {
        Self::of(model, &cx.parts.cluster.transport.local)
    }

    pub(super) fn of(model: &Model, local: &Local) -> Self {
        let value = |text: &str| HeaderValue::from_str(text).ok();
        Self(Arc::new(Shared {
            id: value(&local.id),
            metadata: value(&local.header(&model.additional_labels)),
            baggage: value(&local.peer(&[]).baggage()),
            read: Mutex::default(),
            model: model.clone(),
        }))
    }
}

impl Filter for PeerMetadata {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(One { shared: self.0.clone(), told: (false, false), cluster: None }))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let model = &self.shared.model;
        let headers = &mut stream.request_mut().headers;
        if model.downstream_discovery.contains(&PeerDiscovery::IstioHeaders) {
            self.told = (headers.contains_key(&METADATA_ID), headers.contains_key(&METADATA));
        }
        let found = self.shared.discover(&model.downstream_discovery, headers);
        let known = stream.entry.peers.downstream.as_ref().is_some_and(|slot| slot.peer().is_some());
        if let Some(peer) = found.filter(|_| !known) {
            stream.entry.peers.downstream = Some(Arc::new(Slot::of(peer)));
        }
        if !model.upstream_discovery.is_empty() {
            // To be filled by the response: whoever counts meanwhile has hold of it already.
            stream.entry.peers.upstream = Some(Arc::default());
        }
        if model.upstream_propagation.is_empty() && model.downstream_propagation.is_empty() {
            return Step::Next;
        }
        self.cluster = cluster(stream);
        let headers = &mut stream.request_mut().headers;
        self.shared.tell(&model.upstream_propagation, self.cluster.as_deref(), (true, true), headers);
        Step::Next
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let model = &self.shared.model;
        let Some(response) = stream.response_mut() else { return Step::Next };
        let found = self.shared.discover(&model.upstream_discovery, &mut response.headers);
        self.shared.tell(
            &model.downstream_propagation,
            self.cluster.as_deref(),
            self.told,
            &mut response.headers,
        );
        if let (Some(peer), Some(slot)) = (found, &stream.entry.peers.upstream) {
            slot.settle(Some(peer));
        }
        Step::Next
    }
}

impl Shared {
    /// The first that is found, by the methods in their order. Headers go where they were looked for.
    fn discover(&self, by: &[PeerDiscovery], headers: &mut HeaderMap) -> Option<Arc<Peer>> {
        let found = by.iter().find_map(|method| match method {
            PeerDiscovery::IstioHeaders => self.read(headers.get(&METADATA)?.as_bytes()),
            PeerDiscovery::Baggage => {
                let baggage = joined(headers, BAGGAGE.as_str())?;
                Some(Arc::new(Peer::of_baggage(std::str::from_utf8(&baggage).ok()?)))
            }
        });
        if by.contains(&PeerDiscovery::IstioHeaders) {
            headers.remove(&METADATA);
            headers.remove(&METADATA_ID);
        }
        found
    }

    fn read(&self, value: &[u8]) -> Option<Arc<Peer>> {
        if value.is_empty() || value.len() > LONGEST {
            return None;
        }
        let known = self.read.lock().unwrap_or_else(PoisonError::into_inner).get(value).cloned();
        if known.is_some() {
            return known;
        }
        let told = wire::decode(&BASE64.decode(value).ok()?)?;
        let peer = Arc::new(Peer::of(&told, &self.model.additional_labels));
        if value.len() <= LONGEST_KEPT {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if read.len() >= MOST {
                read.clear();
            }
            read.insert(value.into(), peer.clone());
        }
        Some(peer)
    }

    /// `told`: who asked for the id, and for the metadata.
    fn tell(
        &self,
        by: &[PeerPropagation],
        cluster: Option<&Cluster>,
        (id, metadata): (bool, bool),
        headers: &mut HeaderMap,
    ) {
        let mut put = |name: HeaderName, value: &Option<HeaderValue>, wanted: bool| {
            if let Some(value) = value.as_ref().filter(|_| wanted) {
                headers.insert(name, value.clone());
            }
        };
        for method in by {
            match method {
                PeerPropagation::IstioHeaders { skip_external_clusters } => {
                    if !cluster.is_some_and(|cluster| stays_untold(cluster, *skip_external_clusters)) {
                        put(METADATA_ID, &self.id, id);
                        put(METADATA, &self.metadata, metadata);
                    }
                }
                PeerPropagation::Baggage => put(BAGGAGE, &self.baggage, true),
            }
        }
    }
}

/// A cluster that is outside of the mesh, or that does not want to be told.
fn stays_untold(cluster: &Cluster, skip_external: bool) -> bool {
    if skip_external && &*cluster.model.name == "PassthroughCluster" {
        return true;
    }
    istio(cluster)
        .is_some_and(|istio| skip_external && is_true(istio, "external") || is_true(istio, "disable_mx"))
}
