//! STRICT_DNS: every address of every name is an endpoint. LOGICAL_DNS: one endpoint, whose address is the first
//! that its name has now; connections that it had stay.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use proxy_config::model::LoadAssignment;
use proxy_config::model::address::{Address, HostPort};
use proxy_config::model::cluster::{Discovery, Dns};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::fixed::spec;
use super::resolver::{Answer, Resolvers, resolve};
use crate::cluster::host::Spec;
use crate::cluster::members::{Change, Group, Member};
use crate::cluster::{Cluster, Env, Random};

/// A task for each name: a slow one must not delay the others.
pub(super) fn start(cluster: &Arc<Cluster>, dns: &Dns, env: &Env) -> Vec<JoinHandle<()>> {
    let assignment = cluster.model.load_assignment.clone();
    let logical =
        matches!(cluster.model.discovery, Discovery::LogicalDns(_)) || dns.all_addresses_in_single_endpoint;
    let names = names(&assignment);
    let answers = Mutex::new(vec![Known::Nothing; names.len()]);
    let shared = Arc::new(Names { cluster: Arc::downgrade(cluster), assignment, logical, answers });
    // Endpoints that are addresses already do not wait for the others.
    shared.publish(cluster, None);
    if names.is_empty()
        && let Some(active) = &cluster.active
    {
        active.endpoints_known();
    }
    let task = |(index, (name, _)): (usize, (Arc<str>, u16))| {
        let follow = Follow {
            names: shared.clone(),
            index,
            name,
            dns: dns.clone(),
            resolvers: env.resolvers.clone(),
            random: env.random.clone(),
        };
        env.tasks.spawn("dns", follow.run())
    };
    names.into_iter().enumerate().map(task).collect()
}

/// The names of an assignment, in its order.
fn names(assignment: &LoadAssignment) -> Vec<(Arc<str>, u16)> {
    let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
    endpoints
        .filter_map(|endpoint| match &endpoint.address {
            Address::Host(HostPort { host, port }) => Some((host.clone(), *port)),
            Address::Ip(_) | Address::Pipe { .. } => None,
        })
        .collect()
}

/// What is known of all names of a cluster.
struct Names {
    cluster: Weak<Cluster>,
    assignment: Arc<LoadAssignment>,
    logical: bool,
    answers: Mutex<Vec<Known>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// Not yet asked.
    Nothing,
    /// What the last answer said, if there ever was one.
    Asked(Vec<IpAddr>),
}

impl Names {
    /// Builds the endpoints anew after one name was asked for, successfully or not.
    fn learn(&self, index: usize, answer: Option<&Answer>) {
        let Some(cluster) = self.cluster.upgrade() else { return };
        let all_asked = {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = answers.get_mut(index) {
                match (answer, &known) {
                    // An empty answer does not take away the one endpoint of LOGICAL_DNS.
                    (Some(answer), _) if !self.logical || !answer.addresses.is_empty() => {
                        *known = Known::Asked(answer.addresses.clone());
                    }
                    (_, Known::Nothing) => *known = Known::Asked(Vec::new()),
                    (_, Known::Asked(_)) => {}
                }
            }
            !answers.contains(&Known::Nothing)
        };
        self.publish(&cluster, answer);
        if let Some(active) = cluster.active.as_ref().filter(|_| all_asked) {
            active.endpoints_known();
        }
    }

    fn publish(&self, cluster: &Cluster, answer: Option<&Answer>) {
        let mut groups = {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            groups(&self.assignment, self.logical, &answers)
        };
        let change = cluster.update(&mut groups, &self.assignment.policy);
        if answer.is_some() && change == Change::Nothing {
            cluster.stats.update_no_rebuild.inc();
        }
    }
}

fn groups(assignment: &LoadAssignment, logical: bool, answers: &[Known]) -> Vec<Group> {
    let mut answers = answers.iter();
    let group = |from: &proxy_config::model::endpoint::LocalityEndpoints| {
        let locality = Arc::new(from.locality.clone());
        let mut members = Vec::new();
        let member = |spec: Spec| Member::Spec(Box::new(spec));
        for endpoint in &from.endpoints {
            let base = spec(endpoint, from, &locality);
            let Address::Host(HostPort { host, port }) = &endpoint.address else {
                members.push(member(base));
                continue;
            };
            let addresses: &[IpAddr] = match answers.next() {
                Some(Known::Asked(addresses)) => addresses,
                Some(Known::Nothing) | None => &[],
            };
            let hostname =
                if endpoint.hostname.is_empty() { host.clone() } else { endpoint.hostname.clone() };
            let base = Spec { hostname, ..base };
            if logical {
                let at = addresses.first().map(|ip| SocketAddr::new(*ip, *port));
                members.extend(at.map(|_| member(Spec { at, ..base })));
            } else {
                let at =
                    |ip: &IpAddr| Spec { address: Address::Ip(SocketAddr::new(*ip, *port)), ..base.clone() };
                members.extend(addresses.iter().map(at).map(member));
            }
        }
        let weight = from.load_balancing_weight.unwrap_or(0);
        let transport_match = from.transport_match.clone();
        Group { locality, priority: from.priority, weight, members, transport_match }
    };
    assignment.localities.iter().map(group).collect()
}

/// One name, asked for again and again.
struct Follow {
    names: Arc<Names>,
    index: usize,
    name: Arc<str>,
    dns: Dns,
    resolvers: Arc<Resolvers>,
    random: Arc<dyn Random>,
}

impl Follow {
    async fn run(self) {
        let mut failures = 0;
        loop {
            let Some(stats) = self.names.cluster.upgrade().map(|cluster| cluster.stats.clone()) else {
                return;
            };
            stats.update_attempt.inc();
            let wait = match resolve(&self.resolvers, &self.dns, &self.name).await {
                Ok(answer) => {
                    failures = 0;
                    stats.update_success.inc();
                    if answer.addresses.is_empty() {
                        stats.update_empty.inc();
                    }
                    self.names.learn(self.index, Some(&answer));
                    refresh_after(&self.dns, answer.ttl, self.random.as_ref())
                }
                Err(error) => {
                    log::warn!("DNS of {}: {error}", self.name);
                    stats.update_failure.inc();
                    self.names.learn(self.index, None);
                    failures += 1;
                    retry_after(&self.dns, failures, self.random.as_ref())
                }
            };
            sleep(wait).await;
        }
    }
}

fn refresh_after(dns: &Dns, ttl: Option<Duration>, random: &dyn Random) -> Duration {
    let ttl = ttl.filter(|ttl| dns.respect_ttl && !ttl.is_zero());
    ttl.unwrap_or(dns.refresh_rate) + part(dns.jitter, random)
}

/// Doubling from the base to the maximum, each time a random part of it: Envoy's jittered back-off.
fn retry_after(dns: &Dns, failures: u32, random: &dyn Random) -> Duration {
    let Some((base, most)) = dns.failure_refresh_rate else { return refresh_after(dns, None, random) };
    let longest = base.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(most.max(base));
    part(longest, random).max(Duration::from_millis(1))
}

fn part(of: Duration, random: &dyn Random) -> Duration {
    let millis = u64::try_from(of.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random.next().checked_rem(millis).unwrap_or(0))
}
