//! What responses are counted as: by their status, by where their request came from.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::cluster::Host;
use crate::telemetry::stats::{Block, Counter, Histogram, Metric, Stats};

static CANARY: HeaderName = HeaderName::from_static("x-envoy-upstream-canary");
static INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");

/// Of a cluster: `cluster.<name>.upstream_rq_200` and the like. Envoy makes them when they are needed.
pub struct CodeStats {
    stats: Arc<Stats>,
    prefix: Arc<str>,
    all: Arc<Codes>,
    external: OnceLock<Arc<Codes>>,
    internal: OnceLock<Arc<Codes>>,
    canary: OnceLock<Arc<Codes>>,
    retry: OnceLock<Arc<Codes>>,
}

/// Under one prefix.
#[derive(Default)]
pub(super) struct Codes {
    completed: Counter,
    classes: [Counter; 5],
    codes: [OnceLock<Box<[Counter; 100]>>; 5],
    time: Histogram,
}

/// Whose response it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) internal: bool,
    pub(super) canary: bool,
}

impl CodeStats {
    pub fn new(stats: &Arc<Stats>, prefix: Arc<str>) -> Self {
        let all = stats.block(prefix.clone());
        let new = OnceLock::new;
        let (external, internal, canary, retry) = (new(), new(), new(), new());
        Self { stats: stats.clone(), prefix, all, external, internal, canary, retry }
    }

    pub(super) fn charge(&self, code: u16, origin: Origin) {
        self.all.charge(code);
        self.origin(origin).charge(code);
        if origin.canary {
            self.named(&self.canary, "canary").charge(code);
        }
    }

    /// Of one whose code says nothing: it is counted by where it came from alone.
    pub(super) fn charge_origin(&self, code: u16, origin: Origin) {
        self.all.completed.inc();
        self.origin(origin).charge(code);
    }

    /// Of a response that is not the cluster's own, though it is counted as if it were.
    pub fn charge_internal(&self, code: u16) {
        self.charge(code, Origin { internal: true, canary: false });
    }

    /// Of a response that is not sent on, because its request is sent again.
    pub(super) fn charge_retry(&self, code: u16) {
        self.named(&self.retry, "retry").charge(code);
    }

    pub(super) fn time(&self, took: Duration, origin: Origin) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.all.record(millis);
        self.origin(origin).record(millis);
        if origin.canary {
            self.named(&self.canary, "canary").record(millis);
        }
    }

    fn origin(&self, origin: Origin) -> &Codes {
        if origin.internal {
            self.named(&self.internal, "internal")
        } else {
            self.named(&self.external, "external")
        }
    }

    fn named<'a>(&self, slot: &'a OnceLock<Arc<Codes>>, name: &str) -> &'a Codes {
        slot.get_or_init(|| self.stats.block(format!("{}.{name}", self.prefix)))
    }
}

impl Codes {
    pub(super) fn record(&self, millis: u64) {
        self.time.record(millis);
    }

    pub(super) fn charge(&self, code: u16) {
        self.completed.inc();
        let (class, rest) = ((code / 100).wrapping_sub(1) as usize, (code % 100) as usize);
        let (Some(all), Some(codes)) = (self.classes.get(class), self.codes.get(class)) else { return };
        all.inc();
        let codes = codes.get_or_init(|| Box::new(std::array::from_fn(|_| Counter::default())));
        if let Some(code) = codes.get(rest) {
            code.inc();
        }
    }
}

impl Block for Codes {
    fn visit(&self, visit: &mut dyn FnMut(&'static str, Metric<'_>)) {
        if self.completed.used() {
            visit("upstream_rq_completed", Metric::Counter(&self.completed));
        }
        let classes = CLASSES.iter().zip(&self.classes).zip(self.codes.iter().zip((1_u16..).step_by(1)));
        for ((name, all), (codes, class)) in classes {
            if all.used() {
                visit(name, Metric::Counter(all));
            }
            let Some(codes) = codes.get() else { continue };
            for (code, n) in codes.iter().zip(class * 100..) {
                if code.used() {
                    visit(code_name(n), Metric::Counter(code));
                }
            }
        }
        if self.time.bins().is_some() {
            visit("upstream_rq_time", Metric::Histogram(&self.time));
        }
    }
}

const CLASSES: [&str; 5] =
    ["upstream_rq_1xx", "upstream_rq_2xx", "upstream_rq_3xx", "upstream_rq_4xx", "upstream_rq_5xx"];

/// `upstream_rq_100` to `upstream_rq_599`.
static NAMES: [[u8; 15]; 500] = names();

const fn names() -> [[u8; 15]; 500] {
    let mut names = [*b"upstream_rq_000"; 500];
    let mut n = 0;
    while n < 500 {
        let code = n + 100;
        #[expect(clippy::cast_possible_truncation, reason = "one digit each")]
        let digits = [(code / 100) as u8, (code / 10 % 10) as u8, (code % 10) as u8];
        names[n][12] = b'0' + digits[0];
        names[n][13] = b'0' + digits[1];
        names[n][14] = b'0' + digits[2];
        n += 1;
    }
    names
}

fn code_name(code: u16) -> &'static str {
    let name = NAMES.get((code as usize).wrapping_sub(100));
    name.and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("upstream_rq_unknown")
}

/// `x-envoy-internal` of the request, and a canary by the response or its host.
pub(super) fn origin(request: &HeaderMap, response: Option<&HeaderMap>, host: Option<&Host>) -> Origin {
    let is_true = |headers: &HeaderMap, name| headers.get(name).is_some_and(|value| value == "true");
    let said = response.is_some_and(|headers| is_true(headers, &CANARY));
    let canary = said || host.is_some_and(Host::canary);
    Origin { internal: is_true(request, &INTERNAL), canary }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_by_code_class_and_origin() {
        let stats = Arc::new(Stats::new());
        let codes = CodeStats::new(&stats, "cluster.c".into());
        codes.charge(200, Origin { internal: false, canary: false });
        codes.charge(503, Origin { internal: true, canary: true });
        codes.charge_retry(503);
        codes.charge(999, Origin { internal: true, canary: false });
        let text = stats.render_text();
        for line in [
            "cluster.c.upstream_rq_completed: 3",
            "cluster.c.upstream_rq_2xx: 1",
            "cluster.c.upstream_rq_200: 1",
            "cluster.c.upstream_rq_503: 1",
            "cluster.c.external.upstream_rq_200: 1",
            "cluster.c.internal.upstream_rq_503: 1",
            "cluster.c.canary.upstream_rq_5xx: 1",
            "cluster.c.retry.upstream_rq_503: 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("upstream_rq_4xx") && !text.contains("upstream_rq_time"), "{text}");
    }
}
