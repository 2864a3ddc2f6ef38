//! Routes: a configuration compiled into tables, and what it says of a request.
//!
//! [`Routes::find`] looks for the virtual host, then for the first of its routes that matches, then chooses one of its
//! clusters. What it finds was made before, so that it costs no allocation. [`finalize_request`], [`finalize_response`]
//! and [`reply`] do what the route says.

mod edit;
mod finalize;
mod hash;
mod header_test;
mod hosts;
mod matcher;
mod reply;
mod request;
mod rewrite;
mod routed;
mod slot;
mod table;
#[cfg(test)]
mod tests;

pub use self::edit::{Addition, Edit, Whose, apply as add_headers};
pub use self::finalize::{finalize_request, finalize_response, reply};
pub use self::hash::Hashing;
pub use self::header_test::{HeaderTest, Name};
pub use self::rewrite::rewrite_host;
pub use self::routed::{Routed, is_auto};
pub use self::slot::{RouteSlot, RouteSlots};
pub use self::table::Routes;
