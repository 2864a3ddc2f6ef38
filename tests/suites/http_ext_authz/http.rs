//! A service that is asked by plain HTTP.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};
use shunt_tests::lab;
use shunt_tests::ports::nobody;

use super::{Asked, Site, bootstrap, compare, get, post};
use crate::http_filters::peer::{Message, server};

/// What a service was asked, and which answers it gives: by the last part of the path, up to the query.
#[derive(Clone, Default)]
struct Authz(Arc<Mutex<Vec<Value>>>);

impl Authz {
    /// It lives as long as the test's process.
    fn start(&self) -> Result<SocketAddr> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let all = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let all = all.clone();
                std::thread::spawn(move || all.serve(&stream));
            }
        });
        Ok(address)
    }

    fn serve(&self, stream: &TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = Message::read(&mut reader, None)? {
            let mut headers = request.headers.clone();
            if let Some(id) = headers.get_mut("x-request-id") {
                *id = vec!["…".to_owned()];
            }
            let body = String::from_utf8_lossy(&request.body).into_owned();
            let told = json!({ "asked": request.first, "headers": headers, "body": body });
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(told);
            let path =
                request.first.split(' ').nth(1).and_then(|path| path.split('?').next()).unwrap_or_default();
            let Some(answer) = answer(path.rsplit('/').next().unwrap_or_default()) else { return Ok(()) };
            let mut writer = stream;
            writer.write_all(answer.replace('\n', "\r\n").as_bytes())?;
        }
        Ok(())
    }

    fn taken(&self) -> Value {
        json!(std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// None: the connection ends.
fn answer(name: &str) -> Option<&'static str> {
    const HEADERS: &str = "HTTP/1.1 200 OK
content-length: 5
content-type: text/plain
x-up: 1
x-up: 2
x-append: 3
x-append: 4
x-client: 5
x-client: 6
x-meta: 7
x-envoy-auth-headers-to-remove: x-gone, ,X-Gone-Too,host

hello";
    const DENIED: &str = "HTTP/1.1 401 Unauthorized
content-length: 5
content-type: text/html
www-authenticate: Basic
location: /login
set-cookie: a=1
set-cookie: b=2
x-client: 5
x-up: 6
x-meta: 7
x-envoy-auth-headers-to-remove: x-gone

who?!";
    Some(match name {
        "gone" => return None,
        "headers" => HEADERS,
        "denied" => DENIED,
        "chunked" => "HTTP/1.1 403 Forbidden\ntransfer-encoding: chunked\n\n3\nabc\n0\n\n",
        "redirect" => "HTTP/1.1 302 Found\nlocation: /there\ncontent-length: 0\n\n",
        "created" => "HTTP/1.1 201 Created\ncontent-length: 0\nx-up: 1\n\n",
        "503" => "HTTP/1.1 503 Later\ncontent-length: 3\nx-client: 1\n\nabc",
        "600" => "HTTP/1.1 600 Odd\ncontent-length: 3\n\nabc",
        _ => "HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    })
}

fn service(more: &str, fields: &str) -> String {
    let uri = "server_uri: { uri: \"http://authz.example\", cluster: authz, timeout: 20s }";
    format!("http_service: {{ {uri}, {more} }}, {fields}")
}

/// The longest pause is also how long each attempt may take.
fn again(policy: &str) -> String {
    format!("retry_policy: {{ {policy}, retry_back_off: {{ base_interval: 0.01s, max_interval: 5s }} }}")
}

fn sites() -> Vec<Site> {
    let listed = "authorization_request: { headers_to_add: [ { key: x-added, value: \"of %REQ(:PATH)%\" }, \
        { key: x-ours, value: over } ] }, authorization_response: { \
        allowed_upstream_headers: { patterns: [ { exact: x-up } ] }, \
        allowed_upstream_headers_to_append: { patterns: [ { prefix: x-app } ] }, \
        allowed_client_headers: { patterns: [ { exact: x-client, ignore_case: true } ] }, \
        allowed_client_headers_on_success: { patterns: [ { exact: X-CLIENT, ignore_case: true } ] }, \
        dynamic_metadata_from_headers: { patterns: [ { prefix: x-me } ] } }";
    let override_ = |path: &str| {
        format!(
            "check_settings: {{ http_service: {{ \
             server_uri: {{ uri: \"http://other\", cluster: other, timeout: 20s }}, {path} }} }}"
        )
    };
    vec![
        Site::new("plain", service("", "")),
        Site::new(
            "listed",
            service(
                listed,
                "allowed_headers: { patterns: [ { prefix: x- }, { exact: content-type } ] }, \
            disallowed_headers: { patterns: [ { exact: x-secret } ] }",
            ),
        ),
        Site::new("prefix", service("path_prefix: /before", "clear_route_cache: true")),
        Site::new("override", service("path_override: /always/denied", "")),
        Site::new(
            "body",
            service("", "with_request_body: { max_request_bytes: 10, allow_partial_message: true }"),
        ),
        Site::new(
            "strict",
            service("", "with_request_body: { max_request_bytes: 10 }, failure_mode_allow: true"),
        ),
        Site::new("status", service("", "status_on_error: { code: 500 }, validate_mutations: true")),
        Site::new("routes", service("", ""))
            .route("/elsewhere", &override_("path_prefix: /here"))
            .route("/overridden", &override_("path_override: /x/denied")),
        Site::new("again", service(&again("retry_on: 5xx, num_retries: 2"), "")),
        Site::new("again-reset", service(&again("retry_on: \"reset,gateway-error\""), "")),
        Site::new("again-nothing", service(&again("num_retries: 2"), "")),
        Site::new("again-once", service("retry_policy: {}", "")),
        Site::new("shadow", service("", "shadow_mode: true")),
        Site::new("shadow-open", service("", "shadow_mode: true, failure_mode_allow: true")),
        Site::new("shadow-strict", service("", "shadow_mode: true, status_on_error: { code: 501 }")),
        Site::new(
            "dead",
            "http_service: { server_uri: { uri: \"http://dead\", cluster: dead, timeout: 20s } }",
        ),
    ]
}

fn asked() -> Vec<Asked> {
    vec![
        get("plain", "/a?b=c").with(&[("authorization", "Basic me"), ("x-not", "told"), ("cookie", "a=b")]),
        get("plain", "/a").method("HEAD"),
        get("plain", "/a").method("DELETE"),
        post("plain", "/a", b"not read"),
        get("plain", "/headers").with(&[("x-gone", "1"), ("x-up", "0")]),
        get("plain", "/denied"),
        get("plain", "/denied").method("HEAD"),
        post("plain", "/denied", b"x").with(&[("content-type", "application/grpc")]),
        get("plain", "/chunked"),
        get("plain", "/redirect"),
        get("plain", "/created"),
        get("plain", "/503"),
        get("plain", "/gone"),
        get("listed", "/a").with(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-dup", "1"),
            ("x-dup", "2"),
            ("x-secret", "1"),
            ("x-ours", "1"),
            ("content-type", "text/plain"),
        ]),
        get("listed", "/headers").with(&[
            ("x-gone", "1"),
            ("x-gone-too", "1"),
            ("x-up", "0"),
            ("x-append", "0"),
            ("x-want-header", "x-client: 0"),
        ]),
        get("listed", "/denied"),
        get("listed", "/created"),
        get("prefix", "/a?b"),
        get("prefix", "/headers"),
        get("override", "/a?b"),
        post("body", "/a", b"five5"),
        post("body", "/a", b"ten bytes!"),
        post("body", "/a", b"more than ten bytes"),
        get("body", "/a").with(&[("x-envoy-auth-partial-body", "true")]),
        post("strict", "/a", b"eleven byte"),
        post("strict", "/a", b"\xff\x00"),
        get("strict", "/503"),
        get("strict", "/gone"),
        get("status", "/503"),
        get("status", "/headers"),
        get("status", "/denied"),
        get("routes", "/a"),
        get("routes", "/elsewhere/denied"),
        get("routes", "/overridden"),
        get("dead", "/a"),
        get("again", "/503"),
        get("again", "/gone"),
        get("again", "/denied"),
        get("again", "/a"),
        get("again-reset", "/503"),
        get("again-reset", "/gone"),
        get("again-reset", "/denied"),
        get("again-nothing", "/503"),
        get("again-once", "/503"),
        get("shadow", "/a"),
        get("shadow", "/headers"),
        get("shadow", "/denied"),
        get("shadow", "/503"),
        get("shadow", "/gone"),
        get("shadow-open", "/503"),
        get("shadow-strict", "/503"),
    ]
}

#[test]
fn by_http() -> Result<()> {
    lab(|lab| {
        let (authz, other, up) = (Authz::default(), Authz::default(), server()?);
        let dead = nobody()?;
        let clusters = [("authz", authz.start()?, ""), ("other", other.start()?, ""), ("dead", dead, "")];
        let sites = sites();
        let config = bootstrap(up, &sites, &clusters);
        compare(lab, &config, &sites, &asked(), || json!([authz.taken(), other.taken()]))
    })
}
