//! `ocsp_staple`: a response that says of our certificate that it was not revoked, sent to clients that ask for it.
//!
//! As in Envoy, its signature is not checked and its status is not looked at: whoever configures it has it from a
//! source that is trusted, and the client judges. What matters is whose it is and until when.

use std::fmt;
use std::sync::Arc;

use proxy_config::model::tls::OcspStaplePolicy;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::asn1_rs::{Any, FromDer as _, Tag};
use x509_parser::time::ASN1Time;

use super::provider::now;

/// A response, and until when it holds.
#[derive(Clone)]
pub(super) struct Staple {
    der: Vec<u8>,
    /// Seconds since 1970; one without it is never current.
    next_update: Option<i64>,
}

impl Staple {
    /// `serial` is that of the certificate that it has to be for.
    pub(super) fn parse(der: &[u8], serial: &[u8]) -> Result<Self, String> {
        let single = single(der)?;
        if unpadded(single.serial) != unpadded(serial) {
            return Err("OCSP response does not match its TLS certificate".to_owned());
        }
        Ok(Self { der: der.to_vec(), next_update: single.next_update })
    }

    pub(super) fn is_current(&self) -> bool {
        let now = i64::try_from(now().as_secs()).unwrap_or(i64::MAX);
        self.next_update.is_some_and(|until| now <= until)
    }
}

/// What is done for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stapling {
    /// It has not asked.
    NotAsked,
    Respond,
    Omit,
    /// The certificate may not be served so.
    Fail,
}

/// As Envoy's policies say it; a certificate that promises a staple (RFC 7633) is held to it.
pub(super) fn stapling(
    staple: Option<&Staple>,
    policy: OcspStaplePolicy,
    must_staple: bool,
    asked: bool,
) -> Stapling {
    if !asked {
        return Stapling::NotAsked;
    }
    if staple.is_some_and(Staple::is_current) {
        return Stapling::Respond;
    }
    match policy {
        _ if must_staple => Stapling::Fail,
        OcspStaplePolicy::Must => Stapling::Fail,
        OcspStaplePolicy::Strict if staple.is_some() => Stapling::Fail,
        OcspStaplePolicy::Strict | OcspStaplePolicy::Lenient => Stapling::Omit,
    }
}

/// A certificate with its staple for as long as that is current.
pub(super) struct Stapled {
    bare: Arc<CertifiedKey>,
    stapled: Option<(Staple, Arc<CertifiedKey>)>,
}

impl Stapled {
    pub(super) fn new(bare: Arc<CertifiedKey>, staple: Option<&Staple>) -> Self {
        let stapled = staple.map(|staple| {
            let mut certified = bare.as_ref().clone();
            certified.ocsp = Some(staple.der.clone());
            (staple.clone(), Arc::new(certified))
        });
        Self { bare, stapled }
    }
}

impl fmt::Debug for Stapled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stapled").field("stapled", &self.stapled.is_some()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Stapled {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.stapled.as_ref().filter(|(staple, _)| staple.is_current());
        Some(current.map_or(&self.bare, |(_, certified)| certified).clone())
    }
}

/// What a response says of its only certificate.
struct Single<'a> {
    serial: &'a [u8],
    next_update: Option<i64>,
}

/// `id-pkix-ocsp-basic`, DER.
const BASIC: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];

/// Follows RFC 6960's `OCSPResponse` down to its `SingleResponse`.
fn single(der: &[u8]) -> Result<Single<'_>, String> {
    let mut whole = der;
    let mut response = Der(sequence(&mut whole, "OCSPResponse")?);
    if !whole.is_empty() {
        return Err("the data holds more than a single OCSP response".to_owned());
    }
    if response.next(Tag::Enumerated, "responseStatus")? != [0] {
        return Err("OCSP response was unsuccessful".to_owned());
    }
    let mut bytes = response.tagged(0).ok_or("OCSP response has no body")?;
    let mut bytes = Der(sequence(&mut bytes, "ResponseBytes")?);
    if bytes.next(Tag::Oid, "responseType")? != BASIC {
        return Err("the OCSP response is of an unknown type".to_owned());
    }
    let mut basic = bytes.next(Tag::OctetString, "response")?;
    let mut basic = Der(sequence(&mut basic, "BasicOCSPResponse")?);
    let mut data = Der(basic.next(Tag::Sequence, "ResponseData")?);
    // Its version where it is not the first, which there is only one of, and who answers.
    if data.tagged(0).is_some_and(|version| version != [2, 1, 0]) {
        return Err("the OCSP response is of an unknown version".to_owned());
    }
    data.tagged(1).or_else(|| data.tagged(2)).ok_or("ResponderID is missing")?;
    data.next(Tag::GeneralizedTime, "producedAt")?;
    let mut responses = Der(data.next(Tag::Sequence, "responses")?);
    let response = Der(responses.next(Tag::Sequence, "SingleResponse")?);
    if !responses.0.is_empty() {
        return Err("OCSP Response must be for one certificate only".to_owned());
    }
    of_certificate(response)
}

fn of_certificate(mut response: Der<'_>) -> Result<Single<'_>, String> {
    let mut id = Der(response.next(Tag::Sequence, "certID")?);
    id.next(Tag::Sequence, "hashAlgorithm")?;
    id.next(Tag::OctetString, "issuerNameHash")?;
    id.next(Tag::OctetString, "issuerKeyHash")?;
    let serial = id.next(Tag::Integer, "serialNumber")?;
    let status = (0..=2).find_map(|choice| response.tagged(choice));
    status.ok_or("certStatus is missing")?;
    response.next(Tag::GeneralizedTime, "thisUpdate")?;
    let next_update = response.tagged(0).map(|time| match ASN1Time::from_der(time) {
        Ok(([], time)) => Ok(time.timestamp()),
        Ok(_) | Err(_) => Err("nextUpdate cannot be read".to_owned()),
    });
    Ok(Single { serial, next_update: next_update.transpose()? })
}

/// What is left of a sequence's content.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next value, which must be of that kind.
    fn next(&mut self, tag: Tag, what: &str) -> Result<&'a [u8], String> {
        match Any::from_der(self.0) {
            Ok((rest, any)) if any.header.is_universal() && any.tag() == tag => {
                self.0 = rest;
                Ok(any.data)
            }
            Ok(_) | Err(_) => Err(format!("{what} is missing or broken")),
        }
    }

    /// The content of a value with that context-specific tag, where it is the next.
    fn tagged(&mut self, tag: u32) -> Option<&'a [u8]> {
        let (rest, any) = Any::from_der(self.0).ok()?;
        if !any.header.is_contextspecific() || any.tag().0 != tag {
            return None;
        }
        self.0 = rest;
        Some(any.data)
    }
}

fn sequence<'a>(from: &mut &'a [u8], what: &str) -> Result<&'a [u8], String> {
    let mut der = Der(from);
    let content = der.next(Tag::Sequence, what)?;
    *from = der.0;
    Ok(content)
}

/// Without the zero that keeps a positive number from being a negative one.
fn unpadded(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default()
}
