//! What is known of a downstream connection before its first byte goes anywhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use proxy_config::model::listener_filter::OriginalSrc;
use proxy_config::model::metadata::Metadata;

use crate::transport::TlsInfo;

/// Filled in by `accept`, the listener filters and the transport socket, in this order; then only read.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The socket's peer.
    pub direct_remote: SocketAddr,
    /// The client: the peer, or who a PROXY header says it is.
    pub remote: SocketAddr,
    /// Where the client was going: the socket's own address, the original destination, or a PROXY header's.
    pub local: SocketAddr,
    /// The socket's own address, before anything was restored.
    pub direct_local: SocketAddr,
    /// `local` is an original destination: the connection may be handed to the listener of that address.
    pub local_restored: bool,
    /// `raw_buffer` or `tls`, as tls_inspector found it.
    pub transport_protocol: &'static str,
    /// SNI, lower case.
    pub server_name: Option<Arc<str>>,
    /// The client's ALPN protocols, or what http_inspector found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<Arc<str>>,
    /// What TLS has agreed on, once it has.
    pub tls: Option<Arc<TlsInfo>>,
    /// What few connections have.
    pub extra: Option<Box<Extra>>,
}

/// Facts of PROXY protocol, original_src and filters that write metadata.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// TLVs of a PROXY v2 header, for upstream_proxy_protocol.
    pub proxy_tlvs: Vec<(u8, Vec<u8>)>,
    /// Upstream connections come from the client's address.
    pub original_src: Option<OriginalSrc>,
    /// `%DYNAMIC_METADATA(…)%`.
    pub dynamic_metadata: Metadata,
    /// `%FILTER_STATE(…)%` of the connection.
    pub filter_state: BTreeMap<&'static str, serde_json::Value>,
}

impl Facts {
    pub fn new(remote: SocketAddr, local: SocketAddr) -> Self {
        Self {
            direct_remote: remote,
            remote,
            local,
            direct_local: local,
            local_restored: false,
            transport_protocol: "raw_buffer",
            server_name: None,
            application_protocols: Vec::new(),
            tls: None,
            extra: None,
        }
    }

    pub fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }
}
