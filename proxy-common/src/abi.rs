//! Map layouts, map names and program names. A change of any of them is a new [`LAYOUT`].

use core::mem::size_of;

/// The version in the pin directory's name: pinned maps can be adopted only where every layout is the same.
pub const LAYOUT: u32 = 1;

/// An address of 16 bytes in network order; IPv4 is v4-mapped, so one key serves both families.
pub type Ip = [u8; 16];

/// Declares a type that crosses the kernel boundary.
///
/// This is the only place where the crate promises the kernel that a type has no padding and that every bit
/// pattern is a value; the assertion keeps the promise.
macro_rules! abi {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }

        const _: () = assert!(
            size_of::<$name>() == 0 $(+ size_of::<$ty>())*,
            concat!(stringify!($name), " has padding"),
        );

        #[cfg(feature = "user")]
        // SAFETY: `repr(C)` of integers and arrays of integers without padding (asserted above): any bit
        // pattern is a valid value, and no byte is uninitialised.
        unsafe impl aya::Pod for $name {}
    };
}

abi! {
    /// `PODS`: one enrolled network namespace, by its cookie.
    pub struct Pod {
        /// The cgroup whose processes are the proxy. 0: not known, uid and gid rules decide instead.
        pub proxy_cgroup: u64,
        /// The compiled policy: first part of the keys in `RULES` and `CIDRS`. A new policy is written under a
        /// new number and takes effect by one update of this entry.
        pub policy: u32,
        /// [`flag`] bits.
        pub flags: u32,
        /// How long a connect may wait for the proxy, with [`flag::HOLD`].
        pub hold_ms: u32,
        pub out_port: u16,
        pub in_port: u16,
        pub dns_port: u16,
        /// HBONE's port: left alone in both directions.
        pub tunnel_port: u16,
        /// Host order address and prefix of what counts as loopback (istio's HOST_IPV4_LOOPBACK_CIDR).
        pub loopback_net: u32,
        pub loopback_mask: u32,
        pub reserved: u32,
    }
}

/// Bits of [`Pod::flags`]. The `HAS_` bits spare a map look-up where a list is empty.
pub mod flag {
    pub const OUTBOUND: u32 = 1;
    pub const INBOUND: u32 = 1 << 1;
    pub const DNS: u32 = 1 << 2;
    /// Every resolver, not only those listed.
    pub const DNS_ALL: u32 = 1 << 3;
    /// Connect as if not enrolled while no proxy listens.
    pub const FAIL_OPEN: u32 = 1 << 4;
    /// Hold a connect while no proxy listens, for at most `hold_ms`.
    pub const HOLD: u32 = 1 << 5;
    /// `-i '*'`
    pub const OUT_ALL: u32 = 1 << 6;
    /// A range of `-i` holds a loopback address, so loopback is not exempt as a whole.
    pub const OUT_LOOPBACK: u32 = 1 << 7;
    /// `-b '*'`
    pub const IN_ALL: u32 = 1 << 8;
    pub const HAS_OUT_PORT_EXCLUDE: u32 = 1 << 9;
    pub const HAS_OUT_PORT_INCLUDE: u32 = 1 << 10;
    pub const HAS_CIDR_EXCLUDE: u32 = 1 << 11;
    pub const HAS_CIDR_INCLUDE: u32 = 1 << 12;
    /// Only these groups are captured.
    pub const HAS_GROUP_INCLUDE: u32 = 1 << 13;
    pub const HAS_GROUP_EXCLUDE: u32 = 1 << 14;
    pub const HAS_INTERFACE: u32 = 1 << 15;
    pub const HAS_IN_PORT: u32 = 1 << 16;

    /// Every bit with its name, for people.
    pub const NAMES: &[(u32, &str)] = &[
        (OUTBOUND, "outbound"),
        (INBOUND, "inbound"),
        (DNS, "dns"),
        (DNS_ALL, "dns-all"),
        (FAIL_OPEN, "fail-open"),
        (HOLD, "hold"),
        (OUT_ALL, "out-all"),
        (OUT_LOOPBACK, "out-loopback"),
        (IN_ALL, "in-all"),
        (HAS_OUT_PORT_EXCLUDE, "out-port-exclude"),
        (HAS_OUT_PORT_INCLUDE, "out-port-include"),
        (HAS_CIDR_EXCLUDE, "cidr-exclude"),
        (HAS_CIDR_INCLUDE, "cidr-include"),
        (HAS_GROUP_INCLUDE, "group-include"),
        (HAS_GROUP_EXCLUDE, "group-exclude"),
        (HAS_INTERFACE, "interface"),
        (HAS_IN_PORT, "in-port"),
    ];
}

abi! {
    /// `OWN_IPS`: an address of an enrolled network namespace -> 1.
    pub struct OwnIpKey {
        pub netns: u64,
        pub ip: Ip,
    }
}

abi! {
    /// `RULES`: an exact match of one policy -> 1.
    pub struct RuleKey {
        pub policy: u32,
        /// [`kind`]
        pub kind: u32,
        /// A port, a uid, a gid or an interface index.
        pub value: u32,
    }
}

/// Values of [`RuleKey::kind`].
pub mod kind {
    /// `-o`, TCP and UDP
    pub const OUT_PORT_EXCLUDE: u32 = 1;
    /// `-q`
    pub const OUT_PORT_INCLUDE: u32 = 2;
    /// `-d`
    pub const IN_PORT_EXCLUDE: u32 = 3;
    /// `-b` with a list
    pub const IN_PORT_INCLUDE: u32 = 4;
    /// `-u`
    pub const PROXY_UID: u32 = 5;
    /// `-g`
    pub const PROXY_GID: u32 = 6;
    /// `ISTIO_OUTBOUND_OWNER_GROUPS`
    pub const GROUP_INCLUDE: u32 = 7;
    /// `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`
    pub const GROUP_EXCLUDE: u32 = 8;
    /// `-c`, inbound: the interface's index
    pub const INTERFACE_EXCLUDE: u32 = 9;

    pub const NAMES: &[&str] = &[
        "",
        "out-port-exclude",
        "out-port-include",
        "in-port-exclude",
        "in-port-include",
        "proxy-uid",
        "proxy-gid",
        "group-include",
        "group-exclude",
        "interface-exclude",
    ];
}

abi! {
    /// `CIDRS`: the data part of a longest-prefix key; its prefix length is [`CIDR_PREFIX`] + the address's.
    pub struct CidrKey {
        /// Byte arrays, because the trie compares the key's bytes from the left.
        pub policy: [u8; 4],
        /// [`list`], big endian
        pub list: [u8; 4],
        pub ip: Ip,
    }
}

abi! {
    /// `CIDRS`: the whole key, as userspace writes it.
    pub struct CidrEntry {
        /// [`CIDR_PREFIX`] + the address's prefix length in its 16-byte form (IPv4: + 96).
        pub prefix: u32,
        pub key: CidrKey,
    }
}

/// The bits of [`CidrKey`] before the address, always compared whole.
pub const CIDR_PREFIX: u32 = 64;

impl CidrKey {
    #[inline(always)]
    pub fn new(policy: u32, list: u32, ip: Ip) -> Self {
        Self { policy: policy.to_be_bytes(), list: list.to_be_bytes(), ip }
    }
}

/// Values of [`CidrKey::list`].
pub mod list {
    /// `-x`
    pub const EXCLUDE: u32 = 1;
    /// `-i` with a list
    pub const INCLUDE: u32 = 2;
    /// Resolvers whose port 53 is captured
    pub const DNS: u32 = 3;
    /// The namespace's routes, where `-c` names an interface: value 1 leaves by an excluded interface, value 2
    /// by another one, so the longest match answers as the routing table does.
    pub const ROUTE: u32 = 4;

    pub const NAMES: &[&str] = &["", "exclude", "include", "dns", "route"];
}

abi! {
    /// `ODST`, on a socket, and `FLOWS`, between two sockets: where a connection was going.
    pub struct OrigDst {
        /// The cookie of the workload's network namespace: not every hook can ask for it.
        pub netns: u64,
        pub ip: Ip,
        /// Low 32 bits of the monotonic clock in milliseconds at the connect; 0 unless the connect may be held.
        pub since_ms: u32,
        /// Host order.
        pub port: u16,
        /// [`role`]
        pub role: u8,
        /// The protocol's number, TCP or UDP.
        pub protocol: u8,
    }
}

/// Values of [`OrigDst::role`].
pub mod role {
    /// A workload's socket whose connect was rewritten.
    pub const CLIENT: u8 = 1;
    /// The proxy's accepted end of such a connection. Its peer address is genuine.
    pub const ACCEPTED: u8 = 2;
    /// A socket that the proxy's identity bound to one of the proxy's ports: the only kind that may register
    /// itself as a listener.
    pub const LISTENER: u8 = 3;
}

abi! {
    /// `FLOWS`: the client's end of a redirected connection between its SYN and its accept. The destination is
    /// always the loopback address of the source's family, so it is not in the key.
    pub struct FlowKey {
        pub netns: u64,
        pub src: Ip,
        pub sport: u16,
        pub dport: u16,
        pub reserved: u32,
    }
}

abi! {
    /// `LISTENERS`: the proxy's listening socket for one use.
    pub struct ListenerKey {
        pub netns: u64,
        /// [`direction`]
        pub direction: u32,
        /// AF_INET or AF_INET6
        pub family: u32,
    }
}

/// Values of [`ListenerKey::direction`].
pub mod direction {
    pub const OUTBOUND: u32 = 1;
    pub const INBOUND: u32 = 2;
}

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;

/// The maps, by the names that bpftool shows (the kernel keeps 15 characters).
pub mod map {
    pub const PODS: &str = "PODS";
    pub const OWN_IPS: &str = "OWN_IPS";
    pub const RULES: &str = "RULES";
    pub const CIDRS: &str = "CIDRS";
    pub const ODST: &str = "ODST";
    pub const FLOWS: &str = "FLOWS";
    pub const LISTENERS: &str = "LISTENERS";
    pub const COUNTERS: &str = "COUNTERS";

    pub const ALL: &[&str] = &[PODS, OWN_IPS, RULES, CIDRS, ODST, FLOWS, LISTENERS, COUNTERS];
}

/// A program that is attached to a cgroup.
pub struct CgroupProgram {
    pub name: &'static str,
    /// The kernel's `enum bpf_attach_type`.
    pub attach_type: u32,
    pub scope: Scope,
}

/// Which cgroups a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The workload's cgroup.
    Workload,
    /// The workload's cgroup and the proxy's, where it is another: the accepted end of an intercepted
    /// connection belongs to the listener's cgroup.
    Both,
    /// The workload's cgroup, only where its policy holds connects: the hook sees every packet.
    Hold,
}

macro_rules! cgroup_programs {
    ($($name:literal $attach:literal $scope:ident,)*) => {
        pub const CGROUP_PROGRAMS: &[CgroupProgram] =
            &[$(CgroupProgram { name: $name, attach_type: $attach, scope: Scope::$scope },)*];
    };
}

cgroup_programs! {
    "shunt_connect4" 10 Workload,
    "shunt_connect6" 11 Workload,
    "shunt_bind4" 8 Workload,
    "shunt_bind6" 9 Workload,
    "shunt_peer4" 29 Workload,
    "shunt_peer6" 30 Workload,
    "shunt_sendmsg4" 14 Workload,
    "shunt_sendmsg6" 15 Workload,
    "shunt_recvmsg4" 19 Workload,
    "shunt_recvmsg6" 20 Workload,
    "shunt_sockops" 3 Both,
    "shunt_getsockopt" 21 Both,
    "shunt_hold" 1 Hold,
}

/// The inbound program, loaded once per network namespace with its cookie as [`NETNS_COOKIE`].
pub const LOOKUP_PROGRAM: &str = "shunt_lookup";
pub const LOOKUP_ATTACH_TYPE: u32 = 36;
/// The read-only variable that tells the inbound program where it runs: its context has no cookie.
pub const NETNS_COOKIE: &str = "NETNS_COOKIE";

/// `::ffff:a.b.c.d` for an IPv4 address in network order, as the kernel's contexts hold it.
#[inline(always)]
pub fn mapped(ip4: u32) -> Ip {
    // By words: the kernel half has no memset to fill bytes with.
    from_words([0, 0, 0xffffu32.to_be(), ip4])
}

/// The address of the four words that the kernel's contexts hold.
#[inline(always)]
pub fn from_words(w: [u32; 4]) -> Ip {
    // SAFETY: same size, no padding, every bit pattern is valid in both.
    unsafe { core::mem::transmute::<[u32; 4], Ip>(w) }
}

/// The reverse of [`from_words`].
#[inline(always)]
pub fn to_words(ip: Ip) -> [u32; 4] {
    // SAFETY: same size, no padding, every bit pattern is valid in both.
    unsafe { core::mem::transmute::<Ip, [u32; 4]>(ip) }
}

/// The IPv4 address in host order, if the address is v4-mapped.
#[inline(always)]
pub fn as_v4(ip: &Ip) -> Option<u32> {
    let w = to_words(*ip);
    (w[0] == 0 && w[1] == 0 && w[2] == u32::from_be(0xffff)).then(|| u32::from_be(w[3]))
}

/// 127.0.0.0/8 or ::1.
#[inline(always)]
pub fn is_loopback(ip: &Ip) -> bool {
    match as_v4(ip) {
        Some(v4) => v4 >> 24 == 127,
        None => to_words(*ip) == [0, 0, 0, 1u32.to_be()],
    }
}
