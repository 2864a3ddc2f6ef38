//! A discovered resource in its stages, as `/config_dump` shows it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use proxy_config::model::Raw;
use proxy_config::model::bootstrap::Resource;
use proxy_config::xds::RawResource;

use crate::admin::view::{DynamicView, ErrorView, ResourceView};
use crate::clock;

/// What was said of a resource, and when.
pub(super) struct Origin<T> {
    pub(super) resource: Resource<T>,
    pub(super) version: Arc<str>,
    pub(super) updated: SystemTime,
}

impl<T> Clone for Origin<T> {
    fn clone(&self) -> Self {
        let resource = Resource { model: self.resource.model.clone(), raw: self.resource.raw.clone() };
        Self { resource, version: self.version.clone(), updated: self.updated }
    }
}

impl<T> Origin<T> {
    pub(super) fn new(resource: Resource<T>, version: Arc<str>) -> Self {
        Self { resource, version, updated: clock::wall() }
    }

    pub(super) fn view(&self, name: &Arc<str>) -> ResourceView {
        ResourceView {
            name: name.clone(),
            raw: self.resource.raw.clone(),
            version: self.version.clone(),
            updated: self.updated,
        }
    }

    pub(super) fn is(&self, raw: &RawResource) -> bool {
        self.resource.raw.is(&raw.value)
    }
}

pub(super) fn refusal(raw: &RawResource, details: &str) -> ErrorView {
    ErrorView {
        raw: Raw::from(raw.value.as_ref()),
        version: raw.version.clone(),
        last_attempt: clock::wall(),
        details: details.to_owned(),
    }
}

/// Those that are there, by name, and those that there is nothing of but a refusal.
pub(super) fn with_errors(
    mut views: Vec<DynamicView>,
    errors: &HashMap<Arc<str>, ErrorView>,
) -> Vec<DynamicView> {
    let known: HashSet<_> = views.iter().map(|view| view.name.clone()).collect();
    let others = errors.iter().filter(|(name, _)| !known.contains(*name));
    views.extend(others.map(|(name, error)| DynamicView { error: Some(error.clone()), ..nothing(name) }));
    views.sort_by(|one, other| one.name.cmp(&other.name));
    views
}

pub(super) fn nothing(name: &Arc<str>) -> DynamicView {
    DynamicView { name: name.clone(), active: None, warming: None, draining: None, error: None }
}
