//! Headers and trailers, as a script sees them.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use mlua::{MetaMethod, Table, UserData, UserDataMethods, Value};

use super::handle::{Handle, Lent, Side, text};
use crate::http::{RequestHead, Scheme};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Head,
    Trailers,
}

pub(super) struct Headers {
    pub(super) handle: Handle,
    pub(super) of: Of,
}

impl Headers {
    /// Several values are joined, as in Envoy.
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        let lent = self.handle.lock();
        let found = match (self.of, lent.side) {
            (Of::Trailers, _) => crate::http::message::joined(lent.trailers.as_ref()?, name),
            (Of::Head, Side::Request) => lent.request.header(name),
            (Of::Head, Side::Response) => lent.response.as_ref()?.header(name),
        };
        found.map(std::borrow::Cow::into_owned)
    }

    fn set(&self, name: &str, value: Option<&str>, replace: bool) -> mlua::Result<()> {
        let mut lent = self.handle.lock();
        let lent = &mut *lent;
        lent.changed |= self.of == Of::Head;
        if let (Of::Head, Some(b':')) = (self.of, name.as_bytes().first()) {
            return value.map_or(Ok(()), |value| pseudo(lent, name, value));
        }
        let name = HeaderName::try_from(name).map_err(mlua::Error::external)?;
        let Some(headers) = self.map(lent) else { return Ok(()) };
        let value = value.map(HeaderValue::try_from).transpose().map_err(mlua::Error::external)?;
        match (value, replace) {
            (Some(value), true) => drop(headers.insert(name, value)),
            (Some(value), false) => {
                headers.append(name, value);
            }
            (None, _) => drop(headers.remove(name)),
        }
        Ok(())
    }

    fn map<'a>(&self, lent: &'a mut Lent) -> Option<&'a mut HeaderMap> {
        match (self.of, lent.side) {
            (Of::Trailers, _) => lent.trailers.as_mut(),
            (Of::Head, Side::Request) => Some(&mut lent.request.headers),
            (Of::Head, Side::Response) => lent.response.as_mut().map(|response| &mut response.headers),
        }
    }

    /// In the order of the map, pseudo-headers first.
    fn pairs(&self) -> Vec<(String, Vec<u8>)> {
        let mut lent = self.handle.lock();
        let lent = &mut *lent;
        let mut all = Vec::new();
        if self.of == Of::Head {
            let names: &[&str] = match lent.side {
                Side::Request => &[":authority", ":path", ":method", ":scheme"],
                Side::Response => &[":status"],
            };
            for name in names {
                let value = match lent.side {
                    Side::Request => lent.request.header(name),
                    Side::Response => lent.response.as_ref().and_then(|response| response.header(name)),
                };
                all.extend(value.map(|value| ((*name).to_owned(), value.into_owned())));
            }
        }
        let rest = self.map(lent).map(|headers| {
            headers
                .iter()
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect::<Vec<_>>()
        });
        all.extend(rest.unwrap_or_default());
        all
    }
}

fn pseudo(lent: &mut Lent, name: &str, value: &str) -> mlua::Result<()> {
    let bad = || mlua::Error::runtime(format!("{name} cannot be {value:?}"));
    match (lent.side, name) {
        (Side::Request, ":authority") => value.clone_into(&mut lent.request.authority),
        (Side::Request, ":path") if value.starts_with('/') => value.clone_into(&mut lent.request.path),
        (Side::Request, ":method") => {
            lent.request.method = Method::from_bytes(value.as_bytes()).map_err(|_| bad())?;
        }
        (Side::Request, ":scheme") => {
            lent.request.scheme = if value == "https" { Scheme::Https } else { Scheme::Http };
        }
        (Side::Response, ":status") => {
            let status = value.parse().ok().and_then(|code| StatusCode::from_u16(code).ok());
            let (Some(status), Some(response)) = (status, &mut lent.response) else { return Err(bad()) };
            response.status = status;
        }
        (Side::Request | Side::Response, _) => return Err(bad()),
    }
    Ok(())
}

impl UserData for Headers {
    fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
        methods.add_method("get", |lua, this, name: String| {
            let value = this.get(&name.to_ascii_lowercase());
            value.map(|value| lua.create_string(value)).transpose()
        });
        methods.add_method("getAtIndex", |lua, this, (name, index): (String, usize)| {
            let mut lent = this.handle.lock();
            let values = this.map(&mut lent).map(|headers| headers.get_all(name.to_ascii_lowercase()));
            let value =
                values.and_then(|values| values.iter().nth(index).map(|value| value.as_bytes().to_vec()));
            value.map(|value| lua.create_string(value)).transpose()
        });
        methods.add_method("getNumValues", |_, this, name: String| {
            let mut lent = this.handle.lock();
            let name = name.to_ascii_lowercase();
            Ok(this.map(&mut lent).map_or(0, |headers| headers.get_all(name).iter().count()))
        });
        methods.add_method("add", |_, this, (name, value): (String, Value)| {
            this.set(&name.to_ascii_lowercase(), Some(&text(&value)?), false)
        });
        methods.add_method("replace", |_, this, (name, value): (String, Value)| {
            this.set(&name.to_ascii_lowercase(), Some(&text(&value)?), true)
        });
        methods
            .add_method("remove", |_, this, name: String| this.set(&name.to_ascii_lowercase(), None, true));
        methods.add_method("setHttp1ReasonPhrase", |_, _, _phrase: String| Ok(()));
        methods.add_meta_method(MetaMethod::Pairs, |lua, this, ()| {
            let mut all = this.pairs().into_iter();
            let next = lua.create_function_mut(move |lua, _: mlua::MultiValue| match all.next() {
                Some((name, value)) => Ok((Some(name), Some(lua.create_string(value)?))),
                None => Ok((None, None)),
            })?;
            Ok((next, mlua::Nil, mlua::Nil))
        });
    }
}

/// The head of a request that a script makes.
pub(super) fn from_table(table: &Table) -> mlua::Result<RequestHead> {
    let mut head = RequestHead::new(Method::GET, "", "");
    for pair in table.pairs::<mlua::String, Value>() {
        let (name, value) = pair?;
        let name = name.to_string_lossy().to_ascii_lowercase();
        let values = if let Value::Table(list) = &value {
            list.sequence_values::<Value>().map(|one| text(&one?)).collect::<Result<_, _>>()?
        } else {
            vec![text(&value)?]
        };
        for value in values {
            match name.as_str() {
                ":method" => {
                    head.method = Method::from_bytes(value.as_bytes()).map_err(mlua::Error::external)?
                }
                ":path" => head.path = value,
                ":authority" | "host" => head.authority = value,
                ":scheme" => head.scheme = if value == "https" { Scheme::Https } else { Scheme::Http },
                _ => {
                    let name = HeaderName::try_from(name.as_str()).map_err(mlua::Error::external)?;
                    head.headers.append(name, HeaderValue::try_from(value).map_err(mlua::Error::external)?);
                }
            }
        }
    }
    if head.path.is_empty() || head.authority.is_empty() || table.get::<Value>(":method")?.is_nil() {
        return Err(mlua::Error::runtime(
            "http call headers must include ':path', ':method', and ':authority'",
        ));
    }
    Ok(head)
}
