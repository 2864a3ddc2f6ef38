//! `shunt.filters.network.smtp_starttls`: STARTTLS (RFC 3207) for an SMTP client, and to an SMTP server.
//!
//! It passes the server's greeting and the answers to EHLO, with a STARTTLS of its own among the capabilities, until
//! each side speaks as it should and the client has said EHLO since; or until a mail transaction or a login begins
//! on a connection that may do so. The rest is the relay's. Commands and answers are taken one at a time and end
//! with CR LF: what a server could read as two lines is not passed on as one.

mod command;
mod reply;

use std::sync::Arc;
use std::time::Duration;

use proxy_config::model::network_filter::{self as model, DownstreamSwitch};
use tokio::time::timeout;

use self::command::{Command, Parsed};
use self::reply::Reply;
use super::dialogue::{Dialogue, Half};
use super::{Driver, Leftover, Negotiation, Stop};
use crate::net::wire::Wire;
use crate::telemetry::stats::{Stats, stats_block};
use crate::telemetry::{Bytes, Side};

stats_block! {
    /// `smtp.<stat_prefix>.`
    pub struct SmtpStats {
        counter session_requests;
        counter downstream_tls_termination_success;
        counter downstream_tls_termination_error;
        counter upstream_tls_success;
        counter upstream_tls_error;
        /// Commands that were answered with 530.
        counter tls_required;
        /// Connections that were closed: bytes behind STARTTLS or its answer.
        counter plaintext_behind_starttls;
        /// Connections that were closed: a line that is none, or a server that is out of step.
        counter protocol_error;
        counter timeout;
    }
}

/// For a command, an answer, or until one is taken: RFC 5321, 4.5.3.2.
const LIMIT: Duration = Duration::from_secs(300);
/// Before the relay; a client needs four.
const MOST_COMMANDS: usize = 100;

pub struct Smtp {
    downstream: DownstreamSwitch,
    upstream_starttls: bool,
    handshake: Duration,
    stats: Arc<SmtpStats>,
}

/// A driver at work on one connection.
struct Session<'a> {
    smtp: &'a Smtp,
    talk: Dialogue<'a>,
    /// The client speaks TLS.
    down_secure: bool,
    /// The server speaks TLS, where it should.
    up_ready: bool,
}

impl Smtp {
    pub fn new(model: &model::SmtpStarttls, handshake: Duration, stats: &Stats) -> Self {
        Self {
            downstream: model.downstream_starttls,
            upstream_starttls: model.upstream_starttls,
            handshake,
            stats: stats.block(format!("smtp.{}", model.stat_prefix)),
        }
    }

    async fn run<'a>(&'a self, talk: Dialogue<'a>) -> Result<Leftover, Stop> {
        self.stats.session_requests.inc();
        if self.downstream == DownstreamSwitch::Disable && !self.upstream_starttls {
            return Ok(Leftover::default());
        }
        let up_ready = !self.upstream_starttls;
        Session { smtp: self, talk, down_secure: false, up_ready }.run().await
    }
}

impl Driver for Smtp {
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

impl Session<'_> {
    async fn run(mut self) -> Result<Leftover, Stop> {
        let greeting = self.reply().await?;
        self.answer(greeting.text()).await?;
        if greeting.code != 220 {
            return Err(Stop::close("smtp_greeting_refused"));
        }
        for _ in 0..MOST_COMMANDS {
            let line = self.command().await?;
            if self.obey(&line).await? {
                return Ok(self.leave(&line));
            }
        }
        self.answer(b"421 4.7.0 Too many commands\r\n").await?;
        Err(Stop::close("smtp_too_many_commands"))
    }

    /// Whether the relay is next. A line that it has not dealt with is left to it.
    async fn obey(&mut self, line: &[u8]) -> Result<bool, Stop> {
        let required = self.smtp.downstream == DownstreamSwitch::Require && !self.down_secure;
        match Command::of(line) {
            Command::Ehlo | Command::Helo => return self.hello(line).await,
            Command::Noop | Command::Rset => self.answer(b"250 2.0.0 OK\r\n").await?,
            Command::Quit => return Err(self.quit().await?),
            Command::StartTls => self.start_tls(line).await?,
            Command::Query | Command::Other if required => {
                self.smtp.stats.tls_required.inc();
                self.answer(b"530 5.7.0 Must issue a STARTTLS command first\r\n").await?;
            }
            Command::Query | Command::Other if !self.up_ready => {
                self.answer(b"503 5.5.1 EHLO first\r\n").await?;
            }
            Command::Query => {
                let reply = self.exchange(line).await?;
                self.answer(reply.text()).await?;
            }
            Command::Other => return Ok(true),
        }
        Ok(false)
    }

    fn leave(&mut self, line: &[u8]) -> Leftover {
        let mut left = self.talk.leave();
        if matches!(Command::of(line), Command::Other) {
            left.to_upstream.splice(..0, line.iter().copied());
        }
        left
    }

    /// Has the server turn to TLS first, where it should.
    async fn hello(&mut self, line: &[u8]) -> Result<bool, Stop> {
        if !self.up_ready
            && let Some(refusal) = self.secure_upstream(line).await?
        {
            self.answer(refusal.text()).await?;
            return Ok(false);
        }
        let reply = self.exchange(line).await?;
        if reply.code != 250 {
            self.answer(reply.text()).await?;
            return Ok(false);
        }
        let offers = self.smtp.downstream != DownstreamSwitch::Disable && !self.down_secure;
        if matches!(Command::of(line), Command::Ehlo) {
            let hides_auth = offers && self.smtp.downstream == DownstreamSwitch::Require;
            let capabilities = reply.capabilities(offers, hides_auth);
            self.answer(&capabilities).await?;
        } else {
            self.answer(reply.text()).await?;
        }
        Ok(!offers)
    }

    /// The client's STARTTLS.
    async fn start_tls(&mut self, line: &[u8]) -> Result<(), Stop> {
        if self.smtp.downstream == DownstreamSwitch::Disable {
            return self.answer(b"502 5.5.1 STARTTLS is not offered\r\n").await;
        }
        if self.down_secure {
            return self.answer(b"503 5.5.1 TLS has been started\r\n").await;
        }
        if command::has_argument(line) {
            return self.answer(b"501 5.5.4 STARTTLS takes no parameter\r\n").await;
        }
        let stats = &self.smtp.stats;
        if let Err(stop) = self.talk.down.expect_silence() {
            stats.plaintext_behind_starttls.inc();
            stats.downstream_tls_termination_error.inc();
            return Err(stop);
        }
        self.answer(b"220 2.0.0 Ready to start TLS\r\n").await?;
        if let Err(stop) = self.talk.secure_downstream().await {
            stats.downstream_tls_termination_error.inc();
            return Err(stop);
        }
        stats.downstream_tls_termination_success.inc();
        self.down_secure = true;
        Ok(())
    }

    /// Has the server turn to TLS; what it said where it does not even take the EHLO.
    async fn secure_upstream(&mut self, line: &[u8]) -> Result<Option<Reply>, Stop> {
        let reply = self.exchange(&command::as_ehlo(line)).await?;
        if reply.code != 250 {
            return Ok(Some(reply));
        }
        match self.upstream_tls(&reply).await {
            Ok(()) => {
                self.smtp.stats.upstream_tls_success.inc();
                self.up_ready = true;
                Ok(None)
            }
            Err(stop) => {
                self.smtp.stats.upstream_tls_error.inc();
                // It closes in any case.
                let _ = self.answer(b"421 4.7.0 No TLS connection to the server\r\n").await;
                Err(stop)
            }
        }
    }

    async fn upstream_tls(&mut self, ehlo: &Reply) -> Result<(), Stop> {
        if !ehlo.offers("STARTTLS") {
            return Err(self.talk.up.insecure("the server does not offer STARTTLS"));
        }
        let reply = self.exchange(b"STARTTLS\r\n").await?;
        if reply.code != 220 {
            return Err(self.talk.up.insecure("the server does not accept STARTTLS"));
        }
        if let Err(stop) = self.talk.up.expect_silence() {
            self.smtp.stats.plaintext_behind_starttls.inc();
            return Err(stop);
        }
        self.talk.secure_upstream().await
    }

    /// Tells the server, too, and closes.
    async fn quit(&mut self) -> Result<Stop, Stop> {
        let reply = self.exchange(b"QUIT\r\n").await?;
        self.answer(reply.text()).await?;
        Ok(Stop::close("smtp_quit"))
    }

    /// The client's next line.
    async fn command(&mut self) -> Result<Vec<u8>, Stop> {
        match timeout(LIMIT, self.next_command()).await {
            Ok(line) => line,
            Err(_) => {
                self.smtp.stats.timeout.inc();
                self.answer(b"421 4.4.2 Timeout\r\n").await?;
                Err(Stop::close("smtp_command_timeout"))
            }
        }
    }

    async fn next_command(&mut self) -> Result<Vec<u8>, Stop> {
        loop {
            match command::parse(&self.talk.down.heard) {
                Parsed::Done(len) => return Ok(self.talk.down.take(len)),
                Parsed::NeedMore => {}
                Parsed::Malformed => return Err(self.malformed().await),
            }
            match self.talk.listen().await? {
                Side::Downstream => {}
                Side::Upstream | Side::Internal => return Err(self.unasked().await?),
            }
        }
    }

    async fn malformed(&mut self) -> Stop {
        self.smtp.stats.protocol_error.inc();
        // It closes in any case.
        let _ = self.answer(b"500 5.5.2 A line ends with CR LF and has at most 2048 characters\r\n").await;
        Stop::close("smtp_malformed_command")
    }

    /// A server that speaks without being asked says that it closes.
    async fn unasked(&mut self) -> Result<Stop, Stop> {
        let reply = self.reply().await?;
        self.answer(reply.text()).await?;
        Ok(Stop::close("smtp_server_closes"))
    }

    /// A command to the server, and its answer.
    async fn exchange(&mut self, line: &[u8]) -> Result<Reply, Stop> {
        if !self.talk.up.heard.is_empty() {
            self.smtp.stats.protocol_error.inc();
            return Err(Stop::close("smtp_server_out_of_step"));
        }
        say(&mut self.talk.up, line).await?;
        self.reply().await
    }

    async fn reply(&mut self) -> Result<Reply, Stop> {
        match timeout(LIMIT, self.next_reply()).await {
            Ok(reply) => reply,
            Err(_) => {
                self.smtp.stats.timeout.inc();
                Err(Stop::close("smtp_server_timeout"))
            }
        }
    }

    async fn next_reply(&mut self) -> Result<Reply, Stop> {
        loop {
            match reply::parse(&self.talk.up.heard) {
                reply::Parsed::Done { code, len } => {
                    return Ok(Reply::new(code, self.talk.up.take(len)));
                }
                reply::Parsed::NeedMore => self.talk.up.hear().await?,
                reply::Parsed::Malformed => {
                    self.smtp.stats.protocol_error.inc();
                    return Err(Stop::close("smtp_malformed_reply"));
                }
            }
        }
    }

    async fn answer(&mut self, text: &[u8]) -> Result<(), Stop> {
        say(&mut self.talk.down, text).await
    }
}

/// A side that takes nothing has gone.
async fn say(half: &mut Half<'_>, text: &[u8]) -> Result<(), Stop> {
    let side = half.side;
    timeout(LIMIT, half.say(text)).await.unwrap_or(Err(Stop::Gone(side)))
}

#[cfg(test)]
mod tests;
