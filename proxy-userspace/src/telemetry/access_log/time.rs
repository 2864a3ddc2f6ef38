//! `strftime`, with Envoy's additions: `%3f` is milliseconds, `%s` seconds, and absl's `%E…`.

use std::cell::RefCell;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::write;
use crate::clock;
use crate::sys::time::local_offset;

/// A compiled time format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Format {
    format: String,
    local: bool,
}

/// Of UTC, where nothing else is asked for.
const DEFAULT: &str = "%Y-%m-%dT%H:%M:%E3SZ";

thread_local! {
    /// The last second in the default format, up to its point: most lines of a log are of the same one.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Format {
    pub(super) fn new(format: Option<&str>, local: bool) -> Self {
        let default = if local { "%Y-%m-%dT%H:%M:%E3S%z" } else { DEFAULT };
        Self { format: format.filter(|f| !f.is_empty()).unwrap_or(default).to_owned(), local }
    }

    pub(super) fn render(&self, time: SystemTime) -> String {
        let mut out = String::with_capacity(32);
        self.write(time, &mut out);
        out
    }

    /// As [`Self::render`], behind what is there.
    pub(super) fn write(&self, time: SystemTime, out: &mut String) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        if !self.local && self.format == DEFAULT {
            return write_default(since, out);
        }
        let offset = if self.local { local_offset(since.as_secs()) } else { 0 };
        let moment = Moment::new(since, offset);
        let mut rest = self.format.as_str();
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            rest = moment.specifier(out, &rest[at + 1..]);
        }
        out.push_str(rest);
    }
}

fn write_default(since: Duration, out: &mut String) {
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() || text.is_empty() {
            *second = since.as_secs();
            text.clear();
            let moment = Moment::new(since, 0);
            moment.field(text, 'F');
            text.push('T');
            moment.field(text, 'T');
            text.push('.');
        }
        out.push_str(text);
    });
    write::padded(out, since.subsec_millis().into(), 3);
    out.push('Z');
}

/// A moment, broken down.
struct Moment {
    since: Duration,
    offset: i32,
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    weekday: u64,
    yearday: u64,
}

impl Moment {
    fn new(since: Duration, offset: i32) -> Self {
        let seconds = since.as_secs().saturating_add_signed(i64::from(offset));
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = clock::civil(days);
        let (mut yearday, leap) = (day, year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
        for m in 1..month {
            yearday += match m {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
        }
        Self {
            since,
            offset,
            year,
            month,
            day,
            hour: second / 3_600,
            minute: second / 60 % 60,
            second: second % 60,
            weekday: (days + 4) % 7,
            yearday,
        }
    }

    /// Writes what the specifier at the start of `rest` stands for, and returns what is behind it.
    fn specifier<'a>(&self, out: &mut String, rest: &'a str) -> &'a str {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let width = rest[..digits].parse::<usize>().ok();
        let mut chars = rest[digits..].chars();
        let Some(kind) = chars.next() else { return "" };
        let behind = chars.as_str();
        match kind {
            'f' => self.fraction(out, width.unwrap_or(9)),
            's' => push(out, format_args!("{}", self.since.as_secs())),
            'E' => return self.extended(out, behind),
            _ if digits > 0 => push(out, format_args!("%{}{kind}", &rest[..digits])),
            _ => self.field(out, kind),
        }
        behind
    }

    /// absl's: `%E3S`, `%E*S`, `%E3f`, `%E*f`, `%Ez`.
    fn extended<'a>(&self, out: &mut String, rest: &'a str) -> &'a str {
        let (width, behind) = match rest.strip_prefix('*') {
            Some(behind) => (None, behind),
            None => {
                let end = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
                (rest[..end].parse::<usize>().ok(), &rest[end..])
            }
        };
        let mut chars = behind.chars();
        match chars.next() {
            Some('S') if behind.len() < rest.len() => {
                push(out, format_args!("{:02}", self.second));
                let at = out.len();
                out.push('.');
                self.subseconds(out, width);
                if out.len() == at + 1 {
                    out.truncate(at);
                }
            }
            Some('f') if behind.len() < rest.len() => self.subseconds(out, width),
            Some('z') => self.zone(out, ":"),
            Some(kind) => self.field(out, kind),
            None => {}
        }
        chars.as_str()
    }

    fn subseconds(&self, out: &mut String, width: Option<usize>) {
        let before = out.len();
        self.fraction(out, width.unwrap_or(9));
        if width.is_none() {
            let kept = out[before..].trim_end_matches('0').len();
            out.truncate(before + kept);
        }
    }

    fn fraction(&self, out: &mut String, width: usize) {
        let nanos = format!("{:09}", self.since.subsec_nanos());
        out.push_str(&nanos[..width.min(9)]);
    }

    fn zone(&self, out: &mut String, colon: &str) {
        let (sign, offset) = (if self.offset < 0 { '-' } else { '+' }, self.offset.unsigned_abs());
        push(out, format_args!("{sign}{:02}{colon}{:02}", offset / 3_600, offset / 60 % 60));
    }

    fn field(&self, out: &mut String, kind: char) {
        let name =
            |list: &'static [&'static str], at: u64| list.get(at as usize).copied().unwrap_or_default();
        let (day, month) = (name(&DAYS, self.weekday), name(&MONTHS, self.month.saturating_sub(1)));
        let hour12 = (self.hour + 11) % 12 + 1;
        match kind {
            'Y' => push(out, format_args!("{}", self.year)),
            'C' => push(out, format_args!("{:02}", self.year / 100)),
            'y' => push(out, format_args!("{:02}", self.year % 100)),
            'm' => push(out, format_args!("{:02}", self.month)),
            'd' => push(out, format_args!("{:02}", self.day)),
            'e' => push(out, format_args!("{:2}", self.day)),
            'H' => push(out, format_args!("{:02}", self.hour)),
            'I' => push(out, format_args!("{hour12:02}")),
            'M' => push(out, format_args!("{:02}", self.minute)),
            'S' => push(out, format_args!("{:02}", self.second)),
            'p' => out.push_str(if self.hour < 12 { "AM" } else { "PM" }),
            'j' => push(out, format_args!("{:03}", self.yearday)),
            'a' => out.push_str(&day[..3]),
            'A' => out.push_str(day),
            'b' | 'h' => out.push_str(&month[..3]),
            'B' => out.push_str(month),
            'u' => push(out, format_args!("{}", (self.weekday + 6) % 7 + 1)),
            'w' => push(out, format_args!("{}", self.weekday)),
            'F' => push(out, format_args!("{}-{:02}-{:02}", self.year, self.month, self.day)),
            'T' => push(out, format_args!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second)),
            'R' => push(out, format_args!("{:02}:{:02}", self.hour, self.minute)),
            'D' => push(out, format_args!("{:02}/{:02}/{:02}", self.month, self.day, self.year % 100)),
            'z' => self.zone(out, ""),
            'Z' if self.offset == 0 => out.push_str("UTC"),
            'Z' => self.zone(out, ""),
            'n' => out.push('\n'),
            't' => out.push('\t'),
            '%' => out.push('%'),
            other => push(out, format_args!("%{other}")),
        }
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Envoy 1.40 logged for the same moment.
    #[test]
    fn as_envoy() {
        let time = UNIX_EPOCH + Duration::from_nanos(1_795_272_810_497_439_000);
        for (format, want) in [
            (None, "2026-11-21T14:53:30.497Z"),
            (
                Some("%s.%3f %6f %9f %1f %f %Y %% %s %Z"),
                "1795272810.497 497439 497439000 4 497439000 2026 % 1795272810 UTC",
            ),
            (Some("%Y/%m/%dT%H:%M:%S%z"), "2026/11/21T14:53:30+0000"),
            (Some("%s_%es %E3f %E*f"), "1795272810_21s 497 497439"),
            (Some("%3f"), "497"),
            (Some("%9s %3s"), "1795272810 1795272810"),
            (Some("%a %A %b %j %I%p %F %T %E*S"), "Sat Saturday Nov 325 02PM 2026-11-21 14:53:30 30.497439"),
        ] {
            assert_eq!(Format::new(format, false).render(time), want, "{format:?}");
        }
    }

    #[test]
    fn the_local_time_has_an_offset() {
        let moment = Moment::new(Duration::from_secs(1_795_272_810), -16_200);
        let mut out = String::new();
        moment.field(&mut out, 'T');
        moment.field(&mut out, 'z');
        assert_eq!(out, "10:23:30-0430");
    }
}
