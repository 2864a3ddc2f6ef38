//! Backends that do with each request what it tells them to, by HTTP/1 or HTTP/2, and remember what they were asked.
//!
//! The header `x-do` has a [`Plan`] for each attempt, `|` between them; the last one holds for all that follow. What is
//! an attempt at the same request shows in `x-id`.

mod h1;
mod h2;
mod plan;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::pki::Identity;

pub use self::plan::{End, Plan};

/// What all backends of a test have in common. They end with it.
pub struct Script {
    shared: Arc<Shared>,
    runtime: Runtime,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct Speaks {
    /// Not of TLS, where ALPN decides.
    pub http2: bool,
    pub max_streams: Option<u32>,
    pub tls: Option<(Identity, Vec<String>)>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Of a connection, for ever.
    next: AtomicUsize,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    attempts: HashMap<String, usize>,
    accepted: BTreeMap<String, usize>,
    /// Numbers of connections since the last [`Script::clear`], by when they were first used.
    numbers: HashMap<usize, usize>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub backend: String,
    pub connection: usize,
    pub line: String,
    pub headers: BTreeMap<String, String>,
    /// As much as was read of it.
    pub body: usize,
    pub end: Option<&'static str>,
    done: bool,
}

/// A connection, to its tasks.
struct Conn {
    backend: String,
    id: usize,
    shared: Arc<Shared>,
    server_name: Option<String>,
}

impl Speaks {
    pub fn http1() -> Self {
        Self { http2: false, max_streams: None, tls: None }
    }

    pub fn http2() -> Self {
        Self { http2: true, ..Self::http1() }
    }

    pub fn tls(identity: &Identity, alpn: &[&str]) -> Self {
        let alpn = alpn.iter().map(|name| (*name).to_owned()).collect();
        Self { tls: Some((identity.clone(), alpn)), ..Self::http1() }
    }

    pub fn max_streams(self, most: u32) -> Self {
        Self { max_streams: Some(most), ..self }
    }
}

impl Script {
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { shared: Arc::default(), runtime })
    }

    /// A backend on a port of its own.
    pub fn backend(&self, name: &str, speaks: &Speaks) -> Result<SocketAddr> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let acceptor = speaks.tls.as_ref().map(acceptor).transpose()?;
        let (name, shared, speaks) = (name.to_owned(), self.shared.clone(), speaks.clone());
        let _guard = self.runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        self.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let id = shared.next.fetch_add(1, Ordering::Relaxed);
                *shared.lock().accepted.entry(name.clone()).or_default() += 1;
                let conn = Conn { backend: name.clone(), id, shared: shared.clone(), server_name: None };
                tokio::spawn(serve(stream, conn, acceptor.clone(), speaks.clone()));
            }
        });
        Ok(address)
    }

    /// What came before is forgotten.
    pub fn clear(&self) {
        *self.shared.lock() = State::default();
    }

    /// What came since, in its order.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// By backends, where their order is a matter of chance.
    pub fn sort(&self) {
        let mut state = self.shared.lock();
        state.seen.sort_by(|one, other| (&one.backend, &one.line).cmp(&(&other.backend, &other.line)));
        for (n, seen) in state.seen.iter_mut().enumerate() {
            seen.connection = n;
        }
    }

    /// As [`Script::seen`], but for what is each run's own; and how many connections were made.
    pub fn shown(&self) -> Value {
        let state = self.shared.lock();
        let seen: Vec<Value> = state.seen.iter().map(Seen::shown).collect();
        json!({ "requests": seen, "connections": state.accepted })
    }
}

/// In milliseconds.
const ROUND: u64 = 500;

impl Seen {
    /// All of it has come.
    pub fn is_done(&self) -> bool {
        self.done
    }

    fn shown(&self) -> Value {
        const OWN: &[&str] = &["x-request-id", "x-do", "x-b3-traceid"];
        let mut headers = self.headers.clone();
        headers.retain(|name, _| !OWN.contains(&name.as_str()));
        // What is left of the time is not the same for any two.
        if let Some(left) = headers.get_mut("x-envoy-expected-rq-timeout-ms")
            && let Ok(millis) = left.parse::<u64>()
        {
            *left = (millis.div_ceil(ROUND) * ROUND).to_string();
        }
        json!({
            "at": format!("{} #{}", self.backend, self.connection),
            "line": self.line, "headers": headers, "body": self.body, "end": self.end,
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Conn {
    /// A request has come: where it is in what was seen, and what is to be done with it.
    fn begins(&self, line: String, mut headers: BTreeMap<String, String>) -> (usize, Plan) {
        let mut state = self.shared.lock();
        let count = state.numbers.len() + 1;
        let connection = *state.numbers.entry(self.id).or_insert(count);
        let host = headers.get("host").map(String::as_str).unwrap_or_default();
        let shadow = host.split(':').next().unwrap_or_default().ends_with("-shadow");
        let id = format!("{:?} {shadow}", headers.get("x-id"));
        let attempt = state.attempts.entry(id).or_default();
        let plans: Vec<&str> =
            headers.get("x-do").map(String::as_str).unwrap_or_default().split('|').collect();
        let plan = plans.get(*attempt).or(plans.last()).copied().unwrap_or_default().trim();
        let plan = if shadow { Plan::default() } else { Plan::parse(plan) };
        *attempt += 1;
        if let Some(name) = &self.server_name {
            headers.insert("(sni)".into(), name.clone());
        }
        state.seen.push(Seen {
            backend: self.backend.clone(),
            connection,
            line,
            headers,
            body: 0,
            end: None,
            done: false,
        });
        (state.seen.len() - 1, plan)
    }

    /// `end` is told where its body did not come to its own.
    fn ends(&self, seen: usize, body: usize, end: Option<&'static str>) {
        if let Some(seen) = self.shared.lock().seen.get_mut(seen) {
            (seen.body, seen.end, seen.done) = (body, end, true);
        }
    }
}

async fn serve(stream: TcpStream, mut conn: Conn, acceptor: Option<TlsAcceptor>, speaks: Speaks) {
    let _ = stream.set_nodelay(true);
    let Some(acceptor) = acceptor else {
        if speaks.http2 {
            h2::serve(stream, conn, speaks.max_streams).await;
        } else {
            // So that it can be reset.
            h1::serve(stream, conn).await;
        }
        return;
    };
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let (_, tls) = stream.get_ref();
    let http2 = tls.alpn_protocol() == Some(b"h2");
    conn.server_name = Some(tls.server_name().unwrap_or("none").to_owned());
    if http2 {
        h2::serve(stream, conn, speaks.max_streams).await;
    } else {
        h1::serve(stream, conn).await;
    }
}

fn acceptor((identity, alpn): &(Identity, Vec<String>)) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(&identity.chain)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&identity.key)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = config.with_single_cert(chain, key).context("the backend's certificate")?;
    config.alpn_protocols = alpn.iter().map(|name| name.clone().into_bytes()).collect();
    Ok(Arc::new(config).into())
}
