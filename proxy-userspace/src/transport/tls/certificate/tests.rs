//! What Envoy 1.40 printed of these certificates in its access log, byte by byte.

use std::time::Duration;

use proptest::prelude::*;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::*;

fn of(pem: &str) -> Certificate {
    facts(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

#[test]
fn a_name_of_several_parts_with_characters_that_are_escaped() {
    let facts = of(include_str!("testdata/multi.pem"));
    assert_eq!(
        facts.subject,
        r#"CN=\ ,CN=\ lead and trail\ ,CN=\#hash,CN=J. Smith+OU=Sales,O=Sue\, Grabbit\; \"Runn\" \<x\>\+y\\z,C=US"#
    );
    assert_eq!(facts.issuer, r"CN=odd CA\, Inc.");
    assert_eq!(facts.serial, "ff00aa");
    assert_eq!(facts.fingerprint_256, "9f420cecd707d59990edf0cca85e532e7e4998521f06bf9ccc9e799dc89968c3");
    assert_eq!(facts.fingerprint_1, "d71072c8c2600f3a10fc30e40487f2c1186421e9");
    assert_eq!(facts.uri_sans, ["spiffe://td/ns/a/sa/b", "https://x/?a=b,c"]);
    assert_eq!(facts.dns_sans, ["a.example.com", "*.b.example.com"]);
    assert_eq!(facts.ip_sans, ["10.0.0.1", "2001:db8::1", "::ffff:1.2.3.4", "::1.2.3.4", "1:0:0:2::3"]);
    assert_eq!(facts.email_sans, ["a@b.c"]);
    // 2026-01-01T00:00:00Z and 2030-05-06T07:08:09Z.
    assert_eq!((facts.not_before, facts.not_after), (1_767_225_600, 1_904_281_689));
}

#[test]
fn names_in_every_string_type() {
    let facts = of(include_str!("testdata/utf8.pem"));
    assert_eq!(
        facts.subject,
        "emailAddress=a@b.c,L=Uni \\F0\\9F\\A6\\80,O=Latin \\C3\\83\\C2\\A9,O=Bmp \\C3\\9F\\E6\\BC\\A2,\
         CN=Zo\\C3\\AB \\E2\\80\\93 \\E6\\BC\\A2\\E5\\AD\\97 \\F0\\9F\\A6\\80\\01\\7F\\09"
    );
    assert_eq!(facts.serial, "01");
    assert!(facts.uri_sans.is_empty() && facts.dns_sans.is_empty());
}

#[test]
fn attributes_by_their_short_names() {
    let facts = of(include_str!("testdata/oids.pem"));
    let printed = "1.2.643.100.1=#0C0176,\
         1.2.643.3.131.1.1=#0C0176,\
         1.3.6.1.4.1.99999.1=#0C0176,\
         2.5.4.100=#0C0176,\
         1.2.3.4.5=#0C0176,\
         0.9.2342.19200300.100.1.60=#0C0176,\
         documentPublisher=v,\
         audio=v,\
         dITRedirect=v,\
         personalSignature=v,\
         subtreeMaximumQuality=v,\
         subtreeMinimumQuality=v,\
         singleLevelQuality=v,\
         dSAQuality=v,\
         buildingName=v,\
         mailPreferenceOption=v,\
         janetMailbox=v,\
         organizationalStatus=v,\
         0.9.2342.19200300.100.1.44=#0C0176,\
         friendlyCountryName=v,\
         pagerTelephoneNumber=v,\
         mobileTelephoneNumber=v,\
         personalTitle=v,\
         associatedName=v,\
         associatedDomain=v,\
         sOARecord=v,\
         nSRecord=v,\
         mXRecord=v,\
         pilotAttributeType27=v,\
         aRecord=v,\
         DC=v,\
         lastModifiedTime=v,\
         otherMailbox=v,\
         secretary=v,\
         homeTelephoneNumber=v,\
         documentLocation=v,\
         documentAuthor=v,\
         documentVersion=v,\
         documentTitle=v,\
         documentIdentifier=v,\
         manager=v,\
         host=v,\
         userClass=v,\
         photo=v,\
         roomNumber=v,\
         favouriteDrink=v,\
         info=v,\
         mail=v,\
         textEncodedORAddress=v,\
         UID=v,\
         friendlyName=v,\
         unstructuredAddress=v,\
         challengePassword=v,\
         unstructuredName=v,\
         emailAddress=v,\
         1.3.6.1.4.1.311.60.2.1.3=#0C0176,\
         1.3.6.1.4.1.311.60.2.1.2=#0C0176,\
         1.3.6.1.4.1.311.60.2.1.1=#0C0176,\
         GN=v,\
         2.5.4.98=#0C0176,\
         2.5.4.97=#0C0176,\
         role=v,\
         pseudonym=v,\
         dmdName=v,\
         deltaRevocationList=v,\
         supportedAlgorithms=v,\
         houseIdentifier=v,\
         uniqueMember=v,\
         distinguishedName=v,\
         protocolInformation=v,\
         enhancedSearchGuide=v,\
         dnQualifier=v,\
         x500UniqueIdentifier=v,\
         generationQualifier=v,\
         initials=v,\
         GN=v,\
         name=v,\
         crossCertificatePair=v,\
         certificateRevocationList=v,\
         authorityRevocationList=v,\
         cACertificate=v,\
         userCertificate=v,\
         userPassword=v,\
         seeAlso=v,\
         roleOccupant=v,\
         owner=v,\
         member=v,\
         supportedApplicationContext=v,\
         presentationAddress=v,\
         preferredDeliveryMethod=v,\
         destinationIndicator=v,\
         registeredAddress=v,\
         internationaliSDNNumber=v,\
         x121Address=v,\
         facsimileTelephoneNumber=v,\
         teletexTerminalIdentifier=v,\
         telexNumber=v,\
         telephoneNumber=v,\
         physicalDeliveryOfficeName=v,\
         postOfficeBox=v,\
         postalCode=v,\
         postalAddress=v,\
         businessCategory=v,\
         searchGuide=v,\
         description=v,\
         title=v,\
         street=v,\
         serialNumber=v,\
         SN=v";
    assert_eq!(facts.subject, printed);
    assert_eq!(facts.serial, "7fffffffffffffffffffffffffffffffffffffff");
}

#[test]
fn a_name_without_attributes_or_with_empty_ones() {
    let empty = of(include_str!("testdata/empty.pem"));
    assert_eq!((empty.subject.as_str(), empty.serial.as_str()), ("", "80"));
    assert_eq!(empty.dns_sans, ["only.san"]);
    let nosan = of(include_str!("testdata/nosan.pem"));
    assert_eq!((nosan.subject.as_str(), nosan.serial.as_str()), ("O=,CN=nosan", "0100"));
}

#[test]
fn serial_numbers() {
    for (bytes, text) in [
        (&[0x0a, 0x1b][..], "0a1b"),
        (&[0, 0x80], "80"),
        (&[0, 0, 0], "0"),
        (&[], "0"),
        (&[0x80], "-80"),
        (&[0xff, 0xff], "-01"),
        (&[0xff, 0x00], "-0100"),
    ] {
        assert_eq!(serial(bytes), text, "{bytes:?}");
    }
}

#[test]
fn whole_days_are_left() {
    let facts = of(include_str!("testdata/nosan.pem"));
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    assert_eq!(days_until_expiration(&facts, at(1_904_281_689 - 86_400 * 3 - 1)), 3);
    assert_eq!(days_until_expiration(&facts, at(1_904_281_689 - 86_399)), 0);
    assert_eq!(days_until_expiration(&facts, at(1_904_281_689 + 86_400 * 9)), 0);
}

proptest! {
    #[test]
    fn broken_certificates_are_errors_and_no_panics(at in 0..2000_usize, to in any::<u8>(), cut in 0..2000_usize) {
        let good = CertificateDer::from_pem_slice(include_bytes!("testdata/multi.pem")).unwrap().to_vec();
        let mut changed = good.clone();
        let at = at % good.len();
        changed[at] = to;
        let _ = facts(&changed);
        prop_assert!(facts(&good[..cut % good.len()]).is_err());
        prop_assert!(facts(&[good.as_slice(), &[to]].concat()).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_no_certificate(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(facts(&bytes).is_err());
    }
}
