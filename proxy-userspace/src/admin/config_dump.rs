//! `/config_dump`: sections as Envoy has them, one resource at a time while the answer is read.

mod elements;
mod endpoints;
mod mask;
mod routes;
mod secrets;
mod sections;

use std::sync::Arc;

use hyper::StatusCode;
use hyper::body::Bytes;
use proxy_config::xds;
use regex::Regex;
use serde_json::{Value, json};

use self::elements::{Elements, message};
use self::mask::Mask;
use self::sections::{List, SECTIONS, Section, Shown, bootstrap_has};
use super::body::{Answer, Body, JSON, indented, reply, stream};
use super::query::Params;
use super::view::View;
use crate::clock;

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
        None => all(&terms, params.flag("include_eds")),
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
    let Some(list) = Section::list(resource, params.flag("include_eds")) else {
        return refusal(StatusCode::NOT_FOUND, format!("{resource} not found in config dump"));
    };
    if !terms.mask.paths().iter().all(|path| list.source.has(path)) {
        let why = format!("FieldMask {} could not be successfully used.", terms.mask);
        return refusal(StatusCode::BAD_REQUEST, why);
    }
    let of_type = format!("type.googleapis.com/envoy.admin.v3.{}", list.element);
    let mut elements = terms.elements(*list).peekable();
    if elements.peek().is_none() {
        return stream(JSON, chunk("{}\n"));
    }
    let elements = elements.map(move |element| {
        let Value::Object(fields) = terms.mask.apply(element) else { return json!({}) };
        let mut out = serde_json::Map::from_iter([("@type".to_owned(), json!(of_type))]);
        out.extend(fields);
        Value::Object(out)
    });
    let head = "{\n \"configs\": [".to_owned();
    stream(JSON, listed(head, elements, 2).chain(tail("\n ]\n}\n")))
}

fn all(terms: &Terms, include_eds: bool) -> Answer {
    let paths = terms.mask.paths();
    let mut parts: Vec<Box<dyn Iterator<Item = Bytes> + Send>> = Vec::new();
    if paths.iter().all(|path| bootstrap_has(path)) {
        parts.push(Box::new(tail(bootstrap(terms))));
    }
    for one in SECTIONS {
        if terms.shows(one, include_eds) && paths.iter().all(|path| one.has(path)) {
            let comma = if parts.is_empty() { "" } else { ",\n" };
            parts.push(Box::new(section(one, terms, comma)));
        }
    }
    if parts.is_empty() {
        let mask = terms.mask.text();
        let why = format!("FieldMask {mask} could not be successfully applied to any configs.");
        return refusal(StatusCode::BAD_REQUEST, why);
    }
    let head = chunk("{\n \"configs\": [\n");
    stream(JSON, head.chain(parts.into_iter().flatten()).chain(tail("\n ]\n}\n")))
}

impl Terms {
    fn shows(&self, section: &Section, include_eds: bool) -> bool {
        let kinds = [xds::Kind::Extension, xds::Kind::Route];
        let [extensions, routes] = kinds.map(|kind| !self.view.dynamic(kind).is_empty());
        match section.shown {
            Shown::Always => true,
            Shown::Asked => include_eds,
            Shown::Dynamic => {
                let inline = || elements::inline_routes(&self.view).next().is_some();
                routes || self.view.is_dynamic() || inline()
            }
            Shown::NotEmpty => extensions,
        }
    }

    fn elements(&self, list: List) -> Elements {
        let regex = self.name_regex.clone();
        let wanted = move |name: &str| regex.as_ref().is_none_or(|regex| regex.is_match(name));
        elements::elements(list, &self.view, wanted)
    }
}

/// The bootstrap's section, indented.
fn bootstrap(terms: &Terms) -> String {
    let (raw, updated) = terms.view.bootstrap();
    let message = message("envoy.config.bootstrap.v3.Bootstrap", &raw, false);
    let section = json!({"bootstrap": message, "last_updated": clock::rfc3339(updated)});
    let of_type = json!("type.googleapis.com/envoy.admin.v3.BootstrapConfigDump");
    let mut out = serde_json::Map::from_iter([("@type".to_owned(), of_type)]);
    if let Value::Object(fields) = terms.mask.apply(section) {
        out.extend(fields);
    }
    format!("  {}", indented(&Value::Object(out), 2))
}

fn section(
    section: &'static Section,
    terms: &Terms,
    comma: &str,
) -> impl Iterator<Item = Bytes> + Send + use<> {
    let name = section.name;
    let mut head = format!("{comma}  {{\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.{name}\"");
    let version = section.version.map(|kind| terms.view.version(kind)).filter(|version| !version.is_empty());
    if let Some(version) = version
        && terms.mask.covers("version_info")
    {
        head += &format!(",\n   \"version_info\": {}", json!(*version));
    }
    let terms = terms.clone();
    let mask = terms.mask.clone();
    let body = section.lists.iter().filter(move |list| mask.covers(list.field)).flat_map(move |list| {
        let mut elements = terms.elements(*list).peekable();
        // An empty list is not there at all.
        let any = elements.peek().is_some();
        let (head, close) = (format!(",\n   \"{}\": [", list.field), any.then(|| Bytes::from("\n   ]")));
        let head = if any { head } else { String::new() };
        listed(head, elements, 4).chain(close)
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

fn tail(text: impl Into<String>) -> impl Iterator<Item = Bytes> + Send {
    std::iter::once(Bytes::from(text.into()))
}

fn chunk(text: &'static str) -> impl Iterator<Item = Bytes> + Send {
    std::iter::once(Bytes::from_static(text.as_bytes()))
}

#[cfg(test)]
mod tests;
