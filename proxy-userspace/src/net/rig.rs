//! A proxy on loopback for tests: real listener, real sockets, and a made-up original destination.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use super::*;
use crate::clock;
use crate::cluster::Env;
use crate::drain::Drain;
use crate::network::local_ratelimit::Buckets;
use crate::telemetry::Entry;
use crate::telemetry::access_log::Sinks;

/// Longer than anything takes on a loaded machine.
pub(crate) const LONG: Duration = Duration::from_secs(30);

struct Fixed(Option<SocketAddr>);

impl OriginalDst for Fixed {
    fn lookup(&self, _: &TcpStream, _: SocketAddr) -> io::Result<Option<SocketAddr>> {
        Ok(self.0)
    }
}

pub(crate) struct Setup {
    pub(crate) direction: Direction,
    pub(crate) traffic: Traffic,
    pub(crate) admin: Vec<SocketAddr>,
    pub(crate) options: Options,
    pub(crate) bind: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            direction: Direction::Outbound,
            traffic: Traffic::default(),
            admin: Vec::new(),
            options: Options::default(),
            bind: "127.0.0.1:0",
        }
    }
}

/// One listener that takes every connection to one destination.
pub(crate) struct Rig {
    pub(crate) addr: SocketAddr,
    pub(crate) ctx: Arc<ListenerContext>,
    pub(crate) drain: Drain,
}

impl Rig {
    /// `destination` is told the listener's own address, for those who want to go there.
    pub(crate) async fn start(
        setup: Setup,
        destination: impl FnOnce(SocketAddr) -> Option<SocketAddr>,
    ) -> Self {
        let rig = Self::context(setup, destination).await;
        let spread = accept::Spread::Here(0);
        let run = accept::run(Arc::new(rig.0), rig.1.clone(), rig.2.watch(), spread);
        rig.1.place.shared.tasks.spawn("listener", run);
        Self { addr: rig.1.local, ctx: rig.1, drain: rig.2 }
    }

    pub(crate) async fn context(
        setup: Setup,
        destination: impl FnOnce(SocketAddr) -> Option<SocketAddr>,
    ) -> (TcpListener, Arc<ListenerContext>, Drain) {
        let listener = TcpListener::bind(setup.bind).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stats = Arc::new(Stats::new());
        let log = AccessLog::start(None, 1_000, &stats).unwrap();
        let env =
            Env::new(stats.clone(), Tasks::new(&stats), Arc::new(HostDial), Arc::new(crate::xds::Nowhere));
        let (sinks, buckets) = (Sinks::new(Duration::from_secs(1), &stats), Buckets::default());
        let http = crate::http::Common::default();
        let parts = Parts { cluster: &env, sinks: &sinks, buckets: &buckets, http: &http };
        let shared = Arc::new(Shared::new(log, setup.options, true, &parts).unwrap());
        let ports = (addr.port(), addr.port());
        let view = Place::workload(
            "w",
            Dialers::both(Arc::new(HostDial)),
            ports,
            setup.admin,
            (Config::Daemon(None), setup.traffic),
            shared,
        );
        let fixed = Arc::new(Fixed(destination(addr)));
        let ctx = ListenerContext::with_original_dst(Arc::new(view), setup.direction, addr, fixed);
        (listener, Arc::new(ctx), Drain::new())
    }

    /// A proxy, a client's connection through it, and the server's end of it.
    pub(crate) async fn through(setup: Setup) -> (Self, TcpStream, TcpStream) {
        let server = TcpListener::bind(setup.bind).await.unwrap();
        let addr = server.local_addr().unwrap();
        let rig = Self::start(setup, |_| Some(addr)).await;
        let client = TcpStream::connect(rig.addr).await.unwrap();
        let (upstream, _) = timeout(LONG, server.accept()).await.unwrap().unwrap();
        (rig, client, upstream)
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        self.ctx.place.shared.stats.value(name).unwrap_or_else(|| panic!("no stat {name}"))
    }

    /// The record of the only connection, once it has ended.
    pub(crate) async fn record(&self) -> Arc<Entry> {
        self.records(1).await.remove(0)
    }

    pub(crate) async fn records(&self, n: usize) -> Vec<Arc<Entry>> {
        let start = clock::now();
        loop {
            let records = self.ctx.place.shared.access_log.snapshot();
            // The gauge comes last: then all of the connection's accounts are closed.
            if records.len() >= n && self.drain.live() == 1 {
                return records;
            }
            assert!(start.elapsed() < LONG, "{} of {n} connections ended", records.len());
            sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(crate) async fn read_all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    timeout(LONG, stream.read_to_end(&mut data)).await.map_err(io::Error::other)??;
    Ok(data)
}

/// Writes until the other side has not taken anything for a while; says how much it was.
pub(crate) async fn flood(stream: &TcpStream) -> u64 {
    let data = vec![7; 256 * 1024];
    let mut sent = 0;
    while timeout(Duration::from_millis(300), stream.writable()).await.is_ok() {
        match stream.try_write(&data) {
            Ok(n) => sent += n as u64,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
    sent
}
