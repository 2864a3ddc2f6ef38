//! `config.core.v3.Metadata` and `google.protobuf.Struct`.

use std::hash::{Hash, Hasher};

pub use super::map::Map;

/// By filter name, such as `envoy.lb`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata(pub Map<Struct>);

pub type Struct = Map<Value>;

/// A `google.protobuf.Value`. Numbers compare by their bits, so that values can be keys.
#[derive(Clone, Debug)]
pub enum Value {
    Null,
    Bool(bool),
    Number(f64),
    String(String),
    List(Vec<Value>),
    Struct(Struct),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Number(a), Self::Number(b)) => a.to_bits() == b.to_bits(),
            (Self::String(a), Self::String(b)) => a == b,
            (Self::List(a), Self::List(b)) => a == b,
            (Self::Struct(a), Self::Struct(b)) => a == b,
            (
                Self::Null
                | Self::Bool(_)
                | Self::Number(_)
                | Self::String(_)
                | Self::List(_)
                | Self::Struct(_),
                _,
            ) => false,
        }
    }
}

impl Eq for Value {}

impl Hash for Value {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Self::Null => {}
            Self::Bool(b) => b.hash(state),
            Self::Number(n) => n.to_bits().hash(state),
            Self::String(s) => s.hash(state),
            Self::List(list) => list.hash(state),
            Self::Struct(fields) => fields.hash(state),
        }
    }
}

impl Metadata {
    /// The struct under a filter's name.
    pub fn of(&self, filter: &str) -> Option<&Struct> {
        self.0.get(filter)
    }

    pub fn is_empty(&self) -> bool {
        self.0.values().all(Map::is_empty)
    }
}
