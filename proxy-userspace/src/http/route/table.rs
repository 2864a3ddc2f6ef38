//! A route configuration, compiled.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use proxy_config::model::http as model;
use proxy_config::model::http::action::{Action, ClusterSpecifier, WeightedChoice, WeightedClusters};
use proxy_config::model::http::route::RequireTls;

use super::header_test::{Name, header_name};
use super::hosts::Hosts;
use super::matcher::Matcher;
use super::routed::{Host, Level, Maker, Route, Routed};
use crate::http::filters::RouteFilters;
use crate::http::router::Tally;
use crate::http::{BuildError, RequestHead, Scheme, Stream};
use crate::telemetry::Entry;
use crate::telemetry::stats::Stats;

/// A compiled `RouteConfiguration`.
pub struct Routes {
    pub model: Arc<model::RouteConfiguration>,
    hosts: Hosts,
    /// By virtual host.
    tables: Box<[Table]>,
    host_header: Option<Name>,
    internal_only: Box<[HeaderName]>,
}

/// The routes of a virtual host.
struct Table {
    require_tls: RequireTls,
    to_tls: Arc<Routed>,
    routes: Box<[Candidate]>,
}

struct Candidate {
    matcher: Matcher,
    choice: Choice,
}

enum Choice {
    One(Arc<Routed>),
    Weighted(Weighted),
}

struct Weighted {
    /// By the end of each one's share.
    clusters: Box<[(u64, Arc<Routed>)]>,
    total: u64,
    by: WeightedBy,
}

enum WeightedBy {
    Random,
    Header(Name),
    Hash,
}

impl Routes {
    pub fn new(model: Arc<model::RouteConfiguration>, stats: &Stats) -> Result<Arc<Self>, BuildError> {
        let all = Level::new(&model.headers)?;
        let filters = Arc::new(RouteFilters::new(&model.per_filter)?);
        let host = |(index, host): (usize, &model::VirtualHost)| {
            let named = |error: BuildError| BuildError(format!("virtual host {}: {error}", host.name));
            let shared = Host::new(&model, index, host, &filters, stats).map_err(named)?;
            Table::new(&model, host, &shared, (&all, stats)).map_err(named)
        };
        Ok(Arc::new(Self {
            hosts: Hosts::new(&model),
            tables: model.virtual_hosts.iter().enumerate().map(host).collect::<Result<_, _>>()?,
            host_header: model.vhost_header.as_deref().map(Name::new).transpose()?,
            internal_only: model
                .internal_only_headers
                .iter()
                .map(|name| header_name(name))
                .collect::<Result<_, _>>()?,
            model,
        }))
    }

    /// What the routes say of a request; none where no route matches.
    pub fn find(&self, stream: &Stream) -> Option<Arc<Routed>> {
        self.look(&stream.entry, stream.random)
    }

    /// Taken from requests of clients that are not internal.
    pub fn internal_only_headers(&self) -> &[HeaderName] {
        &self.internal_only
    }

    pub(super) fn look(&self, entry: &Entry, random: u64) -> Option<Arc<Routed>> {
        let http = entry.http.as_deref()?;
        let table = self.tables.get(self.host(&http.request)?)?;
        if table.wants_tls(&http.request) {
            return Some(table.to_tls.clone());
        }
        let mut routes = table.routes.iter();
        let found = routes.find(|route| route.matcher.is_match(entry, http, random))?;
        Some(found.choice.take(entry, random))
    }

    fn host(&self, head: &RequestHead) -> Option<usize> {
        if self.hosts.is_single() {
            return self.hosts.any();
        }
        let Some(header) = &self.host_header else { return self.hosts.find(&head.authority) };
        let value = header.first(head)?;
        self.hosts.find(&String::from_utf8_lossy(&value))
    }
}

impl Table {
    fn new(
        all: &Arc<model::RouteConfiguration>,
        host: &model::VirtualHost,
        shared: &Arc<Host>,
        (level, stats): (&Level, &Stats),
    ) -> Result<Self, BuildError> {
        let candidate = |(index, route): (usize, &model::Route)| {
            let named = |error: BuildError| match &*route.name {
                "" => BuildError(format!("route {index}: {error}")),
                name => BuildError(format!("route {name}: {error}")),
            };
            let tally = route.stat_prefix.as_ref();
            let tally = tally.map(|prefix| stats.block(format!("vhost.{}.route.{prefix}", host.name)));
            Candidate::new(all, shared, level, (index, route, tally)).map_err(named)
        };
        Ok(Self {
            require_tls: host.require_tls,
            to_tls: shared.to_tls(),
            routes: host.routes.iter().enumerate().map(candidate).collect::<Result<_, _>>()?,
        })
    }

    fn wants_tls(&self, head: &RequestHead) -> bool {
        let is_internal =
            || head.headers.get("x-envoy-internal").is_some_and(|value| value.as_bytes() == b"true");
        match self.require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => !is_https(head) && !is_internal(),
            RequireTls::All => !is_https(head),
        }
    }
}

/// By what the connection was, not by what the request says.
fn is_https(head: &RequestHead) -> bool {
    match head.headers.get("x-forwarded-proto").map(HeaderValue::as_bytes) {
        Some(proto) => proto == b"https",
        None => head.scheme == Scheme::Https,
    }
}

impl Candidate {
    fn new(
        all: &Arc<model::RouteConfiguration>,
        host: &Arc<Host>,
        level: &Level,
        (index, model, tally): (usize, &model::Route, Option<Arc<Tally>>),
    ) -> Result<Self, BuildError> {
        let maker = Maker {
            all: level,
            most_specific_wins: all.most_specific_header_mutations_wins,
            host,
            route: Route::new(index, model, all.max_direct_response_body_size_bytes, tally)?,
            model,
            edits: Level::new(&model.headers)?,
        };
        let choice = match &model.action {
            Action::Route(action) => match &action.cluster {
                ClusterSpecifier::Weighted(weighted) => Choice::Weighted(Weighted::new(weighted, &maker)?),
                ClusterSpecifier::Cluster(_) | ClusterSpecifier::Header(_) => Choice::One(maker.one()?),
            },
            Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => {
                Choice::One(maker.one()?)
            }
        };
        let matcher = Matcher::new(&model.matcher, all.ignore_path_parameters_in_path_matching)?;
        Ok(Self { matcher, choice })
    }
}

impl Choice {
    fn take(&self, entry: &Entry, random: u64) -> Arc<Routed> {
        match self {
            Self::One(routed) => routed.clone(),
            Self::Weighted(weighted) => weighted.take(entry, random),
        }
    }
}

impl Weighted {
    fn new(model: &WeightedClusters, maker: &Maker<'_>) -> Result<Self, BuildError> {
        let mut end = 0;
        let share = |cluster| {
            let routed = maker.weighted(cluster)?;
            end += u64::from(cluster.weight);
            Ok((end, routed))
        };
        let clusters: Box<[_]> = model.clusters.iter().map(share).collect::<Result<_, BuildError>>()?;
        if clusters.last().is_none_or(|(end, _)| *end == 0) {
            return Err(BuildError("no weighted cluster has a weight".into()));
        }
        let by = match &model.choice {
            WeightedChoice::Random => WeightedBy::Random,
            WeightedChoice::Header(name) => WeightedBy::Header(Name::new(name)?),
            WeightedChoice::HashPolicy => WeightedBy::Hash,
        };
        Ok(Self { total: clusters.last().map_or(1, |(end, _)| *end), clusters, by })
    }

    fn take(&self, entry: &Entry, random: u64) -> Arc<Routed> {
        let value = self.value(entry).unwrap_or(random) % self.total;
        let found = self.clusters.iter().find(|(end, _)| value < *end);
        // The last one's end is the total.
        let (_, routed) = found.unwrap_or(&self.clusters[self.clusters.len() - 1]);
        routed.clone()
    }

    /// What is said of the choice, if anything: else it is made at random.
    fn value(&self, entry: &Entry) -> Option<u64> {
        match &self.by {
            WeightedBy::Random => None,
            WeightedBy::Header(name) => {
                let value = name.of(&entry.http.as_deref()?.request)?;
                // Several values, joined, are no number.
                std::str::from_utf8(&value).ok()?.trim().parse().ok()
            }
            WeightedBy::Hash => {
                let (_, routed) = self.clusters.first()?;
                routed.route.as_ref()?.hashing.as_ref()?.hash(entry, None)
            }
        }
    }
}
