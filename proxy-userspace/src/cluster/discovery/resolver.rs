//! Names to addresses. Resolvers are made when first used, and shared by the clusters that want the same.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::{Resolver, system_conf};
use proxy_config::model::cluster::{Dns, DnsFamily};
use socket2::SockAddr;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use crate::net::{Dial, Family};

/// All resolvers of one configuration.
pub(in crate::cluster) struct Resolvers {
    by_want: Mutex<HashMap<Wanted, Arc<Resolver<Sockets>>>>,
    sockets: Sockets,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Wanted {
    servers: Vec<SocketAddr>,
    use_tcp: bool,
    no_search: bool,
    family: u8,
}

/// The sockets that names are asked for by: of the workload's namespace, where the configuration is a workload's.
#[derive(Clone)]
pub(super) struct Sockets {
    dial: Arc<dyn Dial>,
    handle: TokioHandle,
}

/// How long a server may take to accept a connection, where the resolver does not say.
const CONNECT: Duration = Duration::from_secs(5);

type Made<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl RuntimeProvider for Sockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        from: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Made<Self::Tcp> {
        let socket = self.dial.socket(Family::of(server));
        Box::pin(async move {
            let socket = socket?;
            if let Some(from) = from {
                socket.bind(&SockAddr::from(from))?;
            }
            socket.set_tcp_nodelay(true)?;
            let connect = TcpSocket::from_std_stream(socket.into()).connect(server);
            Ok(AsyncIoTokioAsStd(tokio::time::timeout(limit.unwrap_or(CONNECT), connect).await??))
        })
    }

    fn bind_udp(&self, local: SocketAddr, _: SocketAddr) -> Made<UdpSocket> {
        let socket = self.dial.datagrams(Family::of(local));
        Box::pin(async move {
            let socket = socket?;
            socket.bind(&SockAddr::from(local))?;
            UdpSocket::from_std(socket.into())
        })
    }
}

/// What a name resolved to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) addresses: Vec<IpAddr>,
    /// The shortest of all records.
    pub(super) ttl: Option<Duration>,
}

impl Resolvers {
    /// `dial` makes the sockets that they ask by.
    pub(in crate::cluster) fn new(dial: Arc<dyn Dial>) -> Self {
        Self { by_want: Mutex::default(), sockets: Sockets { dial, handle: TokioHandle::default() } }
    }

    pub(super) fn of(&self, dns: &Dns) -> Result<Arc<Resolver<Sockets>>, NetError> {
        let wanted = Wanted {
            servers: dns.resolvers.clone(),
            use_tcp: dns.use_tcp,
            no_search: dns.no_default_search_domain,
            family: dns.family as u8,
        };
        let mut by_want = self.by_want.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_want.get(&wanted) {
            return Ok(known.clone());
        }
        let resolver = Arc::new(build(dns, self.sockets.clone())?);
        by_want.insert(wanted, resolver.clone());
        Ok(resolver)
    }
}

/// A name without addresses is an answer too, as in Envoy; only a failure to ask is none.
pub(super) async fn resolve(resolvers: &Resolvers, dns: &Dns, name: &str) -> Result<Answer, NetError> {
    let resolver = resolvers.of(dns)?;
    match resolver.lookup_ip(name).await {
        Ok(found) => {
            let ttl = found.as_lookup().answers().iter().map(|record| record.ttl).min();
            let ttl = ttl.map(|seconds| Duration::from_secs(seconds.into()));
            Ok(Answer { addresses: found.iter().collect(), ttl })
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none)))
            if matches!(none.response_code, ResponseCode::NoError | ResponseCode::NXDomain) =>
        {
            Ok(Answer::default())
        }
        Err(error) => Err(error),
    }
}

fn build(dns: &Dns, sockets: Sockets) -> Result<Resolver<Sockets>, NetError> {
    let (config, mut options) = if dns.resolvers.is_empty() {
        system_conf::read_system_conf()?
    } else {
        let servers = dns.resolvers.iter().map(|server| name_server(*server, dns.use_tcp)).collect();
        let search = system_conf::read_system_conf().map(|(system, _)| system).unwrap_or_default();
        let (domain, search, _) = search.into_parts();
        (ResolverConfig::from_parts(domain, search, servers), ResolverOpts::default())
    };
    let config = if dns.no_default_search_domain {
        let (_, _, servers) = config.into_parts();
        ResolverConfig::from_name_servers(servers)
    } else {
        config
    };
    let config = if dns.use_tcp { over_tcp(config) } else { config };
    options.ip_strategy = match dns.family {
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    };
    options.use_hosts_file = ResolveHosts::Always;
    // The refresh rate decides how old an answer may be.
    options.cache_size = 0;
    options.try_tcp_on_error = true;
    Resolver::builder_with_config(config, sockets).with_options(options).build()
}

fn name_server(server: SocketAddr, use_tcp: bool) -> NameServerConfig {
    let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
    (udp.port, tcp.port) = (server.port(), server.port());
    NameServerConfig::new(server.ip(), true, if use_tcp { vec![tcp] } else { vec![udp, tcp] })
}

fn over_tcp(config: ResolverConfig) -> ResolverConfig {
    let (domain, search, servers) = config.into_parts();
    let server = |server: NameServerConfig| {
        let port = server.connections.first().map_or(53, |connection| connection.port);
        name_server(SocketAddr::new(server.ip, port), true)
    };
    ResolverConfig::from_parts(domain, search, servers.into_iter().map(server).collect())
}
