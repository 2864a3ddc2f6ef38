//! Programs in a place: a network namespace, a cgroup, a user. Output goes to files in the lab, so that a failing
//! test can show it; what still runs is killed on drop.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setuid};
use serde_json::Value;

/// How long a program may take that nothing else limits.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a program runs; absent parts are the test's own.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub netns: Option<PathBuf>,
    pub cgroup: Option<PathBuf>,
    pub user: Option<(u32, u32)>,
}

impl Place {
    /// The same place as another user, of an equal group.
    pub fn user(&self, uid: u32) -> Self {
        Self { user: Some((uid, uid)), ..self.clone() }
    }

    pub fn user_group(&self, uid: u32, gid: u32) -> Self {
        Self { user: Some((uid, gid)), ..self.clone() }
    }

    /// The same network in another cgroup.
    pub fn in_cgroup(&self, cgroup: &Path) -> Self {
        Self { cgroup: Some(cgroup.to_owned()), ..self.clone() }
    }
}

/// A program about to run.
pub struct Spawn {
    command: Command,
    place: Place,
    log: PathBuf,
    stdin: Stdio,
    limit: Duration,
    gentle: bool,
}

impl Spawn {
    pub(crate) fn new(program: &Path, place: &Place, log: PathBuf) -> Self {
        let mut command = Command::new(program);
        command.current_dir("/");
        Self { command, place: place.clone(), log, stdin: Stdio::null(), limit: LIMIT, gentle: trained() }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Keeps stdin open for [`Process::send`].
    pub fn with_stdin(mut self) -> Self {
        self.stdin = Stdio::piped();
        self
    }

    /// On drop it is asked to end before it is killed: it has things to undo.
    pub fn gentle(mut self) -> Self {
        self.gentle = true;
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn spawn(mut self) -> Result<Process> {
        let (out, err) = (self.log.with_extension("out"), self.log.with_extension("err"));
        let create =
            |path: &Path| File::create(path).with_context(|| format!("cannot create {}", path.display()));
        self.command.stdin(self.stdin).stdout(create(&out)?).stderr(create(&err)?);
        enter(&mut self.command, &self.place)?;
        let name = self.command.get_program().to_string_lossy().into_owned();
        let mut child =
            self.command.spawn().with_context(|| format!("cannot run {name} in {:?}", self.place))?;
        let stdin = child.stdin.take();
        Ok(Process { name, child, stdin, out, err, limit: self.limit, gentle: self.gentle })
    }

    /// Runs it to its end, whatever its status.
    pub fn output(self) -> Result<Output> {
        self.spawn()?.finish()
    }

    /// Runs it to its end, which must be a good one.
    pub fn run(self) -> Result<Output> {
        let out = self.output()?;
        if !out.status.success() {
            bail!("{} {}: {}{}", out.name, out.status, out.stdout, out.stderr);
        }
        Ok(out)
    }

    /// Runs it to its end and reads the last line of its output as JSON, also after a bad end.
    pub fn json(self) -> Result<Value> {
        self.output()?.json()
    }
}

/// A finished program.
#[derive(Debug)]
pub struct Output {
    pub name: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn json(&self) -> Result<Value> {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| {
            format!("{} ({}) printed no JSON: {:?} {}", self.name, self.status, self.stdout, self.stderr)
        })
    }

    /// The status as a shell shows it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    out: PathBuf,
    err: PathBuf,
    limit: Duration,
    gentle: bool,
}

impl Process {
    pub fn pid(&self) -> i32 {
        // A pid fits: the kernel's own limit is 2^22.
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// The lines of JSON printed so far; an unfinished last one is left out.
    pub fn events(&self) -> Vec<Value> {
        let text = self.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first event from number `from` on that has a value.
    pub fn wait_event<T>(
        &mut self,
        what: &str,
        from: usize,
        limit: Duration,
        find: impl Fn(&Value) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let exited = self.exited()?;
            if let Some(found) = self.events().iter().skip(from).find_map(&find) {
                return Ok(found);
            }
            if let Some(status) = exited {
                bail!("{} ended ({status}) before {what}: {}", self.name, self.stderr());
            }
            if start.elapsed() > limit {
                bail!("no {what} from {} within {limit:?}: {:?} {}", self.name, self.events(), self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes a line to a program spawned [`Spawn::with_stdin`].
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the program was spawned without stdin")?;
        // At once: half a line may be all that it wants.
        let line = format!("{line}\n");
        stdin.write_all(line.as_bytes()).with_context(|| format!("{} does not read", self.name))
    }

    /// Writes a line and waits for the next line of JSON.
    pub fn ask(&mut self, line: &str) -> Result<Value> {
        let seen = self.events().len();
        self.send(line)?;
        self.wait_event(&format!("answer to {line:?}"), seen, Duration::from_secs(30), |event| {
            Some(event.clone())
        })
    }

    /// Ends the input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.name))
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} still runs after {limit:?}: {}{}", self.name, self.stdout(), self.stderr());
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Waits for the end and takes the output.
    pub fn finish(mut self) -> Result<Output> {
        self.close_stdin();
        let status = self.wait(self.limit)?;
        Ok(Output { name: self.name.clone(), status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Resident memory now, in bytes.
    pub fn rss(&self) -> Result<u64> {
        let text =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).context("the process is gone")?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 =
            line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS: {line}"))?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.gentle && matches!(self.exited(), Ok(None)) && self.signal(Signal::SIGTERM).is_ok() {
            let _ = self.wait(Duration::from_secs(5));
        }
        // Both fail only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is being trained (`cargo xtask release`) writes its profile when it ends by itself.
fn trained() -> bool {
    std::env::var_os("LLVM_PROFILE_FILE").is_some()
}

/// Makes the child enter its place between fork and exec.
fn enter(command: &mut Command, place: &Place) -> Result<()> {
    let open = |path: &Path, write: bool| {
        let file = OpenOptions::new().read(!write).write(write).open(path);
        file.with_context(|| format!("cannot open {}", path.display()))
    };
    let mut procs = place.cgroup.as_ref().map(|dir| open(&dir.join("cgroup.procs"), true)).transpose()?;
    let netns = place.netns.as_ref().map(|path| open(path, false)).transpose()?;
    let user = place.user;
    let hook = move || {
        if let Some(procs) = &mut procs {
            procs.write_all(b"0")?;
        }
        if let Some(netns) = &netns {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some((uid, gid)) = user {
            setgroups(&[])?;
            setgid(Gid::from_raw(gid))?;
            setuid(Uid::from_raw(uid))?;
        }
        // After the change of user, which clears it.
        Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
    };
    // SAFETY: the hook makes plain system calls on files that are open already; it neither allocates nor locks.
    unsafe { command.pre_exec(hook) };
    Ok(())
}

/// The end of a file, for a report.
pub(crate) fn tail(path: &Path, bytes: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(bytes))).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}
