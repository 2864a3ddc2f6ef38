//! The accept loop: it outlives every error, and ends only when its listener is drained.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use super::{ListenerContext, conn};
use crate::clock::{self, Instant};
use crate::drain::Watch;
use crate::task::Tasks;
use crate::task::workers::Place;

/// How long to wait where the process or the machine is out of what a connection needs.
const BACKOFF: Duration = Duration::from_millis(100);
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Which workers carry what a listening socket accepts; the socket is a worker's itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// This one: the kernel spreads connections over the sockets of an address, of which each worker has one.
    Here(Place),
    /// All, from the only socket of an address, which is this one's: each connection goes to the worker with the
    /// fewest.
    Evenly(Place),
}

impl Spread {
    /// Where the socket is.
    pub fn place(self) -> Place {
        match self {
            Self::Here(place) | Self::Evenly(place) => place,
        }
    }
}

/// Serves `listener` until `drain` starts, then closes it. Its connections live on under the drain. It runs where the
/// listener is. Its owner may know the socket too, to hand it over: it closes with the last who does.
pub async fn run(listener: Arc<TcpListener>, ctx: Arc<ListenerContext>, drain: Watch, spread: Spread) {
    // Accepted sockets inherit it: one system call here instead of one a connection.
    if let Err(error) = SockRef::from(listener.as_ref()).set_tcp_nodelay(true) {
        log::warn!("{}: TCP_NODELAY: {error}", ctx.describe());
    }
    accept(listener.as_ref(), &ctx, drain, spread).await;
}

/// Where connections come from; a trait so that tests can make it fail.
trait Accept: Sync {
    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Accept for TcpListener {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        Self::accept(self).await
    }
}

async fn accept(listener: &impl Accept, ctx: &Arc<ListenerContext>, drain: Watch, spread: Spread) {
    // The drain is over only when the listener is closed, too.
    let _open = drain.guard();
    let mut draining = drain.clone();
    let mut logged = None;
    loop {
        let accepted = tokio::select! {
            biased;
            () = draining.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => serve(stream, peer, ctx, (&drain, spread)),
            Err(error) => {
                if let Some(pause) = failed(&error, ctx, &mut logged) {
                    sleep(pause).await;
                }
            }
        }
    }
}

fn serve(stream: TcpStream, peer: SocketAddr, ctx: &Arc<ListenerContext>, (drain, spread): (&Watch, Spread)) {
    let guard = drain.guard();
    let tasks = &ctx.place.shared.tasks;
    let (here, seat) = match spread {
        Spread::Here(here) => (here, tasks.crew().seat(here)),
        Spread::Evenly(here) => (here, tasks.crew().emptiest(here)),
    };
    let stream = if seat.place() == here { Ok(stream) } else { moved(stream, tasks, seat.place()) };
    match stream {
        Ok(stream) => {
            let connection = conn::serve(stream, peer, ctx.clone(), guard, seat.place());
            tasks.spawn_seated(seat, "connection", connection);
        }
        Err(error) => log::error!("{}: cannot hand a connection to a worker: {error}", ctx.describe()),
    }
}

/// A socket waits for its events where it is registered.
fn moved(stream: TcpStream, tasks: &Tasks, to: Place) -> io::Result<TcpStream> {
    let stream = stream.into_std()?;
    let _there = tasks.crew().enter(to);
    TcpStream::from_std(stream)
}

/// Counts and reports a failed accept; says how long to wait before the next one.
fn failed(error: &io::Error, ctx: &ListenerContext, logged: &mut Option<Instant>) -> Option<Duration> {
    let own = &ctx.place.shared.own;
    own.accept_errors.inc();
    let transient = matches!(
        error.raw_os_error(),
        // The client was faster than us, or accept(2) passes on an error of the network it came by.
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::ETIMEDOUT
        )
    );
    if transient {
        return None;
    }
    own.accept_exhausted.inc();
    let now = clock::now();
    if logged.is_none_or(|at| now - at >= LOG_EVERY) {
        log::error!("{}: accept: {error}; trying again every {BACKOFF:?}", ctx.describe());
        *logged = Some(now);
    }
    Some(BACKOFF)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::net::rig::{Rig, Setup};

    /// Fails with each errno in turn, then accepts.
    struct Failing {
        errnos: Mutex<VecDeque<i32>>,
        listener: TcpListener,
    }

    impl Accept for Failing {
        async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
            let errno = self.errnos.lock().unwrap().pop_front();
            match errno {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => self.listener.accept().await,
            }
        }
    }

    #[tokio::test]
    async fn it_outlives_every_error_and_waits_where_descriptors_are_short() {
        let (listener, ctx, drain) = Rig::context(Setup::default(), |_| None).await;
        let errnos = [libc::ECONNABORTED, libc::EMFILE, libc::EPROTO, libc::ENFILE, libc::EINVAL];
        let failing = Failing { errnos: Mutex::new(errnos.into()), listener };
        let _client = TcpStream::connect(ctx.local).await.unwrap();
        let start = clock::now();
        let (of_task, watch) = (ctx.clone(), drain.watch());
        let tasks = ctx.place.shared.tasks.clone();
        tasks.spawn("listener", async move { accept(&failing, &of_task, watch, Spread::Here(0)).await });
        while ctx
            .place
            .shared
            .builtin
            .as_ref()
            .unwrap()
            .listener(ctx.direction, crate::net::OutboundPolicy::AllowAny)
            .stats
            .downstream_cx_total
            .value()
            == 0
        {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(start.elapsed() >= 3 * BACKOFF);
        assert_eq!(ctx.place.shared.own.accept_errors.value(), 5);
        assert_eq!(ctx.place.shared.own.accept_exhausted.value(), 3);
        assert_eq!(drain.drain(Duration::from_secs(10)).await, 0);
    }
}
