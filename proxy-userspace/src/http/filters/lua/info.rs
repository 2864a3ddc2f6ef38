//! `streamInfo()`, `metadata()` and `connection()`.

use std::net::SocketAddr;
use std::sync::Arc;

use mlua::{Lua, MetaMethod, UserData, UserDataMethods, Value};
use proxy_config::model::metadata::{Struct, Value as Meta};

use super::handle::Handle;
use crate::http::Stream;
use crate::task::Tasks;
use crate::telemetry::access_log::http::protocol;
use crate::transport::TlsInfo;

/// What does not change while a script runs.
pub(super) struct Fixed {
    protocol: &'static str,
    route: Option<Arc<str>>,
    virtual_cluster: Option<Arc<str>>,
    local: SocketAddr,
    direct_remote: SocketAddr,
    remote: SocketAddr,
    server_name: Option<Arc<str>>,
    tls: Option<Arc<TlsInfo>>,
    /// The route's, under the filter's name.
    metadata: Option<Arc<Struct>>,
    /// `filter_context`: of the route, or the filter's own.
    context: Arc<Struct>,
    pub(super) tasks: Tasks,
}

impl Fixed {
    pub(super) fn of(stream: &Stream, name: &str, context: Arc<Struct>) -> Self {
        let (http, facts) = (stream.http(), &stream.entry.facts);
        Self {
            protocol: protocol(http.request.version),
            route: http.route.clone(),
            virtual_cluster: http.virtual_cluster.clone(),
            local: facts.local,
            direct_remote: facts.direct_remote,
            remote: facts.remote,
            server_name: facts.server_name.clone(),
            tls: facts.tls.clone(),
            metadata: http
                .route_metadata
                .as_ref()
                .and_then(|metadata| metadata.of(name).cloned())
                .map(Arc::new),
            context,
            tasks: stream.conn.shared().tasks.clone(),
        }
    }
}

pub(super) struct Info {
    pub(super) handle: Handle,
}

impl UserData for Info {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        let fixed = |this: &Self| this.handle.lock().fixed.clone();
        methods.add_method("protocol", move |_, this, ()| Ok(fixed(this).protocol));
        methods.add_method("routeName", move |_, this, ()| {
            Ok(fixed(this).route.as_deref().unwrap_or_default().to_owned())
        });
        methods.add_method("virtualClusterName", move |_, this, ()| {
            Ok(fixed(this).virtual_cluster.as_deref().unwrap_or_default().to_owned())
        });
        methods.add_method("downstreamLocalAddress", move |_, this, ()| Ok(fixed(this).local.to_string()));
        methods.add_method("downstreamDirectRemoteAddress", move |_, this, ()| {
            Ok(fixed(this).direct_remote.to_string())
        });
        methods
            .add_method("downstreamDirectLocalAddress", move |_, this, ()| Ok(fixed(this).local.to_string()));
        methods.add_method("downstreamRemoteAddress", move |_, this, ()| Ok(fixed(this).remote.to_string()));
        methods.add_method("requestedServerName", move |_, this, ()| {
            Ok(fixed(this).server_name.as_deref().unwrap_or_default().to_owned())
        });
        methods.add_method("downstreamSslConnection", move |_, this, ()| {
            Ok(fixed(this).tls.clone().map(|tls| Ssl { tls }))
        });
        methods.add_method("dynamicMetadata", |_, this, ()| Ok(super::handle::dynamic(&this.handle)));
    }
}

pub(super) struct Connection {
    pub(super) fixed: Arc<Fixed>,
}

impl UserData for Connection {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("ssl", |_, this, ()| Ok(this.fixed.tls.clone().map(|tls| Ssl { tls })));
    }
}

struct Ssl {
    tls: Arc<TlsInfo>,
}

impl UserData for Ssl {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("peerCertificatePresented", |_, this, ()| Ok(this.tls.peer.is_some()));
        methods.add_method("peerCertificateValidated", |_, this, ()| Ok(this.tls.peer_validated));
        methods.add_method("uriSanPeerCertificate", |_, this, ()| {
            Ok(this.tls.peer.as_ref().map(|peer| peer.uri_sans.clone()).unwrap_or_default())
        });
        methods.add_method("uriSanLocalCertificate", |_, this, ()| {
            Ok(this.tls.local.as_ref().map(|local| local.uri_sans.clone()).unwrap_or_default())
        });
        methods.add_method("dnsSansPeerCertificate", |_, this, ()| {
            Ok(this.tls.peer.as_ref().map(|peer| peer.dns_sans.clone()).unwrap_or_default())
        });
        methods.add_method("sha256PeerCertificateDigest", |_, this, ()| {
            Ok(this.tls.peer.as_ref().map(|peer| peer.fingerprint_256.clone()).unwrap_or_default())
        });
        methods.add_method("serialNumberPeerCertificate", |_, this, ()| {
            Ok(this.tls.peer.as_ref().map(|peer| peer.serial.clone()).unwrap_or_default())
        });
        methods.add_method("subjectPeerCertificate", |_, this, ()| {
            Ok(this.tls.peer.as_ref().map(|peer| peer.subject.clone()).unwrap_or_default())
        });
        methods.add_method("issuerPeerCertificate", |_, this, ()| {
            Ok(this.tls.peer.as_ref().map(|peer| peer.issuer.clone()).unwrap_or_default())
        });
        methods.add_method("subjectLocalCertificate", |_, this, ()| {
            Ok(this.tls.local.as_ref().map(|local| local.subject.clone()).unwrap_or_default())
        });
        methods.add_method("sessionId", |_, this, ()| Ok(this.tls.session_id.clone()));
        methods.add_method("ciphersuiteString", |_, this, ()| Ok(this.tls.cipher));
        methods.add_method("tlsVersion", |_, this, ()| Ok(this.tls.version));
    }
}

impl Fixed {
    pub(super) fn metadata(&self) -> Metadatas {
        Metadatas(self.metadata.clone().unwrap_or_default())
    }

    pub(super) fn context(&self) -> Metadatas {
        Metadatas(self.context.clone())
    }
}

/// Fields that a script can only read.
pub(super) struct Metadatas(Arc<Struct>);

impl UserData for Metadatas {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("get", |lua, this, key: String| {
            this.0.get(&key).map_or(Ok(Value::Nil), |value| to_lua(lua, value))
        });
        methods.add_meta_method(MetaMethod::Pairs, |lua, this, ()| {
            let all: Vec<_> = this.0.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
            let mut all = all.into_iter();
            let next = lua.create_function_mut(move |lua, _: mlua::MultiValue| match all.next() {
                Some((key, value)) => Ok((Some(key), to_lua(lua, &value)?)),
                None => Ok((None, Value::Nil)),
            })?;
            Ok((next, mlua::Nil, mlua::Nil))
        });
    }
}

pub(super) struct Dynamic {
    pub(super) handle: Handle,
}

impl UserData for Dynamic {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("get", |lua, this, namespace: String| {
            let found = this.handle.lock().dynamic.of(&namespace).cloned();
            found.map_or(Ok(Value::Nil), |fields| table(lua, &fields))
        });
        methods.add_method("set", |_, this, (namespace, key, value): (String, String, Value)| {
            let value = from_lua(&value, 0)?;
            let mut lent = this.handle.lock();
            lent.dynamic.0.get_or_insert_with(&namespace, Struct::default).insert(key, value);
            Ok(())
        });
    }
}

fn table(lua: &Lua, fields: &Struct) -> mlua::Result<Value> {
    let table = lua.create_table()?;
    for (key, value) in fields.iter() {
        table.set(key.as_str(), to_lua(lua, value)?)?;
    }
    Ok(Value::Table(table))
}

fn to_lua(lua: &Lua, value: &Meta) -> mlua::Result<Value> {
    Ok(match value {
        Meta::Null => Value::Nil,
        Meta::Bool(truth) => Value::Boolean(*truth),
        Meta::Number(number) => Value::Number(*number),
        Meta::String(text) => Value::String(lua.create_string(text)?),
        Meta::List(list) => {
            let table = lua.create_table()?;
            for value in list {
                table.push(to_lua(lua, value)?)?;
            }
            Value::Table(table)
        }
        Meta::Struct(fields) => table(lua, fields)?,
    })
}

/// A table with a first element is a list.
#[expect(clippy::wildcard_enum_match_arm, reason = "the kinds of values are the library's")]
fn from_lua(value: &Value, depth: usize) -> mlua::Result<Meta> {
    if depth > 16 {
        return Err(mlua::Error::runtime("a table that is nested too deeply"));
    }
    Ok(match value {
        Value::Nil => Meta::Null,
        Value::Boolean(truth) => Meta::Bool(*truth),
        Value::Integer(number) => Meta::Number(*number as f64),
        Value::Number(number) => Meta::Number(*number),
        Value::String(text) => Meta::String(text.to_string_lossy()),
        Value::Table(table) if table.raw_len() > 0 => {
            let list = table.sequence_values::<Value>().map(|one| from_lua(&one?, depth + 1));
            Meta::List(list.collect::<Result<_, _>>()?)
        }
        Value::Table(table) => {
            let mut fields = Struct::default();
            for pair in table.pairs::<String, Value>() {
                let (key, value) = pair?;
                fields.insert(key, from_lua(&value, depth + 1)?);
            }
            Meta::Struct(fields)
        }
        other => return Err(mlua::Error::runtime(format!("metadata cannot hold a {}", other.type_name()))),
    })
}
