//! Workloads that are not where the pins say, and policies that cannot be put in force.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use shunt_tests::backend::Backend;
use shunt_tests::probe::Connect;
use shunt_tests::{Daemon, eventually, lab};

/// The name is the same, the cgroup is another one: the pins that were left are not of it.
#[test]
fn a_name_that_moved_while_the_daemon_was_away_is_captured_where_it_is() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start(lab, &[pod.entry("")])?;
        daemon.kill()?;
        let cgroup = lab.cgroup().child("moved")?;
        let entry =
            format!("{{name: a, cgroup: {}, netns: {}}}", cgroup.display(), pod.netns.path().display());
        daemon.restart_with(&["--workload".to_owned(), entry])?;
        let connect = Connect::new(&pod.place().in_cgroup(&cgroup), server.address(pod.gateway4));
        let report = connect.steps("addr").run(lab)?;
        ensure!(report.redirected()?, "went past the proxy: {report:?}");
        let before = Connect::new(pod.place(), server.address(pod.gateway4)).steps("addr").run(lab)?;
        ensure!(!before.redirected()?, "the old cgroup is captured still: {before:?}");
        Ok(())
    })
}

/// Without the state file the pins alone keep the workload; it is captured again, and once.
#[test]
fn a_lost_state_file_loses_no_workload() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let mut daemon = Daemon::start(lab, &[pod.entry("")])?;
        daemon.kill()?;
        std::fs::remove_file(daemon.run_dir().join("workloads.json"))?;
        daemon.restart()?;
        let report = Connect::new(pod.place(), server.address(pod.gateway4)).steps("addr").run(lab)?;
        ensure!(report.redirected()?, "went past the proxy: {report:?}");
        Ok(())
    })
}

#[test]
fn a_policy_that_cannot_be_put_in_force_leaves_the_old_one_whole_and_is_tried_again() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let server = lab.serve(&lab.outside())?;
        let daemon = Daemon::start(lab, &[])?;
        let post = |policy: &str| -> Result<()> {
            let answer = daemon.admin().post("/workloads", &pod.entry(policy))?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        };
        post("")?;
        let squatter = Backend::start(lab, pod.place(), &["--listen", "0.0.0.0:16001"])?;
        let wanted = format!("-p 16001 -o {}", server.port);
        post(&wanted)?;
        std::thread::sleep(Duration::from_millis(700));
        let connect = || Connect::new(pod.place(), server.address(pod.gateway4)).steps("addr");
        let report = connect().run(lab)?;
        ensure!(report.redirected()?, "the new policy counts in part: {report:?}");
        let shown = daemon.admin().workload("a")?.context("a is listed")?.to_string();
        ensure!(shown.contains("not in force") && shown.contains("16001"), "{shown}");
        drop(squatter);
        eventually("the new policy", Duration::from_secs(5), || {
            let report = connect().run(lab)?;
            ensure!(!report.redirected()?, "{report:?}");
            Ok(())
        })
    })
}
