//! Removes what a killed run left: everything of ours whose name carries the pid of no living process.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{cgroup, netns, pins};

pub(crate) fn sweep() {
    if let Ok(mount) = cgroup::mount() {
        each_dead(&mount, cgroup::PREFIX, |name| report(cgroup::remove(&mount.join(name))));
    }
    let temporary = std::env::temp_dir();
    each_dead(&temporary, cgroup::PREFIX, |name| {
        report(fs::remove_dir_all(temporary.join(name)).map_err(Into::into));
    });
    let bpffs = Path::new(pins::BPFFS);
    each_dead(bpffs, pins::PREFIX, |name| report(pins::remove(&bpffs.join(name))));
    each_dead(Path::new(netns::DIR), netns::PREFIX, |name| {
        report(Command::new("ip").args(["netns", "del", name]).status().map(drop).map_err(Into::into));
    });
}

/// Calls `remove` for each entry `<prefix><pid>-…` of a dead pid.
fn each_dead(dir: &Path, prefix: &str, remove: impl Fn(&str)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name, prefix).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}

fn owner(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split('-').next()?.parse().ok()
}

fn report(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("sweep: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(owner("shunt-t12-3", pins::PREFIX), Some(12));
        assert_eq!(owner("shunt-test-12-3", cgroup::PREFIX), Some(12));
        assert_eq!(owner("shunt", pins::PREFIX), None);
        assert_eq!(owner("shunt-test-12-3", pins::PREFIX), None);
    }
}
