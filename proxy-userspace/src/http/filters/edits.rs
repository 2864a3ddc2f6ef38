//! Changes of headers, compiled: what is added has a format, which reads the stream as it is then.

use std::borrow::Cow;

use http::header::HOST;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proxy_config::model::access_log::LogFormat;
use proxy_config::model::http::HeaderOption;
use proxy_config::model::http::header::{AppendAction, Format as Model, HeaderMutation};
use proxy_config::model::matcher::StringMatcher;

use crate::http::{BuildError, RequestHead, ResponseHead, Scheme};
use crate::telemetry::Entry;
use crate::telemetry::access_log::Format;

/// A text with command operators; most have none.
#[derive(Debug)]
pub(super) enum Text {
    Constant(Box<str>),
    Format(Format),
}

/// What is done with headers, in order.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<Edit>);

#[derive(Debug)]
enum Edit {
    Remove(HeaderName),
    RemoveMatching(StringMatcher),
    Set(Set),
    /// Of a name that is a pseudo-header, and cannot go.
    Nothing,
}

#[derive(Debug)]
struct Set {
    name: Name,
    value: Text,
    append: AppendAction,
    keep_empty: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Path,
    Authority,
    Method,
    Scheme,
    Status,
    Header(HeaderName),
}

impl Text {
    pub(super) fn new(model: &Model) -> Result<Self, BuildError> {
        match model.constant() {
            Some(text) => Ok(Self::Constant(text.into())),
            None => Self::of(&LogFormat::Text { format: model.as_str().into(), omit_empty_values: true }),
        }
    }

    pub(super) fn of(model: &LogFormat) -> Result<Self, BuildError> {
        Format::new(model).map(Self::Format).map_err(|error| BuildError(error.to_string()))
    }

    pub(super) fn render(&self, entry: &Entry) -> Cow<'_, [u8]> {
        match self {
            Self::Constant(text) => Cow::Borrowed(text.as_bytes()),
            Self::Format(format) => Cow::Owned(format.text(entry).into_bytes()),
        }
    }
}

impl Edits {
    pub(super) fn of_mutations(models: &[HeaderMutation]) -> Result<Self, BuildError> {
        models.iter().map(Edit::new).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn of_options(models: &[HeaderOption]) -> Result<Self, BuildError> {
        models.iter().map(|option| Set::new(option).map(Edit::Set)).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of the request itself.
    pub(super) fn request(&self, entry: &mut Entry) {
        for edit in &self.0 {
            match edit {
                Edit::Nothing => {}
                Edit::Set(set) => {
                    let Some(value) = set.value(entry) else { continue };
                    if let Some(http) = entry.http.as_deref_mut() {
                        set.on_request(&mut http.request, value);
                    }
                }
                Edit::Remove(_) | Edit::RemoveMatching(_) => {
                    if let Some(http) = entry.http.as_deref_mut() {
                        edit.remove(&mut http.request.headers);
                    }
                }
            }
        }
    }

    /// Of the response's head.
    pub(super) fn response(&self, entry: &mut Entry) {
        for edit in &self.0 {
            let value = match edit {
                Edit::Set(set) => set.value(entry),
                Edit::Nothing | Edit::Remove(_) | Edit::RemoveMatching(_) => None,
            };
            let Some(head) = entry.http.as_deref_mut().and_then(|http| http.response.as_mut()) else {
                return;
            };
            match (edit, value) {
                (Edit::Set(set), Some(value)) => set.on_response(head, value),
                (Edit::Remove(_) | Edit::RemoveMatching(_), _) => edit.remove(&mut head.headers),
                (Edit::Set(_) | Edit::Nothing, _) => {}
            }
        }
    }

    /// Of headers that stand by themselves: those of a local reply.
    pub(super) fn headers(&self, headers: &mut HeaderMap, entry: &Entry) {
        self.resolve(entry).apply(headers);
    }

    /// What they are for the stream as it is now: for trailers, which come when nobody has it at hand.
    pub(super) fn resolve(&self, entry: &Entry) -> Resolved {
        let each = self.0.iter().filter_map(|edit| match edit {
            Edit::Set(set) => {
                let Name::Header(name) = &set.name else { return None };
                Some(Done::Set(name.clone(), set.value(entry)?, set.append))
            }
            Edit::Remove(name) => Some(Done::Remove(name.clone())),
            Edit::RemoveMatching(matcher) => Some(Done::RemoveMatching(matcher.clone())),
            Edit::Nothing => None,
        });
        Resolved(each.collect())
    }
}

/// Edits whose values are known.
#[derive(Debug, Default)]
pub(super) struct Resolved(Vec<Done>);

#[derive(Debug)]
enum Done {
    Set(HeaderName, HeaderValue, AppendAction),
    Remove(HeaderName),
    RemoveMatching(StringMatcher),
}

impl Resolved {
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for done in &self.0 {
            match done {
                Done::Set(name, value, append) => put(headers, name, value.clone(), *append),
                Done::Remove(name) => drop(headers.remove(name)),
                Done::RemoveMatching(matcher) => remove_matching(headers, matcher),
            }
        }
    }
}

impl Edit {
    fn new(model: &HeaderMutation) -> Result<Self, BuildError> {
        Ok(match model {
            HeaderMutation::Remove(name) => match Name::new(name)? {
                Name::Header(name) => Self::Remove(name),
                Name::Path | Name::Authority | Name::Method | Name::Scheme | Name::Status => Self::Nothing,
            },
            HeaderMutation::Add(option) => Self::Set(Set::new(option)?),
            HeaderMutation::RemoveOnMatch(matcher) => Self::RemoveMatching(matcher.clone()),
        })
    }

    fn remove(&self, headers: &mut HeaderMap) {
        match self {
            Self::Remove(name) => drop(headers.remove(name)),
            Self::RemoveMatching(matcher) => remove_matching(headers, matcher),
            Self::Set(_) | Self::Nothing => {}
        }
    }
}

impl Set {
    fn new(model: &HeaderOption) -> Result<Self, BuildError> {
        Ok(Self {
            name: Name::new(&model.name)?,
            value: Text::new(&model.value)?,
            append: model.append,
            keep_empty: model.keep_empty_value,
        })
    }

    /// None: nothing is put. What no header may hold is not.
    fn value(&self, entry: &Entry) -> Option<HeaderValue> {
        let value = self.value.render(entry);
        if value.is_empty() && !self.keep_empty {
            return None;
        }
        HeaderValue::from_bytes(&value).ok()
    }

    fn on_request(&self, head: &mut RequestHead, value: HeaderValue) {
        // All but headers are always there.
        let overwrites = match self.append {
            AppendAction::OverwriteIfExists | AppendAction::OverwriteIfExistsOrAdd => true,
            AppendAction::AppendIfExistsOrAdd | AppendAction::AddIfAbsent => false,
        };
        let text = || value.to_str().map(str::to_owned).ok().filter(|text| !text.is_empty());
        match &self.name {
            Name::Header(name) => put(&mut head.headers, name, value, self.append),
            Name::Status => {}
            Name::Path if overwrites => head.path = text().unwrap_or_else(|| std::mem::take(&mut head.path)),
            Name::Authority if overwrites => {
                head.authority = text().unwrap_or_else(|| std::mem::take(&mut head.authority));
            }
            Name::Method if overwrites => {
                if let Ok(method) = Method::from_bytes(value.as_bytes()) {
                    head.method = method;
                }
            }
            Name::Scheme if overwrites => match value.as_bytes() {
                b"http" => head.scheme = Scheme::Http,
                b"https" => head.scheme = Scheme::Https,
                _ => {}
            },
            Name::Path | Name::Authority | Name::Method | Name::Scheme => {}
        }
    }

    fn on_response(&self, head: &mut ResponseHead, value: HeaderValue) {
        match &self.name {
            Name::Header(name) => put(&mut head.headers, name, value, self.append),
            Name::Status => {
                if let Ok(status) = StatusCode::from_bytes(value.as_bytes()) {
                    head.status = status;
                }
            }
            Name::Path | Name::Authority | Name::Method | Name::Scheme => {}
        }
    }
}

impl Name {
    fn new(name: &str) -> Result<Self, BuildError> {
        Ok(match name {
            ":path" => Self::Path,
            ":authority" => Self::Authority,
            ":method" => Self::Method,
            ":scheme" => Self::Scheme,
            ":status" => Self::Status,
            name => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(HOST) => Self::Authority,
                Ok(name) => Self::Header(name),
                Err(_) => return Err(BuildError(format!("{name:?} is no name of a header"))),
            },
        })
    }
}

pub(super) fn put(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue, append: AppendAction) {
    match append {
        AppendAction::AppendIfExistsOrAdd => {
            headers.append(name, value);
        }
        AppendAction::AddIfAbsent => {
            headers.entry(name).or_insert(value);
        }
        AppendAction::OverwriteIfExistsOrAdd => drop(headers.insert(name, value)),
        AppendAction::OverwriteIfExists => {
            if headers.contains_key(name) {
                headers.insert(name, value);
            }
        }
    }
}

fn remove_matching(headers: &mut HeaderMap, matcher: &StringMatcher) {
    let names: Vec<_> = headers.keys().filter(|name| matcher.is_match(name.as_str())).cloned().collect();
    names.iter().for_each(|name| drop(headers.remove(name)));
}
