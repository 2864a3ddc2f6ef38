//! Configurations with virtualOutbound and virtualInbound, as the listeners of a captured workload.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::example::Example;
use shunt_tests::probe::Connect;
use shunt_tests::{Cases, Daemon, Lab, Place, Pod, eventually, lab};

use crate::common::is_passthrough_source;

/// 15001 and 15006 are one test's at a time.
fn ports() -> MutexGuard<'static, ()> {
    static PORTS: Mutex<()> = Mutex::new(());
    PORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The daemon on an example, with a captured workload.
fn daemon<'l>(lab: &'l Lab, pod: &Pod, example: &Example) -> Result<Daemon<'l>> {
    let file = lab.dir().join("envoy.yaml");
    std::fs::write(&file, example.yaml())?;
    Daemon::start_with(
        lab,
        &[pod.entry("")],
        &["-c", &file.to_string_lossy(), "--file-flush-interval-msec", "20"],
    )
}

/// Waits for a line of the configuration's own access log.
fn logged(daemon: &mut Daemon<'_>, line: &str) -> Result<()> {
    let process = daemon.process();
    eventually(&format!("the line {line:?}"), Duration::from_secs(5), || {
        let text = process.stdout();
        ensure!(text.lines().any(|l| l.starts_with(line)), "only {text:?}");
        Ok(())
    })
}

fn reached(lab: &Lab, from: &Place, to: SocketAddr) -> Result<()> {
    let report = Connect::new(from, to).steps("addr hash:50000").run(lab)?;
    ensure!(report.peer()? == to, "{report:?}");
    Ok(())
}

/// A page by curl from a workload: `status header body`, with what the post looks at.
fn curl(lab: &Lab, from: &Place, to: SocketAddr, host: &str) -> Result<String> {
    let url = format!("http://{to}/");
    let host = format!("host: {host}");
    let told = ["-w", "%{http_code} %header{server} %header{myname}", "-o", "-"];
    let out = lab.program("curl", from)?.args(["-sS", "--noproxy", "*", "--max-time", "10", "-H", &host]);
    Ok(out.args(told).arg(&url).run()?.stdout)
}

/// The connection is taken and closed without a byte.
fn dropped(lab: &Lab, from: &Place, to: SocketAddr) -> Result<()> {
    let report = Connect::new(from, to).steps("addr").report(lab)?;
    ensure!(!report.ok(), "it was served: {report:?}");
    Ok(())
}

#[test]
fn allow_any() -> Result<()> {
    lab(|lab| {
        let _ports = ports();
        let (pod, server) = (lab.pod("a")?, lab.serve(&lab.outside())?);
        let mut daemon = daemon(lab, &pod, &Example::load("intercept-allow_any.yaml")?.free(15_000)?)?;
        let to = server.address(pod.gateway4);
        reached(lab, pod.place(), to)?;
        logged(&mut daemon, &format!("virtualOutbound-catchall-tcp - PassthroughCluster {to} {to}"))?;
        let (_web, port) = crate::peers::web_server_at(lab, &lab.outside(), 80)?;
        let web = SocketAddr::from((pod.gateway4, port));
        let said = curl(lab, pod.place(), web, "other.example")?;
        ensure!(said == "hello\n200 envoy ", "{said:?}");
        logged(&mut daemon, &format!("allow_any - PassthroughCluster {web} {web}"))
    })
}

#[test]
fn the_sidecar_posts_virtual_outbound() -> Result<()> {
    lab(|lab| {
        let _ports = ports();
        let (pod, server) = (lab.pod("a")?, lab.serve(&lab.outside())?);
        let mut daemon = daemon(lab, &pod, &Example::load("sidecar-virtual_outbound.yaml")?.free(15_000)?)?;
        let to = server.address(pod.gateway4);
        reached(lab, pod.place(), to)?;
        let process = daemon.process();
        eventually("the log line", Duration::from_secs(5), || {
            let text = process.stdout();
            ensure!(text.contains(&format!("\"{to}\" PassthroughCluster ")), "{text}");
            Ok(())
        })
    })
}

#[test]
fn registry_only() -> Result<()> {
    lab(|lab| {
        let _ports = ports();
        let (pod, server) = (lab.pod("a")?, lab.serve(&lab.outside())?);
        let (_web, web_port) = crate::peers::web_server(lab, pod.place())?;
        let example = Example::load("intercept-registry_only.yaml")?.free(15_000)?.port(9_080, web_port)?;
        let mut daemon = daemon(lab, &pod, &example)?;
        let mut cases = Cases::new();
        let (registered, other) = (SocketAddr::from((pod.gateway4, 80)), server.address(pod.gateway4));
        cases.case("what is not registered is dropped", || {
            dropped(lab, pod.place(), other)?;
            logged(&mut daemon, &format!("virtualOutbound-catchall-tcp UH BlackHoleCluster - {other}"))
        });
        cases.case("what is registered is served", || {
            let said = curl(lab, pod.place(), registered, "baidu.com")?;
            ensure!(said == "hello\n200 envoy ", "{said:?}");
            logged(&mut daemon, "default - outbound|80||baidu.com ")
        });
        cases.case("a request to another host is answered by 502", || {
            let said = curl(lab, pod.place(), registered, "example.com")?;
            ensure!(said == "502 envoy ", "{said:?}");
            logged(&mut daemon, "block_all - - - ")
        });
        cases.case("another protocol at the registered port is dropped", || {
            dropped(lab, pod.place(), registered)?;
            logged(&mut daemon, "PassthroughFilterChain UH BlackHoleCluster - ")
        });
        cases.finish()
    })
}

#[test]
fn outbound() -> Result<()> {
    lab(|lab| {
        let _ports = ports();
        let (pod, server) = (lab.pod("a")?, lab.serve(&lab.outside())?);
        // Endpoints are dialled from the workload, as a sidecar's are.
        let (_web, web) = crate::peers::web_server(lab, pod.place())?;
        let example = Example::load("intercept-outbound.yaml")?.free(15_000)?.port(9_080, web)?;
        let mut daemon = daemon(lab, &pod, &example)?;
        let mut cases = Cases::new();
        cases.case("the service's address has a listener", || {
            let said = curl(lab, pod.place(), "100.70.238.78:80".parse()?, "myngx")?;
            ensure!(said == "hello\n200 envoy chengzw", "{said:?}");
            logged(&mut daemon, "100.70.238.78_80 - myngx ")
        });
        cases.case("any other address is blocked", || {
            let to = server.address(pod.gateway4);
            dropped(lab, pod.place(), to)?;
            logged(&mut daemon, &format!("virtual UH BlockAllCluster - {to}"))
        });
        cases.finish()
    })
}

#[test]
fn inbound() -> Result<()> {
    lab(|lab| {
        let _ports = ports();
        let pod = lab.pod("a")?;
        let inside = lab.serve(pod.place())?;
        let (_web, web) = crate::peers::web_server(lab, pod.place())?;
        let example = Example::load("intercept-inbound.yaml")?.free(15_000)?.port(9_080, web)?;
        let mut daemon = daemon(lab, &pod, &example)?;
        let mut cases = Cases::new();
        cases.case("port 80 reaches the application", || {
            let said = curl(lab, &lab.outside(), (pod.v4, 80).into(), "myapp")?;
            ensure!(said == "hello\n200 envoy chengzw", "{said:?}");
            logged(&mut daemon, "0.0.0.0_80 - inbound|80|| ")
        });
        cases.case("another port passes through, from 127.0.0.6", || {
            let to = inside.address(pod.v4);
            let report = Connect::new(&lab.outside(), to).steps("addr hash:50000").run(lab)?;
            ensure!(is_passthrough_source(report.server_peer()?.ip()), "{report:?}");
            logged(&mut daemon, &format!("virtualInbound - InboundPassthroughClusterIpv4 {to} {to}"))
        });
        cases.finish()
    })
}

#[test]
fn inbound_ipv6() -> Result<()> {
    lab(|lab| {
        let _ports = ports();
        let pod = lab.pod("a")?;
        let inside = lab.serve(pod.place())?;
        let mut daemon = daemon(lab, &pod, &Example::load("intercept-inbound-ipv6.yaml")?.free(15_000)?)?;
        let to = inside.address(pod.v6);
        let report = Connect::new(&lab.outside(), to).steps("addr hash:50000").run(lab)?;
        ensure!(is_passthrough_source(report.server_peer()?.ip()), "{report:?}");
        logged(&mut daemon, &format!("virtualInbound - InboundPassthroughClusterIpv6 {to} {to}"))
    })
}
