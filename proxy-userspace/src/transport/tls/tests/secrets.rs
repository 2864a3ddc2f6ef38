//! Certificates and trust from secrets, which change.

use std::sync::Arc;

use proxy_config::model::tls::{SecretRef, SessionTickets, ValidationContext, ValidationSource};

use super::rig::*;
use crate::secret::material::{self, Loaded};
use crate::transport::{Link, NotReady};

fn secret(name: &str) -> SecretRef {
    SecretRef { name: name.into(), source: None }
}

fn certificate(leaf: &Leaf) -> Arc<Loaded> {
    Arc::new(Loaded::Certificate(material::certificate(&leaf.model()).unwrap()))
}

fn validation(context: ValidationContext) -> Arc<Loaded> {
    Arc::new(Loaded::Validation(material::validation(&Arc::new(context)).unwrap()))
}

/// Both sides take all from secrets: the server's certificate `cert`, the client's trust `roots`.
fn rig() -> Rig {
    let mut server = downstream(common(&[], None));
    server.common.certificate_secrets = vec![secret("cert")];
    let mut client = upstream(common(&[], None));
    client.common.validation = ValidationSource::Secret(secret("roots"));
    Rig::new(server, client)
}

impl Rig {
    fn supply(&self, name: &str, content: Arc<Loaded>) -> Result<(), String> {
        self.env.secrets.slot(&secret(name)).supply(content)
    }
}

#[tokio::test]
async fn nothing_is_made_while_a_secret_is_missing() {
    let rig = rig();
    let facts = crate::net::facts::Facts::new(([127, 0, 0, 1], 1).into(), ([127, 0, 0, 1], 2).into());
    let link = Link::Downstream { facts: &facts, connection_id: 1 };
    assert_eq!(rig.server.create(&link).err(), Some(NotReady));
    assert_eq!(rig.client.create(&link).err(), Some(NotReady));
    assert_eq!(rig.stat("l.server_ssl_socket_factory.downstream_context_secrets_not_ready"), 1);
    assert_eq!(rig.stat("c.client_ssl_socket_factory.upstream_context_secrets_not_ready"), 1);
    let mut slots = Vec::new();
    rig.server.secrets(&mut slots);
    rig.client.secrets(&mut slots);
    let names: Vec<_> = slots.iter().map(|slot| slot.name.to_string()).collect();
    assert_eq!(names, ["cert", "roots"]);
}

#[tokio::test]
async fn a_rotation_is_for_the_next_handshake_and_live_connections_stay() {
    let rig = rig();
    let ca = Ca::new("ca");
    rig.supply("roots", validation(ca.trusted())).unwrap();
    rig.supply("cert", certificate(&ca.issue("first", &["a.test"]))).unwrap();
    let mut live = rig.shaken().await;
    assert!(live.client.info().peer.as_ref().unwrap().subject.contains("CN=first"));
    rig.supply("cert", certificate(&ca.issue("second", &["a.test", "b.test"]))).unwrap();
    let pair = rig.shaken().await;
    assert!(pair.client.info().peer.as_ref().unwrap().subject.contains("CN=second"));
    live.client.send(b"still here").await;
    live.client.finish().await;
    assert_eq!(live.server.rest().await.unwrap(), b"still here");
    assert_eq!(rig.stat("l.server_ssl_socket_factory.ssl_context_update_by_sds"), 2);
    assert_eq!(rig.stat("c.client_ssl_socket_factory.ssl_context_update_by_sds"), 1);
    let expires = pair.client.info().peer.as_ref().unwrap().not_after;
    assert_eq!(i64::try_from(rig.stat("l.ssl.certificate.cert.expiration_unix_time_seconds")), Ok(expires));
    assert!(rig.stat("c.ssl.certificate.roots.expiration_unix_time_seconds") > 0);
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_leaves_the_last_one() {
    let rig = rig();
    let ca = Ca::new("ca");
    rig.supply("roots", validation(ca.trusted())).unwrap();
    let good = ca.issue("good", &["a.test"]);
    rig.supply("cert", certificate(&good)).unwrap();
    let mismatched = Leaf { key: ca.issue("other", &[]).key, ..good };
    let refused = rig.supply("cert", certificate(&mismatched)).unwrap_err();
    assert_eq!(refused, "private_key: <inline>: it is not the key of the certificate of <inline>");
    let refused = rig.supply("cert", validation(ca.trusted())).unwrap_err();
    assert_eq!(refused, "the secret cert is of another kind");
    rig.shaken().await;
    assert_eq!(rig.stat("l.server_ssl_socket_factory.ssl_context_update_by_sds"), 1);
}

#[tokio::test]
async fn a_session_does_not_outlive_the_trust_that_it_was_made_in() {
    let rig = rig();
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    rig.supply("roots", validation(ca.trusted())).unwrap();
    rig.supply("cert", certificate(&ca.issue("a", &["a.test"]))).unwrap();
    let mut pair = rig.shaken().await;
    pair.server.send(b"tickets").await;
    pair.server.finish().await;
    pair.client.rest().await.unwrap();
    rig.supply("roots", validation(other.trusted())).unwrap();
    let mut pair = rig.connect().await;
    let (_, client) = pair.shake().await;
    assert!(client.unwrap_err().reason.contains(":CERTIFICATE_VERIFY_FAILED:"));
    assert_eq!(rig.stat("c.ssl.session_reused"), 0);
}

#[tokio::test]
async fn a_secret_is_merged_over_the_default_context() {
    let ca = Ca::new("ca");
    let mut client = upstream(common(&[], None));
    let default = ValidationContext {
        match_subject_alt_names: vec![proxy_config::model::tls::SanMatcher {
            kind: proxy_config::model::tls::SanKind::Dns,
            matcher: exact("b.test"),
        }],
        ..ValidationContext::default()
    };
    client.common.validation =
        ValidationSource::Combined { default: Arc::new(default), secret: secret("roots") };
    let rig = Rig::new(downstream(common(&[&ca.issue("a", &["a.test"])], None)), client);
    rig.supply("roots", validation(ca.trusted())).unwrap();
    let (_, client) = rig.connect().await.shake().await;
    assert!(client.unwrap_err().reason.contains(":CERTIFICATE_VERIFY_FAILED:"));
    assert_eq!(rig.stat("c.ssl.fail_verify_san"), 1);
}

#[tokio::test]
async fn ticket_keys_rotate() {
    let ca = Ca::new("ca");
    let mut server = downstream(common(&[&ca.issue("a", &["a.test"])], None));
    server.session_tickets = SessionTickets::Secret(secret("keys"));
    let rig = Rig::new(server, upstream(common(&[], Some(ca.trusted()))));
    let keys = |bytes: &[u8]| {
        let key = |byte: &u8| proxy_config::model::tls::DataSource::Inline(vec![*byte; 80].into());
        let sources: Vec<_> = bytes.iter().map(key).collect();
        Arc::new(Loaded::TicketKeys(material::ticket_keys(&sources).unwrap()))
    };
    let mut resumed = Vec::new();
    for rotation in [&[1][..], &[2, 1], &[3]] {
        rig.supply("keys", keys(rotation)).unwrap();
        let mut pair = rig.shaken().await;
        pair.server.send(b"tickets").await;
        pair.server.finish().await;
        pair.client.rest().await.unwrap();
        resumed.push(pair.client.info().resumed);
    }
    assert_eq!(resumed, [false, true, false]);
}
