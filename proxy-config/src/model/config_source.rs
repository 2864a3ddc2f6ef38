//! `config.core.v3.ConfigSource`: where resources come from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::grpc::GrpcService;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfigSource {
    pub kind: ConfigSourceKind,
    /// How long its first answer is waited for; `None`: for ever (`0s`). Default 15 s.
    pub initial_fetch_timeout: Option<Duration>,
}

impl ConfigSource {
    pub fn is_file(&self) -> bool {
        matches!(self.kind, ConfigSourceKind::File { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConfigSourceKind {
    /// `path_config_source`, `path`.
    File {
        path: PathBuf,
        /// Whose moves say that the file has changed; else its own directory's.
        watched_directory: Option<PathBuf>,
    },
    /// `ads`: the one stream of the bootstrap's `ads_config`.
    Ads,
    /// `self`: the source that the resource which says so has come from.
    Same,
    /// `api_config_source`: a stream for each type of resource.
    Api(Arc<ApiSource>),
}

/// `config.core.v3.ApiConfigSource`, GRPC and DELTA_GRPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ApiSource {
    /// DELTA_GRPC: changes alone are sent, and not the state of the world.
    pub delta: bool,
    /// Envoy takes the first.
    pub service: GrpcService,
    /// The node is sent with the first request of a stream alone.
    pub set_node_on_first_message_only: bool,
    /// Requests are sent no faster than that.
    pub rate_limit: Option<RateLimit>,
}

/// `config.core.v3.RateLimitSettings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RateLimit {
    /// Default 100.
    pub max_tokens: u32,
    /// Between two tokens. Default 100 ms: ten in a second.
    pub fill_interval: Duration,
}
