//! From a model and its secrets to what handshakes run on; rebuilt when a secret changes.
//!
//! A connection keeps the context that it began with. A rebuild that fails leaves the last good one in use.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use proxy_config::model::tls::{CommonTls, KeyLog, SessionTickets};

use super::inputs::{Inputs, Resolved};
use super::key_log::KeyLogFile;
use super::keys::Identity;
use super::peer::PeerVerifier;
use super::stats::{SslStats, TlsFactoryStats};
use crate::secret::{Slot, Subscriber};
use crate::telemetry::stats::{Counter, Stats};
use crate::transport::{BuildError, Env, Side};

/// A kind of context.
pub(super) trait Build: Send + Sync + 'static {
    type Context: Send + Sync;

    fn build(&self, resolved: Resolved, common: &Arc<Common>) -> Result<Self::Context, String>;
}

/// A context that follows its secrets.
pub(super) struct Live<B: Build> {
    build: B,
    inputs: Inputs,
    pub(super) common: Arc<Common>,
    current: ArcSwapOption<B::Context>,
    /// Two secrets may change at once.
    building: Mutex<()>,
}

impl<B: Build> Live<B> {
    pub(super) fn new(
        build: B,
        model: &CommonTls,
        tickets: &SessionTickets,
        (prefix, side): (&Arc<str>, Side),
        env: &Env,
    ) -> Result<Arc<Self>, BuildError> {
        let live = Arc::new(Self {
            build,
            inputs: Inputs::new(model, tickets, env)?,
            common: Arc::new(Common::new(model, (prefix, side), env)?),
            current: ArcSwapOption::empty(),
            building: Mutex::default(),
        });
        let subscriber: Arc<dyn Subscriber> = live.clone();
        live.inputs.subscribe(&subscriber);
        live.rebuild().map_err(BuildError)?;
        Ok(live)
    }

    /// `None` while a secret is missing.
    pub(super) fn context(&self) -> Option<Arc<B::Context>> {
        self.current.load_full()
    }

    pub(super) fn secrets(&self, found: &mut Vec<Arc<Slot>>) {
        found.extend(self.inputs.slots().cloned());
    }

    /// Whether there is a context now.
    fn rebuild(&self) -> Result<bool, String> {
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(resolved) = self.inputs.resolve()? else { return Ok(false) };
        let context = self.build.build(resolved, &self.common)?;
        self.current.store(Some(Arc::new(context)));
        Ok(true)
    }
}

impl<B: Build> Subscriber for Live<B> {
    fn changed(&self) -> Result<(), String> {
        self.rebuild()?;
        // Envoy's: also while another secret is missing.
        self.common.factory_stats.ssl_context_update_by_sds.inc();
        Ok(())
    }
}

/// What all contexts of a chain or a cluster share.
pub(super) struct Common {
    pub(super) alpn: Vec<Arc<str>>,
    pub(super) stats: Arc<SslStats>,
    pub(super) factory_stats: Arc<TlsFactoryStats>,
    pub(super) key_log: Option<Arc<KeyLogFile>>,
    logged: Option<KeyLog>,
    named: Named,
}

impl Common {
    fn new(model: &CommonTls, (prefix, side): (&Arc<str>, Side), env: &Env) -> Result<Self, BuildError> {
        let key_log = model.key_log.as_ref().map(KeyLogFile::open).transpose().map_err(BuildError)?;
        Ok(Self {
            alpn: model.alpn_protocols.clone(),
            stats: SslStats::of(&env.stats, prefix),
            factory_stats: TlsFactoryStats::of(&env.stats, prefix, side),
            key_log: key_log.map(Arc::new),
            logged: model.key_log.clone(),
            named: Named { stats: env.stats.clone(), prefix: prefix.clone(), known: Mutex::default() },
        })
    }

    /// Local and remote address. A connection without them (a unix socket's) is logged where every address is.
    pub(super) fn logs_keys_of(&self, addresses: Option<(IpAddr, IpAddr)>) -> bool {
        let Some(log) = &self.logged else { return false };
        let (local, remote) = addresses.unzip();
        let within = |ranges: &[proxy_config::model::address::Cidr], address: Option<IpAddr>| {
            ranges.is_empty() || address.is_some_and(|address| ranges.iter().any(|one| one.contains(address)))
        };
        within(&log.local_address_range, local) && within(&log.remote_address_range, remote)
    }

    /// `ssl.certificate.<name>.expiration_unix_time_seconds`. Who has no name is named as in Envoy: by the start of
    /// the SHA-256 of that name.
    fn expires(&self, name: Option<&Arc<str>>, unnamed: &str, at: i64) {
        let name = name.map_or_else(|| format!("{unnamed}_e3b0c442"), ToString::to_string);
        let Named { stats, prefix, .. } = &self.named;
        let gauge = stats.gauge(format!("{prefix}.ssl.certificate.{name}.expiration_unix_time_seconds"));
        gauge.set(u64::try_from(at).unwrap_or(0));
    }

    /// When the certificates of a context expire, and the first of what it trusts.
    pub(super) fn show_expirations(
        &self,
        own: &[Identity],
        peer: Option<&PeerVerifier>,
        ca: Option<&Arc<str>>,
    ) {
        for identity in own {
            self.expires(identity.secret.as_ref(), "unnamed_cert", identity.facts.not_after);
        }
        if let Some((_, first)) = peer.and_then(PeerVerifier::ca) {
            self.expires(ca, "unnamed_ca_cert", first.not_after);
        }
    }

    /// `ssl.<kind>.<name>`, which is there once it has been counted.
    pub(super) fn count(&self, kind: &'static str, name: &'static str) {
        self.named.counter(kind, name).inc();
    }
}

/// Counters whose names are what was agreed on.
struct Named {
    stats: Arc<Stats>,
    prefix: Arc<str>,
    known: Mutex<HashMap<(&'static str, &'static str), Arc<Counter>>>,
}

impl Named {
    fn counter(&self, kind: &'static str, name: &'static str) -> Arc<Counter> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || self.stats.counter(format!("{}.ssl.{kind}.{name}", self.prefix));
        known.entry((kind, name)).or_insert_with(make).clone()
    }
}
