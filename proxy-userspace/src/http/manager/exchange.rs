//! One stream, from its request's head to its response's: the manager's own changes, the filters, the router.

use http::{Method, StatusCode};

use super::{inbound, local_reply, traced};
use crate::http::filter::{LocalReply, Stop, StreamFilter};
use crate::http::router::Made;
use crate::http::{RequestHead, Reset, Stream, router};
use crate::telemetry::Flags;

/// The filters that take part in a stream, in their order.
pub(super) type Chain = Vec<Box<dyn StreamFilter>>;

/// What becomes of a request for another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    None,
    Taken,
    Refused,
}

/// What comes before anything is waited for: the manager's own changes, the route, the choice of filters.
pub(super) fn begin(stream: &mut Stream, chain: &mut Chain) -> (Upgrade, Result<(), Stop>) {
    let prepared = inbound::prepare(stream);
    enter(stream, chain, prepared, true)
}

/// The same for a stream that begins anew: its head is as the first time has left it, but for its host and its path.
pub(super) fn again(stream: &mut Stream, chain: &mut Chain) -> (Upgrade, Result<(), Stop>) {
    let prepared = inbound::prepare_again(stream);
    enter(stream, chain, prepared, false)
}

fn enter(
    stream: &mut Stream,
    chain: &mut Chain,
    prepared: Result<(), Stop>,
    first: bool,
) -> (Upgrade, Result<(), Stop>) {
    name_cluster(stream);
    traced::begin(stream, first);
    let upgrade = upgrade(stream);
    // A request that is refused here is seen by the filters on its response's way.
    choose(stream, chain, upgrade);
    if upgrade == Upgrade::Refused && prepared.is_ok() && stream.known_route().is_some() {
        stream.conn.hcm.stats.downstream_rq_ws_on_non_ws_route.inc();
        let reply = LocalReply::new(StatusCode::FORBIDDEN, "", Flags::NONE, "upgrade_failed");
        return (upgrade, Err(reply.into()));
    }
    (upgrade, prepared)
}

/// As Envoy, a line says where the request was to go, whoever answers it.
fn name_cluster(stream: &mut Stream) {
    let name = stream.known_route().and_then(|route| route.cluster(stream.request()));
    if let Some(cluster) = name.and_then(|name| stream.conn.cluster(&name)) {
        let upstream = &mut stream.entry.upstream;
        upstream.cluster = Some(cluster.model.name.clone());
        upstream.cluster_model = Some(cluster.model.clone());
    }
}

fn choose(stream: &Stream, chain: &mut Chain, upgrade: Upgrade) {
    let kind = if upgrade == Upgrade::Taken { kind(stream.request()) } else { None };
    for slot in stream.conn.hcm.slots(kind) {
        if slot.is_on(stream) {
            chain.extend(slot.filter.begin(stream));
        }
    }
}

fn kind(head: &RequestHead) -> Option<&str> {
    head.upgrade.as_deref().or_else(|| (head.method == Method::CONNECT).then_some("connect"))
}

/// The route says whether it may be, else the connection manager.
fn upgrade(stream: &Stream) -> Upgrade {
    let Some(kind) = kind(stream.request()) else { return Upgrade::None };
    let action = stream.known_route().and_then(|route| route.action());
    let routes = action.and_then(|action| {
        let found = action.upgrades.iter().find(|upgrade| upgrade.upgrade_type.eq_ignore_ascii_case(kind));
        found.map(|upgrade| upgrade.enabled)
    });
    let model = &stream.conn.hcm.model;
    let own = model.upgrades.iter().find(|upgrade| upgrade.upgrade_type.eq_ignore_ascii_case(kind));
    if routes.unwrap_or(own.is_some_and(|upgrade| upgrade.enabled)) {
        Upgrade::Taken
    } else {
        Upgrade::Refused
    }
}

/// Makes the response: the proxy's own, or the upstream's. Or the request becomes another one.
pub(super) async fn request(stream: &mut Stream, chain: &mut Chain) -> Result<Made, Stop> {
    for filter in chain.iter_mut() {
        filter.request(stream).done().await?;
    }
    router::run(stream).await
}

/// A filter that answers instead has its answer pass those that the response has not passed yet.
pub(super) async fn response(stream: &mut Stream, chain: &mut Chain) -> Result<(), Reset> {
    for filter in chain.iter_mut().rev() {
        match filter.response(stream).done().await {
            Ok(()) => {}
            Err(Stop::Reply(reply)) => local_reply::make(stream, *reply),
            Err(Stop::Reset(reset)) => return Err(reset),
        }
    }
    Ok(())
}
