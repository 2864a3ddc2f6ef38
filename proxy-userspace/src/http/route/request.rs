//! What routes read out of a request: query parameters and cookies.

use http::header::COOKIE;

use crate::http::RequestHead;

/// The parameters of a query, as they are written: nothing is decoded, as in Envoy.
pub(super) struct Parameters<'a>(Option<&'a str>);

impl<'a> Parameters<'a> {
    pub(super) fn of(head: &'a RequestHead) -> Self {
        Self(head.query())
    }
}

impl<'a> Iterator for Parameters<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0?;
        let (first, rest) = match rest.split_once('&') {
            Some((first, rest)) => (first, Some(rest)),
            None => (rest, None),
        };
        self.0 = rest;
        Some(first.split_once('=').unwrap_or((first, "")))
    }
}

/// The first cookie of that name, without the quotes that may be around it.
pub(super) fn cookie<'a>(head: &'a RequestHead, name: &str) -> Option<&'a str> {
    let headers = head.headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
    let pairs = headers.flat_map(|header| header.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.into_iter().find(|(known, _)| *known == name)?;
    let inside = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    Some(inside.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};

    use super::*;

    #[test]
    fn parameters() {
        let head = RequestHead::new(Method::GET, "h", "/p?a=1&b&c=%20=x&&a=2#f");
        let found: Vec<_> = Parameters::of(&head).collect();
        assert_eq!(found, [("a", "1"), ("b", ""), ("c", "%20=x"), ("", ""), ("a", "2")]);
        assert_eq!(Parameters::of(&RequestHead::new(Method::GET, "h", "/p")).count(), 0);
    }

    #[test]
    fn cookies() {
        let mut head = RequestHead::new(Method::GET, "h", "/");
        for value in ["a=1; b=\"two\";c", "d=x=y; a=other", "e=\""] {
            head.headers.append(COOKIE, HeaderValue::from_static(value));
        }
        let all = ["a", "b", "c", "d", "e", "f"].map(|name| cookie(&head, name));
        assert_eq!(all, [Some("1"), Some("two"), None, Some("x=y"), Some("\""), None]);
    }
}
