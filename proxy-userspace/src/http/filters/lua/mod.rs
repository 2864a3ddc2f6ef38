//! `envoy.filters.http.lua`: scripts that see requests and responses, by Envoy's handle API.
//!
//! A script has an interpreter on each worker; each stream runs in a coroutine of it, which yields where it waits for a
//! body or for another service. A script that fails is counted and logged, and its request goes on, as in Envoy; one
//! that runs for too long or takes too much memory fails.

mod handle;
mod headers;
mod info;
mod script;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use proxy_config::model::http::Content;
use proxy_config::model::http::filters::{Lua as Model, LuaOverride};
use proxy_config::model::metadata::Struct;

use self::handle::{Handle, Side};
use self::script::Script;
use super::{FilterCx, RouteConfig};
use crate::http::filter::{Filter, Step, Stop, StreamFilter};
use crate::http::{BuildError, Stream};
use crate::telemetry::stats::stats_block;

stats_block! {
    /// `http.<prefix>.lua.<stat_prefix>`
    pub(super) struct LuaStats {
        counter errors;
        counter executions;
    }
}

pub(super) struct Lua {
    name: Arc<str>,
    code: Option<Arc<Script>>,
    named: HashMap<Arc<str>, Arc<Script>>,
    clear_route_cache: bool,
    context: Arc<Struct>,
    shared: Arc<Shared>,
}

/// What all streams need.
struct Shared {
    stats: Arc<LuaStats>,
    workers: usize,
    /// Of routes that bring code of their own, by the code.
    routes: Mutex<HashMap<Vec<u8>, Option<Arc<Script>>>>,
}

impl Lua {
    pub(super) fn new(model: &Model, cx: &FilterCx<'_>) -> Result<Self, BuildError> {
        let prefix = match &*model.stat_prefix {
            "" => format!("{}.lua", cx.prefix),
            own => format!("{}.lua.{own}", cx.prefix),
        };
        let workers = cx.parts.cluster.tasks.crew().len();
        let compile = |content: &Content| Script::new(&read(content)?, workers).map(Arc::new);
        let named = model.named.iter().map(|(name, content)| Ok((name.clone(), compile(content)?)));
        Ok(Self {
            name: cx.name.clone(),
            code: model.code.as_ref().map(compile).transpose()?,
            named: named.collect::<Result<_, BuildError>>()?,
            clear_route_cache: model.clear_route_cache,
            context: Arc::new(model.filter_context.clone()),
            shared: Arc::new(Shared {
                stats: cx.parts.cluster.stats.block(prefix),
                workers,
                routes: Mutex::default(),
            }),
        })
    }

    /// The route's, also an empty one, or the filter's own.
    fn context(&self, stream: &Stream) -> Arc<Struct> {
        match stream.known_route().and_then(|route| route.filters().config(&self.name)) {
            Some(RouteConfig::Lua(said)) => Arc::new(said.filter_context.clone()),
            Some(_) | None => self.context.clone(),
        }
    }

    /// What the route says, or the filter's own.
    fn script(&self, stream: &Stream) -> Option<Arc<Script>> {
        let route = stream.known_route().and_then(|route| route.filters().config(&self.name));
        let Some(RouteConfig::Lua(said)) = route else { return self.code.clone() };
        match &said.code {
            LuaOverride::None => self.code.clone(),
            LuaOverride::Disabled => None,
            LuaOverride::Named(name) => self.named.get(name).cloned(),
            LuaOverride::Code(content) => self.shared.of_route(content),
        }
    }
}

impl Shared {
    /// Compiled when it is first met: a code that cannot be is counted, once.
    fn of_route(&self, content: &Content) -> Option<Arc<Script>> {
        let Ok(code) = read(content) else {
            self.stats.errors.inc();
            return None;
        };
        let mut known = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let script = known.entry(code).or_insert_with_key(|code| match Script::new(code, self.workers) {
            Ok(script) => Some(Arc::new(script)),
            Err(why) => {
                log::error!("lua: {why}");
                self.stats.errors.inc();
                None
            }
        });
        script.clone()
    }
}

fn read(content: &Content) -> Result<Vec<u8>, BuildError> {
    match content {
        Content::Inline(bytes) => Ok(bytes.to_vec()),
        Content::File(path) => {
            std::fs::read(path).map_err(|error| BuildError(format!("{}: {error}", path.display())))
        }
        Content::Environment(name) => match std::env::var(&**name) {
            Ok(code) => Ok(code.into_bytes()),
            Err(error) => Err(BuildError(format!("environment variable {name}: {error}"))),
        },
    }
}

impl Filter for Lua {
    fn begin(&self, stream: &Stream) -> Option<Box<dyn StreamFilter>> {
        let script = self.script(stream)?;
        if !script.sees(Side::Request) && !script.sees(Side::Response) {
            return None;
        }
        Some(Box::new(One {
            script,
            name: self.name.clone(),
            shared: self.shared.clone(),
            clear_route_cache: self.clear_route_cache,
            context: self.context(stream),
        }))
    }
}

struct One {
    script: Arc<Script>,
    name: Arc<str>,
    shared: Arc<Shared>,
    clear_route_cache: bool,
    context: Arc<Struct>,
}

impl One {
    async fn run(&mut self, side: Side, stream: &mut Stream) -> Result<(), Stop> {
        self.shared.stats.executions.inc();
        let handle = Handle::lend(side, stream, &self.name, &self.context);
        let ran = self.script.run(side, stream.conn.worker, handle.clone()).await;
        let (changed, reply) = handle.give_back(stream);
        if side == Side::Request && changed && self.clear_route_cache {
            stream.clear_route();
        }
        if let Some(stop) = reply {
            return Err(stop);
        }
        if let Err(error) = ran {
            self.shared.stats.errors.inc();
            log::error!("script log: {error}");
        }
        Ok(())
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        if self.script.sees(Side::Request) { Step::wait(self.run(Side::Request, stream)) } else { Step::Next }
    }

    fn response<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        if self.script.sees(Side::Response) {
            Step::wait(self.run(Side::Response, stream))
        } else {
            Step::Next
        }
    }
}

#[cfg(test)]
mod tests;
