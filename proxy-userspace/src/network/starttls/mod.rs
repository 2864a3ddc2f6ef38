//! Filters that speak a protocol's beginning, and have a side turn to TLS where it says so.
//!
//! A [`Driver`] runs once both sides are connected, before the relay: it reads and writes what it must, and leaves
//! to the relay what it has read too much.

use std::future::Future;
use std::pin::Pin;

use super::Close;
use crate::net::wire::Wire;
use crate::telemetry::Bytes;

/// What a driver has read and not passed on.
#[derive(Debug, Default)]
pub struct Leftover {
    pub to_upstream: Vec<u8>,
    pub to_downstream: Vec<u8>,
}

/// Why it ends here.
#[derive(Debug)]
pub enum Stop {
    /// The proxy closes both sides.
    Close(Close),
    /// A side has closed, by FIN or RST.
    Gone(crate::telemetry::Side),
}

pub type Negotiation<'a> = Pin<Box<dyn Future<Output = Result<Leftover, Stop>> + Send + 'a>>;

pub trait Driver: Send + Sync {
    /// Counts what it reads and writes in `bytes`.
    fn negotiate<'a>(
        &'a self,
        down: &'a mut Wire<'_>,
        up: &'a mut Wire<'_>,
        bytes: &'a mut Bytes,
    ) -> Negotiation<'a>;
}
