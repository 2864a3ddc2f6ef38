//! The bytes of one TLS connection.
//!
//! rustls does no I/O: it is fed from the socket and drained into it here.
//!
//! - **Back-pressure**: what was written and encrypted waits here until the socket has taken it; nothing more is
//!   accepted meanwhile. rustls holds at most 64 KiB of it.
//! - **Memory**: the socket is read into one buffer per thread. Only what an application did not have room for is
//!   kept with the connection, and freed once it is gone.
//! - **Ends**: `close_notify` is the end of the peer's bytes. A FIN without it is, too, as in Envoy: whoever needs to
//!   tell a truncation must do so above TLS. A reset is an error.
//! - **Half-close**: shutting down sends `close_notify` and leaves the socket open, as Envoy does. OpenSSL, curl and
//!   Envoy take the alert for the end; a FIN behind it would tell them nothing more, and would end NAT entries and
//!   stateful firewalls' patience with a peer that still has much to send. The FIN comes when both have ended.
//! - **Session tickets** of TLS 1.3 go with the first bytes that are written, as BoringSSL has it: a packet less for
//!   each connection, and a client that has ended already is not written to.
//! - **Before the handshake is done** no byte of the application's is taken or given. There is no early data.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{AcceptedAlert, Acceptor};
use rustls::{ClientConnection, Connection, Error, ProtocolVersion};

use super::buffers::{First, Held, Incoming, Outgoing, poll_drain, poll_push};
use super::client::ClientContext;
use super::error;
use super::handshake::Party;
use super::server::ServerContext;
use crate::net::socket::{Socket, is_again};
use crate::transport::{CloseEvent, Failure, Names, TlsInfo, Transport};

/// The most that one read takes from the socket.
const CHUNK: usize = 64 * 1024;
/// Room for the header and the tag of each of a read's records.
const OVERHEAD: usize = 512;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

pub(super) struct TlsSocket {
    stage: Stage,
    party: Party,
    first: First,
    /// Ciphertext that was read and not processed so far.
    held: Held,
    /// The peer has said that no byte follows.
    ended: bool,
    /// We have.
    closing: bool,
    /// Nothing but session tickets waits to be sent.
    only_tickets: bool,
    /// What broke the connection after the handshake.
    broken: Option<String>,
    info: Option<Arc<TlsInfo>>,
}

enum Stage {
    /// The ClientHello is awaited.
    Hello(Box<Acceptor>),
    Shaking(Box<Connection>),
    Open(Box<Connection>),
    /// The failure is known; the peer has yet to be told.
    Telling(Telling, String),
    Failed(Failed),
}

/// What tells the peer why.
enum Telling {
    Alert(AcceptedAlert),
    Queued(Box<Connection>),
    Bytes(&'static [u8]),
}

/// Kept, as a failure may be asked for again.
#[derive(Clone)]
struct Failed {
    reason: String,
    remote: bool,
}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        Self { reason: failed.reason.into(), remote: failed.remote }
    }
}

impl Failed {
    fn gone() -> Self {
        Self { reason: String::new(), remote: true }
    }
}

/// Why a handshake did not go on.
enum Stop {
    Tls(Error),
    Socket(io::Error),
    /// FIN.
    Gone,
}

impl TlsSocket {
    pub(super) fn server(context: Arc<ServerContext>, addresses: Option<(IpAddr, IpAddr)>) -> Self {
        let party = Party::server(context, addresses);
        let mut socket = Self::new(Stage::Hello(Box::default()), party);
        socket.first.whole = true;
        socket
    }

    pub(super) fn client(
        context: Arc<ClientContext>,
        hostname: &Arc<str>,
        addresses: Option<(IpAddr, IpAddr)>,
        alpn: &[&str],
        names: Option<&Names>,
    ) -> Self {
        let san = names.and_then(|names| names.san.clone());
        let opened = context.open(hostname, addresses, alpn, names).and_then(|opening| {
            let connection = ClientConnection::new(opening.config, opening.name);
            Ok((connection.map_err(|e| error::reason(&e, b""))?, opening.sni))
        });
        match opened {
            Ok((connection, sni)) => {
                let stage = Stage::Shaking(Box::new(Connection::Client(connection)));
                Self::new(stage, Party::client(context, sni, san))
            }
            Err(reason) => {
                let stage = Stage::Failed(Failed { reason, remote: false });
                Self::new(stage, Party::client(context, None, None))
            }
        }
    }

    fn new(stage: Stage, party: Party) -> Self {
        Self {
            stage,
            party,
            first: First::default(),
            held: Held::default(),
            ended: false,
            closing: false,
            only_tickets: false,
            broken: None,
            info: None,
        }
    }

    fn poll_hello(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<()> {
        let Stage::Hello(acceptor) = &mut self.stage else { return Poll::Ready(()) };
        let read = ready!(poll_feed(cx, socket, &mut self.first, |from| acceptor.read_tls(from)));
        if let Err(stop) = read {
            self.stop(stop);
            return Poll::Ready(());
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => match self.party.choose(&accepted.client_hello(), &self.first.bytes) {
                Ok(config) => match accepted.into_connection(config) {
                    Ok(connection) => {
                        self.first.understood();
                        self.stage = Stage::Shaking(Box::new(Connection::Server(connection)));
                    }
                    Err((e, alert)) => self.refuse_hello(&e, alert),
                },
                Err(reason) => {
                    self.party.count_error();
                    self.stage = Stage::Telling(Telling::Bytes(error::REJECTED), reason);
                }
            },
            Err((e, alert)) => self.refuse_hello(&e, alert),
        }
        Poll::Ready(())
    }

    /// Other protocols and versions are told so, as BoringSSL does; rustls finds other faults with them first.
    fn refuse_hello(&mut self, why: &Error, alert: AcceptedAlert) {
        let telling = if error::speaks_tls(&self.first.bytes) {
            Telling::Alert(alert)
        } else {
            Telling::Bytes(error::PROTOCOL_VERSION)
        };
        self.refuse(why, telling);
    }

    fn poll_shake(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<()> {
        let Stage::Shaking(connection) = &mut self.stage else { return Poll::Ready(()) };
        let shaken = ready!(poll_shake(connection, cx, socket, (&mut self.first, &mut self.party)));
        let Stage::Shaking(mut connection) =
            std::mem::replace(&mut self.stage, Stage::Failed(Failed::gone()))
        else {
            return Poll::Ready(());
        };
        match shaken.map_err(Some).and_then(|()| self.party.finish(&connection).map_err(|_| None)) {
            Ok(info) => {
                self.info = Some(info);
                connection.set_buffer_limit(Some(CHUNK));
                self.only_tickets = gives_tickets(&connection);
                // Its end may have come with its last word of the handshake.
                self.ended = connection.process_new_packets().is_ok_and(|state| state.peer_has_closed());
                self.stage = Stage::Open(connection);
            }
            Err(Some(Stop::Tls(e))) => self.refuse(&e, Telling::Queued(connection)),
            Err(Some(stop)) => self.stop(stop),
            // A resumed peer that is not good any longer.
            Err(None) => {
                let reason = self.party.refused(None);
                self.stage = Stage::Telling(Telling::Queued(connection), reason);
            }
        }
        Poll::Ready(())
    }

    fn poll_tell(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<()> {
        let Stage::Telling(telling, reason) = &mut self.stage else { return Poll::Ready(()) };
        // Whoever cannot be told is gone, and the reason stays what it was.
        let _ = ready!(match telling {
            Telling::Alert(alert) => poll_drain(cx, socket, |to| alert.write(to)),
            Telling::Queued(connection) => poll_push(connection, cx, socket),
            Telling::Bytes(bytes) => socket.poll_send(cx, bytes).map_ok(drop),
        });
        let reason = std::mem::take(reason);
        // A socket that is closed while bytes wait to be read sends RST, which may overtake the alert.
        let _ = socket.shutdown_write();
        SCRATCH.with_borrow_mut(|scratch| {
            let _ = socket.recv(scratch);
        });
        self.stage = Stage::Failed(Failed { reason, remote: false });
        Poll::Ready(())
    }

    /// rustls has refused; the alert that says why is queued.
    fn refuse(&mut self, why: &Error, telling: Telling) {
        let reason = self.party.failed(why, &self.first.bytes);
        self.stage = Stage::Telling(telling, reason);
    }

    fn stop(&mut self, stop: Stop) {
        let failed = match stop {
            Stop::Gone => Failed::gone(),
            Stop::Socket(e) => Failed { reason: error::system(&e), remote: true },
            Stop::Tls(e) => Failed { reason: self.party.failed(&e, &self.first.bytes), remote: false },
        };
        self.stage = Stage::Failed(failed);
    }
}

impl Transport for TlsSocket {
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>> {
        loop {
            match &self.stage {
                Stage::Hello(_) => ready!(self.poll_hello(cx, socket)),
                Stage::Shaking(_) => ready!(self.poll_shake(cx, socket)),
                Stage::Telling(..) => ready!(self.poll_tell(cx, socket)),
                Stage::Open(_) => return Poll::Ready(Ok(())),
                Stage::Failed(failed) => return Poll::Ready(Err(failed.clone().into())),
            }
        }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let only_tickets = self.only_tickets;
        let connection = self.open()?;
        if connection.wants_write() && !only_tickets {
            // Key updates wait for the socket. Should it have failed, reading says so better.
            let _ = poll_push(connection, cx, socket);
        }
        let mut n = self.take(buf, socket)?;
        while n == 0 && !self.ended && !buf.is_empty() {
            n = ready!(self.poll_fill(cx, socket, buf))?;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if data.is_empty() {
            return self.poll_flush(cx, socket).map_ok(|()| 0);
        }
        let only_tickets = std::mem::take(&mut self.only_tickets);
        let connection = self.open()?;
        if !only_tickets {
            ready!(poll_push(connection, cx, socket))?;
        }
        let taken = connection.writer().write(data)?;
        if taken == 0 {
            // The keys of a TLS 1.2 connection have been used as often as they may be.
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if let Poll::Ready(Err(e)) = poll_push(connection, cx, socket) {
            return Poll::Ready(Err(e));
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.only_tickets = false;
        poll_push(self.open()?, cx, socket)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        self.only_tickets = false;
        let closing = std::mem::replace(&mut self.closing, true);
        let connection = self.open()?;
        if !closing {
            connection.send_close_notify();
        }
        poll_push(connection, cx, socket)
    }

    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.info.as_ref()
    }

    /// Says `close_notify` where it can be said at once, but not on a connection that is about to be reset: its peer
    /// would take what it has for all there is.
    fn closed(&mut self, socket: Socket<'_>, by: CloseEvent) {
        let resets =
            || matches!(socket2::SockRef::from(&socket).linger(), Ok(Some(linger)) if linger.is_zero());
        if self.closing || by == CloseEvent::Remote || self.broken.is_some() || resets() {
            return;
        }
        if let Stage::Open(connection) = &mut self.stage {
            connection.send_close_notify();
            while connection.wants_write() && connection.write_tls(&mut Outgoing(socket)).is_ok_and(|n| n > 0)
            {
            }
        }
    }
}

impl TlsSocket {
    /// After the handshake only.
    fn open(&mut self) -> io::Result<&mut Connection> {
        if let Some(broken) = &self.broken {
            return Err(broken_by(broken.clone()));
        }
        match &mut self.stage {
            Stage::Open(connection) => Ok(connection),
            Stage::Hello(_) | Stage::Shaking(_) | Stage::Telling(..) | Stage::Failed(_) => {
                Err(io::ErrorKind::NotConnected.into())
            }
        }
    }

    /// One read from the socket: into `buf` what there is room for, the rest is held.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            // No more than there is room for, so that little has to be held.
            let most = (buf.len() + OVERHEAD).min(CHUNK);
            let scratch = scratch.get_mut(..most).unwrap_or_default();
            let n = ready!(socket.poll_recv(cx, scratch))?;
            self.ended |= n == 0;
            let mut ciphertext = scratch.get(..n).unwrap_or_default();
            let filled = self.decrypt(&mut ciphertext, buf, socket)?;
            self.held = Held::new(ciphertext);
            Poll::Ready(Ok(filled))
        })
    }

    /// What is at hand.
    fn take(&mut self, buf: &mut [u8], socket: Socket<'_>) -> io::Result<usize> {
        let held = std::mem::take(&mut self.held);
        let mut ciphertext = held.rest();
        let filled = self.decrypt(&mut ciphertext, buf, socket)?;
        let left = ciphertext.len();
        self.held = held.with(left);
        Ok(filled)
    }

    /// Decrypts until `buf` is full or nothing is left.
    fn decrypt(&mut self, ciphertext: &mut &[u8], buf: &mut [u8], socket: Socket<'_>) -> io::Result<usize> {
        let connection = self.open()?;
        let mut filled = 0;
        loop {
            filled += plaintext(connection, buf.get_mut(filled..).unwrap_or_default())?;
            if filled == buf.len() || ciphertext.is_empty() {
                return Ok(filled);
            }
            if connection.read_tls(ciphertext)? == 0 {
                // It has said close_notify: what follows is ignored.
                *ciphertext = &[];
            }
            match connection.process_new_packets() {
                Ok(state) if state.peer_has_closed() => {
                    filled += plaintext(connection, buf.get_mut(filled..).unwrap_or_default())?;
                    self.ended = true;
                    return Ok(filled);
                }
                Ok(_) => {}
                Err(e) => {
                    // The peer is told, as far as that is possible at once.
                    let _ = connection.write_tls(&mut Outgoing(socket));
                    let broken = self.party.failed(&e, b"");
                    self.broken = Some(broken.clone());
                    *ciphertext = &[];
                    return if filled > 0 { Ok(filled) } else { Err(broken_by(broken)) };
                }
            }
        }
    }
}

fn broken_by(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// What rustls has decrypted.
fn plaintext(connection: &mut Connection, buf: &mut [u8]) -> io::Result<usize> {
    match connection.reader().read(buf) {
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::UnexpectedEof) => Ok(0),
        result => result,
    }
}

/// Shakes hands until it is done.
fn poll_shake(
    connection: &mut Connection,
    cx: &mut Context<'_>,
    socket: Socket<'_>,
    (first, party): (&mut First, &mut Party),
) -> Poll<Result<(), Stop>> {
    loop {
        if !gives_tickets(connection)
            && let Err(e) = ready!(poll_push(connection, cx, socket))
        {
            return Poll::Ready(Err(last_words(connection, socket).unwrap_or(Stop::Socket(e))));
        }
        if !connection.is_handshaking() {
            return Poll::Ready(Ok(()));
        }
        // What came behind a ClientHello has been read with it.
        let processed = connection.process_new_packets();
        party.saw();
        processed.map_err(Stop::Tls)?;
        if connection.wants_write() || !connection.is_handshaking() {
            continue;
        }
        ready!(poll_feed(cx, socket, first, |from| connection.read_tls(from)))?;
        let processed = connection.process_new_packets();
        party.saw();
        processed.map_err(Stop::Tls)?;
    }
}

/// Whether nothing of the handshake is left to be sent but a server's tickets.
fn gives_tickets(connection: &Connection) -> bool {
    let server = matches!(connection, Connection::Server(_));
    server && !connection.is_handshaking() && connection.protocol_version() == Some(ProtocolVersion::TLSv1_3)
}

/// A peer that refuses us sends an alert and closes: the alert waits behind the write that failed.
fn last_words(connection: &mut Connection, socket: Socket<'_>) -> Option<Stop> {
    while connection.read_tls(&mut Incoming { socket, first: None }).is_ok_and(|n| n > 0) {
        if let Err(e) = connection.process_new_packets() {
            return Some(Stop::Tls(e));
        }
    }
    None
}

/// One read from the socket into rustls.
fn poll_feed(
    cx: &mut Context<'_>,
    socket: Socket<'_>,
    first: &mut First,
    mut feed: impl FnMut(&mut dyn io::Read) -> io::Result<usize>,
) -> Poll<Result<(), Stop>> {
    loop {
        ready!(socket.poll_read_ready(cx)).map_err(Stop::Socket)?;
        match feed(&mut Incoming { socket, first: Some(first) }) {
            Ok(0) => return Poll::Ready(Err(Stop::Gone)),
            Ok(_) => return Poll::Ready(Ok(())),
            Err(e) if is_again(&e) => {}
            Err(e) => return Poll::Ready(Err(Stop::Socket(e))),
        }
    }
}
