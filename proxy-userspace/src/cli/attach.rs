//! `shunt attach`, `detach` and `cleanup`: the kernel half without the daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use proxy_config::enrol::{Name, Workload};
use proxy_config::policy::{Parsed, compile};

use super::maps::range;
use super::{Places, say};
use crate::cgroup;
use crate::ebpf::{self, Kernel, Pins};
use crate::sys::netns::Netns;
use crate::workload::{self, Owner, Record, State, StateFile, adopt_stock_listeners, environment, install};

#[derive(Args)]
pub(super) struct AttachArgs {
    #[command(flatten)]
    places: Places,
    /// The workload's cgroup v2 directory. A stock proxy may live in it too: uid and gid tell it apart.
    #[arg(long, value_name = "DIR")]
    cgroup: PathBuf,
    /// The workload's network namespace: /run/netns/NAME or /proc/PID/ns/net.
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    /// The proxy's cgroup v2 directory. Then it alone decides who the proxy is, not -u and -g.
    #[arg(long, value_name = "DIR")]
    proxy_cgroup: Option<PathBuf>,
    /// A name for the workload. Default: from the namespace's path.
    #[arg(long)]
    name: Option<String>,
}

#[derive(Args)]
pub(super) struct DetachArgs {
    #[command(flatten)]
    places: Places,
    #[arg(long, value_name = "DIR", required_unless_present = "name")]
    cgroup: Option<PathBuf>,
    #[arg(long, value_name = "PATH", required_unless_present = "name")]
    netns: Option<PathBuf>,
    #[arg(long, conflicts_with_all = ["cgroup", "netns"])]
    name: Option<String>,
}

#[derive(Args)]
pub(super) struct CleanupArgs {
    #[command(flatten)]
    places: Places,
}

pub(super) fn attach(args: AttachArgs, flags: &[String]) -> Result<ExitCode> {
    let parsed = super::parse_policy(flags)?;
    if parsed.rest.cleanup_only {
        let netns = args.netns.clone().or_else(|| parsed.rest.netns.clone());
        return detach(&DetachArgs {
            places: args.places,
            cgroup: Some(args.cgroup),
            netns,
            name: args.name,
        });
    }
    let spec = specify(&args, &parsed)?;
    if parsed.rest.skip_apply {
        log::warn!("--skip-rule-apply: nothing is attached");
        return Ok(ExitCode::SUCCESS);
    }
    ebpf::check_kernel()?;
    let netns = Netns::open(&spec.netns).with_context(|| spec.netns.display().to_string())?;
    let proxy = spec.proxy_cgroup.as_deref().map(cgroup::id).transpose()?.unwrap_or(0);
    if parsed.rest.dry_run {
        return dry_run(&spec, &netns, proxy);
    }
    if netns.is_host() {
        return Err(workload::Error::HostNetns(spec.netns).into());
    }
    let state = StateFile::open(&args.places.run_dir)?;
    let kernel = state.alone(|| Kernel::open(Pins::open(&args.places.pin_root)?, parsed.rest.trace))??;
    state.change(|state| put(&kernel, state, &spec, &netns, proxy))?;
    let found = adopt_stock_listeners(&kernel, &spec, &netns, spec.proxy_cgroup.as_deref())?;
    log::info!("workload {}: attached; {found} listening sockets of its proxy were there already", spec.name);
    Ok(ExitCode::SUCCESS)
}

fn specify(args: &AttachArgs, parsed: &Parsed) -> Result<Workload> {
    let netns = args.netns.clone().or_else(|| parsed.rest.netns.clone());
    let netns = netns.context("--netns PATH is missing (istio-iptables: --network-namespace)")?;
    let netns = std::path::absolute(netns)?;
    let name = args.name.clone().unwrap_or_else(|| name_of(&netns));
    Ok(Workload {
        name: Name::new(&name).map_err(|e| anyhow::anyhow!("--name: {e}"))?,
        cgroup: std::path::absolute(&args.cgroup)?,
        netns,
        proxy_cgroup: args.proxy_cgroup.as_ref().map(std::path::absolute).transpose()?,
        bootstrap: None,
        policy: parsed.policy.clone(),
        notes: parsed.notes.clone(),
    })
}

/// `/run/netns/web` is `web`, `/proc/42/ns/net` is `pid-42`.
fn name_of(netns: &Path) -> String {
    let text = netns.to_string_lossy();
    let pid = text.strip_prefix("/proc/").and_then(|t| t.strip_suffix("/ns/net"));
    let name = match pid {
        Some(pid) => format!("pid-{pid}"),
        None => netns.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default(),
    };
    let valid = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
    name.chars().map(valid).take(63).collect()
}

fn put(kernel: &Kernel, state: &mut State, spec: &Workload, netns: &Netns, proxy: u64) -> Result<()> {
    let name = spec.name.as_str();
    let clash = |r: &&Record| r.cookie == netns.cookie() && r.name != name;
    if let Some(other) = state.workloads.iter().find(clash) {
        let (path, other) = (spec.netns.clone(), other.name.clone());
        return Err(workload::Error::Taken { path, other }.into());
    }
    if let Some(old) = state.get(name) {
        if old.owner != Owner::Attach {
            bail!("workload {name} is the daemon's; change it there, or choose another --name");
        }
        if !old.is_alive() || old.cgroup != spec.cgroup || old.cookie != netns.cookie() {
            kernel.detach(name, Some(old.cookie))?;
            state.remove(name);
        }
    }
    let fresh = state.get(name).is_none();
    let installed = install(kernel, spec, netns, proxy, true, !fresh).inspect_err(|_| {
        if fresh {
            let _ = kernel.detach(name, None);
        }
    })?;
    installed.activate(kernel, netns)?;
    state.put(Record {
        name: name.to_owned(),
        cgroup: spec.cgroup.clone(),
        cgroup_id: installed.cgroup_id,
        netns: spec.netns.clone(),
        cookie: netns.cookie(),
        policy: spec.policy.to_string(),
        proxy_cgroup: spec.proxy_cgroup.clone(),
        bootstrap: None,
        owner: Owner::Attach,
    });
    Ok(())
}

fn dry_run(spec: &Workload, netns: &Netns, proxy: u64) -> Result<ExitCode> {
    let compiled = compile(&spec.policy, &environment(spec, netns, proxy, true)?);
    say(format_args!("would attach to {} and to {}", spec.cgroup.display(), spec.netns.display()))?;
    say(format_args!("policy: {}", spec.policy))?;
    say(format_args!("PODS[{}] = {:?}", netns.cookie(), compiled.pod))?;
    for (kind, value) in &compiled.rules {
        say(format_args!("RULES {} {value}", proxy_common::kind::NAMES[*kind as usize]))?;
    }
    for (list, ip, length, value) in &compiled.cidrs {
        let name = proxy_common::list::NAMES[*list as usize];
        say(format_args!("CIDRS {name} {} {value}", range(ip, u32::from(*length))))?;
    }
    for note in &compiled.notes {
        say(format_args!("note: {note}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn detach(args: &DetachArgs) -> Result<ExitCode> {
    ebpf::check_kernel()?;
    let Some(pins) = Pins::existing(&args.places.pin_root)? else {
        bail!("nothing is attached: {} is not there", args.places.pin_root.display())
    };
    let maps = ebpf::Maps::open(&pins)?;
    let state = StateFile::open(&args.places.run_dir)?;
    let name = state.change(|state| {
        let Some(record) = find(state, args)? else { bail!("no such workload is attached") };
        if record.owner != Owner::Attach {
            bail!("workload {} is the daemon's; use `shunt workload remove`", record.name);
        }
        ebpf::detach(&pins, &maps, &record.name, Some(record.cookie))?;
        state.remove(&record.name);
        Ok(record.name)
    })?;
    log::info!("workload {name}: detached; its established connections go on");
    Ok(ExitCode::SUCCESS)
}

fn find(state: &State, args: &DetachArgs) -> Result<Option<Record>> {
    if let Some(name) = &args.name {
        return Ok(state.get(name).cloned());
    }
    let cgroup = args.cgroup.as_ref().map(std::path::absolute).transpose()?;
    let netns = args.netns.as_ref().map(std::path::absolute).transpose()?;
    let same = |r: &&Record| Some(&r.cgroup) == cgroup.as_ref() && Some(&r.netns) == netns.as_ref();
    Ok(state.workloads.iter().find(same).cloned())
}

pub(super) fn cleanup(args: &CleanupArgs) -> Result<ExitCode> {
    ebpf::check_kernel()?;
    super::exec::sweep(&args.places.pin_root);
    if let Some(pins) = Pins::existing(&args.places.pin_root)? {
        let state = StateFile::open(&args.places.run_dir)?;
        state.change(|state| -> Result<()> {
            let maps = ebpf::Maps::open(&pins).ok();
            for record in std::mem::take(&mut state.workloads) {
                // The entry first, so that capture ends as a whole.
                if let Some(maps) = &maps {
                    maps.remove_pod(record.cookie)?;
                }
                log::info!("workload {}: detached", record.name);
            }
            Ok(pins.remove_all()?)
        })?;
    }
    log::info!("nothing of shunt's is left in the kernel below {}", args.places.pin_root.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_named_after_its_namespace() {
        assert_eq!(name_of(Path::new("/run/netns/Web.1")), "web-1");
        assert_eq!(name_of(Path::new("/proc/42/ns/net")), "pid-42");
    }
}
