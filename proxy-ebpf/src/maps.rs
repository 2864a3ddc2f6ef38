//! The maps, and the kernel's side of the verdict functions' traits.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::{HashMap, LpmTrie, PerCpuArray, SkStorage, SockHash, lpm_trie::Key},
    helpers::generated as helper,
    macros::btf_map,
};
use proxy_common::{
    CIDR_PREFIX, CidrKey, FlowKey, ListenerKey, OrigDst, OwnIpKey, Pod, RuleKey,
    verdict::{Process, Rule, Tables},
};

// Not preallocated: a replaced entry stays readable until every program that holds it has ended.
#[btf_map]
pub(crate) static PODS: HashMap<u64, Pod, 4096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static OWN_IPS: HashMap<OwnIpKey, u32, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static RULES: HashMap<RuleKey, u32, 131072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static CIDRS: LpmTrie<CidrKey, u32, 131072> = LpmTrie::new();
// Preallocated: written and deleted once per connection.
#[btf_map]
pub(crate) static FLOWS: HashMap<FlowKey, OrigDst, 32768> = HashMap::new();
#[btf_map]
pub(crate) static ODST: SkStorage<OrigDst> = SkStorage::new();
#[btf_map]
pub(crate) static LISTENERS: SockHash<ListenerKey, 16384> = SockHash::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, 64> = PerCpuArray::new();

const _: () = assert!(Rule::ALL.len() <= 64);

#[inline(always)]
pub(crate) fn count(rule: Rule) {
    if let Some(n) = COUNTERS.get_ptr_mut(rule as u32) {
        // SAFETY: the element is this CPU's own, and programs are not preempted by themselves.
        unsafe { *n += 1 }
    }
}

#[inline(always)]
pub(crate) fn address<M>(map: &M) -> *mut c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}

/// The original destination kept on a socket, or null.
///
/// # Safety
/// `sk` is a socket pointer that the verifier knows.
#[inline(always)]
pub(crate) unsafe fn odst(sk: *mut bpf_sock) -> *mut OrigDst {
    // SAFETY: the caller's.
    unsafe { helper::bpf_sk_storage_get(address(&ODST), sk.cast(), core::ptr::null_mut(), 0).cast() }
}

/// As [`odst`], made where absent; null only without memory.
///
/// # Safety
/// As for [`odst`].
#[inline(always)]
pub(crate) unsafe fn odst_or_new(sk: *mut bpf_sock) -> *mut OrigDst {
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the caller's.
    unsafe { helper::bpf_sk_storage_get(address(&ODST), sk.cast(), core::ptr::null_mut(), create).cast() }
}

/// The pinned tables.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> bool {
        // SAFETY: only the presence is read.
        unsafe { RULES.get(key) }.is_some()
    }

    #[inline(always)]
    fn cidr(&self, key: &CidrKey) -> Option<u32> {
        let key = Key::new(CIDR_PREFIX + 128, *key);
        CIDRS.get(&key).copied()
    }

    #[inline(always)]
    fn own_ip(&self, key: &OwnIpKey) -> bool {
        // SAFETY: only the presence is read.
        unsafe { OWN_IPS.get(key) }.is_some()
    }

    #[inline(always)]
    fn listener(&self, key: &ListenerKey) -> bool {
        // SAFETY: the map and the key are valid; the reference is released at once.
        unsafe {
            let sk = helper::bpf_map_lookup_elem(address(&LISTENERS), core::ptr::from_ref(key).cast());
            if sk.is_null() {
                return false;
            }
            helper::bpf_sk_release(sk);
        }
        true
    }
}

/// The process that runs the hook.
pub(crate) struct Current;

impl Process for Current {
    #[inline(always)]
    fn cgroup(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { helper::bpf_get_current_cgroup_id() }
    }

    #[inline(always)]
    fn uid(&self) -> u32 {
        // SAFETY: no arguments.
        (unsafe { helper::bpf_get_current_uid_gid() }) as u32
    }

    #[inline(always)]
    fn gid(&self) -> u32 {
        // SAFETY: no arguments.
        (unsafe { helper::bpf_get_current_uid_gid() } >> 32) as u32
    }
}
