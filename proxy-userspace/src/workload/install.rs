//! A workload into the kernel, and what its surroundings add to its policy.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use proxy_common::{AF_INET, AF_INET6, ListenerKey, direction};
use proxy_config::enrol::Workload;
use proxy_config::policy::{Cidr, Compiled, Environment, Route, compile};

use super::Error;
use crate::cgroup;
use crate::ebpf::{Kernel, Target};
use crate::sys::netns::Netns;
use crate::sys::process;

/// A workload whose hooks are attached. Nothing is captured before [`Installed::activate`].
pub struct Installed {
    pub cgroup_id: u64,
    pub compiled: Compiled,
    pub own_ips: Vec<IpAddr>,
}

/// Attaches a workload's hooks and writes what they need, all but the entry that switches them on.
///
/// `proxy_cgroup` is the id of the proxy's cgroup, 0 where only uid and gid tell it. `inbound` is false where
/// the namespace is not the workload's own. `adopt`: its pins, if there are any, are of this very place.
pub fn install(
    kernel: &Kernel,
    workload: &Workload,
    netns: &Netns,
    proxy_cgroup: u64,
    inbound: bool,
    adopt: bool,
) -> Result<Installed, Error> {
    let cgroup_id = cgroup::id(&workload.cgroup)?;
    if inbound {
        let added = netns.add_passthrough_source();
        added.map_err(|source| Error::Netns { path: netns.path().to_owned(), source })?;
    }
    let compiled = compile(&workload.policy, &environment(workload, netns, proxy_cgroup, inbound)?);
    let own_ips = own_ips(netns)?;
    kernel.attach(&Target {
        name: workload.name.as_str(),
        cgroup: &workload.cgroup,
        netns,
        inbound: compiled.captures_inbound(),
        hold: compiled.holds(),
        proxy: workload.proxy_cgroup.as_deref().filter(|p| !p.starts_with(&workload.cgroup)),
        adopt,
    })?;
    // In the host's namespace "own address" is every address of the node: capture by cgroup means them too.
    let known: &[IpAddr] = if inbound { &own_ips } else { &[] };
    kernel.maps.set_own_ips(netns.cookie(), known)?;
    Ok(Installed { cgroup_id, compiled, own_ips })
}

impl Installed {
    /// Switches capture on, in one step.
    pub fn activate(&self, kernel: &Kernel, netns: &Netns) -> Result<(), Error> {
        Ok(kernel.maps.set_policy(netns.cookie(), &self.compiled)?)
    }
}

/// The addresses of a workload's namespace.
pub(super) fn own_ips(netns: &Netns) -> Result<Vec<IpAddr>, Error> {
    let ips = netns.addresses();
    ips.map_err(|source| Error::Netns { path: netns.path().to_owned(), source })
}

/// What the policy refers to by name: interfaces, routes, resolvers.
pub fn environment(
    workload: &Workload,
    netns: &Netns,
    proxy_cgroup: u64,
    inbound: bool,
) -> Result<Environment, Error> {
    let error = |source| Error::Netns { path: netns.path().to_owned(), source };
    let by_interface = !workload.policy.exclude_interfaces.is_empty();
    let (mut routes, mut interfaces) = (Vec::new(), Vec::new());
    if by_interface {
        interfaces = netns.interfaces().map_err(error)?;
        let route = |r: crate::sys::netns::RouteEntry| {
            Some(Route { prefix: Cidr::new(r.prefix, r.length)?, interface: r.interface })
        };
        routes = netns.routes().map_err(error)?.into_iter().filter_map(route).collect();
        // The local table comes before the main one: its own addresses are reached over lo.
        let local = |ip: IpAddr| Route { prefix: Cidr::host(ip), interface: "lo".to_owned() };
        routes.splice(0..0, own_ips(netns)?.into_iter().map(local));
    }
    let resolvers = if workload.policy.redirect_dns { resolvers(&workload.cgroup) } else { Vec::new() };
    Ok(Environment { proxy_cgroup, resolvers, routes, interfaces, inbound })
}

/// The resolvers that the workload's processes use: `/etc/resolv.conf` as one of them sees it, else the node's.
fn resolvers(cgroup: &Path) -> Vec<IpAddr> {
    let seen_by = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/root/etc/resolv.conf")).ok();
    let text = cgroup::all_processes(cgroup).iter().find_map(seen_by);
    parse_resolv_conf(&text.or_else(|| fs::read_to_string("/etc/resolv.conf").ok()).unwrap_or_default())
}

fn parse_resolv_conf(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next()? != "nameserver" {
            return None;
        }
        // A scope ("fe80::1%eth0") is not part of what a connect is compared with.
        words.next()?.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

/// Registers the inbound and outbound listeners of a stock proxy that listened before the hooks were there:
/// those that start later register themselves. Returns how many it found.
pub fn adopt_stock_listeners(
    kernel: &Kernel,
    workload: &Workload,
    netns: &Netns,
    proxy_cgroup: Option<&Path>,
) -> Result<usize, Error> {
    let policy = &workload.policy;
    let candidates = match proxy_cgroup {
        Some(dir) => cgroup::all_processes(dir),
        None => cgroup::all_processes(&workload.cgroup),
    };
    let mut found = 0;
    for pid in candidates {
        let known =
            proxy_cgroup.is_some() || process::uid(pid).is_some_and(|u| policy.proxy_uids.contains(&u));
        if !known || !same_netns(pid, netns) {
            continue;
        }
        for (port, direction) in
            [(policy.envoy_port, direction::OUTBOUND), (policy.inbound_port, direction::INBOUND)]
        {
            for (family, fd) in process::listening_sockets(pid, port) {
                let family = if family { AF_INET6 } else { AF_INET };
                let key = ListenerKey { netns: netns.cookie(), direction, family };
                kernel.maps.set_listener(&key, std::os::fd::AsFd::as_fd(&fd))?;
                found += 1;
            }
        }
    }
    Ok(found)
}

fn same_netns(pid: i32, netns: &Netns) -> bool {
    Netns::open(&PathBuf::from(format!("/proc/{pid}/ns/net"))).is_ok_and(|n| n.cookie() == netns.cookie())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_without_scopes_and_comments() {
        let text =
            "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.10\nnameserver fe80::1%eth0 \noptions x\n";
        let expected: Vec<IpAddr> = vec!["10.0.0.10".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }
}
