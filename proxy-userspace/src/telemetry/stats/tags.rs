//! Tags of a stat's name, such as `envoy.cluster_name` of `cluster.web.upstream_cx_total`, by Envoy's rules and the
//! configuration's. Looked for only when somebody scrapes.

use std::borrow::Cow;
use std::ops::Range;

use proxy_config::model::bootstrap::{StatsConfig, TagSpecifier};
use regex::Regex;

/// Name and value.
pub type Tag = (Cow<'static, str>, String);

/// Takes tags out of names.
#[derive(Clone, Debug)]
pub struct Extractor {
    rules: Vec<Rule>,
    fixed: Vec<Tag>,
}

#[derive(Clone, Debug)]
enum Rule {
    BuiltIn(&'static str, Find),
    /// The first group is taken out of the name, the second is the value.
    Regex(String, Regex),
}

/// What is taken out of the name, and the value within it.
type Find = fn(&str) -> Option<(Range<usize>, Range<usize>)>;

impl Extractor {
    pub fn new(config: &StatsConfig) -> Self {
        let all = config.use_all_default_tags.unwrap_or(true);
        let mut rules: Vec<Rule> = Vec::new();
        let mut fixed = Vec::new();
        for tag in &config.tags {
            match tag {
                TagSpecifier::Fixed { name, value } => fixed.push((name.clone().into(), value.clone())),
                TagSpecifier::Regex { name, regex: Some(text) } => match Regex::new(text) {
                    Ok(regex) => rules.push(Rule::Regex(name.clone(), regex)),
                    Err(error) => log::warn!("stats tag {name}: {error}"),
                },
                TagSpecifier::Regex { regex: None, .. } if all => {}
                TagSpecifier::Regex { name, regex: None } => {
                    let of = BUILT_IN.iter().filter(|rule| rule.0 == name);
                    rules.extend(of.map(|rule| Rule::BuiltIn(rule.0, rule.1)));
                }
            }
        }
        if all {
            rules.extend(BUILT_IN.iter().map(|rule| Rule::BuiltIn(rule.0, rule.1)));
        }
        Self { rules, fixed }
    }

    /// Labels that are known, and the fixed ones.
    pub(super) fn with_fixed<'a>(&self, labels: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Tag> {
        let own = labels.map(|(name, value)| (Cow::Owned(name.to_owned()), value.to_owned()));
        own.chain(self.fixed.iter().cloned()).collect()
    }

    /// The name without its tags, and they.
    pub fn extract(&self, name: &str) -> (String, Vec<Tag>) {
        let mut tags: Vec<Tag> = Vec::new();
        let mut removed: Vec<Range<usize>> = Vec::new();
        for rule in &self.rules {
            let (tag, found): (Cow<'static, str>, _) = match rule {
                Rule::BuiltIn(tag, find) => (Cow::Borrowed(*tag), find(name)),
                Rule::Regex(tag, regex) => (Cow::Owned(tag.clone()), captured(regex, name)),
            };
            let Some((out, value)) = found else { continue };
            // The first rule of a tag wins.
            if tags.iter().any(|(known, _)| *known == tag) {
                continue;
            }
            let Some(value) = name.get(value) else { continue };
            tags.push((tag, value.to_owned()));
            removed.push(out);
        }
        tags.extend(self.fixed.iter().cloned());
        (without(name, removed), tags)
    }
}

fn captured(regex: &Regex, name: &str) -> Option<(Range<usize>, Range<usize>)> {
    let captures = regex.captures(name)?;
    let out = captures.get(1)?;
    let value = captures.get(2).unwrap_or(out);
    Some((out.range(), value.range()))
}

fn without(name: &str, mut removed: Vec<Range<usize>>) -> String {
    removed.sort_by_key(|range| range.start);
    let mut out = String::with_capacity(name.len());
    let mut at = 0;
    for range in removed {
        out.push_str(name.get(at..range.start).unwrap_or_default());
        at = at.max(range.end);
    }
    out.push_str(name.get(at..).unwrap_or_default());
    out
}

/// The order is that of the labels.
const BUILT_IN: &[(&str, Find)] = &[
    ("envoy.response_code", response_code),
    ("envoy.response_code_class", response_code_class),
    ("envoy.virtual_cluster", |n| behind(n, "vhost.", ".vcluster.")),
    ("envoy.ssl_cipher", |n| to_end(n, "listener.", ".ssl.cipher.")),
    ("envoy.ssl_cipher_suite", |n| to_end(n, "cluster.", ".ssl.ciphers.")),
    ("envoy.ssl_cipher", |n| to_end(n, "cluster.", ".ssl.cipher.")),
    ("envoy.tcp_prefix", |n| token(n, "tcp.")),
    ("envoy.udp_prefix", |n| token(n, "udp.")),
    ("envoy.redis_prefix", |n| token(n, "redis.")),
    ("envoy.thrift_prefix", |n| token(n, "thrift.")),
    ("envoy.clientssl_prefix", |n| token(n, "auth.clientssl.")),
    ("envoy.ratelimit_prefix", |n| token(n, "ratelimit.")),
    ("envoy.local_http_ratelimit_prefix", |n| before(n, ".http_local_rate_limit.")),
    ("envoy.local_network_ratelimit_prefix", |n| token(n, "local_rate_limit.")),
    ("envoy.local_listener_ratelimit_prefix", |n| token(n, "listener_local_ratelimit.")),
    ("envoy.connection_limit_prefix", |n| token(n, "connection_limit.")),
    ("envoy.dns_filter_prefix", |n| token(n, "dns_filter.")),
    ("envoy.rbac_prefix", |n| before(n, ".rbac.")),
    ("envoy.cluster_name", |n| token(n, "cluster.")),
    ("envoy.http_conn_manager_prefix", |n| behind(n, "listener.", ".http.")),
    ("envoy.http_conn_manager_prefix", |n| token(n, "http.")),
    ("envoy.worker_id", worker),
    ("envoy.listener_address", listener_address),
    ("envoy.virtual_host", |n| token(n, "vhost.")),
    ("envoy.route", |n| behind(n, "vhost.", ".route.")),
    ("envoy.mongo_prefix", |n| token(n, "mongo.")),
    ("envoy.rds_route_config", |n| behind(n, "http.", ".rds.")),
];

type Found = Option<(Range<usize>, Range<usize>)>;

/// The token at `start` and the dot behind it.
fn token_at(name: &str, start: usize) -> Found {
    let length = name.get(start..)?.find('.').filter(|length| *length > 0)?;
    Some((start..start + length + 1, start..start + length))
}

fn token(name: &str, prefix: &str) -> Found {
    name.starts_with(prefix).then(|| token_at(name, prefix.len())).flatten()
}

/// The token behind `marker`, in names that begin with `prefix`.
fn behind(name: &str, prefix: &str, marker: &str) -> Found {
    let at = name.strip_prefix(prefix)?.find(marker)?;
    token_at(name, prefix.len() + at + marker.len())
}

/// All behind `marker`, with the dot before it.
fn to_end(name: &str, prefix: &str, marker: &str) -> Found {
    let at = name.strip_prefix(prefix)?.find(marker)?;
    let start = prefix.len() + at + marker.len();
    (start < name.len()).then(|| (start - 1..name.len(), start..name.len()))
}

/// The first token, in names where `marker` is next.
fn before(name: &str, marker: &str) -> Found {
    let end = name.find('.')?;
    name.get(end..)?.starts_with(marker).then_some((0..end + 1, 0..end))
}

fn response_code(name: &str) -> Found {
    let (head, code) = name.rsplit_once("_rq_")?;
    (code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()))
        .then(|| (head.len() + 3..name.len(), head.len() + 4..name.len()))
}

/// Only the digit goes: `upstream_rq_2xx` is `upstream_rq_xx`.
fn response_code_class(name: &str) -> Found {
    let (head, code) = name.rsplit_once("_rq_")?;
    let digit = head.len() + 4;
    (code.len() == 3 && code.ends_with("xx") && code.as_bytes().first().is_some_and(u8::is_ascii_digit))
        .then(|| (digit..digit + 1, digit..digit + 1))
}

fn worker(name: &str) -> Found {
    let marker = match name.split_once('.')?.0 {
        "listener" | "server" | "listener_manager" => ".worker_",
        _ => return None,
    };
    let start = name.find(marker)? + marker.len();
    let length = name.get(start..)?.bytes().take_while(u8::is_ascii_digit).count();
    let end = start + length;
    // `worker_0.downstream_cx_total` is `worker_downstream_cx_total`.
    (length > 0 && name.as_bytes().get(end) == Some(&b'.')).then(|| (start - 1..end, start..end))
}

/// An address, or a `stat_prefix` but for the admin's.
fn listener_address(name: &str) -> Found {
    let rest = name.strip_prefix("listener.")?;
    let start = "listener.".len();
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // `127.0.0.1_80.`: the dots are part of it.
    let mut at = 0;
    for _ in 0..3 {
        match rest.get(at..).and_then(|tail| tail.find('.')) {
            Some(length) if digits(&rest[at..at + length]) => at += length + 1,
            Some(_) | None => break,
        }
    }
    let numeric = at > 0 && rest.get(at..).is_some_and(|tail| tail.starts_with(|c: char| c.is_ascii_digit()));
    let end = if numeric { at + rest.get(at..)?.find('.')? } else { rest.find('.')? };
    (rest.get(..end)? != "admin").then(|| (start..start + end + 1, start..start + end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tags_as_envoy() {
        let extractor = Extractor::new(&StatsConfig::default());
        for (name, plain, want) in [
            ("cluster.c1_x.upstream_cx_total", "cluster.upstream_cx_total", "envoy.cluster_name=c1_x"),
            ("cluster_manager.cluster_added", "cluster_manager.cluster_added", ""),
            ("tcp.mytcp.idle_timeout", "tcp.idle_timeout", "envoy.tcp_prefix=mytcp"),
            (
                "listener.127.0.0.1_10001.worker_0.downstream_cx_total",
                "listener.worker.downstream_cx_total",
                "envoy.worker_id=0 envoy.listener_address=127.0.0.1_10001",
            ),
            (
                "listener.foo.no_filter_chain_match",
                "listener.no_filter_chain_match",
                "envoy.listener_address=foo",
            ),
            (
                "listener.[__1]_80.downstream_cx_total",
                "listener.downstream_cx_total",
                "envoy.listener_address=[__1]_80",
            ),
            ("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total", ""),
            ("server.worker_0.watchdog_miss", "server.worker.watchdog_miss", "envoy.worker_id=0"),
            (
                "http.admin.downstream_rq_2xx",
                "http.downstream_rq_xx",
                "envoy.response_code_class=2 envoy.http_conn_manager_prefix=admin",
            ),
            (
                "listener.admin.http.admin.downstream_rq_5xx",
                "listener.admin.http.downstream_rq_xx",
                "envoy.response_code_class=5 envoy.http_conn_manager_prefix=admin",
            ),
            (
                "cluster.a.upstream_rq_503",
                "cluster.upstream_rq",
                "envoy.response_code=503 envoy.cluster_name=a",
            ),
        ] {
            let (got, tags) = extractor.extract(name);
            let tags: Vec<_> = tags.iter().map(|(k, v)| format!("{k}={v}")).collect();
            assert_eq!((got.as_str(), tags.join(" ").as_str()), (plain, want), "{name}");
        }
    }

    #[test]
    fn tags_of_the_configuration() {
        let tags = vec![
            TagSpecifier::Regex { name: "mine".into(), regex: Some(r"^cluster\.((.+?)\|.+?\.)".into()) },
            TagSpecifier::Fixed { name: "pod".into(), value: "web".into() },
            TagSpecifier::Regex { name: "envoy.tcp_prefix".into(), regex: None },
        ];
        let config = StatsConfig { tags, use_all_default_tags: Some(false), ..StatsConfig::default() };
        let extractor = Extractor::new(&config);
        let tag = |name: &'static str, value: &str| (Cow::Borrowed(name), value.to_owned());
        let got = extractor.extract("cluster.outbound|80.upstream_cx_total");
        let want = ("cluster.upstream_cx_total".to_owned(), vec![tag("mine", "outbound"), tag("pod", "web")]);
        assert_eq!(got, want);
        let got = extractor.extract("tcp.a.idle_timeout");
        assert_eq!(got.1, vec![tag("envoy.tcp_prefix", "a"), tag("pod", "web")]);
    }
}
