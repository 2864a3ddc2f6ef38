//! What routes do to requests, and answer.

use super::*;

fn rewritten(matched: PathMatch, rewrite: PathRewrite, path: &str) -> (String, Option<String>) {
    let table = built(routes(vec![route(|r| {
        r.matcher.path = matched;
        r.matcher.case_sensitive = false;
        r.action = forward(|action| action.path_rewrite = rewrite);
    })]));
    let mut entry = get(path, &[]);
    let routed = table.look(&entry, 0).unwrap();
    request(&mut entry, &routed, true);
    let original = head(&entry).headers.get("x-envoy-original-path");
    (head(&entry).path.clone(), original.map(|value| value.to_str().unwrap().to_owned()))
}

#[test]
fn paths_are_rewritten() {
    let prefix = |text: &str| PathMatch::Prefix(text.into());
    let to = |text: &str| PathRewrite::Prefix(text.into());
    let regex =
        |pattern: &str, text: &str| PathRewrite::Regex(RegexSubstitution::new(pattern, text).unwrap());
    let template = PathTemplate::parse("/a/{x}/{y}").unwrap();
    let swapped = TemplateRewrite::parse("/{y}/{x}", &template).unwrap();
    for (matched, rewrite, path, expected) in [
        (prefix("/abc"), to("/"), "/abc/index?q=1", "//index?q=1"),
        (prefix("/abc/"), to("/"), "/ABC/index", "/index"),
        (prefix("/"), to("/x/"), "/?q", "/x/?q"),
        (PathMatch::Path("/abc".into()), to("/index.html"), "/abc?x", "/index.html?x"),
        (PathMatch::SafeRegex(Regex::new("/r.*").unwrap()), to("/all"), "/rest/of?it", "/all?it"),
        (PathMatch::PathSeparatedPrefix("/s".into()), to("/t"), "/s/u", "/t/u"),
        (prefix("/"), regex("^/(.*)/(.*)$", r"/\2/\1"), "/a/b?a/b", "/b/a?a/b"),
        (PathMatch::Template(template), PathRewrite::Template(swapped), "/a/1/2?3", "/2/1?3"),
        (prefix("/"), PathRewrite::Format(Format::literal("/new")), "/old?q", "/new?q"),
    ] {
        assert_eq!(rewritten(matched, rewrite, path), (expected.to_owned(), Some(path.to_owned())));
    }
    assert_eq!(rewritten(prefix("/"), PathRewrite::None, "/x"), ("/x".to_owned(), None));
}

#[test]
fn hosts_are_rewritten() {
    let regex = RegexSubstitution::new("^/([^/]*).*$", r"\1.com").unwrap();
    for (rewrite, expected) in [
        (HostRewrite::Literal("new".into()), "new"),
        (HostRewrite::Header("x-host".into()), "of-header"),
        (HostRewrite::Header("x-none".into()), "h"),
        (HostRewrite::PathRegex(regex), "path.com"),
        (HostRewrite::Format(Format::literal("formatted")), "formatted"),
        (HostRewrite::Auto, "h"),
    ] {
        let table = built(routes(vec![route(|r| {
            r.action = forward(|action| {
                action.host_rewrite = rewrite;
                action.append_x_forwarded_host = true;
            });
        })]));
        let mut entry = get("/path/x?y", &[("x-host", "of-header"), ("x-forwarded-host", "a")]);
        let routed = table.look(&entry, 0).unwrap();
        request(&mut entry, &routed, false);
        assert_eq!(head(&entry).authority, expected);
        let kept = if expected == "h" { "a" } else { "a,h" };
        assert_eq!(head(&entry).headers["x-forwarded-host"], kept);
    }
    let mut request = RequestHead::new(Method::GET, "a", "/");
    for host in ["b", "c", "c"] {
        rewrite_host(&mut request, host, true, false);
    }
    assert_eq!(request.headers["x-forwarded-host"], "a,b,c");
    rewrite_host(&mut request, "d", true, true);
    assert_eq!(request.headers["x-forwarded-host"], "a,b,c");
    assert_eq!(request.headers["x-envoy-original-host"], "c");
}

fn option(name: &str, value: &str, append: AppendAction) -> HeaderOption {
    let value = Format::new(value, &[]).unwrap();
    HeaderOption { name: name.into(), value, append, keep_empty_value: false }
}

#[test]
fn headers_of_all_levels() {
    use AppendAction::{AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExists, OverwriteIfExistsOrAdd};
    let edits = |add: Vec<HeaderOption>, remove: &[&str]| HeaderEdits {
        request: HeaderEdit { remove: remove.iter().map(|&name| name.into()).collect(), add },
        response: HeaderEdit::default(),
    };
    let level = |name: &str| {
        edits(
            vec![
                option("x-level", name, AppendIfExistsOrAdd),
                option("x-last", name, OverwriteIfExistsOrAdd),
                option("x-first", name, AddIfAbsent),
                option("x-there", name, OverwriteIfExists),
                option("x-not-there", name, OverwriteIfExists),
                option("x-empty", "%REQ(x-none)%", AppendIfExistsOrAdd),
            ],
            &["x-gone"],
        )
    };
    let mut model = routes(vec![route(|r| {
        r.action = forward(|_| {});
        r.headers = level("route");
    })]);
    model.headers = level("all");
    model.virtual_hosts[0].headers = level("host");
    let values = |model: RouteConfiguration| {
        let table = built(model);
        let mut entry = get("/", &[("x-gone", "1"), ("x-there", "1")]);
        let routed = table.look(&entry, 0).unwrap();
        request(&mut entry, &routed, true);
        let headers = &head(&entry).headers;
        assert!(!["x-gone", "x-not-there", "x-empty"].iter().any(|name| headers.contains_key(*name)));
        ["x-level", "x-last", "x-first", "x-there"].map(|name| {
            let all = headers.get_all(name).iter().map(|value| value.to_str().unwrap());
            all.collect::<Vec<_>>().join(",")
        })
    };
    assert_eq!(values(model.clone()), ["route,host,all", "all", "route", "all"]);
    model.most_specific_header_mutations_wins = true;
    assert_eq!(values(model), ["all,host,route", "route", "all", "route"]);
}

#[test]
fn values_are_those_of_the_headers_as_they_were() {
    use AppendAction::{AppendIfExistsOrAdd, OverwriteIfExistsOrAdd};
    let mut kept = option("x-kept", "%REQ(x-none)%", AppendIfExistsOrAdd);
    kept.keep_empty_value = true;
    let add = vec![
        option("x-new", "%REQ(x-old)%-%REQ(:path)%", AppendIfExistsOrAdd),
        option("x-old", "changed", OverwriteIfExistsOrAdd),
        kept,
    ];
    let table = built(routes(vec![route(|r| {
        r.action = forward(|action| action.path_rewrite = PathRewrite::Prefix("/b".into()));
        r.headers.request = HeaderEdit { remove: Vec::new(), add };
    })]));
    let mut entry = get("/a", &[("x-old", "1")]);
    let routed = table.look(&entry, 0).unwrap();
    request(&mut entry, &routed, true);
    let headers = &head(&entry).headers;
    assert_eq!([&headers["x-new"], &headers["x-old"], &headers["x-kept"]], ["1-/a", "changed", ""]);
}

fn location(redirect: Redirect, matched: PathMatch, head: RequestHead) -> String {
    let table = built(routes(vec![route(|r| {
        r.matcher.path = matched;
        r.action = Action::Redirect(Box::new(redirect));
    })]));
    let mut entry = entry(head);
    let routed = table.look(&entry, 0).unwrap();
    let reply = answer(&mut entry, &routed, true).unwrap();
    assert!(reply.routed && reply.status == StatusCode::MOVED_PERMANENTLY);
    reply.headers["location"].to_str().unwrap().to_owned()
}

#[test]
fn redirects() {
    let plain = Redirect {
        scheme: SchemeRewrite::None,
        host: "".into(),
        port: 0,
        path: RedirectPath::None,
        status: 301,
        strip_query: false,
    };
    let with = |change: &dyn Fn(&mut Redirect)| {
        let mut redirect = plain.clone();
        change(&mut redirect);
        redirect
    };
    let regex = || RedirectPath::Regex(RegexSubstitution::new("/a/(.*)", r"/\1/new").unwrap());
    for (redirect, host, path, expected) in [
        (with(&|r| r.scheme = SchemeRewrite::Https), "h:80", "/a?q", "https://h/a?q"),
        (with(&|r| r.scheme = SchemeRewrite::Https), "h:8080", "/a", "https://h:8080/a"),
        (with(&|r| r.scheme = SchemeRewrite::Scheme("x".into())), "[::1]:80", "/a", "x://[::1]/a"),
        (with(&|r| r.port = 8443), "h:80", "/a", "http://h:8443/a"),
        (with(&|r| r.host = "new".into()), "h:80", "/a", "http://new/a"),
        (with(&|r| r.path = RedirectPath::Path("/p".into())), "h", "/a?q", "http://h/p?q"),
        (with(&|r| r.path = RedirectPath::Path("p?x".into())), "h", "/a?q", "http://h/p?x"),
        (with(&|r| r.path = RedirectPath::Prefix("/b".into())), "h", "/a/c?q", "http://h/b/c?q"),
        (with(&|r| r.path = regex()), "h", "/a/c?q", "http://h/c/new?q"),
        (with(&|r| r.strip_query = true), "h", "/a?q", "http://h/a"),
    ] {
        let mut head = RequestHead::new(Method::GET, host, path);
        head.headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
        assert_eq!(location(redirect, PathMatch::Prefix("/a".into()), head), expected);
    }
}

#[test]
fn direct_responses() {
    let direct = |status, body: &str, most| {
        let mut model = routes(vec![route(|r| {
            let body = Content::inline(body);
            r.action = Action::DirectResponse(Box::new(DirectResponse { status, body, body_format: None }));
        })]);
        model.max_direct_response_body_size_bytes = most;
        Routes::new(Arc::new(model), &Stats::new()).map(|table| {
            let mut entry = get("/x", &[]);
            let routed = table.look(&entry, 0).unwrap();
            let reply = answer(&mut entry, &routed, true).unwrap();
            assert_eq!(reply.details, "direct_response");
            (reply.status.as_u16(), reply.body, reply.headers.get("location").cloned())
        })
    };
    assert_eq!(direct(404, "no", 10).unwrap(), (404, "no".into(), None));
    let location = HeaderValue::from_static("http://h/x");
    assert_eq!(direct(302, "", 10).unwrap(), (302, "".into(), Some(location)));
    let error = direct(200, "too long", 3).err().unwrap().to_string();
    assert_eq!(error, "virtual host host: route 0: response body size is 8 bytes; maximum is 3");
}
