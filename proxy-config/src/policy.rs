//! What is captured of one workload: istio-iptables' flags as a model.
//!
//! Text passes through in one direction: arguments and environment, read by the table in [`FLAGS`] ->
//! [`Policy`] -> [`compile`] -> the entries of the kernel's maps. [`explain`] goes back from a verdict to the
//! flag.

mod cidr;
mod compile;
mod docs;
mod explain;
mod flags;
mod parse;
mod tables;
mod value;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

pub use cidr::Cidr;
pub use compile::{CidrRow, Compiled, Environment, Route, compile};
pub use docs::{help, markdown};
pub use explain::{Facts, explain};
pub use flags::{FLAGS, Flag, Kind, Origin, Status};
pub use parse::{FlagError, Note, Parsed, RunOptions, take, words};
pub use tables::CompiledTables;

/// The parsed policy. Lists are sorted and hold nothing twice, so equal policies are equal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// `-p`: where outbound connections go. Default 15001.
    pub envoy_port: u16,
    /// `-z`: where inbound connections go. Default 15006.
    pub inbound_port: u16,
    /// `-e`: HBONE's port, left alone. Default 15008.
    pub tunnel_port: u16,
    /// `--dns-port`: where captured DNS goes. Default 15053.
    pub dns_port: u16,
    /// `-u`: who the proxy is where its cgroup is not known. Default 1337.
    pub proxy_uids: Vec<u32>,
    /// `-g`: default as `-u`.
    pub proxy_gids: Vec<u32>,
    /// `-m`
    pub mode: Mode,
    /// `-b`: default every port; an empty list switches inbound capture off.
    pub inbound_ports: Ports,
    /// `-d`: only with every port in `-b`. Default 15020, 15021, 15090.
    pub inbound_exclude: Vec<u16>,
    /// `-c`: a name, or a prefix ending in `+`.
    pub exclude_interfaces: Vec<String>,
    /// `-i`: default every address.
    pub include: Ranges,
    /// `-x`
    pub exclude: Vec<Cidr>,
    /// `-q`
    pub outbound_ports: Vec<u16>,
    /// `-o`
    pub outbound_exclude: Vec<u16>,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS`: default every group.
    pub owner_groups: Groups,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`: empty unless `owner_groups` is every group.
    pub owner_groups_exclude: Vec<u32>,
    /// `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`: IPv4, in 127.0.0.0/8. Default 127.0.0.1/32.
    pub loopback: Cidr,
    /// `--redirect-dns`
    pub redirect_dns: bool,
    /// `--capture-all-dns`: every resolver, with `redirect_dns`.
    pub capture_all_dns: bool,
    /// `--dns-servers`: empty means those of the workload's resolv.conf.
    pub dns_servers: Vec<IpAddr>,
    /// `--fail-open`: connect as if not enrolled while no proxy listens. Default closed.
    pub fail_open: bool,
    /// `--wait-for-proxy`: how long a connect is held while no proxy listens; zero refuses at once.
    #[serde(serialize_with = "duration")]
    pub wait_for_proxy: Duration,
    /// `--outbound-traffic-policy`
    pub outbound_traffic_policy: OutboundTrafficPolicy,
}

pub type Ports = Select<u16>;
pub type Ranges = Select<Cidr>;
pub type Groups = Select<u32>;

/// `*` or a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select<T> {
    All,
    Only(Vec<T>),
}

impl<T> Select<T> {
    /// The listed entries; none where everything is selected.
    pub fn listed(&self) -> &[T] {
        match self {
            Self::All => &[],
            Self::Only(list) => list,
        }
    }

    /// Whether nothing is selected.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Only(list) if list.is_empty())
    }
}

impl<T: Serialize> Serialize for Select<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => s.serialize_str("*"),
            Self::Only(list) => list.serialize(s),
        }
    }
}

/// How Istio would redirect inbound connections. Both are the same here: the source address is always kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    #[default]
    Redirect,
    Tproxy,
}

/// Where a connection goes whose destination no configuration knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundTrafficPolicy {
    /// On to where it was going.
    #[default]
    AllowAny,
    /// Nowhere.
    RegistryOnly,
}

impl Policy {
    /// Reads arguments in cobra's syntax, and the environment for what they leave out.
    ///
    /// # Errors
    /// Every problem at once: an unknown flag, a value that is none, flags that contradict each other, a flag
    /// whose effect cannot be had here.
    pub fn parse(args: &[String], env: &dyn Fn(&str) -> Option<String>) -> Result<Parsed, Vec<FlagError>> {
        parse::parse(args, env)
    }

    /// [`Policy::parse`] of one shell-like string without any environment, e.g. `-i 10.0.0.0/8 -b ''`.
    ///
    /// # Errors
    /// As [`Policy::parse`], and a quote that is never closed.
    pub fn parse_words(text: &str) -> Result<Parsed, Vec<FlagError>> {
        Self::parse(&words(text).map_err(|e| vec![e])?, &|_| None)
    }

    /// Whether anything outbound but DNS is captured.
    pub fn captures_outbound(&self) -> bool {
        !self.include.is_none() || !self.outbound_ports.is_empty()
    }
}

impl Default for Policy {
    /// What istio-init passes by default.
    fn default() -> Self {
        Self {
            envoy_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15008,
            dns_port: 15053,
            proxy_uids: vec![1337],
            proxy_gids: vec![1337],
            mode: Mode::Redirect,
            inbound_ports: Select::All,
            inbound_exclude: vec![15020, 15021, 15090],
            exclude_interfaces: Vec::new(),
            include: Select::All,
            exclude: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_exclude: Vec::new(),
            owner_groups: Select::All,
            owner_groups_exclude: Vec::new(),
            loopback: Cidr::LOOPBACK_V4,
            redirect_dns: false,
            capture_all_dns: false,
            dns_servers: Vec::new(),
            fail_open: false,
            wait_for_proxy: Duration::ZERO,
            outbound_traffic_policy: OutboundTrafficPolicy::AllowAny,
        }
    }
}

/// The flags that make this policy out of the defaults, in the table's order; [`Policy::parse_words`] reads
/// them back. Nothing for the default policy.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `-g` follows `-u`.
        let default = Self { proxy_gids: self.proxy_uids.clone(), ..Self::default() };
        let mut gap = "";
        for flag in FLAGS {
            let Some(show) = flag.show else { continue };
            let value = show(self);
            if value != show(&default) {
                write!(f, "{gap}{}", flag.written(&value))?;
                gap = " ";
            }
        }
        Ok(())
    }
}

fn duration<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&value::show_duration(*d))
}
