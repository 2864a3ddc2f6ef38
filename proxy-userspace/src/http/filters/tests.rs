//! Each filter by a table; what the real Envoy does with the same requests is in `tests/suites/http_filters.rs`.

mod limits;
mod requests;

use proxy_config::model::FractionalPercent;
use proxy_config::model::http::header::{AppendAction, Format, HeaderMatch, HeaderMatcher};
use proxy_config::model::http::{FilterKind, HeaderOption, PerRoute, RouteConfiguration};
use proxy_config::model::matcher::{StringMatcher, StringPattern};

use crate::http::testing::{Rig, Sent, any_route, respond, route_with};

const ALL: FractionalPercent = FractionalPercent { numerator: 100, denominator: 100 };
const NONE: FractionalPercent = FractionalPercent { numerator: 0, denominator: 100 };

fn exact(text: &str) -> StringMatcher {
    StringMatcher { pattern: StringPattern::Exact(text.to_owned()), ignore_case: false }
}

fn header(name: &str, value: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: name.into(),
        matches: HeaderMatch::String(exact(value)),
        invert: false,
        treat_missing_as_empty: false,
    }
}

fn option(name: &str, value: &str, append: AppendAction) -> HeaderOption {
    HeaderOption {
        name: name.into(),
        value: Format::new(value, &[]).unwrap(),
        append,
        keep_empty_value: false,
    }
}

/// One filter; its route may say something to it.
fn rig(kind: FilterKind, said: Option<PerRoute>) -> Rig {
    let routes = said.map_or_else(any_route, |said| route_with(vec![("f", said)]));
    Rig::new(vec![("f", kind)], routes)
}

/// The upstream says 200 and `upstream`.
async fn ask(rig: &Rig, stream: &mut crate::http::Stream) -> Sent {
    rig.exchange(stream, |stream| respond(stream, 200, &[], "upstream")).await.unwrap()
}

#[tokio::test]
async fn levels_of_routes() {
    use crate::http::filters::{RouteConfig, RouteFilters};
    use crate::http::testing::per_filters;
    use proxy_config::model::http::filters::Buffer;
    use proxy_config::model::http::{PerFilter, PerFilters};

    let buffer = |bytes| PerRoute::Buffer(Some(Buffer { max_request_bytes: bytes }));
    let none = RouteFilters::new(&PerFilters::default()).unwrap();
    assert!(none.is_empty() && none.disabled("a").is_none() && none.config("a").is_none());
    let host = none.with(&per_filters(vec![("a", buffer(1)), ("b", buffer(2))])).unwrap();
    let off = PerFilter { disabled: true, config: None };
    let route = host.with(&[("a".to_owned(), off)].into_iter().collect()).unwrap();
    assert_eq!(
        (host.disabled("a"), route.disabled("a"), route.disabled("b")),
        (Some(false), Some(true), Some(false))
    );
    let bytes = |config: Option<&RouteConfig>| match config {
        Some(RouteConfig::Buffer(Some(buffer))) => buffer.max_request_bytes,
        _ => 0,
    };
    assert_eq!((bytes(route.config("a")), bytes(route.config("b")), bytes(route.config("c"))), (1, 2, 0));
    let more = host.with(&per_filters(vec![("a", buffer(3))])).unwrap();
    let all: Vec<_> = more.configs("a").map(|config| bytes(Some(config))).collect();
    assert_eq!(
        (all, bytes(more.config("a"))),
        (vec![1, 3], 3),
        "the least specific first; the most specific holds"
    );
}

#[tokio::test]
async fn a_filter_that_is_off_is_on_where_its_route_says_so() {
    use crate::http::testing::manager;
    use proxy_config::model::http::HttpFilter;

    let buffer = proxy_config::model::http::filters::Buffer { max_request_bytes: 2 };
    let filter = |disabled| HttpFilter { name: "f".into(), disabled, kind: FilterKind::Buffer(buffer) };
    let status = async |disabled, routes: RouteConfiguration| {
        let rig = Rig::of(&manager(vec![filter(disabled)], routes), []);
        let head = crate::http::testing::request(http::Method::POST, "/", &[]);
        ask(&rig, &mut rig.stream(head, crate::http::Body::full("long"))).await.status
    };
    let said = || route_with(vec![("f", PerRoute::Buffer(Some(buffer)))]);
    assert_eq!(status(false, any_route()).await, 413);
    assert_eq!(status(true, any_route()).await, 200);
    assert_eq!(status(true, said()).await, 413);
    let mut off = said();
    let said = &mut off.virtual_hosts[0].routes[0].per_filter;
    *said = [("f".to_owned(), proxy_config::model::http::PerFilter { disabled: true, config: None })]
        .into_iter()
        .collect();
    assert_eq!(status(false, off).await, 200);
}
