//! A control plane under a test's command: it speaks ADS and the separate services, the state of the world and
//! deltas, over TCP, TLS or a socket of the file system, to as many proxies at once as ask.
//!
//! By itself it serves what was [`ControlPlane::set`], as a versioned cache does. A test may [`ControlPlane::hold`]
//! types back and write responses itself. Every request is kept as it came.

mod cache;
mod push;
mod request;
mod resource;
mod server;
mod state;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use serde_json::Value;
use tonic::Status;

pub use push::Push;
pub use request::Request;
pub use resource::{Resource, Type, file, json as json_of, message};
use server::{Place, Server};
use state::Shared;
pub use state::StreamInfo;
pub(crate) use wire::Raw;

use crate::ports::free;
use crate::tls_server::TlsOptions;
use crate::wait::{eventually, until};

const LIMIT: Duration = Duration::from_secs(10);

/// It ends when it is dropped.
pub struct ControlPlane {
    shared: Arc<Shared>,
    server: Option<Server>,
    place: Place,
    tls: Option<TlsOptions>,
}

impl ControlPlane {
    /// On a free port of 127.0.0.1, which nobody is given while it is stopped.
    pub fn start() -> Result<Self> {
        Self::start_at(Place::Address(free()?), None)
    }

    pub fn start_tls(tls: &TlsOptions) -> Result<Self> {
        Self::start_at(Place::Address(free()?), Some(tls.clone()))
    }

    /// On a socket of the file system.
    pub fn start_unix(path: &Path) -> Result<Self> {
        Self::start_at(Place::File(path.to_owned()), None)
    }

    fn start_at(place: Place, tls: Option<TlsOptions>) -> Result<Self> {
        let mut plane = Self { shared: Arc::default(), server: None, place, tls };
        plane.restart()?;
        Ok(plane)
    }

    /// Starts it again, where it was. It knows what it knew.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        let server = Server::start(&self.place, self.tls.as_ref(), &self.shared)?;
        self.place = server.place.clone();
        self.server = Some(server);
        Ok(())
    }

    /// As [`ControlPlane::restart`], with another certificate.
    pub fn restart_tls(&mut self, tls: &TlsOptions) -> Result<()> {
        self.tls = Some(tls.clone());
        self.restart()
    }

    /// Ends the server and all connections.
    pub fn stop(&mut self) {
        self.server = None;
        self.shared.lock().all_closed();
    }

    /// Of one that listens at an address.
    pub fn address(&self) -> Result<SocketAddr> {
        match &self.place {
            Place::Address(address) => Ok(*address),
            Place::File(path) => anyhow::bail!("it listens on {}", path.display()),
        }
    }

    /// The fields of a cluster that leads to it.
    pub fn cluster(&self) -> String {
        let address = match &self.place {
            Place::Address(at) => crate::bootstrap::address(&at.ip().to_string(), at.port()),
            Place::File(path) => format!("{{ pipe: {{ path: {:?} }} }}", path.display().to_string()),
        };
        let endpoint = format!("{{ lb_endpoints: [ {{ endpoint: {{ address: {address} }} }} ] }}");
        format!("type: STATIC, {HTTP2}, load_assignment: {{ cluster_name: xds, endpoints: [ {endpoint} ] }}")
    }

    /// Serves a resource, in place of what has its name.
    pub fn set(&self, resource: Resource) {
        self.set_all([resource]);
    }

    /// Several at once: one response for each type.
    pub fn set_all(&self, resources: impl IntoIterator<Item = Resource>) {
        let mut state = self.shared.lock();
        for resource in resources {
            state.cache.set(resource);
        }
        state.tell();
    }

    pub fn remove(&self, of: Type, name: &str) {
        let mut state = self.shared.lock();
        state.cache.remove(of, name);
        state.tell();
    }

    /// These are all that there is of the types that occur.
    pub fn snapshot(&self, resources: impl IntoIterator<Item = Resource>) {
        let mut state = self.shared.lock();
        let mut named: BTreeMap<Type, Vec<String>> = BTreeMap::new();
        for resource in resources {
            named.entry(resource.of).or_default().push(resource.name.clone());
            state.cache.set(resource);
        }
        for (of, names) in named {
            for name in state.cache.names(of).into_iter().filter(|name| !names.contains(name)) {
                state.cache.remove(of, &name);
            }
        }
        state.tell();
    }

    /// Says nothing of a type by itself from now on.
    pub fn hold(&self, of: Type) {
        self.shared.lock().held.insert(of);
    }

    /// Says what was held back.
    pub fn release(&self, of: Type) {
        let mut state = self.shared.lock();
        state.held.remove(&of);
        state.tell();
    }

    /// Says this to a node, once it has asked for the type. The nonce.
    pub fn push(&self, node: &str, push: &Push) -> Result<String> {
        until(&format!("a stream of {node} for {:?}", push.of), LIMIT, || {
            Ok(self.shared.lock().push(node, push))
        })
    }

    /// A gRPC message that may be none of the protocol.
    pub fn push_bytes(&self, node: &str, of: Type, bytes: impl Into<Bytes>) -> Result<()> {
        let bytes = bytes.into();
        until(&format!("a stream of {node} for {of:?}"), LIMIT, || {
            Ok(self.shared.lock().push_bytes(node, of, bytes.clone()).then_some(()))
        })
    }

    /// Ends the streams of a node, the connection stays.
    pub fn end(&self, node: &str, why: &str) -> Result<()> {
        let ended = self.shared.lock().end(node, &Status::unavailable(why));
        ensure!(ended > 0, "{node} has no stream");
        Ok(())
    }

    /// Waits until a node has answered all that it was told; what it refused.
    pub fn settled(&self, node: &str) -> Result<BTreeMap<Type, String>> {
        eventually(&format!("the answers of {node}"), LIMIT, || {
            let open = self.shared.lock().unanswered(node).context("no stream")?;
            ensure!(open.is_empty(), "no answer for {open:?}");
            Ok(())
        })?;
        self.sound()?;
        Ok(self.shared.lock().refused(node))
    }

    /// As [`ControlPlane::settled`], where nothing may be refused.
    pub fn accepted(&self, node: &str) -> Result<()> {
        let refused = self.settled(node)?;
        ensure!(refused.is_empty(), "{node} refused {refused:?}");
        Ok(())
    }

    /// What a node asked, in the order in which it came.
    pub fn requests(&self, node: &str) -> Vec<Request> {
        self.shared.lock().requests.iter().filter(|request| request.node == node).cloned().collect()
    }

    /// Waits for a request; those before a mark do not count.
    pub fn request(
        &self,
        node: &str,
        what: &str,
        mark: usize,
        is: impl Fn(&Request) -> bool,
    ) -> Result<Request> {
        let found = until(&format!("a request of {node}: {what}"), LIMIT, || {
            Ok(self.requests(node).into_iter().skip(mark).find(|request| is(request)))
        });
        found.with_context(|| {
            let came: Vec<_> = self.requests(node).into_iter().skip(mark).collect();
            format!("there came {came:#?}")
        })
    }

    /// How many requests of a node there are, to look only at later ones.
    pub fn mark(&self, node: &str) -> usize {
        self.requests(node).len()
    }

    pub fn streams(&self, node: &str) -> Vec<StreamInfo> {
        self.shared.lock().streams(node)
    }

    /// What a node said of itself last.
    pub fn node(&self, node: &str) -> Result<Value> {
        self.shared.lock().node(node).with_context(|| format!("{node} has not said who it is"))
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    pub fn handshakes_failed(&self) -> Vec<String> {
        self.shared.lock().handshakes_failed.clone()
    }

    /// Fails if what came was not of the protocol.
    pub fn sound(&self) -> Result<()> {
        let faults = self.shared.lock().faults.clone();
        ensure!(faults.is_empty(), "{}", faults.join("; "));
        Ok(())
    }
}

/// What makes a cluster speak HTTP/2, as a control plane's does.
pub const HTTP2: &str = "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { http2_protocol_options: {} } } }";
