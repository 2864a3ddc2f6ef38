//! What is enrolled, on disk: so that a crash loses nothing and purges what is dead.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::Error;
use crate::cgroup;
use crate::sys::netns::Netns;

/// Who answers for a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The daemon, by command line or file: it reads them again at its next start.
    Daemon,
    /// The daemon, by the admin API: only this file knows of it.
    Api,
    /// `shunt attach`: no process of ours.
    Attach,
}

/// One enrolled workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    pub cgroup: PathBuf,
    pub cgroup_id: u64,
    pub netns: PathBuf,
    pub cookie: u64,
    /// As flags.
    pub policy: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_cgroup: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<PathBuf>,
    pub owner: Owner,
}

impl Record {
    /// Whether this is a workload of that cgroup and namespace.
    pub fn is_at(&self, cgroup_id: u64, cookie: u64) -> bool {
        self.cgroup_id == cgroup_id && self.cookie == cookie
    }

    /// Whether the cgroup and the namespace are still the ones that were enrolled.
    pub fn is_alive(&self) -> bool {
        cgroup::id(&self.cgroup).is_ok_and(|id| id == self.cgroup_id)
            && Netns::open(&self.netns).is_ok_and(|ns| ns.cookie() == self.cookie)
    }
}

/// The content of the file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub workloads: Vec<Record>,
}

impl State {
    pub fn get(&self, name: &str) -> Option<&Record> {
        self.workloads.iter().find(|r| r.name == name)
    }

    pub fn put(&mut self, record: Record) {
        self.remove(&record.name);
        self.workloads.push(record);
    }

    pub fn remove(&mut self, name: &str) {
        self.workloads.retain(|r| r.name != name);
    }
}

/// The file, and the lock that every change of the kernel's state is made under.
#[derive(Clone, Debug)]
pub struct StateFile {
    dir: PathBuf,
}

impl StateFile {
    /// Opens the run directory, making it (mode 0700) where absent.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let result = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        result.map_err(|source| Error::State { path: dir.to_owned(), source })?;
        Ok(Self { dir: dir.to_owned() })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self) -> PathBuf {
        self.dir.join("workloads.json")
    }

    fn error(&self, source: io::Error) -> Error {
        Error::State { path: self.path(), source }
    }

    /// Runs `f` on the state alone among all processes, and writes what it leaves.
    pub fn change<T, E: From<Error>>(&self, f: impl FnOnce(&mut State) -> Result<T, E>) -> Result<T, E> {
        let _lock = self.lock()?;
        let mut state = self.read()?;
        let before = serde_json::to_vec(&state).ok();
        let out = f(&mut state);
        // Also after an error: what was done before it is done.
        if serde_json::to_vec(&state).ok() != before {
            self.write(&state)?;
        }
        out
    }

    /// Runs `f` alone among all processes, without the state.
    pub fn alone<T>(&self, f: impl FnOnce() -> T) -> Result<T, Error> {
        let _lock = self.lock()?;
        Ok(f())
    }

    /// Reads the state as it is now.
    pub fn read(&self) -> Result<State, Error> {
        match fs::read(self.path()) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| self.error(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(e) => Err(self.error(e)),
        }
    }

    fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.dir.join("lock");
        let open = || File::options().create(true).write(true).truncate(false).mode(0o600).open(&path);
        let file = open().map_err(|source| Error::State { path: path.clone(), source })?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, e)| Error::State { path: path.clone(), source: e.into() })
    }

    /// By rename, so that a crash leaves the old file or the new one.
    fn write(&self, state: &State) -> Result<(), Error> {
        let new = self.dir.join("workloads.json.new");
        let text = serde_json::to_vec_pretty(state).map_err(|e| self.error(e.into()))?;
        fs::write(&new, text).and_then(|()| fs::rename(&new, self.path())).map_err(|e| self.error(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        Record {
            name: name.to_owned(),
            cgroup: "/c".into(),
            cgroup_id: 1,
            netns: "/n".into(),
            cookie: 2,
            policy: "-o 80".to_owned(),
            proxy_cgroup: None,
            bootstrap: None,
            owner: Owner::Attach,
        }
    }

    #[test]
    fn what_was_put_is_there_for_the_next_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path()).unwrap();
        let put = |s: &mut State| -> Result<(), Error> {
            s.put(record("a"));
            s.put(record("b"));
            s.put(record("a"));
            Ok(())
        };
        file.change(put).unwrap();
        let again = StateFile::open(dir.path()).unwrap().read().unwrap();
        assert_eq!(again.workloads, [record("b"), record("a")]);
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("workloads.json"), "{").unwrap();
        let e = StateFile::open(dir.path()).unwrap().read().unwrap_err();
        assert!(e.to_string().contains("workloads.json"), "{e}");
    }

    #[test]
    fn a_record_whose_cgroup_is_gone_is_dead() {
        assert!(!record("a").is_alive());
    }
}
