use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::{Ended, Peer, run, run_with};
use super::*;

const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
const CANCEL: [u8; 16] = [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2];
const STARTUP: &[u8] = b"\0\0\0\x11\0\x03\0\0user\0a\0\0\0";
const LOGGED_IN: &[u8] = b"R\0\0\0\x08\0\0\0\0";

struct Rig {
    filter: Postgres,
    stats: Stats,
}

impl Rig {
    fn new(downstream_ssl: DownstreamSwitch, upstream_ssl: bool) -> Self {
        let stats = Stats::new();
        let model = model::PostgresProxy { stat_prefix: "p".into(), downstream_ssl, upstream_ssl };
        Self { filter: Postgres::new(&model, Duration::from_secs(15), &stats), stats }
    }

    async fn run<S: Future<Output = ()>>(&self, script: impl FnOnce(Peer, Peer) -> S) -> Ended {
        run(&self.filter, script).await
    }

    /// The counters that are not 0.
    fn counted(&self) -> Vec<(String, u64)> {
        let mut counted = Vec::new();
        self.stats.visit(&mut |name, _| {
            if let Some(value) = self.stats.value(name).filter(|value| *value > 0) {
                counted.push((name.trim_start_matches("postgres.p.").to_owned(), value));
            }
        });
        counted
    }

    fn assert_counted(&self, expected: &[&str]) {
        let counted = self.counted();
        let names: Vec<&str> = counted.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, expected);
    }
}

fn error(code: &str, message: &str) -> Vec<u8> {
    packet::fatal(code, message)
}

#[tokio::test]
async fn a_client_that_wants_tls_gets_it_and_the_server_sees_none() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(SSL_REQUEST).await;
            client.hears("S").await;
            client.shakes_hands().await;
            client.say(STARTUP).await;
            server.hears(STARTUP).await;
            server.say(LOGGED_IN).await;
            server.ends().await;
        })
        .await;
    assert_eq!(ended.leftover(), (b"".as_slice(), LOGGED_IN));
    assert_eq!(ended.bytes.upstream_tx, 17);
    assert_eq!(ended.bytes.downstream_rx, 8 + 17);
    assert_eq!(ended.bytes.downstream_tx, 1);
    rig.assert_counted(&["sessions", "sessions_unencrypted", "sessions_terminated_ssl"]);
}

#[tokio::test]
async fn delivery_byte_by_byte_changes_nothing() {
    let rig = Rig::new(DownstreamSwitch::Require, true);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.spell(SSL_REQUEST).await;
            client.hears("S").await;
            client.shakes_hands().await;
            client.spell(STARTUP).await;
            server.hears(SSL_REQUEST).await;
            server.say("S").await;
            server.takes_hands().await;
            server.hears(STARTUP).await;
            server.spell(b"R\0\0\0\x0c\0\0\0\x05salt").await;
            client.hears(b"R\0\0\0\x0c\0\0\0\x05salt").await;
            client.spell(b"p\0\0\0\x09pass\0").await;
            server.hears(b"p\0\0\0\x09pass\0").await;
            server.spell(LOGGED_IN).await;
            client.hears(&LOGGED_IN[..8]).await;
        })
        .await;
    assert_eq!(ended.leftover(), (b"".as_slice(), b"\0".as_slice()), "the rest is the relay's");
    rig.assert_counted(&[
        "sessions",
        "sessions_unencrypted",
        "sessions_terminated_ssl",
        "sessions_upstream_ssl_success",
    ]);
}

#[tokio::test]
async fn a_client_without_tls_is_let_in_or_told_why_not() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(STARTUP).await;
            server.hears(STARTUP).await;
            server.say(LOGGED_IN).await;
        })
        .await;
    assert!(ended.result.is_ok(), "{ended:?}");

    let rig = Rig::new(DownstreamSwitch::Require, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(STARTUP).await;
            client.hears_last(error("28000", "connection requires TLS: use sslmode=require")).await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "postgres_downstream_ssl_required");
    assert_eq!(ended.bytes.upstream_tx, 0);
    rig.assert_counted(&[]);
}

#[tokio::test]
async fn plaintext_behind_the_ssl_request_closes_the_connection() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say([&SSL_REQUEST, STARTUP].concat()).await;
            client.hears_last("").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "unencrypted data after the switch to TLS was agreed on");

    // What was not yet read with it is no TLS.
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(SSL_REQUEST).await;
            client.hears("S").await;
            client.say(STARTUP).await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "TLS_error: wrong version number");
    rig.assert_counted(&[]);
}

#[tokio::test]
async fn gss_encryption_is_declined_once_where_a_side_uses_tls() {
    let rig = Rig::new(DownstreamSwitch::Require, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(GSS_REQUEST).await;
            client.hears("N").await;
            client.say(SSL_REQUEST).await;
            client.hears("S").await;
            client.shakes_hands().await;
            client.say(STARTUP).await;
            server.hears(STARTUP).await;
            server.say("E").await;
            server.ends().await;
        })
        .await;
    assert!(ended.result.is_ok(), "{ended:?}");
    rig.assert_counted(&["sessions_terminated_ssl"]);

    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(GSS_REQUEST).await;
            client.hears("N").await;
            client.say(GSS_REQUEST).await;
            client.hears_last("").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "postgres_unexpected_gssencrequest");

    let ended = rig
        .run(|mut client, mut server| async move {
            client.say([GSS_REQUEST.as_slice(), STARTUP].concat()).await;
            client.hears_last("").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "unencrypted data after the switch to TLS was agreed on");
}

#[tokio::test]
async fn tls_is_not_asked_for_twice() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(SSL_REQUEST).await;
            client.hears("S").await;
            client.shakes_hands().await;
            client.say(SSL_REQUEST).await;
            client.hears_last("").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "postgres_tls_twice");
}

#[tokio::test]
async fn a_passive_filter_leaves_everything_to_the_server() {
    for (said, counted) in [
        (SSL_REQUEST.as_slice(), ["sessions", "sessions_encrypted"].as_slice()),
        (&GSS_REQUEST, &["sessions", "sessions_encrypted"]),
        (&CANCEL, &[]),
        (b"GET / HTTP/1.1\r\n\r\n", &[]),
        (&[0x16, 3, 1, 2, 0], &[]),
    ] {
        let rig = Rig::new(DownstreamSwitch::Disable, false);
        let ended = rig.run(|mut client, _server| async move { client.say(said).await }).await;
        assert_eq!(ended.leftover(), (said, b"".as_slice()));
        rig.assert_counted(counted);
    }
    let rig = Rig::new(DownstreamSwitch::Disable, false);
    let ended = rig.run(|_client, mut server| async move { server.say("220 hi").await }).await;
    assert_eq!(ended.leftover(), (b"".as_slice(), b"220 hi".as_slice()));
}

#[tokio::test]
async fn a_server_that_must_speak_tls_and_does_not_is_left() {
    for (answer, why) in [
        ("N", "the server does not accept TLS"),
        ("E", "the server does not accept TLS"),
        ("SE", "unencrypted data after the switch to TLS was agreed on"),
    ] {
        let rig = Rig::new(DownstreamSwitch::Allow, true);
        let ended = rig
            .run(|mut client, mut server| async move {
                client.say(STARTUP).await;
                server.hears(SSL_REQUEST).await;
                server.say(answer).await;
                client.hears_last(error("08006", "no TLS connection to the server")).await;
                server.hears_last("").await;
            })
            .await;
        assert_eq!(ended.why(), why);
        assert_eq!(ended.bytes.upstream_tx, 8, "the startup packet has stayed here");
        rig.assert_counted(&["sessions_upstream_ssl_failed"]);
    }
}

#[tokio::test]
async fn a_server_whose_handshake_fails_is_left() {
    let rig = Rig::new(DownstreamSwitch::Allow, true);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(STARTUP).await;
            server.hears(SSL_REQUEST).await;
            server.say("S").await;
            server.goes_on_in_plaintext().await;
            client.hears_last(error("08006", "no TLS connection to the server")).await;
        })
        .await;
    assert_eq!(ended.why(), "TLS_error: wrong version number");
    rig.assert_counted(&["sessions_upstream_ssl_failed"]);
}

#[tokio::test]
async fn a_transport_that_cannot_turn_to_tls_closes_the_connection() {
    let rig = Rig::new(DownstreamSwitch::Allow, true);
    let ended = run_with(&rig.filter, [true, false], |mut client, mut server| async move {
        client.say(STARTUP).await;
        server.hears(SSL_REQUEST).await;
        server.say("S").await;
        client.hears_last(error("08006", "no TLS connection to the server")).await;
    })
    .await;
    assert_eq!(ended.why(), "the transport socket cannot turn to TLS");
    rig.assert_counted(&["sessions_upstream_ssl_failed"]);
}

#[tokio::test]
async fn tls_from_end_to_end_needs_the_servers_consent() {
    let rig = Rig::new(DownstreamSwitch::Disable, true);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(SSL_REQUEST).await;
            server.hears(SSL_REQUEST).await;
            server.say("S").await;
            client.hears("S").await;
        })
        .await;
    assert_eq!(ended.result.unwrap(), Leftover::default());
    rig.assert_counted(&["sessions", "sessions_encrypted"]);

    let rig = Rig::new(DownstreamSwitch::Disable, true);
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(SSL_REQUEST).await;
            server.hears(SSL_REQUEST).await;
            server.say("N").await;
            client.hears_last(error("08006", "no TLS connection to the server")).await;
        })
        .await;
    assert_eq!(ended.why(), "the server does not accept TLS");
    rig.assert_counted(&["sessions_upstream_ssl_failed"]);
}

#[tokio::test]
async fn a_cancel_request_takes_the_way_of_a_session() {
    let rig = Rig::new(DownstreamSwitch::Require, true);
    let ended = rig
        .run(|mut client, mut server| async move {
            // Clients before PostgreSQL 17 know no other way.
            client.say(CANCEL).await;
            server.hears(SSL_REQUEST).await;
            server.say("S").await;
            server.takes_hands().await;
            server.hears(CANCEL).await;
        })
        .await;
    assert_eq!(ended.result.unwrap(), Leftover::default());
    rig.assert_counted(&["sessions_upstream_ssl_success"]);

    let ended = rig
        .run(|mut client, mut server| async move {
            client.say([CANCEL.as_slice(), STARTUP].concat()).await;
            client.hears_last("").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "postgres_data_after_cancel");
}

#[tokio::test]
async fn a_first_packet_that_is_none_is_refused() {
    for said in [&[0x16, 3, 1, 2, 0][..], b"GET / HTTP/1.1\r\n\r\n", &[0, 0, 0, 8, 4, 210, 22, 49]] {
        for (downstream, upstream) in [
            (DownstreamSwitch::Require, false),
            (DownstreamSwitch::Allow, false),
            (DownstreamSwitch::Disable, true),
        ] {
            let rig = Rig::new(downstream, upstream);
            let ended = rig
                .run(|mut client, mut server| async move {
                    client.say(said).await;
                    client.hears_last("").await;
                    server.hears_last("").await;
                })
                .await;
            assert_eq!(ended.why(), "postgres_malformed_startup");
        }
    }
}

#[tokio::test]
async fn a_side_that_goes_ends_it() {
    let rig = Rig::new(DownstreamSwitch::Allow, true);
    let gone = rig
        .run(|mut client, _server| async move {
            client.say(&SSL_REQUEST[..5]).await;
            client.ends().await;
        })
        .await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Downstream)));
    let gone = rig
        .run(|mut client, _server| async move {
            client.resets().await;
        })
        .await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Downstream)));
    let gone = rig.run(|_client, mut server| async move { server.ends().await }).await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Upstream)));
    let gone = rig
        .run(|mut client, mut server| async move {
            server.resets().await;
            client.hears_last("").await;
        })
        .await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Upstream)));
    rig.assert_counted(&[]);
    let gone = rig
        .run(|mut client, mut server| async move {
            client.say(STARTUP).await;
            server.hears(SSL_REQUEST).await;
            server.ends().await;
            client.hears_last(error("08006", "no TLS connection to the server")).await;
        })
        .await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Upstream)));
    rig.assert_counted(&["sessions_upstream_ssl_failed"]);
}

#[tokio::test]
async fn a_login_that_fails_is_relayed_and_not_counted() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let refusal = error("28P01", "password authentication failed");
    let expected = refusal.clone();
    let ended = rig
        .run(|mut client, mut server| async move {
            client.say(STARTUP).await;
            server.hears(STARTUP).await;
            server.say(&refusal).await;
            server.ends().await;
        })
        .await;
    assert_eq!(ended.leftover(), (b"".as_slice(), expected.as_slice()));
    rig.assert_counted(&[]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_closed_after_a_minute() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let started = crate::clock::now();
    let stop = {
        let (near, _client) = tokio::net::UnixStream::pair().unwrap();
        let (far, _server) = tokio::net::UnixStream::pair().unwrap();
        let mut down = Wire::new(crate::net::socket::Socket::Unix(&near), None);
        let mut up = Wire::new(crate::net::socket::Socket::Unix(&far), None);
        let mut bytes = Bytes::default();
        rig.filter.negotiate(&mut down, &mut up, &mut bytes).await.unwrap_err()
    };
    assert_eq!(stop, Stop::close("postgres_startup_timeout"));
    assert_eq!(started.elapsed().as_secs(), 60);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// It ends: with the relay, or closed. A filter that is to secure a side never relays what is not PostgreSQL.
    #[test]
    fn any_bytes_of_both_sides_are_survived(
        client_says in proptest::collection::vec(any::<u8>(), 0..40),
        server_says in proptest::collection::vec(any::<u8>(), 0..40),
        begins in 0_usize..4,
        mode in 0_usize..3,
        upstream in any::<bool>(),
    ) {
        let downstream =
            [DownstreamSwitch::Disable, DownstreamSwitch::Allow, DownstreamSwitch::Require][mode];
        let begin = [b"".as_slice(), &SSL_REQUEST, STARTUP, &CANCEL][begins];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rig = Rig::new(downstream, upstream);
        let said = [begin, client_says.as_slice()].concat();
        let ended = runtime.block_on(rig.run(|mut client, mut server| async move {
            client.say(said).await;
            server.say(server_says).await;
            client.ends().await;
            server.ends().await;
            // Both stay until the driver is done.
            client.hears_to_the_end().await;
            server.hears_to_the_end().await;
        }));
        if upstream && ended.result.is_ok() {
            prop_assert_eq!(rig.counted().iter().filter(|(name, _)| name.ends_with("failed")).count(), 0);
        }
    }
}
