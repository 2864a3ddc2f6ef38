//! Paths with variables, of `envoy.path.match.uri_template` and `envoy.path.rewrite.uri_template`:
//! `/a/{name}/*/{rest=**}.m3u8` becomes `/{rest}/{name}`.

use std::sync::Arc;

use crate::model::matcher::Regex;

/// `*` is a segment, `**` any number of them, `{name}` and `{name=…}` are variables.
#[derive(Clone, Debug, PartialEq)]
pub struct PathTemplate {
    text: Arc<str>,
    regex: Regex,
    variables: Vec<Arc<str>>,
}

/// What Envoy has in a segment: RFC 3986's `pchar` without `*`.
const LITERAL: &str = r"a-zA-Z0-9\-._~%!$&'()+,;:@=";
/// Envoy refuses more.
const MOST_VARIABLES: usize = 5;
const LONGEST_NAME: usize = 16;
const LONGEST_REWRITE: usize = 256;

impl PathTemplate {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::default();
        if !text.starts_with('/') {
            return Err("must begin with a slash".into());
        }
        parser.path(text)?;
        let regex = Regex::new(&parser.regex).map_err(|error| error.to_string())?;
        Ok(Self { text: text.into(), regex, variables: parser.variables })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Of a path without its query.
    pub fn is_match(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }

    /// Its variables, in their order.
    pub fn variables(&self) -> &[Arc<str>] {
        &self.variables
    }

    /// What each variable has in a path that matches, in the order of [`Self::variables`].
    pub fn captures<'p>(&self, path: &'p str) -> Option<Vec<&'p str>> {
        let found = self.regex.captures(path)?;
        let value = |index| found.get(index + 1).map_or("", |part| part.as_str());
        Some((0..self.variables.len()).map(value).collect())
    }
}

#[derive(Default)]
struct Parser {
    regex: String,
    variables: Vec<Arc<str>>,
    /// `**` was seen: no other operator may be a segment of its own after it.
    ended: bool,
}

impl Parser {
    fn path(&mut self, rest: &str) -> Result<(), String> {
        // The last one may be empty: a slash at the end.
        let segments = segments(rest)?;
        let count = segments.len();
        for (index, segment) in segments.into_iter().enumerate() {
            if index > 0 {
                self.regex.push('/');
            }
            if segment.is_empty() && index > 0 && index + 1 < count {
                return Err("has an empty segment".into());
            }
            self.segment(segment)?;
        }
        Ok(())
    }

    /// A star alone is an operator; otherwise there is one variable at most, and stars are text.
    fn segment(&mut self, segment: &str) -> Result<(), String> {
        if let Some(operator) = operator(segment) {
            return self.operator(segment, &operator);
        }
        let Some((before, rest)) = segment.split_once('{') else { return self.literal(segment) };
        let (variable, after) = rest.split_once('}').ok_or("has a variable without an end")?;
        if before.contains('*') {
            return Err("has a variable after a star in one segment".into());
        }
        self.literal(before)?;
        self.variable(variable)?;
        self.literal(after)
    }

    fn operator(&mut self, text: &str, regex: &str) -> Result<(), String> {
        if self.ended {
            return Err("has an operator after **".into());
        }
        self.ended = text == "**";
        self.regex.push_str(regex);
        Ok(())
    }

    fn literal(&mut self, text: &str) -> Result<(), String> {
        match text.chars().find(|c| !is_literal(*c) && *c != '*') {
            Some(other) => return Err(format!("has {other:?}, which no path has")),
            None => self.regex.push_str(&regex::escape(text)),
        }
        Ok(())
    }

    fn variable(&mut self, text: &str) -> Result<(), String> {
        let (name, pattern) = text.split_once('=').unwrap_or((text, "*"));
        check_name(name)?;
        if self.variables.iter().any(|known| **known == *name) {
            return Err(format!("has the variable {name:?} twice"));
        }
        if self.variables.len() == MOST_VARIABLES {
            return Err(format!("has more than {MOST_VARIABLES} variables"));
        }
        if pattern.is_empty() {
            return Err(format!("has no pattern for the variable {name:?}"));
        }
        self.variables.push(name.into());
        self.regex.push('(');
        for (index, segment) in pattern.split('/').enumerate() {
            if index > 0 {
                self.regex.push('/');
            }
            match operator(segment) {
                Some(regex) => self.operator(segment, &regex)?,
                None => self.literal(segment)?,
            }
        }
        self.regex.push(')');
        Ok(())
    }
}

/// Cut at the slashes that are in no variable.
fn segments(text: &str) -> Result<Vec<&str>, String> {
    let (mut segments, mut start, mut inside) = (Vec::new(), 0, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => inside = true,
            b'}' => inside = false,
            b'/' if !inside => {
                segments.push(text.get(start..index).unwrap_or_default());
                start = index + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err("has a variable without an end".into());
    }
    segments.push(text.get(start..).unwrap_or_default());
    Ok(segments)
}

fn operator(segment: &str) -> Option<String> {
    match segment {
        "*" => Some(format!("[{LITERAL}]+")),
        "**" => Some(format!("[{LITERAL}/]*")),
        _ => None,
    }
}

fn is_literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c)
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= LONGEST_NAME
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if fits { Ok(()) } else { Err(format!("has the variable {name:?}, which is no name")) }
}

/// `/{name}/a`, whose variables are those of the match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateRewrite {
    text: Arc<str>,
    parts: Vec<TemplatePart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum TemplatePart {
    Text(Box<str>),
    /// By its place in [`PathTemplate::variables`].
    Variable(usize),
}

impl TemplateRewrite {
    pub fn parse(text: &str, of: &PathTemplate) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        if !text.starts_with('/') || text.len() > LONGEST_REWRITE {
            return Err(format!("must begin with a slash, and have no more than {LONGEST_REWRITE} bytes"));
        }
        if text.contains("//") {
            return Err("has an empty segment".into());
        }
        while let Some((literal, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("has a variable without an end")?;
            check_literal(literal)?;
            let variable = of.variables.iter().position(|known| **known == *name);
            let variable =
                variable.ok_or_else(|| format!("has the variable {name:?}, and the match does not"))?;
            parts.extend([TemplatePart::Text(literal.into()), TemplatePart::Variable(variable)]);
            rest = after;
        }
        check_literal(rest)?;
        parts.push(TemplatePart::Text(rest.into()));
        parts.retain(|part| !matches!(part, TemplatePart::Text(text) if text.is_empty()));
        Ok(Self { text: text.into(), parts })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// With what [`PathTemplate::captures`] gave.
    pub fn apply(&self, captures: &[&str]) -> String {
        let part = |part: &TemplatePart| match part {
            TemplatePart::Text(text) => text.to_string(),
            TemplatePart::Variable(index) => captures.get(*index).copied().unwrap_or_default().to_owned(),
        };
        self.parts.iter().map(part).collect()
    }
}

fn check_literal(text: &str) -> Result<(), String> {
    match text.chars().find(|c| !is_literal(*c) && !"/*".contains(*c)) {
        Some(other) => Err(format!("has {other:?}, which no path has")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_and_rewriting() {
        for (template, rewrite, path, expected) in [
            ("/bar/{lang}/{country}", "/{country}/{lang}", "/bar/en/usa", Some("/usa/en")),
            ("/bar/{lang}", "/x", "/bar/en/usa", None),
            ("/videos/*/*/*", "/v", "/videos/a/b/c.m4s", Some("/v")),
            ("/videos/{file=**}.m4s", "/{file}.mp4", "/videos/a/b/c.m4s", Some("/a/b/c.mp4")),
            ("/{path=v1/**}", "/{path}", "/v1/", Some("/v1/")),
            ("/**", "/all", "/", Some("/all")),
            ("/a.b", "/c", "/aXb", None),
            ("/*", "/c", "/", None),
            ("/a*", "/*", "/a*", Some("/*")),
            ("/a*", "/*", "/ab", None),
            ("/x{a}y/", "/{a}", "/x1y/", Some("/1")),
        ] {
            let template = PathTemplate::parse(template).unwrap();
            let rewrite = TemplateRewrite::parse(rewrite, &template).unwrap();
            let found = template.captures(path).map(|captures| rewrite.apply(&captures));
            assert_eq!(found.as_deref(), expected, "{} of {path}", template.as_str());
            assert_eq!(template.is_match(path), expected.is_some());
        }
    }
}
