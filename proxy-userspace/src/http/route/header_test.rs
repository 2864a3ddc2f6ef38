//! A header matcher, compiled.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};
use proxy_config::model::http::HeaderMatcher;

use crate::http::{BuildError, RequestHead, ResponseHead, message};

/// A `HeaderMatcher` whose name need not be looked at again.
#[derive(Debug)]
pub struct HeaderTest {
    name: Name,
    matcher: HeaderMatcher,
}

/// A header or a pseudo-header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Header(HeaderName),
    /// `:path`, `host` and the like, which are not among the headers.
    Pseudo(Box<str>),
}

impl HeaderTest {
    pub fn new(model: &HeaderMatcher) -> Result<Self, BuildError> {
        Ok(Self { name: Name::new(&model.name)?, matcher: model.clone() })
    }

    pub fn all(models: &[HeaderMatcher]) -> Result<Box<[Self]>, BuildError> {
        models.iter().map(Self::new).collect()
    }

    pub fn is_match(&self, head: &RequestHead) -> bool {
        self.test(self.name.of(head).as_deref())
    }

    /// Of a response.
    pub fn is_match_response(&self, head: &ResponseHead) -> bool {
        let value = match &self.name {
            Name::Header(name) => joined(&head.headers, name),
            Name::Pseudo(name) => head.header(name),
        };
        self.test(value.as_deref())
    }

    fn test(&self, value: Option<&[u8]>) -> bool {
        // What is no UTF-8 is compared as such text can be.
        self.matcher.is_match(value.map(String::from_utf8_lossy).as_deref())
    }
}

impl Name {
    pub fn new(name: &str) -> Result<Self, BuildError> {
        let lower = name.to_ascii_lowercase();
        if lower.starts_with(':') || matches!(&*lower, "host" | "upgrade") {
            return Ok(Self::Pseudo(lower.into()));
        }
        header_name(&lower).map(Self::Header)
    }

    /// All values of it in a request.
    pub fn of<'a>(&self, head: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Header(name) => joined(&head.headers, name),
            Self::Pseudo(name) => head.header(name),
        }
    }

    /// The first value of it.
    pub fn first<'a>(&self, head: &'a RequestHead) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Header(name) => head.headers.get(name).map(|value| value.as_bytes().into()),
            Self::Pseudo(name) => head.header(name),
        }
    }
}

pub(super) fn header_name(name: &str) -> Result<HeaderName, BuildError> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| BuildError(format!("{name:?} is no name of a header")))
}

fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    message::joined(headers, name.as_str())
}
