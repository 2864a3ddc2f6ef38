use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;

const LONG: Duration = Duration::from_secs(30);
/// Longer than a change needs to be told.
const QUIET: Duration = Duration::from_millis(200);

fn changes(dirs: &[&Path]) -> Changes {
    let mut changes = Changes::new(&Arc::default(), &Tasks::new(&Stats::new()));
    changes.follow(dirs.iter().map(|dir| dir.to_path_buf()).collect());
    changes
}

async fn changed(changes: &mut Changes) {
    timeout(LONG, changes.changed()).await.unwrap();
}

async fn nothing(changes: &mut Changes) {
    assert!(timeout(QUIET, changes.changed()).await.is_err(), "nothing has changed");
}

#[tokio::test]
async fn writes_renames_and_removals_are_changes_of_each_directory() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut changes = changes(&[one.path(), other.path()]);
    nothing(&mut changes).await;
    std::fs::write(one.path().join("a"), "a").unwrap();
    changed(&mut changes).await;
    nothing(&mut changes).await;
    std::fs::rename(one.path().join("a"), other.path().join("b")).unwrap();
    changed(&mut changes).await;
    std::fs::remove_file(other.path().join("b")).unwrap();
    changed(&mut changes).await;
    nothing(&mut changes).await;
}

#[tokio::test]
async fn a_change_is_not_lost_where_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut changes = changes(&[dir.path()]);
    assert!(!changes.again());
    std::fs::write(dir.path().join("a"), "a").unwrap();
    // Dropped while it waits for the writer to finish.
    for _ in 0..20 {
        assert!(timeout(Duration::from_millis(5), changes.changed()).await.is_err());
    }
    assert!(changes.again());
    changed(&mut changes).await;
    assert!(!changes.again());
}

#[tokio::test]
async fn one_directory_by_two_names_is_heard_of_by_both() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    let real = dir.path().join("real");
    std::fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    let directories = Arc::default();
    let tasks = Tasks::new(&Stats::new());
    let follow = |path: &Path| {
        let mut changes = Changes::new(&directories, &tasks);
        changes.follow(vec![path.to_owned()]);
        changes
    };
    let (mut one, mut other) = (follow(&real), follow(&link));
    std::fs::write(real.join("a"), "a").unwrap();
    changed(&mut one).await;
    changed(&mut other).await;
    // Who goes away takes nothing from the others.
    drop(other);
    let _third = follow(dir.path());
    std::fs::write(real.join("a"), "b").unwrap();
    changed(&mut one).await;
}

#[tokio::test]
async fn a_directory_that_comes_goes_and_comes_again() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("certs");
    let mut changes = changes(&[&dir]);
    nothing(&mut changes).await;
    std::fs::create_dir(&dir).unwrap();
    changed(&mut changes).await;
    std::fs::write(dir.join("a"), "a").unwrap();
    changed(&mut changes).await;
    // Another one takes its place: the old one is still there, under another name.
    std::fs::rename(&dir, root.path().join("old")).unwrap();
    changed(&mut changes).await;
    std::fs::create_dir(&dir).unwrap();
    changed(&mut changes).await;
    std::fs::write(dir.join("a"), "a").unwrap();
    changed(&mut changes).await;
    std::fs::remove_dir_all(&dir).unwrap();
    changed(&mut changes).await;
}

#[tokio::test]
async fn a_link_to_a_directory_is_followed_to_where_it_leads_now() {
    let root = tempfile::tempdir().unwrap();
    for version in ["1", "2"] {
        std::fs::create_dir(root.path().join(version)).unwrap();
    }
    let data = root.path().join("..data");
    symlink("1", &data).unwrap();
    let mut changes = changes(&[&data]);
    symlink("2", root.path().join("new")).unwrap();
    std::fs::rename(root.path().join("new"), &data).unwrap();
    // As the kubelet does, once the link is swapped.
    std::fs::remove_dir(root.path().join("1")).unwrap();
    changed(&mut changes).await;
    std::fs::write(root.path().join("2/a"), "a").unwrap();
    changed(&mut changes).await;
}

/// Remembers what it has read.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Reader for Log {
    type Content = String;
    type Kind = ();

    fn kind(&self) {}

    fn read(self: &Arc<Self>, content: Result<&String, &Unusable>) {
        self.0.lock().unwrap().push(match content {
            Ok(content) => content.clone(),
            Err(Unusable::Missing(_)) => "missing".to_owned(),
            Err(Unusable::Unreadable(_, why)) => format!("unreadable: {why}"),
            Err(Unusable::Malformed(_, why)) => format!("malformed: {why}"),
        });
    }
}

impl Log {
    fn last(&self) -> String {
        self.0.lock().unwrap().last().cloned().unwrap_or_default()
    }

    async fn until(&self, what: &str) {
        let start = crate::clock::now();
        while self.last() != what {
            assert!(start.elapsed() < LONG, "{what}: {:?}", self.0.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn a_file_is_parsed_once_for_all_and_told_to_who_comes_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let files = Files::new(&Arc::default());
    let tasks = Tasks::new(&Stats::new());
    let parsed = Arc::new(AtomicUsize::new(0));
    let count = parsed.clone();
    let parse = || -> Parse<String> {
        let count = count.clone();
        Box::new(move |bytes| {
            count.fetch_add(1, Ordering::Relaxed);
            let text = String::from_utf8_lossy(bytes).into_owned();
            if text == "bad" { Err("no good".to_owned()) } else { Ok(text) }
        })
    };
    let readers: Vec<_> = (0..10).map(|_| Arc::<Log>::default()).collect();
    let join = |reader| files.join((&path, None), reader, parse, &tasks);
    let groups: Vec<_> = readers.iter().map(join).collect();
    readers[0].until("missing").await;
    std::fs::write(&path, "one").unwrap();
    for reader in &readers {
        reader.until("one").await;
    }
    assert_eq!(parsed.load(Ordering::Relaxed), 1);
    let late = Arc::<Log>::default();
    let group = join(&late);
    late.until("one").await;
    assert!(Arc::ptr_eq(&group, &groups[0]));
    // The same text is no news.
    std::fs::write(&path, "one").unwrap();
    std::fs::write(&path, "bad").unwrap();
    late.until("malformed: no good").await;
    assert_eq!(*late.0.lock().unwrap(), ["one", "malformed: no good"]);
    std::fs::remove_file(&path).unwrap();
    late.until("missing").await;
}
