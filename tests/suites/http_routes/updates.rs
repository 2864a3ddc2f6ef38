//! RDS by file: routes that change under a connection that stays.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::{Bootstrap, Kind, Place, Proxy, eventually, lab};

use super::{host, manager, named};

fn routes(version: &str, routes: &[String]) -> String {
    let host = host("v", &["*"], routes, "");
    let of_type = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    format!(
        "version_info: {version:?}\nresources: [ {{ \"@type\": {of_type}, name: r, virtual_hosts: [ {host} ] }} ]\n"
    )
}

/// As a writer should: the file is there as a whole.
fn put(dir: &Path, text: &str) -> Result<()> {
    let (new, file) = (dir.join("new"), dir.join("rds.yaml"));
    fs::write(&new, text)?;
    Ok(fs::rename(new, file)?)
}

/// By one connection.
fn asked(stream: &mut TcpStream, path: &str) -> Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes())?;
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        text.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&text).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(Ok(0), str::parse)?];
    stream.read_exact(&mut body)?;
    Ok(format!("{} {}", head.split(' ').nth(1).unwrap_or_default(), String::from_utf8_lossy(&body)))
}

/// A bootstrap whose listener `l` takes its routes from this directory.
fn following(dir: &Path) -> String {
    let file = dir.join("rds.yaml");
    let rds = format!(
        "rds: {{ route_config_name: r, config_source: {{ path_config_source: {{ path: {file:?} }} }} }}"
    );
    let top = "node: { id: here, cluster: there }";
    Bootstrap::new().top(top).listener("l", &manager("h", &rds)).yaml()
}

#[test]
fn routes_of_a_file_change_under_a_connection_that_stays() -> Result<()> {
    lab(|lab| {
        for kind in Kind::BOTH {
            // Envoy wants the file to be there.
            let dir = lab.dir().join(format!("routes-{}", kind.name()));
            fs::create_dir(&dir)?;
            put(&dir, &routes("1", &[named("one", "prefix: /")]))?;
            let config = following(&dir);
            let proxy = Proxy::start(lab, kind, &config)?;
            let mut stream = TcpStream::connect(proxy.listening("l")?)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            ensure!(asked(&mut stream, "/")? == "200 one");
            put(&dir, &routes("2", &[named("two", "path: /two")]))?;
            eventually("the update", Duration::from_secs(10), || {
                let said = asked(&mut stream, "/two")?;
                ensure!(said == "200 two", "{said}");
                Ok(())
            })?;
            ensure!(asked(&mut stream, "/")? == "404 ");
            // Two virtual hosts of one domain: refused, and what was there holds.
            let bad = routes("3", &[]).replace("\"*\"", "\"a\", \"a\"");
            put(&dir, &bad)?;
            proxy.expect_stat("http.h.rds.r.update_rejected", 1)?;
            ensure!(asked(&mut stream, "/two")? == "200 two");
            proxy.expect_stat("http.h.rds.r.config_reload", 2)?;
        }
        Ok(())
    })
}

#[test]
fn an_update_of_routes_is_told() -> Result<()> {
    lab(|lab| {
        let dir = lab.dir().join("routes");
        fs::create_dir(&dir)?;
        put(&dir, &routes("1", &[named("one", "prefix: /")]))?;
        let config = following(&dir);
        let proxy = Proxy::start(lab, Kind::Shunt, &config)?;
        proxy.listening("l")?;
        let admin = proxy.admin().address().context("no admin address")?.to_string();
        let watch =
            lab.shunt(&Place::default())?.args(["config", "watch", "--type", "RDS", "--admin", &admin]);
        let watch = watch.spawn()?;
        let told = |what: &[&str]| {
            eventually("a line", Duration::from_secs(10), || {
                let text = watch.stdout();
                let found = text.lines().any(|line| what.iter().all(|word| line.contains(word)));
                ensure!(found, "no {what:?} in {text:?}");
                Ok(())
            })
        };
        put(&dir, &routes("2", &[named("two", "path: /two")]))?;
        told(&["RDS 2 +0 -0 ~1 ACK"])?;
        put(&dir, &routes("3", &[]).replace("\"*\"", "\"a\", \"a\""))?;
        told(&["RDS 3", "NACK"])
    })
}
