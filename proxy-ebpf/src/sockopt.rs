//! Answers SO_ORIGINAL_DST as netfilter would, so that stock proxies work unchanged.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sockopt},
    helpers::generated as helper,
    programs::SockoptContext,
};
use proxy_common::{AF_INET, Ip, as_v4, mapped, role, to_words, verdict::Rule};

use crate::{
    ctx::{field, field_ip6},
    maps::{self, PODS, count},
};

const ALLOW: i32 = 1;
/// SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST
const ORIGINAL_DST: u32 = 80;
const SOL_IP: u32 = 0;
const SOL_IPV6: u32 = 41;
/// The kernel hands a program at most one page; an option larger than that must be let through untouched.
const PAGE: u32 = 4096;

#[inline(always)]
pub(crate) fn original_dst(ctx: &SockoptContext) -> i32 {
    let o = ctx.sockopt;
    // SAFETY: the context is valid; the socket is checked.
    unsafe {
        let level = field!(o, bpf_sockopt, level);
        if field!(o, bpf_sockopt, optname) != ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
            if field!(o, bpf_sockopt, optlen) > PAGE {
                (&raw mut (*o).optlen).write_volatile(0);
            }
            return ALLOW;
        }
        let sk = (*o).__bindgen_anon_1.sk;
        if sk.is_null() {
            return ALLOW;
        }
        let Some((ip, port)) = destination(o, sk) else { return ALLOW };
        answer(o, level, &ip, port);
    }
    ALLOW
}

/// What was kept on the socket; else, for a connection that the inbound hook steered, its own local address:
/// nothing was rewritten there. A connection made to the proxy's port itself has none.
#[inline(always)]
unsafe fn destination(o: *mut bpf_sockopt, sk: *mut bpf_sock) -> Option<(Ip, u16)> {
    // SAFETY: the caller's context and socket; the storage is checked.
    unsafe {
        let od = maps::odst(sk);
        if !od.is_null() {
            return ((*od).role == role::ACCEPTED).then(|| ((*od).ip, (*od).port));
        }
        let netns = helper::bpf_get_netns_cookie(o.cast());
        let pod = PODS.get(netns)?;
        let port = field!(sk, bpf_sock, src_port) as u16;
        if port == pod.out_port || port == pod.in_port {
            return None;
        }
        let ip = if field!(sk, bpf_sock, family) == AF_INET {
            mapped(field!(sk, bpf_sock, src_ip4))
        } else {
            field_ip6!(sk, bpf_sock, src_ip6)
        };
        Some((ip, port))
    }
}

/// Writes a sockaddr_in or a sockaddr_in6, word by word.
#[inline(always)]
unsafe fn answer(o: *mut bpf_sockopt, level: u32, ip: &Ip, port: u16) {
    const AF_INET6: u32 = proxy_common::AF_INET6;
    let port = u32::from(port.to_be()) << 16;
    // SAFETY: the option buffer's bounds are compared before each group of writes.
    unsafe {
        let out = (*o).__bindgen_anon_2.optval.cast::<u32>();
        let end = (*o).__bindgen_anon_3.optval_end.cast::<u32>();
        let w = to_words(*ip);
        let len = if level == SOL_IP {
            if as_v4(ip).is_none() || out.add(4) > end {
                return;
            }
            out.write_volatile(AF_INET | port);
            out.add(1).write_volatile(w[3]);
            out.add(2).write_volatile(0);
            out.add(3).write_volatile(0);
            16
        } else {
            if out.add(7) > end {
                return;
            }
            out.write_volatile(AF_INET6 | port);
            out.add(1).write_volatile(0);
            out.add(2).write_volatile(w[0]);
            out.add(3).write_volatile(w[1]);
            out.add(4).write_volatile(w[2]);
            out.add(5).write_volatile(w[3]);
            out.add(6).write_volatile(0);
            28
        };
        (&raw mut (*o).optlen).write_volatile(len);
        (&raw mut (*o).retval).write_volatile(0);
    }
    count(Rule::Answered);
}
