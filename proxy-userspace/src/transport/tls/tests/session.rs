//! Resumption.

use std::time::Duration;

use proxy_config::model::tls::{SessionTickets, TlsVersion};

use super::rig::*;

/// Shakes hands, and lets the client read its tickets.
async fn visit(rig: &Rig) -> (bool, bool) {
    let mut pair = rig.shaken().await;
    pair.server.send(b"hello").await;
    pair.server.finish().await;
    assert_eq!(pair.client.rest().await.unwrap(), b"hello");
    assert_eq!(pair.server.info().resumed, pair.client.info().resumed);
    (pair.client.info().resumed, pair.client.info().peer_validated)
}

fn rig(tickets: SessionTickets, version: TlsVersion) -> Rig {
    let ca = Ca::new("ca");
    let leaf = ca.issue("a", &["a.test"]);
    let mut server = downstream(common(&[&leaf], None));
    server.session_tickets = tickets;
    server.common.params.minimum = TlsVersion::V1_2;
    server.common.params.maximum = version;
    Rig::new(server, upstream(common(&[], Some(ca.trusted()))))
}

fn keys(bytes: &[u8]) -> SessionTickets {
    let key = |byte: &u8| proxy_config::model::tls::DataSource::Inline(vec![*byte; 80].into());
    SessionTickets::Keys(bytes.iter().map(key).collect())
}

#[tokio::test]
async fn a_client_comes_back_without_a_full_handshake_and_its_server_is_judged_again() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let rig = rig(SessionTickets::Own, version);
        assert_eq!(visit(&rig).await, (false, true));
        assert_eq!(visit(&rig).await, (true, true), "{version:?}");
        assert_eq!(rig.stat("l.ssl.session_reused"), 1);
        assert_eq!(rig.stat("c.ssl.session_reused"), 1);
        assert_eq!(rig.stat("l.ssl.handshake"), 2);
    }
}

#[tokio::test]
async fn without_tickets_tls_1_3_is_not_resumed_and_tls_1_2_is_by_its_session_id() {
    let modern = rig(SessionTickets::Disabled, TlsVersion::V1_3);
    visit(&modern).await;
    assert!(!visit(&modern).await.0);
    let old = rig(SessionTickets::Disabled, TlsVersion::V1_2);
    visit(&old).await;
    assert!(visit(&old).await.0);
}

#[tokio::test]
async fn neither_tickets_nor_ids_where_both_are_disabled() {
    let ca = Ca::new("ca");
    let mut server = downstream(common(&[&ca.issue("a", &["a.test"])], None));
    server.session_tickets = SessionTickets::Disabled;
    server.disable_stateful_session_resumption = true;
    server.common.params.maximum = TlsVersion::V1_2;
    let rig = Rig::new(server, upstream(common(&[], Some(ca.trusted()))));
    visit(&rig).await;
    assert!(!visit(&rig).await.0);
}

#[tokio::test]
async fn a_client_that_keeps_no_keys_is_not_resumed() {
    let ca = Ca::new("ca");
    let server = downstream(common(&[&ca.issue("a", &["a.test"])], None));
    let mut client = upstream(common(&[], Some(ca.trusted())));
    client.max_session_keys = 0;
    let rig = Rig::new(server, client);
    visit(&rig).await;
    assert!(!visit(&rig).await.0);
}

/// Two servers; the client's sessions are carried from one to the other.
async fn carried(one: Rig, other: Rig) -> bool {
    visit(&one).await;
    let moved = Rig { env: one.env, server: other.server, client: one.client };
    visit(&moved).await.0
}

#[tokio::test]
async fn two_processes_that_share_keys_resume_each_others_sessions() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let ca = Ca::new("ca");
        let leaf = ca.issue("a", &["a.test"]);
        let make = |bytes: &[u8]| {
            let mut server = downstream(common(&[&leaf], None));
            server.session_tickets = keys(bytes);
            server.common.params.maximum = version;
            Rig::new(server, upstream(common(&[], Some(ca.trusted()))))
        };
        assert!(carried(make(&[1]), make(&[1])).await, "{version:?}");
        // The other has rotated: what its old key has made is still good.
        assert!(carried(make(&[1]), make(&[2, 1])).await);
        assert!(!carried(make(&[1]), make(&[2])).await);
    }
}

#[tokio::test]
async fn a_session_of_other_rules_is_not_resumed() {
    let (ca, other_ca) = (Ca::new("ca"), Ca::new("other"));
    let leaf = ca.issue("a", &["a.test"]);
    let with = |leaf: &Leaf, validation| {
        let mut server = downstream(common(&[leaf], validation));
        server.session_tickets = keys(&[1]);
        Rig::new(server, upstream(common(&[&ca.issue("c", &[])], Some(ca.trusted()))))
    };
    assert!(carried(with(&leaf, Some(ca.trusted())), with(&leaf, Some(ca.trusted()))).await);
    // The same CAs' names, but not the same CAs.
    let mut both = ca.trusted();
    both.trusted_ca =
        Some(proxy_config::model::tls::TrustedCa::Source(inline(&format!("{}{}", ca.pem, other_ca.pem))));
    assert!(!carried(with(&leaf, Some(ca.trusted())), with(&leaf, Some(both))).await);
    assert!(!carried(with(&leaf, None), with(&leaf, Some(ca.trusted()))).await);
    // A certificate for other names.
    let elsewhere = ca.issue("a", &["a.test", "b.test"]);
    assert!(!carried(with(&leaf, None), with(&elsewhere, None)).await);
    // A new certificate for the same ones.
    let renewed = ca.issue("a", &["a.test"]);
    assert!(carried(with(&leaf, None), with(&renewed, None)).await);
}

#[tokio::test]
async fn a_session_is_forgotten_after_its_timeout() {
    for version in [TlsVersion::V1_2, TlsVersion::V1_3] {
        for tickets in [SessionTickets::Own, SessionTickets::Disabled] {
            let ca = Ca::new("ca");
            let mut server = downstream(common(&[&ca.issue("a", &["a.test"])], None));
            server.session_timeout = Some(Duration::from_secs(1));
            server.session_tickets = tickets;
            server.common.params.maximum = version;
            let rig = Rig::new(server, upstream(common(&[], Some(ca.trusted()))));
            visit(&rig).await;
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            assert!(!visit(&rig).await.0);
        }
    }
}

#[test]
fn a_ticket_key_of_another_length_is_refused() {
    let ca = Ca::new("ca");
    let mut server = downstream(common(&[&ca.issue("a", &["a.test"])], None));
    server.session_tickets = SessionTickets::Keys(vec![inline("too short")]);
    let refused = build(server).err().unwrap();
    assert_eq!(
        refused,
        "session_ticket_keys: <inline>: incorrect TLS session ticket key length: 9 bytes, not 80"
    );
}

/// What waits on a socket.
async fn waiting(end: &End) -> usize {
    // On loopback, what was sent is there.
    tokio::task::yield_now().await;
    socket2::SockRef::from(&end.socket).peek(&mut [std::mem::MaybeUninit::uninit(); 4096]).unwrap_or(0)
}

#[tokio::test]
async fn tickets_go_with_the_first_bytes_that_are_written() {
    let mut pair = rig(SessionTickets::Own, TlsVersion::V1_3).shaken().await;
    assert_eq!(waiting(&pair.client).await, 0);
    // Reading does not send them either.
    pair.client.send(b"x").await;
    let mut buf = [0; 2];
    assert_eq!(pair.server.wire().read(&mut buf).await.unwrap(), 1);
    assert_eq!(waiting(&pair.client).await, 0);
    pair.server.send(b"hello").await;
    // Two tickets, each longer than the bytes in their record.
    assert!(waiting(&pair.client).await > 200);
}

#[tokio::test]
async fn a_server_that_says_nothing_gives_its_tickets_with_its_end() {
    let rig = rig(SessionTickets::Own, TlsVersion::V1_3);
    let mut pair = rig.shaken().await;
    pair.server.finish().await;
    assert_eq!(pair.client.rest().await.unwrap(), b"");
    assert!(visit(&rig).await.0);
}
