//! The pinned maps: policies in, decoded tables out.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use proxy_common::verdict::{Rule, Tables};
use proxy_common::{
    CIDR_PREFIX, CidrEntry, CidrKey, FlowKey, ListenerKey, OrigDst, OwnIpKey, Pod, RuleKey, map,
};
use proxy_config::policy::Compiled;

use super::{Error, Pins};
use crate::sys::bpf::{PerCpuCounters, Table};

/// Every map that userspace reads or writes.
pub struct Maps {
    pub(super) pods: Table<u64, Pod>,
    own_ips: Table<OwnIpKey, u32>,
    rules: Table<RuleKey, u32>,
    cidrs: Table<CidrEntry, u32>,
    flows: Table<FlowKey, OrigDst>,
    /// Its values are sockets on the way in and cookies on the way out.
    listeners: Table<ListenerKey, u32>,
    counters: PerCpuCounters,
}

impl Maps {
    pub fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            pods: Table::open(&pins.map(map::PODS)).map_err(Error::map(map::PODS))?,
            own_ips: Table::open(&pins.map(map::OWN_IPS)).map_err(Error::map(map::OWN_IPS))?,
            rules: Table::open(&pins.map(map::RULES)).map_err(Error::map(map::RULES))?,
            cidrs: Table::open(&pins.map(map::CIDRS)).map_err(Error::map(map::CIDRS))?,
            flows: Table::open(&pins.map(map::FLOWS)).map_err(Error::map(map::FLOWS))?,
            listeners: Table::open(&pins.map(map::LISTENERS)).map_err(Error::map(map::LISTENERS))?,
            counters: PerCpuCounters::open(&pins.map(map::COUNTERS)).map_err(Error::map(map::COUNTERS))?,
        })
    }

    /// Makes `compiled` the policy of a namespace: its tables are written under a new number, then one update
    /// of the namespace's entry makes them count. A hook sees the old policy or the new one, never a mixture.
    pub fn set_policy(&self, netns: u64, compiled: &Compiled) -> Result<(), Error> {
        let policy = self.unused_policy()?;
        for &(kind, value) in &compiled.rules {
            let key = RuleKey { policy, kind, value };
            self.rules.set(&key, &1).map_err(Error::map(map::RULES))?;
        }
        for &(list, ip, length, value) in &compiled.cidrs {
            let key = CidrKey::new(policy, list, ip);
            let entry = CidrEntry { prefix: CIDR_PREFIX + u32::from(length), key };
            self.cidrs.set(&entry, &value).map_err(Error::map(map::CIDRS))?;
        }
        let pod = Pod { policy, ..compiled.pod };
        self.pods.set(&netns, &pod).map_err(Error::map(map::PODS))
    }

    /// One above every number in use, in the tables too: a replaced policy's entries stay until
    /// [`Maps::drop_unused_policies`].
    fn unused_policy(&self) -> Result<u32, Error> {
        let pods = self.pods.entries().map_err(Error::map(map::PODS))?;
        let rules = self.rules.keys().map_err(Error::map(map::RULES))?;
        let cidrs = self.cidrs.keys().map_err(Error::map(map::CIDRS))?;
        let used = pods
            .iter()
            .map(|(_, p)| p.policy)
            .chain(rules.iter().map(|k| k.policy))
            .chain(cidrs.iter().map(|k| u32::from_be_bytes(k.key.policy)));
        Ok(used.max().unwrap_or(0) + 1)
    }

    /// Removes the tables of policies that no namespace refers to. Call it a while after a change, not with
    /// it: a hook that read the old entry may still be looking them up.
    pub fn drop_unused_policies(&self) -> Result<(), Error> {
        let pods = self.pods.entries().map_err(Error::map(map::PODS))?;
        let used = |policy: u32| pods.iter().any(|(_, p)| p.policy == policy);
        for key in self.rules.keys().map_err(Error::map(map::RULES))? {
            if !used(key.policy) {
                self.rules.remove(&key).map_err(Error::map(map::RULES))?;
            }
        }
        for key in self.cidrs.keys().map_err(Error::map(map::CIDRS))? {
            if !used(u32::from_be_bytes(key.key.policy)) {
                self.cidrs.remove(&key).map_err(Error::map(map::CIDRS))?;
            }
        }
        Ok(())
    }

    /// The entry of a namespace, if it is enrolled.
    pub fn pod(&self, netns: u64) -> Result<Option<Pod>, Error> {
        self.pods.get(&netns).map_err(Error::map(map::PODS))
    }

    /// The cookies of all enrolled namespaces.
    pub fn enrolled(&self) -> Result<Vec<u64>, Error> {
        self.pods.keys().map_err(Error::map(map::PODS))
    }

    /// Takes a namespace out: from here on the hooks leave its connections alone.
    pub fn remove_pod(&self, netns: u64) -> Result<(), Error> {
        self.pods.remove(&netns).map_err(Error::map(map::PODS))?;
        for key in self.own_ips.keys().map_err(Error::map(map::OWN_IPS))? {
            if key.netns == netns {
                self.own_ips.remove(&key).map_err(Error::map(map::OWN_IPS))?;
            }
        }
        for key in self.flows.keys().map_err(Error::map(map::FLOWS))? {
            if key.netns == netns {
                self.flows.remove(&key).map_err(Error::map(map::FLOWS))?;
            }
        }
        for key in self.listeners.keys().map_err(Error::map(map::LISTENERS))? {
            if key.netns == netns {
                self.listeners.remove(&key).map_err(Error::map(map::LISTENERS))?;
            }
        }
        Ok(())
    }

    /// Makes `ips` the addresses of a namespace.
    pub fn set_own_ips(&self, netns: u64, ips: &[IpAddr]) -> Result<(), Error> {
        let wanted: Vec<OwnIpKey> = ips.iter().map(|ip| OwnIpKey { netns, ip: ip16(*ip) }).collect();
        for key in &wanted {
            self.own_ips.set(key, &1).map_err(Error::map(map::OWN_IPS))?;
        }
        for key in self.own_ips.keys().map_err(Error::map(map::OWN_IPS))? {
            if key.netns == netns && !wanted.contains(&key) {
                self.own_ips.remove(&key).map_err(Error::map(map::OWN_IPS))?;
            }
        }
        Ok(())
    }

    /// Registers a listening socket of ours. The kernel forgets it when the socket is closed.
    pub fn set_listener(&self, key: &ListenerKey, socket: BorrowedFd<'_>) -> Result<(), Error> {
        self.listeners.set(key, &(socket.as_raw_fd() as u32)).map_err(Error::map(map::LISTENERS))
    }

    pub fn own_ips(&self) -> Result<Vec<OwnIpKey>, Error> {
        self.own_ips.keys().map_err(Error::map(map::OWN_IPS))
    }

    pub fn rules(&self) -> Result<Vec<RuleKey>, Error> {
        self.rules.keys().map_err(Error::map(map::RULES))
    }

    pub fn cidrs(&self) -> Result<Vec<(CidrEntry, u32)>, Error> {
        self.cidrs.entries().map_err(Error::map(map::CIDRS))
    }

    pub fn flows(&self) -> Result<Vec<(FlowKey, OrigDst)>, Error> {
        self.flows.entries().map_err(Error::map(map::FLOWS))
    }

    pub fn listeners(&self) -> Result<Vec<ListenerKey>, Error> {
        self.listeners.keys().map_err(Error::map(map::LISTENERS))
    }

    /// How often each rule decided, since the maps were made.
    pub fn counters(&self) -> Result<Vec<(Rule, u64)>, Error> {
        let one = |r: &Rule| Ok((*r, self.counters.sum(*r as u32).map_err(Error::map(map::COUNTERS))?));
        Rule::ALL.iter().map(one).collect()
    }
}

/// The pinned tables as the verdict functions read them: what is explained is what the kernel holds. An error
/// counts as "no entry" and is kept, because the trait cannot carry it.
pub struct ReadTables<'a> {
    maps: &'a Maps,
    error: std::cell::RefCell<Option<Error>>,
}

impl<'a> ReadTables<'a> {
    pub fn new(maps: &'a Maps) -> Self {
        Self { maps, error: std::cell::RefCell::default() }
    }

    /// The first error of a look-up, if there was one.
    pub fn into_result(self) -> Result<(), Error> {
        self.error.into_inner().map_or(Ok(()), Err)
    }

    fn keep<T: Default>(&self, r: Result<T, Error>) -> T {
        r.unwrap_or_else(|e| {
            self.error.borrow_mut().get_or_insert(e);
            T::default()
        })
    }
}

impl Tables for ReadTables<'_> {
    fn rule(&self, key: &RuleKey) -> bool {
        self.keep(self.maps.rules.get(key).map_err(Error::map(map::RULES))).is_some()
    }

    fn cidr(&self, key: &CidrKey) -> Option<u32> {
        let entry = CidrEntry { prefix: CIDR_PREFIX + 128, key: *key };
        self.keep(self.maps.cidrs.get(&entry).map_err(Error::map(map::CIDRS)))
    }

    fn own_ip(&self, key: &OwnIpKey) -> bool {
        self.keep(self.maps.own_ips.get(key).map_err(Error::map(map::OWN_IPS))).is_some()
    }

    fn listener(&self, key: &ListenerKey) -> bool {
        self.keep(self.maps.listeners.keys().map_err(Error::map(map::LISTENERS))).contains(key)
    }
}

/// The 16-byte form of an address.
pub(crate) fn ip16(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
