//! Port 53 to the proxy's DNS port: the answer seems to come from the server that was asked.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use shunt_tests::backend::Backend;
use shunt_tests::cases::canonical;
use shunt_tests::probe::Connect;
use shunt_tests::process::Process;
use shunt_tests::{Cases, Daemon, Family, Lab, Place, Pod, lab};

const RESOLVER4: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
const RESOLVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x53);
/// What the stub's answers begin with.
const STUB4: &str = "127.0.0.1:15053: query";
const STUB6: &str = "[::1]:15053: query";

fn serve(lab: &Lab, place: &Place, addresses: &[&str]) -> Result<Process> {
    let args = addresses.iter().flat_map(|address| ["--listen", *address]);
    let mut server = lab.probe(place)?.arg("udp-serve").args(args).spawn()?;
    server.wait_event("port", 0, Duration::from_secs(5), |event| event["ports"].as_array().cloned())?;
    Ok(server)
}

fn query(lab: &Lab, pod: &Pod, to: SocketAddr, options: &str) -> Result<Value> {
    let spawn = lab.probe(pod.place())?.args(["udp", "--to", &to.to_string()]);
    spawn.args(options.split_whitespace()).json()
}

/// The reply is the stub's, its source the server that was asked.
fn from_stub(answer: &Value, to: SocketAddr) -> Result<()> {
    let stub = if canonical(to).is_ipv4() { STUB4 } else { STUB6 };
    ensure!(answer["reply"] == stub, "{answer}");
    ensure!(answer["from"] == to.to_string(), "not from {to}: {answer}");
    Ok(())
}

#[test]
fn captured_queries_are_answered_by_the_server_asked() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let _stub = serve(lab, pod.place(), &["127.0.0.1:15053", "[::1]:15053"])?;
        let _other = serve(lab, &lab.outside(), &["[::]:5353"])?;
        let _daemon = Daemon::start(lab, &[pod.entry("--redirect-dns --capture-all-dns")])?;
        let mut cases = Cases::new();
        cases.each_family("unconnected", |family| {
            let to = family.address(RESOLVER4, RESOLVER6, 53);
            from_stub(&query(lab, &pod, to, "")?, to)
        });
        cases.each_family("connected", |family| {
            let to = family.address(RESOLVER4, RESOLVER6, 53);
            let answer = query(lab, &pod, to, "--connect")?;
            ensure!(answer["peer"] == to.to_string(), "getpeername: {answer}");
            from_stub(&answer, to)
        });
        cases.each_family("bound to the workload's address", |family| {
            let to = family.address(RESOLVER4, RESOLVER6, 53);
            let ip = family.address(pod.v4, pod.v6, 0).ip();
            from_stub(&query(lab, &pod, to, &format!("--bind {ip}"))?, to)
        });
        cases.case("a resolver on loopback", || {
            let to = SocketAddr::from(([127, 0, 0, 53], 53));
            from_stub(&query(lab, &pod, to, "")?, to)?;
            from_stub(&query(lab, &pod, to, "--connect")?, to)
        });
        cases.each_family("another port is left alone", |family| {
            let to = family.address(pod.gateway4, pod.gateway6, 5_353);
            let answer = query(lab, &pod, to, "")?;
            ensure!(answer["reply"] == "[::]:5353: query" && answer["from"] == to.to_string(), "{answer}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn only_listed_resolvers_are_captured() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let _stub = serve(lab, pod.place(), &["127.0.0.1:15053", "[::1]:15053"])?;
        let _direct = serve(lab, &lab.outside(), &["[::]:53"])?;
        let policy = format!("--redirect-dns --dns-servers {RESOLVER4},{RESOLVER6}");
        let _daemon = Daemon::start(lab, &[pod.entry(&policy)])?;
        let mut cases = Cases::new();
        cases.each_family("listed", |family| {
            let to = family.address(RESOLVER4, RESOLVER6, 53);
            from_stub(&query(lab, &pod, to, "")?, to)
        });
        cases.each_family("not listed", |family| {
            let to = family.address(pod.gateway4, pod.gateway6, 53);
            let answer = query(lab, &pod, to, "")?;
            ensure!(answer["reply"] == "[::]:53: query", "{answer}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn queries_over_tcp_go_the_same_way() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let _stub = Backend::start(lab, pod.place(), &["--listen", "0.0.0.0:15053"])?;
        let _daemon = Daemon::start(lab, &[pod.entry("--redirect-dns --capture-all-dns")])?;
        let mut cases = Cases::new();
        cases.each_family("TCP", |family: Family| {
            let to = family.address(RESOLVER4, RESOLVER6, 53);
            let report = Connect::new(pod.place(), to).steps("addr echo:100").run(lab)?;
            ensure!(report.server_local()?.port() == 15_053, "{report:?}");
            ensure!(report.peer()? == canonical(to), "getpeername: {report:?}");
            Ok(())
        });
        cases.finish()
    })
}
