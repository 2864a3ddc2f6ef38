//! Time: the only place that reads a clock.
//!
//! [`now`] and [`lately`] measure, [`wall`] names a moment to people. Nothing else in the daemon asks the system.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

pub use tokio::time::Instant;

/// The monotonic clock, for durations and deadlines.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Instant {
    Instant::now()
}

/// [`now`] as the task that is polled first asked for it: a clock costs, and what each request asks for several times is
/// not worth a reading each. What has begun since and what other threads say may be later. Outside of a task: [`now`].
pub fn lately() -> Instant {
    LATELY.with(|lately| match lately.get() {
        Lately::Outside => now(),
        Lately::Unread => {
            let now = now();
            lately.set(Lately::At(now));
            now
        }
        Lately::At(at) => at,
    })
}

/// Something has taken long: [`lately`] reads the clock again.
pub fn refresh() {
    LATELY.with(|lately| {
        if let Lately::At(_) = lately.get() {
            lately.set(Lately::Unread);
        }
    });
}

/// Polls a task.
pub(crate) fn polling<R>(poll: impl FnOnce() -> R) -> R {
    let before = LATELY.replace(Lately::Unread);
    let result = poll();
    LATELY.set(before);
    result
}

#[derive(Clone, Copy)]
enum Lately {
    Outside,
    Unread,
    At(Instant),
}

thread_local! {
    static LATELY: Cell<Lately> = const { Cell::new(Lately::Outside) };
}

/// The wall clock, for log lines only: it may jump.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// When something began, on both clocks: the wall for display, the monotonic for its duration.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub at: Instant,
    pub wall: SystemTime,
}

impl Start {
    pub fn new() -> Self {
        Self { at: now(), wall: wall() }
    }

    pub fn lately() -> Self {
        Self { at: lately(), wall: wall() }
    }
}

impl Default for Start {
    fn default() -> Self {
        Self::new()
    }
}

/// Envoy's `%START_TIME%`: RFC 3339 in UTC with milliseconds.
pub fn rfc3339(time: SystemTime) -> String {
    // A clock before 1970 is a broken clock; the epoch says so well enough.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Days since 1970-01-01 to year, month, day. Years begin in March here, so that the leap day is the last.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rfc3339_known_moments() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (1_735_689_600_001, "2025-01-01T00:00:00.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(millis)), text);
        }
    }
}
