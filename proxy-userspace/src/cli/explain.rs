//! `shunt policy explain`: the verdict functions on the tables that the kernel holds.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use proxy_common::verdict::{self, Arrival, Connect, Who};
use proxy_common::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, Pod};
use proxy_config::policy::{Facts, explain};

use super::{Places, say};
use crate::ebpf::{Maps, Pins, ReadTables, ip16};
use crate::sys::netns::Netns;
use crate::workload::{Record, StateFile, environment, respecify};

#[derive(Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["to", "from"])))]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    places: Places,
    #[arg(long, value_name = "NAME")]
    workload: String,
    /// A connection of the workload's to this destination.
    #[arg(long, value_name = "IP:PORT")]
    to: Option<SocketAddr>,
    /// A connection to the workload from this address.
    #[arg(long, value_name = "IP", requires = "port")]
    from: Option<IpAddr>,
    /// The workload's port that it arrives at.
    #[arg(long)]
    port: Option<u16>,
    /// The uid of the connecting process.
    #[arg(long, default_value_t = 1000)]
    uid: u32,
    /// The gid of the connecting process.
    #[arg(long, default_value_t = 1000)]
    gid: u32,
    /// A datagram instead of a TCP connection.
    #[arg(long)]
    udp: bool,
}

pub(super) fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let Some(pins) = Pins::existing(&args.places.pin_root)? else {
        bail!("nothing is pinned at {}: no workload is captured", args.places.pin_root.display())
    };
    let maps = Maps::open(&pins)?;
    let state = StateFile::open(&args.places.run_dir)?.read()?;
    let Some(record) = state.get(&args.workload) else {
        let names: Vec<&str> = state.workloads.iter().map(|r| r.name.as_str()).collect();
        bail!("no workload {} is captured; there are: {}", args.workload, names.join(", "));
    };
    let pod = maps.pod(record.cookie)?.context("the kernel holds no entry for it: it is not captured")?;
    for line in lines(args, record, &maps, &pod)? {
        say(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(args: &ExplainArgs, record: &Record, maps: &Maps, pod: &Pod) -> Result<Vec<String>> {
    let spec = respecify(record).map_err(|e| anyhow::anyhow!("{e}"))?;
    let netns = Netns::open(&record.netns).with_context(|| record.netns.display().to_string())?;
    let surroundings = environment(&spec, &netns, pod.proxy_cgroup, true)?;
    let tables = ReadTables::new(maps);
    let out = if let Some(to) = args.to {
        let connect = Connect {
            netns: record.cookie,
            dst: ip16(to.ip()),
            src: [0; 16],
            port: to.port(),
            protocol: if args.udp { IPPROTO_UDP } else { IPPROTO_TCP },
            device: 0,
        };
        let who = Who { cgroup: record.cgroup_id, uid: args.uid, gid: args.gid };
        let v = verdict::outbound(pod, &connect, &tables, &who);
        let facts = Facts::Outbound { connect: &connect, uid: args.uid, gid: args.gid };
        explain(&spec.policy, &surroundings, &facts, v)
    } else {
        let from = args.from.context("--to or --from is missing")?;
        let arrival = arrival(record.cookie, from, args.port.unwrap_or(0), &netns)?;
        let v = verdict::inbound(pod, &arrival, &tables);
        explain(&spec.policy, &surroundings, &Facts::Inbound(&arrival), v)
    };
    tables.into_result()?;
    Ok(out)
}

/// As it would arrive at the workload's first address of the same family.
fn arrival(cookie: u64, from: IpAddr, port: u16, netns: &Netns) -> Result<Arrival> {
    let local = netns.addresses()?.into_iter().find(|ip| ip.is_ipv4() == from.is_ipv4());
    let local = local.context("the workload has no address of that family")?;
    Ok(Arrival {
        netns: cookie,
        local: ip16(local),
        remote: ip16(from),
        local_port: port,
        interface: 0,
        family: if from.is_ipv4() { AF_INET } else { AF_INET6 },
    })
}
