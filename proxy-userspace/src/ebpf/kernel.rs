//! Loads the object, adopts what is pinned already, and attaches workloads.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use proxy_common::{
    CGROUP_PROGRAMS, CgroupProgram, LOOKUP_ATTACH_TYPE, LOOKUP_PROGRAM, NETNS_COOKIE, Scope, map,
};
use sha2::{Digest as _, Sha256};

use super::pins::{make_dir, remove_tree};
use super::{Error, Maps, Pins, probe};
use crate::sys::bpf;
use crate::sys::netns::Netns;

/// The committed object, aligned as aya needs it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/shunt.bpf.o");

/// aya-log's switch in the object: the most verbose level that is sent.
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
const LOG_MAP: &str = "AYA_LOGS";
const LOG_OFF: u8 = 0;
const LOG_DEBUG: u8 = 4;

/// What is attached for one workload.
pub struct Target<'a> {
    /// The name of the directory of its pins.
    pub name: &'a str,
    pub cgroup: &'a Path,
    pub netns: &'a Netns,
    /// Steer what arrives: never in the host's own namespace.
    pub inbound: bool,
    /// Delay connects while no proxy listens.
    pub hold: bool,
    /// The cgroup of a stock proxy that is not below `cgroup`.
    pub proxy: Option<&'a Path>,
    /// Whether pins of this name are known to be links to this cgroup and namespace. If not, each is replaced
    /// by a new link, which is there before the old one goes.
    pub adopt: bool,
}

/// The loaded kernel half.
pub struct Kernel {
    pins: Pins,
    pub maps: Maps,
    object: String,
    debug: bool,
    /// The namespaces whose inbound program is this build's.
    lookups: RefCell<HashSet<u64>>,
    /// Kept only to drain its log ring.
    loaded: Option<Ebpf>,
}

impl Kernel {
    /// Opens the pin directory; loads and pins what is not there. Programs of another build are replaced
    /// under every pinned link, one atomic update each, so that no connect fails during an upgrade.
    pub fn open(pins: Pins, debug: bool) -> Result<Self, Error> {
        let object = object_name(debug);
        let dir = pins.programs(&object);
        let loaded = if CGROUP_PROGRAMS.iter().all(|p| dir.join(p.name).exists()) && !debug {
            None
        } else {
            Some(load_all(&pins, &dir, debug)?)
        };
        let maps = Maps::open(&pins)?;
        let kernel = Self { pins, maps, object, debug, lookups: RefCell::default(), loaded };
        kernel.replace_programs()?;
        kernel.pins.drop_other_programs(&kernel.object);
        Ok(kernel)
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The object with the log ring, once, if debug logs are on.
    pub fn take_log_source(&mut self) -> Option<Ebpf> {
        self.loaded.take().filter(|_| self.debug)
    }

    /// Attaches the hooks of a workload, those that only observe first and `connect` last. Nothing is captured
    /// before the namespace has an entry in the maps.
    pub fn attach(&self, target: &Target<'_>) -> Result<(), Error> {
        let dir = self.pins.links(target.name);
        make_dir(&dir)?;
        let cgroup =
            File::open(target.cgroup).map_err(Error::path(target.cgroup, "cannot open the cgroup"))?;
        for program in CGROUP_PROGRAMS.iter().rev() {
            let pin = dir.join(program.name);
            if program.scope == Scope::Hold && !target.hold {
                let _ = std::fs::remove_file(&pin);
                continue;
            }
            self.link(program, cgroup.as_fd(), target.cgroup, &pin, target.adopt)?;
        }
        if let Some(proxy) = target.proxy {
            self.attach_stock_proxy(proxy, &dir, target.adopt)?;
        }
        let pin = dir.join(LOOKUP_PROGRAM);
        if target.inbound {
            self.link_lookup(target.netns, &pin, target.adopt)
        } else {
            let _ = std::fs::remove_file(&pin);
            Ok(())
        }
    }

    /// What a stock proxy needs in a cgroup of its own: its accepted sockets get their destination, and its
    /// listeners register themselves.
    fn attach_stock_proxy(&self, cgroup: &Path, dir: &Path, adopt: bool) -> Result<(), Error> {
        let fd = File::open(cgroup).map_err(Error::path(cgroup, "cannot open the proxy's cgroup"))?;
        for program in CGROUP_PROGRAMS.iter().filter(|p| p.scope == Scope::Both || p.name.contains("bind")) {
            self.link(program, fd.as_fd(), cgroup, &dir.join(format!("proxy_{}", program.name)), adopt)?;
        }
        Ok(())
    }

    /// Attaches to the proxy's cgroup what must run for its accepted sockets.
    pub fn attach_proxy(&self, cgroup: &Path) -> Result<(), Error> {
        let dir = self.pins.proxy_links();
        // A new process has a new cgroup: the old links are of no use to it.
        if dir.exists() {
            remove_tree(&dir);
        }
        make_dir(&dir)?;
        let fd = File::open(cgroup).map_err(Error::path(cgroup, "cannot open the proxy's cgroup"))?;
        for program in CGROUP_PROGRAMS.iter().filter(|p| p.scope == Scope::Both) {
            self.link(program, fd.as_fd(), cgroup, &dir.join(program.name), false)?;
        }
        Ok(())
    }

    /// Lets go of the proxy's cgroup.
    pub fn detach_proxy(&self) {
        remove_tree(&self.pins.proxy_links());
    }

    /// As [`detach`], and its inbound program is no longer known.
    pub fn detach(&self, name: &str, netns: Option<u64>) -> Result<(), Error> {
        if let Some(netns) = netns {
            self.lookups.borrow_mut().remove(&netns);
        }
        detach(&self.pins, &self.maps, name, netns)
    }

    fn program(&self, name: &str) -> Result<OwnedFd, Error> {
        let path = self.pins.programs(&self.object).join(name);
        bpf::get(&path).map_err(Error::path(&path, "cannot open the pinned program"))
    }

    fn link(
        &self,
        program: &CgroupProgram,
        cgroup: BorrowedFd<'_>,
        path: &Path,
        pin: &Path,
        adopt: bool,
    ) -> Result<(), Error> {
        if adopt && pin.exists() {
            return Ok(());
        }
        let fd = self.program(program.name)?;
        let link = bpf::link_create(fd.as_fd(), cgroup, program.attach_type)
            .map_err(|source| attach_error(program.name, path, source))?;
        put_pin(link.as_fd(), pin)
    }

    /// A link that an earlier process left gets this build's program, once.
    fn link_lookup(&self, netns: &Netns, pin: &Path, adopt: bool) -> Result<(), Error> {
        let fresh = self.lookups.borrow_mut().insert(netns.cookie());
        if adopt && pin.exists() {
            let program = || self.load_lookup(netns.cookie());
            return if fresh { replace(pin, program) } else { Ok(()) };
        }
        let fd = self.load_lookup(netns.cookie())?;
        let link = bpf::link_create(fd.as_fd(), netns.as_fd(), LOOKUP_ATTACH_TYPE)
            .map_err(|source| attach_error(LOOKUP_PROGRAM, netns.path(), source))?;
        put_pin(link.as_fd(), pin)
    }

    /// A copy of the inbound program that knows its namespace.
    fn load_lookup(&self, cookie: u64) -> Result<OwnedFd, Error> {
        let mut loader = loader(&self.pins, self.debug);
        loader.override_global(NETNS_COOKIE, &cookie, true);
        let mut object = loader.load(OBJECT).map_err(|e| Error::Object(Box::new(e)))?;
        load_program(&mut object, LOOKUP_PROGRAM)
    }

    /// Puts this build's programs under the links that an earlier process left.
    fn replace_programs(&self) -> Result<(), Error> {
        for workload in self.pins.workloads() {
            let dir = self.pins.links(&workload);
            for program in CGROUP_PROGRAMS {
                for pin in [program.name.to_owned(), format!("proxy_{}", program.name)] {
                    replace(&dir.join(pin), || self.program(program.name))?;
                }
            }
        }
        Ok(())
    }
}

/// Takes a workload out: the entry first, so that capture ends at once and as a whole, then the hooks.
/// Established connections are not touched.
pub fn detach(pins: &Pins, maps: &Maps, name: &str, netns: Option<u64>) -> Result<(), Error> {
    if let Some(netns) = netns {
        maps.remove_pod(netns)?;
    }
    let dir = pins.links(name);
    if dir.exists() {
        remove_tree(&dir);
    }
    maps.drop_unused_policies()
}

/// Pins a link, in the place of another one if there is one.
fn put_pin(link: BorrowedFd<'_>, pin: &Path) -> Result<(), Error> {
    match std::fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => bpf::pin(link, pin),
    }
    .map_err(Error::path(pin, "cannot pin the link"))
}

fn replace(pin: &Path, program: impl FnOnce() -> Result<OwnedFd, Error>) -> Result<(), Error> {
    if !pin.exists() {
        return Ok(());
    }
    let link = bpf::get(pin).map_err(Error::path(pin, "cannot open the pinned link"))?;
    match bpf::link_update(link.as_fd(), program()?.as_fd()) {
        // Its cgroup or namespace is gone: the link is an empty shell, and its workload will be purged.
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(()),
        r => r.map_err(Error::path(pin, "cannot replace the program")),
    }
}

/// Names the programs of this build, so that a pin of another build is not taken for one of ours.
fn object_name(debug: bool) -> String {
    let hash = Sha256::digest(OBJECT);
    let hex: String = hash.iter().take(6).map(|b| format!("{b:02x}")).collect();
    if debug { format!("{hex}-debug") } else { hex }
}

fn loader(pins: &Pins, debug: bool) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated against the kernel's types, and parsing them takes longer than all
    // the rest.
    loader.btf(None);
    let level: &'static u8 = if debug { &LOG_DEBUG } else { &LOG_OFF };
    loader.override_global(LOG_LEVEL, level, true);
    for name in map::ALL {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.map_pin_path(LOG_MAP, pins.map(LOG_MAP));
    loader
}

fn load_all(pins: &Pins, dir: &Path, debug: bool) -> Result<Ebpf, Error> {
    let mut object = loader(pins, debug).load(OBJECT).map_err(|e| Error::Object(Box::new(e)))?;
    make_dir(dir)?;
    for program in CGROUP_PROGRAMS {
        let pin = dir.join(program.name);
        if pin.exists() {
            continue;
        }
        let fd = load_program(&mut object, program.name)?;
        bpf::pin(fd.as_fd(), &pin).map_err(Error::path(&pin, "cannot pin the program"))?;
    }
    Ok(object)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "aya knows thirty kinds of programs, the object has five")]
fn load_program(object: &mut Ebpf, name: &str) -> Result<OwnedFd, Error> {
    let missing = || Error::Missing {
        what: format!("program {name}"),
        why: "the embedded object does not have it".to_owned(),
        fix: "Rebuild the object with `cargo xtask ebpf`",
    };
    let program = object.program_mut(name).ok_or_else(missing)?;
    // A missing feature has a name; anything else is the verifier's to explain.
    let refused = |source| {
        probe::missing_feature()
            .unwrap_or_else(|| Error::Program { name: name.to_owned(), source: Box::new(source) })
    };
    match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::CgroupSockopt(p) => p.load(),
        Program::CgroupSkb(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        _ => return Err(missing()),
    }
    .map_err(refused)?;
    let fd = program.fd().map_err(refused)?;
    fd.as_fd().try_clone_to_owned().map_err(Error::path(&PathBuf::from(name), "cannot duplicate"))
}

fn attach_error(program: &'static str, path: &Path, source: io::Error) -> Error {
    let hint = match source.raw_os_error() {
        // EPERM: a program without flags on an ancestor forbids any below it.
        Some(libc::EPERM) => {
            ": an ancestor cgroup carries a program of the same kind attached without BPF_F_ALLOW_MULTI \
             (see `bpftool cgroup tree`)"
        }
        Some(libc::E2BIG) => ": the cgroup has its 64 programs already (see `bpftool cgroup show`)",
        _ => "",
    };
    Error::Attach { program, path: path.to_owned(), source, hint }
}
