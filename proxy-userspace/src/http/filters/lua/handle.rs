//! `request_handle` and `response_handle`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mlua::{AnyUserData, Table, UserData, UserDataMethods, UserDataRef, Value};
use proxy_config::model::Metadata;
use proxy_config::model::metadata::Struct;

use super::headers::{Headers, Of, from_table};
use super::info::{Connection, Dynamic, Fixed, Info};
use crate::http::filter::{LocalReply, Stop};
use crate::http::filters::whole::Whole;
use crate::http::pool::Caller;
use crate::http::router::call;
use crate::http::{Body, Request, RequestHead, Reset, ResponseHead, Stream};
use crate::telemetry::Flags;
use crate::world::Live;

/// Envoy's default of what is kept of a body.
const MOST_BODY: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Request,
    Response,
}

/// What a script works on: lent for as long as it runs.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) lent: Arc<Mutex<Lent>>,
}

pub(super) struct Lent {
    pub(super) side: Side,
    pub(super) request: RequestHead,
    pub(super) response: Option<ResponseHead>,
    body: Body,
    /// As far as the script has asked for it.
    pub(super) read: Option<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
    /// Headers were changed.
    pub(super) changed: bool,
    stop: Option<Stop>,
    pub(super) dynamic: Metadata,
    pub(super) fixed: Arc<Fixed>,
    limit: usize,
    live: Arc<Live>,
    caller: Caller,
}

impl Handle {
    pub(super) fn lend(side: Side, stream: &mut Stream, name: &str, context: &Arc<Struct>) -> Self {
        let fixed = Arc::new(Fixed::of(stream, name, context.clone()));
        let limit = match stream.conn.listener.buffer_limit {
            0 => MOST_BODY,
            limit => limit as usize,
        };
        let body = match side {
            Side::Request => stream.request_body.take(),
            Side::Response => stream.response_body.take(),
        };
        let (live, caller) = (stream.conn.live.clone(), Caller::of(&stream.conn));
        let http = stream.http_mut();
        let request = std::mem::replace(&mut http.request, RequestHead::new(http::Method::GET, "", ""));
        let lent = Lent {
            side,
            request,
            response: http.response.take(),
            body,
            read: None,
            trailers: None,
            changed: false,
            stop: None,
            dynamic: std::mem::take(&mut http.dynamic_metadata),
            fixed,
            limit,
            live,
            caller,
        };
        Self { lent: Arc::new(Mutex::new(lent)) }
    }

    /// Everything goes back, as the script has left it: whether it has changed headers, and what it has answered.
    pub(super) fn give_back(&self, stream: &mut Stream) -> (bool, Option<Stop>) {
        let mut lent = self.lock();
        let nothing = RequestHead::new(http::Method::GET, "", "");
        let request = std::mem::replace(&mut lent.request, nothing);
        let (response, dynamic) = (lent.response.take(), std::mem::take(&mut lent.dynamic));
        let rest = lent.body.take();
        let body = match lent.read.take() {
            Some(data) => Whole { data, trailers: lent.trailers.take(), rest, over: false }.body(),
            None => rest,
        };
        let (changed, side, stop) = (lent.changed, lent.side, lent.stop.take());
        drop(lent);
        let http = stream.http_mut();
        (http.request, http.response, http.dynamic_metadata) = (request, response, dynamic);
        match side {
            Side::Request => stream.request_body = body,
            Side::Response => stream.response_body = body,
        }
        (changed, stop)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all of the body, unless it was read already.
    async fn whole(&self) -> mlua::Result<Bytes> {
        let (body, limit) = {
            let mut lent = self.lock();
            if let Some(read) = &lent.read {
                return Ok(read.clone());
            }
            (lent.body.take(), lent.limit)
        };
        let whole = match Whole::read(body, limit).await {
            Ok(whole) => whole,
            Err(reset) => return Err(self.halt(reset.into())),
        };
        let mut lent = self.lock();
        lent.body = whole.rest;
        if whole.over {
            lent.read = Some(whole.data);
            drop(lent);
            let reply = LocalReply::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "Payload Too Large",
                Flags::NONE,
                "request_payload_too_large",
            );
            return Err(self.halt(reply.into()));
        }
        lent.trailers = whole.trailers;
        lent.read = Some(whole.data.clone());
        Ok(whole.data)
    }

    /// The script ends here.
    fn halt(&self, stop: Stop) -> mlua::Error {
        self.lock().stop = Some(stop);
        mlua::Error::runtime("the script has been stopped")
    }

    async fn http_call(
        &self,
        (cluster, headers, body, timeout): (String, Table, Option<mlua::String>, u64),
    ) -> Result<(HeaderMap, StatusCode, Bytes), mlua::Error> {
        let (live, caller, limit) = {
            let lent = self.lock();
            (lent.live.clone(), lent.caller.clone(), lent.limit)
        };
        let head = from_table(&headers)?;
        let cluster = live
            .cluster(&cluster)
            .ok_or_else(|| mlua::Error::runtime("http call cluster invalid. Must be configured"))?;
        let body = body.map(|body| Bytes::copy_from_slice(&body.as_bytes())).unwrap_or_default();
        let request = Request { head, body: Body::full(body) };
        let timeout = Some(Duration::from_millis(timeout)).filter(|timeout| !timeout.is_zero());
        let answered = async {
            let response = call(&cluster, &caller, request, timeout).await?;
            let whole = Whole::read(response.body, limit).await?;
            Ok::<_, Reset>((response.head.headers, response.head.status, whole.data))
        };
        // As Envoy answers where the other service does not.
        Ok(answered.await.unwrap_or_else(|_| {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            (HeaderMap::new(), status, Bytes::from_static(b"upstream failure"))
        }))
    }

    fn respond(&self, headers: &Table, body: Option<&mlua::String>) -> mlua::Result<mlua::Error> {
        let mut own = HeaderMap::new();
        let mut status = None;
        for pair in headers.pairs::<mlua::String, Value>() {
            let (name, value) = pair?;
            let (name, value) = (name.to_string_lossy(), text(&value)?);
            if name == ":status" {
                status = value.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
                continue;
            }
            let name = header::HeaderName::try_from(name).map_err(mlua::Error::external)?;
            own.append(name, HeaderValue::try_from(value).map_err(mlua::Error::external)?);
        }
        let status = status
            .filter(|status| status.as_u16() >= 200)
            .ok_or_else(|| mlua::Error::runtime(":status must be between 200-599"))?;
        let body = body.map(|body| Bytes::copy_from_slice(&body.as_bytes())).unwrap_or_default();
        let mut reply = LocalReply::new(status, body, Flags::NONE, "lua_response");
        reply.headers = own;
        Ok(self.halt(reply.into()))
    }
}

/// A text, a number or a truth, as Lua would write it.
pub(super) fn text(value: &Value) -> mlua::Result<String> {
    value.to_string()
}

/// What `body()` gives.
struct Buffer {
    handle: Handle,
}

impl UserData for Buffer {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods
            .add_method("length", |_, this, ()| Ok(this.handle.lock().read.as_ref().map_or(0, Bytes::len)));
        methods.add_method("getBytes", |lua, this, (from, count): (usize, usize)| {
            let read = this.handle.lock().read.clone().unwrap_or_default();
            let part = from.checked_add(count).and_then(|to| read.get(from..to));
            let part = part.ok_or_else(|| {
                mlua::Error::runtime("index/length must be >= 0 and (index + length) must be <= buffer size")
            })?;
            lua.create_string(part)
        });
        methods.add_method("setBytes", |_, this, text: mlua::String| {
            let data = Bytes::copy_from_slice(&text.as_bytes());
            let (len, mut lent) = (data.len(), this.handle.lock());
            lent.read = Some(data);
            let side = lent.side;
            let headers = match side {
                Side::Request => Some(&mut lent.request.headers),
                Side::Response => lent.response.as_mut().map(|response| &mut response.headers),
            };
            if let Some(headers) = headers.filter(|headers| headers.contains_key(header::CONTENT_LENGTH)) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from(len));
            }
            Ok(len)
        });
    }
}

impl UserData for Handle {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("headers", |_, this, ()| Ok(Headers { handle: this.clone(), of: Of::Head }));
        methods.add_async_method("body", |lua, this: UserDataRef<Self>, always: Option<bool>| async move {
            let handle = this.clone();
            let data = handle.whole().await?;
            if data.is_empty() && always != Some(true) {
                return Ok(None);
            }
            lua.create_userdata(Buffer { handle }).map(Some)
        });
        methods.add_async_method("bodyChunks", |lua, this: UserDataRef<Self>, ()| async move {
            let handle = this.clone();
            handle.whole().await?;
            // All of it is one chunk: it was read to its end.
            let mut chunk: Option<AnyUserData> = Some(lua.create_userdata(Buffer { handle })?);
            lua.create_function_mut(move |_, ()| Ok(chunk.take()))
        });
        methods.add_async_method("trailers", |_, this: UserDataRef<Self>, ()| async move {
            let handle = this.clone();
            handle.whole().await?;
            let there = handle.lock().trailers.is_some();
            Ok(there.then_some(Headers { handle, of: Of::Trailers }))
        });
        methods.add_async_method(
            "httpCall",
            |lua, this: UserDataRef<Self>, args: (String, Table, Option<mlua::String>, u64, Option<bool>)| async move {
                let (cluster, headers, body, timeout, alone) = args;
                let handle = this.clone();
                if alone == Some(true) {
                    handle.forget((cluster, headers, body, timeout))?;
                    return Ok((None, None));
                }
                let (headers, status, body) = handle.http_call((cluster, headers, body, timeout)).await?;
                let table = lua.create_table()?;
                table.set(":status", status.as_str())?;
                for (name, value) in &headers {
                    table.set(name.as_str(), lua.create_string(value.as_bytes())?)?;
                }
                Ok((Some(table), Some(lua.create_string(&body)?)))
            },
        );
        methods.add_method("respond", |_, this, (headers, body): (Table, Option<mlua::String>)| {
            if this.lock().side == Side::Response {
                return Err::<(), _>(mlua::Error::runtime("respond() cannot be called on the response path"));
            }
            Err(this.respond(&headers, body.as_ref())?)
        });
        methods.add_method("metadata", |_, this, ()| Ok(this.lock().fixed.metadata()));
        methods.add_method("filterContext", |_, this, ()| Ok(this.lock().fixed.context()));
        methods.add_method("streamInfo", |_, this, ()| Ok(Info { handle: this.clone() }));
        methods.add_method("connection", |_, this, ()| Ok(Connection { fixed: this.lock().fixed.clone() }));
        methods.add_method("clearRouteCache", |_, this, ()| {
            this.lock().changed = true;
            Ok(())
        });
        for (name, level) in [
            ("logTrace", log::Level::Trace),
            ("logDebug", log::Level::Debug),
            ("logInfo", log::Level::Info),
            ("logWarn", log::Level::Warn),
            ("logErr", log::Level::Error),
            ("logCritical", log::Level::Error),
        ] {
            methods.add_method(name, move |_, _, message: Value| {
                log::log!(level, "script log: {}", text(&message)?);
                Ok(())
            });
        }
        methods.add_method("base64Escape", |_, _, data: mlua::String| {
            use base64::Engine as _;
            Ok(base64::engine::general_purpose::STANDARD.encode(data.as_bytes()))
        });
        methods.add_method("timestamp", |_, _, _unit: Option<String>| {
            let since = crate::clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            // A double holds milliseconds for as long as anybody will ask.
            Ok(since.as_millis() as f64)
        });
    }
}

impl Handle {
    /// A call whose answer nobody waits for.
    fn forget(&self, args: (String, Table, Option<mlua::String>, u64)) -> mlua::Result<()> {
        let (cluster, headers, body, timeout) = args;
        let (live, caller) = {
            let lent = self.lock();
            (lent.live.clone(), lent.caller.clone())
        };
        let head = from_table(&headers)?;
        let cluster = live
            .cluster(&cluster)
            .ok_or_else(|| mlua::Error::runtime("http call cluster invalid. Must be configured"))?;
        let body = body.map(|body| Bytes::copy_from_slice(&body.as_bytes())).unwrap_or_default();
        let request = Request { head, body: Body::full(body) };
        let timeout = Some(Duration::from_millis(timeout)).filter(|timeout| !timeout.is_zero());
        let tasks = self.lock().fixed.tasks.clone();
        tasks.spawn("lua httpCall", async move {
            // Counted by the cluster; nobody else wants to know.
            let _ = call(&cluster, &caller, request, timeout).await;
        });
        Ok(())
    }
}

pub(super) fn dynamic(handle: &Handle) -> Dynamic {
    Dynamic { handle: handle.clone() }
}
