//! What the connection manager does with a request before any filter sees it.

use crate::http::Stream;
use crate::http::filter::Stop;

pub(super) fn prepare(stream: &mut Stream) -> Result<(), Stop> {
    stream.route();
    Ok(())
}
