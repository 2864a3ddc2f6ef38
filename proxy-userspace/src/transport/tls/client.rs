//! TLS of a cluster.

use std::net::IpAddr;
use std::sync::Arc;

use proxy_config::model::address::Address;
use proxy_config::model::tls::{SessionTickets, UpstreamTls, ValidationSource};
use rustls::client::{ClientConfig, Resumption};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;

use super::context::{Build, Common, Live};
use super::inputs::Resolved;
use super::keys::Identity;
use super::peer::{Expecting, PeerVerifier};
use super::provider::{Schemes, Wall, provider, versions};
use super::session::ClientSessions;
use super::socket::TlsSocket;
use super::verify::Verifier;
use crate::secret::Slot;
use crate::secret::material::ValidationMaterial;
use crate::transport::tls::CertificateSet;
use crate::transport::{BuildError, Certificate, Env, Factory, Link, Names, NotReady, Side, Transport};

/// Sessions are known by the server's name: a cluster without one keeps them under this, which is never sent.
pub(super) const NAMELESS: &str = "nameless.invalid";

pub(super) struct Client {
    live: Arc<Live<ClientBuild>>,
}

impl Client {
    pub(super) fn new(model: &Arc<UpstreamTls>, prefix: &Arc<str>, env: &Env) -> Result<Self, BuildError> {
        if model.common.validation == ValidationSource::None {
            log::warn!("{prefix}: TLS without a validation context: whoever answers is taken for the server");
        }
        let build = ClientBuild { model: model.clone() };
        let live = Live::new(build, &model.common, &SessionTickets::Disabled, (prefix, Side::Upstream), env)?;
        Ok(Self { live })
    }
}

impl Factory for Client {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let Some(context) = self.live.context() else {
            self.live.common.factory_stats.upstream_context_secrets_not_ready.inc();
            return Err(NotReady);
        };
        let (hostname, addresses, alpn, names) = match link {
            Link::Upstream { host, local, alpn, names, .. } => {
                let remote = match host.address() {
                    Address::Ip(address) => Some(address.ip()),
                    Address::Host(_) | Address::Pipe { .. } => None,
                };
                (host.hostname.clone(), local.map(|local| local.ip()).zip(remote), *alpn, *names)
            }
            Link::Downstream { .. } => (Arc::from(""), None, &[] as &[_], None),
        };
        Ok(Box::new(TlsSocket::client(context, &hostname, addresses, alpn, names)))
    }

    fn secrets(&self, found: &mut Vec<Arc<Slot>>) {
        self.live.secrets(found);
    }

    fn certificates(&self, found: &mut Vec<CertificateSet>) {
        if let Some(context) = self.live.context() {
            let chain = context.identity.iter().map(Identity::shown).collect();
            found.push(CertificateSet { ca: context.peer.ca().into_iter().collect(), chain });
        }
    }
}

struct ClientBuild {
    model: Arc<UpstreamTls>,
}

impl Build for ClientBuild {
    type Context = ClientContext;

    fn build(&self, resolved: Resolved, common: &Arc<Common>) -> Result<ClientContext, String> {
        let params = &self.model.common.params;
        let provider = provider(params);
        let schemes = Schemes::new(params, &provider);
        if resolved.certificates.len() > 1 {
            return Err("Client TLS context supports only a single certificate".to_owned());
        }
        let first = resolved.certificates.first();
        let identity = first.map(|material| Identity::load(material, &provider, &schemes)).transpose()?;
        let validation = resolved.validation.as_ref();
        if self.model.auto_sni_san_validation && !validation.is_some_and(trusts_somebody) {
            return Err(
                "'auto_sni_san_validation' was configured without configuring a trusted CA".to_owned()
            );
        }
        let verifier =
            validation.map(|material| Verifier::new(material, common.stats.clone())).transpose()?;
        let algorithms = provider.signature_verification_algorithms;
        let checks = (self.model.auto_sni_san_validation, self.model.enforce_rsa_key_usage);
        let peer = Arc::new(PeerVerifier::of_servers(verifier, (algorithms, schemes), checks));
        let own = identity.as_slice();
        common.show_expirations(own, Some(&peer), resolved.validation_name.as_ref());
        let builder = ClientConfig::builder_with_details(provider, Arc::new(Wall))
            .with_protocol_versions(&versions(params))
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(peer.clone());
        let mut config = match &identity {
            Some(identity) => {
                let resolver = SingleCertAndKey::from(identity.certified.clone());
                builder.with_client_cert_resolver(Arc::new(resolver))
            }
            None => builder.with_no_client_auth(),
        };
        let alpn = self.model.common.alpn_protocols.iter();
        config.alpn_protocols = alpn.map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.resumption = match self.model.max_session_keys {
            0 => Resumption::disabled(),
            most => {
                Resumption::store(Arc::new(ClientSessions::new(usize::try_from(most).unwrap_or(usize::MAX))))
            }
        };
        Ok(ClientContext {
            configs: Configs::new(config, common),
            sni: self.model.sni.clone(),
            auto_host_sni: self.model.auto_host_sni,
            identity,
            peer,
            common: common.clone(),
        })
    }
}

fn trusts_somebody(validation: &ValidationMaterial) -> bool {
    validation.model.trusted_ca.is_some() || validation.model.spiffe.is_some()
}

/// What handshakes of a cluster run on, until it is rebuilt.
pub(super) struct ClientContext {
    configs: Configs,
    sni: Arc<str>,
    auto_host_sni: bool,
    identity: Option<Identity>,
    pub(super) peer: Arc<PeerVerifier>,
    pub(super) common: Arc<Common>,
}

struct Configs {
    /// With and without a server name.
    silent: [Arc<ClientConfig>; 2],
    /// The same, with their keys logged.
    logged: Option<[Arc<ClientConfig>; 2]>,
}

impl Configs {
    fn new(config: ClientConfig, common: &Common) -> Self {
        let pair = |config: ClientConfig| {
            let mut nameless = config.clone();
            nameless.enable_sni = false;
            [Arc::new(config), Arc::new(nameless)]
        };
        let logged = common.key_log.as_ref().map(|log| {
            let mut config = config.clone();
            config.key_log = log.clone();
            pair(config)
        });
        Self { silent: pair(config), logged }
    }
}

/// How a connection begins.
pub(super) struct Opening {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
    /// As it is sent.
    pub(super) sni: Option<Arc<str>>,
}

impl ClientContext {
    /// The error is the reason for the log.
    pub(super) fn open(
        &self,
        hostname: &Arc<str>,
        addresses: Option<(IpAddr, IpAddr)>,
        alpn: &[&str],
        names: Option<&Names>,
    ) -> Result<Opening, String> {
        let sni = if let Some(asked) = names.and_then(|names| names.sni.as_ref()) {
            asked
        } else if self.auto_host_sni && !hostname.is_empty() {
            hostname
        } else {
            &self.sni
        };
        let sni = Some(sni).filter(|sni| !sni.is_empty());
        let name = sni.map_or(NAMELESS, |sni| sni);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| format!("TLS error: {name:?} cannot be sent as a server name"))?;
        let logged = self.common.logs_keys_of(addresses);
        let [named, nameless] =
            self.configs.logged.as_ref().filter(|_| logged).unwrap_or(&self.configs.silent);
        let config = if sni.is_some() { named } else { nameless };
        let mut config = config.clone();
        if let Some(alpn) = names.and_then(|names| names.alpn.as_ref()) {
            let offered = Arc::make_mut(&mut config);
            offered.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        } else if config.alpn_protocols.is_empty() && !alpn.is_empty() {
            let offered = Arc::make_mut(&mut config);
            offered.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        }
        if let Some(san) = names.and_then(|names| names.san.as_ref()) {
            let verifier = Arc::new(Expecting { peer: self.peer.clone(), san: san.clone() });
            Arc::make_mut(&mut config).dangerous().set_certificate_verifier(verifier);
        }
        Ok(Opening { config, name, sni: sni.cloned() })
    }

    /// Our certificate, whether or not the server has asked for it.
    pub(super) fn facts(&self) -> Option<Arc<Certificate>> {
        self.identity.as_ref().map(|identity| identity.facts.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rig::*;
    use super::*;

    #[test]
    fn the_endpoints_own_name_is_sent_where_it_has_one() {
        let mut model = upstream(common(&[], None));
        let opened = |model: &UpstreamTls, hostname: &str| {
            let client = Client::new(&Arc::new(model.clone()), &"c".into(), &env()).unwrap();
            let context = client.live.context().unwrap();
            context
                .open(&hostname.into(), None, &[], None)
                .map(|opening| (opening.config.enable_sni, opening.sni))
        };
        assert_eq!(opened(&model, "b.test"), Ok((true, Some("a.test".into()))));
        model.auto_host_sni = true;
        assert_eq!(opened(&model, "b.test"), Ok((true, Some("b.test".into()))));
        assert_eq!(opened(&model, ""), Ok((true, Some("a.test".into()))));
        model.sni = "".into();
        assert_eq!(opened(&model, ""), Ok((false, None)));
        let refused = opened(&model, "not a name").unwrap_err();
        assert_eq!(refused, "TLS error: \"not a name\" cannot be sent as a server name");
    }

    #[test]
    fn a_name_cannot_be_validated_where_nobody_is_trusted() {
        let mut model = upstream(common(&[], None));
        model.auto_sni_san_validation = true;
        let refused = Client::new(&Arc::new(model), &"c".into(), &env()).err().unwrap();
        assert!(refused.to_string().contains("without configuring a trusted CA"), "{refused}");
    }
}
