//! The table itself, in the order in which it is printed.

use super::super::value as v;
use super::super::{Mode, OutboundTrafficPolicy};
use super::{Flag, Kind, Origin, Set, flag};

/// A value that is only looked at: the flag has no effect.
const PORT: Set = |_, s| v::port(s).map(drop);
const BOOL: Set = |_, s| v::boolean(s).map(drop);
const NUMBER: Set = |_, s| v::number(s).map(drop);
const DURATION: Set = |_, s| v::duration(s).map(drop);
const ANY: Set = |_, _| Ok(());

/// Puts a parsed value into the policy.
macro_rules! put {
    ($field:ident, $parse:expr) => {
        |d, s| {
            d.policy.$field = $parse(s)?;
            Ok(())
        }
    };
    (run $field:ident, $parse:expr) => {
        |d, s| {
            d.rest.$field = $parse(s)?;
            Ok(())
        }
    };
}

const NO_TPROXY: &str =
    "no packet mark and no route table is needed: the inbound hook picks the listener itself";
const NO_PROBE: &str =
    "no probe is needed: the kernel verifies each hook, and attach returns once all are active";
const NO_TABLES: &str = "no iptables or nftables program is called";

/// Every flag: istio-iptables', then its variables of the environment, then ours.
pub const FLAGS: &[Flag] = &[
    flag("envoy-port", Kind::Port, put!(envoy_port, v::port), "Port that outbound TCP connections go to")
        .short('p')
        .default("15001")
        .show(|p| p.envoy_port.to_string()),
    flag(
        "inbound-capture-port",
        Kind::Port,
        put!(inbound_port, v::port),
        "Port that inbound TCP connections go to",
    )
    .short('z')
    .default("15006")
    .show(|p| p.inbound_port.to_string()),
    flag(
        "inbound-tunnel-port",
        Kind::Port,
        put!(tunnel_port, v::port),
        "HBONE's port, never captured inbound",
    )
    .short('e')
    .default("15008")
    .show(|p| p.tunnel_port.to_string()),
    flag(
        "proxy-uid",
        Kind::List,
        |d, s| d.set_uids(s),
        "Numeric uids of the proxy, not captured; the proxy's cgroup, where known, decides instead",
    )
    .short('u')
    .default("1337")
    .show(|p| v::show_list(&p.proxy_uids)),
    flag(
        "proxy-gid",
        Kind::List,
        |d, s| d.set_gids(s),
        "Numeric gids of the proxy, not captured; the default is -u's value",
    )
    .short('g')
    .default("1337")
    .show(|p| v::show_list(&p.proxy_gids)),
    flag(
        "istio-inbound-interception-mode",
        Kind::Word,
        put!(mode, v::mode),
        "REDIRECT or TPROXY: the same here, both keep the source address",
    )
    .short('m')
    .default("REDIRECT")
    .show(|p| match p.mode {
        Mode::Redirect => "REDIRECT".into(),
        Mode::Tproxy => "TPROXY".into(),
    }),
    flag(
        "istio-inbound-ports",
        Kind::ListOrAll,
        put!(inbound_ports, |s| v::select(s, v::ports)),
        "Inbound ports to capture; empty captures none",
    )
    .short('b')
    .default("*")
    .show(|p| v::show_select(&p.inbound_ports)),
    flag(
        "istio-local-exclude-ports",
        Kind::List,
        put!(inbound_exclude, v::ports),
        "Inbound ports not to capture, with -b '*'",
    )
    .short('d')
    .default("15020,15021,15090")
    .show(|p| v::show_list(&p.inbound_exclude)),
    flag(
        "istio-exclude-interfaces",
        Kind::List,
        put!(exclude_interfaces, v::interfaces),
        "Interfaces whose traffic is captured in neither direction; a last + stands for any rest",
    )
    .short('c')
    .show(|p| v::show_list(&p.exclude_interfaces)),
    flag(
        "istio-service-cidr",
        Kind::ListOrAll,
        put!(include, |s| v::select(s, v::cidrs)),
        "Destination ranges to capture; empty captures none",
    )
    .short('i')
    .default("*")
    .show(|p| v::show_select(&p.include)),
    flag(
        "istio-service-exclude-cidr",
        Kind::List,
        put!(exclude, v::cidrs),
        "Destination ranges not to capture; stronger than -q and -i",
    )
    .short('x')
    .show(|p| v::show_list(&p.exclude)),
    flag(
        "istio-outbound-ports",
        Kind::List,
        put!(outbound_ports, v::ports),
        "Destination ports to capture besides -i",
    )
    .short('q')
    .show(|p| v::show_list(&p.outbound_ports)),
    flag(
        "istio-local-outbound-ports-exclude",
        Kind::List,
        put!(outbound_exclude, v::ports),
        "Destination ports not to capture, TCP and UDP; stronger than all but -c",
    )
    .short('o')
    .show(|p| v::show_list(&p.outbound_exclude)),
    flag(
        "kube-virt-interfaces",
        Kind::List,
        ANY,
        "Interfaces of virtual machines whose traffic Istio treats as outbound",
    )
    .short('k')
    .refused(
        "packets forwarded for a virtual machine never reach a socket hook, so its traffic would \
             bypass the proxy",
    ),
    flag("istio-inbound-tproxy-mark", Kind::Number, NUMBER, "Mark of TPROXY's packets")
        .short('t')
        .default("1337")
        .no_meaning(NO_TPROXY),
    flag("istio-inbound-tproxy-route-table", Kind::Number, NUMBER, "Route table of TPROXY's packets")
        .short('r')
        .default("133")
        .no_meaning(NO_TPROXY),
    flag(
        "dry-run",
        Kind::Bool,
        put!(run dry_run, v::boolean),
        "Print what would be written and change nothing",
    )
    .short('n'),
    flag("iptables-probe-port", Kind::Port, PORT, "Port of Istio's own check")
        .default("15002")
        .no_meaning(NO_PROBE),
    flag("probe-timeout", Kind::Duration, DURATION, "Time limit of Istio's own check")
        .default("5s")
        .no_meaning(NO_PROBE),
    flag("skip-rule-apply", Kind::Bool, put!(run skip_apply, v::boolean), "Attach nothing"),
    flag("run-validation", Kind::Bool, BOOL, "Run Istio's own check").no_meaning(NO_PROBE),
    flag(
        "redirect-dns",
        Kind::Bool,
        put!(redirect_dns, v::boolean),
        "Capture port 53, TCP and UDP, of the workload's resolvers",
    )
    .env_too(&["ISTIO_META_DNS_CAPTURE"])
    .show(|p| p.redirect_dns.to_string()),
    flag("drop-invalid", Kind::Bool, BOOL, "Drop packets that conntrack calls INVALID")
        .env_too(&["INVALID_DROP"])
        .no_meaning("connections are not tracked, so none of their packets is INVALID"),
    flag("dual-stack", Kind::Bool, BOOL, "Capture IPv4 and IPv6")
        .env_too(&["ISTIO_DUAL_STACK", "ISTIO_AGENT_DUAL_STACK"])
        .no_meaning("both families are always captured"),
    flag(
        "capture-all-dns",
        Kind::Bool,
        put!(capture_all_dns, v::boolean),
        "With --redirect-dns: every resolver, not only the workload's",
    )
    .show(|p| p.capture_all_dns.to_string()),
    flag(
        "network-namespace",
        Kind::Word,
        |d, s| d.set_netns(s),
        "The network namespace to work on, as --netns",
    ),
    flag("cni-mode", Kind::Bool, BOOL, "Istio runs as a CNI plugin")
        .no_meaning("the daemon enters the workload's network namespace by itself, whoever calls it"),
    flag(
        "iptables-trace-logging",
        Kind::Bool,
        put!(run trace, v::boolean),
        "Log each decision of the kernel programs",
    ),
    flag("reconcile", Kind::Bool, BOOL, "Replace rules that differ from the wanted ones")
        .no_meaning("a policy always replaces the former one as a whole"),
    flag("cleanup-only", Kind::Bool, put!(run cleanup_only, v::boolean), "Remove what is attached, and exit"),
    flag("force-apply", Kind::Bool, BOOL, "Apply rules that seem to be in place")
        .no_meaning("a policy always takes effect by one atomic flip"),
    flag("native-nftables", Kind::Bool, BOOL, "nftables in the place of iptables")
        .from(Origin::Legacy)
        .no_meaning(NO_TABLES),
    flag("force-iptables-binary", Kind::Word, ANY, "Which iptables program to call")
        .from(Origin::Legacy)
        .no_meaning(NO_TABLES),
    flag("iptables-version", Kind::Word, ANY, "Which iptables version to assume")
        .from(Origin::Legacy)
        .no_meaning(NO_TABLES),
    flag("restore-format", Kind::Bool, BOOL, "Print rules as iptables-restore reads them")
        .short('f')
        .default("true")
        .from(Origin::Legacy)
        .no_meaning(NO_TABLES),
    flag("host-nsenter-exec", Kind::Bool, BOOL, "Change the network namespace by nsenter")
        .from(Origin::Legacy)
        .no_meaning("the daemon enters the workload's network namespace by itself"),
    flag(
        "istio-outbound-owner-groups",
        Kind::ListOrAll,
        put!(owner_groups, |s| v::select(s, v::gids)),
        "Numeric gids whose outbound traffic is captured; empty captures none",
    )
    .default("*")
    .from(Origin::IstioEnv)
    .show(|p| v::show_select(&p.owner_groups)),
    flag(
        "istio-outbound-owner-groups-exclude",
        Kind::List,
        put!(owner_groups_exclude, v::gids),
        "Numeric gids whose outbound traffic is not captured, where all groups are",
    )
    .from(Origin::IstioEnv)
    .show(|p| v::show_list(&p.owner_groups_exclude)),
    flag(
        "istio-outbound-ipv4-loopback-cidr",
        Kind::Word,
        put!(loopback, v::loopback),
        "IPv4 loopback range that is never captured, even where -i names loopback",
    )
    .env_too(&["HOST_IPV4_LOOPBACK_CIDR"])
    .default("127.0.0.1/32")
    .from(Origin::IstioEnv)
    .show(|p| p.loopback.to_string()),
    flag("envoy-user", Kind::Word, ANY, "Name of the proxy's user")
        .default("istio-proxy")
        .from(Origin::IstioEnv)
        .no_meaning(
            "the workload's user file, which knows names, is not at hand; -u has the numeric uid, 1337 \
             by default",
        ),
    flag(
        "fail-open",
        Kind::Bool,
        put!(fail_open, v::boolean),
        "While no proxy listens, connect as if not enrolled; bypasses mTLS",
    )
    .from(Origin::Ours)
    .show(|p| p.fail_open.to_string()),
    flag(
        "wait-for-proxy",
        Kind::OptionalDuration,
        put!(wait_for_proxy, v::duration),
        "Hold a connect for that long while no proxy listens: 30s where bare, 0 not at all, at most \
         1h",
    )
    .default("0s")
    .from(Origin::Ours)
    .show(|p| v::show_duration(p.wait_for_proxy)),
    flag(
        "outbound-traffic-policy",
        Kind::Word,
        put!(outbound_traffic_policy, v::traffic_policy),
        "Destinations that no configuration knows: ALLOW_ANY lets them pass, REGISTRY_ONLY does not",
    )
    .default("ALLOW_ANY")
    .from(Origin::Ours)
    .show(|p| match p.outbound_traffic_policy {
        OutboundTrafficPolicy::AllowAny => "ALLOW_ANY".into(),
        OutboundTrafficPolicy::RegistryOnly => "REGISTRY_ONLY".into(),
    }),
    flag(
        "dns-servers",
        Kind::List,
        put!(dns_servers, v::addresses),
        "Resolvers for --redirect-dns; empty means those of the workload's resolv.conf",
    )
    .from(Origin::Ours)
    .show(|p| v::show_list(&p.dns_servers)),
    flag("dns-port", Kind::Port, put!(dns_port, v::port), "Port that captured DNS goes to")
        .default("15053")
        .from(Origin::Ours)
        .show(|p| p.dns_port.to_string()),
];
