//! What the admin shows of dynamic resources, beside Envoy; and `shunt config`, which asks it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::{DIR, chain, tcp_proxy, tls_inspector};
use shunt_tests::process::Place;
use shunt_tests::xds::{self, Resource, Type};
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Output, Pair, Proxy, Upstream, eventually, lab};

use crate::sds::Mount;
use crate::xds_common::{
    LIMIT, answers, bad_listener, cluster, cluster_with, deny, discovered, dump, extension, listener, named,
    relay,
};

fn source(path: &Path) -> String {
    let watched = path.parent().unwrap_or(path);
    format!(
        "{{ path_config_source: {{ path: {path:?}, watched_directory: {{ path: {watched:?} }} }}, resource_api_version: V3 }}"
    )
}

fn dynamic(mount: &Mount) -> Bootstrap {
    let [lds, cds] = ["lds.yaml", "cds.yaml"].map(|file| source(&mount.at(file)));
    named().top(&format!("dynamic_resources: {{ lds_config: {lds}, cds_config: {cds} }}"))
}

fn put(mount: &Mount, version: &str, files: &[(&str, &[Resource])]) -> Result<()> {
    let texts: Vec<_> = files.iter().map(|(name, all)| (*name, xds::file(version, all))).collect();
    let files: Vec<_> = texts.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    mount.swap(&files)
}

/// `shunt config …`, of a daemon's admin address.
fn config(lab: &Lab, proxy: &Proxy, args: &[&str]) -> Result<Output> {
    let admin = proxy.admin().address().context("no admin address")?.to_string();
    lab.shunt(&Place::default())?.arg("config").args(args).args(["--admin", &admin]).output()
}

fn config_json(lab: &Lab, proxy: &Proxy, args: &[&str]) -> Result<Value> {
    let output = config(lab, proxy, &[args, &["-o", "json"]].concat())?;
    ensure!(output.status.success(), "{args:?}: {output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

#[test]
fn the_way_of_a_connection() -> Result<()> {
    lab(|lab| {
        let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
        let to = |cluster: &str| tcp_proxy(cluster, &format!("cluster: {cluster}"));
        let chains = [chain("server_names: [ a.test ]", &[to("one")]), chain("", &[to("two")])].join(", ");
        let fields = format!("listener_filters: [ {} ], filter_chains: [ {chains} ]", tls_inspector());
        let bootstrap = Bootstrap::new()
            .listener("front", &fields)
            .static_cluster("one", &[one.address], "")
            .static_cluster("two", &[two.address], "");
        let proxy = Proxy::start(lab, Kind::Shunt, &bootstrap.yaml())?;
        let at = proxy.at("front")?.to_string();
        let mut cases = Cases::new();
        for (name, args, cluster, upstream) in [
            ("by name", ["get", &at, "--sni", "a.test"].as_slice(), "one", &one),
            ("by another name", &["get", &at, "--sni", "b.test"], "two", &two),
            ("in plain text", &["get", &at], "two", &two),
        ] {
            cases.case(name, || {
                let found = config_json(lab, &proxy, args)?;
                ensure!(found["listener"] == json!({"name": "front", "found": "exact"}), "{found}");
                ensure!(found["clusters"][0]["name"] == cluster, "{found}");
                let endpoint = &found["clusters"][0]["endpoints"][0];
                ensure!(endpoint["address"] == json!(upstream.address.to_string()), "{found}");
                let text = config(lab, &proxy, args)?;
                ensure!(text.status.success() && text.stdout.contains("front (of that address)"), "{text:?}");
                Ok(())
            });
        }
        cases.case("the table of listeners", || {
            let text = config(lab, &proxy, &["get"])?.stdout;
            ensure!(text.contains("server_names a.test") && text.lines().count() == 3, "{text}");
            Ok(())
        });
        are_messages(&proxy, &mut cases, "of static resources");
        for (name, args, why) in [
            ("what is no destination", ["get", "front"].as_slice(), "invalid socket address"),
            ("updates, where there are none", &["diff"], "this configuration takes no updates"),
            ("a workload that is not there", &["get", "--workload", "nobody"], "nobody"),
        ] {
            cases.case(name, || {
                let output = config(lab, &proxy, args)?;
                ensure!(!output.status.success() && output.stderr.contains(why), "{output:?}");
                Ok(())
            });
        }
        cases.finish()
    })
}

/// Strictly: no field that the message does not have. istioctl reads them so, but for unknown ones.
const MESSAGES: &[(&str, &str)] = &[
    ("/config_dump?include_eds=true", "envoy.admin.v3.ConfigDump"),
    ("/config_dump", "envoy.admin.v3.ConfigDump"),
    ("/clusters?format=json", "envoy.admin.v3.Clusters"),
    ("/listeners?format=json", "envoy.admin.v3.Listeners"),
    ("/init_dump", "envoy.admin.v3.UnreadyTargetsDumps"),
];

fn are_messages(proxy: &Proxy, cases: &mut Cases, when: &str) {
    for (path, of) in MESSAGES {
        cases.case(format_args!("{path} is a message, {when}"), || {
            xds::message(of, proxy.admin().json(path)?)?;
            Ok(())
        });
    }
}

/// A dump without what is each run's own, or in words of one's own.
fn comparable(mut section: Value, proxy: &Proxy) -> Result<Value> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for own in ["last_updated", "last_update_attempt"] {
                    if let Some(time) = map.get_mut(own) {
                        *time = json!(time.as_str().is_some_and(|time| time.ends_with('Z')));
                    }
                }
                if let Some(Value::Object(error)) = map.get_mut("error_state") {
                    let said =
                        error.get("details").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
                    error.insert("details".to_owned(), json!(said));
                    // Envoy does not fill it in.
                    error.remove("version_info");
                }
                map.values_mut().for_each(strip);
            }
            Value::Array(all) => all.iter_mut().for_each(strip),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    strip(&mut section);
    let Value::Object(fields) = &mut section else { return Ok(section) };
    for list in fields.values_mut().filter_map(Value::as_array_mut) {
        // Envoy tells each refusal of a file twice: once at the listener, and once without a name.
        list.retain(|one| one.get("name").is_some() || one.get("error_state").is_none());
        list.sort_by_key(Value::to_string);
    }
    let text = section.to_string().replace(&*proxy.dir().to_string_lossy(), DIR);
    Ok(serde_json::from_str(&text)?)
}

fn same_sections(pair: &Pair, cases: &mut Cases, when: &str, sections: &[&str]) {
    for section in sections {
        pair.same(cases, format_args!("dump {when}: {section}"), |proxy| {
            comparable(dump(proxy, &format!("{section}ConfigDump"))?, proxy)
        });
    }
}

#[test]
fn sections_of_dynamic_resources() -> Result<()> {
    lab(|lab| {
        let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
        let mount = Mount::new(lab, "config")?;
        let eds = source(&mount.at("eds.yaml"));
        let service = cluster_with(
            "service",
            &format!("type: EDS, eds_cluster_config: {{ service_name: svc, eds_config: {eds} }}"),
        )?;
        let filters =
            [discovered("acl", &source(&mount.at("ecds.yaml"))), tcp_proxy("in", "cluster: service")];
        let guarded = listener("in", &format!("filter_chains: [ {} ]", chain("", &filters)))?;
        let place = |port: u16| {
            format!("address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}")
        };
        let assignment = format!(
            "{{ cluster_name: svc, policy: {{ overprovisioning_factor: 150, drop_overloads: [ {{ category: x, drop_percentage: {{ numerator: 5 }} }} ] }}, endpoints: [ {{ locality: {{ region: r, zone: z }}, load_balancing_weight: 7, lb_endpoints: [ {{ endpoint: {{ hostname: h, {} }}, load_balancing_weight: 3 }}, {{ endpoint: {{ {} }}, health_status: DRAINING }} ] }}, {{ locality: {{ region: r2 }}, priority: 1, lb_endpoints: [ {{ endpoint: {{ {} }}, health_status: DEGRADED }} ] }} ] }}",
            place(one.address.port()),
            place(two.address.port()),
            place(9)
        );
        let endpoints = Resource::new(Type::Endpoints, &assignment)?;
        let files = |listeners: &[Resource], clusters: &[Resource], version: &str| {
            put(
                &mount,
                version,
                &[
                    ("lds.yaml", listeners),
                    ("cds.yaml", clusters),
                    ("eds.yaml", std::slice::from_ref(&endpoints)),
                    ("ecds.yaml", &[extension("acl", &deny(false))?]),
                ],
            )
        };
        files(
            &[guarded.clone(), relay("free", "plain")?],
            &[service.clone(), cluster("plain", one.address)?],
            "1",
        )?;
        let pair = Pair::start(lab, &dynamic(&mount).yaml())?;
        let mut cases = Cases::new();
        let all = ["Clusters", "Endpoints", "Listeners", "Ecds", "Secrets"];
        same_sections(&pair, &mut cases, "at first", &all);
        pair.same(&mut cases, "dynamic: /clusters as text", |proxy| {
            let text = proxy.admin().ok("/clusters")?;
            let own = |line: &&str| !line.contains("rq_") && !line.contains("cx_");
            Ok(json!(text.lines().filter(own).collect::<BTreeSet<_>>()))
        });
        pair.same(&mut cases, "dynamic: names of /listeners", |proxy| {
            Ok(json!(proxy.addresses()?.into_keys().collect::<Vec<_>>()))
        });
        pair.same(&mut cases, "dynamic: /init_dump", |proxy| proxy.admin().json("/init_dump"));
        // One cluster is another, one listener is new, one is bad.
        files(
            &[guarded, relay("free", "plain")?, relay("new", "plain")?, bad_listener("bad")?],
            &[service, cluster("plain", two.address)?],
            "2",
        )?;
        for proxy in pair.both() {
            answers(proxy, "new", "two")?;
            eventually("a refusal", LIMIT, || {
                ensure!(proxy.stat("listener_manager.lds.update_rejected")? > 0, "none");
                Ok(())
            })?;
        }
        same_sections(&pair, &mut cases, "after an update", &all);
        are_messages(&pair.shunt, &mut cases, "of dynamic resources");
        cases.finish()
    })
}

#[test]
fn what_an_update_has_changed() -> Result<()> {
    lab(|lab| {
        let (one, two) = (Upstream::echo("one")?, Upstream::echo("two")?);
        let mount = Mount::new(lab, "config")?;
        let files = |version: &str, listeners: &[Resource], clusters: &[Resource]| {
            put(&mount, version, &[("lds.yaml", listeners), ("cds.yaml", clusters)])
        };
        files("1", &[relay("in", "up")?], &[cluster("up", one.address)?, cluster("old", one.address)?])?;
        let proxy = Proxy::start(lab, Kind::Shunt, &dynamic(&mount).yaml())?;
        answers(&proxy, "in", "one")?;
        let all = [relay("in", "up")?, bad_listener("bad")?];
        files("2", &all, &[cluster("up", two.address)?, cluster("new", one.address)?])?;
        answers(&proxy, "in", "two")?;
        let mut cases = Cases::new();
        let last = || -> Result<BTreeMap<String, Value>> {
            let found = config_json(lab, &proxy, &["diff"])?;
            let updates = found["updates"].as_array().context("no updates")?.clone();
            Ok(updates.into_iter().map(|one| (one["type"].as_str().unwrap_or("").to_owned(), one)).collect())
        };
        cases.case("the fields of a cluster", || {
            eventually("a second update of CDS", LIMIT, || {
                let cds = last()?.remove("CDS").context("no CDS")?;
                ensure!(cds["from"] == "1" && cds["to"] == "2", "{cds}");
                ensure!(cds["added"] == json!(["new"]) && cds["removed"] == json!(["old"]), "{cds}");
                ensure!(cds["changed"][0]["name"] == "up" && cds["nack"].is_null(), "{cds}");
                let fields = cds["changed"][0]["fields"].to_string();
                let [before, after] = [&one, &two].map(|up| up.address.port().to_string());
                ensure!(fields.contains(&before) && fields.contains(&after), "{fields}");
                Ok(())
            })
        });
        cases.case("the reason of a refusal", || {
            eventually("a refused update of LDS", LIMIT, || {
                let lds = last()?.remove("LDS").context("no LDS")?;
                ensure!(lds["refused"][0]["name"] == "bad" && lds["nack"].is_string(), "{lds}");
                ensure!(lds["source"].as_str().is_some_and(|file| file.ends_with("lds.yaml")), "{lds}");
                Ok(())
            })
        });
        cases.case("as a person reads it", || {
            let text = config(lab, &proxy, &["diff"])?.stdout;
            ensure!(text.contains("CDS 1 -> 2") && text.contains("  + new\n  - old\n  ~ up\n"), "{text}");
            ensure!(text.contains("NACK") && text.contains("  ! bad: "), "{text}");
            Ok(())
        });
        cases.case("while it happens", || {
            let admin = proxy.admin().address().context("no admin address")?.to_string();
            let watch =
                lab.shunt(&Place::default())?.args(["config", "watch", "--type", "CDS", "--admin", &admin]);
            let watch = watch.spawn()?;
            files("3", &all, &[cluster("up", one.address)?])?;
            eventually("a line", LIMIT, || {
                let text = watch.stdout();
                ensure!(text.contains("CDS 3 +0 -1 ~1 ACK"), "{text}");
                Ok(())
            })
        });
        cases.finish()
    })
}
