//! `/shunt/match`: what would become of a connection. `/shunt/listeners`: all that can become of one.
//!
//! Both ask the snapshot that connections are served by, and the very code that serves them: the hand-off, the
//! listener filters' inspectors, the filter chain match.

mod words;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use hyper::StatusCode;
use proxy_config::model::cluster::Discovery;
use proxy_config::model::network_filter::NetworkFilter;
use proxy_config::model::{Address, FilterChain};
use serde_json::{Value, json};

use super::body::{Answer, pretty, text};
use super::query::Params;
use super::view::{ListenerView, View};
use crate::cluster::{Cluster, HealthFlag, Host, address_text};
use crate::listener::First;
use crate::net::Direction;
use crate::net::facts::Facts;
use crate::world::{Listener, Snapshot};

/// Endpoints that are listed of a cluster; all are counted.
const ENDPOINTS: usize = 100;

/// Of the range for documentation: a source that is no one's where none is given.
const NOBODY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOBODY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A connection that is asked about.
struct Question {
    destination: SocketAddr,
    source: SocketAddr,
    direction: Direction,
    /// The listener that it comes in by, where it is not the one of its direction.
    entry: Option<String>,
    first: First,
}

pub(super) fn answer(params: &Params, view: &dyn View) -> Answer {
    let question = match Question::parse(params) {
        Ok(question) => question,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    match view.snapshot() {
        Some(snapshot) => match question.answer(&snapshot, &view.listeners()) {
            Ok(found) => pretty(&found),
            Err(why) => text(StatusCode::NOT_FOUND, format!("{why}\n")),
        },
        None => unconfigured(),
    }
}

/// Every listener with its chains.
pub(super) fn listeners(view: &dyn View) -> Answer {
    let Some(snapshot) = view.snapshot() else { return unconfigured() };
    let bound = view.listeners();
    let all = snapshot.listeners().into_iter();
    let listeners: Vec<_> = all.map(|listener| shown(listener, &snapshot, &bound)).collect();
    pretty(&json!({ "listeners": listeners }))
}

fn unconfigured() -> Answer {
    text(StatusCode::NOT_FOUND, "there is no configuration: connections go where they were going\n")
}

impl Question {
    fn parse(params: &Params) -> Result<Self, String> {
        let destination = params.get("destination").ok_or("destination=IP:PORT is missing")?;
        let destination: SocketAddr =
            destination.parse().map_err(|_| format!("destination={destination}: not IP:PORT"))?;
        let source = match params.get("source") {
            None if destination.is_ipv4() => SocketAddr::new(NOBODY_V4, 1),
            None => SocketAddr::new(NOBODY_V6, 1),
            Some(source) => match (source.parse(), source.parse()) {
                (Ok(whole), _) => whole,
                (Err(_), Ok(ip)) => SocketAddr::new(ip, 1),
                (Err(_), Err(_)) => {
                    return Err(format!("source={source}: not IP:PORT, and not an IP address"));
                }
            },
        };
        let direction = match params.get("direction") {
            None | Some("outbound") => Direction::Outbound,
            Some("inbound") => Direction::Inbound,
            Some(other) => return Err(format!("direction={other}: neither inbound nor outbound")),
        };
        let entry = params.get("entry").map(str::to_owned);
        Ok(Self { destination, source, direction, entry, first: first(params)? })
    }

    fn answer(&self, snapshot: &Snapshot, bound: &[ListenerView]) -> Result<Value, String> {
        let mut facts = Facts::new(self.source, self.destination);
        let entry = match &self.entry {
            None => entry(snapshot, self.direction),
            Some(name) => {
                let mut all = snapshot.listeners().into_iter();
                let named = all.find(|listener| *listener.model.name == **name);
                Some(named.ok_or_else(|| format!("there is no listener {name}"))?)
            }
        };
        // What is captured has its destination restored; nothing else is handed on.
        facts.local_restored = entry.is_some();
        let mut out = json!({
            "destination": self.destination.to_string(),
            "source": self.source.to_string(),
            "entry": entry.map(|listener| listener.model.name.to_string()),
        });
        let mut problems = Vec::new();
        match meant((snapshot, bound), entry, &self.first, &mut facts) {
            Ok(Some((listener, how))) => {
                out["listener"] = json!({"name": *listener.model.name, "found": how});
                problems.extend(listener.waits_for().iter().map(|slot| format!("it waits for {slot}")));
                out["facts"] = facts_of(&facts);
                self.chain(snapshot, listener, &facts, &mut out, &mut problems);
            }
            Ok(None) => problems.push(format!("no listener accepts connections to {}", self.destination)),
            Err(why) => problems.push(format!("a listener filter refuses it: {why}")),
        }
        out["problems"] = json!(problems);
        Ok(out)
    }

    fn chain(
        &self,
        snapshot: &Snapshot,
        listener: &Listener,
        facts: &Facts,
        out: &mut Value,
        problems: &mut Vec<String>,
    ) {
        let Some(chain) = listener.chain_model(facts) else {
            problems.push("no filter chain matches: it is closed".to_owned());
            return;
        };
        let model = &listener.model;
        let is_default = model.default_filter_chain.as_ref().is_some_and(|one| std::ptr::eq(one, chain));
        out["chain"] = chain_of(chain, is_default);
        let mut clusters = words::clusters(chain);
        for config in &chain.filters {
            match &config.filter {
                NetworkFilter::SniCluster => {
                    if let Some(name) = facts.server_name.as_deref().filter(|name| !name.is_empty()) {
                        clusters = vec![(name, 1)];
                    }
                }
                NetworkFilter::Unserved(unserved) => {
                    problems.push(format!("{} is not served: {}", unserved.extension, unserved.why));
                }
                NetworkFilter::Discovered(_) => {
                    problems
                        .push(format!("filter {}: what ECDS says of it is not looked at here", config.name));
                }
                NetworkFilter::Rbac(_) => {
                    problems.push(format!("filter {} (rbac) is not asked here", config.name))
                }
                NetworkFilter::TcpProxy(_)
                | NetworkFilter::Http(_)
                | NetworkFilter::ConnectionLimit(_)
                | NetworkFilter::LocalRateLimit(_)
                | NetworkFilter::DirectResponse(_)
                | NetworkFilter::Echo
                | NetworkFilter::MetadataExchange(_)
                | NetworkFilter::IstioStats(_)
                | NetworkFilter::PostgresProxy(_)
                | NetworkFilter::SmtpStarttls(_) => {}
            }
        }
        let all = clusters.into_iter().map(|(name, weight)| {
            let mut shown = match snapshot.cluster(name) {
                Some(cluster) => cluster_of(cluster, facts.local, problems),
                None => {
                    problems.push(format!("cluster {name} is not there: it is closed"));
                    json!({"name": name, "missing": true})
                }
            };
            shown["weight"] = json!(weight);
            shown
        });
        out["clusters"] = all.collect();
    }
}

/// What the client sends first.
fn first(params: &Params) -> Result<First, String> {
    let short = |what: &str, text: &str| match text.len() {
        1..=255 => Ok(Arc::from(text)),
        _ => Err(format!("{what}={text}: not 1 to 255 bytes long")),
    };
    let server_name = params.get("sni").map(|name| short("sni", name)).transpose()?;
    let alpn = params.get("alpn").map(|list| list.split(',').map(|name| short("alpn", name)).collect());
    let alpn: Option<Vec<Arc<str>>> = alpn.transpose()?;
    if alpn.as_ref().is_some_and(|alpn| alpn.len() > 32) {
        return Err("alpn: more than 32 protocols".to_owned());
    }
    let tls = server_name.is_some() || alpn.is_some() || params.flag("tls");
    Ok(match (tls, params.flag("http")) {
        (true, true) => return Err("http is plain text: not with sni, alpn or tls".to_owned()),
        (true, false) => First::Tls { server_name, alpn: alpn.unwrap_or_default() },
        (false, true) => First::Http,
        (false, false) => First::Plain,
    })
}

/// Where captured connections of a direction come in: outbound ones by who hands on. A listener of one address or
/// port may have a direction as well, and takes no part in it.
fn entry(snapshot: &Snapshot, direction: Direction) -> Option<&Arc<Listener>> {
    let addresses = snapshot.listeners().into_iter().flat_map(|listener| &listener.model.addresses);
    let captured = addresses.filter_map(|at| match at.address {
        Address::Ip(address) => snapshot.captured(direction, address.port()),
        Address::Host(_) | Address::Pipe { .. } => None,
    });
    let mut candidates: Vec<_> = captured.collect();
    if let Some(found) = candidates.iter().find(|listener| listener.model.use_original_dst) {
        return Some(found);
    }
    let everywhere = |listener: &&Arc<Listener>| {
        listener.model.addresses.iter().any(|at| match at.address {
            Address::Ip(address) => address.ip().is_unspecified(),
            Address::Host(_) | Address::Pipe { .. } => false,
        })
    };
    candidates.retain(everywhere);
    match direction {
        Direction::Outbound => None,
        Direction::Inbound => candidates.first().copied(),
    }
}

/// The listener that serves it, and by what it was found; the same way as `net::conn` goes.
fn meant<'a>(
    (snapshot, bound): (&'a Snapshot, &[ListenerView]),
    entry: Option<&'a Arc<Listener>>,
    first: &First,
    facts: &mut Facts,
) -> Result<Option<(&'a Arc<Listener>, &'static str)>, String> {
    let look = |listener: &Listener, facts: &mut Facts| {
        listener
            .filters
            .look(first, facts)
            .map_err(|failure| format!("listener {}: {failure}", listener.model.name))
    };
    let Some(entry) = entry else {
        // Nothing is captured: only who listens there is there.
        let configured = snapshot.handoff(facts.local).filter(|listener| listener.model.bind_to_port);
        let found = configured.map(|listener| (listener, address_kind(listener, facts.local)));
        let listening = || listening(snapshot, bound, facts.local).map(|listener| (listener, "exact"));
        let Some((listener, how)) = found.or_else(listening) else { return Ok(None) };
        look(listener, facts)?;
        return Ok(Some((listener, how)));
    };
    look(entry, facts)?;
    let other = snapshot
        .handoff(facts.local)
        .filter(|other| entry.model.use_original_dst && facts.local_restored && !Arc::ptr_eq(other, entry));
    match other {
        Some(listener) => {
            let how = address_kind(listener, facts.local);
            look(listener, facts)?;
            Ok(Some((listener, how)))
        }
        None => Ok(Some((entry, "passthrough"))),
    }
}

/// Who listens at an address whose port was left to the kernel.
fn listening<'a>(
    snapshot: &'a Snapshot,
    bound: &[ListenerView],
    address: SocketAddr,
) -> Option<&'a Arc<Listener>> {
    let view = bound.iter().find(|view| view.addresses.contains(&address))?;
    snapshot.listeners().into_iter().find(|listener| listener.model.name == view.name)
}

fn address_kind(listener: &Listener, destination: SocketAddr) -> &'static str {
    let exact = listener.model.addresses.iter().any(|at| match &at.address {
        Address::Ip(address) => {
            address.port() == destination.port()
                && address.ip().to_canonical() == destination.ip().to_canonical()
        }
        Address::Host(_) | Address::Pipe { .. } => false,
    });
    if exact { "exact" } else { "wildcard" }
}

fn facts_of(facts: &Facts) -> Value {
    json!({
        "transport_protocol": facts.transport_protocol,
        "server_name": facts.server_name.as_deref(),
        "application_protocols": facts.application_protocols.iter().map(|name| &**name).collect::<Vec<_>>(),
    })
}

fn shown(listener: &Listener, snapshot: &Snapshot, bound: &[ListenerView]) -> Value {
    let model = &listener.model;
    let bound = bound.iter().find(|view| view.name == model.name);
    let configured = || model.addresses.iter().map(|at| address_text(&at.address).to_string()).collect();
    let addresses: Vec<String> = match bound {
        Some(view) => view.addresses.iter().map(ToString::to_string).collect(),
        None => configured(),
    };
    let chains = model.filter_chains.iter().map(|chain| (chain, false));
    let chains = chains.chain(model.default_filter_chain.as_ref().map(|chain| (chain, true)));
    let chain = |(chain, is_default): (&FilterChain, bool)| {
        let mut shown = chain_of(chain, is_default);
        let clusters = words::clusters(chain);
        shown["clusters"] = clusters.iter().map(|(name, _)| *name).collect();
        let missing: Vec<_> = clusters.iter().filter(|(name, _)| snapshot.cluster(name).is_none()).collect();
        if !missing.is_empty() {
            shown["missing"] = missing.iter().map(|(name, _)| *name).collect();
        }
        shown
    };
    json!({
        "name": *model.name,
        "addresses": addresses,
        "bound": model.bind_to_port,
        "use_original_dst": model.use_original_dst,
        "waits_for": listener.waits_for().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "chains": chains.map(chain).collect::<Vec<_>>(),
    })
}

fn chain_of(chain: &FilterChain, is_default: bool) -> Value {
    let filters = chain.filters.iter().map(|config| {
        let mut shown = json!({"name": *config.name, "filter": words::filter(&config.filter)});
        if let NetworkFilter::Unserved(unserved) = &config.filter {
            shown["unserved"] = json!(*unserved.why);
        }
        shown
    });
    json!({
        "name": *chain.name,
        "default": is_default,
        "match": words::criteria(&chain.filter_chain_match),
        "transport_socket": words::transport(&chain.transport_socket),
        "filters": filters.collect::<Vec<_>>(),
    })
}

fn cluster_of(cluster: &Arc<Cluster>, destination: SocketAddr, problems: &mut Vec<String>) -> Value {
    let model = &cluster.model;
    problems
        .extend(cluster.waits_for().iter().map(|what| format!("cluster {} waits for {what}", model.name)));
    let mut shown = json!({
        "name": *model.name,
        "type": words::discovery(&model.discovery),
        "transport_socket": words::transport(&model.transport_socket),
    });
    if let Discovery::OriginalDst(how) = &model.discovery {
        let port = how.upstream_port_override.unwrap_or(destination.port());
        shown["to"] = json!(SocketAddr::new(destination.ip(), port).to_string());
        return shown;
    }
    let hosts = cluster.hosts();
    let healthy = hosts.iter().filter(|host| flags(host).is_empty()).count();
    if healthy == 0 {
        problems.push(format!("cluster {} has no healthy endpoint, of {}", model.name, hosts.len()));
    }
    shown["healthy"] = json!(healthy);
    shown["total"] = json!(hosts.len());
    shown["endpoints"] = hosts.iter().take(ENDPOINTS).map(|host| endpoint_of(cluster, host)).collect();
    shown
}

fn flags(host: &Host) -> Vec<&'static str> {
    HealthFlag::ALL.iter().filter(|(flag, _)| host.has(*flag)).map(|(_, name)| *name).collect()
}

fn endpoint_of(cluster: &Cluster, host: &Arc<Host>) -> Value {
    let locality = &host.locality;
    let place = [&locality.region, &locality.zone, &locality.sub_zone].map(|part| &**part);
    let (matched, socket) = cluster.transport_socket(host);
    let mut shown = json!({
        "address": address_text(&host.address()).to_string(),
        "health": flags(host),
        "weight": host.weight(),
        "priority": host.priority(),
        "locality": place.join("/").trim_end_matches('/'),
    });
    if !host.hostname.is_empty() {
        shown["hostname"] = json!(*host.hostname);
    }
    if let Some(name) = matched {
        shown["transport_socket_match"] = json!(name);
        shown["transport_socket"] = json!(words::transport(socket));
    }
    shown
}

#[cfg(test)]
mod tests;
