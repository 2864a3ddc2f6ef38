//! Extensions that come by ECDS: `config.core.v3.ExtensionConfigSource` and `TypedExtensionConfig`.

use std::sync::Arc;

use super::config_source::ConfigSource;
use super::http::FilterKind;
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
    /// It ends its chain: what comes must do so too.
    pub last: bool,
}

impl Discovered {
    /// The filter that has come for this place under `name`, or why it cannot be here, in Envoy's words.
    pub fn accepts<'e>(&self, extension: &'e Extension) -> Result<&'e NetworkFilter, String> {
        let Extension { name, type_name, content } = extension;
        if !self.types.contains(type_name) {
            let types = self.types.join(" or ");
            return Err(format!("Error: filter config has type URL {type_name} but expect {types}."));
        }
        match content {
            ExtensionContent::NetworkFilter(filter) | ExtensionContent::Both(filter, _) => {
                self.fits(name, type_name, filter).map(|()| filter)
            }
            ExtensionContent::HttpFilter(_) | ExtensionContent::Unserved => {
                Err(format!("{type_name} is no network filter"))
            }
        }
    }

    pub(crate) fn fits(&self, name: &str, type_name: &str, filter: &NetworkFilter) -> Result<(), String> {
        match (filter.is_terminal(), self.last, filter) {
            // It closes connections wherever it is.
            (_, _, NetworkFilter::Unserved(_)) | (true, true, _) | (false, false, _) => Ok(()),
            (true, false, _) => Err(format!(
                "Error: terminal filter named {name} of type {type_name} must be the last filter in a network \
                 filter chain."
            )),
            (false, true, _) => Err(format!(
                "Error: non-terminal filter named {name} of type {type_name} is the last filter in a network \
                 filter chain."
            )),
        }
    }
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
    HttpFilter(Box<FilterKind>),
    /// Of a type that is both: it is as it is asked for.
    Both(NetworkFilter, Box<FilterKind>),
    /// Known to Envoy, and of no use here yet: kept to be shown.
    Unserved,
}
