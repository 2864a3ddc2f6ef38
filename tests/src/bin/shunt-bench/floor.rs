//! The least that a server of TLS does on this machine: rustls and an epoll loop for each core, and no proxy.
//!
//! Each thread has a listening socket and its connections to itself. A connection costs accept, epoll_ctl, a read for
//! each of the client's flights, two writes (the session tickets go with the first answer) and close.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use rustls::{ServerConfig, ServerConnection};
use socket2::{Domain, Socket, Type};

/// What a thread is woken for at once.
const EVENTS: usize = 64;
/// An event of the listening socket.
const LISTENER: u64 = u64::MAX;

/// Echoes what clients say until they end, by as many threads as asked for; the first takes the caller's.
pub(crate) fn serve(
    config: &Arc<ServerConfig>,
    threads: usize,
    announce: impl FnOnce(SocketAddr),
) -> Result<()> {
    let first = listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = first.local_addr()?;
    for _ in 1..threads {
        let (listener, config) = (listen(address)?, Arc::clone(config));
        thread::spawn(move || run(&listener, &config));
    }
    announce(address);
    run(&first, config)
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    // Accepted sockets inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.listen(1024)?;
    Ok(socket.into())
}

fn run(listener: &TcpListener, config: &Arc<ServerConfig>) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..count] {
            if event.data() == LISTENER {
                accept(listener, config, &epoll, &mut connections)?;
                continue;
            }
            let place = usize::try_from(event.data())?;
            let connection = connections[place].as_mut().context("an event of nothing")?;
            // A client that breaks off is no reason to end.
            if connection.turn().unwrap_or(true) {
                connections[place] = None;
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
    epoll: &Epoll,
    connections: &mut Vec<Option<Connection>>,
) -> Result<()> {
    let socket = match listener.accept() {
        Ok((socket, _)) => socket,
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let place = connections.iter().position(Option::is_none).unwrap_or(connections.len());
    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, place as u64))?;
    let connection = Some(Connection { socket, tls: ServerConnection::new(Arc::clone(config))? });
    match connections.get_mut(place) {
        Some(free) => *free = connection,
        None => connections.push(connection),
    }
    Ok(())
}

/// Its socket is read when it is readable, so that neither it nor its writes of a few bytes ever wait.
struct Connection {
    socket: TcpStream,
    tls: ServerConnection,
}

impl Connection {
    /// One read, and what follows from it; true at the end.
    fn turn(&mut self) -> io::Result<bool> {
        let shaking = self.tls.is_handshaking();
        if self.tls.read_tls(&mut self.socket)? == 0 {
            return Ok(true);
        }
        let state = self.tls.process_new_packets().map_err(io::Error::other)?;
        if state.plaintext_bytes_to_read() > 0 {
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain)?;
            self.tls.writer().write_all(&plain)?;
        } else if shaking && !self.tls.is_handshaking() {
            // Its tickets wait for the answer.
            return Ok(false);
        }
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(state.peer_has_closed())
    }
}
