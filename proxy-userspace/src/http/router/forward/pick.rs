//! To which host an attempt goes.

use std::sync::Arc;

use proxy_config::model::cluster::Discovery;
use proxy_config::model::http::retry::RetryHostPredicate;

use super::Forward;
use crate::cluster::{Host, NoHost, Want};
use crate::http::filter::Stop;
use crate::http::pool::Caller;
use crate::http::router::reply;

impl Forward<'_> {
    /// The next host; none of those that the retry policy rejects, if that can be helped.
    pub(super) fn host(&mut self) -> Result<Arc<Host>, Stop> {
        let most = match &self.retry {
            Some(retry) if self.attempts > 0 => retry.policy.host_selection_max_attempts,
            Some(_) | None => 0,
        };
        for _ in 0..most {
            match self.choose() {
                Ok(host) if self.rejects(&host) => {}
                Ok(host) => return Ok(host),
                Err(_) => return Err(self.no_host()),
            }
        }
        self.choose().map_err(|_| self.no_host())
    }

    pub(super) fn choose(&self) -> Result<Arc<Host>, NoHost> {
        let facts = &self.stream.entry.facts;
        let known = facts.local_restored.then_some(facts.local);
        let told = match &self.cluster.model.discovery {
            // What is no address is passed over, as in Envoy.
            Discovery::OriginalDst(how) => how.http_header.as_ref().and_then(|name| {
                let value = self.stream.request().header(name).filter(|value| !value.is_empty())?;
                let address = std::str::from_utf8(&value).ok().and_then(|text| text.trim().parse().ok());
                if address.is_none() {
                    self.cluster.stats.original_dst_host_invalid.inc();
                }
                address
            }),
            Discovery::Static | Discovery::StrictDns(_) | Discovery::LogicalDns(_) | Discovery::Eds(_) => {
                None
            }
        };
        let host = self.cluster.choose(&Want {
            hash: self.hash,
            metadata_match: self.routed.metadata_match(),
            original_dst: told.or(known),
            untried: self
                .retry
                .as_ref()
                .filter(|_| self.attempts > 0)
                .and_then(|retry| retry.untried.as_ref()),
            ..Want::default()
        })?;
        if !matches!(self.cluster.model.discovery, Discovery::OriginalDst(_)) {
            return Ok(host);
        }
        // A configuration may route to its own admin; a client's destination may not lead there.
        let conn = &self.stream.conn;
        if host.socket_address().is_some_and(|to| conn.place.is_admin(to)) {
            conn.shared().own.original_destination_is_admin.inc();
            return Err(NoHost::NoHealthy);
        }
        Ok(self.cluster.pools().known(host, &Caller::of(conn)))
    }

    pub(super) fn rejects(&self, host: &Host) -> bool {
        let Some(retry) = &self.retry else { return false };
        retry.policy.host_predicates.iter().any(|predicate| match predicate {
            RetryHostPredicate::PreviousHosts => {
                host.socket_address().is_some_and(|address| self.tried.contains(&address))
            }
            RetryHostPredicate::OmitCanaryHosts => host.canary(),
            RetryHostPredicate::OmitHostMetadata(omitted) => {
                let (has, empty) = (host.metadata(), Default::default());
                let (Some(omitted), has) = (omitted.of("envoy.lb"), has.of("envoy.lb").unwrap_or(&empty))
                else {
                    return false;
                };
                omitted.iter().all(|(key, value)| has.get(key) == Some(value))
            }
        })
    }

    pub(super) fn no_host(&mut self) -> Stop {
        self.charge(503, None);
        self.refuse(reply::no_host())
    }
}
