//! What a certificate says, in the forms in which Envoy prints it.

mod name;

use std::net::{Ipv4Addr, Ipv6Addr};

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use rustls::pki_types::UnixTime;
use x509_parser::asn1_rs::{Any, FromDer as _, Tag};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::X509Certificate;

use crate::transport::info::Certificate;

/// The facts of a DER certificate. Bytes that are not exactly one certificate, or whose names cannot be read, are an
/// error: nothing is to be judged by half of them.
pub fn facts(der: &[u8]) -> Result<Certificate, String> {
    let certificate = parse(der)?;
    let names = subject_alt_names(&certificate)?;
    Ok(Certificate {
        der: der.to_vec(),
        subject: name::rfc2253(certificate.subject())?,
        issuer: name::rfc2253(certificate.issuer())?,
        serial: serial(certificate.raw_serial()),
        fingerprint_256: fingerprint_256(der),
        fingerprint_1: fingerprint_1(der),
        uri_sans: names.uri,
        dns_sans: names.dns,
        ip_sans: names.ip,
        email_sans: names.email,
        othername_sans: names.other,
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// SHA-256, lower-case hexadecimal.
pub fn fingerprint_256(der: &[u8]) -> String {
    hex(digest(&SHA256, der).as_ref())
}

/// SHA-1, lower-case hexadecimal: for logs, never for trust.
pub fn fingerprint_1(der: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
}

/// Empty where that is no certificate.
pub fn serial_number(der: &[u8]) -> String {
    parse(der).map(|certificate| serial(certificate.raw_serial())).unwrap_or_default()
}

/// Whole days until it expires; 0 where it has, as `/certs` says it.
pub fn days_until_expiration(certificate: &Certificate, now: UnixTime) -> u64 {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let left = certificate.not_after.saturating_sub(now);
    u64::try_from(left).unwrap_or(0) / 86_400
}

/// Exactly one certificate.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("bytes follow the certificate".to_owned()),
        Err(e) => Err(format!("not a certificate: {e}")),
    }
}

/// The subject alternative names of the kinds that are matched, in the certificate's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) uri: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) ip: Vec<String>,
    pub(super) email: Vec<String>,
    /// Never matched.
    pub(super) other: Vec<String>,
}

impl From<&Certificate> for Names {
    fn from(facts: &Certificate) -> Self {
        Self {
            uri: facts.uri_sans.clone(),
            dns: facts.dns_sans.clone(),
            ip: facts.ip_sans.clone(),
            email: facts.email_sans.clone(),
            other: facts.othername_sans.clone(),
        }
    }
}

impl Names {
    /// A NUL ends a name for some programs and not for others, so a name with one means two things.
    pub(super) fn any_has_nul(&self) -> bool {
        [&self.uri, &self.dns, &self.email].into_iter().flatten().any(|name| name.contains('\0'))
    }

    /// All of them, as Envoy lists them in its errors.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        [&self.uri, &self.dns, &self.ip, &self.email].into_iter().flatten().map(String::as_str)
    }
}

/// An error where there is such an extension and it cannot be read.
pub(super) fn subject_alt_names(certificate: &X509Certificate<'_>) -> Result<Names, String> {
    let mut names = Names::default();
    let extension = certificate.subject_alternative_name().map_err(|e| format!("subjectAltName: {e}"))?;
    let Some(extension) = extension else {
        return Ok(names);
    };
    for name in &extension.value.general_names {
        match name {
            GeneralName::URI(name) => names.uri.push((*name).to_owned()),
            GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
            GeneralName::RFC822Name(name) => names.email.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => names.ip.push(address(bytes)),
            GeneralName::Invalid(tag, _) => return Err(format!("subjectAltName: a name of {tag} is broken")),
            GeneralName::OtherName(_, value) => names.other.push(other_name(value)),
            GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    Ok(names)
}

/// The value of an `otherName`: strings and numbers; empty for what has no text.
fn other_name(value: &[u8]) -> String {
    let Ok((_, tagged)) = Any::from_der(value) else {
        return String::new();
    };
    let Ok((_, value)) = Any::from_der(tagged.data) else {
        return String::new();
    };
    match value.tag() {
        Tag::Boolean => if value.data.iter().any(|byte| *byte != 0) { "true" } else { "false" }.to_owned(),
        Tag::Integer | Tag::Enumerated => number(value.data).map(|n| n.to_string()).unwrap_or_default(),
        Tag::Oid => value.oid().map(|oid| oid.to_id_string()).unwrap_or_default(),
        Tag::Null => String::new(),
        _ => String::from_utf8_lossy(value.data).into_owned(),
    }
}

/// In two's complement; none where it is longer than any that is used.
fn number(bytes: &[u8]) -> Option<i128> {
    let first = bytes.first().filter(|_| bytes.len() <= 16)?;
    let sign = if first & 0x80 == 0 { 0 } else { -1 };
    Some(bytes.iter().fold(sign, |number, byte| number << 8 | i128::from(*byte)))
}

/// The bits of `keyUsage`, lowest first as RFC 5280 numbers them; `None`: every use.
pub(super) fn key_usage(certificate: &X509Certificate<'_>) -> Result<Option<u16>, String> {
    let extension = certificate.key_usage().map_err(|e| format!("keyUsage: {e}"))?;
    Ok(extension.map(|usage| usage.value.flags))
}

/// Any extension that was not understood although it must be.
pub(super) fn has_broken_extension(certificate: &X509Certificate<'_>) -> bool {
    certificate
        .extensions()
        .iter()
        .any(|extension| matches!(extension.parsed_extension(), ParsedExtension::ParseError { .. }))
}

/// Empty where it is of neither family, as in Envoy; an address such as `::1.2.3.4` is written as the C library does.
fn address(bytes: &[u8]) -> String {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ipv4Addr::from(v4).to_string();
    }
    let Ok(v6) = <[u8; 16]>::try_from(bytes).map(Ipv6Addr::from) else {
        return String::new();
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
            format!("::{}", Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        _ => v6.to_string(),
    }
}

/// Two digits a byte, without leading bytes of zero; zero is one digit. A negative number (which RFC 5280 forbids) has
/// its sign.
fn serial(bytes: &[u8]) -> String {
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let mut magnitude = bytes.to_vec();
    if negative {
        // Two's complement: invert, add one.
        let mut carry = true;
        for byte in magnitude.iter_mut().rev() {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    let significant: Vec<u8> = magnitude.into_iter().skip_while(|byte| *byte == 0).collect();
    if significant.is_empty() {
        return "0".to_owned();
    }
    format!("{}{}", if negative { "-" } else { "" }, hex(&significant))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] =
        ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]).collect()
}

#[cfg(test)]
mod tests;
