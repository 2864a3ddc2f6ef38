//! `config.core.v3.ConfigSource`: where resources come from.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfigSource {
    pub kind: ConfigSourceKind,
    /// How long its first answer is waited for; `None`: for ever (`0s`). Default 15 s.
    pub initial_fetch_timeout: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConfigSourceKind {
    /// `path_config_source`, `path`.
    File {
        path: PathBuf,
        /// Whose moves say that the file has changed; else its own directory's.
        watched_directory: Option<PathBuf>,
    },
}
