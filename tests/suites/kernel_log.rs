//! The kernel programs' own words.

use std::time::Duration;

use anyhow::{Result, ensure};
use shunt_tests::probe::Connect;
use shunt_tests::{Daemon, lab, until};

/// A line for each decision, with the rule's name, only where it was asked for.
#[test]
fn debug_logs_are_behind_a_switch() -> Result<()> {
    for (args, spoken) in
        [(&["--bpf-log", "--log-level", "debug"][..], true), (&["--log-level", "debug"], false)]
    {
        lab(|lab| {
            let pod = lab.pod("a")?;
            let server = lab.serve(&lab.outside())?;
            let mut daemon = Daemon::start_with(lab, &[pod.entry("")], args)?;
            let to = server.address(pod.gateway4);
            Connect::new(pod.place(), to).steps("echo:10").run(lab)?;
            let line = format!("port {} -> 15001 by rule out_all", to.port());
            if spoken {
                let found = || Ok(daemon.process().stderr().contains(&line).then_some(()));
                return until("the kernel's line", Duration::from_secs(5), found);
            }
            std::thread::sleep(Duration::from_millis(300));
            ensure!(!daemon.process().stderr().contains("by rule"), "it spoke without being asked");
            Ok(())
        })?;
    }
    Ok(())
}
