//! The enrolment file, followed: each change of its content replaces what it asked for before.

use std::path::Path;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use proxy_config::enrol::Document;

use crate::control::Control;
use crate::workload::Origin;

/// A writer that is not atomic sends several events: wait for it to finish.
const SETTLE: Duration = Duration::from_millis(30);

/// Applies the file and follows it from a thread of its own. A file that is not there is an empty one. One that
/// cannot be read at the start is an error; later, the last good one stays in force and the problem is logged.
pub(crate) fn follow(path: &Path, defaults: &str, control: &Control) -> anyhow::Result<()> {
    let path = std::path::absolute(path)?;
    let Some(dir) = path.parent().map(Path::to_owned) else {
        anyhow::bail!("{}: not a file", path.display())
    };
    // The directory, not the file: an atomic rename makes a new file, a ConfigMap swaps a link beside it.
    let mut inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
    inotify.watches().add(&dir, mask).map_err(|e| anyhow::anyhow!("{}: {e}", dir.display()))?;
    let mut last = read(&path)?;
    apply(&last, defaults, control).map_err(|e| anyhow::anyhow!("{}:\n{e}", path.display()))?;
    let (control, defaults) = (control.clone(), defaults.to_owned());
    std::thread::Builder::new().name("enrolment".to_owned()).spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            if let Err(e) = inotify.read_events_blocking(&mut buffer) {
                log::error!("{}: cannot be watched any more: {e}", path.display());
                return;
            }
            std::thread::sleep(SETTLE);
            reload(&path, &mut last, &defaults, &control);
        }
    })?;
    Ok(())
}

fn reload(path: &Path, last: &mut String, defaults: &str, control: &Control) {
    let text = match read(path) {
        Ok(text) => text,
        Err(e) => return log::error!("{e}; the last good one stays in force"),
    };
    if text == *last {
        return;
    }
    match apply(&text, defaults, control) {
        Ok(()) => log::info!("{}: applied", path.display()),
        Err(e) => log::error!("{}: refused, the last good one stays in force:\n{e}", path.display()),
    }
    *last = text;
}

fn read(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(anyhow::anyhow!("{}: {e}", path.display())),
    }
}

fn apply(text: &str, defaults: &str, control: &Control) -> Result<(), String> {
    let document =
        if text.trim().is_empty() { Ok(Document::default()) } else { Document::parse_with(text, defaults) };
    match document {
        Ok(document) => {
            control.replace(Origin::File, document.workloads);
            Ok(())
        }
        Err(problems) => Err(problems.iter().map(|p| format!("  {p}\n")).collect()),
    }
}
