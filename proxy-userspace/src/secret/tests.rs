use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use proxy_config::model::bootstrap::Resource;
use proxy_config::model::config_source::{ConfigSource, ConfigSourceKind};
use proxy_config::model::tls::{DataSource, Secret, SecretKind, SecretRef, ValidationContext};
use proxy_config::xds::Kind;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::task::Tasks;
use crate::telemetry::stats::Stats;
use crate::watch::Directories;
use crate::xds::{Nowhere, Subscribe};

const LONG: Duration = Duration::from_secs(30);

/// `name:file,file` is a secret of ticket keys, because those may be any bytes.
fn secret(text: &str, dir: &Path) -> Resource<Secret> {
    let (name, files) = text.split_once(':').unwrap();
    let keys = files.split(',').map(|file| DataSource::File(dir.join(file))).collect();
    let secret = Secret { name: name.into(), kind: SecretKind::TicketKeys(keys) };
    Resource { model: Arc::new(secret), raw: [].as_slice().into() }
}

/// An SDS file: `version secret secret`, or `bad`, which cannot be parsed.
fn response(text: &str, dir: &Path) -> String {
    let mut words = text.split_whitespace();
    let version = words.next().filter(|version| *version != "bad");
    let Some(version) = version else { return "no good".to_owned() };
    let mut text = format!("version_info: {version}\nresources:\n");
    for word in words {
        let (name, files) = word.split_once(':').unwrap();
        let files = files.split(',').map(|file| format!("{{filename: {}}}", dir.join(file).display()));
        let keys = files.collect::<Vec<_>>().join(", ");
        let url = Kind::Secret.type_url();
        writeln!(text, "- {{'@type': {url}, name: {name}, session_ticket_keys: {{keys: [{keys}]}}}}")
            .unwrap();
    }
    text
}

/// A directory with an SDS file, `sds`.
struct Rig {
    dir: TempDir,
    stats: Arc<Stats>,
    secrets: Secrets,
    parsed: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stats = Arc::new(Stats::new());
        let tasks = Tasks::new(&stats);
        let (sources, parsed) = crate::xds::testing::sources(&stats, &tasks);
        let directories = Arc::<Directories>::default();
        let secrets = Secrets::new(&[], (&stats, &tasks), &directories, &sources).unwrap();
        Self { dir, stats, secrets, parsed }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// By an atomic rename.
    fn write(&self, file: &str, text: &str) {
        let new = self.path(".new");
        let text = if file == "sds" { response(text, self.dir.path()) } else { text.to_owned() };
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, self.path(file)).unwrap();
    }

    fn slot_within(&self, name: &str, initial_fetch_timeout: Option<Duration>) -> Arc<Slot> {
        let kind = ConfigSourceKind::File { path: self.path("sds"), watched_directory: None };
        let source = Some(ConfigSource { kind, initial_fetch_timeout });
        self.secrets.slot(&SecretRef { name: name.into(), source })
    }

    fn slot(&self, name: &str) -> Arc<Slot> {
        self.slot_within(name, None)
    }

    fn stat(&self, name: &str) -> u64 {
        self.stats.value(&format!("sds.{name}")).unwrap()
    }
}

/// The keys' bytes, as one text.
fn text(slot: &Slot) -> String {
    match slot.content().as_deref() {
        Some(Loaded::TicketKeys(keys)) => {
            keys.iter().map(|key| String::from_utf8_lossy(&key.bytes).into_owned()).collect()
        }
        other => format!("{other:?}"),
    }
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = crate::clock::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn settled(slot: &Slot) {
    timeout(LONG, slot.settled()).await.unwrap();
}

#[tokio::test]
async fn a_secret_is_read_with_its_files_and_again_when_one_of_them_is_renamed_into_place() {
    let rig = Rig::new();
    rig.write("one", "1");
    rig.write("other", "2");
    rig.write("sds", "v1 mine:one,other yours:nowhere");
    let slot = rig.slot("mine");
    settled(&slot).await;
    assert_eq!(text(&slot), "12");
    rig.write("other", "3");
    until("the new file", || text(&slot) == "13").await;
    rig.write("sds", "v2 mine:other");
    until("the new secret", || text(&slot) == "3").await;
    until("its success", || rig.stat("mine.update_success") == 2).await;
    assert_eq!(rig.stat("mine.update_attempt"), 2);
    assert_eq!(rig.stat("mine.key_rotation_failed"), 0);
    assert_ne!(rig.stat("mine.version"), 0);
    assert_ne!(rig.stat("mine.update_time"), 0);
    assert_eq!(&*slot.answer().unwrap().version, "v2");
}

#[tokio::test]
async fn a_swap_of_a_mounted_secret_is_seen_as_a_whole() {
    let rig = Rig::new();
    for version in 0..4 {
        let data = rig.path(&format!("..{version}"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("one"), format!("[{version}")).unwrap();
        std::fs::write(data.join("other"), format!("{version}]")).unwrap();
    }
    let swap = |version: usize| {
        symlink(format!("..{version}"), rig.path("..data_tmp")).unwrap();
        std::fs::rename(rig.path("..data_tmp"), rig.path("..data")).unwrap();
    };
    swap(0);
    for file in ["one", "other"] {
        symlink(format!("..data/{file}"), rig.path(file)).unwrap();
    }
    rig.write("sds", "v1 mine:one,other");
    let slot = rig.slot("mine");
    settled(&slot).await;
    assert_eq!(text(&slot), "[00]");
    for version in 1..4 {
        swap(version);
        std::fs::remove_dir_all(rig.path(&format!("..{}", version - 1))).unwrap();
        until("the swap", || text(&slot) == format!("[{version}{version}]")).await;
    }
    assert_eq!(rig.stat("mine.key_rotation_failed"), 0);
}

#[tokio::test]
async fn files_in_a_directory_that_comes_later_are_read_then() {
    let rig = Rig::new();
    rig.write("sds", "v1 mine:certs/one");
    let slot = rig.slot("mine");
    settled(&slot).await;
    assert!(slot.content().is_none());
    assert_eq!(rig.stat("mine.update_rejected"), 1);
    std::fs::create_dir(rig.path("certs")).unwrap();
    rig.write("certs/one", "1");
    until("the directory", || text(&slot) == "1").await;
}

#[tokio::test]
async fn what_is_bad_leaves_the_old_content_in_use_and_is_counted() {
    let rig = Rig::new();
    rig.write("one", "1");
    rig.write("sds", "v1 mine:one");
    let slot = rig.slot("mine");
    settled(&slot).await;
    std::fs::remove_file(rig.path("one")).unwrap();
    until("the missing file", || rig.stat("mine.key_rotation_failed") > 0).await;
    rig.write("sds", "bad");
    until("the bad file", || rig.stat("mine.update_failure") == 1).await;
    rig.write("sds", "v2 yours:one");
    until("the other secret", || rig.stat("mine.update_rejected") == 1).await;
    rig.write("sds", "v3");
    until("no secret", || rig.stat("mine.update_rejected") == 2).await;
    rig.write("sds", "v4 mine:nowhere");
    until("files that are not there", || rig.stat("mine.update_rejected") == 3).await;
    std::fs::remove_file(rig.path("sds")).unwrap();
    until("no file", || rig.stat("mine.update_failure") == 2).await;
    assert_eq!(text(&slot), "1");
    rig.write("one", "2");
    rig.write("sds", "v5 mine:one");
    until("a good one", || text(&slot) == "2").await;
}

#[tokio::test]
async fn a_first_answer_that_is_bad_is_not_waited_for() {
    for bad in ["bad", "v1", "v1 yours:one", "v1 mine:nowhere"] {
        let rig = Rig::new();
        rig.write("one", "1");
        rig.write("sds", bad);
        let slot = rig.slot("mine");
        settled(&slot).await;
        assert!(slot.content().is_none(), "{bad}");
        rig.write("sds", "v2 mine:one");
        until("a good one", || text(&slot) == "1").await;
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_waited_for() {
    let rig = Rig::new();
    rig.write("one", "1");
    let slot = rig.slot("mine");
    until("an attempt", || rig.stat("mine.update_attempt") == 1).await;
    assert!(!slot.is_settled());
    rig.write("sds", "v1 mine:one");
    settled(&slot).await;
    assert_eq!(text(&slot), "1");
    assert_eq!(rig.stat("mine.init_fetch_timeout"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_has_not_come_in_time_is_given_up_and_used_when_it_comes() {
    let rig = Rig::new();
    rig.write("one", "1");
    let start = crate::clock::now();
    let (slot, patient) =
        (rig.slot_within("mine", Some(Duration::from_secs(15))), rig.slot_within("yours", None));
    slot.settled().await;
    assert!(start.elapsed() >= Duration::from_secs(15) && start.elapsed() < Duration::from_secs(16));
    assert!(slot.content().is_none());
    assert_eq!(rig.stat("mine.init_fetch_timeout"), 1);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert!(!patient.is_settled());
    // Time runs again: the kernel's word takes some.
    tokio::time::resume();
    rig.write("sds", "v1 mine:one yours:one");
    until("the file", || text(&slot) == "1" && patient.is_settled()).await;
    assert_eq!(rig.stat("mine.init_fetch_timeout"), 1);
}

#[tokio::test]
async fn slots_of_one_file_share_its_reading_and_end_with_who_holds_them() {
    let rig = Rig::new();
    rig.write("one", "1");
    let names: Vec<_> = (0..20).map(|n| format!("s{n}:one")).collect();
    rig.write("sds", &format!("v1 {}", names.join(" ")));
    let slots: Vec<_> = (0..20).map(|n| rig.slot(&format!("s{n}"))).collect();
    for slot in &slots {
        settled(slot).await;
        assert_eq!(text(slot), "1");
    }
    assert!(rig.parsed.load(Ordering::Relaxed) < 4, "{:?}", rig.parsed);
    assert!(Arc::ptr_eq(&slots[3], &rig.slot("s3")));
    assert!(!Arc::ptr_eq(&slots[3], &rig.slot_within("s3", Some(LONG))), "it is waited for otherwise");
    assert_eq!(rig.secrets.dynamic().len(), 20);
    drop(slots);
    assert!(rig.secrets.dynamic().is_empty());
    until("the end of its task", || rig.stats.value("sds.s3.update_success").is_none()).await;
}

/// Refuses some contents.
#[derive(Default)]
struct Judge {
    refuses: AtomicBool,
    told: AtomicUsize,
}

impl Subscriber for Judge {
    fn changed(&self) -> Result<(), String> {
        self.told.fetch_add(1, Ordering::Relaxed);
        if self.refuses.load(Ordering::Relaxed) { Err("I refuse".to_owned()) } else { Ok(()) }
    }
}

fn judge(slot: &Slot) -> Arc<Judge> {
    let judge = Arc::<Judge>::default();
    let subscriber: Arc<dyn Subscriber> = judge.clone();
    slot.subscribe(&subscriber);
    judge
}

#[tokio::test]
async fn what_its_users_refuse_is_rejected_and_the_next_one_is_taken() {
    let rig = Rig::new();
    rig.write("one", "1");
    rig.write("sds", "v1 mine:one");
    let slot = rig.slot("mine");
    let judge = judge(&slot);
    settled(&slot).await;
    judge.refuses.store(true, Ordering::Relaxed);
    rig.write("one", "2");
    until("the refusal", || rig.stat("mine.key_rotation_failed") == 1).await;
    rig.write("other", "3");
    rig.write("sds", "v2 mine:other");
    until("the refusal", || rig.stat("mine.update_rejected") == 1).await;
    assert_eq!(text(&slot), "1");
    judge.refuses.store(false, Ordering::Relaxed);
    rig.write("other", "4");
    until("the next one", || text(&slot) == "4").await;
}

#[tokio::test]
async fn a_first_content_that_is_refused_is_refused_again_until_it_is_good() {
    let rig = Rig::new();
    rig.write("one", "1");
    let slot = rig.slot("mine");
    let judge = judge(&slot);
    judge.refuses.store(true, Ordering::Relaxed);
    rig.write("sds", "v1 mine:one");
    until("the refusal", || rig.stat("mine.update_rejected") == 1).await;
    settled(&slot).await;
    rig.write("sds", "v2 mine:one");
    until("the second refusal", || rig.stat("mine.update_rejected") == 2).await;
    judge.refuses.store(false, Ordering::Relaxed);
    rig.write("sds", "v3 mine:one");
    until("the success", || rig.stat("mine.update_success") == 1).await;
    assert_eq!(text(&slot), "1");
}

#[test]
fn one_user_that_refuses_does_not_keep_the_others_from_what_is_new() {
    let keys = |text: &str| {
        let key = Material { bytes: text.as_bytes().into(), origin: "test".into() };
        Arc::new(Loaded::TicketKeys(vec![key]))
    };
    let slot = Slot::new("mine".into());
    let (one, other) = (judge(&slot), judge(&slot));
    slot.supply(keys("1")).unwrap();
    one.refuses.store(true, Ordering::Relaxed);
    assert_eq!(slot.supply(keys("2")).unwrap_err(), "I refuse");
    assert_eq!(text(&slot), "2");
    other.refuses.store(true, Ordering::Relaxed);
    slot.supply(keys("3")).unwrap_err();
    assert_eq!(text(&slot), "2");
    // Who has gone is not asked.
    drop((one, other));
    slot.supply(keys("4")).unwrap();
    assert_eq!(text(&slot), "4");
}

#[test]
fn a_first_content_stays_for_who_refuses_it_because_of_another_secret() {
    let slot = Slot::new("mine".into());
    let judge = judge(&slot);
    judge.refuses.store(true, Ordering::Relaxed);
    slot.supply(Arc::new(Loaded::Generic)).unwrap_err();
    assert!(slot.content().is_some() && !slot.is_settled());
}

fn made(statics: &[Resource<Secret>]) -> Result<Secrets, StaticError> {
    let stats = Arc::new(Stats::new());
    let nowhere: Arc<dyn Subscribe> = Arc::new(Nowhere);
    Secrets::new(statics, (&stats, &Tasks::new(&stats)), &Arc::default(), &nowhere)
}

#[test]
fn static_secrets_are_there_from_the_start_or_the_start_fails_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("one"), "1").unwrap();
    let one = secret("mine:one", dir.path());
    let secrets = made(std::slice::from_ref(&one)).unwrap();
    let named = |name: &str| SecretRef { name: name.into(), source: None };
    let slot = secrets.slot(&named("mine"));
    assert!(slot.is_settled());
    assert_eq!((text(&slot).as_str(), &slot.origin), ("1", &Origin::Static));
    let unknown = secrets.slot(&named("yours"));
    assert!(!unknown.is_settled());
    assert_eq!(unknown.origin, Origin::Unknown);
    assert!(secrets.dynamic().is_empty());

    let error = made(&[one.clone(), one]).map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "static secret mine: the name is given twice");
    let error = made(&[secret("mine:nowhere", dir.path())]).map(|_| ()).unwrap_err().to_string();
    let path = dir.path().join("nowhere").display().to_string();
    assert!(
        error.starts_with(&format!("static secret mine: keys: {path}: cannot be read: No such")),
        "{error}"
    );
}

mod expiry {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::drain::Drain;
    use crate::telemetry::stats::OwnStats;
    use crate::transport::{Certificate, Factory, Link, NotReady, TlsInfo, Transport};

    struct Judging(Arc<Slot>);

    impl Factory for Judging {
        fn create(&self, _: &Link<'_>) -> Result<Box<dyn Transport>, NotReady> {
            Err(NotReady)
        }

        fn secrets(&self, found: &mut Vec<Arc<Slot>>) {
            found.push(self.0.clone());
        }
    }

    fn context(depth: u32) -> Arc<Loaded> {
        let model = ValidationContext { max_verify_depth: Some(depth), ..ValidationContext::default() };
        Arc::new(Loaded::Validation(material::validation(&Arc::new(model)).unwrap()))
    }

    /// Valid for so many seconds from now on.
    fn certificate(seconds: i64) -> Option<Arc<Certificate>> {
        let now = crate::clock::wall().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Some(Arc::new(Certificate { not_after: now as i64 + seconds, ..Certificate::default() }))
    }

    struct Connection {
        slot: Arc<Slot>,
        drain: Drain,
        stats: Arc<OwnStats>,
        expiry: Expiry,
    }

    impl Connection {
        fn new() -> Self {
            let registry = Stats::new();
            let slot = Arc::new(Slot::new("ca".into()));
            slot.supply(context(1)).unwrap();
            let stats = OwnStats::of(&registry);
            let (tasks, drain_time) = (Tasks::new(&registry), Duration::from_millis(50));
            let expiry = Expiry { drain_time, tasks, stats: stats.clone() };
            Self { slot, drain: Drain::new(), stats, expiry }
        }

        /// Whether one with these certificates is cut soon.
        async fn is_cut(&self, tls: TlsInfo, meanwhile: impl FnOnce()) -> bool {
            let guard = self.drain.watch().guard();
            let mut lease = self.expiry.lease(&Judging(self.slot.clone()));
            // Not under TLS yet.
            lease.follow(&self.expiry, None, &guard);
            lease.follow(&self.expiry, Some(&tls), &guard);
            meanwhile();
            timeout(Duration::from_millis(3_500), guard.cut()).await.is_ok()
        }
    }

    #[tokio::test]
    async fn a_connection_is_drained_when_one_of_its_certificates_expires() {
        let connection = Connection::new();
        let tls = |local, peer| TlsInfo { local, peer, ..TlsInfo::default() };
        let (now, later, past) = (|| certificate(1), || certificate(1_000), || certificate(-5));
        let (own, peers, neither, before) = tokio::join!(
            connection.is_cut(tls(now(), later()), || {}),
            connection.is_cut(tls(later(), now()), || {}),
            connection.is_cut(tls(later(), None), || {}),
            connection.is_cut(tls(later(), past()), || {}),
        );
        assert_eq!((own, peers, neither), (true, true, false));
        assert!(!before, "one that was accepted although it had expired is not drained for that");
        assert_eq!(connection.stats.cert_expiry_drained.value(), 2);
    }

    #[tokio::test]
    async fn what_is_replaced_during_the_handshake_counts() {
        let connection = Connection::new();
        let guard = connection.drain.watch().guard();
        let mut lease = connection.expiry.lease(&Judging(connection.slot.clone()));
        connection.slot.supply(context(2)).unwrap();
        let tls = TlsInfo { peer: certificate(1_000), ..TlsInfo::default() };
        lease.follow(&connection.expiry, Some(&tls), &guard);
        timeout(LONG, guard.cut()).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_is_drained_when_what_its_peer_was_judged_by_is_replaced() {
        let connection = Connection::new();
        let tls = TlsInfo { local: certificate(1_000), peer: certificate(1_000), ..TlsInfo::default() };
        let replace = || connection.slot.supply(context(2)).unwrap();
        assert!(connection.is_cut(tls.clone(), replace).await);
        // It is judged by the new one.
        assert!(!connection.is_cut(tls.clone(), || {}).await);
        let anonymous = TlsInfo { peer: None, ..tls };
        assert!(!connection.is_cut(anonymous, || connection.slot.supply(context(3)).unwrap()).await);
    }
}
