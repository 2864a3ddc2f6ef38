//! `config.core.v3.DataSource` of what is no secret: bodies, scripts, public keys.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    Inline(Arc<[u8]>),
    File(PathBuf),
    Environment(Arc<str>),
}

impl Content {
    pub fn inline(text: &str) -> Self {
        Self::Inline(text.as_bytes().into())
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::inline("")
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(bytes) => write!(f, "Inline({:?})", String::from_utf8_lossy(bytes)),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Environment(name) => f.debug_tuple("Environment").field(name).finish(),
        }
    }
}
