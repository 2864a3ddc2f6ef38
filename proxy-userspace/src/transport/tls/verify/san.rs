//! Subject alternative names against matchers.

use proxy_config::model::StringMatcher;
use proxy_config::model::matcher::StringPattern;
use proxy_config::model::tls::{SanKind, SanMatcher};

use crate::transport::tls::certificate::Names;

/// One of the names matches one of the matchers. A name with a NUL matches nothing.
pub(super) fn any_matches(matchers: &[SanMatcher], names: &Names) -> bool {
    matchers.iter().any(|matcher| {
        let plain = |names: &[String]| names.iter().any(|name| matches(&matcher.matcher, name));
        let dns = || names.dns.iter().any(|name| matches_dns(&matcher.matcher, name));
        match matcher.kind {
            SanKind::Dns => dns(),
            SanKind::Uri => plain(&names.uri),
            SanKind::Ip => plain(&names.ip),
            SanKind::Email => plain(&names.email),
            SanKind::Any => dns() || plain(&names.uri) || plain(&names.email) || plain(&names.ip),
        }
    })
}

fn matches(matcher: &StringMatcher, name: &str) -> bool {
    !name.contains('\0') && matcher.is_match(name)
}

/// A DNS name that is asked for exactly may be covered by a wildcard of the certificate.
fn matches_dns(matcher: &StringMatcher, name: &str) -> bool {
    match &matcher.pattern {
        StringPattern::Exact(wanted) => dns_name_match(wanted, name),
        StringPattern::Prefix(_)
        | StringPattern::Suffix(_)
        | StringPattern::Contains(_)
        | StringPattern::SafeRegex(_) => matches(matcher, name),
    }
}

/// Whether the name that a certificate has, which may be a wildcard, is the one that is asked for. The wildcard stands
/// within the first label only, and never in an internationalised one; the others must be equal.
pub(super) fn dns_name_match(wanted: &str, of_certificate: &str) -> bool {
    if of_certificate.contains('\0') || wanted.contains('\0') {
        return false;
    }
    let (wanted, pattern) = (wanted.to_ascii_lowercase(), of_certificate.to_ascii_lowercase());
    if wanted == pattern {
        return true;
    }
    let (Some((label, domain)), Some((pattern, pattern_domain))) =
        (wanted.split_once('.'), pattern.split_once('.'))
    else {
        return false;
    };
    if pattern.starts_with("xn--") || pattern_domain.contains('*') || domain != pattern_domain {
        return false;
    }
    let Some((before, after)) = pattern.split_once('*') else {
        return false;
    };
    pattern == "*"
        || (!after.contains('*')
            && label.len() >= before.len() + after.len()
            && label.starts_with(before)
            && label.ends_with(after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dns_name_as_envoy_compares_it() {
        for (wanted, name, same) in [
            ("api.example.com", "api.example.com", true),
            ("API.example.com", "api.EXAMPLE.com", true),
            ("api.example.com", "*.example.com", true),
            ("api.example.com", "a*.example.com", true),
            ("api.example.com", "a*i.example.com", true),
            ("api.example.com", "ap*pi.example.com", false),
            ("api.example.com", "*.*.com", false),
            ("api.example.com", "api.*.com", false),
            ("api.example.com", "**.example.com", false),
            ("a.b.example.com", "*.example.com", false),
            ("example.com", "*.example.com", false),
            ("example.com", "*.com", true),
            ("localhost", "*", false),
            ("xn--caf-dma.example.com", "xn--*.example.com", false),
            ("xn--caf-dma.example.com", "*.example.com", true),
            ("api.example.com", "api.example.com\0", false),
            ("api.example.com", "api.example.com.evil.net", false),
            ("*.example.com", "api.example.com", false),
            ("", "", true),
        ] {
            assert_eq!(dns_name_match(wanted, name), same, "{wanted} of {name:?}");
        }
    }

    fn names(kind: SanKind, name: &str) -> Names {
        let name = vec![name.to_owned()];
        match kind {
            SanKind::Dns | SanKind::Any => Names { dns: name, ..Names::default() },
            SanKind::Uri => Names { uri: name, ..Names::default() },
            SanKind::Ip => Names { ip: name, ..Names::default() },
            SanKind::Email => Names { email: name, ..Names::default() },
        }
    }

    const KINDS: [SanKind; 4] = [SanKind::Dns, SanKind::Uri, SanKind::Ip, SanKind::Email];

    proptest! {
        #[test]
        fn exact_accepts_only_the_name_itself(name in "[a-z./:\\x00]{0,12}", wanted in "[a-z./:]{0,12}", kind in 0..4_usize) {
            let matcher = |wanted: &str, kind| SanMatcher {
                kind,
                matcher: StringMatcher { pattern: StringPattern::Exact(wanted.to_owned()), ignore_case: false },
            };
            let kind = KINDS[kind];
            prop_assert_eq!(any_matches(&[matcher(&wanted, kind)], &names(kind, &name)), wanted == name);
            prop_assert_eq!(any_matches(&[matcher(&name, kind)], &names(kind, &name)), !name.contains('\0'));
            for other in KINDS {
                if other != kind {
                    prop_assert!(!any_matches(&[matcher(&name, other)], &names(kind, &name)), "another kind");
                }
            }
        }

        #[test]
        fn a_prefix_or_suffix_is_at_that_end(name in "[ab\\x00]{0,8}", wanted in "[ab]{1,4}", kind in 0..4_usize) {
            let kind = KINDS[kind];
            let accepts = |pattern| {
                any_matches(&[SanMatcher { kind, matcher: StringMatcher { pattern, ignore_case: false } }], &names(kind, &name))
            };
            let clean = !name.contains('\0');
            prop_assert_eq!(accepts(StringPattern::Prefix(wanted.clone())), clean && name.starts_with(&wanted));
            prop_assert_eq!(accepts(StringPattern::Suffix(wanted.clone())), clean && name.ends_with(&wanted));
        }

        #[test]
        fn a_wildcard_covers_one_label_only(label in "[a-z0-9-]{1,8}", rest in "[a-z]{1,5}\\.[a-z]{2,3}", more in "[a-z]{1,4}") {
            let (name, wildcard) = (format!("{label}.{rest}"), format!("*.{rest}"));
            prop_assert!(dns_name_match(&name, &wildcard));
            let deeper = format!("{more}.{name}");
            prop_assert!(!dns_name_match(&deeper, &wildcard));
            prop_assert!(!dns_name_match(&rest, &wildcard));
        }
    }
}
