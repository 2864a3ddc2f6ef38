//! Every message that is lowered, as data: what the reflection test walks and `docs/config-support.md` prints.

use super::{Cx, Status};

/// A message with its table, and its lowering from bytes.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    pub name: &'static str,
    pub fields: &'static [(&'static str, Status)],
    /// The model in its debug form, which is equal where the model is; `None` where it was refused, or is no
    /// such message.
    pub lower: fn(&[u8], &mut Cx) -> Option<String>,
}

/// Of all files of this module. A test compares it with the `lower!` tables in their source.
pub fn messages() -> impl Iterator<Item = Message> {
    [
        super::access_log::MESSAGES,
        super::bootstrap::MESSAGES,
        super::config_source::MESSAGES,
        super::core::MESSAGES,
        super::discovered::MESSAGES,
        super::filter_chain::MESSAGES,
        super::grpc::MESSAGES,
        super::listener::MESSAGES,
        super::listener_filter::MESSAGES,
        super::matcher::MESSAGES,
        super::network_filter::MESSAGES,
        super::rbac::MESSAGES,
        super::starttls::MESSAGES,
    ]
    .into_iter()
    .chain(super::cluster::ALL_MESSAGES.iter().copied())
    .chain(super::http::ALL_MESSAGES.iter().copied())
    .chain(super::tls::ALL_MESSAGES.iter().copied())
    .chain(super::transport::ALL_MESSAGES.iter().copied())
    .flatten()
    .copied()
}

/// Declares the `MESSAGES` of a file.
macro_rules! registry {
    ($($pb:path),* $(,)?) => {
        pub(crate) const MESSAGES: &[$crate::lower::registry::Message] = &[$($crate::lower::registry::Message {
            name: <$pb as $crate::lower::Lower>::NAME,
            fields: <$pb as $crate::lower::Lower>::FIELDS,
            lower: |bytes, cx| {
                let message = <$pb as prost::Message>::decode(bytes).ok()?;
                $crate::lower::Lower::lower(message, cx).map(|model| format!("{model:?}"))
            },
        }),*];
    };
}
pub(crate) use registry;
