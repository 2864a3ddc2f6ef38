//! Directories, watched through one inotify instance.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::task::Tasks;

#[derive(Default)]
pub struct Directories {
    shared: Mutex<Option<Shared>>,
}

struct Shared {
    watches: Watches,
    known: Arc<Mutex<Known>>,
    reader: AbortHandle,
}

/// Who hears of which directory. Two paths may be of one directory, which has one descriptor.
type Known = HashMap<WatchDescriptor, Vec<Weak<Bell>>>;

/// Rings for one follower.
#[derive(Debug, Default)]
pub(super) struct Bell {
    /// Something has changed.
    pub(super) rung: Notify,
    /// Something was moved into its place: nobody is still writing it.
    pub(super) moved: Notify,
}

impl Directories {
    /// Rings `bell`, while it lives, whenever something in the directory was written, renamed, linked or removed,
    /// and when the directory itself has gone. To be called again after each ring: what is at that path may be
    /// another directory now.
    pub(super) fn watch(&self, dir: &Path, bell: &Arc<Bell>, tasks: &Tasks) -> io::Result<()> {
        let mut slot = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = match &mut *slot {
            Some(shared) => shared,
            None => slot.insert(Shared::start(tasks)?),
        };
        shared.watch(dir, bell)
    }
}

impl Shared {
    fn start(tasks: &Tasks) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let known = Arc::<Mutex<Known>>::default();
        #[expect(deprecated, reason = "an Inotify owns its descriptor; the successor would need unsafe code")]
        let readable = AsyncFd::new(inotify)?;
        let reader = tasks.spawn("inotify", read(readable, known.clone())).abort_handle();
        Ok(Self { watches, known, reader })
    }

    fn watch(&mut self, dir: &Path, bell: &Arc<Bell>) -> io::Result<()> {
        // The directory, not the file: an atomic rename makes a new file, a ConfigMap swaps a link beside it.
        let content = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        let itself = WatchMask::MOVE_SELF | WatchMask::DELETE_SELF | WatchMask::ONLYDIR;
        // Held from before there is a watch: no event may come before its bell is known.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = self.watches.add(dir, content | itself)?;
        let bells = known.entry(descriptor).or_default();
        let rings = |one: &Weak<Bell>| std::ptr::eq(one.as_ptr(), Arc::as_ptr(bell));
        if !bells.iter().any(rings) {
            bells.push(Arc::downgrade(bell));
        }
        forget(&mut known, &mut self.watches);
        Ok(())
    }
}

/// Ends the watches of directories that nobody follows any more.
fn forget(known: &mut Known, watches: &mut Watches) {
    known.retain(|descriptor, bells| {
        bells.retain(|bell| bell.strong_count() > 0);
        if bells.is_empty() {
            // It fails where the directory has gone, and its watch with it.
            let _ = watches.remove(descriptor.clone());
        }
        !bells.is_empty()
    });
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(mut inotify: AsyncFd<Inotify>, known: Arc<Mutex<Known>>) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok(mut ready) = inotify.readable_mut().await else { return };
        let read = ready.try_io(|inotify| {
            let events = inotify.get_mut().read_events(&mut buffer)?;
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    // Whose events were lost is not known.
                    known.values().flatten().for_each(|bell| ring(bell, false));
                }
                let moved = event.mask.contains(EventMask::MOVED_TO);
                known.get(&event.wd).into_iter().flatten().for_each(|bell| ring(bell, moved));
                if event.mask.contains(EventMask::IGNORED) {
                    known.remove(&event.wd);
                }
            }
            Ok(())
        });
        if let Ok(Err(error)) = read {
            log::error!("inotify: {error}; files are not followed any more");
            return;
        }
    }
}

fn ring(bell: &Weak<Bell>, moved: bool) {
    let Some(bell) = bell.upgrade() else { return };
    bell.rung.notify_one();
    if moved {
        bell.moved.notify_one();
    }
}
