//! Directories, watched: one inotify instance for all EDS files, because the system allows few.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use inotify::{Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::task::Tasks;

#[derive(Default)]
pub(in crate::cluster) struct Directories {
    shared: Mutex<Option<Shared>>,
}

struct Shared {
    watches: Watches,
    known: Known,
    by_path: HashMap<PathBuf, watch::Sender<()>>,
}

type Known = Arc<Mutex<HashMap<WatchDescriptor, watch::Sender<()>>>>;

impl Directories {
    /// Changes whenever something in the directory was written, renamed or linked.
    pub(super) fn watch(&self, dir: &Path, tasks: &Tasks) -> io::Result<watch::Receiver<()>> {
        let mut slot = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = match &mut *slot {
            Some(shared) => shared,
            None => slot.insert(Shared::start(tasks)?),
        };
        if let Some(sender) = shared.by_path.get(dir) {
            return Ok(sender.subscribe());
        }
        // The directory, not the file: an atomic rename makes a new file, a ConfigMap swaps a link beside it.
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        let descriptor = shared.watches.add(dir, mask)?;
        let sender = watch::Sender::new(());
        let receiver = sender.subscribe();
        shared.known.lock().unwrap_or_else(PoisonError::into_inner).insert(descriptor, sender.clone());
        shared.by_path.insert(dir.to_owned(), sender);
        Ok(receiver)
    }
}

impl Shared {
    fn start(tasks: &Tasks) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let known = Known::default();
        #[expect(deprecated, reason = "an Inotify owns its descriptor; the successor would need unsafe code")]
        let readable = AsyncFd::new(inotify)?;
        tasks.spawn("inotify", read(readable, Arc::downgrade(&known)));
        Ok(Self { watches, known, by_path: HashMap::new() })
    }
}

/// Until the proxy that wanted it is gone.
async fn read(
    mut inotify: AsyncFd<Inotify>,
    known: std::sync::Weak<Mutex<HashMap<WatchDescriptor, watch::Sender<()>>>>,
) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok(mut ready) = inotify.readable_mut().await else { return };
        let Some(known) = known.upgrade() else { return };
        let read = ready.try_io(|inotify| {
            let events = inotify.get_mut().read_events(&mut buffer)?;
            let known = known.lock().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                if let Some(sender) = known.get(&event.wd) {
                    sender.send_replace(());
                }
            }
            Ok(())
        });
        if let Ok(Err(error)) = read {
            log::error!("inotify: {error}; EDS files are not followed any more");
            return;
        }
    }
}
