//! Which certificate, cipher suite, group and version are chosen.

use proxy_config::model::tls::{CipherSuite, Curve, DownstreamTls, TlsVersion};
use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256};

use super::rig::*;

/// A key that took long to find.
pub(super) const RSA_2048: &str = include_str!("rsa2048.pem");

fn rsa() -> KeyPair {
    KeyPair::from_pem_and_sign_algo(RSA_2048, &PKCS_RSA_SHA256).unwrap()
}

/// The common name of the certificate that a client gets by this name.
async fn served(ca: &Ca, server: &DownstreamTls, name: &str) -> String {
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.sni = name.into();
    let pair = Rig::new(server.clone(), client).shaken().await;
    let lower = name.to_ascii_lowercase();
    assert_eq!(pair.server.info().server_name.as_deref().unwrap_or_default(), lower);
    assert_eq!(pair.server.info().local, pair.client.info().peer);
    pair.client.info().peer.as_ref().unwrap().subject.clone()
}

#[tokio::test]
async fn a_certificate_is_chosen_by_name_exactly_then_by_wildcard_else_the_first() {
    let ca = Ca::new("ca");
    let first = ca.issue("first", &["first.test"]);
    let wild = ca.issue("wild", &["*.a.test"]);
    let exact = ca.issue("exact", &["b.a.test", "B2.A.test"]);
    let named = ca.issue_with("c.test", &[], KeyPair::generate().unwrap());
    let server = downstream(common(&[&first, &wild, &exact, &named], None));
    for (name, expected) in [
        ("b.a.test", "exact"),
        ("B.A.TEST", "exact"),
        ("b2.a.test", "exact"),
        ("x.a.test", "wild"),
        // One label, and not none.
        ("x.y.a.test", "first"),
        ("a.test", "first"),
        // By the common name, where there are no alternative ones.
        ("c.test", "c.test"),
        ("elsewhere.test", "first"),
        ("", "first"),
        // As Istio names its clusters.
        ("outbound_.80_._.first.test", "first"),
    ] {
        assert_eq!(served(&ca, &server, name).await, format!("CN={expected}"), "{name}");
    }
}

#[tokio::test]
async fn of_two_kinds_of_keys_the_client_gets_one_that_it_can_verify_ecdsa_first() {
    let ca = Ca::new("ca");
    let rsa = ca.issue_with("rsa", &["a.test"], rsa());
    let ecdsa = ca.issue("ecdsa", &["a.test"]);
    let server = downstream(common(&[&rsa, &ecdsa], None));
    assert_eq!(served(&ca, &server, "a.test").await, "CN=ecdsa");
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.common.params.maximum = TlsVersion::V1_2;
    client.common.params.cipher_suites = vec![CipherSuite::EcdheRsaAes256GcmSha384];
    let rig = Rig::new(server, client);
    let pair = rig.shaken().await;
    assert_eq!(pair.client.info().peer.as_ref().unwrap().subject, "CN=rsa");
    assert_eq!(pair.client.info().version, "TLSv1.2");
    assert_eq!(pair.client.info().cipher, "ECDHE-RSA-AES256-GCM-SHA384");
    assert_eq!(rig.stat("c.ssl.sigalgs.rsa_pss_rsae_sha512"), 1);
    assert_eq!(rig.stat("l.ssl.versions.TLSv1.2"), 1);
    assert_eq!(rig.stat("l.ssl.ciphers.ECDHE-RSA-AES256-GCM-SHA384"), 1);
}

#[tokio::test]
async fn a_full_scan_finds_a_key_that_the_client_can_verify_where_no_name_fits() {
    let ca = Ca::new("ca");
    let rsa = ca.issue_with("rsa", &["a.test"], rsa());
    let ecdsa = ca.issue("ecdsa", &["b.test"]);
    let mut server = downstream(common(&[&rsa, &ecdsa], None));
    assert_eq!(served(&ca, &server, "c.test").await, "CN=rsa");
    server.full_scan_certs_on_sni_mismatch = true;
    assert_eq!(served(&ca, &server, "c.test").await, "CN=ecdsa");
}

#[tokio::test]
async fn a_client_without_a_server_name_is_refused_where_one_is_required() {
    let ca = Ca::new("ca");
    let mut server = downstream(common(&[&ca.issue("a", &["a.test"])], None));
    server.require_sni = true;
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.sni = "".into();
    let rig = Rig::new(server, client);
    let (server, client) = rig.connect().await.shake().await;
    assert!(server.unwrap_err().reason.contains(":CONNECTION_REJECTED:"));
    assert!(client.unwrap_err().reason.contains(":SSLV3_ALERT_HANDSHAKE_FAILURE:"));
    assert_eq!(rig.stat("l.ssl.connection_error"), 1);
}

#[tokio::test]
async fn parameters_are_honoured_in_their_order() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let suites = [CipherSuite::EcdheEcdsaChacha20Poly1305, CipherSuite::EcdheEcdsaAes128GcmSha256];
    let mut server = downstream(common(&[&leaf], None));
    server.common.params.maximum = TlsVersion::V1_2;
    server.common.params.cipher_suites = suites.to_vec();
    server.common.params.curves = vec![Curve::P384, Curve::P256];
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.common.params.cipher_suites = suites.iter().rev().copied().collect();
    let rig = Rig::new(server.clone(), client.clone());
    let pair = rig.shaken().await;
    assert_eq!(pair.server.info().cipher, "ECDHE-ECDSA-CHACHA20-POLY1305");
    assert_eq!(rig.stat("l.ssl.curves.P-384") + rig.stat("l.ssl.curves.P-256"), 1);
    server.prefer_client_ciphers = true;
    let pair = Rig::new(server.clone(), client.clone()).shaken().await;
    assert_eq!(pair.server.info().cipher, "ECDHE-ECDSA-AES128-GCM-SHA256");
    client.common.params.minimum = TlsVersion::V1_3;
    let (server, client) = Rig::new(server, client).connect().await.shake().await;
    let (server, client) = (server.unwrap_err().reason, client.unwrap_err().reason);
    assert!(server.contains(":UNSUPPORTED_PROTOCOL:"), "{server}");
    assert!(client.contains(":TLSV1_ALERT_PROTOCOL_VERSION:"), "{client}");
}

#[tokio::test]
async fn a_key_of_p_384_is_served() {
    let ca = Ca::new("ca");
    let leaf = ca.issue_with("a", &["a.test"], KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
    let rig = Rig::new(downstream(common(&[&leaf], None)), upstream(common(&[], Some(ca.trusted()))));
    rig.shaken().await;
    assert_eq!(rig.stat("c.ssl.sigalgs.ecdsa_secp384r1_sha384"), 1);
}

#[test]
fn what_cannot_be_built_is_refused_with_its_reason() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let with = |chain: &str, key: &str| {
        let leaf = Leaf { chain: chain.to_owned(), key: key.to_owned() };
        build(downstream(common(&[&leaf], None))).err().unwrap_or_default()
    };
    for (refused, reason) in [
        (with("nothing", &leaf.key), "certificate_chain: <inline>: there is no certificate in it"),
        (with(&leaf.key, &leaf.key), "certificate_chain: <inline>: there is no certificate in it"),
        (with(&leaf.chain, &leaf.chain), "private_key: <inline>: there is no private key in it"),
        (
            with(&leaf.chain, &ca.issue("b", &[]).key),
            "private_key: <inline>: it is not the key of the certificate of <inline>",
        ),
        (
            with(
                &leaf.chain,
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            ),
            "private_key: <inline>: it is encrypted, and no password is given",
        ),
    ] {
        assert_eq!(refused, reason);
    }
    let none = build(downstream(common(&[], None))).err().unwrap();
    assert_eq!(none, "Server TlsCertificates must have a certificate specified");
}

#[tokio::test]
async fn an_encrypted_key_is_opened_by_its_password() {
    let ca = Ca::new("ca");
    let encrypted = include_str!("encrypted.pem");
    let leaf = ca.issue_with("a", &["a.test"], rsa());
    let with = |password: Option<&str>| {
        let mut model = downstream(common(&[&Leaf { key: encrypted.to_owned(), ..leaf.clone() }], None));
        model.common.certificates[0].password = password.map(inline);
        model
    };
    // Files end with a line feed.
    let rig = Rig::new(with(Some("secret\n")), upstream(common(&[], Some(ca.trusted()))));
    rig.shaken().await;
    let refused = build(with(Some("wrong"))).err().unwrap();
    assert!(
        refused.starts_with("private_key: <inline>: the password of <inline> does not open it"),
        "{refused}"
    );
    let refused = build(with(None)).err().unwrap();
    assert_eq!(refused, "private_key: <inline>: it is encrypted, and no password is given");
}
