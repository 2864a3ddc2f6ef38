//! The elements of the lists, made one by one.

use std::sync::Arc;

use proxy_config::{dump, xds};
use serde_json::{Map, Value, json};

use super::super::view::{ErrorView, Kind, ResourceView, View};
use super::sections::{List, Source};
use super::{endpoints, routes, secrets};
use crate::clock;

pub(super) type Elements = Box<dyn Iterator<Item = Value> + Send>;

/// Those of a list whose names are wanted.
pub(super) fn elements(
    list: List,
    view: &Arc<dyn View>,
    wanted: impl Fn(&str) -> bool + Send + 'static,
) -> Elements {
    let dynamic = |kind| view.dynamic(kind).into_iter();
    match list.source {
        Source::Static(kind) => {
            let resources = view.resources(kind).into_iter().filter(move |r| wanted(&r.name));
            Box::new(resources.map(move |resource| of_bootstrap(kind, &resource)))
        }
        Source::Active(kind) => {
            let active = dynamic(kind).filter(move |one| wanted(&one.name));
            Box::new(active.filter_map(move |one| {
                let shown = versioned(kind, &one.active?);
                Some(with_error(shown, kind, one.error.as_ref()))
            }))
        }
        Source::WarmingClusters => {
            let kind = xds::Kind::Cluster;
            let warming = dynamic(kind).filter(move |one| wanted(&one.name));
            Box::new(warming.filter_map(move |one| {
                let shown = versioned(kind, &one.warming?);
                // What is in use has it.
                let error = if one.active.is_none() { one.error.as_ref() } else { None };
                Some(with_error(shown, kind, error))
            }))
        }
        Source::Listeners => {
            let kind = xds::Kind::Listener;
            let listeners = dynamic(kind).filter(move |one| wanted(&one.name));
            Box::new(listeners.map(move |one| {
                let mut shown = json!({"name": *one.name});
                let states = [
                    ("active_state", &one.active),
                    ("warming_state", &one.warming),
                    ("draining_state", &one.draining),
                ];
                for (field, state) in states {
                    if let Some(state) = state {
                        shown[field] = versioned(kind, state);
                    }
                }
                with_error(shown, kind, one.error.as_ref())
            }))
        }
        Source::InlineRoutes => {
            let routes = inline_routes(view);
            Box::new(routes.filter(move |(name, _)| wanted(name)).map(|(_, route)| route))
        }
        Source::Secrets { warming } => {
            let secrets = view.secrets().into_iter();
            let secrets = secrets.filter(move |s| s.loaded.is_none() == warming && wanted(&s.resource.name));
            Box::new(secrets.map(|secret| secrets::dynamic(&secret)))
        }
        Source::Endpoints { dynamic } => {
            let view = view.clone();
            let names = view.cluster_names().into_iter().filter(move |name| wanted(name));
            let clusters = names.filter_map(move |name| view.cluster(&name));
            let clusters = clusters.filter(move |cluster| cluster.added_via_api == dynamic);
            Box::new(clusters.map(|cluster| json!({"endpoint_config": endpoints::assignment(&cluster)})))
        }
        Source::Nothing => Box::new(std::iter::empty()),
    }
}

/// Of static and of dynamic listeners.
pub(super) fn inline_routes(view: &Arc<dyn View>) -> impl Iterator<Item = (String, Value)> + use<> {
    let of_static = view.resources(Kind::StaticListener).into_iter();
    let of_dynamic = view.dynamic(xds::Kind::Listener).into_iter().filter_map(|one| one.active);
    of_static.chain(of_dynamic).flat_map(|listener| routes::inline(&listener))
}

fn of_bootstrap(kind: Kind, resource: &ResourceView) -> Value {
    let (field, of) = match kind {
        Kind::StaticCluster => ("cluster", xds::Kind::Cluster),
        Kind::StaticListener => ("listener", xds::Kind::Listener),
        Kind::StaticSecret => {
            return json!({
                "name": *resource.name,
                "secret": message(secrets::SECRET, &resource.raw.bytes(), true),
            });
        }
    };
    json!({
        field: message(of.type_name(), &resource.raw.bytes(), true),
        "last_updated": clock::rfc3339(resource.updated),
    })
}

/// A resource with its version. An empty version is left out, as in Envoy's JSON.
fn versioned(kind: xds::Kind, resource: &ResourceView) -> Value {
    let field = match kind {
        xds::Kind::Cluster => "cluster",
        xds::Kind::Endpoints => "endpoint_config",
        xds::Kind::Listener => "listener",
        xds::Kind::Route => "route_config",
        xds::Kind::Secret => "secret",
        xds::Kind::Extension => "ecds_filter",
    };
    let mut out = Map::new();
    if !resource.version.is_empty() {
        out.insert("version_info".to_owned(), json!(*resource.version));
    }
    out.insert(field.to_owned(), message(kind.type_name(), &resource.raw.bytes(), true));
    out.insert("last_updated".to_owned(), json!(clock::rfc3339(resource.updated)));
    Value::Object(out)
}

/// With its `UpdateFailureState`, where there is one.
fn with_error(mut shown: Value, kind: xds::Kind, error: Option<&ErrorView>) -> Value {
    let Some(error) = error else { return shown };
    let mut state = Map::new();
    let raw = error.raw.bytes();
    if !raw.is_empty() {
        state.insert("failed_configuration".to_owned(), message(kind.type_name(), &raw, true));
    }
    state.insert("last_update_attempt".to_owned(), json!(clock::rfc3339(error.last_attempt)));
    state.insert("details".to_owned(), json!(error.details));
    if !error.version.is_empty() {
        state.insert("version_info".to_owned(), json!(*error.version));
    }
    shown["error_state"] = Value::Object(state);
    shown
}

/// A message as JSON; in an Any it has its type. One that cannot be shown says why.
pub(super) fn message(name: &str, raw: &[u8], any: bool) -> Value {
    let mut out = Map::new();
    if any {
        out.insert("@type".to_owned(), json!(format!("type.googleapis.com/{name}")));
    }
    match dump::json(name, raw) {
        Ok(Value::Object(fields)) => out.extend(fields),
        Ok(other) => return other,
        Err(why) => {
            log::warn!("admin: {name}: {why}");
            out.insert("error".to_owned(), json!(why));
        }
    }
    Value::Object(out)
}
