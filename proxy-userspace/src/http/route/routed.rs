//! What is known of a request's route.

use std::sync::Arc;

use proxy_config::model::http::action::{ClusterName, ClusterSpecifier, HostRewrite, WeightedCluster};
use proxy_config::model::http::header::{HeaderEdit, HeaderEdits};
use proxy_config::model::http::{self as model, Action, PerFilters, RouteAction};
use proxy_config::model::metadata::{Metadata, Struct};

use super::edit::Edit;
use super::hash::Hashing;
use super::header_test::{HeaderTest, Name};
use super::reply::{Direct, Redirection, named_by};
use super::rewrite::{NewHost, NewPath};
use crate::http::filters::RouteFilters;
use crate::http::router::{Tallies, Tally};
use crate::http::{BuildError, RequestHead};
use crate::telemetry::HttpEntry;
use crate::telemetry::stats::Stats;
use crate::telemetry::trace::OfRoute;

/// The route of a request, with its virtual host and the cluster that was chosen for it. Made once for each choice.
pub struct Routed {
    pub(super) host: Arc<Host>,
    /// `None`: the virtual host wants TLS, and the request came without.
    pub(super) route: Option<Arc<Route>>,
    cluster: Cluster,
    metadata_match: Option<Arc<Struct>>,
    /// Of a weighted cluster: its edits, and its host, before anything of the other levels.
    pub(super) cluster_edit: Option<Arc<Edit>>,
    pub(super) cluster_host: Option<Arc<str>>,
    /// In the order in which they are done.
    pub(super) request: Box<[Arc<Edit>]>,
    pub(super) response: Box<[Arc<Edit>]>,
    filters: Arc<RouteFilters>,
}

/// What is the same for each cluster that a route may choose.
pub(super) struct Route {
    /// Of its virtual host.
    index: usize,
    name: Arc<str>,
    metadata: Option<Arc<Metadata>>,
    pub(super) path: Option<NewPath>,
    pub(super) rewrite: Option<NewHost>,
    pub(super) hashing: Option<Hashing>,
    pub(super) answer: Option<Answer>,
    tracing: Option<Arc<OfRoute>>,
    /// Where it has a `stat_prefix`, and forwards.
    tally: Option<Arc<Tally>>,
}

/// A route that does not forward.
pub(super) enum Answer {
    Redirect(Redirection),
    Direct(Direct),
}

/// What is the same for all routes of a virtual host.
pub(super) struct Host {
    model: Arc<model::RouteConfiguration>,
    index: usize,
    metadata: Option<Arc<Metadata>>,
    virtual_clusters: Box<[VirtualCluster]>,
    other: Arc<str>,
    edits: Level,
    filters: Arc<RouteFilters>,
}

/// Requests that are counted by themselves.
struct VirtualCluster {
    /// None of what no other one matches, as in Envoy.
    name: Option<Arc<str>>,
    tests: Box<[HeaderTest]>,
    tally: Arc<Tally>,
}

/// What a level does with headers; nothing where it is empty.
#[derive(Clone, Default)]
pub(super) struct Level {
    request: Option<Arc<Edit>>,
    response: Option<Arc<Edit>>,
}

enum Cluster {
    None,
    Name(Arc<str>),
    Header(Name),
}

impl Routed {
    pub fn name(&self) -> &Arc<str> {
        match &self.route {
            Some(route) => &route.name,
            None => &self.host.other,
        }
    }

    /// `None` of a redirect to TLS.
    pub fn model(&self) -> Option<&model::Route> {
        self.host()?.routes.get(self.route.as_ref()?.index)
    }

    /// Where requests go on.
    pub fn action(&self) -> Option<&RouteAction> {
        match &self.model()?.action {
            Action::Route(action) => Some(action),
            Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => None,
        }
    }

    pub fn host(&self) -> Option<&model::VirtualHost> {
        self.host.model()
    }

    pub fn configuration(&self) -> &Arc<model::RouteConfiguration> {
        &self.host.model
    }

    pub fn virtual_host(&self) -> Option<&Arc<str>> {
        self.host().map(|host| &host.name)
    }

    pub fn metadata(&self) -> Option<Arc<Metadata>> {
        self.route.as_ref()?.metadata.clone()
    }

    /// What it says of tracing, instead of its connection manager.
    pub fn tracing(&self) -> Option<&Arc<OfRoute>> {
        self.route.as_ref()?.tracing.as_ref()
    }

    pub fn virtual_host_metadata(&self) -> Option<Arc<Metadata>> {
        self.host.metadata.clone()
    }

    /// The cluster's name; `None` where a header should say it and does not, or where nothing is forwarded.
    pub fn cluster(&self, head: &RequestHead) -> Option<Arc<str>> {
        match &self.cluster {
            Cluster::None => None,
            Cluster::Name(name) => Some(name.clone()),
            Cluster::Header(name) => named_by(name, head),
        }
    }

    /// `envoy.lb` of the route and of the cluster that was chosen.
    pub fn metadata_match(&self) -> Option<&Struct> {
        self.metadata_match.as_deref()
    }

    /// What the weighted cluster, the route, the virtual host and all routes say to filters.
    pub fn filters(&self) -> &RouteFilters {
        &self.filters
    }

    /// Where a request is counted. Of virtual clusters the first that matches, whose name the entry then has.
    pub(crate) fn tallies(&self, http: &mut HttpEntry) -> Tallies {
        let head = &http.request;
        let matching = |one: &&VirtualCluster| one.tests.iter().all(|test| test.is_match(head));
        let found = self.host.virtual_clusters.iter().find(matching);
        if let Some(found) = found {
            http.virtual_cluster.clone_from(&found.name);
        }
        Tallies {
            virtual_cluster: found.map(|found| found.tally.clone()),
            route: self.route.as_ref().and_then(|route| route.tally.clone()),
        }
    }
}

impl VirtualCluster {
    fn all(host: &model::VirtualHost, stats: &Stats) -> Result<Box<[Self]>, BuildError> {
        let tally = |name: &str| stats.block(format!("vhost.{}.vcluster.{name}", host.name));
        let one = |model: &model::route::VirtualCluster| {
            let tests = HeaderTest::all(&model.headers)?;
            Ok(Self { name: Some(model.name.clone()), tests, tally: tally(&model.name) })
        };
        let mut all: Vec<Self> = host.virtual_clusters.iter().map(one).collect::<Result<_, BuildError>>()?;
        if !all.is_empty() {
            all.push(Self { name: None, tests: Box::default(), tally: tally(OTHER) });
        }
        Ok(all.into())
    }
}

/// The name of what no virtual cluster matches; it stands for a route's that has none, too.
const OTHER: &str = "other";

impl Host {
    pub(super) fn new(
        model: &Arc<model::RouteConfiguration>,
        index: usize,
        host: &model::VirtualHost,
        filters: &Arc<RouteFilters>,
        stats: &Stats,
    ) -> Result<Arc<Self>, BuildError> {
        Ok(Arc::new(Self {
            model: model.clone(),
            index,
            metadata: shared(&host.metadata),
            virtual_clusters: VirtualCluster::all(host, stats)?,
            other: OTHER.into(),
            edits: Level::new(&host.headers)?,
            filters: more(filters, &host.per_filter)?,
        }))
    }

    fn model(&self) -> Option<&model::VirtualHost> {
        self.model.virtual_hosts.get(self.index)
    }

    /// Of requests that have to come by TLS.
    pub(super) fn to_tls(self: &Arc<Self>) -> Arc<Routed> {
        Arc::new(Routed {
            host: self.clone(),
            route: None,
            cluster: Cluster::None,
            metadata_match: None,
            cluster_edit: None,
            cluster_host: None,
            request: Box::default(),
            response: Box::default(),
            filters: self.filters.clone(),
        })
    }
}

impl Level {
    pub(super) fn new(model: &HeaderEdits) -> Result<Self, BuildError> {
        let edit = |model: &HeaderEdit| match model.is_empty() {
            true => Ok(None),
            false => Edit::new(model).map(Arc::new).map(Some),
        };
        Ok(Self { request: edit(&model.request)?, response: edit(&model.response)? })
    }
}

impl Route {
    pub(super) fn new(
        index: usize,
        model: &model::Route,
        most: u32,
        tally: Option<Arc<Tally>>,
    ) -> Result<Arc<Self>, BuildError> {
        let mut route = Self {
            index,
            name: model.name.clone(),
            metadata: shared(&model.metadata),
            path: None,
            rewrite: None,
            hashing: None,
            answer: None,
            tracing: model.tracing.as_deref().map(OfRoute::new).transpose()?.map(Arc::new),
            tally,
        };
        let matched = &model.matcher.path;
        match &model.action {
            Action::Route(action) => {
                route.path = NewPath::of(action, matched)?;
                route.rewrite = NewHost::of(action)?;
                if !action.hash_policy.is_empty() {
                    route.hashing = Some(Hashing::new(&action.hash_policy)?);
                }
            }
            Action::Redirect(redirect) => {
                route.path = NewPath::of_redirect(redirect, matched)?;
                route.answer = Some(Answer::Redirect(Redirection::new(redirect)?));
            }
            Action::DirectResponse(direct) => route.answer = Some(Answer::Direct(Direct::new(direct, most)?)),
            Action::NonForwarding => {}
        }
        Ok(Arc::new(route))
    }
}

/// Makes what is found for each cluster that a route may choose.
pub(super) struct Maker<'a> {
    pub(super) all: &'a Level,
    pub(super) most_specific_wins: bool,
    pub(super) host: &'a Arc<Host>,
    pub(super) route: Arc<Route>,
    pub(super) model: &'a model::Route,
    pub(super) edits: Level,
}

impl Maker<'_> {
    /// Of a route without weighted clusters.
    pub(super) fn one(&self) -> Result<Arc<Routed>, BuildError> {
        let (cluster, metadata) = match &self.model.action {
            Action::Route(action) => {
                let cluster = match &action.cluster {
                    ClusterSpecifier::Cluster(name) => Cluster::Name(name.clone()),
                    ClusterSpecifier::Header(name) => Cluster::Header(Name::new(name)?),
                    ClusterSpecifier::Weighted(_) => Cluster::None,
                };
                (cluster, Some(&action.metadata_match))
            }
            Action::Redirect(_) | Action::DirectResponse(_) | Action::NonForwarding => (Cluster::None, None),
        };
        Ok(self.made(cluster, metadata, self.filters()?, &Level::default()))
    }

    /// Of one of its weighted clusters.
    pub(super) fn weighted(&self, model: &WeightedCluster) -> Result<Arc<Routed>, BuildError> {
        let cluster = match &model.cluster {
            ClusterName::Name(name) => Cluster::Name(name.clone()),
            ClusterName::Header(name) => Cluster::Header(Name::new(name)?),
        };
        let filters = more(&self.filters()?, &model.per_filter)?;
        let edits = Level::new(&model.headers)?;
        let mut made = self.made(cluster, Some(&model.metadata_match), filters, &edits);
        if let Some(routed) = Arc::get_mut(&mut made) {
            routed.cluster_host = model.host_rewrite.clone();
        }
        Ok(made)
    }

    fn filters(&self) -> Result<Arc<RouteFilters>, BuildError> {
        more(&self.host.filters, &self.model.per_filter)
    }

    fn made(
        &self,
        cluster: Cluster,
        metadata: Option<&Metadata>,
        filters: Arc<RouteFilters>,
        first: &Level,
    ) -> Arc<Routed> {
        let lb = metadata.and_then(|metadata| metadata.of("envoy.lb"));
        Arc::new(Routed {
            host: self.host.clone(),
            route: Some(self.route.clone()),
            cluster,
            metadata_match: lb.filter(|lb| !lb.is_empty()).cloned().map(Arc::new),
            cluster_edit: first.request.clone(),
            cluster_host: None,
            request: self.order(|level| level.request.as_ref()).cloned().collect(),
            response: first
                .response
                .iter()
                .chain(self.order(|level| level.response.as_ref()))
                .cloned()
                .collect(),
            filters,
        })
    }

    /// The levels that win go last.
    fn order<'l>(
        &'l self,
        of: impl Fn(&'l Level) -> Option<&'l Arc<Edit>>,
    ) -> impl Iterator<Item = &'l Arc<Edit>> {
        let mut levels = [&self.edits, &self.host.edits, self.all];
        if self.most_specific_wins {
            levels.reverse();
        }
        levels.into_iter().filter_map(of)
    }
}

/// Most levels say nothing to filters, and share what there is.
fn more(known: &Arc<RouteFilters>, level: &PerFilters) -> Result<Arc<RouteFilters>, BuildError> {
    if level.is_empty() { Ok(known.clone()) } else { known.with(level).map(Arc::new) }
}

fn shared(metadata: &Metadata) -> Option<Arc<Metadata>> {
    (!metadata.is_empty()).then(|| Arc::new(metadata.clone()))
}

/// Whether the endpoint's name takes the place of the host: the router knows it.
pub fn is_auto(action: &RouteAction) -> bool {
    matches!(action.host_rewrite, HostRewrite::Auto)
}
