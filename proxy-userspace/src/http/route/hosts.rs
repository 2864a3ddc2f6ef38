//! Virtual hosts by their domains, with Envoy's precedence: exact, `*.suffix`, `prefix.*` (the longest first), `*`.

use std::borrow::Cow;
use std::collections::HashMap;

use foldhash::fast::RandomState;
use proxy_config::model::http::RouteConfiguration;

/// Answers with a virtual host's index.
#[derive(Default)]
pub(super) struct Hosts {
    exact: Names,
    /// By the length of what follows, or precedes, the star; the longest first.
    suffixes: Vec<(usize, Names)>,
    prefixes: Vec<(usize, Names)>,
    any: Option<usize>,
    ignore_port: bool,
}

type Names = HashMap<Box<str>, usize, RandomState>;

impl Hosts {
    pub(super) fn new(model: &RouteConfiguration) -> Self {
        let mut hosts = Self { ignore_port: model.ignore_port_in_host_matching, ..Self::default() };
        for (index, host) in model.virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                hosts.insert(domain, index);
            }
        }
        hosts.suffixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        hosts.prefixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        hosts
    }

    /// The lowering has seen to it that no domain comes twice.
    fn insert(&mut self, domain: &str, index: usize) {
        let domain = domain.to_ascii_lowercase();
        if domain == "*" {
            self.any = Some(index);
        } else if let Some(suffix) = domain.strip_prefix('*') {
            of_length(&mut self.suffixes, suffix.len()).insert(suffix.into(), index);
        } else if let Some(prefix) = domain.strip_suffix('*') {
            of_length(&mut self.prefixes, prefix.len()).insert(prefix.into(), index);
        } else {
            self.exact.insert(domain.into(), index);
        }
    }

    /// Whatever the host is, the answer is the same.
    pub(super) fn is_single(&self) -> bool {
        self.exact.is_empty() && self.suffixes.is_empty() && self.prefixes.is_empty()
    }

    /// Whoever has the domain `*`.
    pub(super) fn any(&self) -> Option<usize> {
        self.any
    }

    pub(super) fn find(&self, host: &str) -> Option<usize> {
        if self.is_single() {
            return self.any;
        }
        let host = if self.ignore_port { without_port(host) } else { host };
        let host = lower(host);
        if let Some(index) = self.exact.get(&*host) {
            return Some(*index);
        }
        // As Envoy: `*.foo.com` is not `.foo.com`, so the star stands for something.
        let longer = |(length, _): &&(usize, Names)| *length < host.len();
        let suffix = |(length, names): &(usize, Names)| {
            names.get(host.get(host.len() - length..).unwrap_or_default()).copied()
        };
        let prefix =
            |(length, names): &(usize, Names)| names.get(host.get(..*length).unwrap_or_default()).copied();
        let found = self.suffixes.iter().filter(longer).find_map(suffix);
        found.or_else(|| self.prefixes.iter().filter(longer).find_map(prefix)).or(self.any)
    }
}

fn of_length(groups: &mut Vec<(usize, Names)>, length: usize) -> &mut Names {
    let at = groups.iter().position(|(known, _)| *known == length).unwrap_or(groups.len());
    if at == groups.len() {
        groups.push((length, Names::default()));
    }
    &mut groups[at].1
}

/// Hosts are nearly always in lower case already.
fn lower(host: &str) -> Cow<'_, str> {
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Where its port begins, with the colon.
pub(super) fn port_start(host: &str) -> Option<usize> {
    let colon = host.rfind(':')?;
    // An IPv6 address has colons of its own, and brackets around them.
    host.rfind(']').is_none_or(|bracket| bracket < colon).then_some(colon)
}

fn without_port(host: &str) -> &str {
    port_start(host).map_or(host, |start| &host[..start])
}

#[cfg(test)]
mod tests {
    use proxy_config::model::http::VirtualHost;

    use super::*;

    fn hosts(domains: &[&[&str]], ignore_port: bool) -> Hosts {
        let host = |domains: &&[&str]| VirtualHost {
            domains: domains.iter().map(|domain| (*domain).into()).collect(),
            ..VirtualHost::default()
        };
        Hosts::new(&RouteConfiguration {
            virtual_hosts: domains.iter().map(host).collect(),
            ignore_port_in_host_matching: ignore_port,
            ..RouteConfiguration::default()
        })
    }

    #[test]
    fn precedence() {
        let table = hosts(
            &[
                &["*"],
                &["foo.com", "foo.com:8080"],
                &["*.foo.com"],
                &["*-bar.foo.com", "*.b.foo.com"],
                &["foo.*"],
                &["foo.c*", "[::1]"],
            ],
            false,
        );
        for (host, expected) in [
            ("foo.com", 1),
            ("FOO.com", 1),
            ("foo.com:8080", 1),
            ("foo.com:81", 5),
            ("a.foo.com", 2),
            (".foo.com", 0),
            ("x-bar.foo.com", 3),
            ("a.b.foo.com", 3),
            ("foo.de", 4),
            ("foo.", 0),
            ("foo.cx", 5),
            ("foo.c", 4),
            ("[::1]", 5),
            ("[::1]:80", 0),
            ("", 0),
            ("ä.foo.com", 2),
            ("foo.ä", 4),
        ] {
            assert_eq!(table.find(host), Some(expected), "{host}");
        }
        assert_eq!(hosts(&[&["a"]], false).find("b"), None);
    }

    #[test]
    fn ports_are_ignored_where_that_is_asked_for() {
        let table = hosts(&[&["foo.com"], &["[::1]"]], true);
        for (host, expected) in
            [("foo.com:81", Some(0)), ("foo.com:", Some(0)), ("[::1]:80", Some(1)), ("[::1]", Some(1))]
        {
            assert_eq!(table.find(host), expected, "{host}");
        }
    }

    #[test]
    fn bytes_that_are_half_a_character() {
        // The length of a wildcard may fall into the middle of one.
        assert_eq!(hosts(&[&["*x"], &["x*"]], false).find("ää"), None);
    }
}
