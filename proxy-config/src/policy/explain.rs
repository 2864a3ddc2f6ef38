//! A verdict in words: what happens, which rule decides, and which flag and entry of it matched.

use std::net::{IpAddr, SocketAddr};

use proxy_common::IPPROTO_TCP;
use proxy_common::verdict::{Action, Arrival, Connect, Rule, Verdict};

use super::cidr::narrow;
use super::compile::{excluded, matches};
use super::{Cidr, Environment, Policy, value};

/// What the verdict was about.
#[derive(Clone, Copy, Debug)]
pub enum Facts<'a> {
    /// A connect, or a datagram, by a process of this uid and gid.
    Outbound {
        connect: &'a Connect,
        uid: u32,
        gid: u32,
    },
    Inbound(&'a Arrival),
}

/// Explains a verdict on a compiled policy: what happens, the rule and its reason, and the flag's entry that
/// matched where the rule goes by one.
pub fn explain(
    policy: &Policy,
    environment: &Environment,
    facts: &Facts<'_>,
    verdict: Verdict,
) -> Vec<String> {
    let mut lines = vec![
        format!("{}: {}", subject(facts), outcome(facts, verdict.action)),
        format!("rule {}: {}", verdict.rule.name(), verdict.rule.why()),
    ];
    let about = About::new(policy, environment, facts);
    lines.extend(about.entry(verdict.rule).map(|entry| format!("by {entry}")));
    lines
}

fn subject(facts: &Facts<'_>) -> String {
    match facts {
        Facts::Outbound { connect, uid, gid } => {
            let protocol = if connect.protocol == IPPROTO_TCP { "TCP" } else { "UDP" };
            let to = SocketAddr::new(narrow(&connect.dst), connect.port);
            format!("{protocol} to {to} by uid {uid} gid {gid}")
        }
        Facts::Inbound(a) => {
            let to = SocketAddr::new(narrow(&a.local), a.local_port);
            format!("TCP from {} to {to}", narrow(&a.remote))
        }
    }
}

fn outcome(facts: &Facts<'_>, action: Action) -> String {
    match (action, facts) {
        (Action::Pass, _) => "left alone".into(),
        (Action::Deny, _) => "refused".into(),
        (Action::Redirect(port), Facts::Outbound { connect, .. }) => {
            let loopback: IpAddr = if narrow(&connect.dst).is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                [0u16, 0, 0, 0, 0, 0, 0, 1].into()
            };
            format!("captured, to {}", SocketAddr::new(loopback, port))
        }
        (Action::Redirect(port), Facts::Inbound(_)) => format!("captured, to the listener on port {port}"),
    }
}

/// The policy and the facts that its entries are compared with.
struct About<'a> {
    policy: &'a Policy,
    environment: &'a Environment,
    /// The far end.
    ip: IpAddr,
    /// The destination's.
    port: u16,
    uid: u32,
    gid: u32,
    interface: u32,
}

impl<'a> About<'a> {
    fn new(policy: &'a Policy, environment: &'a Environment, facts: &Facts<'_>) -> Self {
        let (ip, port, uid, gid, interface) = match facts {
            Facts::Outbound { connect: c, uid, gid } => (narrow(&c.dst), c.port, *uid, *gid, 0),
            Facts::Inbound(a) => (narrow(&a.remote), a.local_port, 0, 0, a.interface),
        };
        Self { policy, environment, ip, port, uid, gid, interface }
    }

    /// The flag and its entry; `None` for rules that no flag makes.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the other rules have a reason, but no flag")]
    fn entry(&self, rule: Rule) -> Option<String> {
        let p = self.policy;
        Some(match rule {
            Rule::OutOff => "-i '' without -q".into(),
            Rule::ProxyUid => format!("-u {}", self.uid),
            Rule::ProxyGid => format!("-g {}", self.gid),
            Rule::ProxyCgroup => format!("the proxy's cgroup, id {}", self.environment.proxy_cgroup),
            Rule::SelfCall => format!("-z {}", p.inbound_port),
            Rule::OutInterface => self.route()?,
            Rule::InInterface => self.interface()?,
            Rule::OutPortExcluded => format!("-o {}", self.port),
            Rule::OutPortIncluded => format!("-q {}", self.port),
            Rule::GroupNotIncluded => {
                format!("ISTIO_OUTBOUND_OWNER_GROUPS={}", value::show_select(&p.owner_groups))
            }
            Rule::GroupExcluded => format!("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE={}", self.gid),
            Rule::DnsCaptured => self.resolver(),
            Rule::CidrExcluded => format!("-x {}", self.longest(&p.exclude)?),
            Rule::CidrIncluded => format!("-i {}", self.longest(p.include.listed())?),
            Rule::CidrNotIncluded => format!("-i '{}'", value::show_select(&p.include)),
            Rule::OutAll => "-i '*'".into(),
            Rule::Loopback => self.loopback(),
            Rule::OutFailOpen | Rule::InFailOpen => "--fail-open".into(),
            Rule::InFailClosed => "no --fail-open".into(),
            Rule::InOff if p.inbound_ports.is_none() => "-b ''".into(),
            Rule::InOff => "the workload has no network namespace of its own".into(),
            Rule::InProxyPort => format!("-z {}", p.inbound_port),
            Rule::InTunnelPort => format!("-e {}", p.tunnel_port),
            Rule::InPortExcluded => format!("-d {}", self.port),
            Rule::InPortIncluded => format!("-b {}", self.port),
            Rule::InAll => "-b '*'".into(),
            Rule::InPortNotIncluded => format!("-b '{}'", value::show_select(&p.inbound_ports)),
            Rule::BindDenied | Rule::BindProxy => format!("-p {} and -z {}", p.envoy_port, p.inbound_port),
            _ => return None,
        })
    }

    fn longest<'b>(&self, ranges: &'b [Cidr]) -> Option<&'b Cidr> {
        ranges.iter().filter(|r| r.contains(self.ip)).max_by_key(|r| r.prefix())
    }

    fn loopback(&self) -> String {
        if self.policy.loopback.contains(self.ip) {
            return format!("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR={}", self.policy.loopback);
        }
        "no range of -i that starts in loopback".into()
    }

    fn resolver(&self) -> String {
        match (self.policy.capture_all_dns, self.policy.dns_servers.is_empty()) {
            (true, _) => "--capture-all-dns".into(),
            (false, true) => format!("--redirect-dns and the resolver {}", self.ip),
            (false, false) => format!("--dns-servers {}", self.ip),
        }
    }

    /// The route that is taken; the first of the longest, as compiled.
    fn route(&self) -> Option<String> {
        let routes = self.environment.routes.iter().filter(|r| r.prefix.contains(self.ip));
        let route = routes.rev().max_by_key(|r| r.prefix.prefix());
        match route {
            Some(r) if excluded(self.policy, &r.interface) => Some(format!(
                "-c {} and the route {} dev {}",
                self.pattern(&r.interface)?,
                r.prefix,
                r.interface
            )),
            _ => Some(format!("-c {}", self.pattern("lo")?)),
        }
    }

    fn interface(&self) -> Option<String> {
        let (name, index) = self.environment.interfaces.iter().find(|(_, i)| *i == self.interface)?;
        Some(format!("-c {}, interface {name} of index {index}", self.pattern(name)?))
    }

    fn pattern(&self, interface: &str) -> Option<&str> {
        self.policy.exclude_interfaces.iter().map(String::as_str).find(|p| matches(p, interface))
    }
}
