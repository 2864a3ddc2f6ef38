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

impl PathTemplate {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::default();
        if !text.starts_with('/') {
            return Err("must begin with a slash".into());
        }
        parser.pattern(text, false)?;
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
    /// `**` was seen: no other operator may follow.
    ended: bool,
}

impl Parser {
    fn pattern(&mut self, mut rest: &str, inside: bool) -> Result<(), String> {
        while let Some(first) = rest.chars().next() {
            rest = match first {
                '*' => self.star(rest)?,
                '{' if !inside => {
                    let (variable, after) =
                        rest[1..].split_once('}').ok_or("has a variable without an end")?;
                    self.variable(variable)?;
                    after
                }
                '/' if rest[1..].starts_with('/') => return Err("has an empty segment".into()),
                '/' => self.literal(first, rest),
                _ if is_literal(first) => self.literal(first, rest),
                _ => return Err(format!("has {first:?}, which no path has")),
            };
        }
        Ok(())
    }

    fn literal<'t>(&mut self, first: char, rest: &'t str) -> &'t str {
        self.regex.push_str(&regex::escape(first.encode_utf8(&mut [0; 4])));
        &rest[first.len_utf8()..]
    }

    fn star<'t>(&mut self, rest: &'t str) -> Result<&'t str, String> {
        if self.ended {
            return Err("has an operator after **".into());
        }
        if let Some(after) = rest.strip_prefix("**") {
            self.ended = true;
            self.regex.push_str(&format!("[{LITERAL}/]*"));
            return Ok(after);
        }
        self.regex.push_str(&format!("[{LITERAL}]+"));
        Ok(&rest[1..])
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
        self.pattern(pattern, true)?;
        self.regex.push(')');
        Ok(())
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
        if !text.starts_with('/') {
            return Err("must begin with a slash".into());
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
    match text.chars().find(|c| !is_literal(*c) && *c != '/') {
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
            ("/videos/*/*/*.m4s", "/v", "/videos/a/b/c.m4s", Some("/v")),
            ("/videos/{file=**}.m4s", "/{file}.mp4", "/videos/a/b/c.m4s", Some("/a/b/c.mp4")),
            ("/{path=v1/**}", "/{path}", "/v1/", Some("/v1/")),
            ("/**", "/all", "/", Some("/all")),
            ("/a.b", "/c", "/aXb", None),
            ("/*", "/c", "/", None),
        ] {
            let template = PathTemplate::parse(template).unwrap();
            let rewrite = TemplateRewrite::parse(rewrite, &template).unwrap();
            let found = template.captures(path).map(|captures| rewrite.apply(&captures));
            assert_eq!(found.as_deref(), expected, "{} of {path}", template.as_str());
            assert_eq!(template.is_match(path), expected.is_some());
        }
    }

    #[test]
    fn refused() {
        for (template, why) in [
            ("a", "must begin with a slash"),
            ("/a//b", "has an empty segment"),
            ("/{a", "has a variable without an end"),
            ("/{a}/{a}", "has the variable \"a\" twice"),
            ("/{1}", "has the variable \"1\", which is no name"),
            ("/{a=}", "has no pattern for the variable \"a\""),
            ("/**/*", "has an operator after **"),
            ("/a b", "has ' ', which no path has"),
            ("/{a}/{b}/{c}/{d}/{e}/{f}", "has more than 5 variables"),
            ("/{a={b}}", "has '{', which no path has"),
        ] {
            assert_eq!(PathTemplate::parse(template).unwrap_err(), why, "{template}");
        }
        let template = PathTemplate::parse("/{a}").unwrap();
        for (rewrite, why) in [
            ("{a}", "must begin with a slash"),
            ("/{b}", "has the variable \"b\", and the match does not"),
            ("/*", "has '*', which no path has"),
        ] {
            assert_eq!(TemplateRewrite::parse(rewrite, &template).unwrap_err(), why, "{rewrite}");
        }
    }
}
