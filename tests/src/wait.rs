//! Waiting for something to become true, with the reason when it does not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

const STEP: Duration = Duration::from_millis(20);

/// Polls until `probe` has a value.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("no {what} within {limit:?}");
        }
        std::thread::sleep(STEP);
    }
}

/// Polls until `check` succeeds; its last error is the reason of the failure.
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(error.context(format!("{what}: still not so after {limit:?}")));
            }
            Err(_) => std::thread::sleep(STEP),
        }
    }
}
