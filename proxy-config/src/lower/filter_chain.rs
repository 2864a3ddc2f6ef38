//! Filter chains: what a chain matches, that its filters end as they must, and that no two chains claim the same.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use envoy_types::pb::envoy::config::listener::v3 as pb;

use super::core::metadata as metadata_of;
use super::registry::registry;
use super::value::flag;
use super::{Cx, Lower, Side, discovered, starttls, unserved};
use crate::model::TransportSocket;
use crate::model::address::Cidr;
use crate::model::listener::{ChainMatch, FilterChain, HANDSHAKE_TIMEOUT, SourceType};
use crate::model::network_filter::{NetworkFilter, NetworkFilterConfig};

registry! { pb::FilterChain, pb::FilterChainMatch }

/// More combinations than this are not compared: a listener has some thousands.
const MOST_COMBINATIONS: usize = 4_000_000;

lower! { "envoy.config.listener.v3.FilterChain" pb::FilterChain => FilterChain, cx;
    read { filter_chain_match, filters, metadata, transport_socket, transport_socket_connect_timeout, name }
    warn {
        // Envoy reads it of the first chain only: the listener has taken it away there.
        use_proxy_proto: "has an effect in the first filter chain only: use the listener filter",
    }
    {
        let filter_chain_match = match filter_chain_match {
            Some(conditions) => cx.lower("filter_chain_match", conditions),
            None => Some(ChainMatch::default()),
        };
        let count = filters.len();
        let filters = cx.list("filters", filters);
        let complete = filters.len() == count;
        let mut filters = unserved::reachable(filters);
        if complete {
            cx.field("filters", |cx| {
                check_terminal(cx, &filters);
                discovered::places(cx, &mut filters);
            });
        }
        let transport_socket = match transport_socket {
            Some(socket) => cx.on(Side::Downstream, |cx| cx.lower("transport_socket", socket)),
            None => Some(TransportSocket::RawBuffer),
        };
        if complete {
            starttls::check(cx, &filters, transport_socket.as_ref());
        }
        let transport_socket_connect_timeout = cx.timeout(
            "transport_socket_connect_timeout",
            transport_socket_connect_timeout,
            Some(HANDSHAKE_TIMEOUT),
        );
        let metadata = metadata_of(cx, "metadata", metadata);
        complete.then_some(FilterChain {
            name: name.into(),
            filter_chain_match: filter_chain_match?,
            filters,
            transport_socket: transport_socket?,
            transport_socket_connect_timeout,
            metadata,
        })
    }
}

/// The last filter ends the chain and no other does. No filters at all are fine: the connection is closed.
fn check_terminal(cx: &mut Cx, filters: &[NetworkFilterConfig]) {
    for (index, filter) in filters.iter().enumerate() {
        if matches!(filter.filter, NetworkFilter::Discovered(_)) {
            // Nobody knows before it comes, as in Envoy.
            continue;
        }
        let last = index + 1 == filters.len();
        let why = match (filter.filter.is_terminal(), last) {
            (true, false) => "ends a filter chain: it must be its last filter",
            (false, true) => "does not end a filter chain: it cannot be its last filter",
            (true, true) | (false, false) => continue,
        };
        cx.index(index, |cx| cx.reject_here(format!("\"{}\" {why}", filter.name)));
    }
}

lower! { "envoy.config.listener.v3.FilterChainMatch" pb::FilterChainMatch => ChainMatch, cx;
    read {
        destination_port, prefix_ranges, direct_source_prefix_ranges, source_type, source_prefix_ranges,
        source_ports, server_names, transport_protocol, application_protocols
    }
    reject {
        address_suffix: "is not implemented, as in Envoy",
        suffix_len: "is not implemented, as in Envoy",
    }
    {
        use pb::filter_chain_match::ConnectionSourceType;
        let destination_port = destination_port.and_then(|port| cx.port_from_1("destination_port", port.value));
        let source_type = match cx.variant("source_type", source_type)? {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        };
        let ports = source_ports.into_iter();
        Some(ChainMatch {
            destination_port,
            prefix_ranges: cx.list("prefix_ranges", prefix_ranges),
            server_names: server_names_of(cx, server_names),
            transport_protocol: transport_protocol.into(),
            application_protocols: application_protocols.into_iter().map(Into::into).collect(),
            direct_source_prefix_ranges: cx.list("direct_source_prefix_ranges", direct_source_prefix_ranges),
            source_type,
            source_prefix_ranges: cx.list("source_prefix_ranges", source_prefix_ranges),
            source_ports: ports.filter_map(|port| cx.port_from_1("source_ports", port)).collect(),
        })
    }
}

/// Lower case; `.example.com` means what `*.example.com` does, and an empty name is none.
fn server_names_of(cx: &mut Cx, names: Vec<String>) -> Vec<Arc<str>> {
    if names.len() > 1 && names.iter().any(String::is_empty) {
        cx.reject("server_names", "an empty name matches everything: it cannot be one of several");
    }
    let mut lowered = Vec::with_capacity(names.len());
    for name in names {
        if name.contains('*') && !name.starts_with("*.") {
            cx.reject("server_names", format!("partial wildcards are not supported: {name:?}"));
        } else if name.starts_with('.') {
            lowered.push(format!("*{}", name.to_ascii_lowercase()).into());
        } else if !name.is_empty() {
            lowered.push(name.to_ascii_lowercase().into());
        }
    }
    lowered
}

/// Whether the first chain asks for a PROXY header, in the way that is older than the listener filter.
pub(super) fn take_use_proxy_proto(chains: &mut [pb::FilterChain]) -> bool {
    chains.first_mut().is_some_and(|first| flag(first.use_proxy_proto.take(), false))
}

/// Lowers the chains of a listener and refuses two that match the same connections equally well.
pub(super) fn lower_all(cx: &mut Cx, chains: Vec<pb::FilterChain>) -> Vec<FilterChain> {
    cx.field("filter_chains", |cx| {
        let mut claims = Claims::default();
        let mut lowered = Vec::with_capacity(chains.len());
        for (index, chain) in chains.into_iter().enumerate() {
            cx.index(index, |cx| {
                if let Some(chain) = chain.lower(cx) {
                    claims.add(cx, index, &chain.filter_chain_match);
                    lowered.push(chain);
                }
            });
        }
        lowered
    })
}

/// Every combination of values that the chains so far match.
///
/// Envoy refuses an overlap of single values, though each chain matches more than it.
#[derive(Default)]
struct Claims {
    values: HashMap<Value, u32>,
    taken: HashMap<[u32; 9], usize>,
    full: bool,
}

/// A value of one condition; `None` stands for its absence.
#[derive(PartialEq, Eq, Hash)]
enum Value {
    Port(u16),
    Range(Cidr),
    Text(Arc<str>),
    Source(SourceType),
}

impl Claims {
    fn add(&mut self, cx: &mut Cx, index: usize, conditions: &ChainMatch) {
        let dimensions = self.dimensions(conditions);
        let count = dimensions.iter().try_fold(1_usize, |count, ids| count.checked_mul(ids.len()));
        let room = MOST_COMBINATIONS - self.taken.len().min(MOST_COMBINATIONS);
        if self.full || count.is_none_or(|count| count > room) {
            if !self.full {
                cx.reject("filter_chain_match", "too many combinations of conditions in this listener");
            }
            self.full = true;
            return;
        }
        if let Some(other) = self.claim(index, &dimensions) {
            let why = if other == index {
                "has the same condition twice".to_owned()
            } else {
                format!("overlaps with that of filter_chains[{other}]: a connection could take either")
            };
            cx.reject("filter_chain_match", why);
        }
    }

    /// The ids of the values of each condition, in Envoy's order.
    fn dimensions(&mut self, m: &ChainMatch) -> [Vec<u32>; 9] {
        let ranges = |r: &[Cidr]| r.iter().copied().map(Value::Range).collect::<Vec<_>>();
        let texts = |t: &[Arc<str>]| t.iter().cloned().map(Value::Text).collect::<Vec<_>>();
        let transport = Some(&m.transport_protocol).filter(|t| !t.is_empty());
        [
            m.destination_port.map(Value::Port).into_iter().collect(),
            ranges(&m.prefix_ranges),
            texts(&m.server_names),
            transport.cloned().map(Value::Text).into_iter().collect(),
            texts(&m.application_protocols),
            ranges(&m.direct_source_prefix_ranges),
            vec![Value::Source(m.source_type)],
            ranges(&m.source_prefix_ranges),
            m.source_ports.iter().copied().map(Value::Port).collect(),
        ]
        .map(|values| self.ids(values))
    }

    /// 0 where there is no value.
    fn ids(&mut self, values: Vec<Value>) -> Vec<u32> {
        if values.is_empty() {
            return vec![0];
        }
        let ids = values.into_iter().map(|value| {
            let next = u32::try_from(self.values.len() + 1).unwrap_or(u32::MAX);
            *self.values.entry(value).or_insert(next)
        });
        ids.collect()
    }

    /// Takes all combinations; the chain that has one of them already, else `None`.
    fn claim(&mut self, index: usize, dimensions: &[Vec<u32>; 9]) -> Option<usize> {
        let mut at = [0_usize; 9];
        let mut reported = HashSet::new();
        loop {
            let combination = std::array::from_fn(|d| dimensions[d].get(at[d]).copied().unwrap_or(0));
            if let Some(other) = self.taken.insert(combination, index) {
                reported.insert(other);
            }
            let Some(d) = (0..9).rev().find(|d| at[*d] + 1 < dimensions[*d].len()) else {
                return reported.into_iter().min();
            };
            at[d] += 1;
            at[d + 1..].fill(0);
        }
    }
}
