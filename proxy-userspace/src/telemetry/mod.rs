//! What the proxy tells about itself: counters under Envoy's names, and one record per connection.

pub mod access_log;
mod flags;
pub mod http;
pub mod record;
pub mod stats;
pub mod trace;

pub use access_log::AccessLog;
pub use flags::Flags;
pub use http::HttpEntry;
pub use record::{Bytes, ConnRecord, Entry, LogType, Origin, Outcome, Side, Upstream};
