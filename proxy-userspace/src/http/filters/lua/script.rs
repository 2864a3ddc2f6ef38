//! A script and its interpreters.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use mlua::{Function, HookTriggers, Lua, LuaOptions, StdLib, VmState};

use super::handle::{Handle, Side};
use crate::http::BuildError;

/// Of one interpreter. A script that fills it fails.
const MOST_MEMORY: usize = 64 << 20;
/// How many instructions a script may take between two times that it waits: about a tenth of a second.
const MOST_INSTRUCTIONS: u64 = 10_000_000;
const LOOK_EVERY: u32 = 10_000;

pub(super) struct Script {
    code: Vec<u8>,
    request: bool,
    response: bool,
    /// Of each worker, made when it is first needed there.
    workers: Box<[OnceLock<Option<Vm>>]>,
}

struct Vm {
    request: Option<Function>,
    response: Option<Function>,
    taken: Arc<AtomicU64>,
    /// Functions are its.
    _lua: Lua,
}

impl Script {
    /// Runs it once, as Envoy does: what it does at its top level may fail.
    pub(super) fn new(code: &[u8], workers: usize) -> Result<Self, BuildError> {
        let vm = Vm::new(code).map_err(|error| BuildError(format!("script load error: {error}")))?;
        let (request, response) = (vm.request.is_some(), vm.response.is_some());
        let slots: Box<[OnceLock<Option<Vm>>]> = (0..workers.max(1)).map(|_| OnceLock::new()).collect();
        if let Some(first) = slots.first() {
            // Nobody else has it yet.
            let _ = first.set(Some(vm));
        }
        Ok(Self { code: code.to_vec(), request, response, workers: slots })
    }

    pub(super) fn sees(&self, side: Side) -> bool {
        match side {
            Side::Request => self.request,
            Side::Response => self.response,
        }
    }

    pub(super) async fn run(&self, side: Side, worker: usize, handle: Handle) -> mlua::Result<()> {
        let slot = self.workers.get(worker).or(self.workers.first());
        let vm = slot.and_then(|slot| slot.get_or_init(|| Vm::new(&self.code).ok()).as_ref());
        let Some(vm) = vm else { return Err(mlua::Error::runtime("the script cannot be loaded")) };
        let function = match side {
            Side::Request => &vm.request,
            Side::Response => &vm.response,
        };
        vm.taken.store(0, Ordering::Relaxed);
        match function {
            Some(function) => function.call_async::<()>(handle).await,
            None => Ok(()),
        }
    }
}

impl Vm {
    fn new(code: &[u8]) -> mlua::Result<Self> {
        let lua = Lua::new_with(StdLib::ALL_SAFE, LuaOptions::default())?;
        // Hooks are not called in code that was compiled.
        lua.load("if jit then jit.off() end").exec()?;
        lua.set_memory_limit(MOST_MEMORY)?;
        let taken = Arc::<AtomicU64>::default();
        let counter = taken.clone();
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(LOOK_EVERY), move |_, _| {
            let before = counter.fetch_add(LOOK_EVERY.into(), Ordering::Relaxed);
            if before > MOST_INSTRUCTIONS {
                return Err(mlua::Error::runtime("the script takes too long"));
            }
            Ok(VmState::Continue)
        })?;
        lua.load(code).set_name("=lua").exec()?;
        let function = |name: &str| lua.globals().get::<Option<Function>>(name);
        let (request, response) = (function("envoy_on_request")?, function("envoy_on_response")?);
        taken.store(0, Ordering::Relaxed);
        Ok(Self { request, response, taken, _lua: lua })
    }
}
