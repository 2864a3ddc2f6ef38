//! The message that a model came from.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use prost::encoding::{DecodeContext, decode_key, skip_field};

/// An encoded message in two parts: what is its own, and what thousands have alike, which is kept once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    shared: Arc<[u8]>,
    own: Box<[u8]>,
}

impl Raw {
    /// The message. Its fields are in another order than they came in, which means the same: no field is in both
    /// parts.
    pub fn bytes(&self) -> Bytes {
        [&*self.shared, &*self.own].concat().into()
    }

    /// Whether [`Self::bytes`] are these.
    pub fn is(&self, message: &[u8]) -> bool {
        message.strip_prefix(&*self.shared) == Some(&*self.own)
    }

    /// All of it in the part that copies share.
    pub(crate) fn whole(message: Arc<[u8]>) -> Self {
        Self { shared: message, own: Box::default() }
    }
}

impl From<&[u8]> for Raw {
    fn from(message: &[u8]) -> Self {
        Self { shared: Arc::default(), own: message.into() }
    }
}

/// Splits messages of one type, and keeps what they share.
#[derive(Debug, Default)]
pub(crate) struct Sharing {
    /// Numbers of the fields that differ from message to message; none: nothing is shared.
    own: &'static [u32],
    known: HashSet<Arc<[u8]>>,
}

impl Sharing {
    pub(crate) fn new(own: &'static [u32]) -> Self {
        Self { own, known: HashSet::new() }
    }

    pub(crate) fn raw(&mut self, message: &[u8]) -> Raw {
        if self.own.is_empty() {
            return message.into();
        }
        let Some((shared, own)) = self.split(message) else { return message.into() };
        let shared = match self.known.get(shared.as_slice()) {
            Some(known) => known.clone(),
            None => {
                let shared: Arc<[u8]> = shared.into();
                self.known.insert(shared.clone());
                shared
            }
        };
        Raw { shared, own: own.into() }
    }

    /// `None` for what is no message.
    fn split(&self, message: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let (mut shared, mut own) = (Vec::new(), Vec::new());
        let mut rest = message;
        while rest.has_remaining() {
            let before = rest;
            let (number, wire_type) = decode_key(&mut rest).ok()?;
            skip_field(wire_type, number, &mut rest, DecodeContext::default()).ok()?;
            let field = before.get(..before.len() - rest.len())?;
            if self.own.contains(&number) { &mut own } else { &mut shared }.extend_from_slice(field);
        }
        Some((shared, own))
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;
    use prost::Message as _;

    use super::*;

    #[test]
    fn what_is_alike_is_kept_once_and_nothing_is_lost() {
        let cluster = |name: &str| Cluster {
            name: name.into(),
            lb_policy: 3,
            close_connections_on_host_health_failure: true,
            alt_stat_name: "other".into(),
            ..Cluster::default()
        };
        let mut sharing = Sharing::new(&[1]);
        let one = sharing.raw(&cluster("one").encode_to_vec());
        let two = sharing.raw(&cluster("two").encode_to_vec());
        assert!(Arc::ptr_eq(&one.shared, &two.shared) && !one.shared.is_empty());
        assert_eq!(Cluster::decode(one.bytes()).unwrap(), cluster("one"));
        assert_eq!(Cluster::decode(two.bytes()).unwrap(), cluster("two"));
        // Not a message: kept as it is.
        assert_eq!(sharing.raw(b"\xff").bytes(), Bytes::from_static(b"\xff"));
        assert!(one.is(&one.bytes()) && !one.is(&two.bytes()) && !one.is(b""));
    }
}
