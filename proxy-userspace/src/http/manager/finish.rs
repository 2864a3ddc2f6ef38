//! The end of a stream: stats and log lines.

use super::exchange::Chain;
use crate::clock;
use crate::http::{Sent, Stream};

pub(super) fn run(mut stream: Stream, mut chain: Chain, sent: Sent) {
    stream.http_mut().sent = sent;
    for filter in &mut chain {
        filter.end(&mut stream);
    }
    let hcm = stream.conn.hcm.clone();
    let took = clock::now() - stream.start.at;
    let stats = &hcm.stats;
    stats.downstream_rq_completed.inc();
    match stream.http().response_code() {
        100..=199 => stats.downstream_rq_1xx.inc(),
        200..=299 => stats.downstream_rq_2xx.inc(),
        300..=399 => stats.downstream_rq_3xx.inc(),
        400..=499 => stats.downstream_rq_4xx.inc(),
        500..=599 => stats.downstream_rq_5xx.inc(),
        _ => {}
    }
    stats.downstream_rq_time.record(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    let entry = &mut stream.entry;
    entry.duration = took;
    entry.bytes.downstream_tx = sent.body_bytes;
    for logger in hcm.access_log.iter() {
        logger.log(entry);
    }
}
