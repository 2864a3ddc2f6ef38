//! TLS contexts as text of a bootstrap: `transport_socket: { … }` of a filter chain or a cluster.

use std::path::Path;

use crate::bootstrap::extension;
use crate::pki::Identity;

/// A DownstreamTlsContext or UpstreamTlsContext under construction; both have the same common part.
#[derive(Clone, Debug, Default)]
pub struct TlsContext {
    certificates: Vec<String>,
    validation: Vec<String>,
    matchers: Vec<String>,
    alpn: Vec<String>,
    params: Vec<String>,
    common: Vec<String>,
    own: Vec<String>,
}

impl TlsContext {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn certificate(self, identity: &Identity) -> Self {
        self.certificate_with(identity, "")
    }

    /// With further fields of TlsCertificate, such as `ocsp_staple`.
    pub fn certificate_with(mut self, identity: &Identity, fields: &str) -> Self {
        let (chain, key) = (file(&identity.chain), file(&identity.key));
        self.certificates.push(format!("{{ certificate_chain: {chain}, private_key: {key}, {fields} }}"));
        self
    }

    /// `trusted_ca`
    pub fn trust(mut self, ca: &Path) -> Self {
        self.validation.push(format!("trusted_ca: {}", file(ca)));
        self
    }

    /// Another field of the validation context.
    pub fn validate(mut self, field: &str) -> Self {
        self.validation.push(field.to_owned());
        self
    }

    /// An entry of `match_typed_subject_alt_names`: a kind (`URI`, `DNS`, `EMAIL`, `IP_ADDRESS`) and a StringMatcher's
    /// field (`exact: …`).
    pub fn san(mut self, kind: &str, matcher: &str) -> Self {
        self.matchers.push(format!("{{ san_type: {kind}, matcher: {{ {matcher} }} }}"));
        self
    }

    pub fn uri(self, exact: &str) -> Self {
        self.san("URI", &format!("exact: {exact:?}"))
    }

    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn.extend(protocols.iter().map(|name| format!("{name:?}")));
        self
    }

    /// A field of `tls_params`.
    pub fn params(mut self, field: &str) -> Self {
        self.params.push(field.to_owned());
        self
    }

    /// A field of the common context.
    pub fn common(mut self, field: &str) -> Self {
        self.common.push(field.to_owned());
        self
    }

    /// A field of the context itself.
    pub fn field(mut self, field: &str) -> Self {
        self.own.push(field.to_owned());
        self
    }

    pub fn require_client(self) -> Self {
        self.field("require_client_certificate: true")
    }

    /// The transport socket of a filter chain, as an extension.
    pub fn downstream(&self) -> String {
        self.socket("DownstreamTlsContext")
    }

    /// The transport socket of a cluster, as an extension.
    pub fn upstream(&self) -> String {
        self.socket("UpstreamTlsContext")
    }

    /// As [`Self::downstream`], in a `starttls`.
    pub fn downstream_starttls(&self) -> String {
        self.starttls("StartTlsConfig")
    }

    /// As [`Self::upstream`], in a `starttls`.
    pub fn upstream_starttls(&self) -> String {
        self.starttls("UpstreamStartTlsConfig")
    }

    fn starttls(&self, message: &str) -> String {
        let of_type = format!("envoy.extensions.transport_sockets.starttls.v3.{message}");
        let fields = format!("tls_socket_config: {{ {} }}", self.fields());
        extension("envoy.transport_sockets.starttls", &of_type, &fields)
    }

    /// A cluster's field.
    pub fn cluster(&self) -> String {
        format!("transport_socket: {}", self.upstream())
    }

    fn socket(&self, message: &str) -> String {
        let of_type = format!("envoy.extensions.transport_sockets.tls.v3.{message}");
        extension("envoy.transport_sockets.tls", &of_type, &self.fields())
    }

    fn fields(&self) -> String {
        let mut common = Vec::new();
        if !self.certificates.is_empty() {
            common.push(format!("tls_certificates: [ {} ]", self.certificates.join(", ")));
        }
        let mut validation = self.validation.clone();
        if !self.matchers.is_empty() {
            validation.push(format!("match_typed_subject_alt_names: [ {} ]", self.matchers.join(", ")));
        }
        if !validation.is_empty() {
            common.push(format!("validation_context: {{ {} }}", validation.join(", ")));
        }
        if !self.alpn.is_empty() {
            common.push(format!("alpn_protocols: [ {} ]", self.alpn.join(", ")));
        }
        if !self.params.is_empty() {
            common.push(format!("tls_params: {{ {} }}", self.params.join(", ")));
        }
        common.extend(self.common.iter().cloned());
        format!("common_tls_context: {{ {} }}, {}", common.join(", "), self.own.join(", "))
    }
}

/// A DataSource of a file.
pub fn file(path: &Path) -> String {
    format!("{{ filename: {:?} }}", path.display().to_string())
}

/// A filter chain over a transport socket.
pub fn tls_chain(chain_match: &str, transport: &str, filters: &[String]) -> String {
    crate::bootstrap::chain(chain_match, filters).replacen(
        '{',
        &format!("{{ transport_socket: {transport}, "),
        1,
    )
}
