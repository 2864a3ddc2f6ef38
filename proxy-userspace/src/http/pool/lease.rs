//! A connection in the hands of one request.

use std::sync::Arc;

use http::StatusCode;

use super::life::Life;
use super::state::{Pool, Taken};
use crate::cluster::breaker;
use crate::http::{Body, Observer, Progress, RequestHead, Reset, ResetReason, Response, h1, h2};
use crate::telemetry::Side;
use crate::telemetry::stats::ClusterStats;

pub(super) enum Link {
    Http1(h1::Client),
    Http2(h2::Client),
}

/// May send one request.
pub struct Lease {
    link: Link,
    attached: Attached,
}

/// A request's hold on its connection, until both its body and its response's are done with.
pub struct Attached {
    pool: Arc<Pool>,
    life: Arc<Life>,
    /// Both are complete: the connection may go on.
    complete: bool,
    /// The response has ended its connection, and was no upgrade.
    closes: bool,
    /// How often the connection had been given back before.
    returns: u32,
    _request: breaker::Request,
}

/// There is no response.
#[derive(Debug)]
pub struct Failed {
    pub reset: Reset,
    /// The upstream has certainly not touched it.
    pub untouched: bool,
    /// What was not sent of the request's body.
    pub rest: Body,
}

impl Lease {
    pub(super) fn new(taken: Taken, pool: Arc<Pool>, request: breaker::Request) -> Self {
        let Taken { link, life } = taken;
        let returns = life.returns();
        let attached = Attached { pool, life, complete: false, closes: true, returns, _request: request };
        Self { link, attached }
    }

    pub fn life(&self) -> &Arc<Life> {
        &self.attached.life
    }

    /// Until the response's head is there.
    pub async fn send(
        self,
        head: &RequestHead,
        body: Body,
        observer: Observer,
    ) -> Result<(Response, Attached), Failed> {
        let Self { link, mut attached } = self;
        match link {
            Link::Http1(client) => {
                let (pool, life) = (attached.pool.clone(), attached.life.clone());
                let done = move |client| {
                    life.given_back();
                    pool.give_back(client, life);
                };
                match client.send(head, body, observer, done).await {
                    Ok(response) => {
                        attached.closes =
                            response.head.status != StatusCode::SWITCHING_PROTOCOLS && !head.is_connect();
                        Ok((response, attached))
                    }
                    Err(h1::Failed { reset, untouched, rest }) => {
                        attached.broke(&reset);
                        Err(Failed { reset, untouched, rest })
                    }
                }
            }
            Link::Http2(client) => match client.send(head, body, observer).await {
                Ok(response) => Ok((response, attached)),
                Err((reset, untouched, rest)) => {
                    attached.broke(&reset);
                    Err(Failed { reset, untouched, rest })
                }
            },
        }
    }
}

impl Attached {
    pub fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// The response is whole.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// The response is whole, and the request is not.
    pub fn cut(&mut self, progress: &Progress) {
        self.closes &= progress.has_closed();
        if self.life.version == http::Version::HTTP_2 {
            self.pool.stats().upstream_rq_tx_reset.inc();
        }
    }

    /// The exchange is broken, and with it a connection of HTTP/1.
    pub fn broke(&mut self, reset: &Reset) {
        if self.life.version == http::Version::HTTP_2 {
            self.complete = true;
            count_reset(self.pool.stats(), reset);
            return;
        }
        match reset.reason {
            ResetReason::ConnectionTermination => self.life.ended_remotely(),
            // Cut off, and not by a message that is none.
            ResetReason::Protocol if reset.side == Side::Upstream && reset.details.is_empty() => {
                self.life.ended_remotely();
                self.pool.stats().upstream_cx_protocol_error.inc();
            }
            ResetReason::Protocol if reset.side == Side::Upstream => {
                self.pool.stats().upstream_cx_protocol_error.inc();
            }
            ResetReason::Protocol
            | ResetReason::Local
            | ResetReason::LocalRefused
            | ResetReason::Remote
            | ResetReason::RemoteRefused
            | ResetReason::ConnectionTimeout
            | ResetReason::ConnectionFailure
            | ResetReason::Overflow
            | ResetReason::Connect
            | ResetReason::PayloadTooLarge => {}
        }
    }
}

/// Of HTTP/2, by whom a stream was reset.
fn count_reset(stats: &ClusterStats, reset: &Reset) {
    if reset.side == Side::Downstream {
        stats.upstream_rq_tx_reset.inc();
        return;
    }
    match reset.reason {
        ResetReason::Remote => stats.upstream_rq_rx_reset.inc(),
        ResetReason::Local | ResetReason::Protocol | ResetReason::PayloadTooLarge => {
            stats.upstream_rq_tx_reset.inc();
        }
        ResetReason::LocalRefused
        | ResetReason::RemoteRefused
        | ResetReason::ConnectionTimeout
        | ResetReason::ConnectionFailure
        | ResetReason::ConnectionTermination
        | ResetReason::Overflow
        | ResetReason::Connect => {}
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let http2 = self.life.version == http::Version::HTTP_2;
        if http2 && !self.complete {
            // Given up by us.
            self.pool.stats().upstream_rq_tx_reset.inc();
        } else if !http2 && !self.complete {
            self.life.ended(false);
        } else if !http2 && self.closes && self.life.returns() == self.returns {
            self.pool.stats().upstream_cx_close_notify.inc();
        }
        self.life.end();
        self.pool.done();
    }
}
