//! One line per step: a spinner with the last line of output on a terminal, plain lines anywhere else.

use std::fs::{self, File};
use std::io::{IsTerminal as _, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::workspace::display;

const TICK: Duration = Duration::from_millis(100);
/// A CI log without a word for longer than this looks hung.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// How much of a failed command's output is shown; the log file has all of it.
const TAIL_LINES: usize = 20;

pub(crate) struct Step {
    label: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    pub(crate) fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} ({elapsed}) {wide_msg:.dim}");
            let bar = ProgressBar::new_spinner().with_prefix(label.clone());
            style.map_or(bar.clone(), |style| bar.with_style(style))
        });
        if bar.is_none() {
            eprintln!("{label} …");
        }
        Self { label, started: Instant::now(), bar }
    }

    pub(crate) fn done(self) {
        let line = format!("{}: done in {:.1} s", self.label, self.started.elapsed().as_secs_f64());
        self.end(&line);
    }

    /// Runs a command with its output in a log file, whose end is the message when the command fails.
    pub(crate) fn run(self, command: &mut Command, log: &Path) -> Result<()> {
        let line = display(command);
        match self.watch(command, log) {
            Ok(true) => {
                self.done();
                Ok(())
            }
            Ok(false) => {
                let label = self.label.clone();
                self.end(&format!("{label}: failed"));
                bail!("`{line}` failed; the end of {}:\n{}", log.display(), tail(log))
            }
            Err(error) => Err(error).with_context(|| format!("cannot run `{line}`")),
        }
    }

    fn watch(&self, command: &mut Command, log: &Path) -> Result<bool> {
        if let Some(dir) = log.parent() {
            fs::create_dir_all(dir)?;
        }
        let out = File::create(log)?;
        let mut child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
        let mut spoken = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            sleep(TICK);
            if let Some(bar) = &self.bar {
                bar.set_message(last_line(log).unwrap_or_default());
                bar.tick();
            } else if spoken.elapsed() > HEARTBEAT {
                spoken = Instant::now();
                eprintln!("{} … {} s", self.label, self.started.elapsed().as_secs());
            }
        }
    }

    fn end(self, line: &str) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{line}");
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(256))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    String::from_utf8_lossy(&bytes)
        .split(['\n', '\r'])
        .map(str::trim)
        .rfind(|l| !l.is_empty())
        .map(str::to_owned)
}
