//! Protobuf messages into [`crate::model`]: every field is read, rejected or warned about, by name.
//!
//! A message that is lowered lists all its fields in one [`lower!`] table. The macro destructures without `..`,
//! so a field that a newer Envoy brings does not compile until somebody has decided about it. A test sets each
//! field in turn and fails unless the model changes or a diagnostic names it. The same tables are
//! `docs/config-support.md`.
//!
//! - **reject**: we cannot do it, and acting as if it were not there would be wrong or unsafe.
//! - **warn**: it is accepted and has no effect here; it is counted and listed. `--strict` makes it an error.

#![expect(deprecated, reason = "deprecated fields are fields: the tables name them too")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Path, Segment, Severity};
use crate::model::config_source::ConfigSourceKind;
pub use tls::StaticSecrets;

/// Where lowering stands, and what it has found.
#[derive(Debug, Default)]
pub struct Cx {
    path: Path,
    pub diagnostics: Vec<Diagnostic>,
    /// Clusters that the configuration says to be called by gRPC: whoever knows all clusters checks them.
    pub(crate) references: Vec<Reference>,
    side: Option<Side>,
    /// Rules of RBAC are about requests.
    requests: bool,
    /// Services by gRPC are called for requests: their clusters may be any.
    calls: bool,
    secrets: Option<Arc<StaticSecrets>>,
    dynamic: bool,
    /// A secret of the bootstrap is named, or `self`: elsewhere the same bytes may mean something else.
    pub(crate) depends_on_place: bool,
    /// Where it comes from.
    source: Option<ConfigSourceKind>,
}

/// A cluster that is named where only one of the bootstrap can be.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) cluster: Arc<str>,
    /// What to say where there is no such cluster.
    pub(crate) diagnostic: Diagnostic,
}

/// Whose connections a transport socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Of a filter chain.
    Downstream,
    /// Of a cluster.
    Upstream,
}

impl Cx {
    /// Starts at `path`.
    pub fn at(path: Path) -> Self {
        Self { path, ..Self::default() }
    }

    /// With the secrets that may be named without a source. Where nobody says which there are, all names are taken.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Option<Arc<StaticSecrets>>) -> Self {
        self.secrets = secrets;
        self
    }

    /// For what a control plane or a file sends: a filter that is known and not implemented does not spoil the rest
    /// of it, unless it decides who may do what.
    #[must_use]
    pub(crate) fn dynamic(self, source: Option<ConfigSourceKind>) -> Self {
        Self { dynamic: true, source, ..self }
    }

    /// What `self` says.
    pub(crate) fn own_source(&mut self) -> ConfigSourceKind {
        self.depends_on_place = true;
        self.source.clone().unwrap_or(ConfigSourceKind::Same)
    }

    pub(crate) fn is_dynamic(&self) -> bool {
        self.dynamic
    }

    /// Notes a cluster that must be one of the bootstrap.
    pub(crate) fn refer(&mut self, field: &'static str, cluster: &Arc<str>) {
        let why =
            format!("no cluster '{cluster}' of static_resources that needs no server for its own endpoints");
        let diagnostic =
            Diagnostic { severity: Severity::Error, position: None, path: self.path.field(field), why };
        self.references.push(Reference { cluster: cluster.clone(), diagnostic });
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` one segment deeper.
    pub fn within<T>(&mut self, segment: Segment, f: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(segment);
        let value = f(self);
        self.path.pop();
        value
    }

    pub fn field<T>(&mut self, name: &'static str, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Field(name.into()), f)
    }

    pub fn index<T>(&mut self, index: usize, f: impl FnOnce(&mut Self) -> T) -> T {
        self.within(Segment::Index(index), f)
    }

    /// Runs `f` where transport sockets are those of one side.
    pub(crate) fn on<T>(&mut self, side: Side, f: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.side.replace(side);
        let value = f(self);
        self.side = before;
        value
    }

    /// Runs `f` where services by gRPC are called for requests, and not for the configuration itself.
    pub(crate) fn for_calls<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.calls, true);
        let value = f(self);
        self.calls = before;
        value
    }

    /// Runs `f` where rules of RBAC are about requests, and not about connections.
    pub(crate) fn for_requests<T>(&mut self, f: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.requests, true);
        let value = f(self);
        self.requests = before;
        value
    }

    /// Refuses a field of the message at hand.
    pub fn reject(&mut self, field: &'static str, why: impl Into<String>) {
        let path = self.path.field(field);
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            position: None,
            path,
            why: why.into(),
        });
    }

    /// Accepts a field of the message at hand without effect.
    pub fn warn(&mut self, field: &'static str, why: impl Into<String>) {
        let path = self.path.field(field);
        self.diagnostics.push(Diagnostic {
            severity: Severity::Warning,
            position: None,
            path,
            why: why.into(),
        });
    }

    /// Refuses what the path points at.
    pub fn reject_here(&mut self, why: impl Into<String>) {
        let path = self.path.clone();
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            position: None,
            path,
            why: why.into(),
        });
    }

    pub fn warn_here(&mut self, why: impl Into<String>) {
        let path = self.path.clone();
        self.diagnostics.push(Diagnostic {
            severity: Severity::Warning,
            position: None,
            path,
            why: why.into(),
        });
    }

    pub fn failed(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Lowers a message in the field `name`.
    pub fn lower<M: Lower>(&mut self, name: &'static str, message: M) -> Option<M::Model> {
        self.field(name, |cx| message.lower(cx))
    }

    /// Lowers a required message in the field `name`.
    pub fn required<M: Lower>(&mut self, name: &'static str, message: Option<M>) -> Option<M::Model> {
        match message {
            Some(message) => self.lower(name, message),
            None => {
                self.reject(name, "is required");
                None
            }
        }
    }

    /// Lowers each message of a map, in the order of its keys; those that fail are left out, and have said why.
    pub fn map<M: Lower>(
        &mut self,
        name: &'static str,
        messages: HashMap<String, M>,
    ) -> BTreeMap<Arc<str>, M::Model> {
        let ordered: BTreeMap<_, _> = messages.into_iter().collect();
        self.field(name, |cx| {
            let lowered = ordered.into_iter().filter_map(|(key, message)| {
                let model = cx.within(Segment::Key(key.clone()), |cx| message.lower(cx))?;
                Some((key.into(), model))
            });
            lowered.collect()
        })
    }

    /// Lowers each message of a list; those that fail are left out, and have said why.
    pub fn list<M: Lower>(&mut self, name: &'static str, messages: Vec<M>) -> Vec<M::Model> {
        self.field(name, |cx| {
            let lowered = messages.into_iter().enumerate();
            let lowered = lowered.filter_map(|(i, message)| cx.index(i, |cx| message.lower(cx)));
            fitting(lowered.collect())
        })
    }
}

/// A collected list may live on in the allocation of the messages that it was made from, which are much larger.
pub(crate) fn fitting<T>(mut list: Vec<T>) -> Vec<T> {
    list.shrink_to_fit();
    list
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Read,
    Reject(&'static str),
    Warn(&'static str),
}

/// A message that can be lowered. Implemented by [`lower!`] only.
pub trait Lower: Sized {
    type Model;
    /// The full protobuf name.
    const NAME: &'static str;
    /// All fields; a `oneof` by its own name, since that is how it is destructured.
    const FIELDS: &'static [(&'static str, Status)];
    /// `None` only where an error was given.
    fn lower(self, cx: &mut Cx) -> Option<Self::Model>;
}

/// Whether a field was given, which for scalars means: is not the default.
pub trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

macro_rules! is_set_number {
    ($($t:ty),*) => { $(impl IsSet for $t {
        fn is_set(&self) -> bool {
            *self != <$t>::default()
        }
    })* };
}
is_set_number!(i32, u32, i64, u64, f32, f64);

/// Implements [`Lower`] for a message by the complete list of its fields.
///
/// ```text
/// lower! { "envoy.config.core.v3.TcpKeepalive" pb::TcpKeepalive => model::TcpKeepalive, cx;
///     read { keepalive_probes, keepalive_time, keepalive_interval }
///     reject { field: "why" }
///     warn { field: "why" }
///     { Some(model::TcpKeepalive { … }) }
/// }
/// ```
macro_rules! lower {
    ($name:literal $pb:path => $model:ty, $cx:ident;
     read { $($r:ident),* $(,)? }
     $(reject { $($x:ident: $xw:expr),* $(,)? })?
     $(warn { $($w:ident: $ww:expr),* $(,)? })?
     $body:block) => {
        impl $crate::lower::Lower for $pb {
            type Model = $model;
            const NAME: &'static str = $name;
            const FIELDS: &'static [(&'static str, $crate::lower::Status)] = &[
                $(($crate::lower::field_name(stringify!($r)), $crate::lower::Status::Read),)*
                $($(($crate::lower::field_name(stringify!($x)), $crate::lower::Status::Reject($xw)),)*)?
                $($(($crate::lower::field_name(stringify!($w)), $crate::lower::Status::Warn($ww)),)*)?
            ];
            fn lower(self, $cx: &mut $crate::lower::Cx) -> Option<$model> {
                let Self { $($r,)* $($($x,)*)? $($($w,)*)? } = self;
                $($(if $crate::lower::IsSet::is_set(&$x) { $cx.reject($crate::lower::field_name(stringify!($x)), $xw); })*)?
                $($(if $crate::lower::IsSet::is_set(&$w) { $cx.warn($crate::lower::field_name(stringify!($w)), $ww); })*)?
                $body
            }
        }
    };
}

/// A field's name as protobuf has it: without Rust's mark of a keyword.
pub(crate) const fn field_name(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

mod access_log;
mod bootstrap;
pub mod cluster;
mod config_source;
pub mod core;
mod discovered;
mod docs;
pub mod endpoint;
pub mod extension;
mod filter_chain;
mod grpc;
mod http;
mod listener;
mod listener_filter;
mod matcher;
mod network_filter;
mod rbac;
#[cfg(test)]
mod reflection;
mod refused;
pub mod registry;
mod starttls;
mod tls;
mod transport;
mod unserved;
mod value;

pub use docs::markdown;
pub use registry::messages;
pub(crate) use value::structure;
