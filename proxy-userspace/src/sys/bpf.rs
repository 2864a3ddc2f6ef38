//! bpf(2), for what aya does not offer: pinning and updating any link, and maps by pin without their object.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

/// `enum bpf_cmd`
#[derive(Clone, Copy)]
#[repr(i32)]
enum Cmd {
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ObjPin = 6,
    ObjGet = 7,
    LinkCreate = 28,
    LinkUpdate = 29,
}

/// `union bpf_attr` as words: every field used here is a u32 or a u64 at a fixed place.
type Attr = [u64; 16];

fn bpf(cmd: Cmd, attr: &mut Attr) -> io::Result<i64> {
    // SAFETY: `attr` is writable for the size that is passed; the kernel reads the pointers in it, which the
    // callers below take from live borrows.
    let r = unsafe { libc::syscall(libc::SYS_bpf, cmd as i32, attr.as_mut_ptr(), size_of::<Attr>()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

fn fd_word(fd: BorrowedFd<'_>) -> u64 {
    fd.as_raw_fd() as u32 as u64
}

fn path_word(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Opens a pinned map, program or link.
pub(crate) fn get(path: &Path) -> io::Result<OwnedFd> {
    let c = path_word(path)?;
    let mut attr = Attr::default();
    attr[0] = c.as_ptr() as u64;
    bpf(Cmd::ObjGet, &mut attr).map(owned)
}

/// Pins a map, program or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let c = path_word(path)?;
    let mut attr = Attr::default();
    attr[0] = c.as_ptr() as u64;
    attr[1] = fd_word(fd);
    bpf(Cmd::ObjPin, &mut attr).map(drop)
}

/// Attaches a program to a cgroup or to a network namespace.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr[0] = fd_word(program) | fd_word(target) << 32;
    attr[1] = u64::from(attach_type);
    bpf(Cmd::LinkCreate, &mut attr).map(owned)
}

/// Replaces a link's program; no connection sees a moment without one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::default();
    attr[0] = fd_word(link) | fd_word(program) << 32;
    bpf(Cmd::LinkUpdate, &mut attr).map(drop)
}

/// A map by its descriptor, with the key and value types of the kernel ABI.
pub(crate) struct Table<K, V> {
    fd: OwnedFd,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens a pinned map.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: get(path)?, types: std::marker::PhantomData })
    }

    fn attr(&self, key: *const K) -> Attr {
        let mut attr = Attr::default();
        attr[0] = fd_word(self.fd.as_fd());
        attr[1] = key as u64;
        attr
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.attr(key);
        attr[2] = std::ptr::from_ref(value) as u64;
        bpf(Cmd::MapUpdate, &mut attr).map(drop)
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        let mut attr = self.attr(key);
        attr[2] = value.as_mut_ptr() as u64;
        match bpf(Cmd::MapLookup, &mut attr) {
            // SAFETY: `V: Pod`: every bit pattern is a value, and the kernel has written it.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Removes a key; one that is not there is no error.
    pub(crate) fn remove(&self, key: &K) -> io::Result<()> {
        match bpf(Cmd::MapDelete, &mut self.attr(key)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Every key. A key that is removed meanwhile can make the walk start again; duplicates are dropped.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>>
    where
        K: PartialEq,
    {
        let mut out: Vec<K> = Vec::new();
        let mut last: Option<K> = None;
        loop {
            let mut next = MaybeUninit::<K>::zeroed();
            let mut attr = self.attr(last.as_ref().map_or(std::ptr::null(), std::ptr::from_ref));
            attr[2] = next.as_mut_ptr() as u64;
            match bpf(Cmd::MapNextKey, &mut attr) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
                Err(e) => return Err(e),
            }
            // SAFETY: `K: Pod`, and the kernel has written it.
            let next = unsafe { next.assume_init() };
            if last == Some(next) || out.first() == Some(&next) {
                return Ok(out);
            }
            out.push(next);
            last = Some(next);
        }
    }

    /// Every entry that was there both when its key and when its value was read.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>>
    where
        K: PartialEq,
    {
        let mut out = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                out.push((key, value));
            }
        }
        Ok(out)
    }
}

/// Sums a per-CPU array of u64.
pub(crate) struct PerCpuCounters {
    fd: OwnedFd,
    cpus: usize,
}

impl PerCpuCounters {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
        Ok(Self { fd: get(path)?, cpus })
    }

    pub(crate) fn sum(&self, index: u32) -> io::Result<u64> {
        let mut values = vec![0u64; self.cpus];
        let mut attr = Attr::default();
        attr[0] = fd_word(self.fd.as_fd());
        attr[1] = std::ptr::from_ref(&index) as u64;
        attr[2] = values.as_mut_ptr() as u64;
        bpf(Cmd::MapLookup, &mut attr)?;
        Ok(values.iter().sum())
    }
}
