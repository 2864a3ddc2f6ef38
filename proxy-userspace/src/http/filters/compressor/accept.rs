//! Which encoding a client likes best, of those that the filters of a chain have.

use http::HeaderValue;
use proxy_config::model::http::filters::ContentTypes;

use super::headers::fits;

/// What a filter of the chain could do.
#[derive(Clone)]
pub(super) struct Offer {
    pub(super) encoding: &'static str,
    pub(super) content_type: ContentTypes,
    /// Of those that are liked alike.
    pub(super) first: bool,
}

/// Those of a stream, in the order of the filters.
#[derive(Clone, Default)]
pub(super) struct Offers(pub(super) Vec<Offer>);

/// Made once for a stream, for all its filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// `identity` is none of them.
    pub(super) encoding: &'static str,
    pub(super) choice: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Encoding,
    Identity,
    Wildcard,
    NotValid,
}

const IDENTITY: &str = "identity";

/// As Envoy: the highest weight, and of equal ones the first in the header.
pub(super) fn choose(accepts: &HeaderValue, content_type: &str, offers: &Offers) -> Decision {
    let none = |choice| Decision { encoding: IDENTITY, choice };
    let mut offered: Vec<&Offer> = Vec::new();
    for offer in &offers.0 {
        let known = offered.iter().any(|known| known.encoding == offer.encoding);
        if !known && (content_type.is_empty() || fits(content_type, &offer.content_type)) {
            offered.push(offer);
        }
    }
    let accepts = String::from_utf8_lossy(accepts.as_bytes());
    let wanted: Vec<(&str, f32)> = accepts.split(',').filter_map(weighed).collect();
    offered.retain(|offer| !wanted.iter().any(|(name, q)| *q == 0.0 && *name == offer.encoding));
    if wanted.is_empty() || offered.is_empty() {
        return none(Choice::NotValid);
    }
    let mut best = (IDENTITY, 0.0);
    for (name, q) in wanted {
        let offer = offered.iter().find(|offer| offer.encoding == name);
        let better = q > best.1 || (q == best.1 && q > 0.0 && offer.is_some_and(|offer| offer.first));
        if better && (offer.is_some() || matches!(name, IDENTITY | "*")) {
            best = (offer.map_or(if name == "*" { "*" } else { IDENTITY }, |offer| offer.encoding), q);
        }
    }
    match best {
        (_, 0.0) => none(Choice::NotValid),
        (IDENTITY, _) => none(Choice::Identity),
        ("*", _) => {
            let first = offered.first().map_or(IDENTITY, |offer| offer.encoding);
            Decision { encoding: first, choice: Choice::Wildcard }
        }
        (encoding, _) => Decision { encoding, choice: Choice::Encoding },
    }
}

/// None: its weight cannot be read.
fn weighed(token: &str) -> Option<(&str, f32)> {
    let (name, parameters) = token.split_once(';').unwrap_or((token, ""));
    let name = name.trim();
    let q = match parameters.split_once('=') {
        Some((key, value)) if key.trim().eq_ignore_ascii_case("q") => value.trim().parse().ok()?,
        Some(_) | None => 1.0,
    };
    (!name.is_empty()).then_some((name, q))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices() {
        let offer = |encoding, first| Offer { encoding, content_type: ContentTypes::Default, first };
        let offers = Offers(vec![offer("gzip", false), offer("br", false)]);
        let first = Offers(vec![offer("gzip", false), offer("br", true)]);
        for (accepts, encoding, choice) in [
            ("gzip", "gzip", Choice::Encoding),
            ("gzip, br", "gzip", Choice::Encoding),
            ("gzip;q=0.5, br;q=0.6", "br", Choice::Encoding),
            ("br ; Q = 1.0 , gzip", "br", Choice::Encoding),
            ("*", "gzip", Choice::Wildcard),
            ("gzip;q=0, *", "br", Choice::Wildcard),
            ("identity", "identity", Choice::Identity),
            ("identity, gzip;q=0.9", "identity", Choice::Identity),
            ("deflate", "identity", Choice::NotValid),
            ("gzip;q=0, br;q=0, *", "identity", Choice::NotValid),
            ("gzip;q=x", "identity", Choice::NotValid),
            ("", "identity", Choice::NotValid),
        ] {
            let decision = choose(&HeaderValue::from_static(accepts), "text/plain", &offers);
            assert_eq!(decision, Decision { encoding, choice }, "{accepts:?}");
        }
        let liked = choose(&HeaderValue::from_static("gzip, br"), "text/plain", &first);
        assert_eq!(liked.encoding, "br");
        let image = choose(&HeaderValue::from_static("gzip"), "image/png", &offers);
        assert_eq!(image.choice, Choice::NotValid, "nobody compresses that");
    }
}
