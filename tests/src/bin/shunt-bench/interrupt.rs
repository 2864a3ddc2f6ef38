//! Ctrl-C and SIGTERM: the run ends at its next step, and what it made is removed as after any failure.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on these signals do not end the process by themselves.
pub(crate) fn watch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }.context("cannot handle signals")?;
    }
    Ok(())
}

pub(crate) fn came() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// An error once a signal has come.
pub(crate) fn check() -> Result<()> {
    if came() {
        bail!("interrupted");
    }
    Ok(())
}
