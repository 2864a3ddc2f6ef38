//! What the machine must offer, asked before anything is changed: each message names the feature and the fix.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};

use super::Error;

/// The oldest kernel whose helpers the programs use (`bpf_get_netns_cookie` in sockops and getsockopt).
const OLDEST: (u32, u32) = (5, 15);

/// What each kind of hook needs that an old or a trimmed kernel may lack.
const HELPERS: &[(ProgramType, &str, BpfHelper, &str)] = &[
    (ProgramType::CgroupSockAddr, "connect", BpfHelper::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie"),
    (ProgramType::CgroupSockAddr, "connect", BpfHelper::BPF_FUNC_sk_storage_get, "bpf_sk_storage_get"),
    (ProgramType::SockOps, "sockops", BpfHelper::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie"),
    (ProgramType::SockOps, "sockops", BpfHelper::BPF_FUNC_sock_hash_update, "bpf_sock_hash_update"),
    (ProgramType::CgroupSockopt, "getsockopt", BpfHelper::BPF_FUNC_get_netns_cookie, "bpf_get_netns_cookie"),
    (ProgramType::SkLookup, "sk_lookup", BpfHelper::BPF_FUNC_sk_assign, "bpf_sk_assign"),
    (ProgramType::CgroupSkb, "egress", BpfHelper::BPF_FUNC_sk_fullsock, "bpf_sk_fullsock"),
];

/// Asks the kernel for what the programs need, one by one, so that the answer has a name. For when they were
/// refused: asking costs more than loading them.
pub(super) fn missing_feature() -> Option<Error> {
    let absent = |(kind, hook, helper, name): &(ProgramType, &str, BpfHelper, &str)| {
        let supported = is_program_supported(*kind).unwrap_or(true);
        if supported && is_helper_supported(*kind, *helper).unwrap_or(true) {
            return None;
        }
        let what = if supported {
            format!("the helper {name} in {hook} programs")
        } else {
            format!("{hook} programs")
        };
        Some(Error::Missing {
            what: format!("this kernel has no support for {what}"),
            why: "the kernel half needs it".to_owned(),
            fix: "Use Linux 5.15 or newer with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF, CONFIG_INET and CONFIG_NET_NS",
        })
    };
    HELPERS.iter().find_map(absent)
}

/// Checks root, the kernel's version and the cgroup2 mount.
pub fn check() -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Missing {
            what: "not running as root".to_owned(),
            why: "loading kernel programs needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and entering a \
                  workload's network namespace needs CAP_SYS_ADMIN"
                .to_owned(),
            fix: "Run it with sudo, or as a privileged container",
        });
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if parse_release(&release).is_some_and(|v| v < OLDEST) {
        return Err(Error::Missing {
            what: format!("Linux {}", release.trim()),
            why: format!("the kernel programs need {}.{} or newer", OLDEST.0, OLDEST.1),
            fix: "Use a newer kernel",
        });
    }
    cgroup2_mount().map(drop)
}

fn parse_release(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup` on a pure system, a directory below it on a hybrid one.
pub fn cgroup2_mount() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(Error::path(Path::new("/proc/self/mounts"), "cannot read"))?;
    find_cgroup2(&mounts).ok_or_else(|| Error::Missing {
        what: "no cgroup v2 file system".to_owned(),
        why: "workloads are told apart by their cgroup".to_owned(),
        fix: "Mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
    })
}

fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    let fields = |line: &str| {
        let mut f = line.split(' ');
        let (_, dir, kind) = (f.next()?, f.next()?, f.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(dir.replace("\\040", " ")))
    };
    mounts.lines().find_map(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pure_and_hybrid_mounts_are_found() {
        let pure = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(find_cgroup2(pure), Some("/sys/fs/cgroup".into()));
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_cgroup2("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"), None);
    }

    #[test]
    fn this_kernel_lacks_nothing() {
        // Without root nothing can be asked, and nothing is said to be missing.
        assert!(missing_feature().is_none());
    }

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(parse_release("6.18.44-fc\n"), Some((6, 18)));
        assert_eq!(parse_release("5.4.0-generic"), Some((5, 4)));
        assert!(parse_release("5.4.0-generic") < Some(OLDEST));
        assert_eq!(parse_release("weird"), None);
    }
}
