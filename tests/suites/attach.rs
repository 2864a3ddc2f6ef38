//! `shunt attach` without a proxy of ours: a stock Envoy as istio-proxy's uid, with no iptables rule.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::cases::canonical;
use shunt_tests::daemon::{counter, maps};
use shunt_tests::probe::Connect;
use shunt_tests::process::Process;
use shunt_tests::{Cases, Family, Lab, Output, Place, Pod, eventually, lab};

use crate::common::is_passthrough_source;

const PROXY: u32 = 1_337;

/// Runs `shunt COMMAND` on the lab's pins and run directory.
fn shunt(lab: &Lab, args: &[&str]) -> Result<Output> {
    let spawn = lab.shunt(&Place::default())?.args(args).arg("--pin-root").arg(lab.pins().path());
    spawn.arg("--run-dir").arg(lab.dir().join("run")).output()
}

fn well(out: &Output) -> Result<()> {
    ensure!(out.status.success(), "{out:?}");
    Ok(())
}

fn attach(lab: &Lab, pod: &Pod, flags: &[&str]) -> Result<()> {
    let (cgroup, netns) = (pod.cgroup.to_string_lossy(), pod.netns.path());
    let netns = netns.to_string_lossy();
    let args = [&["attach", "--cgroup", &*cgroup, "--netns", &*netns] as &[&str], flags].concat();
    well(&shunt(lab, &args)?)
}

fn detach(lab: &Lab, pod: &Pod) -> Result<()> {
    let (cgroup, netns) = (pod.cgroup.to_string_lossy(), pod.netns.path());
    well(&shunt(lab, &["detach", "--cgroup", &cgroup, "--netns", &netns.to_string_lossy()])?)
}

/// One listener of Envoy's that passes everything on to where it was going.
fn listener(name: &str, address: &str, port: u16, original_dst: &str, cluster: &str) -> String {
    let log = "local=%DOWNSTREAM_LOCAL_ADDRESS% remote=%DOWNSTREAM_REMOTE_ADDRESS% up=%UPSTREAM_HOST% rx=%BYTES_RECEIVED%";
    format!(
        r#"  - name: {name}
    address: {{ socket_address: {{ address: "{address}", port_value: {port} }} }}
    {original_dst}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: {name}
          cluster: {cluster}
          access_log:
          - name: stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format: {{ text_format_source: {{ inline_string: "{name} {log}\n" }} }}
"#
    )
}

/// Istio's shape: `use_original_dst` or the listener filter in front, ORIGINAL_DST clusters behind.
fn bootstrap() -> String {
    let filter = r#"listener_filters: [ { name: envoy.filters.listener.original_dst, typed_config: { "@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst } } ]"#;
    let listeners = [
        listener("out4", "0.0.0.0", 15_001, "use_original_dst: true", "passthrough"),
        listener("out6", "::", 15_001, filter, "passthrough"),
        listener("in4", "0.0.0.0", 15_006, filter, "inbound4"),
        listener("in6", "::", 15_006, filter, "inbound6"),
    ];
    let cluster = |name: &str, bind: &str| {
        format!(
            "  - {{ name: {name}, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s{bind} }}\n"
        )
    };
    let bind = |ip: &str| {
        format!(r#", upstream_bind_config: {{ source_address: {{ address: "{ip}", port_value: 0 }} }}"#)
    };
    format!(
        "static_resources:\n  listeners:\n{}  clusters:\n{}{}{}",
        listeners.concat(),
        cluster("passthrough", ""),
        cluster("inbound4", &bind("127.0.0.6")),
        cluster("inbound6", &bind("::6")),
    )
}

/// A running Envoy in the workload, as the proxy's uid.
fn envoy(lab: &Lab, place: &Place) -> Result<Process> {
    let file = lab.dir().join("envoy.yaml");
    fs::write(&file, bootstrap())?;
    let spawn =
        lab.program("envoy", &place.user(PROXY))?.args(["--disable-hot-restart", "--concurrency", "1"]);
    let mut envoy =
        spawn.args(["--file-flush-interval-msec", "50", "-l", "warn", "-c"]).arg(&file).spawn()?;
    eventually("Envoy listens", Duration::from_secs(20), || {
        if let Some(status) = envoy.exited()? {
            return Err(anyhow::anyhow!("Envoy ended: {status}"));
        }
        let tables = ["tcp", "tcp6"].map(|t| fs::read_to_string(format!("/proc/{}/net/{t}", envoy.pid())));
        let text: String = tables.into_iter().collect::<Result<_, _>>()?;
        // :15001 and :15006 in both families, in LISTEN.
        let listening = |port: &str| text.lines().filter(|l| l.contains(port) && l.contains(" 0A ")).count();
        ensure!(listening(":3A99 ") == 2 && listening(":3A9E ") == 2, "{text}");
        Ok(())
    })?;
    Ok(envoy)
}

/// What a line of Envoy's log says of a connection to an address.
fn logged(envoy: &Process, listener: &str, to: SocketAddr) -> Result<()> {
    let wanted = format!("{listener} local={} ", canonical(to));
    eventually("Envoy's log line", Duration::from_secs(5), || {
        let text = envoy.stdout();
        ensure!(text.lines().any(|line| line.starts_with(&wanted)), "no {wanted:?} in {text}");
        Ok(())
    })
}

fn listener_of(direction: &str, family: Family) -> String {
    format!("{direction}{}", if family == Family::V6 { 6 } else { 4 })
}

/// All that a sidecar must do.
fn sidecar(lab: &Lab, pod: &Pod, envoy: &Process, cases: &mut Cases) -> Result<()> {
    let (outside, inside) = (lab.serve(&lab.outside())?, lab.serve(pod.place())?);
    cases.each_family("outbound", |family| {
        let to = family.address(pod.gateway4, pod.gateway6, outside.port);
        let report = Connect::new(pod.place(), to).steps("addr echo:100000 hash:50000").run(lab)?;
        ensure!(report.redirected()? && report.peer()? == canonical(to), "{report:?}");
        logged(envoy, &listener_of("out", family), to)
    });
    cases.each_family("inbound", |family| {
        let to = family.address(pod.v4, pod.v6, inside.port);
        let report = Connect::new(&lab.outside(), to).steps("addr echo:100000 hash:50000").run(lab)?;
        ensure!(is_passthrough_source(report.server_peer()?.ip()), "{report:?}");
        logged(envoy, &listener_of("in", family), to)
    });
    cases.each_family("two hundred at once", |family| {
        let to = family.address(pod.gateway4, pod.gateway6, outside.port);
        Connect::new(pod.place(), to).with("--parallel 200").steps("hash:10000").run(lab).map(drop)
    });
    cases.each_family("the workload to its own address", |family| {
        let to = family.address(pod.v4, pod.v6, inside.port);
        let report = Connect::new(pod.place(), to).steps("addr").run(lab)?;
        ensure!(report.server_peer()? == report.local()?, "{report:?}");
        Ok(())
    });
    cases.case("nothing is left in FLOWS", || {
        eventually("an empty FLOWS", Duration::from_secs(5), || {
            let flows = maps(lab)?["FLOWS"].clone();
            ensure!(flows.as_array().is_some_and(Vec::is_empty), "{flows}");
            Ok(())
        })
    });
    Ok(())
}

#[test]
fn a_stock_envoy_is_a_sidecar_in_the_workloads_cgroup() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let outside = lab.serve(&lab.outside())?;
        attach(lab, &pod, &[])?;
        let mut cases = Cases::new();
        cases.case("closed until the proxy listens", || {
            let report =
                Connect::new(pod.place(), outside.address(pod.gateway4)).steps("addr").report(lab)?;
            report.expect_errno(&["ECONNREFUSED"])
        });
        // ::6 is not on lo unless someone adds it; istio-init does, and so does attach.
        let envoy = envoy(lab, pod.place())?;
        sidecar(lab, &pod, &envoy, &mut cases)?;
        cases.each_family("the proxy's uid is not captured", |family| {
            let to = family.address(pod.gateway4, pod.gateway6, outside.port);
            let before = counter(&maps(lab)?, "proxy_uid")?;
            let report = Connect::new(&pod.place().user(PROXY), to).steps("addr").run(lab)?;
            ensure!(!report.redirected()?, "{report:?}");
            ensure!(counter(&maps(lab)?, "proxy_uid")? > before, "not by the uid rule");
            Ok(())
        });
        cases.case("the proxy's gid is not captured", || {
            let place = pod.place().user_group(1_000, PROXY);
            let report = Connect::new(&place, outside.address(pod.gateway4)).steps("addr").run(lab)?;
            ensure!(!report.redirected()?, "{report:?}");
            Ok(())
        });
        cases.case("nobody else may listen there", || {
            for address in ["127.0.0.1:15001", "127.0.0.1:15006"] {
                let answer = lab.probe(&pod.place().user(1_000))?.args(["try", "listen", address]).json()?;
                ensure!(answer["errno"] == "EPERM", "{answer}");
            }
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn a_stock_envoy_in_a_cgroup_of_its_own_that_was_there_before() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let outside = lab.serve(&lab.outside())?;
        let proxy = lab.cgroup().child("proxy")?;
        let envoy = envoy(lab, &pod.place().in_cgroup(&proxy))?;
        attach(lab, &pod, &["--proxy-cgroup", &proxy.to_string_lossy(), "-o", "9999"])?;
        let mut cases = Cases::new();
        sidecar(lab, &pod, &envoy, &mut cases)?;
        cases.case("the proxy's uid alone is captured", || {
            let to = outside.address(pod.gateway4);
            let report = Connect::new(&pod.place().user(PROXY), to).steps("addr").run(lab)?;
            ensure!(report.redirected()?, "{report:?}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn open_connections_live_on_through_attach_and_detach() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let (outside, inside) = (lab.serve(&lab.outside())?, lab.serve(pod.place())?);
        let out = |family: Family| {
            Connect::new(pod.place(), family.address(pod.gateway4, pod.gateway6, outside.port))
        };
        let into = |family: Family| Connect::new(&lab.outside(), family.address(pod.v4, pod.v6, inside.port));
        let mut sessions = Vec::new();
        let mut cases = Cases::new();
        for family in Family::ALL {
            sessions.push((format!("out before attach, {family}"), out(family).session(lab)?));
            sessions.push((format!("in before attach, {family}"), into(family).session(lab)?));
        }
        attach(lab, &pod, &[])?;
        let _envoy = envoy(lab, pod.place())?;
        for (name, session) in &mut sessions {
            cases.case(format_args!("{name}, attached"), || session.step("echo:100000").map(drop));
        }
        for family in Family::ALL {
            let session = out(family).session(lab)?;
            ensure!(session.opened.redirected()?, "{family}: {:?}", session.opened);
            sessions.push((format!("out through Envoy, {family}"), session));
            sessions.push((format!("in through Envoy, {family}"), into(family).session(lab)?));
        }
        detach(lab, &pod)?;
        for (name, session) in &mut sessions {
            cases.case(format_args!("{name}, detached"), || session.step("echo:100000").map(drop));
        }
        cases.each_family("direct again", |family| {
            let report = out(family).steps("addr").run(lab)?;
            ensure!(report.server_peer()? == report.local()?, "out: {report:?}");
            let report = into(family).steps("addr").run(lab)?;
            ensure!(report.server_peer()? == report.local()?, "in: {report:?}");
            Ok(())
        });
        cases.finish()
    })
}

#[test]
fn detach_and_cleanup_leave_nothing() -> Result<()> {
    lab(|lab| {
        let (a, b) = (lab.pod("a")?, lab.pod("b")?);
        let outside = lab.serve(&lab.outside())?;
        attach(lab, &a, &["--name", "a"])?;
        attach(lab, &b, &["--name", "b"])?;
        attach(lab, &b, &["--name", "b", "-o", "9999"]).context("attach again, with another policy")?;
        ensure!(maps(lab)?["PODS"].as_array().map(Vec::len) == Some(2), "{}", maps(lab)?["PODS"]);
        well(&shunt(lab, &["detach", "--name", "a"])?)?;
        ensure!(!shunt(lab, &["detach", "--name", "a"])?.status.success(), "a second detach");
        let report = Connect::new(a.place(), outside.address(a.gateway4)).steps("addr").run(lab)?;
        ensure!(report.server_peer()? == report.local()?, "{report:?}");
        let report = Connect::new(b.place(), outside.address(b.gateway4)).steps("addr").report(lab)?;
        report.expect_errno(&["ECONNREFUSED"]).context("b is attached still")?;
        well(&shunt(lab, &["cleanup"])?)?;
        ensure!(!lab.pins().exists(), "{:?}", lab.pins().pins());
        let report = Connect::new(b.place(), outside.address(b.gateway4)).steps("addr").run(lab)?;
        ensure!(report.server_peer()? == report.local()?, "{report:?}");
        well(&shunt(lab, &["cleanup"])?).context("a second cleanup")
    })
}
