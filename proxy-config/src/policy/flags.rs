//! The flag table: what the parser, the help text, the environment and the generated documentation go by.

mod table;

pub use table::FLAGS;

use super::Policy;
use super::parse::Draft;

/// One flag and all that is known of it.
pub struct Flag {
    /// Without the dashes.
    pub long: &'static str,
    pub short: Option<char>,
    /// Names in the environment besides [`Flag::env`]'s first.
    pub more_env: &'static [&'static str],
    /// As written on a command line.
    pub default: &'static str,
    pub kind: Kind,
    pub status: Status,
    pub origin: Origin,
    pub help: &'static str,
    pub(super) set: Set,
    /// The value in a policy; `None` where the flag is no part of one.
    pub(super) show: Option<Show>,
}

type Set = fn(&mut Draft, &str) -> Result<(), String>;
type Show = fn(&Policy) -> String;

/// What the flag's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No value, or `=true` and `=false`.
    Bool,
    Port,
    Number,
    /// `5s`; the second form may stand without a value.
    Duration,
    OptionalDuration,
    /// Comma separated; empty switches it off.
    List,
    /// Comma separated, or `*`.
    ListOrAll,
    Word,
}

impl Kind {
    /// What stands for the value in help texts.
    pub fn label(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Port => "port",
            Self::Number => "number",
            Self::Duration => "duration",
            Self::OptionalDuration => "[=duration]",
            Self::List => "list",
            Self::ListOrAll => "list or '*'",
            Self::Word => "word",
        }
    }

    /// Whether an empty value says something, rather than nothing.
    pub(super) fn empty_means_something(self) -> bool {
        matches!(self, Self::List | Self::ListOrAll)
    }

    /// The value of the bare flag, where it may stand alone.
    pub(super) fn bare(self) -> Option<&'static str> {
        match self {
            Self::Bool => Some("true"),
            Self::OptionalDuration => Some("30s"),
            Self::Port | Self::Number | Self::Duration | Self::List | Self::ListOrAll | Self::Word => None,
        }
    }
}

/// What becomes of the flag here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Honoured,
    /// Accepted without effect, for this reason.
    NoMeaning(&'static str),
    /// An error unless empty, for this reason.
    Refused(&'static str),
}

/// Where the flag comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Istio,
    /// In Istio only a variable of the environment; a flag as well here.
    IstioEnv,
    /// No longer, or not always, in Istio, but still seen.
    Legacy,
    Ours,
}

impl Origin {
    pub fn label(self) -> &'static str {
        match self {
            Self::Istio => "Istio",
            Self::IstioEnv => "Istio, environment only",
            Self::Legacy => "Istio, other versions",
            Self::Ours => "shunt",
        }
    }
}

impl Flag {
    /// The names in the environment, the strongest first. Ours have a prefix, Istio's are the flag's name.
    pub fn env(&self) -> Vec<String> {
        let own = self.long.to_uppercase().replace('-', "_");
        let own = if self.origin == Origin::Ours { format!("SHUNT_{own}") } else { own };
        std::iter::once(own).chain(self.more_env.iter().map(|s| s.to_string())).collect()
    }

    /// `-p/--envoy-port`
    pub fn name(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}/--{}", self.long),
            None => format!("--{}", self.long),
        }
    }

    /// The flag with a value, quoted for a shell where needed.
    pub(super) fn written(&self, value: &str) -> String {
        let value = quoted(value);
        match (self.short, self.kind, value.as_str()) {
            (_, Kind::Bool, "true") => format!("--{}", self.long),
            (_, Kind::Bool | Kind::OptionalDuration, _) | (None, ..) => format!("--{}={value}", self.long),
            (Some(short), ..) => format!("-{short} {value}"),
        }
    }

    pub(super) fn by_long(name: &str) -> Option<&'static Flag> {
        FLAGS.iter().find(|f| f.long == name)
    }

    pub(super) fn by_short(name: char) -> Option<&'static Flag> {
        FLAGS.iter().find(|f| f.short == Some(name))
    }

    const fn short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }

    const fn default(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    const fn env_too(mut self, names: &'static [&'static str]) -> Self {
        self.more_env = names;
        self
    }

    const fn show(mut self, show: Show) -> Self {
        self.show = Some(show);
        self
    }

    const fn from(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    const fn no_meaning(mut self, why: &'static str) -> Self {
        self.status = Status::NoMeaning(why);
        self
    }

    const fn refused(mut self, why: &'static str) -> Self {
        self.status = Status::Refused(why);
        self
    }
}

const fn flag(long: &'static str, kind: Kind, set: Set, help: &'static str) -> Flag {
    let default = if matches!(kind, Kind::Bool) { "false" } else { "" };
    Flag {
        long,
        short: None,
        more_env: &[],
        default,
        kind,
        status: Status::Honoured,
        origin: Origin::Istio,
        help,
        set,
        show: None,
    }
}

fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._:/,=@%+-".contains(c);
    if !value.is_empty() && value.chars().all(plain) { value.into() } else { format!("'{value}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = FLAGS.iter().flat_map(|f| f.env()).collect();
        names.extend(FLAGS.iter().map(|f| f.long.to_string()));
        names.extend(FLAGS.iter().filter_map(|f| f.short).map(String::from));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn istio_has_31_flags() {
        assert_eq!(FLAGS.iter().filter(|f| f.origin == Origin::Istio).count(), 31);
    }

    #[test]
    fn the_defaults_of_the_table_are_the_defaults_of_the_policy() {
        for flag in FLAGS {
            if let Some(show) = flag.show {
                assert_eq!(show(&Policy::default()), flag.default, "{}", flag.long);
            }
        }
    }

    #[test]
    fn an_accepted_flag_without_effect_has_a_reason() {
        for flag in FLAGS {
            let effect = flag.show.is_some()
                || [
                    "dry-run",
                    "skip-rule-apply",
                    "network-namespace",
                    "iptables-trace-logging",
                    "cleanup-only",
                ]
                .contains(&flag.long);
            assert_eq!(effect, flag.status == Status::Honoured, "{}", flag.long);
        }
    }
}
