//! What a level does with headers, compiled.

use http::{HeaderMap, HeaderName, HeaderValue};
use proxy_config::model::http::HeaderOption;
use proxy_config::model::http::header::{AppendAction, HeaderEdit};

use super::header_test::header_name;
use crate::http::BuildError;
use crate::telemetry::Entry;
use crate::telemetry::access_log::Text;

/// A compiled `HeaderEdit`.
#[derive(Debug, Default)]
pub struct Edit {
    remove: Box<[HeaderName]>,
    add: Box<[Addition]>,
}

/// A compiled `HeaderValueOption`.
#[derive(Debug)]
pub struct Addition {
    name: HeaderName,
    value: Source,
    append: AppendAction,
    keep_empty: bool,
}

#[derive(Debug)]
enum Source {
    Constant(HeaderValue),
    Text(Text),
}

/// Whose headers are edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Request,
    Response,
}

impl Edit {
    pub fn new(model: &HeaderEdit) -> Result<Self, BuildError> {
        Ok(Self {
            remove: model.remove.iter().map(|name| header_name(name)).collect::<Result<_, _>>()?,
            add: model.add.iter().map(Addition::new).collect::<Result<_, _>>()?,
        })
    }

    pub fn apply(&self, whose: Whose, entry: &mut Entry) {
        let Some(headers) = whose.headers(entry) else { return };
        for name in &self.remove {
            headers.remove(name);
        }
        apply(&self.add, whose, entry);
    }
}

/// As Envoy, all values and conditions are those of the headers as they were; then it is overwritten, then added.
pub fn apply(additions: &[Addition], whose: Whose, entry: &mut Entry) {
    if let [one] = additions {
        if let Some(value) = one.value(whose, entry) {
            one.put(whose, entry, value);
        }
        return;
    }
    let values: Vec<_> = additions.iter().map(|addition| addition.value(whose, entry)).collect();
    let mut later = Vec::new();
    for (addition, value) in additions.iter().zip(values) {
        match (value, addition.overwrites()) {
            (Some(value), true) => addition.put(whose, entry, value),
            (Some(value), false) => later.push((addition, value)),
            (None, _) => {}
        }
    }
    for (addition, value) in later {
        addition.put(whose, entry, value);
    }
}

impl Addition {
    pub fn new(model: &HeaderOption) -> Result<Self, BuildError> {
        let text = Text::new(&model.value).map_err(|error| BuildError(error.to_string()))?;
        let value = match text.constant() {
            Some(constant) => Source::Constant(constant_value(&model.name, &constant)?),
            None => Source::Text(text),
        };
        let name = header_name(&model.name)?;
        Ok(Self { name, value, append: model.append, keep_empty: model.keep_empty_value })
    }

    /// None where there is nothing to put.
    fn value(&self, whose: Whose, entry: &Entry) -> Option<HeaderValue> {
        let is_there = || whose.shown(entry).is_some_and(|headers| headers.contains_key(&self.name));
        let wanted = match self.append {
            AppendAction::AppendIfExistsOrAdd | AppendAction::OverwriteIfExistsOrAdd => true,
            AppendAction::AddIfAbsent => !is_there(),
            AppendAction::OverwriteIfExists => is_there(),
        };
        if !wanted {
            return None;
        }
        let value = match &self.value {
            Source::Constant(value) => value.clone(),
            // A value that no header can have is none.
            Source::Text(text) => HeaderValue::from_bytes(text.render(entry).as_bytes()).ok()?,
        };
        (self.keep_empty || !value.is_empty()).then_some(value)
    }

    fn overwrites(&self) -> bool {
        match self.append {
            AppendAction::OverwriteIfExistsOrAdd | AppendAction::OverwriteIfExists => true,
            AppendAction::AppendIfExistsOrAdd | AppendAction::AddIfAbsent => false,
        }
    }

    fn put(&self, whose: Whose, entry: &mut Entry, value: HeaderValue) {
        let Some(headers) = whose.headers(entry) else { return };
        if self.overwrites() {
            headers.insert(self.name.clone(), value);
        } else {
            headers.append(self.name.clone(), value);
        }
    }
}

impl Whose {
    fn headers(self, entry: &mut Entry) -> Option<&mut HeaderMap> {
        let http = entry.http.as_deref_mut()?;
        match self {
            Self::Request => Some(&mut http.request.headers),
            Self::Response => http.response.as_mut().map(|head| &mut head.headers),
        }
    }

    fn shown(self, entry: &Entry) -> Option<&HeaderMap> {
        let http = entry.http.as_deref()?;
        match self {
            Self::Request => Some(&http.request.headers),
            Self::Response => http.response.as_ref().map(|head| &head.headers),
        }
    }
}

fn constant_value(name: &str, text: &str) -> Result<HeaderValue, BuildError> {
    let value = HeaderValue::from_bytes(text.as_bytes());
    value.map_err(|_| BuildError(format!("{text:?} is no value of a header, {name}")))
}
