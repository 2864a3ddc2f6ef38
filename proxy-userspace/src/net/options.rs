//! What a configuration asks of a socket, listening or connecting: `socket_options` and `tcp_keepalive`.

use std::io;

use proxy_config::model::TcpKeepalive;
use proxy_config::model::address::{SocketOption, SocketOptionValue, SocketState};
use socket2::Socket;

use crate::sys::sock;

/// Sets those of the options that are for this state of the socket.
pub fn set_all(socket: &Socket, options: &[SocketOption], state: SocketState) -> io::Result<()> {
    for option in options.iter().filter(|option| option.state == state) {
        match &option.value {
            SocketOptionValue::Int(value) => {
                sock::set_option(socket, option.level, option.name, &value.to_ne_bytes())?;
            }
            SocketOptionValue::Bytes(value) => sock::set_option(socket, option.level, option.name, value)?,
        }
    }
    Ok(())
}

/// Turns keepalive on; what is not given is the system's.
pub fn set_keepalive(socket: &Socket, wanted: TcpKeepalive) -> io::Result<()> {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = wanted.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = wanted.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = wanted.probes {
        keepalive = keepalive.with_retries(probes);
    }
    socket.set_tcp_keepalive(&keepalive)
}
