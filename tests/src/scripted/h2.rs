//! By HTTP/2.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::sync::Notify;

use super::h1::Socket;
use super::{Conn, End, Plan};

/// What streams tell their connection.
#[derive(Default)]
struct Ends {
    close: Notify,
    goaway: Notify,
}

pub(super) async fn serve(stream: impl Socket, conn: Conn, max_streams: Option<u32>) {
    let mut builder = Builder::new();
    if let Some(most) = max_streams {
        builder.max_concurrent_streams(most);
    }
    let Ok(mut h2) = builder.handshake::<_, Bytes>(stream).await else { return };
    let (conn, ends) = (Arc::new(conn), Arc::<Ends>::default());
    loop {
        tokio::select! {
            accepted = h2.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let (conn, ends) = (conn.clone(), ends.clone());
                tokio::spawn(async move {
                    // A client that goes is no failure of the backend.
                    drop(exchange(request, respond, &conn, &ends).await);
                });
            }
            () = ends.close.notified() => return,
            () = ends.goaway.notified() => h2.graceful_shutdown(),
        }
    }
}

async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    conn: &Conn,
    ends: &Ends,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    headers.insert("host".into(), head.uri.authority().map(ToString::to_string).unwrap_or_default());
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let all = headers.entry(name.to_string()).or_default();
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(&value);
    }
    let (seen, mut plan) = conn.begins(format!("{} {path} HTTP/2", head.method), headers);
    if !plan.early {
        let mut got = 0;
        while let Some(data) = body.data().await {
            let Ok(data) = data else {
                conn.ends(seen, got, Some("broken"));
                return Ok(());
            };
            got += data.len();
            drop(body.flow_control().release_capacity(data.len()));
        }
        conn.ends(seen, got, None);
    }
    tokio::time::sleep(plan.wait).await;
    match plan.end {
        End::Reset(code) => {
            respond.send_reset(Reason::from(code));
            return Ok(());
        }
        End::Close | End::Garbage => {
            ends.close.notify_one();
            return Ok(());
        }
        End::Silent => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            return Ok(());
        }
        End::Whole | End::HalfReset(_) | End::HalfClose => {}
    }
    if plan.last {
        ends.goaway.notify_one();
    }
    if head.method == http::Method::HEAD {
        plan.body = Some(0);
    }
    answer(&mut respond, &plan, ends).await
}

async fn answer(respond: &mut SendResponse<Bytes>, plan: &Plan, ends: &Ends) -> Result<(), h2::Error> {
    let mut head = Response::builder().status(plan.status);
    for (name, value) in &plan.headers {
        head = head.header(name, value);
    }
    let head = head.body(()).unwrap_or_default();
    let body = plan.body();
    if body.is_empty() && plan.trailers.is_empty() && !plan.open {
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut stream = respond.send_response(head, false)?;
    let (first, second) = body.split_at(body.len() / 2);
    stream.send_data(first.to_vec().into(), false)?;
    if plan.end != End::Whole || !plan.pause.is_zero() {
        tokio::time::sleep(plan.pause.max(Duration::from_millis(20))).await;
    }
    match plan.end {
        End::HalfReset(code) => {
            stream.send_reset(Reason::from(code));
            return Ok(());
        }
        End::HalfClose => {
            ends.close.notify_one();
            return Ok(());
        }
        End::Whole | End::Reset(_) | End::Close | End::Silent | End::Garbage => {}
    }
    finish(stream, second, plan)
}

fn finish(mut stream: SendStream<Bytes>, rest: &[u8], plan: &Plan) -> Result<(), h2::Error> {
    stream.send_data(rest.to_vec().into(), plan.trailers.is_empty())?;
    if plan.trailers.is_empty() {
        return Ok(());
    }
    let trailer = |(name, value): &(String, String)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(value).ok()?))
    };
    stream.send_trailers(plan.trailers.iter().filter_map(trailer).collect::<HeaderMap>())
}
