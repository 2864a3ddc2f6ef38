//! A stream that begins anew, because its router follows a redirect: Envoy's `recreateStream`.
//!
//! What it was so far ends as any stream does, with a line in the log, and no response. The request goes through all of
//! its filters again, to a route that is found again.

use http::Version;

use super::active::Active;
use super::{exchange, finish, limits, traced};
use crate::clock;
use crate::http::filter::Stop;
use crate::telemetry::LogType;

impl Active {
    pub(super) fn again(&mut self) -> Result<(), Stop> {
        self.end_pass();
        let now = clock::now();
        self.stream.renew();
        let (_, begun) = exchange::again(&mut self.stream, &mut self.chain);
        self.limits = self.first_limits(now);
        limits::of_route(&mut self.limits, &self.stream, now);
        self.mark = now;
        if self.stream.conn.hcm.model.flush_access_log_on_new_request {
            finish::interim(&mut self.stream, LogType::DownstreamStart);
        }
        begun
    }

    /// The client knows nothing of it: no response is counted.
    fn end_pass(&mut self) {
        let Self { stream, chain, meter, .. } = self;
        let hcm = stream.conn.hcm.clone();
        stream.details("internal_redirect");
        if let Some(meter) = meter {
            finish::received(stream.http_mut(), meter);
        }
        for mut filter in chain.drain(..) {
            filter.end(stream);
        }
        let took = clock::now() - stream.start.at;
        hcm.stats.downstream_rq_time.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        stream.entry.duration = took;
        stream.entry.bytes.downstream_rx = stream.http().request_body;
        traced::end(stream);
        hcm.access_log.iter().for_each(|logger| logger.log(&stream.entry));
        if stream.entry.origin.workload.is_some() {
            stream.conn.place.shared.access_log.keep(stream.entry.clone());
        }
        hcm.stats.downstream_rq_total.inc();
        match stream.request().version {
            Version::HTTP_2 => hcm.stats.downstream_rq_http2_total.inc(),
            _ => hcm.stats.downstream_rq_http1_total.inc(),
        }
    }
}
