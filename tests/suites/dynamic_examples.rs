//! Two of the three ways of the dynamic configuration post, from `examples/`: followed files, and a control plane. (The
//! static file is `http-static.yaml`.) What it says is answered, is answered: `v1`, and `v2` after the change.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::example::Example;
use shunt_tests::xds::{Resource, Type};
use shunt_tests::{Cases, ControlPlane, Lab, Nginx, Pair, Place, Proxy, eventually, lab};

use crate::xds_common::LIMIT;

const LISTENER: &str = "listener_0";

/// The post's two nginx: each says its version.
fn nginx(lab: &Lab) -> Result<[Nginx; 2]> {
    let page = |version: &str| Nginx::pages(lab, version, &[("index.html", &format!("{version}\n"))]);
    Ok([page("v1")?, page("v2")?])
}

/// `curl localhost:8080`
fn curl(lab: &Lab, proxy: &Proxy) -> Result<String> {
    let url = format!("http://{}", proxy.listening(LISTENER)?);
    let out = lab.program("curl", &Place::default())?.args(["-sSf", "--max-time", "10", &url]).run()?;
    Ok(out.stdout.trim_end().to_owned())
}

fn becomes(lab: &Lab, proxy: &Proxy, version: &str) -> Result<Value> {
    eventually(version, LIMIT, || {
        let answer = curl(lab, proxy)?;
        ensure!(answer == version, "{answer}");
        Ok(json!(answer))
    })
}

/// The files of the post below a directory, with clusters at this address.
fn files(lab: &Lab, v1: &Nginx) -> Result<std::path::PathBuf> {
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
        let [v1, v2] = nginx(lab)?;
        let dir = files(lab, &v1)?;
        let example = Example::load("dynamic-filesystem.yaml")?.free(15_000)?;
        let example = example.with("/etc/shunt/dynamic", &dir.display().to_string())?;
        let pair = Pair::start(lab, example.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the post, file mode: curl", |proxy| Ok(json!(curl(lab, proxy)?)));
        write(&dir, "cds.yaml", Example::load("dynamic/cds.yaml")?.backend(8081, v2.address)?.yaml())?;
        pair.same(&mut cases, "the post, file mode: after the change", |proxy| becomes(lab, proxy, "v2"));
        cases.finish()
    })
}

/// `utils.GenerateSnapshot`
fn snapshot(upstream: &Nginx) -> Result<[Resource; 2]> {
    let clusters = Example::load("dynamic/cds.yaml")?.backend(8081, upstream.address)?;
    let listeners = Example::load("dynamic/lds.yaml")?.free(8080)?;
    Ok([resource(Type::Cluster, &clusters)?, resource(Type::Listener, &listeners)?])
}

fn resource(of: Type, example: &Example) -> Result<Resource> {
    let all: Value = serde_saphyr::from_str(example.yaml())?;
    let mut one = all["resources"][0].clone();
    if let Some(fields) = one.as_object_mut() {
        fields.remove("@type");
    }
    Resource::from_value(of, one)
}

#[test]
fn from_a_control_plane() -> Result<()> {
    lab(|lab| {
        let [v1, v2] = nginx(lab)?;
        let plane = ControlPlane::start()?;
        plane.snapshot(snapshot(&v1)?);
        let example = Example::load("dynamic-controlplane.yaml")?.free(15_000)?;
        let example = example.port(18_000, plane.address()?.port())?;
        let pair = Pair::start(lab, example.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "the post, control plane: curl", |proxy| Ok(json!(curl(lab, proxy)?)));
        plane.snapshot(snapshot(&v2)?);
        pair.same(&mut cases, "the post, control plane: after the snapshot", |proxy| {
            becomes(lab, proxy, "v2")
        });
        cases.finish()
    })
}
