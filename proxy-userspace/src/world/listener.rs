//! A listener as it runs: its filters, its chains and how one of them is found.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::network_filter::{NetworkFilter, NetworkFilterConfig};
use proxy_config::model::{self, Address, Metadata};

use super::{BuildError, Parts};
use crate::cluster;
use crate::drain::Roster;
use crate::http::filters::jwt_authn::Remote;
use crate::http::{self, Hcm};
use crate::istio::{Exchange, Recorder};
use crate::listener::chain_match::ChainMatch;
use crate::listener::filters::Filters;
use crate::net::facts::Facts;
use crate::network::tcp_proxy::TcpProxy;
use crate::network::{self, Closed, Gates, Last, starttls};
use crate::secret::Slot;
use crate::telemetry::Flags;
use crate::telemetry::access_log::{Error, Logger};
use crate::telemetry::stats::ListenerStats;
use crate::transport::{self, Factory};

pub struct Listener {
    pub model: Arc<model::Listener>,
    base: Arc<Base>,
    matcher: ChainMatch,
    chains: Vec<Arc<Chain>>,
    default: Option<Arc<Chain>>,
}

/// All of a listener but its chains. A connection keeps this and its chain; what else there is may go.
pub struct Base {
    pub name: Arc<str>,
    pub stats: Arc<ListenerStats>,
    pub filters: Filters,
    pub access_log: Arc<[Logger]>,
    /// A connection that cannot be carried on is reset, not ended: see [`super::builtin`].
    pub resets: bool,
    /// For `%METADATA(LISTENER:…)%`; none where it is empty.
    pub metadata: Option<Arc<Metadata>>,
    /// Soft limit of what is buffered per connection; 0: none.
    pub buffer_limit: u32,
}

impl Deref for Listener {
    type Target = Arc<Base>;

    fn deref(&self) -> &Arc<Base> {
        &self.base
    }
}

/// A filter chain.
pub struct Chain {
    pub name: Arc<str>,
    /// For `%METADATA(LISTENER_FILTER_CHAIN:…)%`; none where it is empty.
    pub metadata: Option<Arc<Metadata>>,
    pub filters: network::Filters,
    /// Makes the transports of its connections; none for `raw_buffer`.
    pub transport: Option<Arc<dyn Factory>>,
    /// How long a transport may take to become ready.
    pub handshake_timeout: Option<Duration>,
    /// Its connections.
    pub roster: Arc<Roster>,
}

enum ChainError {
    Log(Error),
    Http(http::BuildError),
    Transport(transport::BuildError),
}

impl Listener {
    pub fn new(model: Arc<model::Listener>, parts: &Parts<'_>) -> Result<Self, BuildError> {
        let base = Arc::new(Base::new(&model, false, parts)?);
        Self::assemble(model, base, |_| None, parts)
    }

    /// As [`Self::new`]; connections that cannot be carried on are reset.
    pub(super) fn resetting(model: Arc<model::Listener>, parts: &Parts<'_>) -> Result<Self, BuildError> {
        let base = Arc::new(Base::new(&model, true, parts)?);
        Self::assemble(model, base, |_| None, parts)
    }

    /// What takes the place of `before`, which differs in its filter chains alone: chains that are the same go on,
    /// with their connections.
    pub fn successor(
        model: Arc<model::Listener>,
        before: &Self,
        parts: &Parts<'_>,
    ) -> Result<Self, BuildError> {
        let mut by_name: HashMap<&str, Vec<(&model::FilterChain, &Arc<Chain>)>> = HashMap::new();
        let known = before.model.filter_chains.iter().zip(&before.chains);
        for (model, chain) in known.chain(before.model.default_filter_chain.iter().zip(&before.default)) {
            by_name.entry(&model.name).or_default().push((model, chain));
        }
        let same = |model: &model::FilterChain| {
            let (_, chain) = by_name.get(&*model.name)?.iter().find(|(known, _)| *known == model)?;
            Some(Arc::clone(chain))
        };
        Self::assemble(model, before.base.clone(), same, parts)
    }

    /// The same listener with other filters in the places of the discovered ones. Connections keep what they have, and
    /// still are those of their chains.
    pub(super) fn refilled(
        model: Arc<model::Listener>,
        before: &Self,
        parts: &Parts<'_>,
    ) -> Result<Self, BuildError> {
        let mut next = Self::successor(model, before, parts)?;
        let places = next.chains.iter_mut().zip(&before.chains);
        for (chain, before) in places.chain(next.default.iter_mut().zip(&before.default)) {
            if !Arc::ptr_eq(chain, before)
                && let Some(chain) = Arc::get_mut(chain)
            {
                chain.roster = before.roster.clone();
            }
        }
        Ok(next)
    }

    fn assemble(
        model: Arc<model::Listener>,
        base: Arc<Base>,
        known: impl Fn(&model::FilterChain) -> Option<Arc<Chain>>,
        parts: &Parts<'_>,
    ) -> Result<Self, BuildError> {
        let prefix: Arc<str> = stat_prefix(&model).into();
        let chain = |chain: &model::FilterChain| {
            if let Some(known) = known(chain) {
                return Ok(known);
            }
            let whose = || format!("listener {}: filter chain \"{}\"", model.name, chain.name);
            let built = Chain::new(chain, &prefix, parts).map_err(|error| match error {
                ChainError::Log(error) => BuildError::AccessLog(error),
                ChainError::Transport(source) => BuildError::Transport { whose: whose(), source },
                ChainError::Http(source) => BuildError::Http { whose: whose(), source },
            });
            built.map(Arc::new)
        };
        Ok(Self {
            base,
            matcher: ChainMatch::new(&model.filter_chains),
            chains: model.filter_chains.iter().map(chain).collect::<Result<_, BuildError>>()?,
            default: model.default_filter_chain.as_ref().map(chain).transpose()?,
            model,
        })
    }

    /// What of a connection's listener outlives the listener.
    pub fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// The chain that serves a connection.
    pub fn chain(&self, facts: &Facts) -> Option<&Arc<Chain>> {
        let found = self.matcher.find(facts).and_then(|index| self.chains.get(index));
        found.or(self.default.as_ref())
    }

    /// The connections of chains that `next` does not have.
    pub(super) fn leaves(&self, next: Option<&Self>) -> Vec<Arc<Roster>> {
        let kept: HashSet<*const Chain> = next.into_iter().flat_map(Self::all).map(Arc::as_ptr).collect();
        let gone = self.all().filter(|chain| !kept.contains(&Arc::as_ptr(chain)));
        gone.map(|chain| chain.roster.clone()).collect()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Chain>> {
        self.chains.iter().chain(&self.default)
    }

    /// That chain as it was configured.
    pub fn chain_model(&self, facts: &Facts) -> Option<&model::FilterChain> {
        let found = self.matcher.find(facts).and_then(|index| self.model.filter_chains.get(index));
        found.or(self.model.default_filter_chain.as_ref())
    }

    /// What makes the transports of its chains.
    pub fn transports(&self) -> impl Iterator<Item = &Arc<dyn Factory>> {
        self.all().filter_map(|chain| chain.transport.as_ref())
    }

    /// What the filters of its connection managers follow elsewhere.
    pub fn documents(&self) -> impl Iterator<Item = Arc<Remote>> {
        let managers = self.all().filter_map(|chain| match &chain.filters.last {
            Last::Http(hcm) => Some(hcm),
            Last::TcpProxy(_) | Last::Closed(_) | Last::DirectResponse(_) | Last::Echo | Last::Nothing => {
                None
            }
        });
        managers.flat_map(|hcm| hcm.documents())
    }

    /// The secrets of its chains that are still to come: it does not accept before.
    pub fn waits_for(&self) -> Vec<Arc<Slot>> {
        let mut slots = transport::secrets(self.transports());
        slots.retain(|slot| !slot.is_settled());
        slots
    }
}

impl Base {
    fn new(model: &model::Listener, resets: bool, parts: &Parts<'_>) -> Result<Self, BuildError> {
        let stats: Arc<ListenerStats> = parts.cluster.stats.block(stat_prefix(model));
        Ok(Self {
            name: model.name.clone(),
            filters: Filters::new(model, &parts.cluster.stats, stats.clone()),
            stats,
            resets,
            metadata: shared(&model.metadata),
            access_log: parts.loggers(&model.access_log)?,
            buffer_limit: model.per_connection_buffer_limit_bytes,
        })
    }
}

impl Chain {
    fn new(model: &model::FilterChain, prefix: &Arc<str>, parts: &Parts<'_>) -> Result<Self, ChainError> {
        let gates = Gates::new(&model.filters, &parts.cluster.stats, parts.buckets);
        let last = match (
            model.filters.iter().find_map(|filter| closed(filter, prefix, parts)),
            model.filters.last(),
        ) {
            (Some(closed), _) => Last::Closed(Box::new(closed)),
            (None, Some(last)) => last_filter(last, prefix, parts)?,
            (None, None) => Last::Nothing,
        };
        let env = &parts.cluster.transport;
        let transport = transport::build(&model.transport_socket, transport::Side::Downstream, prefix, env)
            .map_err(ChainError::Transport)?;
        Ok(Self {
            name: model.name.clone(),
            metadata: shared(&model.metadata),
            transport,
            handshake_timeout: model.transport_socket_connect_timeout,
            roster: Arc::default(),
            filters: network::Filters {
                gates,
                driver: starttls::driver(model, &parts.cluster.stats),
                exchange: model.filters.iter().find_map(|filter| exchange(&filter.filter, parts.cluster)),
                recorders: model
                    .filters
                    .iter()
                    .filter_map(|filter| recorder(&filter.filter, parts.cluster))
                    .collect(),
                last,
            },
        })
    }
}

fn exchange(filter: &NetworkFilter, env: &cluster::Env) -> Option<Arc<Exchange>> {
    let NetworkFilter::MetadataExchange(model) = filter else { return None };
    Some(Arc::new(Exchange::new(model, &env.transport.local, &env.stats)))
}

fn recorder(filter: &NetworkFilter, env: &cluster::Env) -> Option<Arc<Recorder>> {
    let NetworkFilter::IstioStats(model) = filter else { return None };
    Some(Arc::new(Recorder::new(model, &env.transport.local, &env.stats)))
}

/// A filter that no connection gets through.
fn closed(config: &NetworkFilterConfig, prefix: &str, parts: &Parts<'_>) -> Option<Closed> {
    let stats = &parts.cluster.stats;
    match &config.filter {
        NetworkFilter::Unserved(unserved) => {
            let counter = stats.counter(format!("shunt.unserved.{}", unserved.extension));
            let why = format!("{}: {}", unserved.extension, unserved.why);
            let details = format!("unserved_filter:{}", unserved.extension);
            Some(Closed::new((Flags::NR, details), counter, why))
        }
        NetworkFilter::Discovered(_) => {
            let counter = stats.counter(format!("{prefix}.network_extension_config_missing"));
            let why = format!("the configuration of filter {} has not come", config.name);
            Some(Closed::new((Flags::NONE, "network_extension_config_missing"), counter, why))
        }
        NetworkFilter::TcpProxy(_)
        | NetworkFilter::Http(_)
        | NetworkFilter::DirectResponse(_)
        | NetworkFilter::Echo
        | NetworkFilter::Rbac(_)
        | NetworkFilter::SniCluster
        | NetworkFilter::ConnectionLimit(_)
        | NetworkFilter::LocalRateLimit(_)
        | NetworkFilter::MetadataExchange(_)
        | NetworkFilter::IstioStats(_)
        | NetworkFilter::PostgresProxy(_)
        | NetworkFilter::SmtpStarttls(_) => None,
    }
}

fn last_filter(config: &NetworkFilterConfig, prefix: &str, parts: &Parts<'_>) -> Result<Last, ChainError> {
    Ok(match &config.filter {
        NetworkFilter::TcpProxy(model) => {
            let access_log = parts.loggers(&model.access_log).map_err(ChainError::Log)?;
            let stats = parts.cluster.stats.as_ref();
            let proxy = TcpProxy::new(model.as_ref().clone(), access_log, stats).map_err(ChainError::Http)?;
            Last::TcpProxy(Box::new(proxy))
        }
        NetworkFilter::Http(model) => Last::Http(Hcm::new(model, prefix, parts).map_err(ChainError::Http)?),
        NetworkFilter::DirectResponse(body) => Last::DirectResponse(body.clone()),
        NetworkFilter::Echo => Last::Echo,
        // A chain must end with one of those above, or it has not been lowered.
        NetworkFilter::Rbac(_)
        | NetworkFilter::SniCluster
        | NetworkFilter::ConnectionLimit(_)
        | NetworkFilter::LocalRateLimit(_)
        | NetworkFilter::MetadataExchange(_)
        | NetworkFilter::IstioStats(_)
        | NetworkFilter::PostgresProxy(_)
        | NetworkFilter::SmtpStarttls(_)
        | NetworkFilter::Discovered(_)
        | NetworkFilter::Unserved(_) => Last::Nothing,
    })
}

fn shared(metadata: &Metadata) -> Option<Arc<Metadata>> {
    (!metadata.is_empty()).then(|| Arc::new(metadata.clone()))
}

/// Whether two listeners differ in their filter chains alone: what then stays of the first one's connections is up to
/// their chains, as in Envoy.
#[expect(clippy::unneeded_field_pattern, reason = "a field that is new has to be looked at here")]
pub(super) fn differ_in_chains_alone(one: &model::Listener, other: &model::Listener) -> bool {
    let model::Listener {
        name,
        stat_prefix,
        addresses,
        bind_to_port,
        use_original_dst,
        traffic_direction,
        reuse_port,
        per_connection_buffer_limit_bytes,
        tcp_backlog_size,
        tcp_fast_open_queue_length,
        tcp_keepalive,
        enable_mptcp,
        transparent,
        freebind,
        access_log,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        filter_chains: _,
        default_filter_chain: _,
        metadata,
    } = one;
    *name == other.name
        && *stat_prefix == other.stat_prefix
        && *addresses == other.addresses
        && *bind_to_port == other.bind_to_port
        && *use_original_dst == other.use_original_dst
        && *traffic_direction == other.traffic_direction
        && *reuse_port == other.reuse_port
        && *per_connection_buffer_limit_bytes == other.per_connection_buffer_limit_bytes
        && *tcp_backlog_size == other.tcp_backlog_size
        && *tcp_fast_open_queue_length == other.tcp_fast_open_queue_length
        && *tcp_keepalive == other.tcp_keepalive
        && *enable_mptcp == other.enable_mptcp
        && *transparent == other.transparent
        && *freebind == other.freebind
        && *access_log == other.access_log
        && *listener_filters == other.listener_filters
        && *listener_filters_timeout == other.listener_filters_timeout
        && *continue_on_listener_filters_timeout == other.continue_on_listener_filters_timeout
        && *metadata == other.metadata
}

/// Of a listener's stats: the prefix that was asked for, else the address without colons, as in Envoy.
fn stat_prefix(model: &model::Listener) -> String {
    let name = match (&model.stat_prefix, model.addresses.first().map(|first| &first.address)) {
        (Some(prefix), _) => prefix.replace(':', "_"),
        (None, Some(Address::Ip(address))) => address.to_string().replace(':', "_"),
        (None, Some(Address::Pipe { path, .. })) => path.display().to_string().replace(':', "_"),
        (None, Some(Address::Host(host))) => format!("{}_{}", host.host, host.port),
        (None, None) => model.name.replace(':', "_"),
    };
    format!("listener.{name}")
}
