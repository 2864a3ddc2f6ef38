//! `envoy.filters.network.postgres_proxy`: who encrypts a PostgreSQL session.
//!
//! A client says first whether it wants TLS (SSLRequest), then who it is (the startup packet); a server is asked in
//! the same way. Once the login is over nothing is read here any more. As in Envoy, but where that lets something
//! pass unencrypted:
//!
//! - GSSENCRequest is answered with `N` wherever a side is to use TLS. Envoy passes it on and looks no further.
//! - A first packet that is none closes the connection, likewise.
//! - A cancel request goes to the server through TLS where `upstream_ssl` asks for it.
//! - A session that is encrypted from end to end is so only if the server has agreed.

mod login;
mod packet;

use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::network_filter::{self as model, DownstreamSwitch};
use tokio::time::timeout;

use self::packet::{Packet, SSL_REQUEST};
use super::dialogue::Dialogue;
use super::{Driver, Leftover, Negotiation, Stop};
use crate::net::wire::Wire;
use crate::telemetry::stats::{Stats, stats_block};
use crate::telemetry::{Bytes, Side};

stats_block! {
    /// `postgres.<stat_prefix>.`: those of Envoy's that can be told without reading a session.
    pub struct PostgresStats {
        counter sessions;
        counter sessions_encrypted;
        counter sessions_unencrypted;
        counter sessions_terminated_ssl;
        counter sessions_upstream_ssl_success;
        counter sessions_upstream_ssl_failed;
    }
}

/// From the connection to the startup packet at the server: PostgreSQL's own `authentication_timeout`.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Postgres {
    downstream: DownstreamSwitch,
    upstream_ssl: bool,
    handshake: Duration,
    stats: Arc<PostgresStats>,
}

/// How far it has come.
enum Begun {
    /// The rest is between the two.
    Relay,
    /// The server has the startup packet.
    Login,
}

impl Postgres {
    pub fn new(model: &model::PostgresProxy, handshake: Duration, stats: &Stats) -> Self {
        Self {
            downstream: model.downstream_ssl,
            upstream_ssl: model.upstream_ssl,
            handshake,
            stats: stats.block(format!("postgres.{}", model.stat_prefix)),
        }
    }

    async fn run(&self, mut talk: Dialogue<'_>) -> Result<Leftover, Stop> {
        let begun = timeout(LIMIT, self.begin(&mut talk)).await;
        match begun.unwrap_or(Err(Stop::close("postgres_startup_timeout")))? {
            Begun::Relay => Ok(talk.leave()),
            Begun::Login => {
                let (leftover, logged_in) = login::watch(talk).await?;
                if logged_in {
                    self.stats.sessions.inc();
                    self.stats.sessions_unencrypted.inc();
                }
                Ok(leftover)
            }
        }
    }

    /// Whether it only looks on.
    fn is_passive(&self) -> bool {
        self.downstream == DownstreamSwitch::Disable && !self.upstream_ssl
    }

    async fn begin(&self, talk: &mut Dialogue<'_>) -> Result<Begun, Stop> {
        let (mut secured, mut gss_refused) = (false, false);
        loop {
            let Some((packet, len)) = self.first_packet(talk).await? else { return Ok(Begun::Relay) };
            match packet {
                Packet::SslRequest | Packet::GssEncRequest if self.is_passive() => {
                    self.encrypted_session();
                    return Ok(Begun::Relay);
                }
                Packet::SslRequest if secured => return Err(Stop::close("postgres_tls_twice")),
                Packet::SslRequest if self.downstream == DownstreamSwitch::Disable => {
                    return self.end_to_end(talk, len).await;
                }
                Packet::SslRequest => {
                    talk.down.take(len);
                    talk.down.expect_silence()?;
                    talk.down.say(b"S").await?;
                    talk.secure_downstream().await?;
                    self.stats.sessions_terminated_ssl.inc();
                    secured = true;
                }
                Packet::GssEncRequest if secured || gss_refused => {
                    return Err(Stop::close("postgres_unexpected_gssencrequest"));
                }
                Packet::GssEncRequest => {
                    talk.down.take(len);
                    talk.down.expect_silence()?;
                    talk.down.say(b"N").await?;
                    gss_refused = true;
                }
                Packet::CancelRequest => return self.cancel(talk, len).await,
                Packet::Startup if self.downstream == DownstreamSwitch::Require && !secured => {
                    let why = "connection requires TLS: use sslmode=require";
                    talk.down.say(&packet::fatal("28000", why)).await?;
                    return Err(Stop::close("postgres_downstream_ssl_required"));
                }
                Packet::Startup => return self.startup(talk, len).await,
            }
        }
    }

    /// The client's next packet, not yet taken, and its length. `None`: no such thing, which is the server's to
    /// judge.
    async fn first_packet(&self, talk: &mut Dialogue<'_>) -> Result<Option<(Packet, usize)>, Stop> {
        loop {
            match packet::parse(&talk.down.heard) {
                packet::Parsed::Done(packet, len) => return Ok(Some((packet, len))),
                packet::Parsed::NeedMore => {}
                packet::Parsed::Malformed if self.is_passive() => return Ok(None),
                packet::Parsed::Malformed => return Err(Stop::close("postgres_malformed_startup")),
            }
            match talk.listen().await? {
                Side::Downstream => {}
                // A server of PostgreSQL does not speak first.
                Side::Upstream | Side::Internal if self.is_passive() => return Ok(None),
                Side::Upstream | Side::Internal => return Err(Stop::close("postgres_server_spoke_first")),
            }
        }
    }

    /// The client's TLS is the server's: both must say so.
    async fn end_to_end(&self, talk: &mut Dialogue<'_>, len: usize) -> Result<Begun, Stop> {
        let request = talk.down.take(len);
        talk.down.expect_silence()?;
        self.ask(talk, &request).await?;
        talk.down.say(b"S").await?;
        self.encrypted_session();
        Ok(Begun::Relay)
    }

    async fn cancel(&self, talk: &mut Dialogue<'_>, len: usize) -> Result<Begun, Stop> {
        if self.is_passive() {
            return Ok(Begun::Relay);
        }
        let request = talk.down.take(len);
        if !talk.down.heard.is_empty() {
            return Err(Stop::close("postgres_data_after_cancel"));
        }
        self.secure_upstream(talk).await?;
        talk.up.say(&request).await?;
        Ok(Begun::Relay)
    }

    async fn startup(&self, talk: &mut Dialogue<'_>, len: usize) -> Result<Begun, Stop> {
        let startup = talk.down.take(len);
        self.secure_upstream(talk).await?;
        talk.up.say(&startup).await?;
        Ok(Begun::Login)
    }

    async fn secure_upstream(&self, talk: &mut Dialogue<'_>) -> Result<(), Stop> {
        if !self.upstream_ssl {
            return Ok(());
        }
        self.ask(talk, &SSL_REQUEST).await?;
        match talk.secure_upstream().await {
            Ok(()) => {
                self.stats.sessions_upstream_ssl_success.inc();
                Ok(())
            }
            Err(stop) => Err(self.upstream_failed(talk, stop).await),
        }
    }

    /// Has the server agree to TLS, and say nothing else.
    async fn ask(&self, talk: &mut Dialogue<'_>, request: &[u8]) -> Result<(), Stop> {
        talk.up.expect_silence()?;
        talk.up.say(request).await?;
        let heard = talk.up.hear().await;
        let stop = match (heard, talk.up.heard.as_slice()) {
            (Ok(()), b"S") => {
                talk.up.heard.clear();
                return Ok(());
            }
            (Ok(()), [b'S', ..]) => talk.up.insecure(super::dialogue::PLAINTEXT_BEHIND),
            (Ok(()), _) => talk.up.insecure("the server does not accept TLS"),
            (Err(stop), _) => stop,
        };
        // An answer in plaintext is anybody's: the client does not get to see it.
        talk.up.heard.clear();
        Err(self.upstream_failed(talk, stop).await)
    }

    async fn upstream_failed(&self, talk: &mut Dialogue<'_>, stop: Stop) -> Stop {
        self.stats.sessions_upstream_ssl_failed.inc();
        // It closes in any case.
        let _ = talk.down.say(&packet::fatal("08006", "no TLS connection to the server")).await;
        stop
    }

    fn encrypted_session(&self) {
        self.stats.sessions.inc();
        self.stats.sessions_encrypted.inc();
    }
}

impl Driver for Postgres {
    fn negotiate<'a>(
        &'a self,
        down: &'a mut Wire<'_>,
        up: &'a mut Wire<'_>,
        bytes: &'a mut Bytes,
    ) -> Negotiation<'a> {
        let talk = Dialogue::new(down, up, bytes, self.handshake);
        Box::pin(self.run(talk))
    }
}

#[cfg(test)]
mod tests;
