//! Dynamic resources from files, replaced as the kubelet replaces a ConfigMap's: by one rename of a link.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{chain, tcp_proxy};
use shunt_tests::xds::{self, Resource};
use shunt_tests::{Bootstrap, Cases, Pair, Proxy, Upstream, eventually, lab};

use crate::sds::Mount;
use crate::xds_common::{
    Held, LIMIT, answers, bad_listener, cluster, cluster_with, deny, discovered, endpoints, extension,
    listener, named, relay, who,
};

fn source(path: &Path, watched: Option<&Path>) -> String {
    let watched = watched.map_or(String::new(), |dir| format!("watched_directory: {{ path: {dir:?} }}"));
    format!("{{ path_config_source: {{ path: {path:?}, {watched} }}, resource_api_version: V3 }}")
}

/// LDS and CDS of a directory's files.
fn dynamic(mount: &Mount) -> Bootstrap {
    let watched = mount.at("");
    let of = |file: &str| source(&mount.at(file), Some(&watched));
    let (lds, cds) = (of("lds.yaml"), of("cds.yaml"));
    named().top(&format!("dynamic_resources: {{ lds_config: {lds}, cds_config: {cds} }}"))
}

fn swap(mount: &Mount, version: &str, files: &[(&str, &[Resource])]) -> Result<()> {
    let texts: Vec<(&str, String)> =
        files.iter().map(|(name, resources)| (*name, xds::file(version, resources))).collect();
    let files: Vec<(&str, &[u8])> = texts.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    mount.swap(&files)
}

#[test]
fn a_config_map_with_everything() -> Result<()> {
    lab(|lab| {
        let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
        let mount = Mount::new(lab, "config")?;
        let eds = source(&mount.at("eds.yaml"), Some(&mount.at("")));
        let service =
            cluster_with("service", &format!("type: EDS, eds_cluster_config: {{ eds_config: {eds} }}"))?;
        let filters = [
            discovered("acl", &source(&mount.at("ecds.yaml"), Some(&mount.at("")))),
            tcp_proxy("in", "cluster: service"),
        ];
        let guarded = listener("in", &format!("filter_chains: [ {} ]", chain("", &filters)))?;
        let put = |version: &str, up: &Upstream, denied: bool| -> Result<()> {
            swap(
                &mount,
                version,
                &[
                    ("lds.yaml", &[guarded.clone(), relay("free", "service")?]),
                    ("cds.yaml", &[service.clone(), cluster("static", two.address)?]),
                    ("eds.yaml", &[endpoints("service", &[up.address])?]),
                    ("ecds.yaml", &[extension("acl", &deny(denied))?]),
                ],
            )
        };
        put("v1", &one, false)?;
        let pair = Pair::start(lab, &dynamic(&mount).yaml())?;
        let mut held = Held::through(&pair, "free")?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "a ConfigMap: what is there at first", |proxy| {
            Ok(json!([who(proxy, "in")?, who(proxy, "free")?]))
        });
        put("v2", &two, true)?;
        pair.same(&mut cases, "a ConfigMap: another version", |proxy| {
            answers(proxy, "free", "two")?;
            answers(proxy, "in", "closed")?;
            Ok(json!(held.who(proxy)?))
        });
        put("v3", &one, false)?;
        pair.same(&mut cases, "a ConfigMap: and another", |proxy| {
            answers(proxy, "free", "one")?;
            answers(proxy, "in", "one")?;
            let stats = proxy.stats()?;
            let counted = ["listener_manager.listener_modified", "cluster_manager.cluster_modified"];
            Ok(json!([held.who(proxy)?, counted.map(|name| stats.of(name))]))
        });
        cases.finish()
    })
}

/// What was counted of both types, where it was counted at all.
fn refused(proxy: &Proxy) -> Result<Value> {
    let stats = proxy.stats()?;
    let of = |name: &str| json!([name, stats.of(name) > 0]);
    Ok(json!([
        of("listener_manager.lds.update_rejected"),
        of("listener_manager.lds.update_failure"),
        of("cluster_manager.cds.update_rejected"),
        of("cluster_manager.cds.update_failure"),
    ]))
}

#[test]
fn files_that_are_bad_in_part_or_altogether() -> Result<()> {
    lab(|lab| {
        let one = Upstream::echo("one")?;
        let mount = Mount::new(lab, "config")?;
        let good = [cluster("one", one.address)?];
        swap(&mount, "1", &[("lds.yaml", &[relay("in", "one")?]), ("cds.yaml", &good)])?;
        let pair = Pair::start(lab, &dynamic(&mount).yaml())?;
        let mut held = Held::through(&pair, "in")?;
        let mut cases = Cases::new();
        let half = [relay("in", "one")?, bad_listener("bad")?, relay("new", "one")?];
        swap(&mount, "2", &[("lds.yaml", &half), ("cds.yaml", &good)])?;
        pair.same(&mut cases, "a file with one bad listener", |proxy| {
            answers(proxy, "new", "one")?;
            eventually("a counted refusal", LIMIT, || {
                ensure!(proxy.stat("listener_manager.lds.update_rejected")? > 0, "none");
                Ok(())
            })?;
            let listeners: Vec<String> = proxy.addresses()?.into_keys().collect();
            Ok(json!([listeners, held.who(proxy)?, refused(proxy)?]))
        });
        let lds = xds::file("3", &[relay("in", "one")?, relay("new", "one")?]);
        for (what, text) in [
            ("a file that is no YAML", "resources: [ { no"),
            (
                "a file of another type",
                r#"{ "resources": [ { "@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "x" } ] }"#,
            ),
            ("an empty file", ""),
            ("a resource of no type", r#"{ "resources": [ { "name": "x" } ] }"#),
        ] {
            mount.swap(&[("lds.yaml", lds.as_bytes()), ("cds.yaml", text.as_bytes())])?;
            std::thread::sleep(std::time::Duration::from_millis(150));
            pair.same(&mut cases, what, |proxy| {
                Ok(json!([
                    who(proxy, "in")?,
                    held.who(proxy)?,
                    proxy.stat("cluster_manager.active_clusters")?
                ]))
            });
        }
        pair.same(&mut cases, "how bad files are counted", refused);
        let more = [cluster("one", one.address)?, cluster("more", one.address)?];
        swap(&mount, "4", &[("lds.yaml", &[relay("in", "more")?]), ("cds.yaml", &more)])?;
        pair.same(&mut cases, "good files again", |proxy| {
            proxy.expect_stat("cluster_manager.active_clusters", 2)?;
            eventually("the end of a listener", LIMIT, || {
                ensure!(!proxy.addresses()?.contains_key("new"), "it is there");
                Ok(())
            })?;
            answers(proxy, "in", "one")?;
            Ok(json!(true))
        });
        cases.finish()
    })
}

#[test]
fn a_file_that_is_renamed_over_and_the_deprecated_path() -> Result<()> {
    lab(|lab| {
        let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
        let dir = lab.dir().join("plain");
        fs::create_dir(&dir)?;
        let put = |name: &str, version: &str, resources: &[Resource]| -> Result<()> {
            let new = dir.join("new");
            fs::write(&new, xds::file(version, resources))?;
            Ok(fs::rename(new, dir.join(name))?)
        };
        put("cds.yaml", "1", &[cluster("up", one.address)?])?;
        put("lds.yaml", "1", &[relay("in", "up")?])?;
        let cds = source(&dir.join("cds.yaml"), None);
        let lds = format!("{{ path: {:?}, resource_api_version: V3 }}", dir.join("lds.yaml"));
        let config = named().top(&format!("dynamic_resources: {{ lds_config: {lds}, cds_config: {cds} }}"));
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        pair.same(&mut cases, "renamed files: at first", |proxy| Ok(json!(who(proxy, "in")?)));
        put("cds.yaml", "2", &[cluster("up", two.address)?])?;
        pair.same(&mut cases, "renamed files: another cluster", |proxy| {
            answers(proxy, "in", "two")?;
            Ok(json!(true))
        });
        put("lds.yaml", "2", &[relay("in", "up")?, relay("more", "up")?])?;
        pair.same(&mut cases, "renamed files: another listener", |proxy| {
            answers(proxy, "more", "two")?;
            Ok(json!(proxy.stat("listener_manager.listener_modified")?))
        });
        fs::remove_file(dir.join("cds.yaml"))?;
        pair.same(&mut cases, "renamed files: one is gone", |proxy| Ok(json!(who(proxy, "in")?)));
        put("cds.yaml", "3", &[cluster("up", one.address)?])?;
        pair.same(&mut cases, "renamed files: it is back", |proxy| {
            answers(proxy, "in", "one")?;
            Ok(json!(true))
        });
        cases.finish()
    })
}
