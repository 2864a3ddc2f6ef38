//! Numbers and addresses as text, without the machinery of `fmt`: a line of a log has a dozen of them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

pub(super) fn number(out: &mut String, n: u64) {
    out.push_str(itoa::Buffer::new().format(n));
}

pub(super) fn ip(out: &mut String, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => {
            for (i, octet) in ip.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push('.');
                }
                number(out, octet.into());
            }
        }
        // Writing to a String cannot fail.
        IpAddr::V6(ip) => {
            let _ = write!(out, "{ip}");
        }
    }
}

pub(super) fn address(out: &mut String, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            ip(out, (*v4.ip()).into());
            out.push(':');
            number(out, v4.port().into());
        }
        SocketAddr::V6(v6) => {
            let _ = write!(out, "{v6}");
        }
    }
}

/// With leading zeros.
pub(super) fn padded(out: &mut String, n: u64, width: usize) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(n);
    for _ in digits.len()..width {
        out.push('0');
    }
    out.push_str(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_std_writes_them() {
        for text in ["0.0.0.0:0", "127.0.0.1:80", "255.255.255.255:65535", "[::1]:8080", "[fe80::1%2]:1"] {
            let parsed: SocketAddr = text.parse().unwrap();
            let (mut whole, mut alone) = (String::new(), String::new());
            address(&mut whole, parsed);
            ip(&mut alone, parsed.ip());
            assert_eq!((whole, alone), (parsed.to_string(), parsed.ip().to_string()));
        }
        for (n, width, expected) in
            [(7, 3, "007"), (1234, 3, "1234"), (0, 1, "0"), (u64::MAX, 0, "18446744073709551615")]
        {
            let mut out = String::new();
            padded(&mut out, n, width);
            assert_eq!(out, expected);
        }
    }
}
