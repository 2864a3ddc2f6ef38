//! `config.core.v3.GrpcService`: a server to be called by gRPC.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::tls::DataSource;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrpcService {
    pub target: GrpcTarget,
    /// How long a call may take; streams that follow a configuration have no such limit. `None`: for ever.
    pub timeout: Option<Duration>,
    pub initial_metadata: Vec<(String, String)>,
    /// Between two attempts to open a stream. Default 500 ms to 30 s, with jitter.
    pub backoff: Backoff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GrpcTarget {
    /// `envoy_grpc`: an endpoint of a cluster, by the cluster's transport socket.
    Cluster {
        name: Arc<str>,
        /// `:authority`; else the cluster's name.
        authority: Option<String>,
    },
    /// `google_grpc`: a server by its own address.
    Google(Box<GoogleGrpc>),
}

/// For people.
impl fmt::Display for GrpcTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { name, .. } => write!(f, "cluster {name}"),
            Self::Google(google) => f.write_str(&google.target_uri),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GoogleGrpc {
    /// `host:port`, `dns:///host:port`, `ipv4:…`, `unix:PATH`, …
    pub target_uri: String,
    pub stat_prefix: String,
    pub channel: GoogleChannel,
    /// Sent as `authorization: Bearer …`, read again for each stream.
    pub token: Option<DataSource>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GoogleChannel {
    Plaintext,
    Tls {
        /// `None`: those of the system.
        root_certs: Option<DataSource>,
        cert_chain: Option<DataSource>,
        private_key: Option<DataSource>,
    },
}
