//! `google_grpc`: a server by its address. It is a cluster of its own, so that it is resolved, connected to and
//! verified as every other one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use proxy_config::model::address::{Address, HostPort};
use proxy_config::model::cluster::{Discovery, Dns, DnsFamily};
use proxy_config::model::endpoint::{
    Endpoint, EndpointHealthCheck, HealthStatus, LoadAssignment, LocalityEndpoints,
};
use proxy_config::model::grpc::{GoogleChannel, GoogleGrpc};
use proxy_config::model::matcher::StringPattern;
use proxy_config::model::tls::{
    CertificateKey, CommonTls, SanKind, SanMatcher, TlsCertificate, TrustedCa, UpstreamTls,
    ValidationContext, ValidationSource,
};
use proxy_config::model::{self, StringMatcher, TransportSocket};

/// The cluster of a target, and its `:authority`.
pub(super) fn cluster(google: &GoogleGrpc) -> Result<(model::Cluster, String), String> {
    let target = Target::parse(&google.target_uri)?;
    let discovery = match &target.address {
        Address::Host(_) => Discovery::StrictDns(Box::new(dns())),
        Address::Ip(_) | Address::Pipe { .. } => Discovery::Static,
    };
    let endpoint = Endpoint {
        address: target.address.clone(),
        hostname: "".into(),
        health_check: EndpointHealthCheck::default(),
        health_status: HealthStatus::Unknown,
        load_balancing_weight: 1,
        metadata: Arc::default(),
    };
    let localities = vec![LocalityEndpoints { endpoints: vec![endpoint], ..LocalityEndpoints::default() }];
    let cluster = model::Cluster {
        load_assignment: Arc::new(LoadAssignment { localities, ..LoadAssignment::default() }),
        transport_socket: socket(&google.channel, &target)?,
        ..model::Cluster::new(&google.target_uri, discovery)
    };
    Ok((cluster, target.authority))
}

struct Target {
    address: Address,
    authority: String,
}

impl Target {
    /// As gRPC names servers: `scheme:rest`, or a host and its port. Port 443 where there is none.
    fn parse(uri: &str) -> Result<Self, String> {
        let wrong = || format!("target_uri: {uri:?} names no server");
        let pipe = |path: PathBuf| Self {
            address: Address::Pipe { path, mode: 0 },
            authority: "localhost".to_owned(),
        };
        match uri.split_once(':') {
            Some(("unix", path)) => {
                let path = path.strip_prefix("//").unwrap_or(path);
                return if path.is_empty() { Err(wrong()) } else { Ok(pipe(path.into())) };
            }
            Some(("unix-abstract", name)) if !name.is_empty() => {
                return Ok(pipe(format!("@{name}").into()));
            }
            Some(("ipv4" | "ipv6", address)) => {
                // Several are the same server; the first will do.
                let first = address.split(',').next().unwrap_or_default();
                let address = socket_address(first).ok_or_else(wrong)?;
                return Ok(Self { address: Address::Ip(address), authority: address.to_string() });
            }
            Some(_) | None => {}
        }
        let name = match uri.strip_prefix("dns:") {
            // Of a DNS server that is named there is no use: the system's are asked.
            Some(rest) => match rest.strip_prefix("//") {
                Some(rest) => rest.split_once('/').map(|(_, name)| name).ok_or_else(wrong)?,
                None => rest,
            },
            None if uri.contains("://") => return Err(wrong()),
            None => uri,
        };
        if let Some(address) = socket_address(name) {
            return Ok(Self { address: Address::Ip(address), authority: name.to_owned() });
        }
        let (host, port) = match name.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
            None => (name, 443),
        };
        if host.is_empty() || host.contains([':', '/']) {
            return Err(wrong());
        }
        let address = Address::Host(HostPort { host: host.into(), port });
        Ok(Self { address, authority: name.to_owned() })
    }

    /// Who it must be.
    fn host(&self) -> Arc<str> {
        match &self.address {
            Address::Ip(address) => address.ip().to_string().into(),
            Address::Host(host) => host.host.clone(),
            Address::Pipe { .. } => "localhost".into(),
        }
    }
}

fn socket_address(text: &str) -> Option<SocketAddr> {
    let bare = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 443));
    text.parse().ok().or_else(bare)
}

fn socket(channel: &GoogleChannel, target: &Target) -> Result<TransportSocket, String> {
    let (roots, chain, key) = match channel {
        GoogleChannel::Plaintext => return Ok(TransportSocket::RawBuffer),
        GoogleChannel::Tls { root_certs, cert_chain, private_key } => (root_certs, cert_chain, private_key),
    };
    let certificates = match (chain, key) {
        (Some(chain), Some(key)) => vec![TlsCertificate {
            key: CertificateKey::Pem { chain: chain.clone(), key: key.clone() },
            watched_directory: None,
            password: None,
            ocsp_staple: None,
        }],
        (None, None) => Vec::new(),
        (Some(_), None) | (None, Some(_)) => {
            return Err("ssl_credentials: cert_chain and private_key go together".to_owned());
        }
    };
    let host = target.host();
    let is_ip = matches!(target.address, Address::Ip(_));
    let address = is_ip.then(|| SanMatcher { kind: SanKind::Ip, matcher: exact(&host) });
    let validation = ValidationContext {
        trusted_ca: Some(roots.clone().map_or(TrustedCa::System, TrustedCa::Source)),
        match_subject_alt_names: address.into_iter().collect(),
        ..ValidationContext::default()
    };
    Ok(TransportSocket::UpstreamTls(Arc::new(UpstreamTls {
        common: CommonTls {
            certificates,
            validation: ValidationSource::Context(Arc::new(validation)),
            alpn_protocols: vec!["h2".into()],
            ..CommonTls::default()
        },
        // An address is not sent as a name, as TLS has it.
        sni: if is_ip { "".into() } else { host },
        auto_host_sni: false,
        auto_sni_san_validation: !is_ip,
        max_session_keys: 1,
        enforce_rsa_key_usage: true,
    })))
}

fn exact(text: &str) -> StringMatcher {
    StringMatcher { pattern: StringPattern::Exact(text.to_owned()), ignore_case: false }
}

fn dns() -> Dns {
    Dns {
        refresh_rate: std::time::Duration::from_secs(5),
        failure_refresh_rate: None,
        jitter: std::time::Duration::ZERO,
        respect_ttl: false,
        family: DnsFamily::All,
        resolvers: Vec::new(),
        use_tcp: false,
        no_default_search_domain: false,
        all_addresses_in_single_endpoint: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let of = |uri: &str| Target::parse(uri).map(|target| (target.address, target.authority));
        let host = |name: &str, port| Address::Host(HostPort { host: name.into(), port });
        let ip = |text: &str| Address::Ip(text.parse().unwrap());
        let pipe = |path: &str| Address::Pipe { path: path.into(), mode: 0 };
        for (uri, address, authority) in [
            ("istiod.test:15012", host("istiod.test", 15012), "istiod.test:15012"),
            ("dns:///istiod.test:15012", host("istiod.test", 15012), "istiod.test:15012"),
            ("dns://8.8.8.8/istiod.test", host("istiod.test", 443), "istiod.test"),
            ("dns:istiod.test", host("istiod.test", 443), "istiod.test"),
            ("ipv4:127.0.0.1:1,127.0.0.2:1", ip("127.0.0.1:1"), "127.0.0.1:1"),
            ("ipv6:[::1]:7", ip("[::1]:7"), "[::1]:7"),
            ("127.0.0.1:9", ip("127.0.0.1:9"), "127.0.0.1:9"),
            ("unix:/run/a.sock", pipe("/run/a.sock"), "localhost"),
            ("unix:///run/a.sock", pipe("/run/a.sock"), "localhost"),
            ("unix-abstract:a", pipe("@a"), "localhost"),
        ] {
            assert_eq!(of(uri), Ok((address, authority.to_owned())), "{uri}");
        }
        for uri in ["", "unix:", "dns://a", "http://a:1", "a:b", ":1", "ipv4:a:1"] {
            assert!(of(uri).is_err(), "{uri}");
        }
    }
}
