//! `mask=`: a `google.protobuf.FieldMask`.

use std::fmt;

use serde_json::{Map, Value};

/// Paths that are kept; none: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mask(Vec<Vec<String>>);

impl Mask {
    pub(super) fn parse(text: &str) -> Self {
        let paths = text.split(',').filter(|path| !path.is_empty());
        Self(paths.map(|path| path.split('.').map(str::to_owned).collect()).collect())
    }

    /// Whether anything of that field is kept.
    pub(super) fn covers(&self, field: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|path| path.first().is_some_and(|first| first == field))
    }

    pub(super) fn paths(&self) -> &[Vec<String>] {
        &self.0
    }

    /// As it was given.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|path| path.join(".")).collect::<Vec<_>>().join(",")
    }

    /// What holds within a field.
    pub(super) fn below(&self, field: &str) -> Self {
        let mut rest = Vec::new();
        for path in self.0.iter().filter(|path| path.first().is_some_and(|first| first == field)) {
            match path.get(1..) {
                // The whole field.
                None | Some([]) => return Self::default(),
                Some(tail) => rest.push(tail.to_vec()),
            }
        }
        Self(rest)
    }

    /// An Any keeps its type.
    pub(super) fn apply(&self, value: Value) -> Value {
        if self.0.is_empty() {
            return value;
        }
        match value {
            Value::Object(fields) => {
                let kept = fields.into_iter().filter(|(name, _)| name == "@type" || self.covers(name));
                let kept = kept.map(|(name, value)| {
                    let below = self.below(&name);
                    (name, below.apply(value))
                });
                Value::Object(kept.collect::<Map<_, _>>())
            }
            Value::Array(list) => Value::Array(list.into_iter().map(|element| self.apply(element)).collect()),
            scalar @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => scalar,
        }
    }
}

/// As protobuf writes the message.
impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|path| writeln!(f, "paths: \"{}\"", path.join(".")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_what_is_named() {
        let value = json!({"cluster": {"@type": "t", "name": "a", "type": "STATIC"}, "last_updated": "now"});
        for (mask, want) in [
            ("", value.clone()),
            ("cluster.name", json!({"cluster": {"@type": "t", "name": "a"}})),
            ("cluster", json!({"cluster": {"@type": "t", "name": "a", "type": "STATIC"}})),
            (
                "last_updated,cluster.type",
                json!({"cluster": {"@type": "t", "type": "STATIC"}, "last_updated": "now"}),
            ),
        ] {
            assert_eq!(Mask::parse(mask).apply(value.clone()), want, "{mask}");
        }
        let mask = Mask::parse("foo.bar,,a");
        assert_eq!(
            (mask.text().as_str(), mask.to_string().as_str()),
            ("foo.bar,a", "paths: \"foo.bar\"\npaths: \"a\"\n")
        );
    }
}
