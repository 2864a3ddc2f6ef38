//! The harness itself, without the daemon: what the other suites take for granted.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use shunt_tests::probe::Connect;
use shunt_tests::{Cases, Family, PodOptions, lab};

#[test]
fn every_step_of_the_probe_works_directly() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let backend = lab.serve(&lab.outside())?;
        let mut cases = Cases::new();
        for options in
            ["", "--nonblock", "--tfo sendto", "--tfo connect", "--mptcp", "--exec", "--device eth0"]
        {
            cases.each_family(options, |family| {
                let to = family.address(pod.gateway4, pod.gateway6, backend.port);
                let report = Connect::new(pod.place(), to)
                    .with(options)
                    .steps("addr echo:100001 hash:70000")
                    .run(lab)?;
                ensure!(report.server_peer()?.ip() != report.server_local()?.ip(), "{report:?}");
                ensure!(!report.redirected()?, "{report:?}");
                Ok(())
            });
        }
        cases.finish()
    })
}

#[test]
fn every_end_of_a_connection_is_seen_directly() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let mut backend = lab.serve(&lab.outside())?;
        let mut cases = Cases::new();
        for steps in ["gen:300000", "push:3000000:100", "pull:3000000:100", "rst:1000", "echo:10 reset"] {
            cases.case(steps, || {
                let mark = backend.mark();
                let to = backend.address(pod.gateway4);
                Connect::new(pod.place(), to).steps(steps).run(lab)?;
                let command = steps.split([':', ' ']).next().unwrap_or_default();
                let end = backend.ended(mark, command)?;
                ensure!(command != "gen" || end["answer_ok"] == true, "{end}");
                ensure!(!steps.contains("reset") || end["end"] == "ECONNRESET", "{end}");
                Ok(())
            });
        }
        cases.case("greeting", || {
            let to = (pod.gateway4, backend.greeting_port).into();
            Connect::new(pod.place(), to).steps("greet echo:5").run(lab).map(drop)
        });
        cases.case("many at once", || {
            let to = backend.address(pod.gateway4);
            Connect::new(pod.place(), to).with("--parallel 200").steps("hash:10000").run(lab).map(drop)
        });
        cases.case("session", || {
            let mut session = Connect::new(pod.place(), backend.address(pod.gateway6)).session(lab)?;
            session.step("echo:10")?;
            session.step("echo:20").map(drop)
        });
        cases.case("a refused connect has its name", || {
            let report = Connect::new(pod.place(), (pod.gateway4, 1).into()).report(lab)?;
            report.expect_errno(&["ECONNREFUSED"])
        });
        cases.finish()
    })
}

#[test]
fn places_have_users_cgroups_and_namespaces() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod_with("a", PodOptions { ipv6: false, second_link: true })?;
        let out = lab
            .program("sh", &pod.place().user(1_234))?
            .args(["-c", "id -u; cat /proc/self/cgroup; ip -6 addr"]);
        let text = out.run()?.stdout;
        let cgroup = pod.cgroup.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(text.starts_with("1234\n") && text.contains(&format!("/{cgroup}\n")), "{text}");
        ensure!(!text.contains("inet6"), "{text}");
        let mut load = lab.probe(pod.place())?.args(["load", "--to", "10.99.1.1:1"]).with_stdin().spawn()?;
        load.wait_event("start", 0, Duration::from_secs(5), |event| Some(event.clone()))?;
        let tally: Value = load.finish()?.json()?;
        ensure!(tally["ok"] == 0 && tally["errors"]["connect ECONNREFUSED"].as_u64() > Some(0), "{tally}");
        Ok(())
    })
}

#[test]
fn datagrams_are_answered_by_the_address_asked() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let mut server = lab.probe(&lab.outside())?.args(["udp-serve", "--listen", "[::]:0"]).spawn()?;
        let port =
            server.wait_event("port", 0, Duration::from_secs(5), |event| event["ports"][0].as_u64())?;
        let mut cases = Cases::new();
        cases.each_family("unconnected", |family: Family| {
            let to = family.address(pod.gateway4, pod.gateway6, u16::try_from(port)?).to_string();
            let answer = lab.probe(pod.place())?.args(["udp", "--to", &to]).json()?;
            ensure!(answer["from"] == to, "{answer}");
            Ok(())
        });
        cases.finish()
    })
}
