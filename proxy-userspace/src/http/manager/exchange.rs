//! One stream, from its request's head to its response's: the manager's own changes, the filters, the router.

use super::{inbound, local_reply, traced};
use crate::http::filter::{Stop, StreamFilter};
use crate::http::{Reset, Stream, router};

/// The filters that take part in a stream, in their order.
pub(super) type Chain = Vec<Box<dyn StreamFilter>>;

/// What comes before anything is waited for: the manager's own changes, the route, the choice of filters.
pub(super) fn begin(stream: &mut Stream, chain: &mut Chain) -> Result<(), Stop> {
    let prepared = inbound::prepare(stream);
    traced::begin(stream);
    // A request that is refused here is seen by the filters on its response's way.
    let upgraded = choose(stream, chain);
    prepared?;
    upgraded
}

fn choose(stream: &mut Stream, chain: &mut Chain) -> Result<(), Stop> {
    let conn = stream.conn.clone();
    for slot in conn.hcm.slots(stream.request().upgrade.as_deref()) {
        if slot.is_on(stream) {
            chain.extend(slot.filter.begin(stream));
        }
    }
    Ok(())
}

/// Makes the response: the proxy's own, or the upstream's.
pub(super) async fn request(stream: &mut Stream, chain: &mut Chain) -> Result<(), Stop> {
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
