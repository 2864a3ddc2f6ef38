//! `Proxy-Status` (RFC 9209): why the response is not what the client has asked for, by Envoy's response flags.

use http::{HeaderName, HeaderValue, StatusCode};
use proxy_config::model::http as model;
use proxy_config::model::http::hcm::{Identity, ProxyName};

use super::outbound::append;
use crate::http::{BuildError, Stream};
use crate::telemetry::{Flags, Outcome};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// `proxy_status_config`, compiled.
pub(super) struct ProxyStatus {
    model: model::hcm::ProxyStatus,
    /// Who says it.
    name: Box<str>,
}

impl ProxyStatus {
    /// `node`: its id.
    pub(super) fn new(
        model: &model::hcm::ProxyStatus,
        identity: &Identity,
        node: &str,
    ) -> Result<Self, BuildError> {
        let name = match &model.proxy_name {
            ProxyName::Server => &*identity.server_name,
            ProxyName::NodeId => node,
            ProxyName::Literal(name) => name,
        };
        match HeaderValue::from_str(name) {
            Ok(_) => Ok(Self { model: model.clone(), name: name.into() }),
            Err(_) => Err(BuildError(format!("{name:?} cannot be the name of a proxy in proxy-status"))),
        }
    }

    /// Only where something has gone wrong.
    pub(super) fn tell(&self, stream: &mut Stream) {
        let Some(problem) = Problem::of(stream.entry.outcome.flags) else { return };
        let text = self.text(problem, &stream.entry.outcome);
        let Some(response) = stream.response_mut() else { return };
        if let Ok(value) = HeaderValue::from_str(&text) {
            append(&mut response.headers, PROXY_STATUS, &value, ", ");
        }
        if self.model.set_recommended_response_code
            && let Some(status) = problem.status()
        {
            response.status = status;
        }
    }

    fn text(&self, problem: Problem, outcome: &Outcome) -> String {
        let mut text = format!("{}; error={}", self.name, problem.name());
        let details = outcome.response_code_details.as_deref().filter(|_| !self.model.remove_details);
        if let Some(details) = details {
            let mut parts = vec![details.to_owned()];
            let termination = outcome.termination_details.as_deref();
            parts.extend(
                termination.filter(|_| !self.model.remove_connection_termination_details).map(str::to_owned),
            );
            if !self.model.remove_response_flags && !outcome.flags.is_empty() {
                parts.push(outcome.flags.to_string());
            }
            text.push_str(&format!("; details=\"{}\"", escaped(&parts.join("; "))));
        }
        text
    }
}

/// The error types of RFC 9209 that Envoy's response flags stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    DestinationUnavailable,
    DestinationNotFound,
    ResponseTimeout,
    ConnectionTimeout,
    ConnectionTerminated,
    ConnectionRefused,
    ConnectionLimitReached,
    Request,
    Configuration,
    Protocol,
    Dns,
}

/// The first that is set counts. DPE is not among them: Envoy sets it once the answer has gone.
const OF_FLAGS: &[(Flags, Problem)] = &[
    (Flags::LH, Problem::DestinationUnavailable),
    (Flags::UH, Problem::DestinationUnavailable),
    (Flags::UT, Problem::ResponseTimeout),
    (Flags::LR, Problem::ConnectionTimeout),
    (Flags::UR, Problem::ConnectionTerminated),
    (Flags::UF, Problem::ConnectionRefused),
    (Flags::UC, Problem::ConnectionTerminated),
    (Flags::UO, Problem::ConnectionLimitReached),
    (Flags::NR, Problem::DestinationNotFound),
    (Flags::RL, Problem::ConnectionLimitReached),
    (Flags::RLSE, Problem::ConnectionLimitReached),
    (Flags::URX, Problem::DestinationUnavailable),
    (Flags::SI, Problem::ResponseTimeout),
    (Flags::IH, Problem::Request),
    (Flags::UMSDR, Problem::ResponseTimeout),
    (Flags::NFCF, Problem::Configuration),
    (Flags::UPE, Problem::Protocol),
    (Flags::NC, Problem::DestinationUnavailable),
    (Flags::DF, Problem::Dns),
];

impl Problem {
    fn of(flags: Flags) -> Option<Self> {
        OF_FLAGS.iter().find(|(flag, _)| flags.contains(*flag)).map(|(_, problem)| *problem)
    }

    fn name(self) -> &'static str {
        match self {
            Self::DestinationUnavailable => "destination_unavailable",
            Self::DestinationNotFound => "destination_not_found",
            Self::ResponseTimeout => "http_response_timeout",
            Self::ConnectionTimeout => "connection_timeout",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::Request => "http_request_error",
            Self::Configuration => "proxy_configuration_error",
            Self::Protocol => "http_protocol_error",
            Self::Dns => "dns_error",
        }
    }

    /// What RFC 9209 recommends.
    fn status(self) -> Option<StatusCode> {
        match self {
            Self::ConnectionTimeout | Self::ResponseTimeout => Some(StatusCode::GATEWAY_TIMEOUT),
            Self::Dns | Self::ConnectionRefused | Self::ConnectionTerminated | Self::Protocol => {
                Some(StatusCode::BAD_GATEWAY)
            }
            Self::DestinationNotFound | Self::Configuration => Some(StatusCode::INTERNAL_SERVER_ERROR),
            Self::DestinationUnavailable | Self::ConnectionLimitReached => {
                Some(StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::Request => None,
        }
    }
}

/// What would end the text, or the header.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            '\u{b}' => escaped.push_str("\\v"),
            '\0' => escaped.push_str("\\0"),
            '"' | '\'' | '\\' => escaped.extend(['\\', c]),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Side;

    fn status(change: impl FnOnce(&mut model::hcm::ProxyStatus)) -> ProxyStatus {
        let mut model = model::hcm::ProxyStatus {
            remove_details: false,
            remove_connection_termination_details: false,
            remove_response_flags: false,
            set_recommended_response_code: false,
            proxy_name: ProxyName::Literal("me".into()),
        };
        change(&mut model);
        ProxyStatus { model, name: "me".into() }
    }

    #[test]
    fn what_is_told_and_left_out() {
        let mut outcome = Outcome::new(Side::Upstream, Flags::UF | Flags::URX, "");
        outcome.response_code_details = Some("a\"b".into());
        outcome.termination_details = Some("ended".into());
        let problem = Problem::of(outcome.flags).unwrap();
        let text = |change: fn(&mut model::hcm::ProxyStatus)| status(change).text(problem, &outcome);
        assert_eq!(text(|_| {}), "me; error=connection_refused; details=\"a\\\"b; ended; UF,URX\"");
        assert_eq!(text(|model| model.remove_details = true), "me; error=connection_refused");
        let less = text(|model| {
            model.remove_connection_termination_details = true;
            model.remove_response_flags = true;
        });
        assert_eq!(less, "me; error=connection_refused; details=\"a\\\"b\"");
        assert_eq!(problem.status(), Some(StatusCode::BAD_GATEWAY));
        assert_eq!(Problem::of(Flags::NONE), None);
        assert_eq!(Problem::of(Flags::UH | Flags::DF), Some(Problem::DestinationUnavailable));
    }
}
