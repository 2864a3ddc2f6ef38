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

    /// The groups of a text that matches as a whole.
    pub fn captures<'t>(&self, text: &'t str) -> Option<regex::Captures<'t>> {
        self.0.captures(text)
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
        let bytes = text.as_bytes();
        match &self.pattern {
            StringPattern::SafeRegex(regex) => regex.is_match(text),
            StringPattern::Exact(p) => self.is(bytes, p),
            StringPattern::Prefix(p) => bytes.get(..p.len()).is_some_and(|start| self.is(start, p)),
            StringPattern::Suffix(p) => {
                bytes.len().checked_sub(p.len()).is_some_and(|from| self.is(&bytes[from..], p))
            }
            StringPattern::Contains(p) if !self.ignore_case => text.contains(p),
            StringPattern::Contains(p) => {
                p.is_empty() || bytes.windows(p.len()).any(|window| self.is(window, p))
            }
        }
    }

    fn is(&self, text: &[u8], pattern: &str) -> bool {
        match self.ignore_case {
            true => text.eq_ignore_ascii_case(pattern.as_bytes()),
            false => text == pattern.as_bytes(),
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

/// `type.matcher.v3.RegexMatchAndSubstitute`: every match, anywhere in a text, is replaced.
#[derive(Clone, Debug)]
pub struct RegexSubstitution {
    regex: regex::Regex,
    substitution: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `\1`; `\0` is the whole match.
    Group(usize),
}

impl RegexSubstitution {
    /// The substitution as RE2 has it.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, String> {
        let regex =
            regex::RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|e| e.to_string())?;
        let substitution = parts(substitution)?;
        let group = |part: &Part| match part {
            Part::Group(group) => Some(*group),
            Part::Text(_) => None,
        };
        let most = substitution.iter().filter_map(group).max().unwrap_or_default();
        let groups = regex.captures_len() - 1;
        if most > groups {
            return Err(format!("the substitution asks for group {most}, and the expression has {groups}"));
        }
        Ok(Self { regex, substitution })
    }

    pub fn replace_all(&self, text: &str) -> String {
        let replaced = self.regex.replace_all(text, |found: &regex::Captures<'_>| {
            let part = |part: &Part| match part {
                Part::Text(text) => text.clone(),
                Part::Group(group) => {
                    found.get(*group).map(|group| group.as_str().to_owned()).unwrap_or_default()
                }
            };
            self.substitution.iter().map(part).collect::<String>()
        });
        replaced.into_owned()
    }
}

impl PartialEq for RegexSubstitution {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str() && self.substitution == other.substitution
    }
}

fn parts(substitution: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    let mut rest = substitution.chars();
    while let Some(next) = rest.next() {
        match (next, next == '\\') {
            (_, false) => text.push(next),
            (_, true) => match rest.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    if !text.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut text)));
                    }
                    parts.push(Part::Group(digit.to_digit(10).map_or(0, |digit| digit as usize)));
                }
                Some(_) | None => {
                    return Err(
                        "in a substitution a digit or another backslash must follow a backslash".into()
                    );
                }
            },
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings() {
        let exact = |p: &str| StringPattern::Exact(p.to_owned());
        let prefix = |p: &str| StringPattern::Prefix(p.to_owned());
        let suffix = |p: &str| StringPattern::Suffix(p.to_owned());
        let contains = |p: &str| StringPattern::Contains(p.to_owned());
        // As it is, and with case ignored.
        for (pattern, text, expected) in [
            (exact("Ab"), "Ab", [true, true]),
            (exact("Ab"), "aB", [false, true]),
            (exact("Ab"), "Abc", [false, false]),
            (prefix("Ab"), "abc", [false, true]),
            (prefix("Ab"), "A", [false, false]),
            (prefix("A"), "Ä", [false, false]),
            (prefix(""), "", [true, true]),
            (suffix("bC"), "abC", [true, true]),
            (suffix("bC"), "aBc", [false, true]),
            (suffix("abc"), "bc", [false, false]),
            (contains("b"), "abc", [true, true]),
            (contains("B"), "abc", [false, true]),
            (contains(""), "", [true, true]),
            (contains("abc"), "ab", [false, false]),
            (StringPattern::SafeRegex(Regex::new("a+").unwrap()), "aa", [true, true]),
            (StringPattern::SafeRegex(Regex::new("a+").unwrap()), "AA", [false, false]),
        ] {
            let found = [false, true]
                .map(|ignore_case| StringMatcher { pattern: pattern.clone(), ignore_case }.is_match(text));
            assert_eq!(found, expected, "{pattern:?} {text}");
        }
    }
}
