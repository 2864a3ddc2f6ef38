//! postgres_proxy before a real PostgreSQL, with psql.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use shunt_tests::pki::Identity;
use shunt_tests::ports::{free, nobody};
use shunt_tests::process::{Place, Process};
use shunt_tests::wait::{eventually, until};
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Leaf, Proxy, TlsContext, lab, openssl};

use super::{blurt, filter, listener};
use crate::tls_common::Mesh;

const NOBODY: u32 = 65_534;
const START: Duration = Duration::from_secs(60);
const NAME: &str = "db.example.com";
const IS_TLS: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

/// A server with `ssl = on`. It takes the user `plain` without TLS only, and `secure` with TLS only.
struct Server {
    address: SocketAddr,
    dir: PathBuf,
    _process: Process,
}

impl Server {
    fn start(lab: &Lab, identity: &Identity) -> Result<Self> {
        let dir = lab.dir().join("postgres");
        fs::create_dir(&dir)?;
        for (name, from) in [("cert.pem", &identity.chain), ("key.pem", &identity.key)] {
            fs::copy(from, dir.join(name))?;
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600))?;
            chown(dir.join(name), Some(NOBODY), Some(NOBODY))?;
        }
        chown(&dir, Some(NOBODY), Some(NOBODY))?;
        let (data, nobody) = (dir.join("data"), Place::default().user(NOBODY));
        let init = lab.program("initdb", &nobody)?;
        let init = init.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data);
        init.env("LC_ALL", "C").run().context("initdb")?;
        let rules = "local all all trust\nhostnossl all plain all trust\nhostssl all secure all trust\n";
        fs::write(data.join("pg_hba.conf"), rules)?;
        let address = free()?;
        let file = |name| dir.join(name).display().to_string();
        let server = lab.program("postgres", &nobody)?.arg("-D").arg(&data).arg("-k").arg(&dir);
        let process = server
            .args(["-c", "listen_addresses=127.0.0.1", "-c", &format!("port={}", address.port())])
            .args(["-c", "fsync=off", "-c", "ssl=on"])
            .args(["-c", &format!("ssl_cert_file={}", file("cert.pem"))])
            .args(["-c", &format!("ssl_key_file={}", file("key.pem"))])
            .env("LC_ALL", "C")
            .spawn()?;
        let server = Self { address, dir, _process: process };
        let roles = "create role plain login superuser; create role secure login superuser";
        eventually("PostgreSQL answers", START, || server.sql(lab, roles))?;
        Ok(server)
    }

    /// Beside the proxy.
    fn sql(&self, lab: &Lab, sql: &str) -> Result<String> {
        let url =
            format!("host={} port={} user=postgres dbname=postgres", self.dir.display(), self.address.port());
        Ok(lab.program("psql", &Place::default())?.args(["-XAtq", &url, "-c", sql]).run()?.stdout)
    }
}

fn url(to: SocketAddr, fields: &str) -> String {
    format!("host={NAME} hostaddr={} port={} dbname=postgres connect_timeout=20 {fields}", to.ip(), to.port())
}

fn psql(lab: &Lab, to: SocketAddr, fields: &str, sql: &str) -> Result<String> {
    let psql = lab.program("psql", &Place::default())?.args(["-XAtq", &url(to, fields), "-c", sql]);
    Ok(psql.run()?.stdout.trim().to_owned())
}

/// What psql says where it is not let in.
fn refused(lab: &Lab, to: SocketAddr, fields: &str) -> Result<String> {
    let psql = lab.program("psql", &Place::default())?.args(["-XAtq", &url(to, fields), "-c", "select 1"]);
    let out = psql.output()?;
    ensure!(out.code() == 2, "psql was let in: {}", out.stdout);
    Ok(out.stderr)
}

fn postgres_proxy(prefix: &str, fields: &str) -> String {
    let of_type = "envoy.extensions.filters.network.postgres_proxy.v3alpha.PostgresProxy";
    filter("envoy.filters.network.postgres_proxy", of_type, &format!("stat_prefix: {prefix:?}, {fields}"))
}

/// Listeners `require`, `up`, `both`, `off` and `stranger` before one server.
fn config(server: &Server, mesh: &Mesh<'_>, own: &Identity) -> Result<String> {
    let stranger = mesh.pki.root("stranger")?;
    let down = TlsContext::new().certificate(own);
    let up = TlsContext::new().field(&format!("sni: {NAME:?}"));
    let secure = |trusted| {
        let context = up.clone().trust(trusted).san("DNS", &format!("exact: {NAME:?}"));
        format!("transport_socket: {}", context.upstream_starttls())
    };
    let config = Bootstrap::new()
        .static_cluster("plain", &[server.address], "")
        .static_cluster("secure", &[server.address], &secure(mesh.root.file()))
        .static_cluster("stranger", &[server.address], &secure(stranger.file()));
    let require = postgres_proxy("require", "downstream_ssl: REQUIRE");
    let config = listener(config, "require", Some(&down), &require, "plain");
    let config = listener(config, "up", None, &postgres_proxy("up", "upstream_ssl: REQUIRE"), "secure");
    let both = postgres_proxy("both", "terminate_ssl: true, upstream_ssl: REQUIRE");
    let config = listener(config, "both", Some(&down), &both, "secure");
    let config = listener(config, "off", None, &postgres_proxy("off", ""), "plain");
    let config =
        listener(config, "stranger", None, &postgres_proxy("stranger", "upstream_ssl: REQUIRE"), "stranger");
    // A cluster that cannot turn to TLS.
    let config =
        listener(config, "unable", None, &postgres_proxy("unable", "upstream_ssl: REQUIRE"), "plain");
    Ok(config.yaml())
}

#[test]
fn psql_and_postgresql_through_postgres_proxy() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let identity = mesh.middle.issue("db", &Leaf::new().dns(NAME))?;
        let server = Server::start(lab, &identity)?;
        let proxy = Proxy::start(lab, Kind::Shunt, &config(&server, &mesh, &identity)?)?;
        let verify = format!("sslmode=verify-full sslrootcert={}", mesh.root.file().display());
        let mut cases = Cases::new();
        termination(lab, &proxy, &mut cases, &verify);
        upstream(lab, &proxy, &mut cases, &verify);
        passive(lab, &proxy, &mut cases);
        cases.case("s_client -starttls postgres", || {
            let root = mesh.root.file().display().to_string();
            let args = ["-starttls", "postgres", "-CAfile", &root, "-verify_hostname", NAME];
            let said = openssl::ask(lab, proxy.at("require")?, &args, "", "Verify return code")?;
            ensure!(said.verified() == Some("0 (ok)"), "{}", said.text);
            ensure!(said.version() == Some("TLSv1.3"), "{}", said.text);
            Ok(())
        });
        cases.case("plaintext behind SSLRequest", || {
            let sent = "cluster.plain.upstream_cx_tx_bytes_total";
            let before = proxy.stat(sent)?;
            let startup = b"\0\0\0\x08\x04\xd2\x16\x2f\0\0\0\x13\0\x03\0\0user\0plain\0\0";
            ensure!(blurt(proxy.at("require")?, startup)? == b"");
            ensure!(proxy.stat(sent)? == before, "the server was told");
            Ok(())
        });
        cases.finish()
    })
}

fn termination(lab: &Lab, proxy: &Proxy, cases: &mut Cases, verify: &str) {
    cases.case("a client with TLS, a server without", || {
        let to = proxy.at("require")?;
        for mode in ["sslmode=prefer", "sslmode=require", verify] {
            let seen = psql(lab, to, &format!("user=plain {mode}"), IS_TLS)?;
            ensure!(seen == "f", "{mode}: {seen}");
        }
        let conninfo = psql(lab, to, &format!("user=plain {verify}"), "\\conninfo")?;
        ensure!(conninfo.contains("SSL connection (protocol: TLSv1.3"), "{conninfo}");
        proxy.expect_stat("postgres.require.sessions_terminated_ssl", 4)?;
        proxy.expect_stat("postgres.require.sessions_unencrypted", 4)?;
        proxy.expect_stat("postgres.require.sessions", 4)
    });
    cases.case("a client without TLS, where it is required", || {
        let said = refused(lab, proxy.at("require")?, "user=plain sslmode=disable")?;
        ensure!(said.contains("FATAL:  connection requires TLS: use sslmode=require"), "{said}");
        Ok(())
    });
    cases.case("a refusal of the server", || {
        let said = refused(lab, proxy.at("require")?, "user=secure sslmode=require")?;
        ensure!(said.contains("no pg_hba.conf entry"), "{said}");
        proxy.expect_stat("postgres.require.sessions", 4)
    });
    cases.case("a name that the certificate does not have", || {
        let to = proxy.at("require")?;
        let said = refused(lab, to, &format!("user=plain {verify} host=other.example.com"))?;
        ensure!(said.contains("does not match host name"), "{said}");
        Ok(())
    });
}

fn upstream(lab: &Lab, proxy: &Proxy, cases: &mut Cases, verify: &str) {
    cases.case("a client without TLS, a server with", || {
        let to = proxy.at("up")?;
        ensure!(psql(lab, to, "user=secure sslmode=disable", IS_TLS)? == "t");
        proxy.expect_stat("postgres.up.sessions_upstream_ssl_success", 1)?;
        proxy.expect_stat("postgres.up.sessions_unencrypted", 1)
    });
    cases.case("TLS from end to end", || {
        let to = proxy.at("up")?;
        ensure!(psql(lab, to, &format!("user=secure {verify}"), IS_TLS)? == "t");
        proxy.expect_stat("postgres.up.sessions_encrypted", 1)
    });
    cases.case("TLS on both sides, and much to say", || {
        let to = proxy.at("both")?;
        for mode in ["sslmode=disable", verify] {
            let fields = format!("user=secure {mode}");
            ensure!(psql(lab, to, &fields, IS_TLS)? == "t", "{mode}");
            let rows = psql(lab, to, &fields, "select repeat('x', 100) from generate_series(1, 50000)")?;
            ensure!(rows.len() == 50_000 * 101 - 1, "{mode}: {} bytes", rows.len());
        }
        proxy.expect_stat("postgres.both.sessions_upstream_ssl_success", 4)?;
        proxy.expect_stat("postgres.both.sessions_terminated_ssl", 2)
    });
    cases.case("a statement is cancelled", || {
        let fields = url(proxy.at("both")?, &format!("user=secure {verify}"));
        let psql = lab.program("psql", &Place::default())?;
        let psql =
            psql.args(["-XAtq", &fields, "-c", "select 'here'", "-c", "select pg_sleep(60)"]).spawn()?;
        until("psql sleeps", START, || Ok(psql.stdout().contains("here").then_some(())))?;
        psql.signal(Signal::SIGINT)?;
        let out = psql.finish()?;
        ensure!(out.stderr.contains("canceling statement due to user request"), "{}", out.stderr);
        Ok(())
    });
    for (name, reason) in [("stranger", "certificate"), ("unable", "turn to TLS")] {
        cases.case(format_args!("no TLS to be had of the server: {name}"), || {
            let said = refused(lab, proxy.at(name)?, "user=secure sslmode=disable")?;
            ensure!(said.contains("FATAL:  no TLS connection to the server"), "{reason}: {said}");
            proxy.expect_stat(&format!("postgres.{name}.sessions_upstream_ssl_failed"), 1)?;
            proxy.expect_stat(&format!("postgres.{name}.sessions"), 0)
        });
    }
}

fn passive(lab: &Lab, proxy: &Proxy, cases: &mut Cases) {
    cases.case("a filter that only looks on", || {
        let to = proxy.at("off")?;
        ensure!(psql(lab, to, "user=plain sslmode=disable", IS_TLS)? == "f");
        ensure!(psql(lab, to, "user=secure sslmode=require", IS_TLS)? == "t");
        proxy.expect_stat("postgres.off.sessions_unencrypted", 1)?;
        proxy.expect_stat("postgres.off.sessions_encrypted", 1)?;
        proxy.expect_stat("postgres.off.sessions", 2)
    });
}

#[test]
fn a_filter_that_turns_to_tls_needs_a_socket_that_can() -> Result<()> {
    lab(|lab| {
        let config = Bootstrap::new().static_cluster("plain", &[nobody()?], "");
        let require = postgres_proxy("p", "downstream_ssl: REQUIRE");
        let config = listener(config, "l", None, &require, "plain").yaml();
        let out = Kind::Shunt.output(lab, &config, &["--mode", "validate"])?;
        ensure!(out.code() != 0, "it is taken");
        let why = "\"envoy.filters.network.postgres_proxy\" turns to TLS: transport_socket must be of type starttls";
        ensure!(out.stderr.contains(why), "{}", out.stderr);
        Ok(())
    })
}
