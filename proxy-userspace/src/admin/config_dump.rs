//! `/config_dump`: sections as Envoy has them, one resource at a time while the answer is read.

mod endpoints;
mod mask;
mod secrets;

use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::Bytes;
use proxy_config::dump;
use regex::Regex;
use serde_json::{Value, json};

use self::mask::Mask;
use super::body::{Answer, Body, JSON, indented, reply, stream};
use super::query::Params;
use super::view::{Kind, ResourceView, View};
use crate::clock;

/// A list of a section.
#[derive(Clone, Copy, PartialEq, Eq)]
struct List {
    field: &'static str,
    /// The message of an element, behind `envoy.admin.v3.`.
    element: &'static str,
    source: Source,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Resources(Kind),
    /// Of static clusters, or of those of CDS.
    Endpoints {
        dynamic: bool,
    },
    /// Of SDS: those in use, or those that are waited for.
    Secrets {
        warming: bool,
    },
}

const SECTIONS: &[(&str, &[List])] = &[
    (
        "ClustersConfigDump",
        &[
            list("static_clusters", "ClustersConfigDump.StaticCluster", Kind::StaticCluster),
            list("dynamic_active_clusters", "ClustersConfigDump.DynamicCluster", Kind::DynamicActiveCluster),
            list(
                "dynamic_warming_clusters",
                "ClustersConfigDump.DynamicCluster",
                Kind::DynamicWarmingCluster,
            ),
        ],
    ),
    (
        "EndpointsConfigDump",
        &[endpoints("static_endpoint_configs", false), endpoints("dynamic_endpoint_configs", true)],
    ),
    (
        "ListenersConfigDump",
        &[
            list("static_listeners", "ListenersConfigDump.StaticListener", Kind::StaticListener),
            list("dynamic_listeners", "ListenersConfigDump.DynamicListener", Kind::DynamicListener),
        ],
    ),
    (
        "SecretsConfigDump",
        &[
            list("static_secrets", "SecretsConfigDump.StaticSecret", Kind::StaticSecret),
            secrets("dynamic_active_secrets", false),
            secrets("dynamic_warming_secrets", true),
        ],
    ),
];

const fn list(field: &'static str, element: &'static str, kind: Kind) -> List {
    List { field, element, source: Source::Resources(kind) }
}

const fn endpoints(field: &'static str, dynamic: bool) -> List {
    let element = if dynamic {
        "EndpointsConfigDump.DynamicEndpointConfig"
    } else {
        "EndpointsConfigDump.StaticEndpointConfig"
    };
    List { field, element, source: Source::Endpoints { dynamic } }
}

const fn secrets(field: &'static str, warming: bool) -> List {
    List { field, element: "SecretsConfigDump.DynamicSecret", source: Source::Secrets { warming } }
}

/// What every element and section is put through.
#[derive(Clone)]
struct Terms {
    view: Arc<dyn View>,
    mask: Mask,
    name_regex: Option<Regex>,
}

pub(super) fn answer(params: &Params, view: &Arc<dyn View>) -> Answer {
    let regex = |text: &str| Regex::new(&format!("^(?:{text})$")).map_err(|_| text.to_owned());
    let name_regex = match params.get("name_regex").map(regex).transpose() {
        Ok(name_regex) => name_regex,
        Err(text) => {
            return refusal(
                StatusCode::BAD_REQUEST,
                format!(
                    "INVALID_ARGUMENT: Error while parsing name_regex from {text}: not a regular expression"
                ),
            );
        }
    };
    let mask = Mask::parse(params.get("mask").unwrap_or_default());
    let terms = Terms { view: view.clone(), mask, name_regex };
    match params.get("resource") {
        Some(resource) => of_resource(resource, params, terms),
        None => all(terms, params.flag("include_eds")),
    }
}

fn refusal(status: StatusCode, why: String) -> Answer {
    reply(status, "text/plain", Body::Whole(Some(why.into())))
}

fn of_resource(resource: &str, params: &Params, terms: Terms) -> Answer {
    if resource == "bootstrap" {
        let why = "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field";
        return refusal(StatusCode::BAD_REQUEST, why.to_owned());
    }
    let found = SECTIONS.iter().flat_map(|(_, lists)| *lists).find(|list| list.field == resource);
    let list = match found {
        Some(List { source: Source::Endpoints { .. }, .. }) if !params.flag("include_eds") => None,
        found => found,
    };
    let Some(list) = list else {
        return refusal(StatusCode::NOT_FOUND, format!("{resource} not found in config dump"));
    };
    if let Some(path) = terms.mask.foreign(ELEMENT_FIELDS) {
        let why = format!("FieldMask paths: \"{path}\"\n could not be successfully used.");
        return refusal(StatusCode::BAD_REQUEST, why);
    }
    let of_type = format!("type.googleapis.com/envoy.admin.v3.{}", list.element);
    let elements = elements(*list, &terms).map(move |element| {
        let Value::Object(fields) = terms.mask.apply(element) else { return json!({}) };
        let mut out = serde_json::Map::from_iter([("@type".to_owned(), json!(of_type))]);
        out.extend(fields);
        Value::Object(out)
    });
    let head = "{\n \"configs\": [".to_owned();
    stream(JSON, listed(head, elements, 2).chain(tail("\n ]\n}\n")))
}

const ELEMENT_FIELDS: &[&str] = &[
    "cluster",
    "listener",
    "secret",
    "endpoint_config",
    "last_updated",
    "version_info",
    "name",
    "active_state",
    "warming_state",
    "draining_state",
    "error_state",
    "client_status",
];

fn all(terms: Terms, include_eds: bool) -> Answer {
    let head = chunk("{\n \"configs\": [\n");
    let bootstrap = bootstrap(&terms);
    let mut first = bootstrap.is_none();
    let mut parts: Vec<Box<dyn Iterator<Item = Bytes> + Send>> = Vec::new();
    parts.extend(bootstrap.map(|section| Box::new(tail(section)) as Box<_>));
    for (name, lists) in SECTIONS {
        let wanted = lists.iter().any(|list| terms.mask.covers(list.field));
        if *name == "EndpointsConfigDump" && !include_eds || !wanted {
            continue;
        }
        let comma = if std::mem::take(&mut first) { "" } else { ",\n" };
        parts.push(Box::new(section(name, lists, &terms, comma)));
    }
    stream(JSON, head.chain(parts.into_iter().flatten()).chain(tail("\n ]\n}\n")))
}

/// The bootstrap's section, indented; `None` where the mask leaves nothing of it.
fn bootstrap(terms: &Terms) -> Option<String> {
    if !terms.mask.covers("bootstrap") {
        return None;
    }
    let (raw, updated) = terms.view.bootstrap();
    let message = message("envoy.config.bootstrap.v3.Bootstrap", &raw, false);
    let section = json!({"bootstrap": message, "last_updated": clock::rfc3339(updated)});
    let Value::Object(fields) = terms.mask.apply(section) else { return None };
    let of_type = json!("type.googleapis.com/envoy.admin.v3.BootstrapConfigDump");
    let mut out = serde_json::Map::from_iter([("@type".to_owned(), of_type)]);
    out.extend(fields);
    Some(format!("  {}", indented(&Value::Object(out), 2)))
}

fn section(
    name: &str,
    lists: &'static [List],
    terms: &Terms,
    comma: &str,
) -> impl Iterator<Item = Bytes> + Send + use<> {
    let head = format!("{comma}  {{\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.{name}\"");
    let terms = terms.clone();
    let mask = terms.mask.clone();
    let body = lists.iter().filter(move |list| mask.covers(list.field)).flat_map({
        move |list| {
            let mask = terms.mask.below(list.field);
            let mut elements = elements(*list, &terms).map(move |element| mask.apply(element)).peekable();
            // An empty list is not there at all.
            let any = elements.peek().is_some();
            let (head, close) = (format!(",\n   \"{}\": [", list.field), any.then(|| Bytes::from("\n   ]")));
            let head = if any { head } else { String::new() };
            listed(head, elements, 4).chain(close)
        }
    });
    tail(head).chain(body).chain(tail("\n  }"))
}

/// The head, then the elements by commas, each on lines of its own.
fn listed(
    head: String,
    elements: impl Iterator<Item = Value> + Send,
    indent: usize,
) -> impl Iterator<Item = Bytes> + Send {
    let element = move |(at, element): (usize, Value)| {
        let comma = if at == 0 { "" } else { "," };
        Bytes::from(format!("{comma}\n{}{}", " ".repeat(indent), indented(&element, indent)))
    };
    tail(head).chain(elements.enumerate().map(element))
}

/// The elements of a list, made one by one.
fn elements(list: List, terms: &Terms) -> Box<dyn Iterator<Item = Value> + Send> {
    let wanted = {
        let regex = terms.name_regex.clone();
        move |name: &str| regex.as_ref().is_none_or(|regex| regex.is_match(name))
    };
    match list.source {
        Source::Secrets { warming } => {
            let secrets = terms.view.secrets().into_iter();
            let secrets = secrets.filter(move |s| s.loaded.is_none() == warming && wanted(&s.resource.name));
            Box::new(secrets.map(|secret| secrets::dynamic(&secret)))
        }
        Source::Resources(kind) => {
            let resources = terms.view.resources(kind).into_iter().filter(move |r| wanted(&r.name));
            Box::new(resources.map(move |resource| element(kind, &resource)))
        }
        Source::Endpoints { dynamic } => {
            let view = terms.view.clone();
            let clusters = terms.view.cluster_names().into_iter().filter_map(move |name| view.cluster(&name));
            let clusters = clusters.filter(move |c| c.added_via_api == dynamic && wanted(&c.model.name));
            Box::new(clusters.map(|cluster| json!({"endpoint_config": endpoints::assignment(&cluster)})))
        }
    }
}

fn element(kind: Kind, resource: &ResourceView) -> Value {
    let updated = clock::rfc3339(resource.updated);
    let (cluster, listener) = ("envoy.config.cluster.v3.Cluster", "envoy.config.listener.v3.Listener");
    match kind {
        Kind::StaticCluster => {
            json!({"cluster": message(cluster, &resource.raw.bytes(), true), "last_updated": updated})
        }
        Kind::StaticListener => {
            json!({"listener": message(listener, &resource.raw.bytes(), true), "last_updated": updated})
        }
        Kind::StaticSecret => {
            json!({"name": *resource.name, "secret": message(secrets::SECRET, &resource.raw.bytes(), true)})
        }
        Kind::DynamicActiveCluster | Kind::DynamicWarmingCluster => json!({
            "version_info": *resource.version,
            "cluster": message(cluster, &resource.raw.bytes(), true),
            "last_updated": updated,
        }),
        Kind::DynamicListener => json!({
            "name": *resource.name,
            "active_state": {
                "version_info": *resource.version,
                "listener": message(listener, &resource.raw.bytes(), true),
                "last_updated": updated,
            },
        }),
    }
}

/// A message as JSON; in an Any it has its type. One that cannot be shown says why.
fn message(name: &str, raw: &[u8], any: bool) -> Value {
    let mut out = serde_json::Map::new();
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

fn tail(text: impl Into<String>) -> impl Iterator<Item = Bytes> + Send {
    std::iter::once(Bytes::from(text.into()))
}

fn chunk(text: &'static str) -> impl Iterator<Item = Bytes> + Send {
    std::iter::once(Bytes::from_static(text.as_bytes()))
}
