//! Configurations that must not start, each with a reason that names the place; and Envoy's command line.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use shunt_tests::bootstrap::{address, chain, says, tcp_proxy};
use shunt_tests::ports::free;
use shunt_tests::{Bootstrap, Cases, Client, Kind, Lab, Output, Place, Proxy, Upstream, lab, peer, until};

/// Runs shunt on a file to its end, which must come soon.
fn run(lab: &Lab, file: &Path, args: &[&str]) -> Result<Output> {
    let spawn = lab.shunt(&Place::default())?.arg("run").arg("-c").arg(file).args(args);
    spawn.limit(Duration::from_secs(40)).output()
}

fn write(lab: &Lab, name: &str, content: impl AsRef<[u8]>) -> Result<std::path::PathBuf> {
    let path = lab.dir().join(name);
    fs::write(&path, content)?;
    Ok(path)
}

/// The start is refused with status 1, for a reason that has all of these words.
fn refused(out: &Output, words: &[&str]) -> Result<()> {
    ensure!(out.code() == 1, "status {}: {out:.800?}", out.code());
    let missing: Vec<_> = words.iter().filter(|word| !out.stderr.contains(**word)).collect();
    ensure!(missing.is_empty(), "without {missing:?}: {:.1500}", out.stderr);
    ensure!(!out.stderr.contains("panicked"), "{out:?}");
    ensure!(out.stderr.len() < 20_000, "{} bytes of reasons", out.stderr.len());
    Ok(())
}

const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

fn listener_with(filter: &str) -> String {
    Bootstrap::new()
        .listener("l", &format!("filter_chains: [ {} ]", chain("", &[filter.to_owned()])))
        .static_cluster("c", &[], "")
        .yaml()
}

/// Bad configurations, by name: the text and the words of the reason.
fn bad_files() -> Vec<(&'static str, Vec<u8>, Vec<&'static str>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let named = |fields: &str| {
        text(&listener_with(&format!("{{ name: tcp, typed_config: {{ \"@type\": {TCP}, {fields} }} }}")))
    };
    let twice = Bootstrap::new().static_cluster("c", &[], "").static_cluster("c", &[], "").yaml();
    let same = chain("destination_port: 80", &[says("x")]);
    let ambiguous = Bootstrap::new().listener("l", &format!("filter_chains: [ {same}, {same} ]")).yaml();
    let unknown_name = "{ name: x, typed_config: { \"@type\": type.googleapis.com/no.such.Type } }";
    let untyped =
        "{ name: no.such.filter, typed_config: { \"@type\": type.googleapis.com/google.protobuf.Struct } }";
    vec![
        ("no YAML", text("static_resources: [ {"), vec!["line "]),
        ("a tab", text("static_resources:\n\tlisteners: []\n"), vec!["line 2"]),
        ("a list at the top", text("- a\n- b\n"), vec!["line 1"]),
        ("a scalar at the top", text("hello\n"), vec!["line 1"]),
        (
            "an unknown field",
            text("static_resources:\n  listners: []\n"),
            vec!["line 2:3", "listners", "listeners"],
        ),
        (
            "an unknown field of a filter",
            named("stat_prefix: a, cluster: c, idle_timeot: 1s"),
            vec!["idle_timeot", "idle_timeout"],
        ),
        (
            "a word for a number",
            named("stat_prefix: a, cluster: c, max_connect_attempts: many"),
            vec!["max_connect_attempts", "many"],
        ),
        ("a list for a message", named("stat_prefix: a, weighted_clusters: []"), vec!["weighted_clusters"]),
        (
            "a bad duration",
            named("stat_prefix: a, cluster: c, idle_timeout: soon"),
            vec!["idle_timeout", "soon"],
        ),
        (
            "a negative number",
            named("stat_prefix: a, cluster: c, max_connect_attempts: -1"),
            vec!["max_connect_attempts"],
        ),
        (
            "both of a oneof",
            named("stat_prefix: a, cluster: c, weighted_clusters: { clusters: [ { name: c, weight: 1 } ] }"),
            vec!["weighted_clusters"],
        ),
        ("no stat_prefix", named("cluster: c"), vec!["stat_prefix"]),
        ("neither of a oneof", named("stat_prefix: a"), vec!["cluster"]),
        ("an unknown type", text(&listener_with(unknown_name)), vec!["no.such.Type"]),
        ("an unknown extension", text(&listener_with(untyped)), vec!["no.such.filter"]),
        (
            "an enum's unknown value",
            text(&Bootstrap::new().cluster("c", "type: STATIK").yaml()),
            vec!["STATIK"],
        ),
        ("a cluster twice", twice.into_bytes(), vec!["\"c\""]),
        ("chains with the same match", ambiguous.into_bytes(), vec!["filter_chains"]),
        (
            "a port out of range",
            text("admin: { address: { socket_address: { address: 127.0.0.1, port_value: 99999 } } }\n"),
            vec!["port_value"],
        ),
        (
            "a bad address",
            text(
                &Bootstrap::new()
                    .listener_at(
                        "l",
                        &address("1.2.3", 1),
                        &format!("filter_chains: [ {} ]", chain("", &[says("x")])),
                    )
                    .yaml(),
            ),
            vec!["1.2.3"],
        ),
        (
            "a bad wildcard",
            text(
                &Bootstrap::new()
                    .listener(
                        "l",
                        &format!(
                            "filter_chains: [ {} ]",
                            chain("server_names: [ \"a.*.com\" ]", &[says("x")])
                        ),
                    )
                    .yaml(),
            ),
            vec!["a.*.com"],
        ),
        ("binary", (0..=255_u8).cycle().take(100_000).collect(), vec!["envoy.yaml"]),
        ("zeros", vec![0; 10_000], vec![]),
        ("not UTF-8", b"node: { id: \"\xff\xfe\" }\n".to_vec(), vec![]),
        ("deep nesting", text(&format!("node: {}{}", "[".repeat(200_000), "]".repeat(200_000))), vec![]),
        (
            "an alias bomb",
            text(
                "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
            ),
            vec![],
        ),
    ]
}

#[test]
fn bad_files_are_refused_with_a_place() -> Result<()> {
    lab(|lab| {
        let mut cases = Cases::new();
        for (n, (name, content, words)) in bad_files().into_iter().enumerate() {
            cases.case(name, || {
                let dir = lab.dir().join(format!("bad{n}"));
                fs::create_dir(&dir)?;
                let file = dir.join("envoy.yaml");
                fs::write(&file, content)?;
                refused(&run(lab, &file, &[])?, &words)?;
                let check = lab.shunt(&Place::default())?.args(["check", "-c"]).arg(&file).output()?;
                ensure!(check.code() == 1, "check: {check:.800?}");
                Ok(())
            });
        }
        cases.case("a directory", || refused(&run(lab, lab.dir(), &[])?, &["directory"]));
        cases.case("no file", || refused(&run(lab, &lab.dir().join("none.yaml"), &[])?, &["none.yaml"]));
        cases.case("100 MB", || {
            let line = format!("# {}\n", "x".repeat(1_000));
            let file = write(lab, "large.yaml", line.repeat(100_000) + "no_such_field: 1\n")?;
            let start = Instant::now();
            refused(&run(lab, &file, &[])?, &["no_such_field"])?;
            ensure!(start.elapsed() < Duration::from_secs(60), "after {:?}", start.elapsed());
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn all_problems_are_told_at_once_and_nothing_starts() -> Result<()> {
    lab(|lab| {
        let port = free()?.port();
        let good = chain("", &[says("x")]);
        let config = Bootstrap::new()
            .top("no_such_top: 1")
            .listener_at(
                "first",
                &address("127.0.0.1", port),
                &format!("no_such_listener: 1, filter_chains: [ {good} ]"),
            )
            .listener(
                "second",
                &format!(
                    "filter_chains: [ {} ]",
                    chain("", &[tcp_proxy("x", "cluster: c, no_such_filter: 1")])
                ),
            )
            .static_cluster("c", &[], "no_such_cluster: 1");
        let file = write(lab, "many.yaml", config.yaml())?;
        let out = run(lab, &file, &[])?;
        refused(
            &out,
            &[
                "no_such_top",
                "no_such_listener",
                "no_such_filter",
                "no_such_cluster",
                "static_resources.listeners[1]",
                "static_resources.clusters[0]",
            ],
        )?;
        let places = out.stderr.matches("line ").count();
        ensure!(places >= 4, "{places} places: {}", out.stderr);
        ensure!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(), "the first listener is up");
        Ok(())
    })
}

#[test]
fn a_cluster_that_does_not_exist() -> Result<()> {
    lab(|lab| {
        // Envoy starts: the connection is closed with NC (see the suite of access logs). shunt says it when it checks.
        let config = Bootstrap::new().relay("l", "nowhere").yaml();
        let proxy = Proxy::start(lab, Kind::Shunt, &config)?;
        ensure!(Client::connect(proxy.at("l")?)?.ask("x").is_err(), "served");
        let file = write(lab, "nowhere.yaml", &config)?;
        let check = lab.shunt(&Place::default())?.args(["check", "--strict", "-c"]).arg(&file).output()?;
        ensure!(format!("{}{}", check.stdout, check.stderr).contains("nowhere"), "{check:?}");
        Ok(())
    })
}

#[test]
fn check_and_validate() -> Result<()> {
    lab(|lab| {
        let config = Bootstrap::new().relay("l", "c").static_cluster("c", &[], "");
        let good = write(lab, "good.yaml", config.yaml())?;
        let bad = write(lab, "bad.yaml", "nonsense: 1\n")?;
        let warned = write(
            lab,
            "warned.yaml",
            config.clone().yaml().replace("stat_prefix: \"l\",", "stat_prefix: \"l\", idle_timeout: 1h,"),
        )?;
        let check = |file: &Path, args: &[&str]| -> Result<Output> {
            lab.shunt(&Place::default())?.arg("check").arg("-c").arg(file).args(args).output()
        };
        let mut cases = Cases::new();
        cases.case("a good file", || {
            for out in
                [check(&good, &[])?, check(&good, &["--strict"])?, run(lab, &good, &["--mode", "validate"])?]
            {
                ensure!(out.code() == 0, "{out:?}");
            }
            Ok(())
        });
        cases.case("a bad file", || {
            for out in [check(&bad, &[])?, run(lab, &bad, &["--mode", "validate"])?] {
                refused(&out, &["nonsense"])?;
            }
            Ok(())
        });
        cases.case("a file with a warning", || {
            let lenient = check(&warned, &[])?;
            ensure!(
                lenient.code() == 0 && format!("{}{}", lenient.stdout, lenient.stderr).contains("1h"),
                "{lenient:?}"
            );
            let strict = check(&warned, &["--strict"])?;
            ensure!(strict.code() == 1, "{strict:?}");
            Ok(())
        });
        cases.case("Envoy says the same of good and bad", || {
            for (file, code) in [(&good, 0), (&bad, 1)] {
                let out = lab
                    .program("envoy", &Place::default())?
                    .args(["--mode", "validate", "-c"])
                    .arg(file)
                    .output()?;
                ensure!(out.code() == code, "{out:?}");
            }
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn envoys_command_line() -> Result<()> {
    lab(|lab| {
        let upstream = Upstream::echo("up")?;
        let config = Bootstrap::new().relay("up", "up").static_cluster("up", &[upstream.address], "");
        let mut cases = Cases::new();
        cases.case("every flag of pilot-agent, and more", || {
            let args = [
                "--drain-time-s",
                "45",
                "--drain-strategy",
                "immediate",
                "--local-address-ip-version",
                "v4",
                "--allow-unknown-static-fields",
                "--component-log-level",
                "misc:error",
                "--skip-deprecated-logs",
                "--concurrency",
                "2",
                "--base-id",
                "7",
                "--service-cluster",
                "sc",
                "--service-node",
                "sn",
                "--service-zone",
                "sz",
                "--log-format",
                "%v",
                "--reject-unknown-dynamic-fields",
                "--parent-shutdown-time-s",
                "60",
                "--restart-epoch",
                "0",
                "--hot-restart-version-disabled",
            ];
            let args = &args[..args.len() - 1];
            let proxy = Proxy::start_with(lab, Kind::Shunt, &config.yaml(), args)?;
            Client::connect(proxy.at("up")?)?.ask("hello")?;
            let named = proxy.log().matches("--base-id").count();
            ensure!(named <= 1, "--base-id is named {named} times: {}", proxy.log());
            let info = proxy.admin().json("/server_info")?;
            ensure!(info["node"]["id"] == "sn" && info["node"]["cluster"] == "sc", "{info}");
            Ok(())
        });
        cases.case("an unknown flag", || {
            let file = write(lab, "x.yaml", config.yaml())?;
            let out = run(lab, &file, &["--no-such-flag"])?;
            ensure!(out.code() != 0 && out.stderr.contains("--no-such-flag"), "{out:?}");
            Ok(())
        });
        cases.case("unknown fields allowed", || {
            let file = write(lab, "y.yaml", config.clone().top("no_such_top: 1").yaml())?;
            let out = run(lab, &file, &["--mode", "validate", "--allow-unknown-static-fields"])?;
            ensure!(out.code() == 0, "{out:?}");
            Ok(())
        });
        cases.case("--config-yaml is merged over the file", || {
            let merged =
                "admin: { address: { socket_address: { address: 127.0.0.2 } } }\nnode: { id: merged }";
            let proxy = Proxy::start_with(lab, Kind::Shunt, &config.yaml(), &["--config-yaml", merged])?;
            let at = proxy.admin().address().context("no address")?;
            let info = proxy.admin().json("/server_info")?;
            ensure!(at.ip().to_string() == "127.0.0.2" && info["node"]["id"] == "merged", "{at} {info}");
            Ok(())
        });
        cases.case("--config-yaml alone", || {
            let out = lab
                .shunt(&Place::default())?
                .args(["run", "--mode", "validate", "--config-yaml", &config.yaml()])
                .output()?;
            ensure!(out.code() == 0, "{out:?}");
            Ok(())
        });
        cases.case("a link named envoy", || {
            let link = lab.dir().join("link");
            fs::create_dir(&link)?;
            let (link, addresses) = (link.join("envoy"), lab.dir().join("linked-admin"));
            symlink(peer::shunt()?.canonicalize()?, &link)?;
            let file = write(lab, "z.yaml", config.yaml())?;
            let spawn = lab
                .path(&link, &Place::default())
                .arg("-c")
                .arg(&file)
                .arg("--admin-address-path")
                .arg(&addresses);
            let mut process = spawn.args(["--disable-hot-restart", "-l", "warning"]).spawn()?;
            until("the admin's address", Duration::from_secs(10), || {
                ensure!(process.exited()?.is_none(), "it ended: {}", process.stderr());
                Ok(fs::read_to_string(&addresses).ok().filter(|text| !text.is_empty()))
            })?;
            process.signal(Signal::SIGTERM)?;
            ensure!(process.wait(Duration::from_secs(5))?.code() == Some(0), "another status");
            Ok(())
        });
        cases.finish()
    })
}
