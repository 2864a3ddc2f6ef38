//! Files that are read once for all that follow them, and again whenever their directory changes.

use std::fmt;
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use tokio::sync::Semaphore;
use xxhash_rust::xxh64::xxh64;

use super::changes::directory_of;
use super::{Changes, Directories, Group, Together};
use crate::task::Tasks;

/// Follows a file.
pub trait Reader: Send + Sync + 'static {
    /// What the file says, parsed once for all that follow it.
    type Content: Send + Sync + 'static;
    /// As what it is read: those that read the same file as something else have their own reading.
    type Kind: Copy + Eq + Hash + Send + Sync + 'static;

    fn kind(&self) -> Self::Kind;

    /// The file was read: it has changed, or this follower is new.
    fn read(self: &Arc<Self>, content: Result<&Self::Content, &Unusable>);
}

/// A file's bytes to what it says, or to the reason of its refusal. Of one file, again and again.
pub type Parse<C> = Box<dyn FnMut(&[u8]) -> Result<C, String> + Send>;

/// Why a file says nothing.
#[derive(Debug)]
pub enum Unusable {
    /// It is not there; it may come.
    Missing(PathBuf),
    Unreadable(PathBuf, io::Error),
    Malformed(PathBuf, String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "{}: it is not there", path.display()),
            Self::Unreadable(path, why) => write!(f, "{}: {why}", path.display()),
            Self::Malformed(path, why) => write!(f, "{}: {why}", path.display()),
        }
    }
}

/// All files that are followed.
pub struct Files<R: Reader> {
    /// By the file, and the directory to watch.
    groups: Together<(PathBuf, PathBuf, R::Kind), R>,
    directories: Arc<Directories>,
}

impl<R: Reader> Files<R> {
    pub fn new(directories: &Arc<Directories>) -> Self {
        Self { groups: Together::default(), directories: directories.clone() }
    }

    /// Follows a file while the group is kept. Those that name the same one share its reading: each on its own
    /// would parse all of it. `watched`: whose moves say that the file has changed, where that is not its own
    /// directory. `parse`: of the first.
    pub fn join(
        &self,
        (path, watched): (&Path, Option<&Path>),
        reader: &Arc<R>,
        parse: impl FnOnce() -> Parse<R::Content>,
        tasks: &Tasks,
    ) -> Arc<Group<R>> {
        let dir = directory_of(path, watched);
        self.groups.join((path.to_owned(), dir.clone(), reader.kind()), reader, |group| {
            let mut changes = Changes::new(&self.directories, tasks);
            changes.follow(vec![dir]);
            let follow = Follow { group, path: path.to_owned(), parse: parse(), last: None };
            tasks.spawn("file", follow.run(changes)).abort_handle()
        })
    }
}

/// Files of this size take turns: what is made of their text is the most memory that a start takes.
const LARGE: usize = 1024 * 1024;
static TURN: Semaphore = Semaphore::const_new(1);

struct Follow<R: Reader> {
    group: Weak<Group<R>>,
    path: PathBuf,
    parse: Parse<R::Content>,
    /// The content that the followers know, by its length and hash.
    last: Option<(usize, u64)>,
}

impl<R: Reader> Follow<R> {
    /// Ends with the group, whose drop aborts this.
    async fn run(mut self, mut changes: Changes) {
        let mut again = true;
        loop {
            let Some(group) = self.group.upgrade() else { return };
            self.load(&group, again).await;
            let joined = group.joined();
            drop(group);
            again = tokio::select! {
                () = joined.notified() => false,
                () = changes.changed_or_moved() => true,
            };
        }
    }

    /// `again`: not only because followers have joined.
    async fn load(&mut self, group: &Group<R>, again: bool) {
        let text = tokio::fs::read(&self.path).await;
        let newcomers = group.newcomers();
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                // The same again would be news to those that have joined since.
                self.last = None;
                let readers = if again { group.members() } else { newcomers };
                let why = if error.kind() == io::ErrorKind::NotFound {
                    Unusable::Missing(self.path.clone())
                } else {
                    Unusable::Unreadable(self.path.clone(), error)
                };
                return readers.iter().for_each(|reader| reader.read(Err(&why)));
            }
        };
        let known = (text.len(), xxh64(&text, 0));
        let readers = if self.last == Some(known) { newcomers } else { group.members() };
        self.last = Some(known);
        if readers.is_empty() {
            return;
        }
        let large = text.len() >= LARGE;
        let _turn = if large { TURN.acquire().await.ok() } else { None };
        let parsed = (self.parse)(&text);
        // It may be megabytes, and what the readers make of it too.
        drop(text);
        match parsed {
            Ok(content) => readers.iter().for_each(|reader| reader.read(Ok(&content))),
            Err(reason) => {
                let why = Unusable::Malformed(self.path.clone(), reason);
                readers.iter().for_each(|reader| reader.read(Err(&why)));
            }
        }
    }
}
