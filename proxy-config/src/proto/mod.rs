//! Protobuf: the types of messages that envoy-types lacks, and the descriptors of all of them.

/// Every message that a configuration may name, as a `FileDescriptorSet`: Envoy's, then our own few.
pub const DESCRIPTORS: [&[u8]; 2] =
    [include_bytes!("../../proto/envoy.fds"), include_bytes!("../../proto/istio.fds")];

/// Rust types of `proto/*.proto`.
#[rustfmt::skip]
#[path = "generated/mod.rs"]
pub mod pb;

pub(crate) mod schema;
pub(crate) mod wire;

/// For tests that go through all fields of a message.
#[cfg(test)]
pub(crate) fn pool() -> &'static prost_reflect::DescriptorPool {
    use std::sync::LazyLock;
    static POOL: LazyLock<prost_reflect::DescriptorPool> = LazyLock::new(|| {
        let mut pool = prost_reflect::DescriptorPool::new();
        for set in DESCRIPTORS {
            pool.decode_file_descriptor_set(set).expect("the committed descriptors are whole");
        }
        pool
    });
    &POOL
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_descriptors_hold_envoys_and_istios_messages() {
        for name in ["envoy.config.bootstrap.v3.Bootstrap", "udpa.type.v1.TypedStruct", "stats.PluginConfig"]
        {
            assert!(super::pool().get_message_by_name(name).is_some(), "{name}");
        }
    }
}
