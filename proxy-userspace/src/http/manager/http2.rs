//! A client's connection by HTTP/2: streams side by side, each in a task on the connection's worker.

use bytes::Bytes;

use super::{Served, closed};
use crate::http::Io;
use crate::telemetry::{Outcome, Side};

pub(super) async fn serve(served: &mut Served<'_>, io: Io, early: Bytes) -> Outcome {
    let _ = (served, io, early);
    closed(Side::Internal, "http2")
}
