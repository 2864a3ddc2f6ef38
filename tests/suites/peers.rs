//! Real programs through the daemon, as clients of a captured workload and as servers in one.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use shunt_tests::process::Process;
use shunt_tests::{Cases, Daemon, Lab, Place, Pod, eventually, lab};

/// A user that servers which refuse root can run as; it must have a name.
const NOBODY: u32 = 65_534;
const START: Duration = Duration::from_secs(20);

/// A carried connection to a port that ended well.
fn carried(daemon: &Daemon<'_>, direction: &str, port: u16, mark: usize) -> Result<()> {
    let suffix = format!(":{port}");
    let wanted = |line: &Value| {
        let to = line["original_dst"].as_str().unwrap_or_default();
        line["direction"] == direction && to.ends_with(&suffix) && line["response_flags"] == "-"
    };
    daemon
        .access_log()
        .wait(&format!("{direction} to port {port}"), mark, Duration::from_secs(5), wanted)
        .map(drop)
}

fn both_gateways(pod: &Pod) -> [IpAddr; 2] {
    [pod.gateway4.into(), pod.gateway6.into()]
}

/// A PostgreSQL of its own, without a password.
fn postgres(lab: &Lab, place: &Place) -> Result<Process> {
    let dir = lab.dir().join("postgres");
    fs::create_dir(&dir)?;
    chown(&dir, Some(NOBODY), Some(NOBODY))?;
    let data = dir.join("data");
    let nobody = Place { cgroup: place.cgroup.clone(), ..Place::default() }.user(NOBODY);
    let init =
        lab.program("initdb", &nobody)?.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data);
    init.env("LC_ALL", "C").run().context("initdb")?;
    let server = lab.program("postgres", &place.user(NOBODY))?.arg("-D").arg(&data);
    fs::write(data.join("pg_hba.conf"), "host all all all trust\n")?;
    server.args(["-c", "listen_addresses=*", "-c", "fsync=off", "-k"]).arg(&dir).env("LC_ALL", "C").spawn()
}

fn psql(lab: &Lab, place: &Place, host: IpAddr, sql: &str) -> Result<String> {
    let url = format!("host={host} user=postgres dbname=postgres sslmode=disable connect_timeout=10");
    Ok(lab.program("psql", place)?.args(["-XAtq", &url, "-c", sql]).run()?.stdout)
}

#[test]
fn psql_reaches_postgresql() -> Result<()> {
    lab(|lab| {
        let (pod, db) = (lab.pod("a")?, lab.pod("db")?);
        let _outside = postgres(lab, &lab.outside())?;
        let daemon = Daemon::start(lab, &[pod.entry(""), db.entry("")])?;
        eventually("PostgreSQL answers", START, || {
            psql(lab, &lab.outside(), pod.gateway4.into(), "select 1")
        })?;
        let mut cases = Cases::new();
        for host in both_gateways(&pod) {
            cases.case(format_args!("a captured psql, to {host}"), || {
                let mark = daemon.access_log().mark();
                let seen = psql(lab, pod.place(), host, "select host(inet_client_addr())")?;
                let own = if host.is_ipv4() { pod.v4.to_string() } else { pod.v6.to_string() };
                ensure!(seen.trim() == own, "the server saw {seen}");
                let sql = "select md5(string_agg(i::text, ',')), count(*) from generate_series(1, 200000) i";
                let through = psql(lab, pod.place(), host, sql)?;
                ensure!(through == psql(lab, &lab.outside(), host, sql)?, "{through}");
                let rows =
                    psql(lab, pod.place(), host, "select repeat('x', 100) from generate_series(1, 50000)")?;
                ensure!(rows.len() == 50_000 * 101, "{} bytes", rows.len());
                carried(&daemon, "outbound", 5_432, mark)
            });
        }
        cases.finish()
    })
}

#[test]
fn psql_reaches_a_captured_postgresql() -> Result<()> {
    lab(|lab| {
        let db = lab.pod("db")?;
        let _server = postgres(lab, db.place())?;
        let daemon = Daemon::start(lab, &[db.entry("")])?;
        let mut cases = Cases::new();
        for host in [IpAddr::from(db.v4), db.v6.into()] {
            cases.case(format_args!("to {host}"), || {
                let mark = daemon.access_log().mark();
                let ask = || psql(lab, &lab.outside(), host, "select host(inet_client_addr())");
                let seen = eventually("PostgreSQL answers", START, ask)?;
                ensure!(["127.0.0.6", "::6"].contains(&seen.trim()), "the server saw {seen}");
                carried(&daemon, "inbound", 5_432, mark)
            });
        }
        cases.finish()
    })
}

#[test]
fn redis_cli_reaches_redis_server() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.program("redis-server", &lab.outside())?.dir(lab.dir());
        let _server = server
            .args(["--port", "6379", "--protected-mode", "no", "--save", "", "--bind", "*", "-::*"])
            .spawn()?;
        let daemon = Daemon::start(lab, &[pod.entry("")])?;
        let cli = |place: &Place, host: IpAddr, args: &[&str]| -> Result<String> {
            let host = host.to_string();
            let out = lab.program("redis-cli", place)?.args(["-h", &host, "-e"]).args(args).run()?;
            Ok(out.stdout.trim().to_owned())
        };
        eventually("Redis answers", START, || cli(&lab.outside(), pod.gateway4.into(), &["ping"]))?;
        let mut cases = Cases::new();
        for host in both_gateways(&pod) {
            cases.case(format_args!("to {host}"), || {
                let mark = daemon.access_log().mark();
                let value = "v".repeat(100_000);
                ensure!(cli(pod.place(), host, &["set", "k", &value])? == "OK", "SET");
                ensure!(cli(pod.place(), host, &["get", "k"])? == value, "GET");
                let script = "local t = {} for i = 1, 100000 do t[i] = i end return #t";
                ensure!(cli(pod.place(), host, &["eval", script, "0"])? == "100000", "EVAL");
                carried(&daemon, "outbound", 6_379, mark)
            });
        }
        cases.finish()
    })
}

/// A web server of Python's, and its port.
pub(crate) fn web_server(lab: &Lab, place: &Place) -> Result<(Process, u16)> {
    web_server_at(lab, place, 0)
}

/// At a port that may be left to the kernel.
pub(crate) fn web_server_at(lab: &Lab, place: &Place, port: u16) -> Result<(Process, u16)> {
    let dir = lab.dir().join("www");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("index.html"), "hello\n")?;
    fs::write(dir.join("big"), vec![b'z'; 5_000_000])?;
    let spawn = lab
        .program("python3", place)?
        .args(["-u", "-m", "http.server", &port.to_string(), "--bind", "::"])
        .dir(&dir);
    let server = spawn.spawn()?;
    let port = eventually("the web server's port", START, || {
        let text = server.stdout();
        let port = text.split("port ").nth(1).and_then(|rest| rest.split_whitespace().next());
        port.and_then(|port| port.parse().ok()).with_context(|| format!("{text:?} {}", server.stderr()))
    })?;
    Ok((server, port))
}

#[test]
fn curl_fetches() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let (_server, port) = web_server(lab, &lab.outside())?;
        let daemon = Daemon::start(lab, &[pod.entry("")])?;
        let mut cases = Cases::new();
        for host in
            [format!("{}", pod.gateway4), format!("[{}]", pod.gateway6), format!("[::ffff:{}]", pod.gateway4)]
        {
            cases.case(&host, || {
                let mark = daemon.access_log().mark();
                let curl = |path: &str, out: &str| {
                    let url = format!("http://{host}:{port}/{path}");
                    lab.program("curl", pod.place())?.args(["-sSfg", "--noproxy", "*", "-w", out, &url]).run()
                };
                // What curl was told by getpeername().
                let text = curl("", "%{remote_ip} %{remote_port}")?.stdout;
                let ip = host.trim_matches(['[', ']']);
                ensure!(text.starts_with("hello\n") && text.ends_with(&format!("{ip} {port}")), "{text}");
                ensure!(curl("big", "")?.stdout.len() == 5_000_000, "bytes are missing");
                carried(&daemon, "outbound", port, mark)
            });
        }
        cases.finish()
    })
}

const JAVA: &str = r#"
import java.net.*; import java.nio.*; import java.nio.channels.*; import java.nio.charset.StandardCharsets;
public class Client {
    public static void main(String[] a) throws Exception {
        for (int i = 0; i < a.length; i++) {
            try (SocketChannel c = SocketChannel.open(new InetSocketAddress(InetAddress.getByName(a[i]), 0 + Integer.parseInt(a[++i])))) {
                c.write(ByteBuffer.wrap("GET / HTTP/1.0\r\n\r\n".getBytes(StandardCharsets.US_ASCII)));
                ByteBuffer b = ByteBuffer.allocate(4096);
                while (c.read(b) >= 0) {}
                String s = new String(b.array(), 0, b.position(), StandardCharsets.US_ASCII);
                if (!s.endsWith("hello\n")) throw new Exception(s);
                System.out.println(c.getRemoteAddress());
            }
        }
    }
}
"#;

/// Java connects by v4-mapped addresses, and asks getpeername() nothing.
#[test]
fn a_java_client_reaches_both_families() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let (_server, port) = web_server(lab, &lab.outside())?;
        let daemon = Daemon::start(lab, &[pod.entry("")])?;
        let source = lab.dir().join("Client.java");
        fs::write(&source, JAVA)?;
        let port_text = port.to_string();
        let (v4, v6) = (pod.gateway4.to_string(), pod.gateway6.to_string());
        let spawn = lab.program("java", pod.place())?.arg(&source).args([&v4, &port_text, &v6, &port_text]);
        spawn.run()?;
        carried(&daemon, "outbound", port, 1)
    })
}
