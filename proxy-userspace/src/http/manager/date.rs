//! The `date` header.

use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use http::HeaderValue;

use crate::clock::{self, civil};

/// Written once a second.
pub(super) struct Date(ArcSwap<Stamp>);

struct Stamp {
    second: u64,
    value: HeaderValue,
}

impl Default for Date {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(Stamp { second: 0, value: value(0) }))
    }
}

impl Date {
    pub(super) fn now(&self) -> HeaderValue {
        // A clock before 1970 is a broken clock.
        let second = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let stamp = self.0.load();
        if stamp.second == second {
            return stamp.value.clone();
        }
        let value = value(second);
        self.0.store(Stamp { second, value: value.clone() }.into());
        value
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn value(second: u64) -> HeaderValue {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, time) = (second / 86_400, second % 86_400);
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], at: u64| {
        usize::try_from(at).ok().and_then(|at| names.get(at).copied()).unwrap_or_default()
    };
    let (week_day, month) = (name(&DAYS, days % 7), name(&MONTHS, month - 1));
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    let text = format!("{week_day}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (second, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        ] {
            assert_eq!(value(second), text);
        }
        let date = Date::default();
        assert_eq!(date.now().len(), 29);
    }
}
