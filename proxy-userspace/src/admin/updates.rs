//! `/shunt/updates`: what the last updates have changed. `/shunt/watch`: the same while it happens, a line each.

mod diff;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::StatusCode;
use hyper::body::Bytes;
use proxy_config::{dump, xds};
use serde_json::{Value, json};

use super::body::{Answer, Body, JSON, indented, reply, stream, text};
use super::query::Params;
use super::view::View;
use crate::clock;
use crate::world::history::{Change, Changed, History, Update, Watch};

/// `type=LDS`: of one type; `last`: the last of each; `after=N`: those with a greater number.
pub(super) fn answer(params: &Params, view: &dyn View) -> Answer {
    let Some(history) = view.history() else { return fixed() };
    let asked = match Asked::parse(params) {
        Ok(asked) => asked,
        Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    };
    let mut updates = history.after(asked.after);
    updates.retain(|update| asked.wants(update));
    if params.flag("last") {
        let all = updates.clone();
        updates.retain(|update| {
            let newer =
                |other: &Update| other.change.kind == update.change.kind && other.number > update.number;
            !all.iter().any(|other| newer(other))
        });
    }
    let head = std::iter::once(Bytes::from_static(b"{\n \"updates\": ["));
    let shown = updates.into_iter().enumerate().map(|(at, update)| {
        let comma = if at == 0 { "" } else { "," };
        Bytes::from(format!("{comma}\n  {}", indented(&whole(&update), 2)))
    });
    stream(JSON, head.chain(shown).chain(std::iter::once(Bytes::from_static(b"\n ]\n}\n"))))
}

/// Lines of JSON, one for each update that is kept (`after=N`: with a greater number), then for each that comes.
pub(super) fn watch(params: &Params, view: &dyn View) -> Answer {
    let Some(history) = view.history() else { return fixed() };
    match Asked::parse(params) {
        Ok(asked) => reply(
            StatusCode::OK,
            "application/x-ndjson",
            Body::Updates(Box::new(Follow::new(&history, asked))),
        ),
        Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
    }
}

fn fixed() -> Answer {
    text(StatusCode::NOT_FOUND, "this configuration takes no updates\n")
}

struct Asked {
    kind: Option<xds::Kind>,
    after: u64,
}

impl Asked {
    fn wants(&self, update: &Update) -> bool {
        self.kind.is_none_or(|kind| kind == update.change.kind)
    }

    fn parse(params: &Params) -> Result<Self, String> {
        let kind = params.get("type").map(|name| {
            let found = xds::Kind::ALL.into_iter().find(|kind| kind.service().eq_ignore_ascii_case(name));
            found.ok_or_else(|| format!("type={name}: not one of CDS, EDS, LDS, RDS, SDS, ECDS"))
        });
        let after =
            params.get("after").map(|after| after.parse().map_err(|_| format!("after={after}: no number")));
        Ok(Self { kind: kind.transpose()?, after: after.transpose()?.unwrap_or(0) })
    }
}

/// The body of `/shunt/watch`. It ends with the configuration.
pub(super) struct Follow {
    asked: Asked,
    next: Pin<Box<Next>>,
}

type Next = dyn Future<Output = Option<(Watch, Vec<Arc<Update>>)>> + Send;

impl Follow {
    fn new(history: &History, asked: Asked) -> Self {
        Self { next: next(history.watch(), asked.after), asked }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            let Some((watch, updates)) = ready!(self.next.as_mut().poll(cx)) else {
                // Not polled again after its end.
                self.next = Box::pin(std::future::ready(None));
                return Poll::Ready(None);
            };
            if let Some(last) = updates.last() {
                self.asked.after = last.number;
            }
            self.next = next(watch, self.asked.after);
            let wanted = updates.iter().filter(|update| self.asked.wants(update));
            let lines: String = wanted.map(|update| format!("{}\n", summary(update))).collect();
            if !lines.is_empty() {
                return Poll::Ready(Some(lines.into()));
            }
        }
    }
}

fn next(mut watch: Watch, after: u64) -> Pin<Box<Next>> {
    Box::pin(async move {
        let updates = watch.next(after).await?;
        Some((watch, updates))
    })
}

/// With names alone.
fn summary(update: &Update) -> Value {
    let Update { number, at, change } = update;
    let Change { kind, source, from, to, added, removed, changed, refused, nack } = change;
    let names = |names: &[Arc<str>]| -> Value { names.iter().map(|name| &**name).collect() };
    let refused = refused.iter().map(|one| json!({"name": *one.name, "why": *one.why}));
    json!({
        "number": number,
        "time": clock::rfc3339(*at),
        "type": kind.service(),
        "source": **source,
        "from": **from,
        "to": **to,
        "added": names(added),
        "removed": names(removed),
        "changed": changed.iter().map(|one| &*one.name).collect::<Vec<_>>(),
        "refused": refused.collect::<Vec<_>>(),
        "nack": nack.as_deref(),
    })
}

/// With the fields of what has changed.
fn whole(update: &Update) -> Value {
    let mut shown = summary(update);
    let kind = update.change.kind;
    shown["changed"] = update.change.changed.iter().map(|changed| fields(kind, changed)).collect();
    shown
}

fn fields(kind: xds::Kind, changed: &Changed) -> Value {
    let mut shown = json!({"name": *changed.name});
    let Some(messages) = &changed.messages else {
        shown["note"] = json!("too long to be kept");
        return shown;
    };
    let [before, after] = [&messages.0, &messages.1].map(|message| dump::json(kind.type_name(), message));
    match (before, after) {
        (Ok(before), Ok(after)) => {
            let found = diff::fields(&before, &after);
            if found.is_empty() {
                // Only what is masked is not in the dumps.
                shown["note"] = json!("what has changed is not shown");
            }
            shown["fields"] = Value::Array(found);
        }
        (Err(why), _) | (_, Err(why)) => shown["note"] = json!(why),
    }
    shown
}

#[cfg(test)]
mod tests;
