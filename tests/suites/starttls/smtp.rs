//! The SMTP STARTTLS filter before aiosmtpd, with Python's smtplib.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::pki::Identity;
use shunt_tests::process::{Place, Process};
use shunt_tests::wait::until;
use shunt_tests::{Bootstrap, Cases, Kind, Lab, Leaf, Proxy, TlsContext, lab, openssl};

use super::{blurt, filter, listener};
use crate::tls_common::Mesh;

const NAME: &str = "mx.example.com";
const START: Duration = Duration::from_secs(30);

fn script(lab: &Lab, args: &[&str]) -> Result<shunt_tests::process::Spawn> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("suites/starttls/smtp.py");
    Ok(lab.program("python", &Place::default())?.arg("-u").arg(script).args(args))
}

/// aiosmtpd. With an identity, it takes mail over TLS only.
struct Server {
    address: SocketAddr,
    process: Process,
}

impl Server {
    fn start(lab: &Lab, identity: Option<&Identity>) -> Result<Self> {
        let files = identity.map(|identity| [&identity.chain, &identity.key]);
        let [chain, key] = files
            .map_or([String::new(), String::new()], |files| files.map(|file| file.display().to_string()));
        let process = script(lab, &["server", &chain, &key])?.spawn()?;
        let address = until("port of aiosmtpd", START, || {
            let text = process.stdout();
            let port = text.lines().find_map(|line| line.strip_prefix("PORT ")?.parse::<u16>().ok());
            Ok(port.map(|port| SocketAddr::from(([127, 0, 0, 1], port))))
        })
        .with_context(|| process.stderr())?;
        Ok(Self { address, process })
    }

    fn mails(&self) -> Vec<String> {
        self.process.stdout().lines().filter(|line| line.starts_with("MAIL ")).map(str::to_owned).collect()
    }

    /// Two mails have come since, each of so many bytes.
    fn expect_mail(&self, before: usize, how: &str, bytes: usize) -> Result<()> {
        let wanted = [
            format!("MAIL a@example.com b@example.com {how} bytes={bytes}"),
            format!("MAIL c@example.com d@example.com {how} bytes={bytes}"),
        ];
        let mails = self.mails();
        ensure!(mails.get(before..) == Some(&wanted), "{mails:?}");
        Ok(())
    }
}

/// What smtplib sees; `ca`: for STARTTLS.
fn send(lab: &Lab, to: SocketAddr, ca: Option<&str>, lines: usize) -> Result<String> {
    let (port, lines) = (to.port().to_string(), lines.to_string());
    let out = script(lab, &["client", &port, ca.unwrap_or_default(), &lines])?.output()?;
    Ok(out.stdout + &out.stderr)
}

fn smtp_starttls(prefix: &str, fields: &str) -> String {
    let of_type = "shunt.filters.network.smtp_starttls.v1.SmtpStarttls";
    filter("shunt.filters.network.smtp_starttls", of_type, &format!("stat_prefix: {prefix:?}, {fields}"))
}

/// Listeners before a server without TLS, and one with.
fn config(plain: &Server, secure: &Server, mesh: &Mesh<'_>, own: &Identity) -> Result<String> {
    let stranger = mesh.pki.root("stranger")?;
    let down = TlsContext::new().certificate(own);
    let up = |trusted| {
        let context = TlsContext::new().field(&format!("sni: {NAME:?}")).trust(trusted);
        let context = context.san("DNS", &format!("exact: {NAME:?}"));
        format!("transport_socket: {}", context.upstream_starttls())
    };
    let config = Bootstrap::new()
        .static_cluster("plain", &[plain.address], "")
        .static_cluster("secure", &[secure.address], &up(mesh.root.file()))
        .static_cluster("without", &[plain.address], &up(mesh.root.file()))
        .static_cluster("stranger", &[secure.address], &up(stranger.file()));
    let require = smtp_starttls("require", "downstream_starttls: REQUIRE");
    let config = listener(config, "require", Some(&down), &require, "plain");
    let allow = smtp_starttls("allow", "downstream_starttls: ALLOW");
    let config = listener(config, "allow", Some(&down), &allow, "plain");
    let only_up = "upstream_starttls: REQUIRE";
    let config = listener(config, "up", None, &smtp_starttls("up", only_up), "secure");
    let both = smtp_starttls("both", "downstream_starttls: REQUIRE, upstream_starttls: REQUIRE");
    let config = listener(config, "both", Some(&down), &both, "secure");
    let config = listener(config, "without", None, &smtp_starttls("without", only_up), "without");
    let config = listener(config, "stranger", None, &smtp_starttls("stranger", only_up), "stranger");
    Ok(config.yaml())
}

#[test]
fn smtplib_and_aiosmtpd_through_the_smtp_filter() -> Result<()> {
    lab(|lab| {
        let mesh = Mesh::new(lab)?;
        let identity = mesh.middle.issue("mx", &Leaf::new().dns(NAME))?;
        let plain = Server::start(lab, None)?;
        let secure = Server::start(lab, Some(&identity))?;
        let proxy = Proxy::start(lab, Kind::Shunt, &config(&plain, &secure, &mesh, &identity)?)?;
        let root = mesh.root.file().display().to_string();
        let mut cases = Cases::new();
        downstream(lab, &proxy, &mut cases, &plain, &root);
        upstream(lab, &proxy, &mut cases, &secure, &root);
        cases.case("s_client -starttls smtp", || {
            let args = ["-starttls", "smtp", "-CAfile", &root, "-verify_hostname", NAME, "-crlf"];
            let said = openssl::ask(lab, proxy.at("require")?, &args, "EHLO me\nQUIT\n", "221")?;
            ensure!(said.verified() == Some("0 (ok)"), "{}", said.text);
            ensure!(said.text.contains("250 HELP") || said.text.contains("250-SIZE"), "{}", said.text);
            Ok(())
        });
        cases.case("plaintext behind STARTTLS", || {
            let before = plain.mails().len();
            let mail = "MAIL FROM:<m@x>\r\nRCPT TO:<n@x>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n";
            let said = format!("EHLO me\r\nSTARTTLS\r\n{mail}");
            let heard = String::from_utf8(blurt(proxy.at("allow")?, said.as_bytes())?)?;
            ensure!(heard.contains("250 STARTTLS\r\n"), "{heard}");
            ensure!(!heard.contains("220 2.0.0"), "{heard}");
            ensure!(plain.mails().len() == before);
            proxy.expect_stat("smtp.allow.plaintext_behind_starttls", 1)
        });
        cases.finish()
    })
}

fn downstream(lab: &Lab, proxy: &Proxy, cases: &mut Cases, server: &Server, root: &str) {
    cases.case("a client with TLS, a server without", || {
        for name in ["require", "allow"] {
            let before = server.mails().len();
            let said = send(lab, proxy.at(name)?, Some(root), 2_000)?;
            ensure!(said.contains("TLS TLSv1.3\n") && said.contains("SENT\n"), "{name}: {said}");
            let features = |label| said.lines().find(|line| line.starts_with(label)).unwrap_or_default();
            ensure!(features("BEFORE").contains(" starttls"), "{name}: {said}");
            ensure!(!features("AFTER").contains(" starttls"), "{name}: {said}");
            server.expect_mail(before, "plain", 18 + 72 * 2_000)?;
            proxy.expect_stat(&format!("smtp.{name}.downstream_tls_termination_success"), 1)?;
        }
        Ok(())
    });
    cases.case("a client without TLS, where it is offered", || {
        let before = server.mails().len();
        let said = send(lab, proxy.at("allow")?, None, 1)?;
        ensure!(said.contains("SENT\n"), "{said}");
        server.expect_mail(before, "plain", 18 + 72)
    });
    cases.case("a client without TLS, where it is required", || {
        let before = server.mails().len();
        let said = send(lab, proxy.at("require")?, None, 1)?;
        ensure!(said.contains("REFUSED (530, b'5.7.0 Must issue a STARTTLS command first'"), "{said}");
        ensure!(server.mails().len() == before, "it got through");
        Ok(())
    });
}

fn upstream(lab: &Lab, proxy: &Proxy, cases: &mut Cases, server: &Server, root: &str) {
    cases.case("a client without TLS, a server with", || {
        let before = server.mails().len();
        let said = send(lab, proxy.at("up")?, None, 100)?;
        ensure!(said.contains("SENT\n"), "{said}");
        ensure!(!said.contains("starttls"), "{said}");
        server.expect_mail(before, "tls", 18 + 72 * 100)?;
        proxy.expect_stat("smtp.up.upstream_tls_success", 1)
    });
    cases.case("TLS on both sides", || {
        let before = server.mails().len();
        let said = send(lab, proxy.at("both")?, Some(root), 100)?;
        ensure!(said.contains("TLS TLSv1.3\n") && said.contains("SENT\n"), "{said}");
        server.expect_mail(before, "tls", 18 + 72 * 100)
    });
    for name in ["without", "stranger"] {
        cases.case(format_args!("no TLS to be had of the server: {name}"), || {
            let said = send(lab, proxy.at(name)?, None, 1)?;
            ensure!(said.contains("REFUSED 421 b'4.7.0 No TLS connection to the server'"), "{said}");
            ensure!(!said.contains("SENT"), "{said}");
            proxy.expect_stat(&format!("smtp.{name}.upstream_tls_error"), 1)
        });
    }
}
