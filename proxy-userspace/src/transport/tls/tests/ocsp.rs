//! OCSP staples, and what else a certificate is served with.

use proxy_config::model::tls::{DataSource, DownstreamTls, OcspStaplePolicy};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::rig::*;
use crate::transport::tls::certificate;

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u8::try_from(content.len()).unwrap();
    let len = if len < 128 { vec![len] } else { vec![0x81, len] };
    [&[tag], len.as_slice(), content].concat()
}

/// A response for the certificate of `leaf`, until `next_update`.
fn response(leaf: &Leaf, next_update: Option<&str>) -> Vec<u8> {
    let chain = CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap();
    let parsed = certificate::parse(&chain).unwrap();
    of_serial(parsed.raw_serial(), next_update, 0)
}

fn of_serial(serial: &[u8], next_update: Option<&str>, status: u8) -> Vec<u8> {
    let sha1 = der(0x30, &der(6, &[0x2b, 0x0e, 3, 2, 0x1a]));
    let id = der(0x30, &[sha1, der(4, &[1; 20]), der(4, &[2; 20]), der(2, serial)].concat());
    let next = next_update.map(|time| der(0xa0, &der(0x18, time.as_bytes()))).unwrap_or_default();
    let single = der(0x30, &[id, der(0x80, &[]), der(0x18, b"20200101000000Z"), next].concat());
    let responder = der(0xa2, &der(4, &[2; 20]));
    let data = [responder, der(0x18, b"20200101000000Z"), der(0x30, &single)].concat();
    let basic = der(0x30, &[der(0x30, &data), der(0x30, &[]), der(3, &[0])].concat());
    let kind = der(6, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1]);
    let bytes = der(0x30, &[kind, der(4, &basic)].concat());
    der(0x30, &[der(10, &[status]), der(0xa0, &bytes)].concat())
}

fn server(leaf: &Leaf, staple: Option<Vec<u8>>, policy: OcspStaplePolicy) -> DownstreamTls {
    let mut model = downstream(common(&[leaf], None));
    model.common.certificates[0].ocsp_staple = staple.map(|der| DataSource::Inline(der.into()));
    model.ocsp_staple_policy = policy;
    model
}

const CURRENT: Option<&str> = Some("20990101000000Z");
const OLD: Option<&str> = Some("20210101000000Z");

#[tokio::test]
async fn a_staple_is_served_while_it_is_current_and_each_policy_says_what_if_it_is_not() {
    use OcspStaplePolicy::{Lenient, Must, Strict};
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    // Whether there is one, the policy, and which of responses, omitted and failed counts.
    for (staple, policy, counted) in [
        (Some(CURRENT), Lenient, [1, 0, 0]),
        (Some(CURRENT), Strict, [1, 0, 0]),
        (Some(CURRENT), Must, [1, 0, 0]),
        (Some(OLD), Lenient, [0, 1, 0]),
        (Some(OLD), Strict, [0, 0, 1]),
        (Some(OLD), Must, [0, 0, 1]),
        // A response without an end is never current.
        (Some(None), Lenient, [0, 1, 0]),
        (None, Lenient, [0, 1, 0]),
        (None, Strict, [0, 1, 0]),
    ] {
        let staple = staple.map(|until| response(&leaf, until));
        let rig = Rig::new(server(&leaf, staple, policy), upstream(common(&[], Some(ca.trusted()))));
        // rustls asks for a staple always.
        let (served, client) = rig.connect().await.shake().await;
        assert_eq!(served.is_ok(), counted[2] == 0);
        assert_eq!(client.is_ok(), counted[2] == 0);
        let names = ["responses", "omitted", "failed"];
        let stats = names.map(|name| rig.stat(&format!("l.ssl.ocsp_staple_{name}")));
        assert_eq!(stats, counted, "{policy:?}");
        assert_eq!(rig.stat("l.ssl.ocsp_staple_requests"), 1);
    }
}

#[test]
fn a_staple_that_is_none_or_of_another_certificate_is_refused() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let refused = |staple| build(server(&leaf, staple, OcspStaplePolicy::Must)).err().unwrap_or_default();
    let other = response(&ca.issue("b", &[]), CURRENT);
    assert_eq!(
        refused(Some(other)),
        "ocsp_staple: <inline>: OCSP response does not match its TLS certificate"
    );
    assert_eq!(
        refused(Some(of_serial(&[1], CURRENT, 6))),
        "ocsp_staple: <inline>: OCSP response was unsuccessful"
    );
    assert_eq!(
        refused(Some(b"nothing".to_vec())),
        "ocsp_staple: <inline>: OCSPResponse is missing or broken"
    );
    assert_eq!(refused(None), "Required OCSP response is missing from TLS context");
    // Every prefix and every broken byte is an error or another response, and never a panic.
    let good = response(&leaf, CURRENT);
    for at in 0..good.len() {
        let mut broken = good.clone();
        broken[at] ^= 0x5a;
        refused(Some(broken));
        assert!(!refused(Some(good[..at].to_vec())).is_empty());
    }
}

#[tokio::test]
async fn intermediates_are_sent() {
    let ca = Ca::new("ca");
    let middle = ca.middle("middle");
    let leaf = middle.issue("a", &["a.test"]);
    let leaf = Leaf { chain: format!("{}{}", leaf.chain, middle.pem), ..leaf };
    let rig = Rig::new(downstream(common(&[&leaf], None)), upstream(common(&[], Some(ca.trusted()))));
    let pair = rig.shaken().await;
    assert_eq!(pair.client.info().peer_intermediates.len(), 1);
}

#[tokio::test]
async fn only_the_given_signature_algorithms_are_signed_with_and_accepted() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.common.params.signature_algorithms = vec!["ecdsa_secp256r1_sha256".into()];
    Rig::new(downstream(common(&[&leaf], None)), client.clone()).shaken().await;
    client.common.params.signature_algorithms = vec!["rsa_pss_rsae_sha256".into()];
    let (server, _) = Rig::new(downstream(common(&[&leaf], None)), client).connect().await.shake().await;
    let refused = server.unwrap_err();
    assert!(refused.reason.contains(":NO_COMMON_SIGNATURE_ALGORITHMS:"), "{refused}");
    let mut model = downstream(common(&[&leaf], None));
    model.common.params.signature_algorithms = vec!["rsa_pss_rsae_sha256".into()];
    let rig = Rig::new(model, upstream(common(&[], Some(ca.trusted()))));
    let (server, _) = rig.connect().await.shake().await;
    server.unwrap_err();
}

#[tokio::test]
async fn keys_are_logged_for_the_given_addresses_only() {
    use proxy_config::model::address::Cidr;
    use proxy_config::model::tls::KeyLog;
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let lines = async |name: &str, local: Vec<Cidr>, remote: Vec<Cidr>| {
        let path = directory.path().join(name);
        let mut model = downstream(common(&[&leaf], None));
        model.common.key_log =
            Some(KeyLog { path: path.clone(), local_address_range: local, remote_address_range: remote });
        Rig::new(model, upstream(common(&[], Some(ca.trusted())))).shaken().await;
        std::fs::read_to_string(path).unwrap()
    };
    let here = || vec![Cidr::new([127, 0, 0, 0].into(), 8).unwrap()];
    let elsewhere = || vec![Cidr::new([10, 0, 0, 0].into(), 8).unwrap()];
    for (name, local, remote) in [("all", vec![], vec![]), ("both", here(), here()), ("one", here(), vec![])]
    {
        let text = lines(name, local, remote).await;
        for label in ["CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0", "EXPORTER_SECRET"] {
            let line = text.lines().find(|line| line.starts_with(label)).unwrap();
            let fields: Vec<_> = line.split(' ').collect();
            assert_eq!((fields.len(), fields[1].len(), fields[2].len()), (3, 64, 64), "{line}");
        }
    }
    assert_eq!(lines("neither", elsewhere(), here()).await, "");
    assert_eq!(lines("none", here(), elsewhere()).await, "");
}
