//! What the machine offers, and what is asked of it before anything is changed.

use anyhow::{Result, ensure};
use shunt_tests::{Lab, Place, Pod, lab};

fn attach(lab: &Lab, pod: &Pod) -> Vec<String> {
    let args =
        ["attach", "--cgroup", &pod.cgroup.to_string_lossy(), "--netns", &pod.netns.path().to_string_lossy()]
            .map(str::to_owned);
    let places = ["--pin-root", &lab.pins().path().to_string_lossy(), "--run-dir"].map(str::to_owned);
    let run_dir = lab.dir().join("run").to_string_lossy().into_owned();
    [&args[..], &places[..], &[run_dir]].concat()
}

#[test]
fn a_dry_run_says_what_it_would_write_and_writes_nothing() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let run = lab.shunt(&Place::default())?.args(attach(lab, &pod));
        let out = run.args(["-n", "-o", "9999", "-x", "10.1.0.0/16"]).run()?;
        for wanted in ["-o 9999", "out-port-exclude 9999", "exclude 10.1.0.0/16"] {
            ensure!(out.stdout.contains(wanted), "no {wanted}: {out:?}");
        }
        ensure!(!lab.pins().exists(), "{:?}", lab.pins().pins());
        Ok(())
    })
}

/// In a mount namespace of its own, so that the machine keeps what it has.
#[test]
fn bpffs_is_mounted_where_it_is_absent() -> Result<()> {
    lab(|lab| {
        let pod = lab.pod("a")?;
        let script = format!(
            "while grep -q ' /sys/fs/bpf bpf ' /proc/mounts; do umount -l /sys/fs/bpf; done
            \"$@\" && grep ' /sys/fs/bpf bpf ' /proc/mounts && ls {}/v1/maps",
            lab.pins().path().display()
        );
        let shunt = shunt_tests::peer::shunt()?.to_string_lossy().into_owned();
        let unshare = lab.program("unshare", &Place::default())?;
        let args = ["--mount", "--propagation", "private", "sh", "-c", &script, "sh", &shunt];
        let out = unshare.args(args).args(attach(lab, &pod)).run()?;
        ensure!(out.stdout.contains("mode=700") && out.stdout.contains("PODS"), "{out:?}");
        ensure!(!lab.pins().exists(), "the machine's own bpffs was used: {:?}", lab.pins().pins());
        Ok(())
    })
}
