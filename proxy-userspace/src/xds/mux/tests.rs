use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proxy_config::xds::wire::Item;

use super::*;
use crate::clock;

const KIND: Kind = Kind::Endpoints;

fn mux(delta: bool) -> Mux<u32> {
    Mux::new(Terms { delta, node_once: true, node: Bytes::from_static(b"node") })
}

fn one(name: &str) -> Names {
    Names::One(name.into())
}

fn resource(name: &str, version: &str) -> RawResource {
    RawResource {
        name: name.into(),
        version: version.into(),
        ttl: None,
        type_url: KIND.type_url().into(),
        value: Bytes::copy_from_slice(name.as_bytes()),
    }
}

fn response(kind: Kind, version: &str, nonce: &str, items: Vec<Item>, removed: &[&str]) -> Response {
    Response {
        kind: Some(kind),
        type_url: kind.type_url(),
        version: version.into(),
        nonce: nonce.into(),
        identifier: None,
        items: Ok(items),
        removed: removed.iter().map(|name| Arc::from(*name)).collect(),
        errors: Vec::new(),
    }
}

fn items(names: &[&str], version: &str) -> Vec<Item> {
    names.iter().map(|name| Item::Resource(resource(name, version))).collect()
}

impl Mux<u32> {
    fn watch(&mut self, kind: Kind, names: Names, to: u32) -> WatchId {
        self.subscribe(kind, names, to, None, clock::now()).0
    }

    fn sotw(&mut self) -> Option<SotwRequest> {
        match self.request()? {
            Request::Sotw(request) => Some(request),
            Request::Delta(_) => unreachable!("a state of the world was asked for"),
        }
    }

    fn delta(&mut self) -> Option<DeltaRequest> {
        match self.request()? {
            Request::Delta(request) => Some(request),
            Request::Sotw(_) => unreachable!("a delta was asked for"),
        }
    }

    /// Takes a response; who is told what, and what they say of it by their number.
    fn take(&mut self, response: Response, refused: &[u32]) -> Vec<(u32, Part)> {
        let Some(delivery) = self.response(response, clock::now()).unwrap() else { return Vec::new() };
        let calls = self.audience(&delivery);
        let What::Response(received) = &delivery.what else { unreachable!("it is a response") };
        let results: Vec<_> = calls
            .iter()
            .map(|call| {
                let bad = refused.contains(&call.to);
                (call.watch, call.part, if bad { Err(format!("{} says no", call.to)) } else { Ok(()) })
            })
            .collect();
        self.applied(delivery.kind, received, &results, clock::now());
        calls.into_iter().map(|call| (call.to, call.part)).collect()
    }
}

fn texts(names: &[Arc<str>]) -> Vec<&str> {
    names.iter().map(|name| &**name).collect()
}

#[test]
fn types_are_asked_for_in_their_order_and_the_node_is_sent_once() {
    let mut mux = mux(false);
    for kind in [Kind::Secret, Kind::Listener, Kind::Cluster] {
        mux.watch(kind, Names::All, 0);
    }
    mux.connected();
    let requests: Vec<_> = std::iter::from_fn(|| mux.sotw()).collect();
    let kinds: Vec<_> = requests.iter().map(|request| request.kind).collect();
    assert_eq!(kinds, [Kind::Cluster, Kind::Listener, Kind::Secret]);
    let nodes: Vec<_> = requests.iter().map(|request| request.node.is_some()).collect();
    assert_eq!(nodes, [true, false, false]);
    assert!(requests.iter().all(|request| request.names.is_empty() && request.version.is_empty()));
    // A new stream, a new node.
    mux.connected();
    assert!(mux.sotw().unwrap().node.is_some());
}

#[test]
fn the_node_is_in_every_request_where_that_is_wanted() {
    let mut mux = Mux::new(Terms { delta: false, node_once: false, node: Bytes::from_static(b"n") });
    mux.watch(Kind::Cluster, Names::All, 0);
    mux.watch(Kind::Listener, Names::All, 0);
    mux.connected();
    assert!(std::iter::from_fn(|| mux.sotw()).all(|request| request.node.is_some()));
}

#[test]
fn many_subscriptions_are_one_request_the_last_first() {
    let mut mux = mux(false);
    for (to, name) in ["a", "b", "a", "c"].iter().enumerate() {
        mux.watch(KIND, one(name), to as u32);
    }
    mux.connected();
    assert_eq!(texts(&mux.sotw().unwrap().names), ["c", "a", "b"]);
    assert!(mux.request().is_none());
    // Nothing new for the server.
    mux.watch(KIND, one("b"), 9);
    assert!(mux.request().is_none());
    mux.watch(KIND, one("d"), 10);
    assert_eq!(mux.pending(), 1);
    assert_eq!(texts(&mux.sotw().unwrap().names), ["d", "b", "c", "a"]);
}

#[test]
fn a_response_is_acknowledged_by_its_nonce_and_refused_with_the_version_before() {
    let mut mux = mux(false);
    mux.watch(KIND, one("a"), 1);
    mux.watch(KIND, one("b"), 2);
    mux.connected();
    mux.sotw();
    let told = mux.take(response(KIND, "1", "n1", items(&["a", "b", "x"], "1"), &[]), &[]);
    assert_eq!(told, [(1, Part::Resource(0)), (2, Part::Resource(1))]);
    let ack = mux.sotw().unwrap();
    assert_eq!((&*ack.version, &*ack.nonce, ack.error), ("1", "n1", None));
    mux.take(response(KIND, "2", "n2", items(&["a", "b"], "2"), &[]), &[2]);
    let nack = mux.sotw().unwrap();
    assert_eq!((&*nack.version, &*nack.nonce), ("1", "n2"));
    assert_eq!(nack.error.as_deref(), Some("b: 2 says no"));
    // What is asked for later belongs to the last response.
    mux.watch(KIND, one("c"), 3);
    let more = mux.sotw().unwrap();
    assert_eq!((&*more.version, &*more.nonce, more.error), ("1", "n2", None));
    // A server that comes back is told what is in use.
    mux.connected();
    let again = mux.sotw().unwrap();
    assert_eq!((&*again.version, &*again.nonce), ("1", ""));
    assert_eq!(texts(&again.names), ["c", "b", "a"]);
}

#[test]
fn what_cannot_be_read_is_refused_by_all_of_its_type() {
    let mut mux = mux(false);
    mux.watch(KIND, one("a"), 1);
    mux.connected();
    mux.sotw();
    let bad =
        Response { items: Err("resources[0]: bad".to_owned()), ..response(KIND, "1", "n", vec![], &[]) };
    assert_eq!(mux.take(bad, &[]), [(1, Part::All)]);
    let nack = mux.sotw().unwrap();
    assert_eq!((&*nack.version, &*nack.nonce, nack.error.as_deref()), ("", "n", Some("resources[0]: bad")));
}

#[test]
fn a_long_reason_is_cut() {
    let mut mux = mux(false);
    mux.watch(KIND, one("a"), 1);
    mux.connected();
    mux.sotw();
    let why = "ä".repeat(20_000);
    let bad = Response { items: Err(why), ..response(KIND, "1", "n", vec![], &[]) };
    mux.take(bad, &[]);
    assert!(mux.sotw().unwrap().error.unwrap().len() < 9_000);
}

#[test]
fn nobody_has_asked_for_that() {
    let mut mux = mux(false);
    mux.watch(KIND, one("a"), 1);
    mux.connected();
    mux.sotw();
    let now = clock::now();
    assert!(mux.response(response(Kind::Route, "1", "n", vec![], &[]), now).is_err());
    let unknown =
        Response { kind: None, type_url: "x/y".to_owned(), ..response(KIND, "1", "n", vec![], &[]) };
    assert_eq!(mux.response(unknown, now).unwrap_err(), "\"x/y\", which nobody has asked for");
    assert!(mux.request().is_none());
}

#[test]
fn an_answer_to_a_stream_that_has_gone_is_not_sent_to_the_next() {
    let mut mux = mux(false);
    let id = mux.watch(KIND, one("a"), 1);
    mux.connected();
    mux.sotw();
    let delivery = mux.response(response(KIND, "1", "n1", items(&["a"], "1"), &[]), clock::now()).unwrap();
    let Some(Delivery { what: What::Response(received), .. }) = delivery else { panic!("{delivery:?}") };
    mux.disconnected(&Failure::Disconnected("gone".to_owned()));
    mux.connected();
    mux.sotw();
    mux.applied(KIND, &received, &[(id, Part::Resource(0), Ok(()))], clock::now());
    assert!(mux.request().is_none());
    // But it is in use.
    mux.connected();
    assert_eq!(&*mux.sotw().unwrap().version, "1");
}

#[test]
fn who_comes_later_is_told_what_is_known() {
    for delta in [false, true] {
        let mut mux = mux(delta);
        mux.watch(KIND, one("a"), 1);
        mux.connected();
        mux.request();
        mux.take(response(KIND, "1", "n1", items(&["a"], "1"), &[]), &[]);
        mux.request();
        let (id, known) = mux.subscribe(KIND, one("a"), 2, None, clock::now());
        let delivery = known.unwrap();
        assert_eq!(mux.audience(&delivery), [Call { watch: id, to: 2, part: Part::All }]);
        assert!(matches!(&delivery.what, What::Known(_, resource) if *resource == self::resource("a", "1")));
        assert!(mux.request().is_none(), "delta: {delta}");
    }
}

#[test]
fn requests_of_a_paused_type_are_gathered() {
    let mut mux = mux(false);
    mux.watch(KIND, one("a"), 1);
    mux.connected();
    mux.sotw();
    mux.pause(KIND);
    mux.pause(KIND);
    for name in ["b", "c", "d"] {
        mux.watch(KIND, one(name), 2);
    }
    assert!(mux.request().is_none());
    mux.resume(KIND);
    assert!(mux.request().is_none());
    mux.resume(KIND);
    assert_eq!(texts(&mux.sotw().unwrap().names), ["d", "c", "b", "a"]);
    assert!(mux.request().is_none());
}

#[test]
fn a_delta_says_what_has_changed() {
    let mut mux = mux(true);
    let a = mux.watch(KIND, one("a"), 1);
    mux.watch(KIND, one("b"), 2);
    mux.connected();
    let first = mux.delta().unwrap();
    assert_eq!((texts(&first.subscribe), texts(&first.unsubscribe)), (vec!["a", "b"], vec![]));
    assert!(first.initial_versions.is_empty());
    let told = mux.take(response(KIND, "s1", "n1", items(&["a"], "1"), &["b"]), &[]);
    assert_eq!(told, [(1, Part::Resource(0)), (2, Part::Removed(0))]);
    // The answer and the change are one request.
    mux.watch(KIND, one("c"), 3);
    mux.unsubscribe(KIND, a);
    let second = mux.delta().unwrap();
    assert_eq!((texts(&second.subscribe), texts(&second.unsubscribe)), (vec!["c"], vec!["a"]));
    assert_eq!((&*second.nonce, second.error), ("n1", None));
    // Gone and back again before anything was said is no change.
    let c = mux.watch(KIND, one("c"), 4);
    mux.unsubscribe(KIND, c);
    assert!(mux.request().is_none());
    mux.take(response(KIND, "s2", "n2", items(&["b", "c"], "2"), &[]), &[3]);
    assert_eq!(mux.delta().unwrap().error.as_deref(), Some("c: 3 says no"));
    // A new stream is told what is in use, and no more.
    mux.connected();
    let again = mux.delta().unwrap();
    assert_eq!(texts(&again.subscribe), ["b", "c"]);
    assert_eq!(again.initial_versions, [("b".into(), "2".into())]);
    assert_eq!(&*again.nonce, "");
}

#[test]
fn everything_of_a_delta_is_an_empty_list_or_a_star_where_there_are_names_too() {
    let mut mux = mux(true);
    mux.watch(Kind::Cluster, Names::All, 1);
    mux.connected();
    assert!(mux.delta().unwrap().subscribe.is_empty());
    let told = mux.take(response(Kind::Cluster, "s", "n1", items(&["a", "b"], "1"), &[]), &[]);
    assert_eq!(told, [(1, Part::All)]);
    mux.delta();
    mux.take(response(Kind::Cluster, "s", "n2", vec![], &["a"]), &[]);
    mux.delta();
    mux.watch(Kind::Cluster, one("c"), 2);
    assert_eq!(texts(&mux.delta().unwrap().subscribe), ["c"]);
    mux.connected();
    let again = mux.delta().unwrap();
    assert_eq!(texts(&again.subscribe), ["*", "c"]);
    assert_eq!(again.initial_versions, [("b".into(), "1".into())], "what was removed is not there");
}

#[test]
fn a_second_one_that_wants_everything_needs_a_new_stream() {
    let mut mux = mux(true);
    mux.watch(Kind::Cluster, Names::All, 1);
    mux.connected();
    mux.delta();
    mux.take(response(Kind::Cluster, "s", "n1", items(&["a"], "1"), &[]), &[]);
    mux.delta();
    assert!(!mux.take_restart());
    mux.watch(Kind::Cluster, Names::All, 2);
    assert!(mux.take_restart() && !mux.take_restart());
    mux.connected();
    assert!(mux.delta().unwrap().initial_versions.is_empty(), "it is to be said again");
}

#[test]
fn a_first_answer_is_waited_for_as_long_as_was_said() {
    let mut mux = mux(false);
    let (start, second) = (clock::now(), Duration::from_secs(1));
    mux.subscribe(KIND, one("a"), 1, Some(second), start);
    mux.subscribe(KIND, one("b"), 2, Some(second * 2), start);
    let (gone, _) = mux.subscribe(KIND, one("c"), 3, Some(second), start);
    mux.unsubscribe(KIND, gone);
    mux.connected();
    mux.sotw();
    mux.take(response(KIND, "1", "n1", items(&["a"], "1"), &[]), &[]);
    assert_eq!(mux.deadline(), Some(start + second * 2));
    assert!(mux.tick(start + second).is_empty());
    let late = mux.tick(start + second * 2);
    let [Delivery { what: What::Failed(Some(_), Failure::TimedOut(limit)), .. }] = late.as_slice() else {
        panic!("{late:?}")
    };
    assert_eq!(*limit, second * 2);
    assert_eq!(mux.audience(&late[0])[0].to, 2);
    assert_eq!(mux.deadline(), None);
}

#[test]
fn a_resource_is_gone_when_its_ttl_has_passed_without_a_heartbeat() {
    for delta in [false, true] {
        let (mut mux, start, second) = (mux(delta), clock::now(), Duration::from_secs(1));
        mux.watch(KIND, one("a"), 1);
        mux.connected();
        mux.request();
        let living = RawResource { ttl: Some(second * 600), ..resource("a", "1") };
        mux.take(response(KIND, "1", "n1", vec![Item::Resource(living)], &[]), &[]);
        let first = mux.deadline().unwrap();
        assert!(first > start + second * 500);
        mux.request();
        let beat = Item::Heartbeat { name: "a".into(), ttl: Some(second * 1_000) };
        assert!(mux.take(response(KIND, "1", "n2", vec![beat], &[]), &[]).is_empty(), "nobody is told");
        assert!(mux.request().is_some(), "but it is answered");
        assert!(mux.deadline().unwrap() > start + second * 900);
        assert!(mux.tick(first).is_empty());
        let gone = mux.tick(start + second * 2_000);
        let [Delivery { what: What::Expired(name), .. }] = gone.as_slice() else { panic!("{gone:?}") };
        assert_eq!(&**name, "a");
        assert_eq!(mux.audience(&gone[0]).len(), 1);
        // It does not come from memory any more.
        assert!(mux.subscribe(KIND, one("a"), 2, None, start).1.is_none());
    }
}

#[test]
fn a_heartbeat_among_a_state_of_the_world_is_the_resource_as_it_was() {
    let mut mux = mux(false);
    mux.watch(Kind::Cluster, Names::All, 1);
    mux.connected();
    mux.request();
    let living = RawResource { ttl: Some(Duration::from_secs(9)), ..resource("a", "1") };
    mux.take(response(Kind::Cluster, "1", "n1", vec![Item::Resource(living.clone())], &[]), &[]);
    let beat = Item::Heartbeat { name: "a".into(), ttl: Some(Duration::from_secs(9)) };
    let both = response(Kind::Cluster, "2", "n2", vec![beat, Item::Resource(resource("b", "2"))], &[]);
    let Some(Delivery { what: What::Response(received), .. }) = mux.response(both, clock::now()).unwrap()
    else {
        panic!("it is news")
    };
    assert_eq!(received.resources, [resource("b", "2"), living]);
}

/// What a server knows of one client.
#[derive(Default)]
struct Server {
    names: BTreeMap<Kind, BTreeSet<String>>,
    all: BTreeSet<Kind>,
    answered: BTreeSet<String>,
    streams: usize,
}

impl Server {
    fn take(&mut self, request: Request) {
        match request {
            Request::Sotw(request) => {
                let names: BTreeSet<_> = request.names.iter().map(ToString::to_string).collect();
                let before = self.names.insert(request.kind, names.clone());
                let wildcard =
                    names.contains("*") || (names.is_empty() && before.is_none_or(|b| b.is_empty()));
                if wildcard {
                    self.all.insert(request.kind)
                } else {
                    self.all.remove(&request.kind)
                };
                if let Some(names) = self.names.get_mut(&request.kind) {
                    names.remove("*");
                }
                self.answer(&request.nonce);
            }
            Request::Delta(request) => {
                let first = !self.names.contains_key(&request.kind);
                let names = self.names.entry(request.kind).or_default();
                if first && request.subscribe.is_empty() {
                    self.all.insert(request.kind);
                }
                for name in request.subscribe.iter() {
                    if &**name == "*" {
                        self.all.insert(request.kind);
                    } else {
                        assert!(names.insert(name.to_string()), "{name} twice");
                    }
                }
                for name in request.unsubscribe.iter() {
                    if &**name == "*" {
                        self.all.remove(&request.kind);
                    } else {
                        assert!(names.remove(&**name), "{name} was not asked for");
                    }
                }
                assert!(first || request.initial_versions.is_empty(), "only in the first request");
                self.answer(&request.nonce);
            }
        }
    }

    fn answer(&mut self, nonce: &str) {
        if !nonce.is_empty() {
            self.answered.insert(nonce.to_owned());
        }
    }

    fn reconnected(&mut self) {
        *self = Self { streams: self.streams + 1, ..Self::default() };
    }
}

#[derive(Clone, Debug)]
enum Step {
    Subscribe(usize, usize),
    Unsubscribe(usize),
    Response(usize, Vec<usize>, bool),
    Send,
    Reconnect,
    Pause(usize),
}

const KINDS: [Kind; 3] = [Kind::Endpoints, Kind::Route, Kind::Secret];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..6_usize).prop_map(|(kind, name)| Step::Subscribe(kind, name)),
        3 => (0..20_usize).prop_map(Step::Unsubscribe),
        3 => (0..3_usize, prop::collection::vec(0..6_usize, 0..4), any::<bool>())
            .prop_map(|(kind, names, good)| Step::Response(kind, names, good)),
        3 => Just(Step::Send),
        1 => Just(Step::Reconnect),
        1 => (0..3_usize).prop_map(Step::Pause),
    ]
}

/// Runs steps, and then everything is sent: what the server knows must be what is subscribed.
fn check(delta: bool, steps: Vec<Step>) {
    let (mut mux, mut server) = (mux(delta), Server::default());
    let mut live: Vec<(Kind, String, WatchId)> = Vec::new();
    let mut nonces = BTreeSet::new();
    let mut paused: Vec<Kind> = Vec::new();
    mux.connected();
    for (at, step) in steps.into_iter().enumerate() {
        match step {
            Step::Subscribe(kind, name) => {
                let (kind, name) = (KINDS[kind], format!("r{name}"));
                let id = mux.watch(kind, one(&name), at as u32);
                live.push((kind, name, id));
            }
            Step::Unsubscribe(which) if !live.is_empty() => {
                let (kind, _, id) = live.remove(which % live.len());
                mux.unsubscribe(kind, id);
            }
            Step::Unsubscribe(_) => {}
            // A server answers what it was asked.
            Step::Response(kind, names, good) if server.names.contains_key(&KINDS[kind]) => {
                let names: BTreeSet<_> = names.iter().map(|name| format!("r{name}")).collect();
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                let nonce = format!("{}-{at}", server.streams);
                let refusing: Vec<u32> = if good { Vec::new() } else { (0..1_000).collect() };
                mux.take(response(KINDS[kind], &nonce, &nonce, items(&names, &nonce), &[]), &refusing);
                nonces.insert(nonce);
            }
            Step::Response(..) => {}
            Step::Send => std::iter::from_fn(|| mux.request()).for_each(|request| server.take(request)),
            Step::Reconnect => {
                mux.disconnected(&Failure::Disconnected("cut".to_owned()));
                mux.connected();
                server.reconnected();
                nonces.clear();
            }
            Step::Pause(kind) => {
                mux.pause(KINDS[kind]);
                paused.push(KINDS[kind]);
            }
        }
    }
    paused.iter().for_each(|kind| mux.resume(*kind));
    std::iter::from_fn(|| mux.request()).for_each(|request| server.take(request));
    assert_eq!(mux.pending(), 0);
    for kind in KINDS {
        let wanted: BTreeSet<_> =
            live.iter().filter(|(of, ..)| *of == kind).map(|(_, name, _)| name.clone()).collect();
        assert_eq!(server.names.get(&kind).cloned().unwrap_or_default(), wanted, "{kind:?}");
    }
    assert_eq!(server.answered, nonces, "every response is answered, and only those of this stream");
}

proptest! {
    #[test]
    fn what_the_server_knows_is_what_is_subscribed(
        delta in any::<bool>(),
        steps in prop::collection::vec(step(), 0..60),
    ) {
        check(delta, steps);
    }
}
