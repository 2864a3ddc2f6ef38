//! Secrets from files: rotation under load, what is missing, what is bad. Keys and certificates lie as the kubelet
//! mounts them.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use shunt_tests::bootstrap::tcp_proxy;
use shunt_tests::pki::Identity;
use shunt_tests::proxy::Start;
use shunt_tests::tls::TlsEnd;
use shunt_tests::tls_context::{file, tls_chain};
use shunt_tests::{
    Bootstrap, Cases, Client, Kind, Lab, Leaf, Pair, Place, Proxy, TlsClient, TlsContext, TlsOptions,
    TlsServer, Upstream, deviations, eventually, lab,
};

use crate::tls_common::{CLIENT, Mesh, SERVER, secure};

const LIMIT: Duration = Duration::from_secs(10);

/// A volume of a Secret or a ConfigMap: files are links into a directory that is replaced as a whole.
pub(crate) struct Mount {
    dir: PathBuf,
    versions: Cell<u32>,
}

impl Mount {
    pub(crate) fn new(lab: &Lab, name: &str) -> Result<Self> {
        let dir = lab.dir().join(name);
        fs::create_dir(&dir)?;
        Ok(Self { dir, versions: Cell::new(0) })
    }

    fn of(lab: &Lab, name: &str, identity: &Identity) -> Result<Self> {
        let mount = Self::new(lab, name)?;
        mount.identity(identity)?;
        Ok(mount)
    }

    pub(crate) fn at(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    pub(crate) fn swap(&self, files: &[(&str, &[u8])]) -> Result<()> {
        let version = self.versions.get();
        self.versions.set(version + 1);
        let data = self.at(&format!("..{version}"));
        fs::create_dir(&data)?;
        for (name, content) in files {
            fs::write(data.join(name), content)?;
        }
        symlink(format!("..{version}"), self.at("..data_tmp"))?;
        fs::rename(self.at("..data_tmp"), self.at("..data"))?;
        for (name, _) in files {
            // There from the first version on.
            let _ = symlink(format!("..data/{name}"), self.at(name));
        }
        match version.checked_sub(1) {
            Some(before) => Ok(fs::remove_dir_all(self.at(&format!("..{before}")))?),
            None => Ok(()),
        }
    }

    fn identity(&self, identity: &Identity) -> Result<()> {
        self.pair(&identity.chain, &identity.key)
    }

    fn pair(&self, chain: &Path, key: &Path) -> Result<()> {
        self.swap(&[("tls.crt", &fs::read(chain)?), ("tls.key", &fs::read(key)?)])
    }

    /// A secret whose certificate is here.
    fn secret(&self, name: &str) -> String {
        let (chain, key) = (file(&self.at("tls.crt")), file(&self.at("tls.key")));
        secret(name, &format!("tls_certificate: {{ certificate_chain: {chain}, private_key: {key} }}"))
    }
}

fn secret(name: &str, fields: &str) -> String {
    let of_type = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    format!("{{ \"@type\": {of_type}, name: {name:?}, {fields} }}")
}

fn trust(name: &str, ca: &Path) -> String {
    secret(name, &format!("validation_context: {{ trusted_ca: {} }}", file(ca)))
}

/// Writes an SDS file, by a rename.
fn say(path: &Path, version: &str, secrets: &[String]) -> Result<()> {
    put(path, &format!("{{ version_info: {version:?}, resources: [ {} ] }}\n", secrets.join(", ")))
}

fn put(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(new, path)?)
}

/// An SdsSecretConfig.
fn from(path: &Path, name: &str, fields: &str) -> String {
    let source = format!("path_config_source: {{ path: {:?} }}", path.display().to_string());
    format!("{{ name: {name:?}, sds_config: {{ {source}, resource_api_version: V3, {fields} }} }}")
}

fn certificate_from(path: &Path, name: &str, fields: &str) -> TlsContext {
    let one = from(path, name, fields);
    TlsContext::new().common(&format!("tls_certificate_sds_secret_configs: [ {one} ]"))
}

fn trust_from(context: TlsContext, path: &Path, name: &str) -> TlsContext {
    context.common(&format!("validation_context_sds_secret_config: {}", from(path, name, "")))
}

/// Envoy asks nobody for secrets without a name of its own.
fn bootstrap() -> Bootstrap {
    Bootstrap::new().top("node: { id: node-1, cluster: test }")
}

fn shunt(config: &str) -> Start<'_> {
    Start { kind: Kind::Shunt, config, args: &[], place: Place::default() }
}

/// Who answers a new handshake.
fn presented(to: std::net::SocketAddr) -> Result<Vec<u8>> {
    let mut stream = TlsClient::new().connect(to)?;
    ensure!(stream.ask("hello")?.ends_with(" hello"));
    stream.agreed()?.chain.first().cloned().context("no certificate")
}

/// What comes of a client that says this in plaintext: nothing, however the connection ends.
fn says_nothing_in_plaintext(to: std::net::SocketAddr) -> Result<()> {
    let mut client = Client::connect(to)?;
    let _ = client.send("hello\n");
    let (came, _) = client.end_within(Duration::from_secs(1))?;
    // An alert of TLS would be as good.
    ensure!(came.first().is_none_or(|first| *first == 21), "{:?} came", String::from_utf8_lossy(&came));
    Ok(())
}

#[test]
fn a_rotation_is_seen_by_the_next_handshake_and_drops_no_connection() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let (server, client) =
            (Mount::of(lab, "server", &mesh.server)?, Mount::of(lab, "client", &mesh.client)?);
        let sds = lab.dir().join("sds.yaml");
        let root = lab.dir().join("root.yaml");
        let client_sds = lab.dir().join("client.yaml");
        say(&sds, "1", &[server.secret("server")])?;
        say(&root, "1", &[trust("ROOTCA", mesh.root.file())])?;
        say(&client_sds, "1", &[client.secret("client")])?;
        let options = TlsOptions::new(&mesh.server).clients(mesh.root.file());
        let backend = TlsServer::echo("up", &options)?;
        let upstream = trust_from(certificate_from(&client_sds, "client", ""), &root, "ROOTCA");
        let config = bootstrap().static_cluster("up", &[backend.address], &upstream.cluster());
        let config = secure(config, "in", &certificate_from(&sds, "server", ""), "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let addresses = [pair.envoy.at("in")?, pair.shunt.at("in")?];
        let mut old = Vec::new();
        for at in addresses {
            for _ in 0..4 {
                old.push(TlsClient::new().connect(at)?);
            }
        }
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            let load = |at| {
                let mut connections = 0;
                while !over.load(Ordering::Relaxed) {
                    presented(at)?;
                    connections += 1;
                }
                anyhow::Ok(connections)
            };
            let loads = addresses.map(|at| scope.spawn(move || load(at)));
            let rotated = (0..4).try_for_each(|round| {
                let new = mesh.middle.issue(&format!("s{round}"), &Leaf::spiffe(SERVER))?;
                let new_client = mesh.middle.issue(&format!("c{round}"), &Leaf::spiffe(CLIENT))?;
                server.identity(&new)?;
                client.identity(&new_client)?;
                for (at, name) in addresses.into_iter().zip(["envoy", "shunt"]) {
                    eventually(&format!("the new certificate of {name}"), LIMIT, || {
                        ensure!(presented(at)? == new.der(), "round {round}: it is an old one");
                        let mark = backend.mark();
                        presented(at)?;
                        let seen = backend.seen();
                        let later = seen.get(mark..).unwrap_or_default();
                        let shown = |seen: &shunt_tests::tls_server::TlsSeen| {
                            seen.chain.first().is_some_and(|leaf| leaf == new_client.der())
                        };
                        ensure!(later.iter().any(shown), "round {round}: the upstream sees an old one");
                        Ok(())
                    })?;
                }
                old.iter_mut().try_for_each(|stream| {
                    ensure!(stream.ask("still here")?.ends_with(" still here"));
                    Ok(())
                })
            });
            over.store(true, Ordering::Relaxed);
            for load in loads {
                let connections = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
                ensure!(connections > 4, "no load: {connections} connections");
            }
            rotated
        })
    })
}

#[test]
fn a_listener_whose_secret_is_missing_serves_nothing_until_it_comes() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let server = Mount::of(lab, "server", &mesh.server)?;
        let sds = lab.dir().join("sds.yaml");
        let backend = Upstream::echo("up")?;
        let config = bootstrap().static_cluster("up", &[backend.address], "");
        let config = config.relay("plain", "up");
        let config =
            secure(config, "in", &certificate_from(&sds, "server", "initial_fetch_timeout: 0s"), "up");
        // Envoy does not start without the file.
        let config = config.yaml();
        let mut proxy = Proxy::start_unready(lab, &shunt(&config))?;
        let (at, plain) = (proxy.at("in")?, proxy.at("plain")?);
        // As Envoy, whose sockets are bound by then, and do not listen.
        for address in [at, plain] {
            let early = std::net::TcpStream::connect(address).map_err(|error| error.kind());
            ensure!(early.err() == Some(std::io::ErrorKind::ConnectionRefused), "{address} listens");
        }
        ensure!(proxy.admin().get("/ready")?.status == 503);
        ensure!(backend.accepted() == 0, "the backend was connected to");
        let dump = proxy.admin().json("/init_dump")?;
        let waits = json!([{
            "name": "init manager Listener-local-init-manager in",
            "target_names": ["shared target SdsApi server"],
        }]);
        ensure!(dump["unready_targets_dumps"] == waits, "{dump}");
        let warming = proxy.admin().json("/config_dump?resource=dynamic_warming_secrets")?;
        ensure!(warming["configs"][0]["name"] == "server", "{warming}");
        ensure!(warming["configs"][0]["version_info"] == "uninitialized", "{warming}");
        let line = format!("listener in waits for secret server of {}", sds.display());
        eventually("what is waited for", LIMIT, || {
            ensure!(proxy.log().contains(&line), "{}", proxy.log());
            Ok(())
        })?;
        say(&sds, "1", &[server.secret("server")])?;
        proxy.wait_ready()?;
        ensure!(presented(at)? == mesh.server.der());
        ensure!(proxy.admin().json("/init_dump")? == json!({}));
        Ok(())
    })
}

#[test]
fn what_is_not_waited_for_any_longer_is_refused_and_works_when_it_comes() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let (server, client) =
            (Mount::of(lab, "server", &mesh.server)?, Mount::of(lab, "client", &mesh.client)?);
        let (sds, client_sds) = (lab.dir().join("sds.yaml"), lab.dir().join("client.yaml"));
        let backend = Upstream::echo("up")?;
        let options = TlsOptions::new(&mesh.server).clients(mesh.root.file());
        let secured = TlsServer::echo("secured", &options)?;
        let upstream = certificate_from(&client_sds, "client", "initial_fetch_timeout: 1s");
        let config = bootstrap()
            .static_cluster("up", &[backend.address], "")
            .static_cluster("secured", &[secured.address], &upstream.cluster())
            .relay("out", "secured");
        let context = certificate_from(&sds, "server", "initial_fetch_timeout: 1s");
        let config = secure(config, "in", &context, "up");
        let proxy = Proxy::start_as(lab, &shunt(&config.yaml()))?;
        let (at, out) = (proxy.at("in")?, proxy.at("out")?);
        for _ in 0..3 {
            let end = TlsClient::new().refused(at)?;
            ensure!(end != TlsEnd::Open, "it is left open");
            says_nothing_in_plaintext(at)?;
            let mut client = Client::connect(out)?;
            let _ = client.send("hello\n");
            let (came, _) = client.end()?;
            ensure!(came.is_empty(), "{came:?}");
        }
        let stats = proxy.stats()?;
        for (name, wanted) in [
            ("sds.server.init_fetch_timeout", 1),
            ("sds.client.init_fetch_timeout", 1),
            ("listener.in.server_ssl_socket_factory.downstream_context_secrets_not_ready", 6),
            ("cluster.secured.client_ssl_socket_factory.upstream_context_secrets_not_ready", 3),
        ] {
            ensure!(stats.of(name) == wanted, "{name}: {}", stats.of(name));
        }
        ensure!(backend.accepted() == 0, "the backend was connected to");
        ensure!(secured.seen().iter().all(|seen| seen.head.is_empty()), "{:?}", secured.seen());
        say(&sds, "1", &[server.secret("server")])?;
        say(&client_sds, "1", &[client.secret("client")])?;
        eventually("handshakes", LIMIT, || {
            ensure!(presented(at)? == mesh.server.der());
            ensure!(Client::connect(out)?.ask("hello")?.ends_with(" hello"));
            Ok(())
        })
    })
}

/// What a change adds to the stats of both, once shunt has counted as much as Envoy.
fn counted(pair: &Pair, cases: &mut Cases, id: &str, names: &[&str], change: impl FnOnce() -> Result<()>) {
    cases.case(id, || {
        let before = [pair.envoy.stats()?, pair.shunt.stats()?];
        change()?;
        // Envoy looks at once; shunt lets a writer finish.
        std::thread::sleep(Duration::from_millis(500));
        let of = |proxy: &Proxy, before| Ok::<Value, anyhow::Error>(proxy.stats()?.since(before, names));
        let envoy = of(&pair.envoy, &before[0])?;
        let _ = eventually("the same", Duration::from_secs(3), || {
            ensure!(of(&pair.shunt, &before[1])? == envoy);
            Ok(())
        });
        deviations::check(id, &envoy, &of(&pair.shunt, &before[1])?)
    });
}

#[test]
fn what_is_bad_changes_nothing_and_is_counted_as_envoy_counts() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let server = Mount::of(lab, "server", &mesh.server)?;
        let sds = lab.dir().join("sds.yaml");
        say(&sds, "1", &[server.secret("server")])?;
        let backend = Upstream::echo("up")?;
        let config = bootstrap().static_cluster("up", &[backend.address], "");
        let config = secure(config, "in", &certificate_from(&sds, "server", ""), "up");
        let pair = Pair::start(lab, &config.yaml())?;
        let mut cases = Cases::new();
        let names = &[
            "sds.server.update_attempt",
            "sds.server.update_success",
            "sds.server.update_rejected",
            "sds.server.update_failure",
            "sds.server.init_fetch_timeout",
            "listener.in.server_ssl_socket_factory.ssl_context_update_by_sds",
        ];
        let unchanged = || {
            for proxy in pair.both() {
                ensure!(presented(proxy.at("in")?)? == mesh.server.der(), "{}", proxy.kind.name());
            }
            Ok(())
        };
        let mut bad = |id: &str, change: &dyn Fn() -> Result<()>| {
            counted(&pair, &mut cases, &format!("sds: {id}"), names, || {
                change()?;
                Ok(())
            });
            cases.case(format_args!("sds: {id}: what was known stays"), unchanged);
        };
        bad("no YAML", &|| put(&sds, "resources: [\n"));
        bad("another name", &|| say(&sds, "2", &[server.secret("other")]));
        bad("no secret", &|| say(&sds, "3", &[]));
        bad("files that are not there", &|| {
            let chain = file(&server.at("nowhere.crt"));
            let key = file(&server.at("tls.key"));
            let fields = format!("tls_certificate: {{ certificate_chain: {chain}, private_key: {key} }}");
            say(&sds, "4", &[secret("server", &fields)])
        });
        bad("another kind", &|| say(&sds, "5", &[trust("server", mesh.root.file())]));
        bad("a key of another certificate", &|| {
            let chain = file(&mesh.server.chain);
            let key = file(&mesh.client.key);
            let fields = format!("tls_certificate: {{ certificate_chain: {chain}, private_key: {key} }}");
            say(&sds, "6", &[secret("server", &fields)])
        });
        // What is known already is no news to shunt's contexts; Envoy builds them again.
        let but_contexts = names.get(..5).unwrap_or_default();
        counted(&pair, &mut cases, "sds: what was there before", but_contexts, || {
            say(&sds, "7", &[server.secret("server")])
        });
        // How often Envoy counts depends on how many moves there are.
        let rotation = "sds.server.key_rotation_failed";
        for (id, chain, key) in [
            ("garbage", mesh.server.key.as_path(), &mesh.server.key),
            ("a wrong key", &mesh.server.chain, &mesh.client.key),
        ] {
            cases.case(format_args!("sds: {id} in the files"), || {
                let before = [pair.envoy.stat(rotation)?, pair.shunt.stat(rotation)?];
                server.pair(chain, key)?;
                for (proxy, before) in pair.both().into_iter().zip(before) {
                    eventually("the failed rotation", LIMIT, || {
                        ensure!(proxy.stat(rotation)? > before, "{}", proxy.kind.name());
                        Ok(())
                    })?;
                }
                unchanged()
            });
        }
        cases.case("sds: a good one after all", || {
            let new = mesh.middle.issue("new", &Leaf::spiffe(SERVER))?;
            server.identity(&new)?;
            pair.both().into_iter().try_for_each(|proxy| {
                let at = proxy.at("in")?;
                eventually("the new certificate", LIMIT, || {
                    ensure!(presented(at)? == new.der(), "{}", proxy.kind.name());
                    Ok(())
                })
            })
        });
        cases.finish()
    })
}

#[test]
fn secrets_are_shown_as_envoy_shows_them_and_no_key_is() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let server = Mount::of(lab, "server", &mesh.server)?;
        let (sds, root) = (lab.dir().join("sds.yaml"), lab.dir().join("root.yaml"));
        say(&sds, "s1", &[server.secret("server")])?;
        say(&root, "r1", &[trust("ROOTCA", mesh.root.file())])?;
        let backend = Upstream::echo("up")?;
        let (chain, key) = (file(&mesh.client.chain), fs::read_to_string(&mesh.client.key)?);
        let fixed = format!(
            "static_resources_secrets: &secrets [ {{ name: fixed, tls_certificate: {{ certificate_chain: {chain}, private_key: {{ inline_string: {key:?} }} }} }} ]"
        );
        let config = bootstrap().static_cluster("up", &[backend.address], "");
        let context = trust_from(certificate_from(&sds, "server", ""), &root, "ROOTCA");
        let config = secure(config, "in", &context, "up");
        let fixed_context =
            TlsContext::new().common("tls_certificate_sds_secret_configs: [ { name: fixed } ]");
        let filters = [tcp_proxy("fixed", "cluster: up")];
        let chain = tls_chain("", &fixed_context.downstream(), &filters);
        let config = config.listener("fixed", &format!("filter_chains: [ {chain} ]")).yaml();
        let secrets = fixed.split_once("&secrets ").map(|(_, list)| list).context("no list")?;
        let config =
            config.replacen("static_resources:\n", &format!("static_resources:\n  secrets: {secrets}\n"), 1);
        let pair = Pair::start(lab, &config)?;
        let mut cases = Cases::new();
        for resource in ["static_secrets", "dynamic_active_secrets", "dynamic_warming_secrets"] {
            pair.same(&mut cases, format_args!("sds: {resource}"), |proxy| {
                let mut dump = proxy.admin().json(&format!("/config_dump?resource={resource}"))?;
                let mut shown = dump["configs"].as_array_mut().map(std::mem::take).unwrap_or_default();
                for one in &mut shown {
                    one.as_object_mut().and_then(|one| one.remove("last_updated"));
                }
                shown.sort_by_key(|one| one["name"].to_string());
                Ok(json!(shown))
            });
        }
        cases.case("sds: no key anywhere", || {
            let body = key.lines().nth(1).context("no key")?;
            let dump = pair.shunt.admin().ok("/config_dump")?;
            ensure!(!dump.contains(body), "a key is shown");
            Ok(())
        });
        cases.case("sds: a static secret serves", || {
            ensure!(presented(pair.shunt.at("fixed")?)? == mesh.client.der());
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn a_missing_static_secret_stops_the_start() -> Result<()> {
    lab(|lab| {
        let backend = Upstream::echo("up")?;
        let config = bootstrap().static_cluster("up", &[backend.address], "");
        let context = TlsContext::new().common("tls_certificate_sds_secret_configs: [ { name: nobody } ]");
        let config = secure(config, "in", &context, "up").yaml();
        for kind in Kind::BOTH {
            let output = kind.output(lab, &config, &[])?;
            ensure!(!output.status.success(), "{} starts", kind.name());
            let said = format!("{}{}", output.stdout, output.stderr);
            ensure!(said.contains("nobody"), "{}: {said}", kind.name());
        }
        Ok(())
    })
}

#[test]
fn with_the_flag_connections_do_not_outlive_what_they_were_judged_by() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let (sds, root) = (lab.dir().join("sds.yaml"), lab.dir().join("root.yaml"));
        let server = Mount::of(lab, "server", &mesh.server)?;
        let trusted = Mount::new(lab, "trusted")?;
        trusted.swap(&[("ca.crt", &fs::read(mesh.root.file())?)])?;
        say(&sds, "1", &[server.secret("server")])?;
        say(&root, "1", &[trust("ROOTCA", &trusted.at("ca.crt"))])?;
        let backend = Upstream::echo("up")?;
        let config = bootstrap().static_cluster("up", &[backend.address], "");
        let context = trust_from(certificate_from(&sds, "server", ""), &root, "ROOTCA").require_client();
        let config = secure(config, "in", &context, "up").yaml();
        let args = ["--drain-on-cert-expiry", "--drain-time-s", "1"];
        let draining = Proxy::start_as(lab, &Start { args: &args, ..shunt(&config) })?;
        let keeping = Proxy::start_as(lab, &shunt(&config))?;
        let client = TlsClient::new().identity(&mesh.client);
        let connect = |proxy: &Proxy| -> Result<_> {
            let mut stream = client.connect(proxy.at("in")?)?;
            ensure!(stream.ask("hello")?.ends_with(" hello"));
            Ok(stream)
        };
        let (mut drained, mut kept) = (connect(&draining)?, connect(&keeping)?);
        // A new certificate of one's own is no reason.
        server.identity(&mesh.middle.issue("next", &Leaf::spiffe(SERVER))?)?;
        std::thread::sleep(Duration::from_millis(1_500));
        ensure!(drained.ask("still here")?.ends_with(" still here"));
        let other = mesh.pki.root("other")?;
        let both = [fs::read(mesh.root.file())?, fs::read(other.file())?].concat();
        trusted.swap(&[("ca.crt", &both)])?;
        let (came, end) = drained.end_within(LIMIT)?;
        ensure!(came.is_empty() && end == TlsEnd::Reset, "{end}");
        ensure!(draining.stat("shunt.cert_expiry_drained")? == 1);
        let mut new = connect(&draining)?;
        std::thread::sleep(Duration::from_millis(1_500));
        ensure!(new.ask("still here")?.ends_with(" still here"), "it was judged by what is in force");
        ensure!(kept.ask("still here")?.ends_with(" still here"), "nobody has asked for that");
        Ok(())
    })
}
