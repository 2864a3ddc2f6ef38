//! What one follower wants to hear of: changes in some directories.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Directories;
use super::directories::Bell;
use crate::task::Tasks;

/// A writer that is not atomic sends several events: wait for it to finish.
const SETTLE: Duration = Duration::from_millis(30);
/// How often a directory that cannot be watched is tried again: it may be mounted later.
const RETRY: Duration = Duration::from_secs(1);

pub struct Changes {
    directories: Arc<Directories>,
    tasks: Tasks,
    wanted: Vec<PathBuf>,
    /// One of them is not watched.
    lacking: bool,
    bell: Arc<Bell>,
    /// It has rung, and nobody was told yet.
    rung: bool,
}

impl Changes {
    pub fn new(directories: &Arc<Directories>, tasks: &Tasks) -> Self {
        Self {
            directories: directories.clone(),
            tasks: tasks.clone(),
            wanted: Vec::new(),
            lacking: false,
            bell: Arc::default(),
            rung: false,
        }
    }

    /// Follows these directories from now on, and no others.
    pub fn follow(&mut self, directories: Vec<PathBuf>) {
        if self.wanted != directories {
            // Another bell: the directories that only the old one is for are forgotten.
            self.bell = Arc::default();
            self.wanted = directories;
            self.lacking = false;
            self.arm();
        }
    }

    /// Resolves once something has changed and come to rest. What has changed meanwhile is not lost where this is
    /// dropped.
    pub async fn changed(&mut self) {
        self.rings().await;
        sleep(SETTLE).await;
        self.over();
    }

    /// As [`Self::changed`], but at once where something was moved into its place, for what one file says all of.
    pub async fn changed_or_moved(&mut self) {
        self.rings().await;
        // It is only about not waiting.
        let _ = timeout(SETTLE, self.bell.moved.notified()).await;
        self.over();
    }

    async fn rings(&mut self) {
        while !self.rung {
            tokio::select! {
                () = self.bell.rung.notified() => self.rung = true,
                () = sleep(RETRY), if self.lacking => {
                    self.arm();
                    // What is in it was not seen before.
                    self.rung = !self.lacking;
                }
            }
        }
    }

    /// What rang until now is over. What is at those paths may be other directories.
    fn over(&mut self) {
        self.again();
        self.rung = false;
        self.arm();
    }

    /// Something has changed since [`Self::changed`] has resolved.
    pub fn again(&mut self) -> bool {
        self.rung |= pin!(self.bell.rung.notified()).enable();
        self.rung
    }

    fn arm(&mut self) {
        let lacked = std::mem::take(&mut self.lacking);
        for dir in &self.wanted {
            if let Err(error) = self.directories.watch(dir, &self.bell, &self.tasks) {
                self.lacking = true;
                if !lacked {
                    log::warn!("{} cannot be watched: {error}; it is tried again", dir.display());
                }
            }
        }
    }
}

/// The directory whose changes tell of a file: the one that was named, else the file's own.
pub fn directory_of(file: &Path, watched: Option<&Path>) -> PathBuf {
    let dir = watched.or_else(|| file.parent()).unwrap_or(Path::new(""));
    if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir.to_owned() }
}
