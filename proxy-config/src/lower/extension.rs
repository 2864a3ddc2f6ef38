//! Extensions: from the `Any` of a filter to the message inside, or the reason why not.

use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::{Cx, Lower};
use crate::decode::any;
use crate::diagnostic::Segment;
use crate::model::TransportSocket;

/// An extension's configuration: its message's full name and its bytes.
#[derive(Debug)]
pub(super) struct Extension {
    pub(super) type_name: String,
    value: Vec<u8>,
}

impl Extension {
    /// Unpacks `typed_config`; what cannot be has been reported.
    pub(super) fn unpack(cx: &mut Cx, any: &Any) -> Option<Self> {
        match any::unpack(&any.type_url, &any.value) {
            Ok((type_name, value)) => Some(Self { type_name, value: value.into_owned() }),
            Err(why) => {
                cx.reject("typed_config", why);
                None
            }
        }
    }

    /// Lowers it as the message `M`, whose name it has.
    pub(super) fn lower<M: Message + Default + Lower>(&self, cx: &mut Cx) -> Option<M::Model> {
        match M::decode(self.value.as_slice()) {
            Ok(message) => self.within(cx, |cx| message.lower(cx)),
            Err(error) => {
                cx.reject("typed_config", format!("malformed {}: {error}", self.type_name));
                None
            }
        }
    }

    fn within<T>(&self, cx: &mut Cx, f: impl FnOnce(&mut Cx) -> T) -> T {
        let short = self.type_name.rsplit('.').next().unwrap_or_default().to_owned();
        cx.field("typed_config", |cx| cx.within(Segment::Type(short), f))
    }
}

/// `name` is what the configuration calls it.
pub(super) fn transport_socket(cx: &mut Cx, name: &str, any: Option<Any>) -> Option<TransportSocket> {
    let Some(any) = any else {
        if name == "envoy.transport_sockets.raw_buffer" || name == "raw_buffer" {
            cx.warn_here("has no typed_config: taken by its name");
            return Some(TransportSocket::RawBuffer);
        }
        cx.reject_here(format!("\"{name}\": typed_config is required"));
        return None;
    };
    let extension = Extension::unpack(cx, &any)?;
    if extension.type_name == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" {
        return Some(TransportSocket::RawBuffer);
    }
    cx.reject("typed_config", format!("\"{name}\": {} is not implemented yet", extension.type_name));
    None
}
