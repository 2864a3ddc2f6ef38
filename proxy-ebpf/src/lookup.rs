//! Steers a new inbound connection to the proxy's inbound listener; addresses stay as they are.

use aya_ebpf::{
    Global,
    bindings::{
        bpf_sk_lookup,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::generated as helper,
    programs::SkLookupContext,
};
use aya_log_ebpf::debug;
use proxy_common::{
    AF_INET, IPPROTO_TCP, ListenerKey, direction, flag, mapped,
    verdict::{self, Action, Arrival, Rule},
};

use crate::{
    ctx::{field, field_ip6},
    maps::{self, LISTENERS, Maps, PODS, count},
};

/// Where this copy of the program runs. Its context has no cookie, so the loader writes it per namespace.
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

const LOOPBACK_INTERFACE: u32 = 1;

#[inline(always)]
pub(crate) fn inbound(ctx: &SkLookupContext) -> u32 {
    let c = ctx.lookup;
    let netns = NETNS_COOKIE.load();
    // SAFETY: the context is valid; entries are replaced, never written in place.
    unsafe {
        if field!(c, bpf_sk_lookup, protocol) != IPPROTO_TCP {
            return SK_PASS;
        }
        let interface = field!(c, bpf_sk_lookup, ingress_ifindex);
        if interface <= LOOPBACK_INTERFACE {
            return SK_PASS;
        }
        let Some(pod) = PODS.get(netns) else { return SK_PASS };
        let arrival = read(c, netns, interface);
        let v = verdict::inbound(pod, &arrival, &Maps);
        count(v.rule);
        debug!(ctx, "netns {} inbound port {} by rule {}", netns, arrival.local_port, v.rule as u32);
        match v.action {
            Action::Pass => SK_PASS,
            Action::Deny => SK_DROP,
            Action::Redirect(_) => {
                let key = ListenerKey { netns, direction: direction::INBOUND, family: arrival.family };
                if assign(c, &key) || pod.flags & flag::FAIL_OPEN != 0 { SK_PASS } else { SK_DROP }
            }
        }
    }
}

#[inline(always)]
unsafe fn read(c: *mut bpf_sk_lookup, netns: u64, interface: u32) -> Arrival {
    // SAFETY: the caller's context.
    unsafe {
        let family = field!(c, bpf_sk_lookup, family);
        let (local, remote) = if family == AF_INET {
            (mapped(field!(c, bpf_sk_lookup, local_ip4)), mapped(field!(c, bpf_sk_lookup, remote_ip4)))
        } else {
            (field_ip6!(c, bpf_sk_lookup, local_ip6), field_ip6!(c, bpf_sk_lookup, remote_ip6))
        };
        let local_port = field!(c, bpf_sk_lookup, local_port) as u16;
        Arrival { netns, local, remote, local_port, interface, family }
    }
}

#[inline(always)]
unsafe fn assign(c: *mut bpf_sk_lookup, key: &ListenerKey) -> bool {
    // SAFETY: the caller's context; the socket is checked and released.
    unsafe {
        let sk = helper::bpf_map_lookup_elem(maps::address(&LISTENERS), core::ptr::from_ref(key).cast());
        if sk.is_null() {
            count(Rule::AssignFailed);
            return false;
        }
        let r = helper::bpf_sk_assign(c.cast(), sk, 0);
        helper::bpf_sk_release(sk);
        if r != 0 {
            count(Rule::AssignFailed);
        }
        r == 0
    }
}
