//! Context fields, read and written one word at a time.
//!
//! LLVM merges neighbouring loads through a moved context pointer, which the verifier refuses ("dereference of
//! modified ctx ptr"), even where they are volatile. An instruction with a constant displacement cannot be
//! merged.

use proxy_common::{Ip, from_words, to_words};

/// Which half of a context is meaningful.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Loads the word at `OFFSET`.
///
/// # Safety
/// `p` is a pointer that the verifier lets this program read at `OFFSET`.
#[inline(always)]
pub(crate) unsafe fn load<const OFFSET: usize, T>(p: *const T) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let r: u64;
        // SAFETY: the caller's.
        unsafe {
            core::arch::asm!("{0} = *(u32 *)({1} + {2})", out(reg) r, in(reg) p, const OFFSET,
                options(nostack, readonly, preserves_flags));
        }
        r as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's.
    unsafe {
        p.cast::<u32>().byte_add(OFFSET).read_volatile()
    }
}

/// Loads the context field `$field` of `$p`, a pointer to a `$type`.
macro_rules! field {
    ($p:expr, $type:ty, $field:ident) => {
        $crate::ctx::load::<{ core::mem::offset_of!($type, $field) }, $type>($p)
    };
    ($p:expr, $type:ty, $field:ident + $more:literal) => {
        $crate::ctx::load::<{ core::mem::offset_of!($type, $field) + $more }, $type>($p)
    };
}
pub(crate) use field;

/// Loads the four words of an IPv6 address.
macro_rules! field_ip6 {
    ($p:expr, $type:ty, $field:ident) => {
        proxy_common::from_words([
            $crate::ctx::field!($p, $type, $field),
            $crate::ctx::field!($p, $type, $field + 4),
            $crate::ctx::field!($p, $type, $field + 8),
            $crate::ctx::field!($p, $type, $field + 12),
        ])
    };
}
pub(crate) use field_ip6;

/// Stores the four words of an address.
///
/// # Safety
/// `p` is a context field of 16 bytes that this program may write.
#[inline(always)]
pub(crate) unsafe fn store_ip6(p: *mut u32, ip: Ip) {
    let w = to_words(ip);
    // SAFETY: the caller's.
    unsafe {
        p.write_volatile(w[0]);
        p.add(1).write_volatile(w[1]);
        p.add(2).write_volatile(w[2]);
        p.add(3).write_volatile(w[3]);
    }
}

/// ::1
pub(crate) fn loopback6() -> Ip {
    from_words([0, 0, 0, 1u32.to_be()])
}
