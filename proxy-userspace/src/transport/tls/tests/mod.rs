mod choice;
mod ocsp;
pub(in crate::transport) mod rig;
mod secrets;
mod session;

use std::io::{Read as _, Write as _};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::rig::*;
use crate::net::socket::Socket;

fn pair_of(ca: &Ca) -> Rig {
    let leaf = ca.issue("a", &["a.test"]);
    Rig::new(downstream(common(&[&leaf], None)), upstream(common(&[], Some(ca.trusted()))))
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_on_its_own() {
    let rig = pair_of(&Ca::new("ca"));
    let mut pair = rig.shaken().await;
    pair.client.send(b"question").await;
    pair.client.finish().await;
    assert_eq!(pair.server.rest().await.unwrap(), b"question");
    pair.server.send(b"answer").await;
    pair.server.finish().await;
    assert_eq!(pair.client.rest().await.unwrap(), b"answer");
}

#[tokio::test]
async fn what_was_agreed_on_is_told_and_counted() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let mut server = downstream(common(&[&leaf], None));
    server.common.alpn_protocols = vec!["h2".into(), "http/1.1".into()];
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.common.alpn_protocols = vec!["http/1.1".into()];
    let rig = Rig::new(server, client);
    let pair = rig.shaken().await;
    for info in [pair.server.info(), pair.client.info()] {
        assert_eq!(info.version, "TLSv1.3");
        assert_eq!(info.cipher, "TLS_AES_128_GCM_SHA256");
        assert_eq!(info.alpn.as_deref(), Some("http/1.1"));
        assert_eq!(info.server_name.as_deref(), Some("a.test"));
        assert!(!info.resumed);
    }
    assert_eq!(pair.server.info().local, pair.client.info().peer);
    assert!(pair.client.info().peer_validated);
    assert!(pair.server.info().peer.is_none());
    for (name, count) in [
        ("l.ssl.handshake", 1),
        ("c.ssl.handshake", 1),
        ("l.ssl.no_certificate", 1),
        ("c.ssl.no_certificate", 0),
        ("l.ssl.versions.TLSv1.3", 1),
        ("l.ssl.ciphers.TLS_AES_128_GCM_SHA256", 1),
        ("c.ssl.curves.X25519", 1),
        ("c.ssl.sigalgs.ecdsa_secp256r1_sha256", 1),
        ("l.ssl.session_reused", 0),
        ("l.ssl.connection_error", 0),
    ] {
        assert_eq!(rig.stat(name), count, "{name}");
    }
}

#[tokio::test]
async fn a_client_whose_protocols_are_unknown_goes_on_without_one() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let mut server = downstream(common(&[&leaf], None));
    server.common.alpn_protocols = vec!["h2".into()];
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.common.alpn_protocols = vec!["istio".into()];
    let rig = Rig::new(server, client);
    let pair = rig.shaken().await;
    assert_eq!(pair.server.info().alpn, None);
    assert_eq!(pair.client.info().alpn, None);
}

#[tokio::test]
async fn a_server_of_another_ca_is_refused_and_told() {
    let leaf = Ca::new("other").issue("a", &["a.test"]);
    let trusted = Ca::new("ca").trusted();
    let rig = Rig::new(downstream(common(&[&leaf], None)), upstream(common(&[], Some(trusted))));
    let mut pair = rig.connect().await;
    let (server, client) = pair.shake().await;
    let client = client.unwrap_err();
    assert!(client.reason.starts_with("TLS_error:|268435581:SSL routines:"), "{client}");
    assert!(client.reason.contains(":CERTIFICATE_VERIFY_FAILED:"), "{client}");
    assert!(!client.remote);
    let server = server.unwrap_err();
    assert!(server.reason.contains("ALERT_"), "{server}");
    assert_eq!(rig.stat("c.ssl.fail_verify_error"), 1);
    assert_eq!(rig.stat("c.ssl.connection_error"), 0);
    assert_eq!(rig.stat("l.ssl.connection_error"), 1);
    assert_eq!(rig.stat("l.ssl.handshake"), 0);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let mut server = downstream(common(&[&leaf], Some(ca.trusted())));
    server.require_client_certificate = true;
    let rig = Rig::new(server, upstream(common(&[], Some(ca.trusted()))));
    let mut pair = rig.connect().await;
    let (server, _) = pair.shake().await;
    let server = server.unwrap_err();
    assert!(server.reason.contains(":PEER_DID_NOT_RETURN_A_CERTIFICATE:"), "{server}");
    assert_eq!(rig.stat("l.ssl.fail_verify_no_cert"), 1);
    assert_eq!(rig.stat("l.ssl.connection_error"), 0);
    // A client of TLS 1.3 hears of it once it reads.
    let error = pair.client.rest().await.unwrap_err();
    assert!(error.to_string().contains(":TLSV1_ALERT_CERTIFICATE_REQUIRED:"), "{error}");
}

#[tokio::test]
async fn a_clients_certificate_is_verified_where_it_is_given_and_optional() {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let server = || downstream(common(&[&leaf], Some(ca.trusted())));
    let without = Rig::new(server(), upstream(common(&[], None)));
    assert!(without.shaken().await.server.info().peer.is_none());
    let good = Rig::new(server(), upstream(common(&[&ca.issue("c", &["c.test"])], None)));
    let pair = good.shaken().await;
    assert!(pair.server.info().peer_validated);
    assert!(pair.server.info().peer.as_ref().unwrap().subject.contains("CN=c"));
    let bad = Rig::new(server(), upstream(common(&[&Ca::new("other").issue("c", &["c.test"])], None)));
    let (refused, _) = bad.connect().await.shake().await;
    assert!(refused.unwrap_err().reason.contains(":CERTIFICATE_VERIFY_FAILED:"));
    assert_eq!(bad.stat("l.ssl.fail_verify_error"), 1);
}

#[tokio::test]
async fn plaintext_is_refused_in_boringssls_words() {
    let rig = pair_of(&Ca::new("ca"));
    for (said, reason) in
        [(&b"GET / HTTP/1.1\r\n\r\n"[..], "HTTP_REQUEST"), (b"EHLO example.com\r\n", "WRONG_VERSION_NUMBER")]
    {
        let mut pair = rig.connect().await;
        pair.client.socket.write_all(said).await.unwrap();
        let failure = pair.server.ready().await.unwrap_err();
        assert!(failure.reason.ends_with(&format!(":{reason}:TLS_error_end")), "{failure}");
        let mut buf = Vec::new();
        assert!(pair.server.wire().read(&mut [0; 16]).await.is_err());
        assert!(pair.server.wire().write_all(b"secret").await.is_err());
        drop(pair.server);
        let _ = pair.client.socket.read_to_end(&mut buf).await;
        assert_eq!(buf, [21, 3, 1, 0, 2, 2, 70], "nothing but protocol_version");
    }
    assert_eq!(rig.stat("l.ssl.connection_error"), 2);
}

#[tokio::test]
async fn much_is_carried_while_the_reader_is_slow() {
    const SIZE: usize = 8 * 1024 * 1024;
    let rig = pair_of(&Ca::new("ca"));
    let Pair { mut server, mut client } = rig.shaken().await;
    let sent: Vec<u8> = (0..SIZE).map(|i| (i * 7 / 3) as u8).collect();
    let expected = sent.clone();
    let writing = async move {
        server.send(&sent).await;
        server.finish().await;
        server
    };
    let reading = async move {
        let mut all = Vec::new();
        // Small, odd and large buffers: what there is no room for is held.
        for size in [1, 100, 4097, 20_000, 70_000].into_iter().cycle() {
            let mut buf = vec![0; size];
            tokio::task::yield_now().await;
            match client.wire().read(&mut buf).await.unwrap() {
                0 => return all,
                n => all.extend_from_slice(&buf[..n]),
            }
        }
        all
    };
    let (_server, got) = tokio::join!(writing, reading);
    assert!(got == expected);
}

#[tokio::test]
async fn a_fin_without_close_notify_is_an_end_and_a_reset_is_an_error() {
    let rig = pair_of(&Ca::new("ca"));
    let mut pair = rig.shaken().await;
    pair.client.send(b"cut").await;
    // Not dropped: it has not read its tickets, and would reset.
    Socket::Tcp(&pair.client.socket).shutdown_write().unwrap();
    assert_eq!(pair.server.rest().await.unwrap(), b"cut");
    let mut pair = rig.shaken().await;
    pair.client.socket.set_zero_linger().unwrap();
    drop(pair.client);
    assert!(pair.server.rest().await.is_err());
}

#[tokio::test]
async fn a_peer_that_leaves_during_the_handshake_has_gone() {
    let rig = pair_of(&Ca::new("ca"));
    let mut pair = rig.connect().await;
    drop(pair.client);
    let failure = pair.server.ready().await.unwrap_err();
    assert!(failure.remote && failure.reason.is_empty(), "{failure}");
    assert_eq!(rig.stat("l.ssl.connection_error"), 0);
}

#[tokio::test]
async fn a_hello_that_comes_byte_by_byte_is_understood() {
    let rig = pair_of(&Ca::new("ca"));
    let Pair { mut server, mut client } = rig.connect().await;
    let (near, mut far) = sockets().await;
    // The client now talks to `far`, and `between` is the server's peer.
    let mut between = std::mem::replace(&mut client.socket, near);
    let slow = async {
        let mut byte = [0; 1];
        for _ in 0..200 {
            far.read_exact(&mut byte).await.unwrap();
            between.write_all(&byte).await.unwrap();
            tokio::task::yield_now().await;
        }
        let _ = tokio::io::copy_bidirectional(&mut far, &mut between).await;
    };
    let shaken = async { tokio::join!(server.ready(), client.ready()) };
    tokio::select! {
        (server, client) = shaken => {
            server.unwrap();
            client.unwrap();
        }
        () = slow => panic!("the connection ended"),
    }
}

/// A peer that nobody here wrote: rustls's own blocking stream.
#[tokio::test]
async fn a_plain_rustls_client_is_served() {
    let ca = Ca::new("ca");
    let rig = pair_of(&ca);
    let Pair { mut server, client } = rig.connect().await;
    let socket = client.socket.into_std().unwrap();
    socket.set_nonblocking(false).unwrap();
    let pem = ca.pem.clone();
    let peer = std::thread::spawn(move || {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "a.test".try_into().unwrap();
        let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        stream.write_all(b"hello").unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    server.ready().await.unwrap();
    assert_eq!(server.rest().await.unwrap(), b"hello");
    server.send(b"goodbye").await;
    server.finish().await;
    assert_eq!(peer.join().unwrap(), b"goodbye");
}
