//! `tunneling_config`: a connection's bytes go upstream as the body of a request, and come back as that of its response.
//!
//! By `CONNECT` or `POST`, over a connection of the cluster's pools; what it needs beyond TCP is HTTP's. Nothing of the
//! client is read before the upstream has agreed.

mod open;
mod relay;

use http::{HeaderName, HeaderValue, Method};
use proxy_config::model::http::Format;
use proxy_config::model::metadata::{Struct, Value};
use proxy_config::model::network_filter as model;
use serde_json::json;

use super::TcpProxy;
use super::upstream::while_wanted;
use crate::clock::{self, Instant};
use crate::http::raw::Raw;
use crate::http::route::{Addition, Whose, add_headers};
use crate::http::{BuildError, Io, RequestHead, ResponseHead, Scheme};
use crate::network::Conn;
use crate::telemetry::access_log::Text;
use crate::telemetry::{Entry, Flags, HttpEntry, LogType, Outcome, Side};

/// Where dynamic metadata of the filter goes.
const NAMESPACE: &str = "envoy.filters.network.tcp_proxy";
const RESPONSE_HEADERS: &str = "envoy.tcp_proxy.propagate_response_headers";
const RESPONSE_TRAILERS: &str = "envoy.tcp_proxy.propagate_response_trailers";

/// `tunneling_config`, compiled.
pub struct Tunnel {
    model: model::Tunneling,
    hostname: Text,
    headers: Vec<Addition>,
    id_header: Option<HeaderName>,
}

/// What is found out on the way, for the log.
#[derive(Default)]
struct Notes {
    response: Option<ResponseHead>,
    request_id: Option<String>,
}

impl Tunnel {
    pub fn new(model: &model::Tunneling) -> Result<Self, BuildError> {
        let bad = |text: &Format| BuildError(format!("{:?} is no format", text.as_str()));
        let id_header = model.request_id.as_ref().map(|id| HeaderName::try_from(&*id.header)).transpose();
        Ok(Self {
            hostname: Text::new(&model.hostname).map_err(|_| bad(&model.hostname))?,
            headers: model.headers_to_add.iter().map(Addition::new).collect::<Result<_, _>>()?,
            id_header: id_header.map_err(|error| BuildError(error.to_string()))?,
            model: model.clone(),
        })
    }

    /// The request of one attempt.
    fn request(&self, entry: &Entry, secure: bool, notes: &mut Notes) -> RequestHead {
        let mut entry = entry.clone();
        // As Envoy, which writes what is missing like a log.
        let authority = self.hostname.render_dashes(&entry);
        let (method, path) =
            if self.model.use_post { (Method::POST, &*self.model.post_path) } else { (Method::CONNECT, "") };
        let mut head = RequestHead::new(method, authority, path);
        head.scheme = if secure { Scheme::Https } else { Scheme::Http };
        if let Some(name) = &self.id_header {
            let id = crate::http::fresh_request_id();
            notes.request_id = id.to_str().ok().map(str::to_owned);
            head.headers.insert(name, id);
        }
        entry.http = Some(Box::new(HttpEntry::new(head.clone(), clock::now())));
        add_headers(&self.headers, Whose::Request, &mut entry);
        match entry.http {
            Some(http) => http.request,
            None => head,
        }
    }

    /// The notes go where a log finds them.
    fn note(&self, notes: Notes, entry: &mut Entry) {
        if let (Some(id), Some(model)) = (notes.request_id, &self.model.request_id) {
            let metadata = &mut entry.facts.extra_mut().dynamic_metadata.0;
            let ours = metadata.get_or_insert_with(NAMESPACE, Struct::new);
            ours.insert(model.metadata_key.to_string(), Value::String(id));
        }
        if let Some(head) = notes.response.filter(|_| self.model.propagate_response_headers) {
            let status = HeaderValue::from(head.status.as_u16());
            let all = std::iter::once((":status", &status))
                .chain(head.headers.iter().map(|(name, value)| (name.as_str(), value)));
            keep(entry, RESPONSE_HEADERS, all);
        }
    }

    fn note_trailers(&self, trailers: &http::HeaderMap, entry: &mut Entry) {
        if self.model.propagate_response_trailers {
            keep(entry, RESPONSE_TRAILERS, trailers.iter().map(|(name, value)| (name.as_str(), value)));
        }
    }
}

/// As Envoy's `HeaderMap` shows them.
fn keep<'a>(entry: &mut Entry, key: &'static str, all: impl Iterator<Item = (&'a str, &'a HeaderValue)>) {
    let headers: Vec<_> = all
        .map(|(name, value)| json!({ "key": name, "value": String::from_utf8_lossy(value.as_bytes()) }))
        .collect();
    entry.facts.extra_mut().filter_state.insert(key, json!({ "headers": headers }));
}

/// Carries one connection to its end, as [`super::run`] does.
pub(super) async fn run(
    conn: &mut Conn<'_>,
    proxy: &TcpProxy,
    tunnel: &Tunnel,
    deadline: Option<Instant>,
) -> Outcome {
    conn.follow_expiry();
    let io = Io::Client { socket: conn.stream.clone(), transport: conn.transport.take() };
    let client = Raw::new(io, Side::Downstream, super::least([conn.listener.buffer_limit, 0]));
    client.hold(true);
    let mut notes = Notes::default();
    let opening = open::run(conn, proxy, tunnel, &client, &mut notes);
    let opened = Box::pin(while_wanted(opening, conn, deadline)).await;
    tunnel.note(notes, &mut conn.record.entry);
    match opened {
        Ok(opened) => {
            opened.tell(conn);
            if proxy.model.flush_access_log_on_connected {
                conn.record.interim(LogType::TcpUpstreamConnected);
            }
            relay::run(conn, proxy, tunnel, (opened, client), deadline).await
        }
        Err(failure) => {
            failure.tell(conn);
            failure.why.outcome(proxy)
        }
    }
}

/// A chain that begins with a protocol of its own cannot go through HTTP.
pub(super) fn unserved() -> Outcome {
    log::warn!("a chain with STARTTLS cannot go through a tunnel: its connections are closed");
    Outcome::new(Side::Internal, Flags::NR, "unserved_filter:starttls_in_a_tunnel")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proxy_config::model::http::HeaderOption;
    use proxy_config::model::http::header::AppendAction;
    use proxy_config::model::network_filter::TunnelRequestId;

    use super::*;
    use crate::net::facts::Facts;
    use crate::telemetry::stats::Stats;
    use crate::telemetry::{AccessLog, ConnRecord, Origin};

    fn entry() -> Entry {
        let log = AccessLog::start(None, 0, &Stats::new()).unwrap();
        let origin = Origin { connection_id: 7, workload: None, direction: None, listener: "l".into() };
        let client = "10.0.0.9:1234".parse().unwrap();
        let record = ConnRecord::new(log, origin, Facts::new(client, "127.0.0.1:80".parse().unwrap()));
        let entry = Entry::clone(&record.entry);
        record.finish(Outcome::new(Side::Internal, Flags::NONE, ""));
        entry
    }

    fn model(hostname: &str) -> model::Tunneling {
        let format = |text: &str| Format::new(text, &[]).unwrap();
        let header = |name: &str, value: &str, append| HeaderOption {
            name: name.into(),
            value: format(value),
            append,
            keep_empty_value: false,
        };
        model::Tunneling {
            hostname: format(hostname),
            use_post: false,
            post_path: "/".into(),
            headers_to_add: vec![
                header(
                    "x-who",
                    "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    AppendAction::AppendIfExistsOrAdd,
                ),
                header("x-who", "two", AppendAction::AppendIfExistsOrAdd),
                header("x-none", "one", AppendAction::OverwriteIfExists),
            ],
            propagate_response_headers: true,
            propagate_response_trailers: true,
            request_id: Some(TunnelRequestId {
                header: Arc::from("x-id"),
                metadata_key: Arc::from("the_id"),
            }),
        }
    }

    #[test]
    fn what_is_asked() {
        let mut entry = entry();
        entry.facts.server_name = Some("a.example".into());
        let tunnel = Tunnel::new(&model("%REQUESTED_SERVER_NAME%:80")).unwrap();
        let mut notes = Notes::default();
        let head = tunnel.request(&entry, false, &mut notes);
        assert_eq!(
            (head.method, head.authority.as_str(), head.path.as_str()),
            (Method::CONNECT, "a.example:80", "")
        );
        let who: Vec<_> = head.headers.get_all("x-who").iter().collect();
        assert_eq!(who, ["10.0.0.9", "two"]);
        assert!(!head.headers.contains_key("x-none"));
        let id = head.headers["x-id"].to_str().unwrap().to_owned();
        assert_eq!((id.len(), notes.request_id.as_deref()), (36, Some(id.as_str())));
        tunnel.note(notes, &mut entry);
        let ours = entry.facts.extra.as_ref().unwrap().dynamic_metadata.of(NAMESPACE).unwrap();
        assert_eq!(ours.get("the_id"), Some(&Value::String(id)));
        // A name that is not there is written as in logs.
        entry.facts.server_name = None;
        let post = model::Tunneling {
            use_post: true,
            post_path: "/p".into(),
            ..model("%REQUESTED_SERVER_NAME%:80")
        };
        let head = Tunnel::new(&post).unwrap().request(&entry, true, &mut Notes::default());
        assert_eq!((head.method, head.authority.as_str(), head.path.as_str()), (Method::POST, "-:80", "/p"));
        assert_eq!(head.scheme, Scheme::Https);
    }

    #[test]
    fn what_is_answered_is_kept_for_the_log() {
        let tunnel = Tunnel::new(&model("h:1")).unwrap();
        let mut entry = entry();
        let mut head = ResponseHead::new(http::StatusCode::OK);
        head.headers.insert("x-a", HeaderValue::from_static("1"));
        tunnel.note(Notes { response: Some(head), request_id: None }, &mut entry);
        let trailers =
            http::HeaderMap::from_iter([(HeaderName::from_static("t"), HeaderValue::from_static("2"))]);
        tunnel.note_trailers(&trailers, &mut entry);
        let format = |key: &str| {
            let text = Format::new(&format!("%FILTER_STATE({key})%"), &[]).unwrap();
            Text::new(&text).unwrap().render_dashes(&entry)
        };
        let headers = r#"{"headers":[{"key":":status","value":"200"},{"key":"x-a","value":"1"}]}"#;
        assert_eq!(format(RESPONSE_HEADERS), headers);
        assert_eq!(format(RESPONSE_TRAILERS), r#"{"headers":[{"key":"t","value":"2"}]}"#);
        assert_eq!(format(&format!("{RESPONSE_HEADERS}:PLAIN")), "-");
    }
}
