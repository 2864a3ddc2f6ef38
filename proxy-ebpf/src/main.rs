//! The kernel half. Each hook reads its context, asks a verdict function of `proxy-common`, and writes.
//!
//! `connect` rewrites a workload's connect and keeps the original destination on its socket; `sockops` carries
//! it to the accepted socket; `getsockopt` answers it; `lookup` steers what arrives; `hold` delays a SYN.
//! Build it with `cargo xtask ebpf`: on the host it compiles only so that `check` and `clippy` cover it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod connect;
mod ctx;
mod hold;
mod lookup;
mod maps;
mod sockops;
mod sockopt;

use aya_ebpf::{
    macros::{cgroup_skb, cgroup_sock_addr, cgroup_sockopt, sk_lookup, sock_ops},
    programs::{SkBuffContext, SkLookupContext, SockAddrContext, SockOpsContext, SockoptContext},
};

use crate::connect::Hook;
use crate::ctx::Family::{V4, V6};

// A function may not have its section's name ("sockops"): the linker refuses the object. Hence the prefix.

#[cgroup_sock_addr(connect4)]
fn shunt_connect4(ctx: SockAddrContext) -> i32 {
    connect::outbound(&ctx, V4, Hook::Connect)
}

#[cgroup_sock_addr(connect6)]
fn shunt_connect6(ctx: SockAddrContext) -> i32 {
    connect::outbound(&ctx, V6, Hook::Connect)
}

#[cgroup_sock_addr(sendmsg4)]
fn shunt_sendmsg4(ctx: SockAddrContext) -> i32 {
    connect::outbound(&ctx, V4, Hook::Send)
}

#[cgroup_sock_addr(sendmsg6)]
fn shunt_sendmsg6(ctx: SockAddrContext) -> i32 {
    connect::outbound(&ctx, V6, Hook::Send)
}

#[cgroup_sock_addr(getpeername4)]
fn shunt_peer4(ctx: SockAddrContext) -> i32 {
    connect::restore_peer(&ctx, V4)
}

#[cgroup_sock_addr(getpeername6)]
fn shunt_peer6(ctx: SockAddrContext) -> i32 {
    connect::restore_peer(&ctx, V6)
}

#[cgroup_sock_addr(recvmsg4)]
fn shunt_recvmsg4(ctx: SockAddrContext) -> i32 {
    connect::restore_peer(&ctx, V4)
}

#[cgroup_sock_addr(recvmsg6)]
fn shunt_recvmsg6(ctx: SockAddrContext) -> i32 {
    connect::restore_peer(&ctx, V6)
}

#[cgroup_sock_addr(bind4)]
fn shunt_bind4(ctx: SockAddrContext) -> i32 {
    connect::bind(&ctx)
}

#[cgroup_sock_addr(bind6)]
fn shunt_bind6(ctx: SockAddrContext) -> i32 {
    connect::bind(&ctx)
}

#[sock_ops]
fn shunt_sockops(ctx: SockOpsContext) -> u32 {
    sockops::event(&ctx)
}

#[cgroup_sockopt(getsockopt)]
fn shunt_getsockopt(ctx: SockoptContext) -> i32 {
    sockopt::original_dst(&ctx)
}

#[sk_lookup]
fn shunt_lookup(ctx: SkLookupContext) -> u32 {
    lookup::inbound(&ctx)
}

#[cgroup_skb(egress)]
fn shunt_hold(ctx: SkBuffContext) -> i32 {
    hold::egress(&ctx)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

// sk_storage and other helpers are for GPL-compatible programs only.
#[cfg_attr(target_arch = "bpf", unsafe(link_section = "license"))]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
