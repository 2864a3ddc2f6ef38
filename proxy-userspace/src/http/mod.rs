//! HTTP: codecs, the connection manager, routes, filters and the way upstream.
//!
//! One task carries a client's connection; an exchange of HTTP/1 is all its own, from the request's first byte to the
//! response's last: the body of a response, when it is polled, reads the upstream's socket and sends what is left of the
//! request. HTTP/2 has a task for each stream beside the connection's.

pub mod body;
pub mod exchange;
pub mod h2;
pub mod io;
pub mod message;
pub mod reset;

pub use self::body::Body;
pub use self::exchange::{Interim, Observer, Progress, Sent};
pub use self::io::Io;
pub use self::message::{Case, Request, RequestHead, Response, ResponseHead, Scheme};
pub use self::reset::{Reset, ResetReason};
