//! Keys that are fetched before anybody asks for them.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::{Cases, Kind, Proxy, eventually, lab};

use super::{Keys, SECRET, asked, config_of, token};
use crate::http_filters::peer::server;

/// Name, more of its `remote_jwks`, and how many fetches there are at least while nobody asks.
const AHEAD: &[(&str, &str, usize)] = &[
    ("fast", "async_fetch: { fast_listener: true }", 1),
    ("slow", "async_fetch: {}", 1),
    ("flaky-async", "async_fetch: { failed_refetch_duration: 0.2s }", 2),
    ("renewed", "async_fetch: {}, cache_duration: 6s", 2),
    ("never", "", 0),
];

#[test]
fn keys_that_are_fetched_before_anybody_asks() -> Result<()> {
    lab(|lab| {
        let up = server()?;
        let mut cases = Cases::new();
        for kind in [Kind::Envoy, Kind::Shunt] {
            // What a proxy asks at its start is its own.
            let keys = Keys::default();
            let providers: Vec<_> = AHEAD.iter().map(|(name, more, _)| (*name, *more)).collect();
            let proxy = Proxy::start(lab, kind, &config_of(&providers, up, keys.start()?))?;
            cases.case(format_args!("jwt: a listener waits for its keys, {}", kind.name()), || {
                let fetched = keys.count("/slow");
                ensure!(fetched == 1, "{fetched} fetches");
                let answer = asked(&proxy, "/slow", &token(SECRET))?;
                ensure!(answer["status"] == "200" && keys.count("/slow") == 1, "{answer}");
                Ok(())
            });
            for (name, _, fetches) in AHEAD {
                cases.case(format_args!("jwt: fetched ahead, {name}, {}", kind.name()), || {
                    eventually("as many fetches", Duration::from_secs(10), || {
                        let found = keys.count(&format!("/{name}"));
                        ensure!(found >= *fetches && found <= fetches + 8, "{found} fetches");
                        Ok(())
                    })
                });
            }
            cases.case(format_args!("jwt: keys are there already, {}", kind.name()), || {
                let before = keys.count("/fast");
                let answer = asked(&proxy, "/fast", &token(SECRET))?;
                ensure!(answer["status"] == "200" && keys.count("/fast") == before, "{answer}");
                let succeeded = proxy.stats()?.of("http.ing.jwt_authn.jwks_fetch_success");
                ensure!(succeeded >= 4, "{succeeded} fetches");
                Ok(())
            });
        }
        cases.finish()
    })
}
