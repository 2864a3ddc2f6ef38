//! What goes by one name: what serves, and beside it what will when it is warm.

use crate::admin::view::ResourceView;
use crate::task::Abort;

/// The stages of a cluster, or of a listener.
pub(super) struct Stages<S> {
    /// Of the bootstrap: nothing that comes changes it, as in Envoy.
    pub(super) fixed: bool,
    pub(super) active: Option<Box<S>>,
    pub(super) warming: Option<Box<Warming<S>>>,
}

pub(super) struct Warming<S> {
    pub(super) stage: S,
    /// Tells it from another one of the same name that came later.
    pub(super) generation: u64,
    pub(super) _task: Abort,
}

impl<S> Default for Stages<S> {
    fn default() -> Self {
        Self { fixed: false, active: None, warming: None }
    }
}

impl<S> Stages<S> {
    pub(super) fn fixed(stage: S) -> Self {
        Self { fixed: true, active: Some(Box::new(stage)), warming: None }
    }

    /// The last that was said of it.
    pub(super) fn latest(&self) -> Option<&S> {
        self.warming.as_ref().map(|warming| &warming.stage).or(self.active.as_deref())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &S> {
        self.active.as_deref().into_iter().chain(self.warming.as_ref().map(|warming| &warming.stage))
    }

    /// What is warm now, unless another one has come meanwhile.
    pub(super) fn take_warm(&mut self, generation: u64) -> Option<S> {
        let warming = self.warming.take_if(|warming| warming.generation == generation)?;
        Some(warming.stage)
    }

    /// What serves, and what warms, as people see it.
    pub(super) fn views(
        &self,
        view: impl Fn(&S) -> Option<ResourceView>,
    ) -> (Option<ResourceView>, Option<ResourceView>) {
        let warming = self.warming.as_ref().map(|warming| &warming.stage);
        (self.active.as_deref().and_then(&view), warming.and_then(&view))
    }
}
