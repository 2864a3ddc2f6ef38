//! Headers: what is added and taken away, what matches, and texts with command operators.

use std::fmt;
use std::sync::Arc;

use crate::format::{Piece, parse};
use crate::model::matcher::{Regex, StringMatcher};

/// Text with command operators that [`crate::format`] has taken.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Format(Arc<str>);

impl Format {
    /// `more` are operators that formatter extensions bring.
    pub fn new(text: &str, more: &[&str]) -> Result<Self, String> {
        crate::format::check_with(text, more)?;
        Ok(Self(text.into()))
    }

    /// A text that has no operators: what it says is what is meant.
    pub fn literal(text: &str) -> Self {
        Self(text.replace('%', "%%").into())
    }

    /// With its operators, and `%%` for a percent sign.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Text and operators, in turn.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        // It was parsed when it was made.
        parse(&self.0).unwrap_or_default()
    }

    /// The whole text where no operator is in it.
    pub fn constant(&self) -> Option<String> {
        let piece = |piece| match piece {
            Piece::Text(text) => Some(text),
            Piece::Operator { .. } => None,
        };
        self.pieces().into_iter().map(piece).collect()
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// `HeaderValueOption`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderOption {
    pub name: Arc<str>,
    pub value: Format,
    pub append: AppendAction,
    /// An empty value is added too.
    pub keep_empty_value: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppendAction {
    #[default]
    AppendIfExistsOrAdd,
    AddIfAbsent,
    OverwriteIfExistsOrAdd,
    OverwriteIfExists,
}

/// What one level (routes, virtual host, route, weighted cluster) does with headers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdits {
    pub request: HeaderEdit,
    pub response: HeaderEdit,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderEdit {
    /// Taken away first.
    pub remove: Vec<Arc<str>>,
    pub add: Vec<HeaderOption>,
}

impl HeaderEdits {
    pub fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty()
    }
}

impl HeaderEdit {
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// `config.common.mutation_rules.v3.HeaderMutation`.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderMutation {
    Remove(Arc<str>),
    Add(HeaderOption),
    RemoveOnMatch(StringMatcher),
}

/// `config.common.mutation_rules.v3.HeaderMutationRules`: which headers another may change.
#[derive(Clone, Debug, PartialEq)]
pub struct MutationRules {
    /// `host`, `:authority`, `:scheme`, `:method`. Default false.
    pub allow_all_routing: bool,
    /// Those that begin with `x-envoy`. Default false.
    pub allow_envoy: bool,
    /// No header that begins with a colon. Default false.
    pub disallow_system: bool,
    pub disallow_all: bool,
    pub allow_expression: Option<Regex>,
    pub disallow_expression: Option<Regex>,
    /// What is not allowed makes the request fail, instead of being left out.
    pub disallow_is_error: bool,
}

/// `config.route.v3.HeaderMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatcher {
    pub name: Arc<str>,
    pub matches: HeaderMatch,
    pub invert: bool,
    /// Else a header that is not there matches nothing, also inverted.
    pub treat_missing_as_empty: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum HeaderMatch {
    Present(bool),
    /// From, inclusive; to, exclusive; of a whole number in decimal.
    Range(i64, i64),
    String(StringMatcher),
}

impl HeaderMatcher {
    /// Of all values of the header, joined with commas; `None`: it is not there.
    pub fn is_match(&self, value: Option<&str>) -> bool {
        let Some(value) = value.or(self.treat_missing_as_empty.then_some("")) else {
            return matches!(self.matches, HeaderMatch::Present(present) if present == self.invert);
        };
        let matches = match &self.matches {
            HeaderMatch::Present(present) => *present,
            HeaderMatch::Range(from, to) => {
                value.parse().is_ok_and(|number: i64| (*from..*to).contains(&number))
            }
            HeaderMatch::String(matcher) => matcher.is_match(value),
        };
        matches != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::matcher::StringPattern;

    // As `HeaderUtility` of Envoy has it: what is not there matches only where that is asked for.
    #[test]
    fn matching() {
        let exact = |text: &str| {
            HeaderMatch::String(StringMatcher {
                pattern: StringPattern::Exact(text.into()),
                ignore_case: false,
            })
        };
        let table = [
            (HeaderMatch::Present(true), false, false, [false, true, true]),
            (HeaderMatch::Present(true), true, false, [true, false, false]),
            (HeaderMatch::Present(false), false, false, [true, false, false]),
            (HeaderMatch::Present(false), true, false, [false, true, true]),
            (exact("a"), false, false, [false, true, false]),
            (exact("a"), true, false, [false, false, true]),
            (exact("a"), true, true, [true, false, true]),
            (exact(""), false, true, [true, false, false]),
            (HeaderMatch::Range(-5, 7), false, false, [false, false, true]),
        ];
        for (matches, invert, treat_missing_as_empty, expected) in table {
            let matcher = HeaderMatcher { name: "x".into(), matches, invert, treat_missing_as_empty };
            let found = [None, Some("a"), Some("-5")].map(|value| matcher.is_match(value));
            assert_eq!(found, expected, "{matcher:?}");
        }
    }

    #[test]
    fn formats() {
        assert_eq!(Format::new("100%% of %PROTOCOL%", &[]).unwrap().constant(), None);
        assert_eq!(Format::new("100%%", &[]).unwrap().constant().as_deref(), Some("100%"));
        assert_eq!(Format::literal("100%").constant().as_deref(), Some("100%"));
        assert!(Format::new("%NOPE%", &[]).is_err());
    }
}
