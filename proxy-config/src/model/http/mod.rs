//! HTTP: connection managers, routes, filters and what both sides of a connection are told about the protocol.
//!
//! Names of headers are in lower case. Formats stay text, as those of access logs: the daemon compiles them, after
//! [`crate::format`] has taken them.

pub mod action;
pub mod content;
pub mod ext_authz;
pub mod filter;
pub mod filters;
pub mod hcm;
pub mod header;
pub mod istio;
pub mod jwt;
pub mod options;
pub mod retry;
pub mod route;
pub mod route_match;
pub mod template;
pub mod tracing;

pub use action::{Action, Priority, RouteAction};
pub use content::Content;
pub use filter::{FilterKind, HttpFilter, PerFilter, PerFilters, PerRoute};
pub use hcm::{Hcm, RouteSource};
pub use header::{Format, HeaderEdits, HeaderMatcher, HeaderOption};
pub use options::{CommonHttpOptions, Http1Options, Http2Options, HttpOptions};
pub use retry::RetryPolicy;
pub use route::{Route, RouteConfiguration, VirtualHost};
pub use route_match::{PathMatch, RouteMatch};
