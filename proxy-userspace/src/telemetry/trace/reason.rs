//! Whether a request is traced, and why: what of it is told on by a digit of its id, as Envoy's
//! `UuidRequestIdExtension` does.

use proxy_config::model::FractionalPercent;
use proxy_config::model::http::route::RouteTracing;
use proxy_config::model::http::tracing::Tracing;

/// Envoy's `Tracing::Reason`, in the fourteenth place of a UUID (`-4xxx-`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    #[default]
    NotTraceable,
    Sampling,
    /// `x-envoy-force-trace`.
    ServiceForced,
    /// `x-client-trace-id`.
    ClientForced,
}

/// Where the digit is.
const PLACE: usize = 14;

impl Reason {
    fn digit(self) -> u8 {
        match self {
            Self::NotTraceable => b'4',
            Self::Sampling => b'9',
            Self::ServiceForced => b'a',
            Self::ClientForced => b'b',
        }
    }

    /// Of an id that may be anything.
    pub fn of(id: &str) -> Self {
        match id.as_bytes().get(PLACE) {
            Some(b'9') if id.len() == 36 => Self::Sampling,
            Some(b'a') if id.len() == 36 => Self::ServiceForced,
            Some(b'b') if id.len() == 36 => Self::ClientForced,
            Some(_) | None => Self::NotTraceable,
        }
    }

    /// The id with the digit in its place, where it is a UUID.
    pub fn put(self, id: &mut String) {
        if id.len() == 36 && id.is_char_boundary(PLACE) && id.is_char_boundary(PLACE + 1) {
            id.replace_range(PLACE..=PLACE, char::from(self.digit()).encode_utf8(&mut [0; 4]));
        }
    }

    pub fn is_traced(self) -> bool {
        self != Self::NotTraceable
    }
}

/// What a request says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub client_trace_id: bool,
    pub force_trace: bool,
    /// What its id says already.
    pub before: Reason,
}

/// How many requests are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    client: FractionalPercent,
    random: FractionalPercent,
    overall: FractionalPercent,
}

impl Sampling {
    /// As Envoy has it, in whole percents but for random sampling.
    pub fn of(model: &Tracing) -> Self {
        let whole = |percent: f64| FractionalPercent { numerator: percent as u32, denominator: 100 };
        let random = (model.random_sampling * 100.0).round() as u32;
        Self {
            client: whole(model.client_sampling),
            random: FractionalPercent { numerator: random, denominator: 10_000 },
            overall: whole(model.overall_sampling),
        }
    }

    /// What a route does not say is 100 %, whatever the connection manager has.
    pub fn of_route(model: &RouteTracing) -> Self {
        let all = FractionalPercent { numerator: 100, denominator: 100 };
        Self {
            client: model.client_sampling.unwrap_or(all),
            random: model.random_sampling.unwrap_or(all),
            overall: model.overall_sampling.unwrap_or(all),
        }
    }

    /// Of a request with that id: the same for all proxies on its way, by the id. `None` where it is no id of ours: such
    /// a request is not traced.
    pub fn decide(&self, id: &str, asked: Asked) -> Option<Reason> {
        let number = number(id)?;
        let mut reason = asked.before;
        if reason == Reason::NotTraceable {
            if asked.client_trace_id && enabled(self.client, rand::random::<u64>()) {
                reason = Reason::ClientForced;
            } else if asked.force_trace {
                reason = Reason::ServiceForced;
            } else if enabled(self.random, number) {
                reason = Reason::Sampling;
            }
        }
        if reason.is_traced() && !enabled(self.overall, number) {
            reason = Reason::NotTraceable;
        }
        Some(reason)
    }
}

fn enabled(percent: FractionalPercent, number: u64) -> bool {
    number % u64::from(percent.denominator.max(1)) < u64::from(percent.numerator)
}

/// Of the first eight digits, as Envoy's stable random number.
fn number(id: &str) -> Option<u64> {
    let digits = id.get(..8).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u64::from_str_radix(digits, 16).ok().map(|number| number % 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracing(client: f64, random: f64, overall: f64) -> Tracing {
        Tracing {
            client_sampling: client,
            random_sampling: random,
            overall_sampling: overall,
            max_path_tag_length: 256,
            custom_tags: Vec::new(),
            provider: None,
            spawn_upstream_span: false,
            operation: None,
            upstream_operation: None,
            no_context_propagation: false,
            verbose: false,
        }
    }

    #[test]
    fn by_what_is_asked_and_by_the_id() {
        let id = "00000001-0000-4000-8000-000000000000";
        let client = Asked { client_trace_id: true, ..Asked::default() };
        let forced = Asked { force_trace: true, ..Asked::default() };
        let sampled = Asked { before: Reason::Sampling, ..Asked::default() };
        let table = [
            (tracing(100.0, 100.0, 100.0), Asked::default(), Reason::Sampling),
            (tracing(100.0, 0.0, 100.0), Asked::default(), Reason::NotTraceable),
            // 1 of 10,000 is within 0.02 %.
            (tracing(100.0, 0.02, 100.0), Asked::default(), Reason::Sampling),
            (tracing(100.0, 0.01, 100.0), Asked::default(), Reason::NotTraceable),
            (tracing(100.0, 0.0, 100.0), client, Reason::ClientForced),
            (tracing(0.0, 0.0, 100.0), client, Reason::NotTraceable),
            (tracing(0.0, 0.0, 100.0), forced, Reason::ServiceForced),
            (tracing(100.0, 0.0, 0.0), forced, Reason::NotTraceable),
            (tracing(0.0, 0.0, 100.0), sampled, Reason::Sampling),
            // 1 of 100 is within 2 %, and not within what 0.9 % is in whole ones.
            (tracing(0.0, 100.0, 2.0), Asked::default(), Reason::Sampling),
            (tracing(0.0, 100.0, 0.9), Asked::default(), Reason::NotTraceable),
        ];
        for (tracing, asked, expected) in table {
            assert_eq!(Sampling::of(&tracing).decide(id, asked), Some(expected), "{tracing:?} {asked:?}");
        }
        let all = Sampling::of(&tracing(100.0, 100.0, 100.0));
        assert_eq!(all.decide("no uuid at all", Asked::default()), None);
        assert_eq!(all.decide("00000001", Asked::default()), Some(Reason::Sampling));
        let none = Some(FractionalPercent { numerator: 0, denominator: 100 });
        let route = RouteTracing { random_sampling: none, ..RouteTracing::default() };
        let decided = |route| Sampling::of_route(route).decide(id, Asked::default());
        assert_eq!(decided(&route), Some(Reason::NotTraceable));
        assert_eq!(decided(&RouteTracing::default()), Some(Reason::Sampling));
    }

    #[test]
    fn the_digit_goes_in_and_comes_out() {
        let mut id = "b1b7ed07-5ff1-4ab9-8a51-000000000000".to_owned();
        for reason in [Reason::Sampling, Reason::ServiceForced, Reason::ClientForced, Reason::NotTraceable] {
            reason.put(&mut id);
            assert_eq!(Reason::of(&id), reason, "{id}");
        }
        let mut other = "é".repeat(18);
        Reason::Sampling.put(&mut other);
        assert_eq!((other.as_str(), Reason::of(&other)), ("é".repeat(18).as_str(), Reason::NotTraceable));
    }
}
