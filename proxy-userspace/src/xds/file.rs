//! Files as sources: a `DiscoveryResponse` each, read again whenever its directory changes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use proxy_config::diagnostic::problems;
use proxy_config::diagnostic::{Diagnostic, Segment};
use proxy_config::xds::file::{FileResponse, Reader as FileReader};
use proxy_config::xds::{Kind, RawResource};
use tokio::time::sleep_until;

use super::{Consumer, Failure, Names, Subscription, Update};
use crate::clock::{self, Instant};
use crate::task::Tasks;
use crate::watch::{Directories, Files, Parse, Reader, Unusable};

pub(super) struct FileSources {
    files: Files<Follower>,
    tasks: Tasks,
    open: Open,
}

/// What reads a file of a kind.
pub(crate) type Open = Arc<dyn Fn(Kind, &Path) -> Parse<Judged<FileResponse>> + Send + Sync>;

/// What a file says, or why that is refused. What is no response at all is an error of the reading.
pub(crate) type Judged<T> = Result<T, String>;

impl FileSources {
    pub(super) fn new(directories: &Arc<Directories>, tasks: &Tasks, open: Open) -> Self {
        Self { files: Files::new(directories), tasks: tasks.clone(), open }
    }

    /// `watched`: whose moves say that the file has changed, where that is not its own directory.
    pub(super) fn subscribe(
        &self,
        (path, watched): (&Path, Option<&Path>),
        limit: Option<Duration>,
        (kind, names): (Kind, Names),
        consumer: &Arc<dyn Consumer>,
    ) -> Subscription {
        let follower = Arc::new(Follower {
            kind,
            names,
            consumer: Arc::downgrade(consumer),
            patience: limit.map(|limit| Patience { limit, since: clock::now(), tasks: self.tasks.clone() }),
            state: AtomicU8::new(NEW),
        });
        let parse = || {
            let mut parse = (self.open)(kind, path);
            let parse: Parse<Judged<Response>> =
                Box::new(move |bytes| parse(bytes).map(|judged| judged.map(Response::new)));
            parse
        };
        let group = self.files.join((path, watched), &follower, parse, &self.tasks);
        Subscription::new((group, follower))
    }
}

/// Reads YAML and JSON, and protobuf's own format where the file's name says so, as Envoy does.
pub(super) fn open(kind: Kind, path: &Path) -> Parse<Judged<FileResponse>> {
    let mut reader = FileReader::new(kind);
    let binary = path.extension().is_some_and(|extension| extension == "pb");
    let shown = path.display().to_string();
    Box::new(move |bytes| {
        let read = if binary {
            reader.read_binary(bytes)
        } else {
            let text = std::str::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
            reader.read(text)
        };
        let read = match read {
            Ok(read) => read,
            Err(found) if found.iter().all(of_a_resource) => {
                return Ok(Err(format!("{shown}: {}", problems(&found))));
            }
            Err(found) => return Err(problems(&found)),
        };
        // A file of ten thousand endpoints may say the same of each.
        if let Some(first) = read.warnings.first() {
            let (service, all) = (kind.service(), read.warnings.len());
            log::warn!("{service} file {shown}: {first} ({all} warnings in all)");
        }
        Ok(Ok(read))
    })
}

/// Something is wrong with a resource as a whole, and nothing with the text around it.
fn of_a_resource(found: &Diagnostic) -> bool {
    matches!(found.path.segments(), [Segment::Field(_), Segment::Index(_)])
}

/// One consumer of a file.
struct Follower {
    kind: Kind,
    names: Names,
    consumer: Weak<dyn Consumer>,
    /// None: the first answer is waited for for ever.
    patience: Option<Patience>,
    state: AtomicU8,
}

const NEW: u8 = 0;
/// The file was not there.
const WAITING: u8 = 1;
/// It has said something, good or bad.
const ANSWERED: u8 = 2;

/// How long a first answer is waited for.
struct Patience {
    limit: Duration,
    since: Instant,
    tasks: Tasks,
}

/// A response that was read once for all.
struct Response {
    read: FileResponse,
    /// Of two resources of one name, the first counts.
    by_name: HashMap<Arc<str>, usize>,
}

impl Response {
    fn new(read: FileResponse) -> Self {
        let mut by_name = HashMap::with_capacity(read.resources.len());
        for (index, resource) in read.resources.iter().enumerate() {
            by_name.entry(resource.name.clone()).or_insert(index);
        }
        Self { read, by_name }
    }

    fn of(&self, names: &Names) -> &[RawResource] {
        match names {
            Names::All => &self.read.resources,
            Names::One(name) => {
                let found = self.by_name.get(name).and_then(|index| self.read.resources.get(*index));
                found.map_or(&[], std::slice::from_ref)
            }
        }
    }
}

impl Reader for Follower {
    type Content = Judged<Response>;
    type Kind = Kind;

    fn kind(&self) -> Kind {
        self.kind
    }

    fn read(self: &Arc<Self>, content: Result<&Judged<Response>, &Unusable>) {
        let Some(consumer) = self.consumer.upgrade() else { return };
        match content {
            Ok(Err(why)) => {
                self.state.store(ANSWERED, Ordering::Release);
                consumer.failed(&Failure::Refused(why.clone()));
            }
            Ok(Ok(response)) => {
                self.state.store(ANSWERED, Ordering::Release);
                let update = Update {
                    version: &response.read.version,
                    resources: response.of(&self.names),
                    removed: &[],
                    whole: true,
                    response: &response.read.resources,
                };
                // A file is told nothing; the consumer has said and counted it.
                let _ = consumer.update(&update);
            }
            Err(why @ Unusable::Missing(_)) => {
                consumer.failed(&Failure::Missing(why.to_string()));
                self.wait();
            }
            Err(why @ (Unusable::Unreadable(..) | Unusable::Malformed(..))) => {
                self.state.store(ANSWERED, Ordering::Release);
                consumer.failed(&Failure::Unreadable(why.to_string()));
            }
        }
    }
}

impl Follower {
    /// Only those whose file is not there have a timer: there are thousands that share one.
    fn wait(self: &Arc<Self>) {
        let first = self.state.compare_exchange(NEW, WAITING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first && let Some(patience) = &self.patience {
            let deadline = patience.since.checked_add(patience.limit);
            let wait = give_up(deadline, patience.limit, Arc::downgrade(self));
            patience.tasks.spawn("initial_fetch", wait);
        }
    }
}

/// Tells who waits for a first answer that there was none in time.
async fn give_up(deadline: Option<Instant>, limit: Duration, follower: Weak<Follower>) {
    let Some(deadline) = deadline else { return };
    sleep_until(deadline).await;
    if let Some(follower) = follower.upgrade()
        && follower.state.load(Ordering::Acquire) == WAITING
        && let Some(consumer) = follower.consumer.upgrade()
    {
        consumer.failed(&Failure::TimedOut(limit));
    }
}
