//! `starttls`: raw until a filter asks for TLS, and TLS from then on.
//!
//! Nothing turns by itself: without a filter that asks, the connection stays plaintext, which is what was configured.
//! No byte is kept here, so none that came in plaintext can show up as one of the TLS session's: what is left in the
//! socket at the switch is read as a TLS record.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{CloseEvent, Factory, Failure, Link, NotReady, Raw, TlsInfo, Transport};
use crate::net::socket::Socket;

/// Makes both halves of each connection at once: a secret that is missing stops the connection before it starts.
pub struct StartTls {
    tls: Arc<dyn Factory>,
}

impl StartTls {
    pub fn new(tls: Arc<dyn Factory>) -> Self {
        Self { tls }
    }
}

impl Factory for StartTls {
    fn create(&self, link: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
        Ok(Box::new(Switch::new(self.tls.create(link)?)))
    }

    fn secrets(&self, found: &mut Vec<Arc<crate::secret::Slot>>) {
        self.tls.secrets(found);
    }

    fn certificates(&self, found: &mut Vec<super::tls::CertificateSet>) {
        self.tls.certificates(found);
    }
}

/// One connection.
pub(crate) struct Switch {
    tls: Box<dyn Transport>,
    secure: bool,
}

impl Switch {
    pub(crate) fn new(tls: Box<dyn Transport>) -> Self {
        Self { tls, secure: false }
    }
}

impl Transport for Switch {
    fn poll_ready(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<Result<(), Failure>> {
        if self.secure { self.tls.poll_ready(cx, socket) } else { Raw.poll_ready(cx, socket) }
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.secure { self.tls.poll_read(cx, socket, buf) } else { Raw.poll_read(cx, socket, buf) }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: Socket<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.secure { self.tls.poll_write(cx, socket, data) } else { Raw.poll_write(cx, socket, data) }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        if self.secure { self.tls.poll_flush(cx, socket) } else { Raw.poll_flush(cx, socket) }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>, socket: Socket<'_>) -> Poll<io::Result<()>> {
        if self.secure { self.tls.poll_shutdown(cx, socket) } else { Raw.poll_shutdown(cx, socket) }
    }

    /// Once, and never back.
    fn start_secure(&mut self) -> bool {
        !std::mem::replace(&mut self.secure, true)
    }

    fn tls(&self) -> Option<&Arc<TlsInfo>> {
        self.tls.tls().filter(|_| self.secure)
    }

    fn closed(&mut self, socket: Socket<'_>, by: CloseEvent) {
        // TLS that never began has not ended either.
        if self.secure {
            self.tls.closed(socket, by);
        }
    }
}

#[cfg(test)]
mod tests;
