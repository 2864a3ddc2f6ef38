//! Sources for tests, also of other modules.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use proxy_config::xds::Kind;
use proxy_config::xds::file::FileResponse;

use super::{Sources, SourcesEnv, Subscribe, file};
use crate::net::HostDial;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::watch::{Directories, Parse};

/// Without a control plane; with how often a file was parsed.
pub(crate) fn sources(stats: &Arc<Stats>, tasks: &Tasks) -> (Arc<dyn Subscribe>, Arc<AtomicUsize>) {
    let parsed = Arc::new(AtomicUsize::new(0));
    let count = parsed.clone();
    let open = move |kind: Kind, path: &Path| -> Parse<FileResponse> {
        let (mut read, count) = (file::open(kind, path), count.clone());
        Box::new(move |bytes| {
            count.fetch_add(1, Ordering::Relaxed);
            read(bytes)
        })
    };
    (Sources::reading(env(stats, tasks), Arc::new(open), 1 << 20), parsed)
}

pub(crate) fn env(stats: &Arc<Stats>, tasks: &Tasks) -> SourcesEnv {
    SourcesEnv {
        stats: stats.clone(),
        tasks: tasks.clone(),
        directories: Arc::<Directories>::default(),
        node: Bytes::new(),
        ads: None,
        dial: Arc::new(HostDial),
        connections: Arc::default(),
    }
}
