//! The thread that owns the registry: its calls block on the kernel, the data path must not.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use proxy_config::enrol::Workload;
use tokio::sync::oneshot;

use crate::clock;
use crate::workload::{Error, Origin, Registry, Summary, Wake};

/// How often the registry follows what nobody announces.
const TICK: Duration = Duration::from_millis(500);

/// How long an answer may wait for what is about to happen.
const A_MOMENT: Duration = Duration::from_millis(50);

enum Command {
    Replace(Origin, Vec<Workload>),
    Put(Box<Workload>, oneshot::Sender<Option<Summary>>),
    Remove(String, oneshot::Sender<Result<(), Error>>),
    List(oneshot::Sender<Vec<Summary>>),
    /// Something that was waited for has come.
    Look,
    DropUnwanted(oneshot::Sender<Result<(), Error>>),
    Stop {
        keep: bool,
    },
}

/// Talks to the thread. Every call answers `None` once it has stopped.
#[derive(Clone)]
pub struct Control {
    commands: Arc<mpsc::Sender<Command>>,
}

/// Makes the registry and starts its thread.
pub fn start(
    registry: impl FnOnce(Wake) -> Result<Registry, Error>,
) -> anyhow::Result<(Control, JoinHandle<()>)> {
    let (commands, inbox) = mpsc::channel();
    let commands = Arc::new(commands);
    // Weak, so that the registry does not keep its own thread.
    let sender = Arc::downgrade(&commands);
    let wake = move || {
        if let Some(sender) = sender.upgrade() {
            let _ = sender.send(Command::Look);
        }
    };
    let registry = registry(Wake(Arc::new(wake)))?;
    let thread =
        std::thread::Builder::new().name("control".to_owned()).spawn(move || run(registry, &inbox))?;
    Ok((Control { commands }, thread))
}

fn run(mut registry: Registry, inbox: &mpsc::Receiver<Command>) {
    let mut next = clock::now() + TICK;
    loop {
        match inbox.recv_timeout(next.saturating_duration_since(clock::now())) {
            Ok(Command::Stop { keep }) => return registry.shut_down(keep),
            Ok(command) => handle(&mut registry, command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return registry.shut_down(true),
        }
        if clock::now() >= next {
            registry.tick();
            next = clock::now() + TICK;
        }
    }
}

// Who asked may have gone away meanwhile: an answer that nobody takes is dropped.
fn handle(registry: &mut Registry, command: Command) {
    match command {
        Command::Replace(origin, wanted) => registry.replace(origin, wanted),
        Command::Put(spec, reply) => {
            let name = spec.name.as_str().to_owned();
            registry.put(*spec, Origin::Api);
            settle(registry, &name);
            let _ = reply.send(registry.list().into_iter().find(|s| s.name == name));
        }
        Command::Remove(name, reply) => {
            let _ = reply.send(registry.remove(&name));
        }
        Command::List(reply) => {
            let _ = reply.send(registry.list());
        }
        Command::DropUnwanted(reply) => {
            let _ = reply.send(registry.drop_unwanted());
        }
        Command::Look => registry.look(),
        Command::Stop { .. } => {}
    }
}

/// Most of what workloads bring waits for nothing: who asked for it is told the end of it.
fn settle(registry: &mut Registry, name: &str) {
    let until = clock::now() + A_MOMENT;
    while registry.is_warming(name) && clock::now() < until {
        std::thread::sleep(Duration::from_millis(1));
        registry.look();
    }
}

impl Control {
    /// Makes `wanted` all that `origin` asks for.
    pub fn replace(&self, origin: Origin, wanted: Vec<Workload>) {
        let _ = self.commands.send(Command::Replace(origin, wanted));
    }

    /// Enrols or changes one workload, for the admin API.
    pub async fn put(&self, spec: Workload) -> Option<Summary> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Put(Box::new(spec), reply)).ok()?;
        answer.await.ok()?
    }

    pub async fn remove(&self, name: String) -> Option<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Remove(name, reply)).ok()?;
        answer.await.ok()
    }

    pub async fn list(&self) -> Option<Vec<Summary>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::List(reply)).ok()?;
        answer.await.ok()
    }

    /// All sources have spoken: what is left of an earlier process is not wanted.
    pub async fn drop_unwanted(&self) -> Option<Result<(), Error>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::DropUnwanted(reply)).ok()?;
        answer.await.ok()
    }

    /// Ends the thread; `keep` leaves everything captured for the next daemon.
    pub fn stop(&self, keep: bool) {
        let _ = self.commands.send(Command::Stop { keep });
    }
}
