use std::io;

use proxy_config::model::listener_filter::{LocalRateLimit as RateLimitConfig, TokenBucket};
use proxy_config::model::network_filter::{
    ConnectionLimit as LimitConfig, Permission, Principal, Rbac as RbacConfig, RbacAction, RbacPolicy,
    RbacRules,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock;
use crate::net::socket::Socket;

fn chain(filters: Vec<NetworkFilter>) -> Vec<NetworkFilterConfig> {
    filters.into_iter().map(|filter| NetworkFilterConfig { name: "f".into(), filter }).collect()
}

fn limit(max_connections: u64, delay: Option<Duration>) -> NetworkFilter {
    let (stat_prefix, runtime_enabled) = ("cl".into(), true);
    NetworkFilter::ConnectionLimit(LimitConfig { stat_prefix, max_connections, delay, runtime_enabled })
}

fn rate(share_key: Option<&str>, max_tokens: u32) -> NetworkFilter {
    NetworkFilter::LocalRateLimit(RateLimitConfig {
        stat_prefix: "rl".into(),
        token_bucket: TokenBucket {
            max_tokens,
            tokens_per_fill: 1,
            fill_interval: Duration::from_secs(3_600),
        },
        runtime_enabled: true,
        share_key: share_key.map(Arc::from),
    })
}

fn deny_all() -> NetworkFilter {
    let policy = RbacPolicy { permissions: vec![Permission::Any], principals: vec![Principal::Any] };
    let rules = RbacRules { action: RbacAction::Deny, policies: [("a b".into(), policy)].into() };
    NetworkFilter::Rbac(Box::new(RbacConfig {
        stat_prefix: "pre".into(),
        rules: Some(rules),
        shadow_rules: None,
        shadow_rules_stat_prefix: "".into(),
        delay_deny: None,
    }))
}

fn wire(stream: &TcpStream) -> Wire<'_> {
    Wire::new(Socket::Tcp(stream), None)
}

fn facts() -> Facts {
    Facts::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:80".parse().unwrap())
}

fn close(verdict: Verdict) -> Close {
    match verdict {
        Verdict::Close(close) => close,
        Verdict::Continue => panic!("let in"),
    }
}

#[test]
fn a_limit_counts_the_refused_until_they_are_gone() {
    let stats = Stats::new();
    let gates = Gates::new(&chain(vec![limit(1, None), NetworkFilter::Echo]), &stats, &Buckets::default());
    let other = Gates::new(&chain(vec![limit(1, None)]), &stats, &Buckets::default());
    let active = || stats.value("connection_limit.cl.active_connections").unwrap();
    let (first, verdict) = gates.on_new_connection(&facts());
    assert_eq!(verdict, Verdict::Continue);
    let (second, verdict) = gates.on_new_connection(&facts());
    let refusal = close(verdict);
    // As the real Envoy logs it.
    assert_eq!((refusal.details.as_ref(), refusal.flags), ("over_connection_limit", Flags::NONE));
    assert!(!refusal.drain && refusal.termination_details.is_none());
    assert_eq!(active(), 2);
    assert_eq!(stats.value("connection_limit.cl.limited_connections"), Some(1));
    drop(first);
    assert!(matches!(gates.on_new_connection(&facts()), (_, Verdict::Close(_))));
    drop(second);
    assert_eq!(active(), 0);
    // Another chain's filter has a count of its own under the same name.
    let (_held, verdict) = gates.on_new_connection(&facts());
    assert_eq!(verdict, Verdict::Continue);
    let (_other, verdict) = other.on_new_connection(&facts());
    assert_eq!(verdict, Verdict::Continue);
    assert_eq!(active(), 2);
}

#[test]
fn rate_limits_share_a_bucket_by_key_and_size() {
    let (stats, buckets) = (Stats::new(), Buckets::default());
    let gates = |key, max| Gates::new(&chain(vec![rate(key, max)]), &stats, &buckets);
    let lets_in = |gates: &Gates| gates.on_new_connection(&facts()).1 == Verdict::Continue;
    let (a, b, other_size, alone) =
        (gates(Some("k"), 1), gates(Some("k"), 1), gates(Some("k"), 2), gates(None, 1));
    assert!(lets_in(&a));
    let refusal = close(b.on_new_connection(&facts()).1);
    assert_eq!((refusal.details.as_ref(), refusal.flags), ("local_ratelimit_close_over_limit", Flags::URX));
    assert!(lets_in(&other_size) && lets_in(&alone) && !lets_in(&alone));
    assert_eq!(stats.value("local_rate_limit.rl.rate_limited"), Some(2));
    // Its last user gone, a bucket is full again.
    drop((a, b));
    assert!(lets_in(&gates(Some("k"), 1)));
}

#[test]
fn rbac_waits_for_the_first_byte_and_sni_names_the_cluster() {
    let stats = Stats::new();
    let filters = chain(vec![NetworkFilter::Echo, NetworkFilter::SniCluster, deny_all()]);
    let gates = Gates::new(&filters, &stats, &Buckets::default());
    let mut facts = facts();
    assert!(gates.needs_first_byte());
    let (entered, verdict) = gates.on_new_connection(&facts);
    assert_eq!((entered.cluster, verdict), (None, Verdict::Continue));
    facts.server_name = Some("a.b".into());
    assert_eq!(gates.on_new_connection(&facts).0.cluster.as_deref(), Some("a.b"));
    assert_eq!(stats.value("pre.rbac.denied"), Some(0));
    let refusal = close(gates.on_first_byte(&mut facts));
    assert_eq!(refusal.details, "rbac_deny_close");
    assert_eq!(refusal.termination_details.as_deref(), Some("rbac_access_denied_matched_policy[a_b]"));
    assert!(refusal.drain && refusal.flags.is_empty());
    assert_eq!(stats.value("pre.rbac.denied"), Some(1));
    let none = Gates::new(&chain(vec![NetworkFilter::Echo]), &stats, &Buckets::default());
    assert!(!none.needs_first_byte());
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

fn plain(delay: Option<Duration>, drain: bool) -> Close {
    let details = Cow::Borrowed("test");
    Close {
        flags: Flags::NONE,
        details,
        response_code_details: None,
        termination_details: None,
        delay,
        drain,
    }
}

#[tokio::test]
async fn a_close_resets_where_bytes_are_unread_and_else_ends() {
    for (drain, received, kind) in [(true, 3, None), (false, 0, Some(io::ErrorKind::ConnectionReset))] {
        let (mut client, server) = pair().await;
        client.write_all(b"abc").await.unwrap();
        server.readable().await.unwrap();
        let mut bytes = Bytes::default();
        plain(None, drain).prepare(&mut wire(&server), &mut bytes).await;
        drop(server);
        let end = client.read(&mut [0]).await;
        assert_eq!(end.as_ref().err().map(io::Error::kind), kind, "{end:?}");
        assert_eq!(bytes.downstream_rx, received);
    }
}

#[tokio::test]
async fn a_delay_holds_the_connection_but_not_a_client_that_goes() {
    let delay = Duration::from_millis(100);
    let (mut client, server) = pair().await;
    let (start, mut bytes) = (clock::now(), Bytes::default());
    let close = plain(Some(delay), true);
    let mut wire = wire(&server);
    let (_, wrote) = tokio::join!(close.prepare(&mut wire, &mut bytes), client.write_all(b"abc"));
    wrote.unwrap();
    assert!(start.elapsed() >= delay);
    assert_eq!(bytes.downstream_rx, 3);
    let start = clock::now();
    drop(client);
    plain(Some(Duration::from_secs(60)), true).prepare(&mut wire, &mut bytes).await;
    assert!(start.elapsed() < Duration::from_secs(30));
}
