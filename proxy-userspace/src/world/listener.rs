//! A listener as it runs: its filters, its chains and how one of them is found.

use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::network_filter::{NetworkFilter, NetworkFilterConfig};
use proxy_config::model::{self, Address, Metadata};

use super::{BuildError, Parts};
use crate::listener::chain_match::ChainMatch;
use crate::listener::filters::Filters;
use crate::net::facts::Facts;
use crate::network::tcp_proxy::TcpProxy;
use crate::network::{self, Gates, Last, starttls};
use crate::secret::Slot;
use crate::telemetry::access_log::{Error, Logger};
use crate::telemetry::stats::ListenerStats;
use crate::transport::{self, Factory};

pub struct Listener {
    pub model: Arc<model::Listener>,
    pub stats: Arc<ListenerStats>,
    pub filters: Filters,
    pub access_log: Arc<[Logger]>,
    /// A connection that cannot be carried on is reset, not ended: see [`super::builtin`].
    pub resets: bool,
    /// For `%METADATA(LISTENER:…)%`; none where it is empty.
    pub metadata: Option<Arc<Metadata>>,
    matcher: ChainMatch,
    chains: Vec<Chain>,
    default: Option<Chain>,
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
}

enum ChainError {
    Log(Error),
    Transport(transport::BuildError),
}

impl Listener {
    pub fn new(model: Arc<model::Listener>, parts: &Parts<'_>) -> Result<Self, BuildError> {
        let stats = &parts.cluster.stats;
        let prefix: Arc<str> = format!("listener.{}", stat_name(&model)).into();
        let chain = |chain: &model::FilterChain| {
            let whose = || format!("listener {}: filter chain \"{}\"", model.name, chain.name);
            Chain::new(chain, &prefix, parts).map_err(|error| match error {
                ChainError::Log(error) => BuildError::AccessLog(error),
                ChainError::Transport(source) => BuildError::Transport { whose: whose(), source },
            })
        };
        let own: Arc<ListenerStats> = stats.block(prefix.clone());
        Ok(Self {
            filters: Filters::new(&model, stats, own.clone()),
            stats: own,
            resets: false,
            metadata: shared(&model.metadata),
            access_log: parts.loggers(&model.access_log)?,
            matcher: ChainMatch::new(&model.filter_chains),
            chains: model.filter_chains.iter().map(chain).collect::<Result<_, BuildError>>()?,
            default: model.default_filter_chain.as_ref().map(chain).transpose()?,
            model,
        })
    }

    /// The chain that serves a connection.
    pub fn chain(&self, facts: &Facts) -> Option<&Chain> {
        let found = self.matcher.find(facts).and_then(|index| self.chains.get(index));
        found.or(self.default.as_ref())
    }

    /// That chain as it was configured.
    pub fn chain_model(&self, facts: &Facts) -> Option<&model::FilterChain> {
        let found = self.matcher.find(facts).and_then(|index| self.model.filter_chains.get(index));
        found.or(self.model.default_filter_chain.as_ref())
    }

    /// What makes the transports of its chains.
    pub fn transports(&self) -> impl Iterator<Item = &Arc<dyn Factory>> {
        self.chains.iter().chain(&self.default).filter_map(|chain| chain.transport.as_ref())
    }

    /// The secrets of its chains that are still to come: it does not accept before.
    pub fn waits_for(&self) -> Vec<Arc<Slot>> {
        let mut slots = transport::secrets(self.transports());
        slots.retain(|slot| !slot.is_settled());
        slots
    }
}

impl Chain {
    fn new(model: &model::FilterChain, prefix: &Arc<str>, parts: &Parts<'_>) -> Result<Self, ChainError> {
        let gates = Gates::new(&model.filters, &parts.cluster.stats, parts.buckets);
        let last = match model.filters.last() {
            Some(last) => last_filter(last, parts).map_err(ChainError::Log)?,
            None => Last::Nothing,
        };
        let env = &parts.cluster.transport;
        let transport = transport::build(&model.transport_socket, transport::Side::Downstream, prefix, env)
            .map_err(ChainError::Transport)?;
        Ok(Self {
            name: model.name.clone(),
            metadata: shared(&model.metadata),
            transport,
            handshake_timeout: model.transport_socket_connect_timeout,
            filters: network::Filters { gates, driver: starttls::driver(model, &parts.cluster.stats), last },
        })
    }
}

fn last_filter(config: &NetworkFilterConfig, parts: &Parts<'_>) -> Result<Last, Error> {
    Ok(match &config.filter {
        NetworkFilter::TcpProxy(model) => {
            let access_log = parts.loggers(&model.access_log)?;
            let stats = parts.cluster.stats.as_ref();
            Last::TcpProxy(Box::new(TcpProxy::new(model.as_ref().clone(), access_log, stats)))
        }
        NetworkFilter::DirectResponse(body) => Last::DirectResponse(body.clone()),
        NetworkFilter::Echo => Last::Echo,
        // A chain must end with one of those above, or it has not been lowered.
        NetworkFilter::Rbac(_)
        | NetworkFilter::SniCluster
        | NetworkFilter::ConnectionLimit(_)
        | NetworkFilter::LocalRateLimit(_)
        | NetworkFilter::MetadataExchange
        | NetworkFilter::IstioStats
        | NetworkFilter::PostgresProxy(_)
        | NetworkFilter::SmtpStarttls(_)
        | NetworkFilter::Discovered(_)
        | NetworkFilter::Unserved(_) => Last::Nothing,
    })
}

fn shared(metadata: &Metadata) -> Option<Arc<Metadata>> {
    (!metadata.is_empty()).then(|| Arc::new(metadata.clone()))
}

/// Envoy's: the prefix that was asked for, else the address without colons.
fn stat_name(model: &model::Listener) -> String {
    match (&model.stat_prefix, model.addresses.first().map(|first| &first.address)) {
        (Some(prefix), _) => prefix.replace(':', "_"),
        (None, Some(Address::Ip(address))) => address.to_string().replace(':', "_"),
        (None, Some(Address::Pipe { path, .. })) => path.display().to_string().replace(':', "_"),
        (None, Some(Address::Host(host))) => format!("{}_{}", host.host, host.port),
        (None, None) => model.name.replace(':', "_"),
    }
}
