//! Arguments in cobra's syntax and variables of the environment, into a policy.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::flags::{FLAGS, Flag, Kind, Status};
use super::{Policy, Select, value};

/// What the flags say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub policy: Policy,
    /// Flags that were given and have no effect, each with its reason.
    pub notes: Vec<Note>,
    pub rest: RunOptions,
}

/// Flags that are about the run, not about the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// `-n`: print what would be written, change nothing.
    pub dry_run: bool,
    /// `--skip-rule-apply`: attach nothing.
    pub skip_apply: bool,
    /// `--cleanup-only`: remove, and exit.
    pub cleanup_only: bool,
    /// `--iptables-trace-logging`: debug logs of the kernel programs.
    pub trace: bool,
    /// `--network-namespace`
    pub netns: Option<PathBuf>,
}

/// Something that the user should know, and the flag that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// `-t/--istio-inbound-tproxy-mark`, or the variable of the environment.
    pub flag: String,
    pub reason: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.flag, self.reason)
    }
}

/// A flag that cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{flag}{}: {reason}", given(.value))]
pub struct FlagError {
    /// The flag or the variable of the environment.
    pub flag: String,
    /// As given; `None` where no value is at fault.
    pub value: Option<String>,
    pub reason: String,
}

fn given(value: &Option<String>) -> String {
    value.as_ref().map(|v| format!(" '{v}'")).unwrap_or_default()
}

/// The policy while it is read.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) policy: Policy,
    pub(super) rest: RunOptions,
    gids_given: bool,
}

impl Draft {
    /// An empty list means the default, as in Istio.
    pub(super) fn set_uids(&mut self, s: &str) -> Result<(), String> {
        let uids = value::uids(s)?;
        if !uids.is_empty() {
            self.policy.proxy_uids = uids;
        }
        Ok(())
    }

    /// An empty list means `-u`'s value, as in Istio.
    pub(super) fn set_gids(&mut self, s: &str) -> Result<(), String> {
        let gids = value::gids(s)?;
        if !gids.is_empty() {
            self.policy.proxy_gids = gids;
            self.gids_given = true;
        }
        Ok(())
    }

    pub(super) fn set_netns(&mut self, s: &str) -> Result<(), String> {
        self.rest.netns = (!s.is_empty()).then(|| s.into());
        Ok(())
    }
}

/// A value and where it was given: the flag as spelled, or the variable.
struct Given {
    place: String,
    value: String,
}

pub(super) fn parse(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Parsed, Vec<FlagError>> {
    let mut errors = Vec::new();
    let mut given = from_env(env);
    from_args(args, &mut given, &mut errors);
    let mut draft = Draft::default();
    let mut notes = Vec::new();
    for (index, Given { place, value }) in &given {
        let flag = &FLAGS[*index];
        let wrong = |reason: String| FlagError { flag: place.clone(), value: Some(value.clone()), reason };
        if let Err(reason) = (flag.set)(&mut draft, value) {
            errors.push(wrong(reason));
            continue;
        }
        match flag.status {
            Status::Honoured => {}
            Status::Refused(_) if value.trim_matches([',', ' ']).is_empty() => {}
            Status::Refused(reason) => errors.push(wrong(reason.into())),
            Status::NoMeaning(_) if flag.kind == Kind::Bool && value::boolean(value) == Ok(false) => {}
            Status::NoMeaning(reason) => {
                notes.push(Note { flag: place.clone(), reason: format!("has no effect: {reason}") });
            }
        }
    }
    settle(&mut draft, &given, &mut notes, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Parsed { policy: draft.policy, notes, rest: draft.rest })
}

/// What flags mean together.
fn settle(
    draft: &mut Draft,
    given: &BTreeMap<usize, Given>,
    notes: &mut Vec<Note>,
    errors: &mut Vec<FlagError>,
) {
    let place =
        |long: &str| given.iter().find(|(i, _)| FLAGS[**i].long == long).map(|(_, g)| g.place.clone());
    let mut note = |long: &str, reason: &str| {
        notes.extend(place(long).map(|flag| Note { flag, reason: reason.into() }));
    };
    let policy = &mut draft.policy;
    if !draft.gids_given {
        policy.proxy_gids = policy.proxy_uids.clone();
    }
    if policy.owner_groups != Select::All && !policy.owner_groups_exclude.is_empty() {
        policy.owner_groups_exclude.clear();
        note(
            "istio-outbound-owner-groups-exclude",
            "has no effect: only the groups in ISTIO_OUTBOUND_OWNER_GROUPS are captured",
        );
    }
    if policy.inbound_ports != Select::All {
        note("istio-local-exclude-ports", "has no effect: only with -b '*' are ports excluded");
    }
    if policy.capture_all_dns && !policy.redirect_dns {
        note("capture-all-dns", "has no effect without --redirect-dns");
    }
    contradictions(policy, errors);
}

fn contradictions(policy: &Policy, errors: &mut Vec<FlagError>) {
    let ports = [
        ("--envoy-port", policy.envoy_port),
        ("--inbound-capture-port", policy.inbound_port),
        ("--dns-port", policy.dns_port),
    ];
    for (i, (flag, port)) in ports.iter().enumerate() {
        for (other, _) in ports[..i].iter().filter(|(_, p)| p == port) {
            errors.push(FlagError {
                flag: (*flag).into(),
                value: Some(port.to_string()),
                reason: format!("the same port as {other}: each needs a listener of its own"),
            });
        }
    }
    if policy.fail_open && !policy.wait_for_proxy.is_zero() {
        errors.push(FlagError {
            flag: "--wait-for-proxy".into(),
            value: Some(value::show_duration(policy.wait_for_proxy)),
            reason: "contradicts --fail-open: a connect is either held or let through while no proxy listens"
                .into(),
        });
    }
}

fn from_env(env: &dyn Fn(&str) -> Option<String>) -> BTreeMap<usize, Given> {
    let mut given = BTreeMap::new();
    for (index, flag) in FLAGS.iter().enumerate() {
        let says = |v: &String| !v.is_empty() || flag.kind.empty_means_something();
        let found = flag.env().into_iter().find_map(|place| Some((env(&place).filter(says)?, place)));
        if let Some((value, place)) = found {
            given.insert(index, Given { place, value });
        }
    }
    given
}

/// The last of equal flags wins.
fn from_args(args: &[String], given: &mut BTreeMap<usize, Given>, errors: &mut Vec<FlagError>) {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let Some(found) = read(arg) else {
            let reason = if arg.starts_with('-') && arg != "-" && arg != "--" {
                "no such flag"
            } else {
                "not a flag; a flag that may stand alone takes its value after ="
            };
            errors.push(FlagError { flag: arg.clone(), value: None, reason: reason.into() });
            continue;
        };
        for (index, value) in found {
            let place = FLAGS[index].name();
            match value.or_else(|| args.next().cloned()) {
                Some(value) => {
                    given.insert(index, Given { place, value });
                }
                None => errors.push(FlagError { flag: place, value: None, reason: "needs a value".into() }),
            }
        }
    }
}

/// The flags of one argument, each with its value; `None` where the value is the next argument, which only the
/// last of them can be. Nothing where the argument is not wholly made of known flags.
fn read(arg: &str) -> Option<Vec<(usize, Option<String>)>> {
    if let Some(long) = arg.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (long, None),
        };
        let flag = Flag::by_long(name)?;
        return Some(vec![(index(flag), value.or(flag.kind.bare()).map(String::from))]);
    }
    let mut rest = arg.strip_prefix('-').filter(|s| !s.is_empty())?;
    let mut found = Vec::new();
    while let Some(short) = rest.chars().next() {
        let flag = Flag::by_short(short)?;
        rest = &rest[short.len_utf8()..];
        let assigned = rest.strip_prefix('=');
        match (flag.kind.bare(), assigned) {
            (Some(bare), None) => {
                found.push((index(flag), Some(bare.into())));
                continue;
            }
            (_, Some(value)) => found.push((index(flag), Some(value.into()))),
            (None, None) => found.push((index(flag), (!rest.is_empty()).then(|| rest.into()))),
        }
        break;
    }
    Some(found)
}

fn index(flag: &Flag) -> usize {
    FLAGS.iter().position(|f| f.long == flag.long).unwrap_or_default()
}

/// Separates the table's flags, with their values, from a command line's own arguments. Ends at `--`, which
/// stays with what follows it in the second list.
pub fn take(args: Vec<OsString>) -> (Vec<String>, Vec<OsString>) {
    let (mut ours, mut others) = (Vec::new(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            others.push(arg);
            others.extend(args);
            break;
        }
        let Some((text, found)) = arg.to_str().and_then(|s| Some((s.to_string(), read(s)?))) else {
            others.push(arg);
            continue;
        };
        ours.push(text);
        if found.last().is_some_and(|(_, value)| value.is_none()) {
            ours.extend(args.next().map(|v| v.to_string_lossy().into_owned()));
        }
    }
    (ours, others)
}

/// Splits a string as a shell would: blanks separate, quotes and backslashes keep together.
///
/// # Errors
/// A quote that is never closed, a backslash at the end.
pub fn words(text: &str) -> Result<Vec<String>, FlagError> {
    let wrong = |reason: &str| FlagError {
        flag: "the flags' text".into(),
        value: Some(text.into()),
        reason: reason.into(),
    };
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or_else(|| wrong("ends in a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(wrong("a quote is never closed"));
    }
    words.extend(word);
    Ok(words)
}
