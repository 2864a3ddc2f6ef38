//! The kernel's maps as they would be, so that a decision can be had without a kernel.

use std::net::IpAddr;

use proxy_common::verdict::Tables;
use proxy_common::{CidrKey, Ip, ListenerKey, OwnIpKey, RuleKey};

use super::Compiled;
use super::cidr::wide;

/// A compiled policy with what the other maps would hold.
#[derive(Clone, Debug)]
pub struct CompiledTables<'a> {
    compiled: &'a Compiled,
    own_ips: Vec<Ip>,
    listening: bool,
}

impl<'a> CompiledTables<'a> {
    /// Tables of a workload with these addresses, whose proxy listens in both directions and families.
    pub fn new(compiled: &'a Compiled, own_ips: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { compiled, own_ips: own_ips.into_iter().map(wide).collect(), listening: true }
    }

    /// The same where no proxy listens.
    pub fn without_proxy(self) -> Self {
        Self { listening: false, ..self }
    }
}

impl Tables for CompiledTables<'_> {
    fn rule(&self, key: &RuleKey) -> bool {
        key.policy == self.compiled.pod.policy
            && self.compiled.rules.binary_search(&(key.kind, key.value)).is_ok()
    }

    fn cidr(&self, key: &CidrKey) -> Option<u32> {
        if key.policy != self.compiled.pod.policy.to_be_bytes() {
            return None;
        }
        let list = u32::from_be_bytes(key.list);
        let rows = self.compiled.cidrs.iter();
        let matching = rows.filter(|(of, net, prefix, _)| *of == list && covers(net, *prefix, &key.ip));
        matching.max_by_key(|(_, _, prefix, _)| *prefix).map(|(.., value)| *value)
    }

    fn own_ip(&self, key: &OwnIpKey) -> bool {
        self.own_ips.contains(&key.ip)
    }

    fn listener(&self, _: &ListenerKey) -> bool {
        self.listening
    }
}

fn covers(net: &Ip, prefix: u8, ip: &Ip) -> bool {
    let differ = u128::from_be_bytes(*net) ^ u128::from_be_bytes(*ip);
    differ.leading_zeros() >= u32::from(prefix)
}
