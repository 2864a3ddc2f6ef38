//! What happens to a connection, as pure functions over a workload's entry and its tables.
//!
//! The order of the rules is the order of istio-init's chains; each rule has a name, which is the index of its
//! counter and what `policy explain` prints.

use crate::abi::*;

/// What a hook does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    /// To this port on the loopback address of the same family (outbound), or to the inbound listener.
    Redirect(u16),
    Deny,
}

/// An action and the rule that decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub action: Action,
    pub rule: Rule,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident $text:literal $why:literal,)*) => {
        /// Which rule decided. The discriminant is the index into `COUNTERS`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Rule { $($(#[$doc])* $name,)* }

        impl Rule {
            pub const ALL: &[Rule] = &[$(Rule::$name,)*];

            /// The name of the rule's counter.
            pub fn name(self) -> &'static str {
                match self { $(Rule::$name => $text,)* }
            }

            /// The reason, for people.
            pub fn why(self) -> &'static str {
                match self { $(Rule::$name => $why,)* }
            }
        }
    };
}

rules! {
    OutOff "out_off" "outbound capture is off (-i '' and no -q)",
    ProxyCgroup "proxy_cgroup" "the process is in the proxy's cgroup",
    ProxyUid "proxy_uid" "the process runs as the proxy's uid (-u)",
    ProxyGid "proxy_gid" "the process runs as the proxy's gid (-g)",
    SelfCall "self_call" "the proxy calls the workload's own address: through the inbound listener, as istio-init does",
    OutInterface "out_interface" "the route, or the device that the socket is bound to, is an excluded interface (-c)",
    OutPortExcluded "out_port_excluded" "the destination port is excluded (-o)",
    PassthroughSource "passthrough_source" "the socket is bound to 127.0.0.6 or ::6, the inbound passthrough source",
    Loopback "loopback" "the destination is a loopback address",
    OwnAddress "own_address" "the destination is the workload's own address",
    GroupNotIncluded "group_not_included" "the process's group is not in ISTIO_OUTBOUND_OWNER_GROUPS",
    GroupExcluded "group_excluded" "the process's group is in ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
    DnsCaptured "dns_captured" "port 53 of a captured resolver (--redirect-dns)",
    CidrExcluded "cidr_excluded" "the destination is in an excluded range (-x)",
    OutPortIncluded "out_port_included" "the destination port is included (-q)",
    CidrIncluded "cidr_included" "the destination is in an included range (-i)",
    OutAll "out_all" "every range is included (-i '*')",
    CidrNotIncluded "cidr_not_included" "the destination is in no included range (-i)",
    OutFailOpen "out_fail_open" "no proxy listens and the workload fails open",
    NotCaptured "not_captured" "only TCP, and UDP port 53 with --redirect-dns, are captured",
    InOff "in_off" "inbound capture is off (-b '')",
    InProxyPort "in_proxy_port" "the port is the inbound listener's own",
    InLoopback "in_loopback" "the peer is a loopback address",
    InOwnAddress "in_own_address" "the peer is the workload itself",
    InTunnelPort "in_tunnel_port" "the HBONE tunnel port (-e) is left alone",
    InInterface "in_interface" "the connection arrives by an excluded interface (-c)",
    InPortExcluded "in_port_excluded" "the port is excluded (-d)",
    InPortIncluded "in_port_included" "the port is included (-b)",
    InAll "in_all" "every port is included (-b '*')",
    InPortNotIncluded "in_port_not_included" "the port is not included (-b)",
    InFailOpen "in_fail_open" "no proxy listens and the workload fails open",
    InFailClosed "in_fail_closed" "no proxy listens and the workload fails closed",
    BindDenied "bind_denied" "only the proxy may bind its own ports",
    BindProxy "bind_proxy" "the proxy bound one of its ports",
    // From here on: not verdicts, but events that the hooks count.
    FlowStored "flow_stored" "a redirected SYN left",
    FlowMoved "flow_moved" "an accepted connection found its original destination",
    FlowClosed "flow_closed" "a redirected connection closed before it was accepted",
    FlowFull "flow_full" "FLOWS was full",
    StorageFull "storage_full" "no memory for a socket's original destination: the connect was refused",
    DeviceUnbound "device_unbound" "a captured socket was bound to a device, and was unbound to reach the listener",
    DeviceRefused "device_refused" "a captured socket is bound to a device and could not be unbound: refused",
    Answered "answered" "SO_ORIGINAL_DST was answered",
    Held "held" "a SYN was held until the proxy listens",
    ListenerAdded "listener_added" "a stock proxy's listener registered itself",
    AssignFailed "assign_failed" "the kernel refused to assign the inbound listener",
}

/// The tables that a decision reads.
pub trait Tables {
    fn rule(&self, key: &RuleKey) -> bool;
    /// The value of the longest match.
    fn cidr(&self, key: &CidrKey) -> Option<u32>;
    fn own_ip(&self, key: &OwnIpKey) -> bool;
    fn listener(&self, key: &ListenerKey) -> bool;
}

/// Who asks. Behind a trait, because each answer is a helper call that most decisions do not need.
pub trait Process {
    fn cgroup(&self) -> u64;
    fn uid(&self) -> u32;
    fn gid(&self) -> u32;
}

/// A process by its known facts: for explaining a decision, where there is none to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    pub cgroup: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Process for Who {
    fn cgroup(&self) -> u64 {
        self.cgroup
    }
    fn uid(&self) -> u32 {
        self.uid
    }
    fn gid(&self) -> u32 {
        self.gid
    }
}

/// A connect, or a datagram on its way out.
#[derive(Clone, Copy, Debug)]
pub struct Connect {
    pub netns: u64,
    pub dst: Ip,
    /// What the socket is bound to; all zero where it is not.
    pub src: Ip,
    pub port: u16,
    pub protocol: u32,
    /// The interface that the socket is bound to (SO_BINDTODEVICE), 0 where it is not.
    pub device: u32,
}

/// A new connection that arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub netns: u64,
    pub local: Ip,
    pub remote: Ip,
    pub local_port: u16,
    pub interface: u32,
    pub family: u32,
}

const DNS_PORT: u16 = 53;

#[inline(always)]
fn pass(rule: Rule) -> Verdict {
    Verdict { action: Action::Pass, rule }
}

#[inline(always)]
fn rule<T: Tables>(pod: &Pod, tables: &T, kind: u32, value: u32) -> bool {
    tables.rule(&RuleKey { policy: pod.policy, kind, value })
}

/// Decides an outbound connect or datagram.
#[inline(always)]
pub fn outbound<T: Tables, P: Process>(pod: &Pod, c: &Connect, tables: &T, process: &P) -> Verdict {
    let tcp = c.protocol == IPPROTO_TCP;
    let dns = c.port == DNS_PORT && pod.flags & flag::DNS != 0;
    if !(tcp || c.protocol == IPPROTO_UDP && dns) {
        return pass(Rule::NotCaptured);
    }
    if pod.flags & flag::OUTBOUND == 0 && !dns {
        return pass(Rule::OutOff);
    }
    if let Some(v) = leaves_untouched(pod, c, tables) {
        return v;
    }
    let own_ip = tables.own_ip(&OwnIpKey { netns: c.netns, ip: c.dst });
    if let Some(rule) = proxy_identity(pod, tables, process) {
        let self_call = tcp && own_ip && c.port != pod.tunnel_port && !(dns || is_loopback(&c.dst));
        if self_call && pod.flags & flag::INBOUND != 0 {
            return redirect(pod, c, tables, pod.in_port, Rule::SelfCall);
        }
        return pass(rule);
    }
    // istio-init leaves everything over lo alone, but not a resolver on a loopback address.
    if !dns && pod.flags & flag::OUT_LOOPBACK == 0 {
        if is_loopback(&c.dst) {
            return pass(Rule::Loopback);
        }
        if own_ip {
            return pass(Rule::OwnAddress);
        }
    }
    if let Some(v) = owner_group(pod, tables, process) {
        return v;
    }
    if dns && captured_resolver(pod, c, tables) {
        return redirect(pod, c, tables, pod.dns_port, Rule::DnsCaptured);
    }
    if !tcp {
        return pass(Rule::NotCaptured);
    }
    captured_range(pod, c, tables)
}

/// The rules that come before the question who asks: interface, port, passthrough source.
#[inline(always)]
fn leaves_untouched<T: Tables>(pod: &Pod, c: &Connect, tables: &T) -> Option<Verdict> {
    if pod.flags & flag::HAS_INTERFACE != 0 && leaves_by_excluded(pod, c, tables) {
        return Some(pass(Rule::OutInterface));
    }
    if pod.flags & flag::HAS_OUT_PORT_EXCLUDE != 0
        && rule(pod, tables, kind::OUT_PORT_EXCLUDE, u32::from(c.port))
    {
        return Some(pass(Rule::OutPortExcluded));
    }
    is_passthrough_source(&c.src).then(|| pass(Rule::PassthroughSource))
}

/// A bound socket leaves by its device, whatever the routes say.
#[inline(always)]
fn leaves_by_excluded<T: Tables>(pod: &Pod, c: &Connect, tables: &T) -> bool {
    if c.device != 0 {
        return rule(pod, tables, kind::INTERFACE_EXCLUDE, c.device);
    }
    tables.cidr(&CidrKey::new(pod.policy, list::ROUTE, c.dst)) == Some(1)
}

#[inline(always)]
fn owner_group<T: Tables, P: Process>(pod: &Pod, tables: &T, process: &P) -> Option<Verdict> {
    if pod.flags & flag::HAS_GROUP_INCLUDE != 0 && !rule(pod, tables, kind::GROUP_INCLUDE, process.gid()) {
        return Some(pass(Rule::GroupNotIncluded));
    }
    if pod.flags & flag::HAS_GROUP_EXCLUDE != 0 && rule(pod, tables, kind::GROUP_EXCLUDE, process.gid()) {
        return Some(pass(Rule::GroupExcluded));
    }
    None
}

#[inline(always)]
fn captured_resolver<T: Tables>(pod: &Pod, c: &Connect, tables: &T) -> bool {
    pod.flags & flag::DNS_ALL != 0 || tables.cidr(&CidrKey::new(pod.policy, list::DNS, c.dst)).is_some()
}

/// The rules by destination: loopback, `-x`, `-q`, `-i`.
#[inline(always)]
fn captured_range<T: Tables>(pod: &Pod, c: &Connect, tables: &T) -> Verdict {
    if in_loopback_net(pod, &c.dst) || (pod.flags & flag::OUT_LOOPBACK == 0 && is_loopback(&c.dst)) {
        return pass(Rule::Loopback);
    }
    if pod.flags & flag::HAS_CIDR_EXCLUDE != 0
        && tables.cidr(&CidrKey::new(pod.policy, list::EXCLUDE, c.dst)).is_some()
    {
        return pass(Rule::CidrExcluded);
    }
    if pod.flags & flag::HAS_OUT_PORT_INCLUDE != 0
        && rule(pod, tables, kind::OUT_PORT_INCLUDE, u32::from(c.port))
    {
        return redirect(pod, c, tables, pod.out_port, Rule::OutPortIncluded);
    }
    if pod.flags & flag::OUT_ALL != 0 {
        return redirect(pod, c, tables, pod.out_port, Rule::OutAll);
    }
    if pod.flags & flag::HAS_CIDR_INCLUDE != 0
        && tables.cidr(&CidrKey::new(pod.policy, list::INCLUDE, c.dst)).is_some()
    {
        return redirect(pod, c, tables, pod.out_port, Rule::CidrIncluded);
    }
    pass(Rule::CidrNotIncluded)
}

/// Redirects, unless nobody listens and the workload fails open. DNS has no listener entry: it follows the
/// outbound listener.
#[inline(always)]
fn redirect<T: Tables>(pod: &Pod, c: &Connect, tables: &T, port: u16, rule: Rule) -> Verdict {
    if pod.flags & flag::FAIL_OPEN != 0 {
        let family = if as_v4(&c.dst).is_some() { AF_INET } else { AF_INET6 };
        if !tables.listener(&ListenerKey { netns: c.netns, direction: direction::OUTBOUND, family }) {
            return pass(Rule::OutFailOpen);
        }
    }
    Verdict { action: Action::Redirect(port), rule }
}

/// Whether the process is the proxy. A known cgroup decides alone: a uid can be taken by anyone who may
/// setuid inside the workload.
#[inline(always)]
fn proxy_identity<T: Tables, P: Process>(pod: &Pod, tables: &T, process: &P) -> Option<Rule> {
    if pod.proxy_cgroup != 0 {
        return (process.cgroup() == pod.proxy_cgroup).then_some(Rule::ProxyCgroup);
    }
    if rule(pod, tables, kind::PROXY_UID, process.uid()) {
        return Some(Rule::ProxyUid);
    }
    rule(pod, tables, kind::PROXY_GID, process.gid()).then_some(Rule::ProxyGid)
}

/// Decides a new inbound connection.
#[inline(always)]
pub fn inbound<T: Tables>(pod: &Pod, a: &Arrival, tables: &T) -> Verdict {
    if pod.flags & flag::INBOUND == 0 {
        return pass(Rule::InOff);
    }
    if a.local_port == pod.in_port {
        return pass(Rule::InProxyPort);
    }
    // The interface tells nothing here: a connect to the pod's own address carries the outer interface's index.
    if is_loopback(&a.remote) || is_passthrough_source(&a.remote) {
        return pass(Rule::InLoopback);
    }
    if a.remote == a.local || tables.own_ip(&OwnIpKey { netns: a.netns, ip: a.remote }) {
        return pass(Rule::InOwnAddress);
    }
    if pod.flags & flag::HAS_INTERFACE != 0 && rule(pod, tables, kind::INTERFACE_EXCLUDE, a.interface) {
        return pass(Rule::InInterface);
    }
    if a.local_port == pod.tunnel_port {
        return pass(Rule::InTunnelPort);
    }
    let listed = pod.flags & flag::HAS_IN_PORT != 0;
    let port = u32::from(a.local_port);
    let captured = if pod.flags & flag::IN_ALL != 0 {
        if listed && rule(pod, tables, kind::IN_PORT_EXCLUDE, port) {
            return pass(Rule::InPortExcluded);
        }
        Rule::InAll
    } else if listed && rule(pod, tables, kind::IN_PORT_INCLUDE, port) {
        Rule::InPortIncluded
    } else {
        return pass(Rule::InPortNotIncluded);
    };
    let key = ListenerKey { netns: a.netns, direction: direction::INBOUND, family: a.family };
    if tables.listener(&key) {
        return Verdict { action: Action::Redirect(pod.in_port), rule: captured };
    }
    if pod.flags & flag::FAIL_OPEN != 0 {
        return pass(Rule::InFailOpen);
    }
    Verdict { action: Action::Deny, rule: Rule::InFailClosed }
}

/// Decides a bind to one of the proxy's ports; `None` for any other port.
#[inline(always)]
pub fn bind<T: Tables, P: Process>(pod: &Pod, port: u16, tables: &T, process: &P) -> Option<Verdict> {
    if port == 0 || (port != pod.out_port && port != pod.in_port) {
        return None;
    }
    Some(match proxy_identity(pod, tables, process) {
        Some(_) => pass(Rule::BindProxy),
        None => Verdict { action: Action::Deny, rule: Rule::BindDenied },
    })
}

/// 127.0.0.6 and ::6: what istio's inbound passthrough clusters bind to.
#[inline(always)]
pub fn is_passthrough_source(ip: &Ip) -> bool {
    match as_v4(ip) {
        Some(v4) => v4 == 0x7f00_0006,
        None => to_words(*ip) == [0, 0, 0, 6u32.to_be()],
    }
}

#[inline(always)]
fn in_loopback_net(pod: &Pod, ip: &Ip) -> bool {
    match as_v4(ip) {
        Some(v4) => v4 & pod.loopback_mask == pod.loopback_net,
        None => is_loopback(ip),
    }
}

#[cfg(test)]
mod tests;
