//! `envoy.filters.http.jwt_authn` whose keys are elsewhere: fetched over a cluster, kept, fetched again.

mod ahead;

use std::collections::HashMap;
use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shunt_tests::bootstrap::{chain, extension, file_log};
use shunt_tests::{Bootstrap, Cases, Pair, Proxy, eventually, lab};

use crate::http_filters::peer::{Message, ask, server};

const SECRET: &[u8] = b"nobody is to know of this secret";

/// Serves keys by path, and counts who asks for which. It lives as long as the test's process.
#[derive(Clone, Default)]
struct Keys(Arc<Mutex<HashMap<String, usize>>>);

impl Keys {
    fn start(&self) -> Result<SocketAddr> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let keys = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let keys = keys.clone();
                std::thread::spawn(move || keys.serve(&stream));
            }
        });
        Ok(address)
    }

    fn serve(&self, stream: &TcpStream) -> Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = Message::read(&mut reader, None)? {
            let path = request.first.split(' ').nth(1).unwrap_or_default().to_owned();
            let asked = {
                let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let asked = all.entry(path.clone()).or_default();
                *asked += 1;
                *asked
            };
            if path == "/slow" {
                std::thread::sleep(Duration::from_millis(300));
            }
            let (status, body) = answer(&path, asked);
            let mut writer = stream;
            write!(writer, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
        }
        Ok(())
    }

    fn count(&self, path: &str) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied().unwrap_or_default()
    }

    fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// To the one that asks as the so-manieth for it.
fn answer(path: &str, asked: usize) -> (u16, String) {
    let key = |kid: &str| json!({ "kty": "oct", "alg": "HS256", "kid": kid, "k": base64(SECRET) });
    let all = |keys: &[Value]| json!({ "keys": keys }).to_string();
    match path {
        "/down" => (503, String::new()),
        "/flaky" | "/flaky-async" if asked == 1 => (503, String::new()),
        "/garbage" => (200, "{".to_owned()),
        "/empty" => (200, all(&[])),
        "/other" => (200, all(&[key("other")])),
        "/p521" => {
            (200, all(&[json!({ "kty": "EC", "crv": "P-521", "alg": "ES512", "x": "AA", "y": "AA" })]))
        }
        _ => (200, all(&[key("mine")])),
    }
}

/// As in URLs, without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let of = |n: usize| u32::from(chunk.get(n).copied().unwrap_or_default());
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for n in 0..=chunk.len() {
            let digit = (bits >> (18 - 6 * n)) & 63;
            out.push(char::from(DIGITS[digit as usize]));
        }
    }
    out
}

/// RFC 2104, of a key that is no longer than a block.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let pad =
        |with: u8| -> Vec<u8> { (0..64).map(|n| key.get(n).copied().unwrap_or_default() ^ with).collect() };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

fn token(key: &[u8]) -> String {
    let part = |value: Value| base64(value.to_string().as_bytes());
    let head = part(json!({ "alg": "HS256", "typ": "JWT", "kid": "mine" }));
    let claims = part(json!({ "iss": "me", "sub": "you", "exp": 4_000_000_000_u64 }));
    let signed = format!("{head}.{claims}");
    format!("{signed}.{}", base64(&hmac(key, signed.as_bytes())))
}

/// Name, and more of its `remote_jwks`.
const PROVIDERS: &[(&str, &str)] = &[
    ("good", ""),
    ("down", ""),
    (
        "flaky",
        "retry_policy: { num_retries: 2, retry_back_off: { base_interval: 0.01s, max_interval: 0.02s } }",
    ),
    ("garbage", ""),
    ("empty", ""),
    ("other", ""),
    ("p521", ""),
    ("short", "cache_duration: 1s"),
    ("async", "async_fetch: { fast_listener: true }"),
    ("flaky-async", "async_fetch: { failed_refetch_duration: 0.2s }"),
];

fn config(up: SocketAddr, keys: SocketAddr) -> String {
    config_of(PROVIDERS, up, keys)
}

fn config_of(providers: &[(&str, &str)], up: SocketAddr, keys: SocketAddr) -> String {
    let provider = |(name, more): &(&str, &str)| {
        let uri = format!("http_uri: {{ uri: \"http://keys.example/{name}\", cluster: keys, timeout: 20s }}");
        format!("{name}: {{ issuer: me, remote_jwks: {{ {uri}, {more} }} }}")
    };
    let rule = |(name, _): &(&str, &str)| {
        format!("{{ match: {{ path: /{name} }}, requires: {{ provider_name: {name} }} }}")
    };
    let rules: Vec<String> = providers.iter().map(rule).collect();
    let providers: Vec<String> = providers.iter().map(provider).collect();
    let jwt = extension(
        "envoy.filters.http.jwt_authn",
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        &format!("providers: {{ {} }}, rules: [ {} ]", providers.join(", "), rules.join(", ")),
    );
    let router = extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", "");
    let log = file_log("log", "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%");
    let manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &format!(
            "stat_prefix: ing, access_log: [ {log} ], http_filters: [ {jwt}, {router} ], route_config: {{ \
             name: r, virtual_hosts: [ {{ name: v, domains: [ \"*\" ], \
             routes: [ {{ match: {{ prefix: / }}, route: {{ cluster: up }} }} ] }} ] }}"
        ),
    );
    Bootstrap::new()
        .static_cluster("up", &[up], "")
        .static_cluster("keys", &[keys], "")
        .listener("http", &format!("filter_chains: [ {} ]", chain("", &[manager])))
        .yaml()
}

fn asked(proxy: &Proxy, path: &str, token: &str) -> Result<Value> {
    let bearer = format!("Bearer {token}");
    let answer = ask(proxy.at("http")?, "GET", path, &[("authorization", &bearer)], b"")?;
    Ok(answer.compared())
}

#[test]
fn keys_that_are_fetched() -> Result<()> {
    lab(|lab| {
        let (keys, up) = (Keys::default(), server()?);
        let pair = Pair::start(lab, &config(up, keys.start()?))?;
        let (good, bad) = (token(SECRET), token(b"some other secret, which is not known"));
        let mut cases = Cases::new();
        for (name, fetches) in
            [("good", 1), ("down", 1), ("flaky", 2), ("garbage", 1), ("empty", 1), ("other", 1), ("p521", 1)]
        {
            let path = format!("/{name}");
            pair.same(&mut cases, format_args!("jwt: {name}"), |proxy| {
                keys.forget();
                let answers = json!([asked(proxy, &path, &good)?]);
                let found = keys.count(&path);
                // Envoy makes one more than it would have to.
                ensure!(found == fetches || name == "flaky" && found > 1, "{found} fetches");
                Ok(answers)
            });
        }
        pair.same(&mut cases, "jwt: kept keys", |proxy| {
            keys.forget();
            let answers = json!([asked(proxy, "/good", &good)?, asked(proxy, "/good", &bad)?]);
            Ok(json!([answers, keys.count("/good")]))
        });
        pair.same(&mut cases, "jwt: keys that have become old", |proxy| {
            keys.forget();
            let first = asked(proxy, "/short", &good)?;
            std::thread::sleep(Duration::from_millis(1500));
            Ok(json!([first, asked(proxy, "/short", &good)?, keys.count("/short")]))
        });
        pair.same(&mut cases, "jwt: keys that are fetched ahead", |proxy| {
            Ok(json!([asked(proxy, "/async", &good)?, asked(proxy, "/async", &bad)?]))
        });
        cases.case("jwt: keys that come at last", || {
            for proxy in pair.both() {
                keys.forget();
                eventually("the keys are there", Duration::from_secs(20), || {
                    let answer = asked(proxy, "/flaky-async", &good)?;
                    ensure!(answer["status"] == "200", "{answer}");
                    Ok(())
                })?;
            }
            Ok(())
        });
        cases.finish()
    })
}
