//! What a flag's text may be: every value is parsed here, once, with the reason where it is none.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::{Cidr, Mode, OutboundTrafficPolicy, Select};

type Parse<T> = Result<T, String>;

/// 1 to 65535.
pub(super) fn port(s: &str) -> Parse<u16> {
    let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    match s.parse() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err("not a port, 1 to 65535".into()),
    }
}

pub(super) fn ports(s: &str) -> Parse<Vec<u16>> {
    list(s, port)
}

/// `true` or `false`, in the spellings that Go's flags take.
pub(super) fn boolean(s: &str) -> Parse<bool> {
    match s {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("neither true nor false".into()),
    }
}

/// Numeric uids.
pub(super) fn uids(s: &str) -> Parse<Vec<u32>> {
    list(s, |s| id(s, "user", "uid"))
}

/// Numeric gids.
pub(super) fn gids(s: &str) -> Parse<Vec<u32>> {
    list(s, |s| id(s, "group", "gid"))
}

fn id(s: &str, what: &str, id: &str) -> Parse<u32> {
    let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    match s.parse() {
        // The largest is what the kernel says for "none".
        Ok(n) if digits && n != u32::MAX => Ok(n),
        _ if digits => Err(format!("not a {id}, 0 to 4294967294")),
        _ => Err(format!(
            "use the numeric {id}: the workload's {what} file, which knows names, is not at hand"
        )),
    }
}

pub(super) fn cidrs(s: &str) -> Parse<Vec<Cidr>> {
    list(s, |s| match s {
        "*" => Err("'*' is not a range here".into()),
        s => s.parse(),
    })
}

/// An IPv4 loopback range.
pub(super) fn loopback(s: &str) -> Parse<Cidr> {
    let cidr: Cidr = s.parse()?;
    match cidr.addr() {
        IpAddr::V4(a) if a.is_loopback() && cidr.prefix() >= 8 => Ok(cidr),
        IpAddr::V4(_) | IpAddr::V6(_) => Err("not a range within 127.0.0.0/8".into()),
    }
}

pub(super) fn addresses(s: &str) -> Parse<Vec<IpAddr>> {
    let parse = |s: &str| s.parse().map_err(|_| "not an IP address".to_string());
    list(s, |s| parse(s).map(|ip: IpAddr| ip.to_canonical()))
}

/// Names as the kernel allows them; a last `+` stands for any rest, as in iptables.
pub(super) fn interfaces(s: &str) -> Parse<Vec<String>> {
    list(s, |s| {
        let plain = s.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '/' | '"' | '\'' | '\\' | '*'));
        match plain && s.len() <= 15 && s != "." && s != ".." {
            true => Ok(s.to_string()),
            false => Err("not an interface's name, at most 15 plain characters".into()),
        }
    })
}

/// `*` or a list.
pub(super) fn select<T>(s: &str, list: fn(&str) -> Parse<Vec<T>>) -> Parse<Select<T>> {
    match s.trim() {
        "*" => Ok(Select::All),
        s if s.split(',').any(|item| item.trim() == "*") => Err("'*' stands alone, not in a list".into()),
        s => list(s).map(Select::Only),
    }
}

pub(super) fn mode(s: &str) -> Parse<Mode> {
    match s {
        "" | "REDIRECT" => Ok(Mode::Redirect),
        "TPROXY" => Ok(Mode::Tproxy),
        _ => Err("neither REDIRECT nor TPROXY".into()),
    }
}

pub(super) fn traffic_policy(s: &str) -> Parse<OutboundTrafficPolicy> {
    match s {
        "ALLOW_ANY" => Ok(OutboundTrafficPolicy::AllowAny),
        "REGISTRY_ONLY" => Ok(OutboundTrafficPolicy::RegistryOnly),
        _ => Err("neither ALLOW_ANY nor REGISTRY_ONLY".into()),
    }
}

/// A whole number of 32 bits, decimal or hexadecimal, such as a firewall mark.
pub(super) fn number(s: &str) -> Parse<u32> {
    let parsed = match s.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => u32::from_str(s),
    };
    parsed.map_err(|_| "not a number of 32 bits".into())
}

/// One or more numbers with units, as in Go: `5s`, `1m30s`, `250ms`; `0` needs no unit. At most one hour.
pub(super) fn duration(s: &str) -> Parse<Duration> {
    const WHY: &str = "not a duration such as 5s, 1m30s or 250ms";
    let mut millis: u64 = 0;
    let mut rest = if s == "0" { "0s" } else { s };
    if rest.is_empty() {
        return Err(WHY.into());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(WHY)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(WHY.into()),
        };
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).ok_or(WHY)?;
        millis = millis.checked_add(part).ok_or(WHY)?;
        rest = tail;
    }
    if millis > 3_600_000 {
        return Err("longer than one hour".into());
    }
    Ok(Duration::from_millis(millis))
}

/// A duration as [`duration`] reads it.
pub(super) fn show_duration(d: Duration) -> String {
    match d.as_millis() {
        0 => "0s".into(),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

pub(super) fn show_list<T: Display>(list: &[T]) -> String {
    list.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

pub(super) fn show_select<T: Display>(select: &Select<T>) -> String {
    match select {
        Select::All => "*".into(),
        Select::Only(list) => show_list(list),
    }
}

/// Comma separated, blanks around and empty items ignored as Istio does; sorted, nothing twice.
fn list<T: Ord>(s: &str, item: impl Fn(&str) -> Parse<T>) -> Parse<Vec<T>> {
    let items = s.split(',').map(str::trim).filter(|s| !s.is_empty());
    let mut list = Vec::new();
    let mut wrong = Vec::new();
    for s in items {
        match item(s) {
            Ok(value) => list.push(value),
            Err(why) => wrong.push(format!("{s}: {why}")),
        }
    }
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    list.sort();
    list.dedup();
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("5s", 5000), ("0", 0), ("0s", 0), ("250ms", 250), ("1m30s", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "5x", "-1s", "99999999999999999999s", "5 s", "é"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(duration("61m").expect_err("too long"), "longer than one hour");
    }

    #[test]
    fn every_wrong_item_is_named() {
        assert_eq!(
            ports("80, ,x,0,70000").expect_err("an error"),
            "x: not a port, 1 to 65535; 0: not a port, 1 to 65535; 70000: not a port, 1 to 65535"
        );
        assert_eq!(ports("443,80,,443"), Ok(vec![80, 443]));
        assert!(gids("istio-proxy").expect_err("an error").contains("use the numeric gid"));
        assert!(select("*,80", ports).is_err());
        assert!(loopback("10.0.0.0/8").is_err());
        assert!(loopback("127.0.0.0/7").is_err());
        assert_eq!(loopback("127.0.0.0/8").map(|c| c.to_string()), Ok("127.0.0.0/8".into()));
        assert!(interfaces("a-very-long-interface").is_err());
        assert_eq!(interfaces("eth+,eth0"), Ok(vec!["eth+".into(), "eth0".into()]));
        assert_eq!(number("0x539"), Ok(1337));
    }
}
