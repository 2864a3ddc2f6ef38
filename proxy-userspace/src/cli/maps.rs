//! `shunt maps`: the kernel maps as a person reads them.

use std::net::{IpAddr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use proxy_common::{AF_INET6, CIDR_PREFIX, Ip, Pod, direction, flag, kind, list, map, role};
use serde_json::{Map, Value, json};

use super::{Places, say};
use crate::ebpf::{Maps, Pins};

#[derive(Args)]
pub(super) struct MapsArgs {
    #[command(flatten)]
    places: Places,
    /// One JSON object, by map.
    #[arg(long)]
    json: bool,
    /// Only this map: PODS, OWN_IPS, RULES, CIDRS, FLOWS, LISTENERS or COUNTERS.
    map: Option<String>,
}

type Decode = fn(&Maps) -> Result<Value, crate::ebpf::Error>;

/// ODST is kept on sockets: nothing lists it.
const DECODERS: &[(&str, Decode)] = &[
    (map::PODS, pods),
    (map::OWN_IPS, own_ips),
    (map::RULES, rules),
    (map::CIDRS, cidrs),
    (map::FLOWS, flows),
    (map::LISTENERS, listeners),
    (map::COUNTERS, counters),
];

pub(super) fn run(args: &MapsArgs) -> Result<ExitCode> {
    let Some(pins) = Pins::existing(&args.places.pin_root)? else {
        bail!("nothing is pinned at {}: no workload is captured", args.places.pin_root.display())
    };
    let maps = Maps::open(&pins)?;
    let wanted = args.map.as_ref().map(|m| m.to_uppercase());
    let mut out = Map::new();
    for (name, decode) in DECODERS {
        if wanted.as_ref().is_none_or(|w| w == name) {
            out.insert((*name).to_owned(), decode(&maps)?);
        }
    }
    if out.is_empty() {
        let names: Vec<&str> = DECODERS.iter().map(|d| d.0).collect();
        bail!("no map {}; there are {}", args.map.as_deref().unwrap_or_default(), names.join(", "));
    }
    if args.json {
        say(serde_json::to_string_pretty(&out)?)?;
    } else {
        for (name, value) in &out {
            print(name, value)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(name: &str, value: &Value) -> Result<()> {
    if let Some(rows) = value.as_array() {
        say(format_args!("{name} ({})", rows.len()))?;
        for row in rows {
            let fields = row.as_object().into_iter().flatten();
            let text: Vec<String> = fields.map(|(k, v)| format!("{k}={}", plain(v))).collect();
            say(format_args!("  {}", text.join(" ")))?;
        }
    } else {
        say(name)?;
        for (key, v) in value.as_object().into_iter().flatten().filter(|(_, v)| v.as_u64() != Some(0)) {
            say(format_args!("  {key}={}", plain(v)))?;
        }
    }
    Ok(())
}

/// A value without a string's quotes.
pub(super) fn plain(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

fn ip(ip: &Ip) -> String {
    let v6 = Ipv6Addr::from(*ip);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4).to_string()
}

/// A range by its 16-byte form.
pub(super) fn range(address: &Ip, length: u32) -> String {
    let v4 = Ipv6Addr::from(*address).to_ipv4_mapped().is_some() && length >= 96;
    format!("{}/{}", ip(address), if v4 { length - 96 } else { length })
}

fn flags(pod: &Pod) -> Vec<&'static str> {
    flag::NAMES.iter().filter(|(bit, _)| pod.flags & bit != 0).map(|(_, name)| *name).collect()
}

fn pods(maps: &Maps) -> Result<Value, crate::ebpf::Error> {
    let mut rows = Vec::new();
    for netns in maps.enrolled()? {
        let Some(p) = maps.pod(netns)? else { continue };
        rows.push(json!({
            "netns": netns, "policy": p.policy, "out_port": p.out_port, "in_port": p.in_port,
            "dns_port": p.dns_port, "tunnel_port": p.tunnel_port, "proxy_cgroup": p.proxy_cgroup,
            "hold_ms": p.hold_ms, "flags": flags(&p).join(","),
        }));
    }
    Ok(rows.into())
}

fn own_ips(maps: &Maps) -> Result<Value, crate::ebpf::Error> {
    Ok(maps.own_ips()?.iter().map(|k| json!({"netns": k.netns, "ip": ip(&k.ip)})).collect())
}

fn rules(maps: &Maps) -> Result<Value, crate::ebpf::Error> {
    let name = |k: u32| kind::NAMES.get(k as usize).copied().unwrap_or("?");
    let row = |k: &proxy_common::RuleKey| json!({"policy": k.policy, "kind": name(k.kind), "value": k.value});
    Ok(maps.rules()?.iter().map(row).collect())
}

fn cidrs(maps: &Maps) -> Result<Value, crate::ebpf::Error> {
    let name = |l: u32| list::NAMES.get(l as usize).copied().unwrap_or("?");
    let row = |(k, value): &(proxy_common::CidrEntry, u32)| {
        let prefix = range(&k.key.ip, k.prefix.saturating_sub(CIDR_PREFIX));
        let (policy, list) = (u32::from_be_bytes(k.key.policy), u32::from_be_bytes(k.key.list));
        json!({"policy": policy, "list": name(list), "prefix": prefix, "value": value})
    };
    Ok(maps.cidrs()?.iter().map(row).collect())
}

fn flows(maps: &Maps) -> Result<Value, crate::ebpf::Error> {
    let row = |(k, o): &(proxy_common::FlowKey, proxy_common::OrigDst)| {
        json!({
            "netns": k.netns, "src": ip(&k.src), "sport": k.sport, "dport": k.dport,
            "original_dst": ip(&o.ip), "port": o.port, "role": role_name(o.role),
        })
    };
    Ok(maps.flows()?.iter().map(row).collect())
}

fn role_name(r: u8) -> &'static str {
    match r {
        role::CLIENT => "client",
        role::ACCEPTED => "accepted",
        role::LISTENER => "listener",
        _ => "?",
    }
}

fn listeners(maps: &Maps) -> Result<Value, crate::ebpf::Error> {
    let row = |k: &proxy_common::ListenerKey| {
        let direction = if k.direction == direction::INBOUND { "inbound" } else { "outbound" };
        let family = if k.family == AF_INET6 { "ipv6" } else { "ipv4" };
        json!({"netns": k.netns, "direction": direction, "family": family})
    };
    Ok(maps.listeners()?.iter().map(row).collect())
}

fn counters(maps: &Maps) -> Result<Value, crate::ebpf::Error> {
    let mut out = Map::new();
    for (rule, n) in maps.counters()? {
        out.insert(rule.name().to_owned(), n.into());
    }
    Ok(out.into())
}
