//! What a route says to filters, of all levels.

use std::sync::Arc;

use proxy_config::model::http::{PerFilter, PerFilters, PerRoute};

/// By the names of filters. Most routes share that of their virtual host, and most of those are empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(Option<Arc<[(Box<str>, Levels)]>>);

/// The most specific one first; never empty.
#[derive(Clone, Debug)]
struct Levels(Vec<PerFilter>);

impl Table {
    /// The same with a more specific level.
    pub(super) fn with(&self, level: &PerFilters) -> Self {
        if level.is_empty() {
            return self.clone();
        }
        let mut all: Vec<_> = self.0.iter().flat_map(|known| known.iter().cloned()).collect();
        for (name, said) in level.iter() {
            match all.iter_mut().find(|(known, _)| **known == **name) {
                Some((_, levels)) => levels.0.insert(0, said.clone()),
                None => all.push((name.as_str().into(), Levels(vec![said.clone()]))),
            }
        }
        Self(Some(all.into()))
    }

    /// What the most specific level says that says something.
    pub(super) fn config(&self, name: &str) -> Option<&PerRoute> {
        self.levels(name)?.iter().find_map(|level| level.config.as_ref())
    }

    /// What each level says, the least specific first.
    pub(super) fn configs(&self, name: &str) -> impl Iterator<Item = &PerRoute> {
        self.levels(name).unwrap_or_default().iter().rev().filter_map(|level| level.config.as_ref())
    }

    pub(super) fn disabled(&self, name: &str) -> Option<bool> {
        self.levels(name)?.first().map(|level| level.disabled)
    }

    fn levels(&self, name: &str) -> Option<&[PerFilter]> {
        let known = self.0.as_deref()?;
        known.iter().find(|(known, _)| **known == *name).map(|(_, levels)| levels.0.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use proxy_config::model::http::filters::Buffer;

    use super::*;

    fn said(name: &str, disabled: bool, bytes: Option<u32>) -> PerFilters {
        let config = bytes.map(|max| PerRoute::Buffer(Some(Buffer { max_request_bytes: max })));
        let mut level = PerFilters::new();
        level.insert(name.into(), PerFilter { disabled, config });
        level
    }

    #[test]
    fn the_most_specific_level_holds() {
        let bytes = |found: Option<&PerRoute>| match found {
            Some(PerRoute::Buffer(Some(buffer))) => Some(buffer.max_request_bytes),
            _ => None,
        };
        let all = Table::default().with(&said("a", true, None)).with(&PerFilters::new());
        assert_eq!((all.disabled("a"), all.disabled("b"), bytes(all.config("a"))), (Some(true), None, None));
        let host = all.with(&said("a", false, Some(1)));
        let route = host.with(&said("a", false, None)).with(&said("b", true, Some(2)));
        assert_eq!((route.disabled("a"), bytes(route.config("a"))), (Some(false), Some(1)));
        assert_eq!((route.disabled("b"), bytes(route.config("b"))), (Some(true), Some(2)));
        assert_eq!(host.disabled("b"), None);
        let both = host.with(&said("a", false, Some(3)));
        assert_eq!(both.configs("a").map(|one| bytes(Some(one))).collect::<Vec<_>>(), [Some(1), Some(3)]);
        assert_eq!(both.configs("c").count(), 0);
    }
}
