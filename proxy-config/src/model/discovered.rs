//! Extensions that come by ECDS: `config.core.v3.ExtensionConfigSource` and `TypedExtensionConfig`.

use std::sync::Arc;

use super::config_source::ConfigSource;
use super::network_filter::NetworkFilter;

/// A network filter whose configuration is to come: `config_discovery`.
#[derive(Clone, Debug, PartialEq)]
pub struct Discovered {
    pub source: ConfigSource,
    /// Holds where nothing has come in time.
    pub default: Option<Box<NetworkFilter>>,
    /// The default holds at once; the listener does not wait.
    pub apply_default_config_without_warming: bool,
    /// What may come, without the host. Never empty.
    pub types: Vec<Arc<str>>,
}

/// What has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Extension {
    pub name: Arc<str>,
    /// Of its configuration, without the host.
    pub type_name: Arc<str>,
    pub content: ExtensionContent,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ExtensionContent {
    NetworkFilter(NetworkFilter),
    /// Known to Envoy, and of no use here yet: kept to be shown.
    Unserved,
}
