//! Headers: what is added and taken away, and what matches.

use std::sync::Arc;

use envoy_types::pb::envoy::config::common::mutation_rules::v3 as mutation;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;

use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::model::http::header::{
    AppendAction, Format, HeaderEdit, HeaderEdits, HeaderMatch, HeaderMatcher, HeaderMutation, HeaderOption,
    MutationRules,
};
use crate::model::matcher::{RegexSubstitution, StringMatcher, StringPattern};

registry! {
    core::HeaderValue, core::HeaderValueOption, pb::HeaderMatcher, mutation::HeaderMutation,
    mutation::header_mutation::RemoveOnMatch, mutation::HeaderMutationRules, matcher::RegexMatchAndSubstitute,
}

/// PGV's bound of the lists.
const MOST_HEADERS: usize = 1000;

lower! { "envoy.config.core.v3.HeaderValue" core::HeaderValue => (String, String), cx;
    read { key, value, raw_value }
    {
        let key = cx.non_empty("key", key)?;
        plain(cx, "key", &key);
        plain(cx, "value", &value);
        if raw_value.is_empty() {
            return Some((key, value));
        }
        if !value.is_empty() {
            cx.reject("raw_value", "cannot be given with value");
        }
        let Ok(value) = String::from_utf8(raw_value) else {
            cx.reject("raw_value", "bytes that are not UTF-8 are not implemented");
            return None;
        };
        plain(cx, "raw_value", &value);
        Some((key, value))
    }
}

/// No control character, which would end the line.
pub(in crate::lower) fn plain(cx: &mut Cx, name: &'static str, value: &str) {
    if value.chars().any(|c| c.is_control() && c != '\t') {
        cx.reject(name, "has a control character");
    }
}

lower! { "envoy.config.core.v3.HeaderValueOption" core::HeaderValueOption => HeaderOption, cx;
    read { header, append, append_action, keep_empty_value }
    {
        use core::header_value_option::HeaderAppendAction as Action;
        let header = cx.required("header", header);
        let action = match cx.variant("append_action", append_action)? {
            Action::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
            Action::AddIfAbsent => AppendAction::AddIfAbsent,
            Action::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
            Action::OverwriteIfExists => AppendAction::OverwriteIfExists,
        };
        if append.is_some() && append_action != 0 {
            cx.reject("append", "cannot be given with append_action");
        }
        let append = match append {
            Some(append) if append.value => AppendAction::AppendIfExistsOrAdd,
            Some(_) => AppendAction::OverwriteIfExistsOrAdd,
            None => action,
        };
        let (name, value) = header?;
        let value = cx.field("header", |cx| format(cx, "value", &value, &[]))?;
        let name = cx.field("header", |cx| header_name(cx, "key", &name))?;
        Some(HeaderOption { name, value, append, keep_empty_value })
    }
}

/// The name of a header as HTTP/2 has it: in lower case. A pseudo-header has a colon before it.
pub(in crate::lower) fn header_name(cx: &mut Cx, field: &'static str, name: &str) -> Option<Arc<str>> {
    if name.is_empty() {
        cx.reject(field, "must not be empty");
        return None;
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.strip_prefix(':').unwrap_or(name).bytes().all(token) {
        cx.reject(field, format!("{name:?} cannot be the name of a header"));
        return None;
    }
    Some(name.to_ascii_lowercase().into())
}

/// A name that may be missing.
pub(in crate::lower) fn optional_name(cx: &mut Cx, field: &'static str, name: &str) -> Option<Arc<str>> {
    if name.is_empty() { None } else { header_name(cx, field, name) }
}

pub(in crate::lower) fn header_names(cx: &mut Cx, field: &'static str, names: &[String]) -> Vec<Arc<str>> {
    names.iter().filter_map(|name| header_name(cx, field, name)).collect()
}

/// Text with command operators; `more` are those of formatter extensions.
pub(in crate::lower) fn format(
    cx: &mut Cx,
    field: &'static str,
    text: &str,
    more: &[&str],
) -> Option<Format> {
    match Format::new(&modern(text), more) {
        Ok(format) => Some(format),
        Err(why) => {
            cx.reject(field, why);
            None
        }
    }
}

/// A format that may be missing.
pub(in crate::lower) fn optional_format(cx: &mut Cx, field: &'static str, text: &str) -> Option<Format> {
    if text.is_empty() { None } else { format(cx, field, text, &[]) }
}

/// Two forms that headers alone had once, and Envoy still reads: `%UPSTREAM_METADATA(["ns", "key"])%` and
/// `%PER_REQUEST_STATE(key)%`.
fn modern(text: &str) -> String {
    let mut modern = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, operator) = rest.split_at(at);
        modern.push_str(before);
        let (replaced, after) = replacement(operator).unwrap_or_else(|| {
            // `%%` is one piece, whatever follows it.
            let len = if operator.starts_with("%%") { 2 } else { 1 };
            (operator[..len].to_owned(), &operator[len..])
        });
        modern.push_str(&replaced);
        rest = after;
    }
    modern.push_str(rest);
    modern
}

fn replacement(operator: &str) -> Option<(String, &str)> {
    for name in ["UPSTREAM_METADATA", "DYNAMIC_METADATA"] {
        let inside = operator.strip_prefix('%').and_then(|rest| rest.strip_prefix(name));
        let Some((list, after)) = inside.and_then(|rest| rest.strip_prefix('(')?.split_once(")%")) else {
            continue;
        };
        let keys: Vec<String> = serde_json::from_str(list).ok()?;
        return Some((format!("%{name}({})%", keys.join(":")), after));
    }
    let (key, after) = operator.strip_prefix("%PER_REQUEST_STATE(")?.split_once(")%")?;
    Some((format!("%FILTER_STATE({key}:PLAIN)%"), after))
}

/// The four lists that each level has.
pub(super) struct Edits {
    pub(super) request_headers_to_add: Vec<core::HeaderValueOption>,
    pub(super) request_headers_to_remove: Vec<String>,
    pub(super) response_headers_to_add: Vec<core::HeaderValueOption>,
    pub(super) response_headers_to_remove: Vec<String>,
}

impl Edits {
    pub(super) fn lower(self, cx: &mut Cx) -> HeaderEdits {
        let Self {
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
        } = self;
        HeaderEdits {
            request: HeaderEdit {
                remove: removed(cx, "request_headers_to_remove", &request_headers_to_remove),
                add: added(cx, "request_headers_to_add", request_headers_to_add),
            },
            response: HeaderEdit {
                remove: removed(cx, "response_headers_to_remove", &response_headers_to_remove),
                add: added(cx, "response_headers_to_add", response_headers_to_add),
            },
        }
    }
}

/// Headers that are added by a route and its like: the request's own lines are out of their reach.
pub(in crate::lower) fn added(
    cx: &mut Cx,
    field: &'static str,
    headers: Vec<core::HeaderValueOption>,
) -> Vec<HeaderOption> {
    if headers.len() > MOST_HEADERS {
        cx.reject(field, format!("must have no more than {MOST_HEADERS}"));
    }
    let lowered = cx.list(field, headers);
    for (index, _) in lowered.iter().enumerate().filter(|(_, header)| is_own_line(&header.name)) {
        let why = ":-prefixed or host headers may not be modified";
        cx.field(field, |cx| cx.index(index, |cx| cx.reject("header", why)));
    }
    lowered
}

pub(in crate::lower) fn removed(cx: &mut Cx, field: &'static str, names: &[String]) -> Vec<Arc<str>> {
    let names = header_names(cx, field, names);
    if names.iter().any(|name| is_own_line(name)) {
        cx.reject(field, ":-prefixed or host headers may not be removed");
    }
    names
}

fn is_own_line(name: &str) -> bool {
    name.starts_with(':') || name == "host"
}

lower! { "envoy.config.common.mutation_rules.v3.HeaderMutation" mutation::HeaderMutation => HeaderMutation, cx;
    read { action }
    {
        use mutation::header_mutation::Action;
        match action {
            Some(Action::Remove(name)) => header_name(cx, "remove", &name).map(HeaderMutation::Remove),
            Some(Action::Append(header)) => cx.lower("append", header).map(HeaderMutation::Add),
            Some(Action::RemoveOnMatch(matcher)) => {
                cx.lower("remove_on_match", matcher).map(HeaderMutation::RemoveOnMatch)
            }
            None => {
                cx.reject("action", "is required");
                None
            }
        }
    }
}

lower! { "envoy.config.common.mutation_rules.v3.HeaderMutation.RemoveOnMatch"
    mutation::header_mutation::RemoveOnMatch => StringMatcher, cx;
    read { key_matcher }
    {
        cx.required("key_matcher", key_matcher)
    }
}

lower! { "envoy.config.common.mutation_rules.v3.HeaderMutationRules"
    mutation::HeaderMutationRules => MutationRules, cx;
    read {
        allow_all_routing, allow_envoy, disallow_system, disallow_all, allow_expression, disallow_expression,
        disallow_is_error
    }
    {
        Some(MutationRules {
            allow_all_routing: flag(allow_all_routing, false),
            allow_envoy: flag(allow_envoy, false),
            disallow_system: flag(disallow_system, false),
            disallow_all: flag(disallow_all, false),
            allow_expression: allow_expression.and_then(|regex| cx.lower("allow_expression", regex)),
            disallow_expression: disallow_expression.and_then(|regex| cx.lower("disallow_expression", regex)),
            disallow_is_error: flag(disallow_is_error, false),
        })
    }
}

lower! { "envoy.config.route.v3.HeaderMatcher" pb::HeaderMatcher => HeaderMatcher, cx;
    read { name, invert_match, treat_missing_header_as_empty, header_match_specifier }
    {
        let name = header_name(cx, "name", &name);
        let matches = header_match(cx, header_match_specifier);
        Some(HeaderMatcher {
            name: name?,
            matches: matches?,
            invert: invert_match,
            treat_missing_as_empty: treat_missing_header_as_empty,
        })
    }
}

fn header_match(
    cx: &mut Cx,
    specifier: Option<pb::header_matcher::HeaderMatchSpecifier>,
) -> Option<HeaderMatch> {
    use pb::header_matcher::HeaderMatchSpecifier as Kind;
    let text = |pattern| HeaderMatch::String(StringMatcher { pattern, ignore_case: false });
    Some(match specifier {
        // As in Envoy: any value.
        None => HeaderMatch::Present(true),
        Some(Kind::ExactMatch(exact)) if exact.is_empty() => HeaderMatch::Present(true),
        Some(Kind::ExactMatch(exact)) => text(StringPattern::Exact(exact)),
        Some(Kind::SafeRegexMatch(regex)) => {
            text(StringPattern::SafeRegex(cx.lower("safe_regex_match", regex)?))
        }
        Some(Kind::RangeMatch(range)) => HeaderMatch::Range(range.start, range.end),
        Some(Kind::PresentMatch(present)) => HeaderMatch::Present(present),
        Some(Kind::PrefixMatch(prefix)) => text(StringPattern::Prefix(cx.non_empty("prefix_match", prefix)?)),
        Some(Kind::SuffixMatch(suffix)) => text(StringPattern::Suffix(cx.non_empty("suffix_match", suffix)?)),
        Some(Kind::ContainsMatch(inside)) => {
            text(StringPattern::Contains(cx.non_empty("contains_match", inside)?))
        }
        Some(Kind::StringMatch(matcher)) => HeaderMatch::String(cx.lower("string_match", matcher)?),
    })
}

lower! { "envoy.type.matcher.v3.RegexMatchAndSubstitute" matcher::RegexMatchAndSubstitute => RegexSubstitution, cx;
    read { pattern, substitution }
    {
        let pattern = cx.required("pattern", pattern)?;
        // It is anchored where it matches, and is not where it substitutes.
        let pattern = pattern.as_str().strip_prefix("^(?:").and_then(|text| text.strip_suffix(")$"))?;
        plain(cx, "substitution", &substitution);
        match RegexSubstitution::new(pattern, &substitution) {
            Ok(substitution) => Some(substitution),
            Err(why) => {
                cx.reject("substitution", why);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_headers_had_once() {
        for (old, new) in [
            ("plain", "plain"),
            ("%UPSTREAM_METADATA([\"a.b\", \"c\"])%", "%UPSTREAM_METADATA(a.b:c)%"),
            ("x%DYNAMIC_METADATA([\"a\",\"b\",\"c\"])%y", "x%DYNAMIC_METADATA(a:b:c)%y"),
            ("%UPSTREAM_METADATA(a:b)%", "%UPSTREAM_METADATA(a:b)%"),
            ("%PER_REQUEST_STATE(a.b)%", "%FILTER_STATE(a.b:PLAIN)%"),
            ("%%PER_REQUEST_STATE(a)%%", "%%PER_REQUEST_STATE(a)%%"),
            ("100%% %PROTOCOL%", "100%% %PROTOCOL%"),
        ] {
            assert_eq!(modern(old), new);
        }
    }
}
