//! TLS of a filter chain: which certificate and which settings a client gets.
//!
//! rustls makes these choices inside a handshake, by one configuration. Here the ClientHello is looked at first
//! ([`ServerContext::choose`]), because two of the choices are not rustls's: a client whose ALPN protocols are all
//! unknown goes on without one, and keys are logged for some addresses only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use proxy_config::model::tls::{DownstreamTls, OcspStaplePolicy, SessionTickets};
use ring::digest::{Context as Digest, SHA256};
use rustls::crypto::CryptoProvider;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ServerConfig, StoresServerSessions,
};
use rustls::{CipherSuite, NamedGroup, SignatureAlgorithm, SignatureScheme};

use super::context::{Build, Common, Live};
use super::error;
use super::inputs::{Resolved, TicketMaterial};
use super::key_log::KeyLogFile;
use super::keys::Identity;
use super::ocsp::{Stapled, Stapling, stapling};
use super::peer::PeerVerifier;
use super::provider::library::Ticketer;
use super::provider::{Schemes, Wall, provider, versions};
use super::session::{Binding, ServerSessions, SharedKeys, Tickets};
use super::socket::TlsSocket;
use super::verify::Verifier;
use crate::secret::Slot;
use crate::secret::material::ValidationMaterial;
use crate::transport::tls::CertificateSet;
use crate::transport::{BuildError, Certificate, Env, Factory, Link, NotReady, Side, Transport};

pub(super) struct Server {
    live: Arc<Live<ServerBuild>>,
}

impl Server {
    pub(super) fn new(model: &Arc<DownstreamTls>, prefix: &Arc<str>, env: &Env) -> Result<Self, BuildError> {
        let own_keys = match &model.session_tickets {
            SessionTickets::Own => Some(Ticketer::new().map_err(|e| BuildError(e.to_string()))?),
            SessionTickets::Keys(_) | SessionTickets::Secret(_) | SessionTickets::Disabled => None,
        };
        let build = ServerBuild { model: model.clone(), own_keys };
        let live = Live::new(build, &model.common, &model.session_tickets, (prefix, Side::Downstream), env)?;
        Ok(Self { live })
    }
}

impl Factory for Server {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        let Some(context) = self.live.context() else {
            self.live.common.factory_stats.downstream_context_secrets_not_ready.inc();
            return Err(NotReady);
        };
        let addresses = match link {
            Link::Downstream { facts, .. } => Some((facts.local.ip(), facts.remote.ip())),
            Link::Upstream { .. } => None,
        };
        Ok(Box::new(TlsSocket::server(context, addresses)))
    }

    fn secrets(&self, found: &mut Vec<Arc<Slot>>) {
        self.live.secrets(found);
    }

    fn certificates(&self, found: &mut Vec<CertificateSet>) {
        if let Some(context) = self.live.context() {
            let chain = context.identities.iter().map(|one| one.identity.shown());
            let ca = context.peer.iter().filter_map(|peer| peer.ca());
            found.push(CertificateSet { ca: ca.collect(), chain: chain.collect() });
        }
    }
}

/// How a [`ServerContext`] is built.
struct ServerBuild {
    model: Arc<DownstreamTls>,
    /// Of this context alone; they outlive a rebuild, as what they seal is bound to the rules of its time.
    own_keys: Option<Arc<dyn ProducesTickets>>,
}

impl Build for ServerBuild {
    type Context = ServerContext;

    fn build(&self, resolved: Resolved, common: &Arc<Common>) -> Result<ServerContext, String> {
        let params = &self.model.common.params;
        let provider = provider(params);
        let schemes = Schemes::new(params, &provider);
        let load = |material| Identity::load(material, &provider, &schemes);
        let identities = resolved.certificates.iter().map(load).collect::<Result<Vec<_>, _>>()?;
        if identities.is_empty() {
            return Err("Server TlsCertificates must have a certificate specified".to_owned());
        }
        self.check_staples(&identities)?;
        let peer = self.peer(resolved.validation.as_ref(), (&provider, schemes), common)?;
        common.show_expirations(&identities, peer.as_deref(), resolved.validation_name.as_ref());
        let binding = self.binding(&identities, resolved.validation.as_ref());
        let sessions = self.sessions(&resolved.tickets, binding)?;
        let names = by_name(&identities);
        let suites = provider.cipher_suites.iter().map(|suite| suite.suite()).collect();
        let identities = identities.into_iter().map(|identity| {
            let config = self.config(&identity, &provider, peer.as_ref(), &sessions)?;
            Ok(Served { configs: Configs::new(config, common.key_log.as_ref()), identity })
        });
        Ok(ServerContext {
            identities: identities.collect::<Result<_, String>>()?,
            names,
            suites,
            peer,
            require_sni: self.model.require_sni,
            full_scan: self.model.full_scan_certs_on_sni_mismatch,
            staple_policy: self.model.ocsp_staple_policy,
            common: common.clone(),
        })
    }
}

/// How the sessions of a context are kept.
struct Sessions {
    tickets: Option<Arc<dyn ProducesTickets>>,
    storage: Arc<dyn StoresServerSessions>,
}

impl ServerBuild {
    fn peer(
        &self,
        validation: Option<&ValidationMaterial>,
        (provider, schemes): (&CryptoProvider, Schemes),
        common: &Common,
    ) -> Result<Option<Arc<PeerVerifier>>, String> {
        let verifier =
            validation.map(|material| Verifier::new(material, common.stats.clone())).transpose()?;
        let algorithms = provider.signature_verification_algorithms;
        let require = self.model.require_client_certificate;
        Ok(PeerVerifier::of_clients(verifier, (algorithms, schemes), require).map(Arc::new))
    }

    fn check_staples(&self, identities: &[Identity]) -> Result<(), String> {
        for identity in identities.iter().filter(|one| one.staple.is_none()) {
            if identity.must_staple {
                return Err("OCSP response is required for must-staple certificate".to_owned());
            }
            if self.model.ocsp_staple_policy == OcspStaplePolicy::Must {
                return Err("Required OCSP response is missing from TLS context".to_owned());
            }
        }
        Ok(())
    }

    fn sessions(&self, tickets: &TicketMaterial, binding: Binding) -> Result<Sessions, String> {
        let timeout = self.model.session_timeout;
        let keys: Option<Arc<dyn ProducesTickets>> = match tickets {
            TicketMaterial::Own => self.own_keys.clone(),
            TicketMaterial::Keys(materials) => Some(Arc::new(SharedKeys::new(materials)?)),
            TicketMaterial::Disabled => None,
        };
        Ok(Sessions {
            tickets: keys.map(|keys| Arc::new(Tickets::new(keys, binding, timeout)) as _),
            storage: if self.model.disable_stateful_session_resumption {
                Arc::new(NoServerSessionStorage {})
            } else {
                Arc::new(ServerSessions::new(timeout))
            },
        })
    }

    fn config(
        &self,
        identity: &Identity,
        provider: &Arc<CryptoProvider>,
        peer: Option<&Arc<PeerVerifier>>,
        sessions: &Sessions,
    ) -> Result<ServerConfig, String> {
        let builder = ServerConfig::builder_with_details(provider.clone(), Arc::new(Wall))
            .with_protocol_versions(&versions(&self.model.common.params))
            .map_err(|e| e.to_string())?;
        let builder = match peer {
            Some(peer) => builder.with_client_cert_verifier(peer.clone()),
            None => builder.with_no_client_auth(),
        };
        let resolver = Stapled::new(identity.certified.clone(), identity.staple.as_ref());
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.ignore_client_order = !self.model.prefer_client_ciphers;
        let alpn = self.model.common.alpn_protocols.iter();
        config.alpn_protocols = alpn.map(|protocol| protocol.as_bytes().to_vec()).collect();
        config.session_storage = sessions.storage.clone();
        match &sessions.tickets {
            Some(tickets) => config.ticketer = tickets.clone(),
            // In TLS 1.3 every resumption is by a ticket: none are given, as in Envoy.
            None => config.send_tls13_tickets = 0,
        }
        Ok(config)
    }

    /// See [`super::session`].
    fn binding(&self, identities: &[Identity], validation: Option<&ValidationMaterial>) -> Binding {
        let mut digest = Digest::new(&SHA256);
        let mut add = |part: &[u8]| {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part);
        };
        for identity in identities {
            let facts = &identity.facts;
            add(facts.subject.as_bytes());
            add(facts.issuer.as_bytes());
            for name in [&facts.dns_sans, &facts.uri_sans, &facts.ip_sans].into_iter().flatten() {
                add(name.as_bytes());
            }
        }
        add(&[u8::from(self.model.require_client_certificate)]);
        if let Some(validation) = validation {
            // What the text of a context leaves out are the bytes of what is inline; they are added below.
            add(format!("{:?}", validation.model).as_bytes());
            let bundles = validation.bundles.iter().map(|(_, material)| material);
            for material in validation.trusted_ca.iter().chain(&validation.crl).chain(bundles) {
                add(&material.bytes);
            }
        }
        let mut binding = Binding::default();
        binding.copy_from_slice(digest.finish().as_ref());
        binding
    }
}

/// What handshakes of a filter chain run on, until it is rebuilt.
pub(super) struct ServerContext {
    identities: Vec<Served>,
    /// By the names of certificates; a wildcard is known by what follows its star.
    names: HashMap<String, Vec<usize>>,
    suites: Vec<CipherSuite>,
    pub(super) peer: Option<Arc<PeerVerifier>>,
    require_sni: bool,
    full_scan: bool,
    staple_policy: OcspStaplePolicy,
    pub(super) common: Arc<Common>,
}

struct Served {
    identity: Identity,
    configs: Configs,
}

/// The settings of a certificate.
struct Configs {
    /// With ALPN, and without it for clients that have none of ours.
    silent: [Arc<ServerConfig>; 2],
    /// The same, with their keys logged.
    logged: Option<[Arc<ServerConfig>; 2]>,
}

impl Configs {
    fn new(config: ServerConfig, key_log: Option<&Arc<KeyLogFile>>) -> Self {
        let pair = |config: ServerConfig| {
            let mut without = config.clone();
            without.alpn_protocols.clear();
            [Arc::new(config), Arc::new(without)]
        };
        let logged = key_log.map(|log| {
            let mut config = config.clone();
            config.key_log = log.clone();
            pair(config)
        });
        Self { silent: pair(config), logged }
    }

    fn of(&self, alpn: bool, logged: bool) -> &Arc<ServerConfig> {
        let [with, without] = self.logged.as_ref().filter(|_| logged).unwrap_or(&self.silent);
        if alpn { with } else { without }
    }
}

/// What a client gets.
pub(super) struct Choice {
    pub(super) config: Arc<ServerConfig>,
    /// Our certificate.
    pub(super) facts: Arc<Certificate>,
}

impl ServerContext {
    /// `status` says whether the client takes an OCSP response. The error is the reason for the log.
    pub(super) fn choose(
        &self,
        hello: &ClientHello<'_>,
        status: bool,
        addresses: Option<(IpAddr, IpAddr)>,
    ) -> Result<Choice, String> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        if self.require_sni && name.is_none() {
            return Err(error::rejected());
        }
        let served = self.certificate(name.as_deref(), hello, status).ok_or_else(error::rejected)?;
        if !self.count_staple(self.stapling(served, status)) {
            return Err(error::rejected());
        }
        let ours = &self.common.alpn;
        let alpn = hello
            .alpn()
            .is_some_and(|mut offered| offered.any(|one| ours.iter().any(|our| our.as_bytes() == one)));
        let logged = self.common.logs_keys_of(addresses);
        Ok(Choice { config: served.configs.of(alpn, logged).clone(), facts: served.identity.facts.clone() })
    }

    fn stapling(&self, served: &Served, status: bool) -> Stapling {
        let identity = &served.identity;
        stapling(identity.staple.as_ref(), self.staple_policy, identity.must_staple, status)
    }

    /// Whether the client may go on.
    fn count_staple(&self, stapling: Stapling) -> bool {
        let stats = &self.common.stats;
        if stapling != Stapling::NotAsked {
            stats.ocsp_staple_requests.inc();
        }
        match stapling {
            Stapling::NotAsked => {}
            Stapling::Respond => stats.ocsp_staple_responses.inc(),
            Stapling::Omit => stats.ocsp_staple_omitted.inc(),
            Stapling::Fail => stats.ocsp_staple_failed.inc(),
        }
        stapling != Stapling::Fail
    }

    /// By the client's name for us, exactly or by a wildcard, then by what it can verify; else the first.
    fn certificate(&self, name: Option<&str>, hello: &ClientHello<'_>, status: bool) -> Option<&Served> {
        let fits = |served: &&Served| {
            suits(&served.identity, &self.suites, hello) && self.stapling(served, status) != Stapling::Fail
        };
        if let Some(name) = name {
            let wildcard = name.find('.').and_then(|dot| name.get(dot..)).unwrap_or_default();
            for known in [name, wildcard] {
                let named = self.names.get(known).into_iter().flatten();
                let found = best(named.filter_map(|at| self.identities.get(*at)).filter(fits));
                if found.is_some() {
                    return found;
                }
            }
        }
        let scanned = (name.is_none() || self.full_scan).then(|| best(self.identities.iter().filter(fits)));
        scanned.flatten().or_else(|| self.identities.first())
    }
}

/// ECDSA goes before RSA, else the first.
fn best<'a>(among: impl Iterator<Item = &'a Served>) -> Option<&'a Served> {
    let mut found: Option<&Served> = None;
    for served in among {
        if served.identity.is_ecdsa {
            return Some(served);
        }
        found = found.or(Some(served));
    }
    found
}

/// Whether the client can verify what this key signs, with a suite of `ours`.
fn suits(identity: &Identity, ours: &[CipherSuite], hello: &ClientHello<'_>) -> bool {
    let key = &identity.certified.key;
    let Some(signer) = key.choose_scheme(hello.signature_schemes()) else { return false };
    let common = |of: &[CipherSuite]| {
        hello.cipher_suites().iter().any(|suite| ours.contains(suite) && of.contains(suite))
    };
    // Suites of TLS 1.3 go with every key. Those of 1.2 name one, and there a client's curves are also those that it
    // takes keys on.
    if common(&TLS13) {
        return true;
    }
    let takes_curve = match (hello.named_groups(), curve_of(signer.scheme())) {
        (Some(groups), Some(curve)) => groups.contains(&curve),
        (None, _) | (_, None) => true,
    };
    if key.algorithm() == SignatureAlgorithm::RSA { common(&RSA) } else { takes_curve && common(&ECDSA) }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the others name no curve")]
fn curve_of(scheme: SignatureScheme) -> Option<NamedGroup> {
    match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => Some(NamedGroup::secp256r1),
        SignatureScheme::ECDSA_NISTP384_SHA384 => Some(NamedGroup::secp384r1),
        _ => None,
    }
}

const TLS13: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];
const ECDSA: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];
const RSA: [CipherSuite; 3] = [
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

fn by_name(identities: &[Identity]) -> HashMap<String, Vec<usize>> {
    let mut names: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, identity) in identities.iter().enumerate() {
        for name in &identity.names {
            let known = name.strip_prefix('*').unwrap_or(name);
            names.entry(known.to_owned()).or_default().push(at);
        }
    }
    names
}
