//! `config.route.v3.RouteConfiguration`, as far as it is known without HTTP.

use std::sync::Arc;

#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfiguration {
    pub name: Arc<str>,
}
