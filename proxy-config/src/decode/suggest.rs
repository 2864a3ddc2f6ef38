//! The known name that somebody probably meant.

/// The nearest of `known`, if one is near: a third of the letters may differ.
pub(crate) fn nearest<'k>(written: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    /// Nobody mistypes a name of this length.
    const LONGEST: usize = 80;
    let written = plain(written);
    if written.len() > LONGEST {
        return None;
    }
    let near = |name: &'k str| {
        let distance = distance(&written, &plain(name));
        (distance <= (written.len() / 3).max(1)).then_some((distance, name))
    };
    known.filter_map(near).min().map(|(_, name)| name)
}

/// Without what distinguishes the two spellings of a field.
fn plain(name: &str) -> Vec<u8> {
    name.bytes().filter(u8::is_ascii_alphanumeric).map(|b| b.to_ascii_lowercase()).collect()
}

/// Levenshtein's.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (y, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let best = (diagonal + usize::from(x != y)).min(left + 1).min(*above + 1);
            diagonal = *above;
            *above = best;
            left = best;
        }
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["alpn_protocols", "tls_params", "combined_validation_context", "type"];
        for (written, expected) in [
            ("alpnProtocol", Some("alpn_protocols")),
            ("tls_param", Some("tls_params")),
            ("tpye", None),
            ("typ", Some("type")),
            ("nothing_like_it", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known.into_iter()), expected, "{written}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), expected);
        }
    }
}
