//! `type.matcher.v3`.

use envoy_types::pb::envoy::r#type::matcher::v3 as pb;

use super::registry::registry;
use crate::model::matcher::{
    DoubleMatcher, MetadataMatcher, Regex, StringMatcher, StringPattern, ValueMatcher,
};

registry! {
    pb::StringMatcher, pb::ListStringMatcher, pb::RegexMatcher, pb::regex_matcher::GoogleRe2, pb::MetadataMatcher,
    pb::metadata_matcher::PathSegment, pb::ValueMatcher, pb::value_matcher::NullMatch, pb::DoubleMatcher,
    pb::ListMatcher, pb::OrMatcher, pb::PathMatcher,
}

lower! { "envoy.type.matcher.v3.StringMatcher" pb::StringMatcher => StringMatcher, cx;
    read { ignore_case, match_pattern }
    {
        use pb::string_matcher::MatchPattern;
        let pattern = match match_pattern {
            Some(MatchPattern::Exact(text)) => StringPattern::Exact(text),
            Some(MatchPattern::Prefix(text)) => StringPattern::Prefix(cx.non_empty("prefix", text)?),
            Some(MatchPattern::Suffix(text)) => StringPattern::Suffix(cx.non_empty("suffix", text)?),
            Some(MatchPattern::Contains(text)) => StringPattern::Contains(cx.non_empty("contains", text)?),
            Some(MatchPattern::SafeRegex(regex)) => {
                if ignore_case {
                    cx.reject("ignore_case", "has no effect on safe_regex: write (?i) in the expression");
                }
                StringPattern::SafeRegex(cx.lower("safe_regex", regex)?)
            }
            Some(MatchPattern::Custom(custom)) => {
                cx.reject("custom", format!("\"{}\": custom string matchers are not implemented", custom.name));
                return None;
            }
            None => {
                cx.reject("match_pattern", "is required");
                return None;
            }
        };
        Some(StringMatcher { pattern, ignore_case })
    }
}

lower! { "envoy.type.matcher.v3.ListStringMatcher" pb::ListStringMatcher => Vec<StringMatcher>, cx;
    read { patterns }
    {
        if patterns.is_empty() {
            cx.reject("patterns", "must have at least one");
        }
        Some(cx.list("patterns", patterns))
    }
}

lower! { "envoy.type.matcher.v3.RegexMatcher" pb::RegexMatcher => Regex, cx;
    read { regex, engine_type }
    {
        if let Some(pb::regex_matcher::EngineType::GoogleRe2(engine)) = engine_type {
            cx.lower("google_re2", engine);
        }
        let regex = cx.non_empty("regex", regex)?;
        match Regex::new(&regex) {
            Ok(regex) => Some(regex),
            Err(error) => {
                cx.reject("regex", error.to_string());
                None
            }
        }
    }
}

lower! { "envoy.type.matcher.v3.RegexMatcher.GoogleRE2" pb::regex_matcher::GoogleRe2 => (), cx;
    read {}
    warn { max_program_size: "the limit of a regular expression's size is fixed, at 1 MiB" }
    {
        let _ = cx;
        Some(())
    }
}

lower! { "envoy.type.matcher.v3.MetadataMatcher" pb::MetadataMatcher => MetadataMatcher, cx;
    read { filter, path, value, invert }
    {
        let filter = cx.non_empty("filter", filter);
        if path.is_empty() {
            cx.reject("path", "must have at least one segment");
        }
        let path = cx.list("path", path);
        let value = cx.required("value", value);
        Some(MetadataMatcher { filter: filter?, path, value: value?, invert })
    }
}

lower! { "envoy.type.matcher.v3.MetadataMatcher.PathSegment" pb::metadata_matcher::PathSegment => String, cx;
    read { segment }
    {
        match segment {
            Some(pb::metadata_matcher::path_segment::Segment::Key(key)) => cx.non_empty("key", key),
            None => {
                cx.reject("segment", "key is required");
                None
            }
        }
    }
}

lower! { "envoy.type.matcher.v3.ValueMatcher" pb::ValueMatcher => ValueMatcher, cx;
    read { match_pattern }
    {
        use pb::value_matcher::MatchPattern;
        match match_pattern {
            Some(MatchPattern::NullMatch(null)) => cx.lower("null_match", null),
            Some(MatchPattern::DoubleMatch(double)) => cx.lower("double_match", double).map(ValueMatcher::Double),
            Some(MatchPattern::StringMatch(string)) => cx.lower("string_match", string).map(ValueMatcher::String),
            Some(MatchPattern::BoolMatch(flag)) => Some(ValueMatcher::Bool(flag)),
            Some(MatchPattern::PresentMatch(flag)) => Some(ValueMatcher::Present(flag)),
            Some(MatchPattern::ListMatch(list)) => cx.lower("list_match", *list),
            Some(MatchPattern::OrMatch(or)) => cx.lower("or_match", or),
            None => {
                cx.reject("match_pattern", "is required");
                None
            }
        }
    }
}

lower! { "envoy.type.matcher.v3.ValueMatcher.NullMatch" pb::value_matcher::NullMatch => ValueMatcher, cx;
    read {}
    {
        let _ = cx;
        Some(ValueMatcher::Null)
    }
}

lower! { "envoy.type.matcher.v3.DoubleMatcher" pb::DoubleMatcher => DoubleMatcher, cx;
    read { match_pattern }
    {
        use pb::double_matcher::MatchPattern;
        match match_pattern {
            Some(MatchPattern::Exact(value)) => Some(DoubleMatcher::Exact(value)),
            Some(MatchPattern::Range(range)) => Some(DoubleMatcher::Range(range.start, range.end)),
            None => {
                cx.reject("match_pattern", "is required");
                None
            }
        }
    }
}

lower! { "envoy.type.matcher.v3.ListMatcher" pb::ListMatcher => ValueMatcher, cx;
    read { match_pattern }
    {
        match match_pattern {
            Some(pb::list_matcher::MatchPattern::OneOf(one)) => {
                cx.lower("one_of", *one).map(Box::new).map(ValueMatcher::ListOneOf)
            }
            None => {
                cx.reject("match_pattern", "one_of is required");
                None
            }
        }
    }
}

lower! { "envoy.type.matcher.v3.OrMatcher" pb::OrMatcher => ValueMatcher, cx;
    read { value_matchers }
    {
        if value_matchers.len() < 2 {
            cx.reject("value_matchers", "must have at least two");
        }
        Some(ValueMatcher::Or(cx.list("value_matchers", value_matchers)))
    }
}

lower! { "envoy.type.matcher.v3.PathMatcher" pb::PathMatcher => StringMatcher, cx;
    read { rule }
    {
        match rule {
            Some(pb::path_matcher::Rule::Path(matcher)) => cx.lower("path", matcher),
            None => {
                cx.reject("rule", "path is required");
                None
            }
        }
    }
}
