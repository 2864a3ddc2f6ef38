//! The HTTP configurations of the posts, from `examples/`, with nginx behind and curl in front: what a post shows, is so.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::example::Example;
use shunt_tests::ports::free;
use shunt_tests::{Cases, Kind, Lab, Nginx, Pair, Place, Proxy, lab};

const LISTENER: &str = "listener_0";

/// What curl shows of a response.
struct Shown {
    status: u64,
    headers: Vec<(String, String)>,
    body: String,
}

impl Shown {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Without what differs from one time to the next.
    fn json(&self) -> Value {
        let steady =
            |name: &str| !matches!(name, "date" | "x-envoy-upstream-service-time" | "last-modified" | "etag");
        let mut headers: Vec<_> = self.headers.iter().filter(|(name, _)| steady(name)).collect();
        headers.sort();
        json!({ "status": self.status, "headers": headers, "body": self.body })
    }
}

fn curl(lab: &Lab, proxy: &Proxy, listener: &str, path: &str, more: &[&str]) -> Result<Shown> {
    let url = format!("http://{}{path}", proxy.listening(listener)?);
    let spawn =
        lab.program("curl", &Place::default())?.args(["-s", "-i", "--max-time", "10", &url]).args(more);
    let text = spawn.run()?.stdout;
    let (head, body) = text.split_once("\r\n\r\n").context("no head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Ok(Shown { status, headers, body: body.to_owned() })
}

/// The post's nginx, which says its version.
fn nginx(lab: &Lab, version: &str) -> Result<Nginx> {
    Nginx::pages(lab, version, &[("index.html", &format!("{version}\n"))])
}

fn start(lab: &Lab, name: &str, v1: &Nginx) -> Result<Pair> {
    let example = Example::load(name)?.free(15_000)?.free(8080)?.backend(8081, v1.address)?;
    Pair::start(lab, example.yaml())
}

#[test]
fn six_of_ten_requests_meet_v2() -> Result<()> {
    lab(|lab| {
        let (v1, v2) = (nginx(lab, "v1")?, nginx(lab, "v2")?);
        let example = Example::load("http-static.yaml")?.free(15_000)?.free(8080)?;
        let pair = Pair::start(lab, example.backend(8081, v1.address)?.backend(8082, v2.address)?.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the post, static: ten times curl by HTTP", |proxy| {
            let bodies = (0..10)
                .map(|_| Ok(curl(lab, proxy, LISTENER, "/", &[])?.body))
                .collect::<Result<Vec<_>>>()?;
            let of = |version: &str| bodies.iter().filter(|body| body.trim() == version).count();
            ensure!((of("v1"), of("v2")) == (4, 6), "{bodies:?}");
            Ok(json!([of("v1"), of("v2")]))
        });
        cases.finish()
    })
}

#[test]
fn the_inspector_counts_what_it_finds() -> Result<()> {
    lab(|lab| {
        let v1 = nginx(lab, "v1")?;
        let pair = start(lab, "http-listener_filters.yaml", &v1)?;
        for proxy in pair.both() {
            for _ in 0..3 {
                ensure!(curl(lab, proxy, LISTENER, "/", &[])?.body == "v1\n", "another page");
            }
            proxy.expect_stat("http_inspector.http11_found", 3)?;
        }
        Ok(())
    })
}

#[test]
fn headers_are_added_paths_rewritten_scripts_run() -> Result<()> {
    lab(|lab| {
        let v1 = nginx(lab, "v1")?;
        let mut cases = Cases::new();
        let host = ["-H", "Host: abc.com"];
        for (name, path, script) in [
            ("http-network_filters.yaml", "/", false),
            ("http-rewrite.yaml", "/abc/index", false),
            ("http-lua.yaml", "/", true),
        ] {
            let pair = start(lab, name, &v1)?;
            pair.same(&mut cases, format!("the post, {name}"), |proxy| {
                let shown = curl(lab, proxy, LISTENER, path, &host)?;
                ensure!(shown.status == 200 && shown.body == "v1\n", "{} {}", shown.status, shown.body);
                ensure!(shown.header("server") == Some("envoy"), "{:?}", shown.headers);
                ensure!(shown.header("myname") == Some("chengzw"), "{:?}", shown.headers);
                ensure!(shown.header("age") == Some("18"), "{:?}", shown.headers);
                ensure!(shown.header("location").is_some() == script, "{:?}", shown.headers);
                ensure!(shown.header("x-envoy-upstream-service-time").is_some(), "{:?}", shown.headers);
                Ok(shown.json())
            });
        }
        let pair = start(lab, "http-rewrite.yaml", &v1)?;
        pair.same(&mut cases, "the post, http-rewrite.yaml: no other path", |proxy| {
            Ok(curl(lab, proxy, LISTENER, "/index.html", &host)?.json())
        });
        cases.finish()
    })
}

#[test]
fn the_agents_listeners() -> Result<()> {
    lab(|lab| {
        let agent = Nginx::server(lab, "agent", "location /healthz/ready { return 200 \"\"; }")?;
        for kind in Kind::BOTH {
            // The admin's port is a cluster's, too.
            let example = Example::load("sidecar-agent.yaml")?.free(15_090)?.free(15_021)?;
            let example = example.backend(15_020, agent.address)?.backend(15_000, free()?)?;
            let proxy = Proxy::start(lab, kind, example.yaml())?;
            let status =
                |listener, path| Ok::<_, anyhow::Error>(curl(lab, &proxy, listener, path, &[])?.status);
            ensure!(status("agent", "/healthz/ready")? == 200, "{}", kind.name());
            ensure!(status("agent", "/other")? == 404, "{}", kind.name());
            let page = curl(lab, &proxy, "stats", "/stats/prometheus", &[])?;
            ensure!(page.body.contains("envoy_server_live"), "{}: {}", kind.name(), page.status);
            ensure!(status("stats", "/config_dump")? == 404, "{}", kind.name());
        }
        Ok(())
    })
}
