//! The three ways of the dynamic configuration post, from `examples/`: a static file, followed files, a control plane.
//! What it says is answered, is answered: `v1`, and `v2` after the change.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::example::Example;
use shunt_tests::xds::{Resource, Type};
use shunt_tests::{Cases, Client, ControlPlane, End, Lab, Pair, Proxy, Upstream, eventually, lab};

use crate::xds_common::{LIMIT, relay};

const LISTENER: &str = "listener_0";

/// The post's two nginx: each says its version.
fn nginx() -> Result<[Upstream; 2]> {
    Ok([Upstream::echo("v1")?, Upstream::echo("v2")?])
}

/// `curl localhost:8080`
fn curl(proxy: &Proxy) -> Result<String> {
    let mut client = Client::connect(proxy.listening(LISTENER)?)?;
    let answer = client.ask("x")?;
    client.half_close()?;
    ensure!(client.end()?.1 == End::Eof, "no good end");
    Ok(answer.trim_end_matches(" x").to_owned())
}

fn becomes(proxy: &Proxy, version: &str) -> Result<Value> {
    eventually(version, LIMIT, || {
        let answer = curl(proxy)?;
        ensure!(answer == version, "{answer}");
        Ok(json!(answer))
    })
}

#[test]
fn from_a_static_file() -> Result<()> {
    lab(|lab| {
        let [v1, v2] = nginx()?;
        let example = Example::load("dynamic-static.yaml")?.free(15_000)?.free(8080)?;
        let example = example.backend(8081, v1.address)?.backend(8082, v2.address)?;
        let pair = Pair::start(lab, example.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the post, static: ten times curl", |proxy| {
            let answers = (0..10).map(|_| curl(proxy)).collect::<Result<Vec<_>>>()?;
            let of = |version: &str| answers.iter().filter(|answer| *answer == version).count();
            Ok(json!([of("v1"), of("v2")]))
        });
        cases.finish()
    })
}

/// The files of the post below a directory, with clusters at this address.
fn files(lab: &Lab, v1: &Upstream) -> Result<std::path::PathBuf> {
    let dir = lab.dir().join("dynamic");
    fs::create_dir(&dir)?;
    write(&dir, "lds.yaml", Example::load("dynamic/lds.yaml")?.free(8080)?.yaml())?;
    write(&dir, "cds.yaml", Example::load("dynamic/cds.yaml")?.backend(8081, v1.address)?.yaml())?;
    Ok(dir)
}

/// As `mv` does it.
fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let new = dir.join("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, dir.join(name))?)
}

#[test]
fn from_followed_files() -> Result<()> {
    lab(|lab| {
        let [v1, v2] = nginx()?;
        let dir = files(lab, &v1)?;
        let example = Example::load("dynamic-filesystem.yaml")?.free(15_000)?;
        let example = example.with("/etc/shunt/dynamic", &dir.display().to_string())?;
        let pair = Pair::start(lab, example.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the post, file mode: curl", |proxy| Ok(json!(curl(proxy)?)));
        write(&dir, "cds.yaml", Example::load("dynamic/cds.yaml")?.backend(8081, v2.address)?.yaml())?;
        pair.same(&mut cases, "the post, file mode: after the change", |proxy| becomes(proxy, "v2"));
        cases.finish()
    })
}

/// `utils.GenerateSnapshot`
fn snapshot(upstream: &Upstream) -> Result<[Resource; 2]> {
    let text = Example::load("dynamic/cds.yaml")?.backend(8081, upstream.address)?;
    let all: Value = serde_saphyr::from_str(text.yaml())?;
    let mut cluster = all["resources"][0].clone();
    if let Some(fields) = cluster.as_object_mut() {
        fields.remove("@type");
    }
    Ok([Resource::from_value(Type::Cluster, cluster)?, relay(LISTENER, "jtthink_cluster")?])
}

#[test]
fn from_a_control_plane() -> Result<()> {
    lab(|lab| {
        let [v1, v2] = nginx()?;
        let plane = ControlPlane::start()?;
        plane.snapshot(snapshot(&v1)?);
        let example = Example::load("dynamic-controlplane.yaml")?.free(15_000)?;
        let example = example.port(18_000, plane.address()?.port())?;
        let pair = Pair::start(lab, example.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the post, control plane: curl", |proxy| Ok(json!(curl(proxy)?)));
        plane.snapshot(snapshot(&v2)?);
        pair.same(&mut cases, "the post, control plane: after the snapshot", |proxy| becomes(proxy, "v2"));
        cases.finish()
    })
}
