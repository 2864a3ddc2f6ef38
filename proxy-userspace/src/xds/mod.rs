//! Where dynamic resources come from: files and control planes, all by one interface.
//!
//! A [`Consumer`] asks [`Sources`] for resources of one type, by name or all of them, and is told of each response
//! that has one of them. Its answer is what the server is told: ACK, or NACK with the reason.
//!
//! - [`file`]: files, each read once for all that follow it.
//! - [`mux`]: the protocol with one server, without I/O; [`session`] moves it, over [`grpc`]; [`apply`] tells the
//!   consumers.

mod apply;
mod backoff;
mod file;
mod grpc;
mod mux;
mod session;
mod sources;
mod status;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::config_source::ConfigSource;
use proxy_config::xds::{Kind, RawResource};

pub use self::sources::{Clusters, Sources, SourcesEnv};
pub use self::status::{ControlPlane, SessionView};

/// What a response says to one consumer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Update<'a> {
    /// `version_info`, `system_version_info`.
    pub version: &'a str,
    /// Those that it asked for. Of a state of the world all, also the unchanged; of a delta the changed.
    pub resources: &'a [RawResource],
    /// Names of those that are gone: a delta says so, and a TTL that has passed.
    pub removed: &'a [Arc<str>],
    /// The state of the world: what was known and is not among `resources` is gone, for whoever asked for all.
    pub whole: bool,
    /// Everything that the response has, also what others have asked for.
    pub response: &'a [RawResource],
}

/// What is still to come before an update is judged.
pub type Verdict<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// Who takes resources. Called from the task of the source, one call at a time for each source and type.
pub trait Consumer: Send + Sync + 'static {
    /// The reason of a refusal, with the paths of the fields, goes to the server. What can be used of a refused
    /// update may be used, as Envoy does.
    fn update(&self, update: &Update<'_>) -> Result<(), String>;

    /// For those that cannot say at once how the last update has gone: files are to be read first.
    fn verdict(&self) -> Option<Verdict<'_>> {
        None
    }

    /// There is no answer, or none that can be read.
    fn failed(&self, failure: &Failure);
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// A file that is not there; it may come.
    #[error("{0}")]
    Missing(String),
    /// What has come is no response: there is nothing in it to be judged.
    #[error("{0}")]
    Unreadable(String),
    /// A response that cannot be taken, by whoever has asked: a resource of another type.
    #[error("{0}")]
    Refused(String),
    /// The server cannot be reached, or has ended the stream.
    #[error("{0}")]
    Disconnected(String),
    /// `initial_fetch_timeout` has passed without a first answer.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Names {
    /// All that the source has: LDS and CDS.
    All,
    One(Arc<str>),
}

/// Ends the subscription when it is dropped.
pub struct Subscription {
    _held: Box<dyn Any + Send + Sync>,
}

impl Subscription {
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Subscription")
    }
}

/// Where nothing comes from: of a configuration that is only checked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nowhere;

impl Subscribe for Nowhere {
    fn subscribe(&self, _: &ConfigSource, _: Kind, _: Names, _: &Arc<dyn Consumer>) -> Subscription {
        Subscription::new(())
    }
}

/// All sources of one configuration.
pub trait Subscribe: Send + Sync {
    /// The consumer is held weakly: it keeps the subscription, not the other way round. Needs a runtime.
    fn subscribe(
        &self,
        source: &ConfigSource,
        kind: Kind,
        names: Names,
        consumer: &Arc<dyn Consumer>,
    ) -> Subscription;
}
