//! An HTTP/1.1 check: one request, judged by its status and, on wish, its body.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use proxy_config::model::address::Address;
use proxy_config::model::cluster::HttpHealthCheck;
use tokio::task::AbortHandle;

use super::judge::Verdict;
use super::session::Kept;
use super::tcp;
use crate::cluster::host::Host;
use crate::cluster::{Cluster, Env};

/// A body that is longer is not read further.
const MOST: usize = 1 << 20;

/// An open connection, with the task that drives it.
pub(super) struct Connection {
    send: SendRequest<Empty<Bytes>>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) async fn ask(
    cluster: &Cluster,
    host: &Host,
    to: &Address,
    how: &HttpHealthCheck,
    env: &Env,
    kept: &mut Kept,
) -> Verdict {
    let Some(request) = request(cluster, host, how) else { return Verdict::Wrong { retriable: false } };
    let reused = kept.http.take().filter(|connection| connection.send.is_ready());
    let mut connection = match reused {
        Some(connection) => connection,
        None => match open(cluster, host, to, env).await {
            Some(connection) => connection,
            None => return Verdict::Network,
        },
    };
    let Ok(response) = connection.send.send_request(request).await else { return Verdict::Network };
    let (head, body) = response.into_parts();
    let status = u32::from(head.status.as_u16());
    let verdict = if within(&how.expected_statuses, status) {
        Verdict::Healthy { degraded: head.headers.contains_key("x-envoy-degraded") }
    } else {
        Verdict::Wrong { retriable: within(&how.retriable_statuses, status) }
    };
    let Ok(body) = Limited::new(body, MOST).collect().await else { return Verdict::Network };
    if matches!(verdict, Verdict::Healthy { .. }) && !tcp::contains(&body.to_bytes(), &how.receive) {
        return Verdict::Wrong { retriable: false };
    }
    kept.http = Some(connection);
    verdict
}

async fn open(cluster: &Cluster, host: &Host, to: &Address, env: &Env) -> Option<Connection> {
    let stream = tcp::open(cluster, host, to, env.dial.as_ref()).await?;
    let (send, drive) = handshake(TokioIo::new(stream)).await.ok()?;
    let task = env.tasks.spawn("health_check_connection", async move {
        // Its end shows in the next request.
        let _ = drive.await;
    });
    Some(Connection { send, task: task.abort_handle() })
}

/// `None` where the configuration's text cannot be sent; lowering refuses most of that.
fn request(cluster: &Cluster, host: &Host, how: &HttpHealthCheck) -> Option<Request<Empty<Bytes>>> {
    let own = host.extra().map(|extra| &*extra.health_check.hostname).filter(|name| !name.is_empty());
    let authority = own.unwrap_or(if how.host.is_empty() { &cluster.model.name } else { &how.host });
    let method = if how.method.is_empty() { "GET" } else { &how.method };
    let mut request = Request::builder()
        .method(Method::from_bytes(method.as_bytes()).ok()?)
        .uri(&*how.path)
        .header(HOST, authority)
        .header(USER_AGENT, "Envoy/HC")
        .body(Empty::new())
        .ok()?;
    let headers = request.headers_mut();
    for name in &how.headers_to_remove {
        headers.remove(HeaderName::from_bytes(name.as_bytes()).ok()?);
    }
    for (name, value, append) in &how.headers_to_add {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_str(value).ok()?;
        if *append {
            headers.append(name, value);
        } else {
            headers.insert(name, value);
        }
    }
    Some(request)
}

/// Start inclusive, end exclusive.
fn within(ranges: &[(u32, u32)], status: u32) -> bool {
    ranges.iter().any(|(start, end)| (*start..*end).contains(&status))
}
