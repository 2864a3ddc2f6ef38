//! The enrolment document: which workloads there are, and each one's policy.
//!
//! YAML or JSON, the whole document or one entry, parsed once; a problem says where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, PathBuf};

use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeStruct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::{Location, Spanned};

use crate::policy::{FLAGS, Note, Policy, RunOptions, words};

/// The whole document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Document {
    pub workloads: Vec<Workload>,
}

/// One workload. It is written back with its policy in canonical flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: Name,
    /// The directory of the workload's cgroup: absolute.
    pub cgroup: PathBuf,
    /// A path to its network namespace: absolute.
    pub netns: PathBuf,
    /// The directory of the proxy's cgroup, where the proxy is not the daemon.
    pub proxy_cgroup: Option<PathBuf>,
    pub policy: Policy,
    /// The file of its own bootstrap: absolute. Without one it runs on the daemon's configuration.
    pub bootstrap: Option<PathBuf>,
    /// Flags that were given and have no effect. Not written back.
    pub notes: Vec<Note>,
}

/// A workload's name: 1 to 63 of `a-z`, `0-9`, `-` and `_`, the first one a letter or a digit.
///
/// It names a pin directory, and bpffs allows no dot there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(String);

/// What is wrong with a document, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct Problem {
    /// Line, column and field, as far as they are known.
    pub place: String,
    pub reason: String,
}

impl Document {
    /// Reads a whole document, YAML or JSON.
    ///
    /// # Errors
    /// Text that is no such document; else every problem of every workload at once.
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        Self::parse_with(text, "")
    }

    /// As [`Document::parse`]; `defaults` are the flags of workloads that have no `policy` of their own.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn parse_with(text: &str, defaults: &str) -> Result<Self, Vec<Problem>> {
        let raw: RawDocument = serde_saphyr::from_str(text).map_err(syntax)?;
        let mut problems = Vec::new();
        let mut workloads = Vec::new();
        let mut seen = Seen::default();
        for (index, entry) in raw.workloads.iter().enumerate() {
            let at = At { problems: &mut problems, entry: format!("workloads[{index}]"), defaults };
            workloads.extend(lower(entry, at, &mut seen));
        }
        if problems.is_empty() { Ok(Self { workloads }) } else { Err(problems) }
    }
}

impl Workload {
    /// A workload without a proxy cgroup, without a bootstrap and without notes.
    ///
    /// # Errors
    /// As [`Name::new`].
    pub fn new(name: &str, cgroup: PathBuf, netns: PathBuf, policy: Policy) -> Result<Self, String> {
        let name = Name::new(name)?;
        Ok(Self { name, cgroup, netns, proxy_cgroup: None, policy, bootstrap: None, notes: Vec::new() })
    }

    /// Reads one entry, YAML or JSON, as `--workload` and the admin API take it.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        Self::parse_with(text, "")
    }

    /// As [`Workload::parse`]; `defaults` are the flags where the entry has no `policy` of its own.
    ///
    /// # Errors
    /// As [`Document::parse`].
    pub fn parse_with(text: &str, defaults: &str) -> Result<Self, Vec<Problem>> {
        let raw: RawWorkload = serde_saphyr::from_str(text).map_err(syntax)?;
        let mut problems = Vec::new();
        let at = At { problems: &mut problems, entry: "workload".into(), defaults };
        match lower(&raw, at, &mut Seen::default()) {
            Some(workload) if problems.is_empty() => Ok(workload),
            _ => Err(problems),
        }
    }
}

impl Serialize for Workload {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let Self { name, cgroup, netns, proxy_cgroup, policy, bootstrap, .. } = self;
        let optional = [("proxy_cgroup", proxy_cgroup), ("bootstrap", bootstrap)];
        let given = optional.iter().filter(|(_, path)| path.is_some()).count();
        let mut out = s.serialize_struct("Workload", 4 + given)?;
        out.serialize_field("name", name)?;
        out.serialize_field("cgroup", cgroup)?;
        out.serialize_field("netns", netns)?;
        out.serialize_field("policy", &policy.to_string())?;
        for (name, path) in optional {
            match path {
                Some(path) => out.serialize_field(name, path)?,
                None => out.skip_field(name)?,
            }
        }
        out.end()
    }
}

impl Name {
    /// # Errors
    /// A name that is none, and what a name may be.
    pub fn new(name: &str) -> Result<Self, String> {
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if first && name.len() <= 63 && name.bytes().all(rest) {
            return Ok(Self(name.into()));
        }
        let dot =
            if name.contains('.') { "; it names a pin, and the kernel allows no dot there" } else { "" };
        Err(format!(
            "'{name}' is no name: 1 to 63 of a-z, 0-9, '-' and '_', the first a letter or digit{dot}"
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The document as it is written, with places.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDocument {
    #[serde(default)]
    workloads: Vec<RawWorkload>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWorkload {
    name: Spanned<String>,
    cgroup: Spanned<String>,
    netns: Spanned<String>,
    proxy_cgroup: Option<Spanned<String>>,
    policy: Option<Spanned<Flags>>,
    bootstrap: Option<Spanned<String>>,
    #[serde(default)]
    env: BTreeMap<String, Spanned<String>>,
}

/// Flags: one string, split as a shell does, or a list of arguments.
enum Flags {
    Text(String),
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for Flags {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Flags;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("flags as one string or as a list of strings")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Flags, E> {
                Ok(Flags::Text(s.into()))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Flags, E> {
                Ok(Flags::Text(String::new()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Flags, A::Error> {
                let mut list = Vec::new();
                while let Some(word) = seq.next_element()? {
                    list.push(word);
                }
                Ok(Flags::List(list))
            }
        }
        d.deserialize_any(Either)
    }
}

/// Where problems go, and which entry they are of.
struct At<'a> {
    problems: &'a mut Vec<Problem>,
    entry: String,
    /// Flags of entries without a policy.
    defaults: &'a str,
}

impl At<'_> {
    fn problem(&mut self, field: &str, at: Location, reason: String) {
        let place = format!("line {} column {}, {}.{field}", at.line(), at.column(), self.entry);
        self.problems.push(Problem { place, reason });
    }

    fn path(&mut self, field: &str, text: &Spanned<String>) -> PathBuf {
        let path = PathBuf::from(&text.value);
        let up = path.components().any(|c| c == Component::ParentDir);
        if !path.is_absolute() || up || text.value.contains('\0') {
            let reason = format!("'{}' is not an absolute path without '..'", text.value);
            self.problem(field, text.referenced, reason);
        }
        path
    }
}

#[derive(Default)]
struct Seen {
    names: BTreeSet<Name>,
    places: BTreeMap<(PathBuf, PathBuf), Name>,
}

/// The model of one entry; `None`, with a problem, where there is none.
fn lower(raw: &RawWorkload, mut at: At<'_>, seen: &mut Seen) -> Option<Workload> {
    let name = Name::new(&raw.name.value);
    let name = name.map_err(|reason| at.problem("name", raw.name.referenced, reason)).ok();
    let cgroup = at.path("cgroup", &raw.cgroup);
    let netns = at.path("netns", &raw.netns);
    let proxy_cgroup = raw.proxy_cgroup.as_ref().map(|p| at.path("proxy_cgroup", p));
    let bootstrap = raw.bootstrap.as_ref().map(|p| at.path("bootstrap", p));
    if let (Some(given), true) = (&raw.bootstrap, proxy_cgroup.is_some()) {
        let reason = "is the daemon's to run, and proxy_cgroup says that another proxy serves this workload";
        at.problem("bootstrap", given.referenced, reason.into());
    }
    let policy = policy(raw, &mut at);
    let name = name?;
    if !seen.names.insert(name.clone()) {
        at.problem("name", raw.name.referenced, format!("a second workload of the name {name}"));
    }
    if let Some(other) = seen.places.insert((cgroup.clone(), netns.clone()), name.clone()) {
        at.problem("cgroup", raw.cgroup.referenced, format!("the same cgroup and netns as workload {other}"));
    }
    let (policy, notes) = policy?;
    Some(Workload { name, cgroup, netns, proxy_cgroup, policy, bootstrap, notes })
}

/// The policy of one entry: its flags, and the environment that the entry itself gives.
fn policy(raw: &RawWorkload, at: &mut At<'_>) -> Option<(Policy, Vec<Note>)> {
    let before = at.problems.len();
    for (name, value) in &raw.env {
        if !FLAGS.iter().any(|f| f.env().contains(name)) {
            at.problem(&format!("env.{name}"), value.referenced, "no policy flag has this variable".into());
        }
    }
    let place = raw.policy.as_ref().map_or(raw.name.referenced, |p| p.referenced);
    let args = match raw.policy.as_ref().map(|p| &p.value) {
        None => words(at.defaults),
        Some(Flags::List(list)) => Ok(list.clone()),
        Some(Flags::Text(text)) => words(text),
    };
    let env = |name: &str| raw.env.get(name).map(|v| v.value.clone());
    let parsed = args.map_err(|e| vec![e]).and_then(|args| Policy::parse(&args, &env));
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(errors) => {
            for e in errors {
                let variable = raw.env.get(&e.flag);
                let (field, place) = match variable {
                    Some(value) => (format!("env.{}", e.flag), value.referenced),
                    None => ("policy".into(), place),
                };
                at.problem(&field, place, e.to_string());
            }
            return None;
        }
    };
    if parsed.rest != RunOptions::default() {
        let reason = "holds a flag about one run (-n, --skip-rule-apply, --cleanup-only, \
                      --iptables-trace-logging, --network-namespace), which belongs on a command line";
        at.problem("policy", place, reason.into());
    }
    (at.problems.len() == before).then_some((parsed.policy, parsed.notes))
}

fn syntax(e: serde_saphyr::Error) -> Vec<Problem> {
    let place = match e.location() {
        Some(at) => format!("line {} column {}", at.line(), at.column()),
        None => "the document".into(),
    };
    let text = e.without_snippet().to_string();
    vec![Problem { place, reason: text }]
}
