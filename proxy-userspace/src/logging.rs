//! The daemon's own log: one line each on standard error.

use std::io::Write as _;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::clock;

struct Stderr;

impl Log for Stderr {
    /// aya tells every relocation at debug level: only for those who ask for everything.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        log::max_level() == LevelFilter::Trace
            || metadata.level() <= Level::Info
            || !metadata.target().starts_with("aya")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let time = clock::rfc3339(clock::wall());
        // A log that cannot be written must not end the daemon.
        let _ = writeln!(
            std::io::stderr(),
            "[{time}] {} {}",
            record.level().as_str().to_lowercase(),
            record.args()
        );
    }

    fn flush(&self) {}
}

/// Sends everything at `level` and above to standard error. A second call changes only the level.
pub fn start(level: LevelFilter) {
    // Fails only where a logger is set already: ours.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
