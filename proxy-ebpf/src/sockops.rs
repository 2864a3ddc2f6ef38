//! Carries the original destination from the connecting socket to the accepted one, and registers the
//! listeners of stock proxies.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops},
    helpers::generated as helper,
    programs::SockOpsContext,
};
use proxy_common::{
    AF_INET, AF_INET6, FlowKey, Ip, ListenerKey, OrigDst, direction, flag, is_loopback, mapped, role,
    verdict::Rule,
};

use crate::{
    ctx::{field, field_ip6},
    maps::{self, FLOWS, LISTENERS, PODS, count},
};

const TIMEOUT_INIT: u32 = 1;
const TCP_CONNECT: u32 = 3;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE: u32 = 10;
const TCP_LISTEN: u32 = 11;

const STATE_CLOSE: u32 = 7;
/// 1, so that another program's reply on an ancestor cgroup stands.
const OK: u32 = 1;

#[inline(always)]
pub(crate) fn event(ctx: &SockOpsContext) -> u32 {
    let o = ctx.ops;
    // SAFETY: the context is valid for the whole run.
    unsafe {
        match field!(o, bpf_sock_ops, op) {
            TCP_CONNECT => connecting(o),
            PASSIVE_ESTABLISHED => accepted(o),
            // Called for every change of state: the cheapest test first. `args[1]` is the new state.
            STATE if new_state(o) == STATE_CLOSE => closed(o),
            TIMEOUT_INIT => syn_timeout(o),
            TCP_LISTEN => listening(o),
            _ => {}
        }
    }
    OK
}

/// The client's end of the connection, from either end's context.
#[inline(always)]
unsafe fn flow_key(o: *mut bpf_sock_ops, netns: u64, accepted: bool) -> FlowKey {
    // SAFETY: the caller's context.
    unsafe {
        let local_port = field!(o, bpf_sock_ops, local_port) as u16;
        let remote_port = u32::from_be(field!(o, bpf_sock_ops, remote_port)) as u16;
        if accepted {
            FlowKey { netns, src: remote_ip(o), sport: remote_port, dport: local_port, reserved: 0 }
        } else {
            FlowKey { netns, src: local_ip(o), sport: local_port, dport: remote_port, reserved: 0 }
        }
    }
}

#[inline(always)]
unsafe fn local_ip(o: *mut bpf_sock_ops) -> Ip {
    // SAFETY: the caller's context.
    unsafe {
        if field!(o, bpf_sock_ops, family) == AF_INET {
            mapped(field!(o, bpf_sock_ops, local_ip4))
        } else {
            field_ip6!(o, bpf_sock_ops, local_ip6)
        }
    }
}

#[inline(always)]
unsafe fn remote_ip(o: *mut bpf_sock_ops) -> Ip {
    // SAFETY: the caller's context.
    unsafe {
        if field!(o, bpf_sock_ops, family) == AF_INET {
            mapped(field!(o, bpf_sock_ops, remote_ip4))
        } else {
            field_ip6!(o, bpf_sock_ops, remote_ip6)
        }
    }
}

/// The context's socket as the storage helper takes it; null is the verifier's to check.
#[inline(always)]
unsafe fn socket(o: *mut bpf_sock_ops) -> *mut bpf_sock {
    // SAFETY: the caller's context.
    unsafe { (*o).__bindgen_anon_2.sk }
}

#[inline(always)]
unsafe fn new_state(o: *mut bpf_sock_ops) -> u32 {
    // SAFETY: the caller's context. `args` is the union after `op`.
    unsafe { crate::ctx::load::<8, bpf_sock_ops>(o) }
}

/// Before the SYN leaves: the source port is known, the peer has not seen anything yet.
#[inline(always)]
unsafe fn connecting(o: *mut bpf_sock_ops) {
    // SAFETY: the caller's context; socket and storage are checked.
    unsafe {
        let sk = socket(o);
        if sk.is_null() {
            return;
        }
        let od = maps::odst(sk);
        if od.is_null() || (*od).role != role::CLIENT || !is_loopback(&remote_ip(o)) {
            return;
        }
        let od = *od;
        let key = flow_key(o, od.netns, false);
        if FLOWS.insert(key, od, 0).is_err() {
            count(Rule::FlowFull);
            return;
        }
        count(Rule::FlowStored);
        let flags = field!(o, bpf_sock_ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
        helper::bpf_sock_ops_cb_flags_set(o, flags as i32);
        if od.since_ms != 0 {
            more_syns(o);
        }
    }
}

/// A held connect retries its SYN for as long as it may be held, not only the default six times.
#[inline(always)]
unsafe fn more_syns(o: *mut bpf_sock_ops) {
    const SOL_TCP: i32 = 6;
    const TCP_SYNCNT: i32 = 7;
    let mut count: i32 = 16;
    // SAFETY: the caller's context; the option is an int.
    unsafe { helper::bpf_setsockopt(o.cast(), SOL_TCP, TCP_SYNCNT, (&raw mut count).cast(), 4) };
}

/// Retry a SYN that may be held every 250 jiffies (0.25 s to 2.5 s) at first, not every second: the connect
/// should go on soon after the proxy is there.
#[inline(always)]
unsafe fn syn_timeout(o: *mut bpf_sock_ops) {
    // SAFETY: the caller's context; socket and storage are checked.
    unsafe {
        let sk = socket(o);
        if sk.is_null() {
            return;
        }
        let od = maps::odst(sk);
        if !od.is_null() && (*od).role == role::CLIENT && (*od).since_ms != 0 {
            (&raw mut (*o).__bindgen_anon_1.reply).write_volatile(250);
        }
    }
}

/// The accepted end takes the destination over.
#[inline(always)]
unsafe fn accepted(o: *mut bpf_sock_ops) {
    // SAFETY: the caller's context; socket, flow and storage are checked.
    unsafe {
        if !is_loopback(&local_ip(o)) {
            return;
        }
        let sk = socket(o);
        if sk.is_null() {
            return;
        }
        let netns = helper::bpf_get_netns_cookie(o.cast());
        let key = flow_key(o, netns, true);
        let Some(flow) = FLOWS.get(key) else { return };
        let flow = OrigDst { role: role::ACCEPTED, ..*flow };
        let od = maps::odst_or_new(sk);
        if od.is_null() {
            count(Rule::StorageFull);
            return;
        }
        *od = flow;
        let _ = FLOWS.remove(key);
        count(Rule::FlowMoved);
    }
}

/// A redirected connection that closes before it was accepted leaves nothing behind.
#[inline(always)]
unsafe fn closed(o: *mut bpf_sock_ops) {
    // SAFETY: the caller's context.
    unsafe {
        let netns = helper::bpf_get_netns_cookie(o.cast());
        let key = flow_key(o, netns, false);
        if FLOWS.remove(key).is_ok() {
            count(Rule::FlowClosed);
        }
    }
}

/// A socket that the bind hook marked as the proxy's registers itself.
#[inline(always)]
unsafe fn listening(o: *mut bpf_sock_ops) {
    // SAFETY: the caller's context; socket, storage and entry are checked.
    unsafe {
        let sk = socket(o);
        if sk.is_null() {
            return;
        }
        let od = maps::odst(sk);
        if od.is_null() || (*od).role != role::LISTENER {
            return;
        }
        let netns = (*od).netns;
        let Some(pod) = PODS.get(netns) else { return };
        let port = field!(o, bpf_sock_ops, local_port) as u16;
        let direction = if port == pod.in_port && pod.flags & flag::INBOUND != 0 {
            direction::INBOUND
        } else {
            direction::OUTBOUND
        };
        let family = field!(o, bpf_sock_ops, family);
        let mut key = ListenerKey { netns, direction, family };
        register(o, &mut key, u64::from(BPF_ANY));
        if family == AF_INET6 {
            // A dual-stack listener serves IPv4 too; one of its own, there or to come, takes the place.
            key.family = AF_INET;
            register(o, &mut key, u64::from(BPF_NOEXIST));
        }
    }
}

#[inline(always)]
unsafe fn register(o: *mut bpf_sock_ops, key: &mut ListenerKey, flags: u64) {
    let key = core::ptr::from_mut(key).cast();
    // SAFETY: the caller's context; map and key are valid.
    if unsafe { helper::bpf_sock_hash_update(o, maps::address(&LISTENERS), key, flags) } == 0 {
        count(Rule::ListenerAdded);
    }
}
