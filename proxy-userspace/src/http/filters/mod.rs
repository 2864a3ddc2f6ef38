//! The filters, by their configurations.

use std::sync::Arc;

use proxy_config::model::http::FilterKind;

use super::{BuildError, Filter};
use crate::world::Parts;

/// None: the router, or one that does nothing to any request.
pub fn build(kind: &FilterKind, parts: &Parts<'_>) -> Result<Option<Arc<dyn Filter>>, BuildError> {
    let _ = (kind, parts);
    Ok(None)
}
