//! Delays the SYN of a redirected connect while no proxy listens: TCP sends it again, the application waits.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated as helper,
    programs::SkBuffContext,
};
use proxy_common::{
    AF_INET, AF_INET6, IPPROTO_TCP, ListenerKey, as_v4, direction, flag, role,
    verdict::{Rule, Tables as _},
};

use crate::{
    connect::now_ms,
    ctx::field,
    maps::{self, Maps, PODS, count},
};

const SEND: i32 = 1;
const DROP: i32 = 0;
const SYN_SENT: u32 = 2;

#[inline(always)]
pub(crate) fn egress(ctx: &SkBuffContext) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context is valid; socket and storage are checked.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return SEND;
        }
        let sk = helper::bpf_sk_fullsock(sk);
        // Runs for every packet of the workload: all but SYNs leave here.
        if sk.is_null() || field!(sk, bpf_sock, state) != SYN_SENT {
            return SEND;
        }
        let od = maps::odst(sk);
        if od.is_null() || (*od).role != role::CLIENT || u32::from((*od).protocol) != IPPROTO_TCP {
            return SEND;
        }
        let od = *od;
        let Some(pod) = PODS.get(od.netns) else { return SEND };
        if pod.flags & flag::HOLD == 0 || now_ms().wrapping_sub(od.since_ms) > pod.hold_ms {
            return SEND;
        }
        let family = if as_v4(&od.ip).is_some() { AF_INET } else { AF_INET6 };
        if Maps.listener(&ListenerKey { netns: od.netns, direction: direction::OUTBOUND, family }) {
            return SEND;
        }
        count(Rule::Held);
    }
    DROP
}
