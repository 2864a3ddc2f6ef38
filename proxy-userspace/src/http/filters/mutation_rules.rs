//! Which headers somebody else may change: `HeaderMutationRules`.

use http::HeaderValue;
use proxy_config::model::http::header::MutationRules;

/// What is done with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Set,
    Append,
    Remove,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Allowed,
    /// It is left out.
    Ignored,
    /// The request fails.
    Failed,
}

/// `name` in lower case.
pub(super) fn judge(rules: &MutationRules, change: Change, name: &str, value: &[u8]) -> Judgement {
    if permits(rules, change, name) && (change == Change::Remove || is_valid(name, value)) {
        Judgement::Allowed
    } else if rules.disallow_is_error {
        Judgement::Failed
    } else {
        Judgement::Ignored
    }
}

/// `:…` and `Host`, without which there is no request.
pub(super) fn is_removable(name: &str) -> bool {
    !name.starts_with(':') && !name.eq_ignore_ascii_case("host")
}

fn permits(rules: &MutationRules, change: Change, name: &str) -> bool {
    if change == Change::Remove && !is_removable(name) {
        return false;
    }
    if rules.disallow_expression.as_ref().is_some_and(|regex| regex.is_match(name)) {
        return false;
    }
    if rules.allow_expression.as_ref().is_some_and(|regex| regex.is_match(name)) {
        return true;
    }
    let routing = matches!(name, "host" | ":authority" | ":scheme" | ":method");
    let system = name.starts_with(':') && (change == Change::Append || rules.disallow_system);
    let envoy = name.starts_with("x-envoy");
    !rules.disallow_all && (!routing || rules.allow_all_routing) && !system && (!envoy || rules.allow_envoy)
}

fn is_valid(name: &str, value: &[u8]) -> bool {
    match name {
        ":authority" | "host" => {
            std::str::from_utf8(value).is_ok_and(|text| text.parse::<http::uri::Authority>().is_ok())
        }
        ":scheme" => value.eq_ignore_ascii_case(b"http") || value.eq_ignore_ascii_case(b"https"),
        ":status" => {
            let code = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u32>().ok());
            code.is_some_and(|code| code >= 200)
        }
        name if name.starts_with(':') => true,
        _ => HeaderValue::from_bytes(value).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use proxy_config::model::matcher::Regex;

    use super::*;

    fn rules() -> MutationRules {
        MutationRules {
            allow_all_routing: false,
            allow_envoy: false,
            disallow_system: false,
            disallow_all: false,
            allow_expression: None,
            disallow_expression: None,
            disallow_is_error: false,
        }
    }

    #[test]
    fn as_envoy_judges() {
        use Change::{Append, Remove, Set};
        let regex = |text| Some(Regex::new(text).unwrap());
        let all = [
            (Set, "x-a"),
            (Set, ":path"),
            (Set, ":method"),
            (Set, "x-envoy-b"),
            (Append, ":path"),
            (Remove, "host"),
        ];
        for (rules, expected) in [
            (rules(), [true, true, false, false, false, false]),
            (MutationRules { allow_all_routing: true, ..rules() }, [true, true, true, false, false, false]),
            (MutationRules { allow_envoy: true, ..rules() }, [true, true, false, true, false, false]),
            (MutationRules { disallow_system: true, ..rules() }, [true, false, false, false, false, false]),
            (MutationRules { disallow_all: true, ..rules() }, [false; 6]),
            (
                MutationRules { disallow_all: true, allow_expression: regex("x-.*"), ..rules() },
                [true, false, false, true, false, false],
            ),
            (
                MutationRules { disallow_expression: regex(".*a.*"), ..rules() },
                [false, false, false, false, false, false],
            ),
        ] {
            let found = all.map(|(change, name)| judge(&rules, change, name, b"v") == Judgement::Allowed);
            assert_eq!(found, expected, "{rules:?}");
        }
        let strict = MutationRules { disallow_is_error: true, ..rules() };
        assert_eq!(judge(&strict, Set, "x-envoy-a", b"v"), Judgement::Failed);
        assert_eq!(judge(&strict, Set, "x-a", b"a\nb"), Judgement::Failed);
        assert_eq!(judge(&rules(), Set, "x-a", b"a\nb"), Judgement::Ignored);
        let routing = MutationRules { allow_all_routing: true, ..rules() };
        assert_eq!(judge(&routing, Set, ":authority", b"a b"), Judgement::Ignored);
    }
}
