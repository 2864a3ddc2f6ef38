//! What a scalar means: plain ones as yaml-cpp reads them for Envoy, which is YAML 1.1 with C's integers, and the
//! strings that stand for durations, times and bytes.

use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// A scalar without quotes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Plain {
    Null,
    Bool(bool),
    Int(i64),
    /// Anything else, numbers with a fraction among it: what it is depends on what is wanted.
    Text,
}

impl Plain {
    pub(crate) fn of(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Self::Null,
            _ => {}
        }
        if let Some(value) = boolean(text) {
            return Self::Bool(value);
        }
        integer(text).map_or(Self::Text, Self::Int)
    }

    pub(crate) fn describe(self, text: &str) -> String {
        let shown = shorten(text);
        match self {
            Self::Null => "null".into(),
            Self::Bool(_) => format!("the boolean {shown} (quote it to make it a string)"),
            Self::Int(_) => format!("the number {shown} (quote it to make it a string)"),
            Self::Text => format!("{shown:?}"),
        }
    }
}

/// For messages.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// In lower case, upper case or capitalised.
fn boolean(text: &str) -> Option<bool> {
    const NAMES: [(&str, bool); 8] = [
        ("y", true),
        ("yes", true),
        ("true", true),
        ("on", true),
        ("n", false),
        ("no", false),
        ("false", false),
        ("off", false),
    ];
    let tail = text.get(1..)?;
    let cased = tail.bytes().all(|b| b.is_ascii_lowercase()) || text.bytes().all(|b| b.is_ascii_uppercase());
    let (_, value) = NAMES.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(text))?;
    cased.then_some(value)
}

/// A string where a boolean is wanted, as protobuf takes it.
pub(crate) fn quoted_boolean(text: &str) -> Option<bool> {
    let is = |names: [&str; 5]| names.into_iter().any(|name| name.eq_ignore_ascii_case(text));
    if is(["true", "t", "yes", "y", "1"]) {
        return Some(true);
    }
    is(["false", "f", "no", "n", "0"]).then_some(false)
}

/// `0x` is hexadecimal and a leading zero octal, as in C++'s streams.
fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix('0') {
        Some(rest) if rest.starts_with(['x', 'X']) => (16, rest.get(1..)?),
        Some(rest) if !rest.is_empty() => (8, rest),
        Some(_) | None => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, radix).ok()?);
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// An integer as JSON may write it, `1e3` and `5.0` too, or the boundary types' text.
pub(crate) fn whole_number(text: &str) -> Option<i128> {
    if let Ok(number) = text.parse::<i128>() {
        // JSON has no `+`.
        return (!text.starts_with('+')).then_some(number);
    }
    let number = float(text)?;
    // Beyond 2^63 the steps between such numbers are large, and the types end.
    (number.fract() == 0.0 && number.abs() < 1e19).then_some(number as i128)
}

pub(crate) fn float(text: &str) -> Option<f64> {
    match text {
        "NaN" => return Some(f64::NAN),
        "Infinity" => return Some(f64::INFINITY),
        "-Infinity" => return Some(f64::NEG_INFINITY),
        _ => {}
    }
    let json = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E'));
    if !json || text.starts_with('+') {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seconds {
    pub(crate) seconds: i64,
    pub(crate) nanos: i32,
}

/// Protobuf's range, which is ten thousand years.
const MAX_SECONDS: i64 = 315_576_000_000;

/// `0.25s`, with at most nine digits after the point.
pub(crate) fn duration(text: &str) -> Option<Seconds> {
    decimal_seconds(text.strip_suffix('s')?, 1_000_000_000)
}

/// What other tools write and Envoy refuses: `1h`, `5m`, `100ms`.
pub(crate) fn lenient_duration(text: &str) -> Option<Seconds> {
    const UNITS: [(&str, i128); 7] = [
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
    ];
    let (unit, nanos) = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit))?;
    decimal_seconds(text.strip_suffix(unit)?, nanos)
}

impl Seconds {
    /// As JSON has it.
    pub(crate) fn text(self) -> String {
        let sign = if self.seconds < 0 || self.nanos < 0 { "-" } else { "" };
        let (seconds, nanos) = (self.seconds.unsigned_abs(), self.nanos.unsigned_abs());
        match nanos {
            0 => format!("{sign}{seconds}s"),
            n if n % 1_000_000 == 0 => format!("{sign}{seconds}.{:03}s", n / 1_000_000),
            n if n % 1_000 == 0 => format!("{sign}{seconds}.{:06}s", n / 1_000),
            n => format!("{sign}{seconds}.{n:09}s"),
        }
    }
}

/// A decimal number of units of so many nanoseconds.
fn decimal_seconds(text: &str, unit: i128) -> Option<Seconds> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 18 || fraction.len() > 9 || !digits(whole) || !digits(fraction) {
        return None;
    }
    let billionths: i128 = format!("{whole}{fraction:0<9}").parse().ok()?;
    let nanos = sign * billionths * unit / 1_000_000_000;
    let seconds = i64::try_from(nanos / 1_000_000_000).ok().filter(|s| s.abs() <= MAX_SECONDS)?;
    Some(Seconds { seconds, nanos: i32::try_from(nanos % 1_000_000_000).ok()? })
}

/// RFC 3339: `2024-02-29T12:00:00.5+01:00`.
pub(crate) fn timestamp(text: &str) -> Option<Seconds> {
    let (date, time) = text.split_once(['T', 't'])?;
    let (year, month, day) = triple(date, '-', [4, 2, 2])?;
    let offset_at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, offset) = time.split_at_checked(offset_at)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let (hour, minute, second) = triple(clock, ':', [2, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 || year == 0 {
        return None;
    }
    let Seconds { nanos, .. } = decimal_seconds(&format!("0.{fraction}"), 1_000_000_000)?;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Seconds { seconds: seconds - utc_offset(offset)?, nanos })
}

/// As JSON has it, in UTC.
pub(crate) fn timestamp_text(Seconds { seconds, nanos }: Seconds) -> String {
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The inverse of `days_since_1970`, in eras of 400 years.
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    let fraction = Seconds { seconds: 0, nanos }.text();
    let fraction = fraction.trim_start_matches('0').trim_end_matches('s');
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

fn triple(text: &str, separator: char, widths: [usize; 3]) -> Option<(i64, i64, i64)> {
    let mut parts = text.split(separator).zip(widths).map(|(part, width)| {
        let whole = part.len() == width && part.bytes().all(|b| b.is_ascii_digit());
        whole.then(|| part.parse().ok()).flatten()
    });
    let found = (parts.next()??, parts.next()??, parts.next()??);
    (text.split(separator).count() == 3).then_some(found)
}

fn utc_offset(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = if text.starts_with('-') { -1 } else { 1 };
    let (hours, minutes, _) = triple(&format!("{}:00", text.get(1..)?), ':', [2, 2, 2])?;
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
}

/// Of the Gregorian calendar: years begin in March, so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Either alphabet, with padding or without.
pub(crate) fn bytes(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let alphabet = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    GeneralPurpose::new(alphabet, config).decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_read_as_by_yaml_cpp() {
        for (text, expected) in [
            ("", Plain::Null),
            ("~", Plain::Null),
            ("NULL", Plain::Null),
            ("nULL", Plain::Text),
            ("y", Plain::Bool(true)),
            ("Y", Plain::Bool(true)),
            ("n", Plain::Bool(false)),
            ("Yes", Plain::Bool(true)),
            ("YES", Plain::Bool(true)),
            ("yES", Plain::Text),
            ("off", Plain::Bool(false)),
            ("On", Plain::Bool(true)),
            ("FALSE", Plain::Bool(false)),
            ("0", Plain::Int(0)),
            ("-7", Plain::Int(-7)),
            ("+7", Plain::Int(7)),
            ("0x10", Plain::Int(16)),
            ("0Xff", Plain::Int(255)),
            ("-0x10", Plain::Int(-16)),
            ("010", Plain::Int(8)),
            ("09", Plain::Text),
            ("0o10", Plain::Text),
            ("0x", Plain::Text),
            ("0x+1", Plain::Text),
            ("1_000", Plain::Text),
            ("1.0", Plain::Text),
            ("1e3", Plain::Text),
            ("9223372036854775807", Plain::Int(i64::MAX)),
            ("9223372036854775808", Plain::Text),
            ("-9223372036854775808", Plain::Int(i64::MIN)),
            (".inf", Plain::Text),
            ("--1", Plain::Text),
            ("é", Plain::Text),
        ] {
            assert_eq!(Plain::of(text), expected, "{text:?}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [
            ("0s", Some((0, 0))),
            ("0.25s", Some((0, 250_000_000))),
            ("-1.5s", Some((-1, -500_000_000))),
            ("-0.5s", Some((0, -500_000_000))),
            ("0.000000001s", Some((0, 1))),
            ("0.0000000001s", None),
            ("315576000000s", Some((MAX_SECONDS, 0))),
            ("315576000001s", None),
            ("1e3s", None),
            (".5s", None),
            ("5", None),
            ("s", None),
            ("1h", None),
            (" 1s", None),
        ] {
            assert_eq!(duration(text).map(|d| (d.seconds, d.nanos)), expected, "{text}");
        }
        for (text, expected) in [
            ("1h", Some((3600, 0))),
            ("5m", Some((300, 0))),
            ("100ms", Some((0, 100_000_000))),
            ("1.5h", Some((5400, 0))),
            ("2d", Some((172_800, 0))),
            ("7us", Some((0, 7000))),
            ("1h30m", None),
            ("h", None),
        ] {
            assert_eq!(lenient_duration(text).map(|d| (d.seconds, d.nanos)), expected, "{text}");
        }
        assert_eq!(Seconds { seconds: 0, nanos: -500_000_000 }.text(), "-0.500s");
        assert_eq!(Seconds { seconds: 5, nanos: 0 }.text(), "5s");
        assert_eq!(Seconds { seconds: 5, nanos: 1_000 }.text(), "5.000001s");
        assert_eq!(Seconds { seconds: 5, nanos: 1 }.text(), "5.000000001s");
    }

    #[test]
    fn timestamps() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some((0, 0))),
            ("2024-02-29T12:00:00.5+01:00", Some((1_709_204_400, 500_000_000))),
            ("1969-12-31T23:59:59Z", Some((-1, 0))),
            ("2023-02-29T12:00:00Z", None),
            ("2024-13-01T12:00:00Z", None),
            ("2024-01-01T24:00:00Z", None),
            ("2024-01-01T12:00:00", None),
            ("2024-01-01", None),
            ("2024-1-01T12:00:00Z", None),
        ] {
            assert_eq!(timestamp(text).map(|t| (t.seconds, t.nanos)), expected, "{text}");
        }
        for text in [
            "1970-01-01T00:00:00Z",
            "2024-02-29T11:00:00.500Z",
            "1969-12-31T23:59:59Z",
            "9999-12-31T23:59:59Z",
        ] {
            assert_eq!(timestamp_text(timestamp(text).unwrap()), text);
        }
    }

    #[test]
    fn bytes_in_either_alphabet() {
        for text in ["+/8=", "+/8", "-_8=", "-_8"] {
            assert_eq!(bytes(text).unwrap(), [0xfb, 0xff], "{text}");
        }
        assert_eq!(bytes("a b"), None);
        assert_eq!(bytes("+_8="), None);
    }

    #[test]
    fn numbers_that_json_may_write() {
        for (text, expected) in [
            ("5", Some(5)),
            ("-5", Some(-5)),
            ("5.0", Some(5)),
            ("1e3", Some(1000)),
            ("5.5", None),
            ("+5", None),
            ("18446744073709551615", Some(18_446_744_073_709_551_615)),
            ("0x10", None),
            ("", None),
            ("inf", None),
        ] {
            assert_eq!(whole_number(text), expected, "{text}");
        }
        assert_eq!(float("1e400"), None);
        assert_eq!(float("0.5"), Some(0.5));
        assert_eq!(float("nan"), None);
    }
}
