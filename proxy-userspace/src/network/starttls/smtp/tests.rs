use proptest::prelude::*;

use super::super::testing::{Ended, Peer, run, run_with};
use super::*;
use crate::net::socket::Socket;

const GREETING: &str = "220 mx.test ESMTP\r\n";
const EHLO: &str = "EHLO client.test\r\n";
const MAIL: &str = "MAIL FROM:<a@test>\r\n";
const READY: &str = "220 2.0.0 Ready to start TLS\r\n";
const NO_SERVER_TLS: &str = "421 4.7.0 No TLS connection to the server\r\n";
const SERVER_EHLO: &str = "250-mx.test\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250 SIZE 1000\r\n";

struct Rig {
    filter: Smtp,
    stats: Stats,
}

impl Rig {
    fn new(downstream_starttls: DownstreamSwitch, upstream_starttls: bool) -> Self {
        let stats = Stats::new();
        let model = model::SmtpStarttls { stat_prefix: "s".into(), downstream_starttls, upstream_starttls };
        Self { filter: Smtp::new(&model, Duration::from_secs(15), &stats), stats }
    }

    async fn run<S: Future<Output = ()>>(&self, script: impl FnOnce(Peer, Peer) -> S) -> Ended {
        run(&self.filter, script).await
    }

    /// As [`Self::run`], once the client has seen the greeting.
    async fn greeted<S: Future<Output = ()>>(&self, script: impl FnOnce(Peer, Peer) -> S) -> Ended {
        self.run(|mut client, mut server| async move {
            server.say(GREETING).await;
            client.hears(GREETING).await;
            script(client, server).await;
        })
        .await
    }

    fn assert_counted(&self, expected: &[(&str, u64)]) {
        let mut counted = Vec::new();
        self.stats.visit(&mut |name, _| {
            let name = name.trim_start_matches("smtp.s.").to_owned();
            let value = self.stats.value(&format!("smtp.s.{name}")).unwrap_or_default();
            if value > 0 && name != "session_requests" {
                counted.push((name, value));
            }
        });
        let counted: Vec<(&str, u64)> = counted.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(counted, expected);
    }
}

#[tokio::test]
async fn a_client_is_offered_tls_and_says_who_it_is_again() {
    let rig = Rig::new(DownstreamSwitch::Require, false);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say(EHLO).await;
            server.hears(EHLO).await;
            server.say(SERVER_EHLO).await;
            client.hears("250-mx.test\r\n250-SIZE 1000\r\n250 STARTTLS\r\n").await;
            client.say("starttls\r\n").await;
            client.hears(READY).await;
            client.shakes_hands().await;
            client.say(EHLO).await;
            server.hears(EHLO).await;
            server.say(SERVER_EHLO).await;
            client.hears("250-mx.test\r\n250-AUTH PLAIN\r\n250 SIZE 1000\r\n").await;
        })
        .await;
    assert_eq!(ended.result.as_ref().unwrap(), &Leftover::default());
    assert_eq!(ended.bytes.upstream_tx, 2 * EHLO.len() as u64, "no STARTTLS has gone to the server");
    rig.assert_counted(&[("downstream_tls_termination_success", 1)]);
}

#[tokio::test]
async fn both_sides_turn_and_delivery_byte_by_byte_changes_nothing() {
    let rig = Rig::new(DownstreamSwitch::Require, true);
    let ended = rig
        .run(|mut client, mut server| async move {
            server.spell(GREETING).await;
            client.hears(GREETING).await;
            client.spell(EHLO).await;
            server.hears(EHLO).await;
            server.spell(SERVER_EHLO).await;
            server.hears("STARTTLS\r\n").await;
            server.spell("220 go\r\n").await;
            server.takes_hands().await;
            server.hears(EHLO).await;
            server.spell(SERVER_EHLO).await;
            client.hears("250-mx.test\r\n250-SIZE 1000\r\n250 STARTTLS\r\n").await;
            client.spell("STARTTLS\r\n").await;
            client.hears(READY).await;
            client.shakes_hands().await;
            client.spell(EHLO).await;
            server.hears(EHLO).await;
            server.spell(SERVER_EHLO).await;
            client.hears("250-mx.test\r\n250-AUTH PLAIN\r\n250 SIZE 1000\r\n").await;
        })
        .await;
    assert_eq!(ended.result.unwrap(), Leftover::default());
    rig.assert_counted(&[("downstream_tls_termination_success", 1), ("upstream_tls_success", 1)]);
}

#[tokio::test]
async fn a_filter_with_nothing_to_do_reads_nothing() {
    let rig = Rig::new(DownstreamSwitch::Disable, false);
    let ended = rig.run(|mut client, _server| async move { client.say(EHLO).await }).await;
    assert_eq!(ended.result.unwrap(), Leftover::default());
    assert_eq!(ended.bytes, Bytes::default());
}

#[tokio::test]
async fn a_client_may_do_without_tls_where_it_is_only_offered() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    for begin in [MAIL, "AUTH PLAIN\r\n", "XCLIENT a=b\r\n"] {
        let ended = rig
            .greeted(|mut client, mut server| async move {
                client.say(EHLO).await;
                server.hears(EHLO).await;
                server.say("250 mx.test\r\n").await;
                client.hears("250-mx.test\r\n250 STARTTLS\r\n").await;
                client.say([begin, "RCPT TO:<b@test>\r\nDA"].concat()).await;
            })
            .await;
        let expected = [begin, "RCPT TO:<b@test>\r\nDA"].concat();
        assert_eq!(ended.leftover(), (expected.as_bytes(), b"".as_slice()));
    }
    rig.assert_counted(&[]);
}

#[tokio::test]
async fn before_tls_nothing_passes_where_it_is_required() {
    let rig = Rig::new(DownstreamSwitch::Require, false);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say([MAIL, "AUTH PLAIN x\r\nVRFY a\r\n\r\nDATA\r\n"].concat()).await;
            client.hears("530 5.7.0 Must issue a STARTTLS command first\r\n".repeat(5)).await;
            client.say("NOOP\r\nRSET\r\n").await;
            client.hears("250 2.0.0 OK\r\n".repeat(2)).await;
            client.say("QUIT\r\nMAIL\r\n").await;
            server.hears("QUIT\r\n").await;
            server.say("221 bye\r\n").await;
            client.hears_last("221 bye\r\n").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "smtp_quit");
    rig.assert_counted(&[("tls_required", 5)]);
}

#[tokio::test]
async fn a_client_that_pipelines_behind_starttls_is_closed() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say(["STARTTLS\r\n", MAIL].concat()).await;
            client.hears_last("").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "unencrypted data after the switch to TLS was agreed on");
    rig.assert_counted(&[("downstream_tls_termination_error", 1), ("plaintext_behind_starttls", 1)]);

    // What was not yet read with it is no TLS.
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say("STARTTLS\r\n").await;
            client.hears(READY).await;
            client.say(MAIL).await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "TLS_error: wrong version number");
    rig.assert_counted(&[("downstream_tls_termination_error", 1)]);
}

#[tokio::test]
async fn a_server_that_pipelines_behind_its_answer_is_left() {
    let rig = Rig::new(DownstreamSwitch::Disable, true);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say(EHLO).await;
            server.hears(EHLO).await;
            server.say(SERVER_EHLO).await;
            server.hears("STARTTLS\r\n").await;
            server.say("220 go\r\n250 injected\r\n").await;
            client.hears_last(NO_SERVER_TLS).await;
        })
        .await;
    assert_eq!(ended.why(), "unencrypted data after the switch to TLS was agreed on");
    rig.assert_counted(&[("upstream_tls_error", 1), ("plaintext_behind_starttls", 1)]);

    // An answer that came before its question.
    let rig = Rig::new(DownstreamSwitch::Disable, true);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say(EHLO).await;
            server.hears(EHLO).await;
            server.say([SERVER_EHLO, "220 go\r\n"].concat()).await;
            client.hears_last(NO_SERVER_TLS).await;
        })
        .await;
    assert_eq!(ended.why(), "smtp_server_out_of_step");
    rig.assert_counted(&[("upstream_tls_error", 1), ("protocol_error", 1)]);
}

#[tokio::test]
async fn a_server_that_must_speak_tls_and_does_not_is_left() {
    for (capabilities, answer, why) in [
        ("250 mx.test\r\n", None, "the server does not offer STARTTLS"),
        (SERVER_EHLO, Some("454 later\r\n"), "the server does not accept STARTTLS"),
    ] {
        let rig = Rig::new(DownstreamSwitch::Disable, true);
        let ended = rig
            .greeted(|mut client, mut server| async move {
                client.say(EHLO).await;
                server.hears(EHLO).await;
                server.say(capabilities).await;
                if let Some(answer) = answer {
                    server.hears("STARTTLS\r\n").await;
                    server.say(answer).await;
                }
                client.hears_last(NO_SERVER_TLS).await;
                server.hears_last("").await;
            })
            .await;
        assert_eq!(ended.why(), why);
        rig.assert_counted(&[("upstream_tls_error", 1)]);
    }
}

#[tokio::test]
async fn a_transport_that_cannot_turn_to_tls_closes_the_connection() {
    let rig = Rig::new(DownstreamSwitch::Disable, true);
    let ended = run_with(&rig.filter, [true, false], |mut client, mut server| async move {
        server.say(GREETING).await;
        client.hears(GREETING).await;
        client.say(EHLO).await;
        server.hears(EHLO).await;
        server.say(SERVER_EHLO).await;
        server.hears("STARTTLS\r\n").await;
        server.say("220 go\r\n").await;
        client.hears_last(NO_SERVER_TLS).await;
    })
    .await;
    assert_eq!(ended.why(), "the transport socket cannot turn to TLS");
    rig.assert_counted(&[("upstream_tls_error", 1)]);
}

#[tokio::test]
async fn nothing_goes_to_the_server_before_its_tls() {
    let rig = Rig::new(DownstreamSwitch::Disable, true);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say([MAIL, "HELP\r\nSTARTTLS\r\n"].concat()).await;
            client.hears("503 5.5.1 EHLO first\r\n".repeat(2)).await;
            client.hears("502 5.5.1 STARTTLS is not offered\r\n").await;
            // A server turns to TLS for EHLO only.
            client.say("HELO client.test\r\n").await;
            server.hears(EHLO).await;
            server.say(SERVER_EHLO).await;
            server.hears("STARTTLS\r\n").await;
            server.say("220 go\r\n").await;
            server.takes_hands().await;
            server.hears("HELO client.test\r\n").await;
            server.say("250 mx.test\r\n").await;
            client.hears("250 mx.test\r\n").await;
        })
        .await;
    assert_eq!(ended.result.unwrap(), Leftover::default());
    rig.assert_counted(&[("upstream_tls_success", 1)]);
}

#[tokio::test]
async fn a_refused_ehlo_changes_nothing() {
    let rig = Rig::new(DownstreamSwitch::Disable, true);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say("EHLO\r\n").await;
            server.hears("EHLO\r\n").await;
            server.say("501 who?\r\n").await;
            client.hears("501 who?\r\n").await;
            client.say(MAIL).await;
            client.hears("503 5.5.1 EHLO first\r\n").await;
            client.ends().await;
        })
        .await;
    assert_eq!(ended.result, Err(Stop::Gone(Side::Downstream)));
}

#[tokio::test]
async fn starttls_takes_no_parameter_and_comes_once() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say("STARTTLS now\r\n").await;
            client.hears("501 5.5.4 STARTTLS takes no parameter\r\n").await;
            client.say("STARTTLS\r\n").await;
            client.hears(READY).await;
            client.shakes_hands().await;
            client.say("STARTTLS\r\n").await;
            client.hears("503 5.5.1 TLS has been started\r\n").await;
            // Nobody has said EHLO since: mail is the server's to refuse.
            client.say(MAIL).await;
            server.hears("").await;
        })
        .await;
    assert_eq!(ended.leftover(), (MAIL.as_bytes(), b"".as_slice()));
}

#[tokio::test]
async fn a_greeting_that_is_a_refusal_ends_it() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            server.say("554-go\r\n554 away\r\n").await;
            client.hears_last("554-go\r\n554 away\r\n").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "smtp_greeting_refused");
}

#[tokio::test]
async fn lines_that_a_server_may_read_otherwise_are_not_passed_on() {
    for line in ["EHLO a\nMAIL FROM:<>\r\n", "NOOP\rMAIL FROM:<>\r\n", "EHLO \0\r\n"] {
        let rig = Rig::new(DownstreamSwitch::Allow, false);
        let ended = rig
            .greeted(|mut client, mut server| async move {
                client.say(line).await;
                let refusal = "500 5.5.2 A line ends with CR LF and has at most 2048 characters\r\n";
                client.hears_last(refusal).await;
                server.hears_last("").await;
            })
            .await;
        assert_eq!(ended.why(), "smtp_malformed_command");
        rig.assert_counted(&[("protocol_error", 1)]);
    }
}

#[tokio::test]
async fn an_endless_line_is_refused() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .greeted(|mut client, mut server| async move {
            client.say(vec![b'a'; 2047]).await;
            client.say("a").await;
            client.hears("500 5.5.2 ").await;
            server.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "smtp_malformed_command");

    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .run(|mut client, mut server| async move {
            server.say(vec![b'2'; 5000]).await;
            client.hears_last("").await;
        })
        .await;
    assert_eq!(ended.why(), "smtp_malformed_reply");
    rig.assert_counted(&[("protocol_error", 1)]);
}

#[tokio::test]
async fn there_is_an_end_to_commands_before_the_relay() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let ended = rig
        .greeted(|mut client, _server| async move {
            client.say("NOOP\r\n".repeat(100)).await;
            client.hears("250 2.0.0 OK\r\n".repeat(100)).await;
            client.hears_last("421 4.7.0 Too many commands\r\n").await;
        })
        .await;
    assert_eq!(ended.why(), "smtp_too_many_commands");
}

#[tokio::test]
async fn a_side_that_goes_ends_it() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let gone = rig.run(|_client, mut server| async move { server.ends().await }).await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Upstream)));
    let gone = rig.run(|_client, mut server| async move { server.resets().await }).await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Upstream)));
    let gone = rig.greeted(|mut client, _server| async move { client.resets().await }).await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Downstream)));
    let gone = rig
        .greeted(|mut client, _server| async move {
            client.say("EHL").await;
            client.ends().await;
        })
        .await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Downstream)));
    let gone = rig
        .greeted(|mut client, mut server| async move {
            client.say(EHLO).await;
            server.hears(EHLO).await;
            server.say("250-mx").await;
            server.resets().await;
        })
        .await;
    assert_eq!(gone.result, Err(Stop::Gone(Side::Upstream)));
    let closed = rig
        .greeted(|mut client, mut server| async move {
            server.say("421 timeout\r\n").await;
            client.hears_last("421 timeout\r\n").await;
        })
        .await;
    assert_eq!(closed.why(), "smtp_server_closes");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_told_so_after_five_minutes() {
    let rig = Rig::new(DownstreamSwitch::Allow, false);
    let started = crate::clock::now();
    let (near, client) = tokio::net::UnixStream::pair().unwrap();
    let (far, server) = tokio::net::UnixStream::pair().unwrap();
    server.try_write(GREETING.as_bytes()).unwrap();
    let mut down = Wire::new(Socket::Unix(&near), None);
    let mut up = Wire::new(Socket::Unix(&far), None);
    let mut bytes = Bytes::default();
    let stop = rig.filter.negotiate(&mut down, &mut up, &mut bytes).await.unwrap_err();
    assert_eq!(stop, Stop::close("smtp_command_timeout"));
    assert_eq!(started.elapsed().as_secs(), 300);
    let mut heard = [0; 64];
    client.readable().await.unwrap();
    let n = client.try_read(&mut heard).unwrap();
    assert_eq!(&heard[..n], [GREETING, "421 4.4.2 Timeout\r\n"].concat().as_bytes());
    rig.assert_counted(&[("timeout", 1)]);
}

fn words() -> impl Strategy<Value = Vec<u8>> {
    let known =
        ["EHLO a\r\n", "STARTTLS\r\n", "QUIT\r\n", "NOOP\r\n", MAIL, "250 ok\r\n", "250-x\r\n", "220 go\r\n"];
    let word = prop_oneof![
        proptest::sample::select(known.to_vec()).prop_map(|word| word.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(word, 0..6).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// It ends: with the relay, or closed. Where TLS is required and there is none, it never ends with the relay.
    #[test]
    fn any_lines_of_both_sides_are_survived(client in words(), server in words(), required in any::<bool>(), upstream in any::<bool>()) {
        let downstream = if required { DownstreamSwitch::Require } else { DownstreamSwitch::Allow };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rig = Rig::new(downstream, upstream);
        let ended = runtime.block_on(rig.run(|mut peer, mut other| async move {
            other.say([GREETING.as_bytes(), &server].concat()).await;
            peer.say(client).await;
            peer.ends().await;
            other.ends().await;
            peer.hears_to_the_end().await;
            other.hears_to_the_end().await;
        }));
        prop_assert!(ended.result.is_err() || (!required && !upstream), "{ended:?}");
    }
}
