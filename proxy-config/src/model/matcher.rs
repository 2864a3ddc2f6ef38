//! `type.matcher.v3`: strings, values and metadata.

use super::metadata::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct StringMatcher {
    pub pattern: StringPattern,
    /// ASCII case only, and never for a regex, as in Envoy.
    pub ignore_case: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum StringPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// Matches the whole text.
    SafeRegex(Regex),
}

/// A compiled regular expression, equal where its text is.
#[derive(Clone, Debug)]
pub struct Regex(regex::Regex);

impl Regex {
    /// Anchored at both ends, as RE2's full match.
    pub fn new(pattern: &str) -> Result<Self, regex::Error> {
        regex::RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(1 << 20).build().map(Self)
    }

    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl StringMatcher {
    pub fn is_match(&self, text: &str) -> bool {
        let fold = |s: &str| if self.ignore_case { s.to_ascii_lowercase() } else { s.to_owned() };
        match &self.pattern {
            StringPattern::SafeRegex(regex) => regex.is_match(text),
            StringPattern::Exact(p) if self.ignore_case => p.eq_ignore_ascii_case(text),
            StringPattern::Exact(p) => p == text,
            StringPattern::Prefix(p) => fold(text).starts_with(&fold(p)),
            StringPattern::Suffix(p) => fold(text).ends_with(&fold(p)),
            StringPattern::Contains(p) => fold(text).contains(&fold(p)),
        }
    }
}

/// `type.matcher.v3.MetadataMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct MetadataMatcher {
    pub filter: String,
    pub path: Vec<String>,
    pub value: ValueMatcher,
    pub invert: bool,
}

/// `type.matcher.v3.ValueMatcher`.
#[derive(Clone, Debug, PartialEq)]
pub enum ValueMatcher {
    Null,
    Double(DoubleMatcher),
    String(StringMatcher),
    Bool(bool),
    Present(bool),
    /// One element of the list matches.
    ListOneOf(Box<ValueMatcher>),
    Or(Vec<ValueMatcher>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DoubleMatcher {
    Exact(f64),
    /// From, inclusive; to, exclusive.
    Range(f64, f64),
}

impl ValueMatcher {
    pub fn is_match(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Self::Present(want), value) => *want == value.is_some(),
            (Self::Or(any), value) => any.iter().any(|m| m.is_match(value)),
            (Self::Null, Some(Value::Null)) => true,
            (Self::Double(DoubleMatcher::Exact(want)), Some(Value::Number(n))) => want == n,
            (Self::Double(DoubleMatcher::Range(from, to)), Some(Value::Number(n))) => from <= n && n < to,
            (Self::String(m), Some(Value::String(s))) => m.is_match(s),
            (Self::Bool(want), Some(Value::Bool(b))) => want == b,
            (Self::ListOneOf(m), Some(Value::List(list))) => list.iter().any(|v| m.is_match(Some(v))),
            (Self::Null | Self::Double(_) | Self::String(_) | Self::Bool(_) | Self::ListOneOf(_), _) => false,
        }
    }
}
