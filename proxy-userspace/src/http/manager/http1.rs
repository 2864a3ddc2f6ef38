//! A client's connection by HTTP/1: one stream after another.

use std::sync::Arc;

use crate::drain::Guard;
use crate::http::{ConnCx, Io};

pub(super) async fn serve(cx: &Arc<ConnCx>, io: Io, guard: &Guard) {
    let _ = (cx, io, guard);
}
