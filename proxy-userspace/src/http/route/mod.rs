//! Routes: a configuration compiled into tables, and what it says of a request.

mod slot;

use std::sync::Arc;

use proxy_config::model::Metadata;
use proxy_config::model::http as model;

pub use self::slot::{RouteSlot, RouteSlots};
use super::filters::RouteFilters;
use super::{BuildError, Stream};

/// A compiled `RouteConfiguration`.
pub struct Routes {
    pub model: Arc<model::RouteConfiguration>,
    filters: RouteFilters,
}

/// The route of a request, with the virtual host that it is of.
pub struct Routed {
    routes: Arc<Routes>,
    host: usize,
    route: usize,
    name: Arc<str>,
}

impl Routes {
    pub fn new(model: Arc<model::RouteConfiguration>) -> Result<Arc<Self>, BuildError> {
        let mut filters = RouteFilters::new(&model.per_filter)?;
        if let Some(host) = model.virtual_hosts.first() {
            filters = filters.with(&host.per_filter)?;
            if let Some(route) = host.routes.first() {
                filters = filters.with(&route.per_filter)?;
            }
        }
        Ok(Arc::new(Self { model, filters }))
    }

    /// What the routes say of a request; none where no route matches.
    pub fn find(self: Arc<Self>, stream: &Stream) -> Option<Arc<Routed>> {
        let _ = stream;
        let host = self.model.virtual_hosts.first()?;
        let name = host.routes.first()?.name.clone();
        Some(Arc::new(Routed { routes: self, host: 0, route: 0, name }))
    }
}

impl Routed {
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it says to filters.
    pub fn filters(&self) -> &RouteFilters {
        &self.routes.filters
    }

    pub fn model(&self) -> Option<&model::Route> {
        self.host()?.routes.get(self.route)
    }

    pub fn host(&self) -> Option<&model::VirtualHost> {
        self.routes.model.virtual_hosts.get(self.host)
    }

    pub fn virtual_host(&self) -> Option<&Arc<str>> {
        self.host().map(|host| &host.name)
    }

    pub fn metadata(&self) -> Option<Arc<Metadata>> {
        None
    }

    pub fn virtual_host_metadata(&self) -> Option<Arc<Metadata>> {
        None
    }
}
