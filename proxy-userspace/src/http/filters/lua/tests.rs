use http::{HeaderValue, StatusCode};
use proxy_config::model::http::filters::Lua as Model;
use proxy_config::model::http::{Content, FilterKind, RouteConfiguration};

use crate::http::testing::{Rig, respond};

fn rig(code: &str) -> Rig {
    let model = Model {
        code: Some(Content::inline(code)),
        named: Default::default(),
        stat_prefix: "".into(),
        clear_route_cache: true,
        filter_context: Default::default(),
    };
    Rig::new(vec![("lua", FilterKind::Lua(Box::new(model)))], RouteConfiguration::default())
}

#[tokio::test]
async fn headers_of_both_ways() {
    let rig = rig(r#"
        function envoy_on_request(handle)
            local headers = handle:headers()
            headers:add("x-path", headers:get(":path"))
            headers:replace("x-old", "new")
            headers:remove("x-gone")
            local count = 0
            for name, value in pairs(headers) do count = count + 1 end
            headers:add("x-count", count)
        end
        function envoy_on_response(handle)
            handle:headers():add("location", "China")
            handle:headers():replace(":status", "201")
        end"#);
    let mut stream = rig.with("/a?b", &[("x-old", "old"), ("x-gone", "1")]);
    rig.exchange(&mut stream, |stream| {
        let headers = &stream.request().headers;
        assert_eq!(headers.get("x-path"), Some(&HeaderValue::from_static("/a?b")));
        assert_eq!(headers.get("x-old"), Some(&HeaderValue::from_static("new")));
        assert!(!headers.contains_key("x-gone"));
        assert!(headers.contains_key("x-count"));
        respond(stream, 200, &[], "body");
    })
    .await
    .unwrap();
    let response = stream.response().unwrap();
    assert_eq!(response.status, StatusCode::CREATED);
    assert_eq!(response.headers.get("location"), Some(&HeaderValue::from_static("China")));
    assert_eq!(rig.stats.value("http.test.lua.executions"), Some(2));
}

#[tokio::test]
async fn an_answer_of_its_own() {
    let rig = rig(r#"
        function envoy_on_request(handle)
            handle:respond({[":status"] = "403", ["x-why"] = "lua"}, "nope")
            error("not reached")
        end"#);
    let mut stream = rig.get("/");
    rig.exchange(&mut stream, |_| panic!("it went upstream")).await.unwrap();
    let response = stream.response().unwrap();
    assert_eq!(response.status, StatusCode::FORBIDDEN);
    assert_eq!(response.headers.get("x-why"), Some(&HeaderValue::from_static("lua")));
    assert_eq!(stream.entry.outcome.response_code_details.as_deref(), Some("lua_response"));
    assert_eq!(rig.stats.value("http.test.lua.errors"), Some(0));
}

#[tokio::test]
async fn what_fails_is_counted_and_its_request_goes_on() {
    for code in [
        "function envoy_on_request(handle) error('on purpose') end",
        "function envoy_on_request(handle) while true do end end",
        "function envoy_on_request(handle) local t = {} while true do t[#t + 1] = string.rep('x', 1000000) end end",
        "function envoy_on_request(handle) handle:headers():add('bad name', 'x') end",
        "function envoy_on_request(handle) handle:nothing() end",
    ] {
        let rig = rig(code);
        let mut stream = rig.get("/");
        rig.exchange(&mut stream, |stream| respond(stream, 200, &[], "body")).await.unwrap();
        assert_eq!(stream.response().unwrap().status, StatusCode::OK, "{code}");
        assert_eq!(rig.stats.value("http.test.lua.errors"), Some(1), "{code}");
    }
}

#[tokio::test]
async fn a_body_is_read_and_changed() {
    let rig = rig(r#"
        function envoy_on_response(handle)
            local body = handle:body()
            handle:headers():add("x-length", body:length())
            handle:headers():add("x-part", body:getBytes(1, 3))
            body:setBytes("<" .. body:getBytes(0, body:length()) .. ">")
            handle:streamInfo():dynamicMetadata():set("ns", "key", {a = 1, b = {"x"}})
        end"#);
    let mut stream = rig.get("/");
    rig.exchange(&mut stream, |stream| respond(stream, 200, &[], "hello")).await.unwrap();
    let headers = &stream.response().unwrap().headers;
    assert_eq!(headers.get("x-length"), Some(&HeaderValue::from_static("5")));
    assert_eq!(headers.get("x-part"), Some(&HeaderValue::from_static("ell")));
    assert!(stream.http().dynamic_metadata.of("ns").is_some());
}

#[tokio::test]
async fn a_context() {
    use proxy_config::model::metadata::{Struct, Value};

    let mut context = Struct::new();
    context.insert("of".to_owned(), Value::String("filter".to_owned()));
    let model = Model {
        code: Some(Content::inline(
            r#"function envoy_on_request(handle)
                handle:headers():add("x-of", handle:filterContext():get("of"))
                handle:headers():add("x-none", tostring(handle:filterContext():get("none")))
            end"#,
        )),
        named: Default::default(),
        stat_prefix: "".into(),
        clear_route_cache: true,
        filter_context: context,
    };
    let rig = Rig::new(vec![("lua", FilterKind::Lua(Box::new(model)))], RouteConfiguration::default());
    rig.exchange(&mut rig.get("/"), |stream| {
        let headers = &stream.request().headers;
        assert_eq!(headers.get("x-of"), Some(&HeaderValue::from_static("filter")));
        assert_eq!(headers.get("x-none"), Some(&HeaderValue::from_static("nil")));
        respond(stream, 200, &[], "");
    })
    .await
    .unwrap();
}
