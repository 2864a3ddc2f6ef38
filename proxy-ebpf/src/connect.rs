//! connect4/6, sendmsg4/6, bind4/6 in; getpeername4/6, recvmsg4/6 out.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated as helper,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use proxy_common::{
    IPPROTO_TCP, Ip, OrigDst, Pod, as_v4, flag, is_loopback, mapped, role,
    verdict::{self, Action, Connect, Rule},
};

use crate::{
    ctx::{Family, field, field_ip6, loopback6, store_ip6},
    maps::{self, Current, Maps, ODST, PODS, count},
};

const ALLOW: i32 = 1;
/// The application sees EPERM.
const REFUSE: i32 = 0;

/// Which hook asks: only connect may change the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Connect,
    Send,
}

/// A connect, or a datagram that carries its destination.
#[inline(always)]
pub(crate) fn outbound(ctx: &SockAddrContext, family: Family, hook: Hook) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: the context is valid for the whole run.
    let netns = unsafe { helper::bpf_get_netns_cookie(sa.cast()) };
    // SAFETY: entries are replaced, never written in place.
    let Some(pod) = (unsafe { PODS.get(netns) }) else { return ALLOW };
    // SAFETY: as above.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    if sk.is_null() {
        return ALLOW;
    }
    let c = read(sa, sk, netns, family);
    let v = verdict::outbound(pod, &c, &Maps, &Current);
    count(v.rule);
    match v.action {
        Action::Pass => {
            forget(sk, &c, pod);
            ALLOW
        }
        Action::Deny => REFUSE,
        Action::Redirect(port) => {
            if c.device != 0 && !unbind(sa, hook) {
                return REFUSE;
            }
            debug!(ctx, "netns {} port {} -> {} by rule {}", netns, c.port, port, v.rule as u32);
            redirect(sa, sk, &c, pod, port, family)
        }
    }
}

#[inline(always)]
fn read(sa: *mut bpf_sock_addr, sk: *mut bpf_sock, netns: u64, family: Family) -> Connect {
    // SAFETY: fields of the context and of its socket, which the caller found not null.
    unsafe {
        let (dst, src) = match family {
            Family::V4 => {
                (mapped(field!(sa, bpf_sock_addr, user_ip4)), mapped(field!(sk, bpf_sock, src_ip4)))
            }
            Family::V6 => (field_ip6!(sa, bpf_sock_addr, user_ip6), field_ip6!(sk, bpf_sock, src_ip6)),
        };
        Connect {
            netns,
            dst,
            src,
            port: u16::from_be(field!(sa, bpf_sock_addr, user_port) as u16),
            protocol: field!(sa, bpf_sock_addr, protocol),
            device: field!(sk, bpf_sock, bound_dev_if),
        }
    }
}

/// Frees a socket from its device: bound to one it cannot reach the listener on loopback, and to let it pass
/// would let anyone pass, because an unprivileged process may bind its sockets too.
#[inline(always)]
fn unbind(sa: *mut bpf_sock_addr, hook: Hook) -> bool {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTODEVICE: i32 = 25;
    let mut none = [0u8; 4];
    let name = none.as_mut_ptr().cast();
    // SAFETY: the context is valid; the option is a name, and an empty one means no device.
    let unbound = hook == Hook::Connect
        && unsafe { helper::bpf_setsockopt(sa.cast(), SOL_SOCKET, SO_BINDTODEVICE, name, 4) } == 0;
    count(if unbound { Rule::DeviceUnbound } else { Rule::DeviceRefused });
    unbound
}

/// Keeps the destination on the socket and points the connect at the proxy. Without memory for it the connect
/// is refused: passing it on would go around the proxy.
#[inline(always)]
fn redirect(
    sa: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    c: &Connect,
    pod: &Pod,
    port: u16,
    family: Family,
) -> i32 {
    // SAFETY: the socket is the context's; storage is checked before it is written.
    unsafe {
        let od = maps::odst_or_new(sk);
        if od.is_null() {
            count(Rule::StorageFull);
            return REFUSE;
        }
        let since_ms = if pod.flags & flag::HOLD != 0 { now_ms() } else { 0 };
        *od = OrigDst {
            netns: c.netns,
            ip: c.dst,
            since_ms,
            port: c.port,
            role: role::CLIENT,
            protocol: c.protocol as u8,
        };
        const LOOPBACK4: u32 = 0x7f00_0001u32.to_be();
        match family {
            Family::V4 => (&raw mut (*sa).user_ip4).write_volatile(LOOPBACK4),
            // An AF_INET6 socket reaches IPv4 by v4-mapped addresses.
            Family::V6 if as_v4(&c.dst).is_some() => {
                store_ip6(&raw mut (*sa).user_ip6 as *mut u32, mapped(LOOPBACK4));
            }
            Family::V6 => store_ip6(&raw mut (*sa).user_ip6 as *mut u32, loopback6()),
        }
        (&raw mut (*sa).user_port).write_volatile(u32::from(port.to_be()));
    }
    ALLOW
}

/// A TCP socket may connect again after a failure: what an earlier connect left must not speak for this one.
/// Where the hooks run twice, in nested cgroups, the second run sees the rewritten address and keeps it.
#[inline(always)]
fn forget(sk: *mut bpf_sock, c: &Connect, pod: &Pod) {
    if c.protocol != IPPROTO_TCP || is_loopback(&c.dst) && is_proxy_port(pod, c.port) {
        return;
    }
    // SAFETY: the context's socket.
    unsafe {
        let od = maps::odst(sk);
        if !od.is_null() && (*od).role == role::CLIENT {
            helper::bpf_sk_storage_delete(maps::address(&ODST), sk.cast());
        }
    }
}

#[inline(always)]
fn is_proxy_port(pod: &Pod, port: u16) -> bool {
    port == pod.out_port || port == pod.in_port || port == pod.dns_port
}

#[inline(always)]
pub(crate) fn now_ms() -> u32 {
    // SAFETY: no arguments.
    let ms = (unsafe { helper::bpf_ktime_get_ns() } / 1_000_000) as u32;
    // 0 means "not held".
    if ms == 0 { 1 } else { ms }
}

/// Shows the workload the peer that it asked for, where the kernel would show the proxy.
#[inline(always)]
pub(crate) fn restore_peer(ctx: &SockAddrContext, family: Family) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: the context is valid; the socket and its storage are checked before they are read.
    unsafe {
        let sk = (*sa).__bindgen_anon_1.sk;
        if sk.is_null() {
            return ALLOW;
        }
        let od = maps::odst(sk);
        if od.is_null() || (*od).role != role::CLIENT {
            return ALLOW;
        }
        let od = *od;
        let port = u16::from_be(field!(sa, bpf_sock_addr, user_port) as u16);
        let ip: Ip = match family {
            Family::V4 => mapped(field!(sa, bpf_sock_addr, user_ip4)),
            Family::V6 => field_ip6!(sa, bpf_sock_addr, user_ip6),
        };
        let Some(pod) = PODS.get(od.netns) else { return ALLOW };
        if !is_loopback(&ip) || !is_proxy_port(pod, port) {
            return ALLOW;
        }
        match family {
            Family::V4 => {
                let Some(v4) = as_v4(&od.ip) else { return ALLOW };
                (&raw mut (*sa).user_ip4).write_volatile(v4.to_be());
            }
            Family::V6 => store_ip6(&raw mut (*sa).user_ip6 as *mut u32, od.ip),
        }
        (&raw mut (*sa).user_port).write_volatile(u32::from(od.port.to_be()));
    }
    ALLOW
}

/// Only the proxy may bind its ports; its socket is marked, so that `listen` can register it.
#[inline(always)]
pub(crate) fn bind(ctx: &SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    // SAFETY: the context is valid; the socket and its storage are checked before they are written.
    unsafe {
        let port = u16::from_be(field!(sa, bpf_sock_addr, user_port) as u16);
        let netns = helper::bpf_get_netns_cookie(ctx.as_ptr());
        let Some(pod) = PODS.get(netns) else { return ALLOW };
        if field!(sa, bpf_sock_addr, protocol) != IPPROTO_TCP {
            return ALLOW;
        }
        let Some(v) = verdict::bind(pod, port, &Maps, &Current) else { return ALLOW };
        count(v.rule);
        if v.action == Action::Deny {
            return REFUSE;
        }
        let sk = (*sa).__bindgen_anon_1.sk;
        if sk.is_null() {
            return ALLOW;
        }
        let od = maps::odst_or_new(sk);
        if !od.is_null() {
            *od = OrigDst { netns, port, role: role::LISTENER, ..EMPTY };
        }
    }
    ALLOW
}

const EMPTY: OrigDst = OrigDst { netns: 0, ip: [0; 16], since_ms: 0, port: 0, role: 0, protocol: 0 };
