//! Matters that several filters ask about.

use proxy_config::model::FractionalPercent;
use proxy_config::model::http::HeaderMatcher;

use crate::http::RequestHead;

/// Whether it is one of so many.
pub(super) fn hits(percent: FractionalPercent) -> bool {
    let FractionalPercent { numerator, denominator } = percent;
    numerator >= denominator || (numerator > 0 && rand::random_range(0..denominator) < numerator)
}

pub(super) fn matches(matcher: &HeaderMatcher, head: &RequestHead) -> bool {
    let value = head.header(&matcher.name);
    matcher.is_match(value.as_deref().map(String::from_utf8_lossy).as_deref())
}
