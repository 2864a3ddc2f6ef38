use std::sync::Arc;

use http_body_util::BodyExt as _;

use super::super::testing::{Fake, read};
use super::*;

/// A message of fields with a length each.
fn message(fields: &[(u8, &[u8])]) -> Bytes {
    let field = |(number, content): &(u8, &[u8])| {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], *content].concat()
    };
    fields.iter().flat_map(field).collect::<Vec<u8>>().into()
}

fn change(kind: xds::Kind, from: &str, to: &str) -> Change {
    Change::new(kind, "/etc/a.yaml".into(), from.into(), to.into())
}

/// A cluster that got another `alt_stat_name`, one that came, one that was refused; and a secret with another key.
fn history() -> History {
    let history = History::default();
    let mut first = change(xds::Kind::Cluster, "", "1");
    first.note(&"a".into(), None, Some(Bytes::new()));
    history.record(first);
    let mut second = change(xds::Kind::Cluster, "1", "2");
    // 28 is `alt_stat_name`, whose tag has two bytes.
    let other = |name: &str| Bytes::from([b"\x0a\x01a\xe2\x01\x01", name.as_bytes()].concat());
    second.note(&"a".into(), Some(other("x")), Some(other("y")));
    second.note(&"b".into(), None, Some(Bytes::new()));
    second.refuse(&"c".into(), "connect_timeout: no");
    second.nack = Some("c: connect_timeout: no".into());
    history.record(second);
    let mut secret = change(xds::Kind::Secret, "1", "1");
    let with_key = |key: &[u8]| message(&[(1, b"s"), (2, &message(&[(2, &message(&[(2, key)]))]))]);
    secret.note(&"s".into(), Some(with_key(b"KEY-A")), Some(with_key(b"KEY-B")));
    history.record(secret);
    history
}

fn view() -> Arc<dyn View> {
    Arc::new(Fake { history: Some(history()), ..Fake::default() })
}

async fn updates(query: &str) -> Vec<Value> {
    let (status, body) = read(answer(&Params::parse(Some(query)), view().as_ref())).await;
    assert_eq!(status, 200, "{body}");
    let mut all: Value = serde_json::from_str(&body).unwrap();
    serde_json::from_value(all["updates"].take()).unwrap()
}

#[tokio::test]
async fn an_update_by_its_fields() {
    let all = updates("").await;
    assert_eq!(all.len(), 3);
    let second = &all[1];
    assert_eq!(
        (&second["number"], &second["type"], &second["source"], &second["from"], &second["to"]),
        (&json!(2), &json!("CDS"), &json!("/etc/a.yaml"), &json!("1"), &json!("2"))
    );
    assert_eq!((&second["added"], &second["removed"]), (&json!(["b"]), &json!([])));
    let field = json!({"path": "alt_stat_name", "before": "x", "after": "y"});
    assert_eq!(second["changed"], json!([{"name": "a", "fields": [field]}]));
    assert_eq!(second["refused"], json!([{"name": "c", "why": "connect_timeout: no"}]));
    assert_eq!(second["nack"], "c: connect_timeout: no");
    assert_eq!(all[0]["nack"], Value::Null);
}

#[tokio::test]
async fn a_key_is_never_shown() {
    let secret = &updates("type=sds").await[0];
    assert_eq!(
        secret["changed"],
        json!([{"name": "s", "fields": [], "note": "what has changed is not shown"}])
    );
    for path in ["", "last"] {
        let (_, body) = read(answer(&Params::parse(Some(path)), view().as_ref())).await;
        assert!(!body.contains("KEY"), "{body}");
    }
}

#[tokio::test]
async fn some_of_them() {
    let numbers = |all: Vec<Value>| all.iter().map(|one| one["number"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(numbers(updates("last").await), [2, 3]);
    assert_eq!(numbers(updates("type=CDS").await), [1, 2]);
    assert_eq!(numbers(updates("after=2").await), [3]);
    let view = view();
    for (query, status) in [("type=VHDS", 400), ("after=x", 400)] {
        let params = Params::parse(Some(query));
        assert_eq!(read(answer(&params, view.as_ref())).await.0, status, "{query}");
        assert_eq!(read(watch(&params, view.as_ref())).await.0, status, "{query}");
    }
    let none = Fake::default();
    assert_eq!(read(answer(&Params::default(), &none)).await.0, 404);
    assert_eq!(read(watch(&Params::default(), &none)).await.0, 404);
}

#[tokio::test]
async fn a_watcher_is_told_what_is_there_and_what_comes() {
    let history = history();
    let view = Fake { history: Some(history.clone()), ..Fake::default() };
    let mut body = watch(&Params::parse(Some("after=1")), &view).into_body();
    let mut next = async || {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let lines = String::from_utf8(frame.to_vec()).unwrap();
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let there = next().await;
    assert_eq!(there.iter().map(|one| one["number"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(there[0]["changed"], json!(["a"]));
    let recording = async {
        tokio::task::yield_now().await;
        history.record(change(xds::Kind::Listener, "", "1"));
    };
    let (came, ()) = tokio::join!(next(), recording);
    assert_eq!((came.len(), &came[0]["number"], &came[0]["type"]), (1, &json!(4), &json!("LDS")));
}
