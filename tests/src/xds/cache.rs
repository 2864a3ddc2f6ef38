//! What a server knows, and what each stream has been told of it: both protocols, without any I/O.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::push::Push;
use super::request::Request;
use super::resource::{Resource, Type};
use super::wire::{Any, DeltaDiscoveryResponse, DiscoveryResponse, WRAPPED, Wrapped, span_of};

/// The resources of each type, with versions: a number that grows with each change.
#[derive(Debug, Default)]
pub(super) struct Cache {
    tables: BTreeMap<Type, Table>,
}

#[derive(Debug, Default)]
struct Table {
    version: u64,
    resources: BTreeMap<String, (u64, Resource)>,
}

impl Cache {
    /// Whether that changes anything.
    pub(super) fn set(&mut self, resource: Resource) -> bool {
        let table = self.tables.entry(resource.of).or_default();
        if table.resources.get(&resource.name).is_some_and(|(_, known)| *known == resource) {
            return false;
        }
        table.version += 1;
        table.resources.insert(resource.name.clone(), (table.version, resource));
        true
    }

    pub(super) fn remove(&mut self, of: Type, name: &str) -> bool {
        let table = self.tables.entry(of).or_default();
        let gone = table.resources.remove(name).is_some();
        table.version += u64::from(gone);
        gone
    }

    pub(super) fn names(&self, of: Type) -> Vec<String> {
        self.tables.get(&of).map(|table| table.resources.keys().cloned().collect()).unwrap_or_default()
    }

    fn version(&self, of: Type) -> u64 {
        self.tables.get(&of).map_or(0, |table| table.version)
    }

    fn get(&self, of: Type, name: &str) -> Option<&(u64, Resource)> {
        self.tables.get(&of)?.resources.get(name)
    }
}

/// What a stream has asked for of one type, and what it was told.
#[derive(Debug)]
pub(super) struct Subscription {
    of: Type,
    delta: bool,
    all: bool,
    names: BTreeSet<String>,
    sent: u64,
    /// Of the last response.
    pub(super) nonce: String,
    /// Of the state of the world.
    version: Option<u64>,
    /// Of a delta: what the other side has.
    known: BTreeMap<String, String>,
    /// Of a delta: asked for anew, whatever it has.
    wanted: BTreeSet<String>,
    /// The last response is answered.
    pub(super) answered: bool,
    /// The last answer was a NACK.
    pub(super) refused: Option<String>,
}

impl Subscription {
    pub(super) fn new(of: Type, delta: bool, first: &Request) -> Self {
        Self {
            of,
            delta,
            all: first.names.is_empty(),
            names: BTreeSet::new(),
            sent: 0,
            nonce: String::new(),
            version: None,
            known: first.initial_versions.clone(),
            wanted: BTreeSet::new(),
            answered: true,
            refused: None,
        }
    }

    /// Takes a request in. A stale one says nothing: it crossed with a response.
    pub(super) fn asked(&mut self, request: &Request) {
        if request.nonce == self.nonce && !self.nonce.is_empty() {
            self.answered = true;
            self.refused.clone_from(&request.error);
        } else if !self.delta && self.sent > 0 {
            return;
        }
        if self.delta {
            self.wanted.extend(request.names.iter().filter(|name| *name != "*").cloned());
            self.names.extend(self.wanted.iter().cloned());
            for name in &request.unsubscribe {
                self.names.remove(name);
                self.wanted.remove(name);
                self.known.remove(name);
            }
            self.all |= request.names.iter().any(|name| name == "*");
            self.all &= !request.unsubscribe.iter().any(|name| name == "*");
            return;
        }
        let names: BTreeSet<String> = request.names.iter().cloned().collect();
        if !names.is_subset(&self.names) {
            // New names are answered whatever the version.
            self.version = None;
        }
        if self.sent == 0 && self.all && !request.version.is_empty() {
            self.version = request.version.parse().ok();
        }
        self.all = self.all && names.is_empty() || names.contains("*");
        self.names = names;
    }

    /// What there is to say now, if anything.
    pub(super) fn answer(&mut self, cache: &Cache) -> Option<Bytes> {
        if self.delta { self.change(cache) } else { self.state(cache) }
    }

    fn state(&mut self, cache: &Cache) -> Option<Bytes> {
        let version = cache.version(self.of);
        if self.version == Some(version) {
            return None;
        }
        let resources: Vec<Resource> =
            self.interest(cache).filter_map(|name| Some(cache.get(self.of, &name)?.1.clone())).collect();
        if !self.all && resources.is_empty() {
            return None;
        }
        self.version = Some(version);
        Some(self.encode(&Push { resources, version: Some(version.to_string()), ..Push::new(self.of) }))
    }

    fn change(&mut self, cache: &Cache) -> Option<Bytes> {
        let mut push = Push::new(self.of).version(&cache.version(self.of).to_string());
        for name in self.interest(cache).collect::<Vec<_>>() {
            let wanted = self.wanted.remove(&name);
            match cache.get(self.of, &name) {
                Some((version, resource)) => {
                    let version = version.to_string();
                    if wanted || self.known.get(&name) != Some(&version) {
                        push.versions.insert(name.clone(), version);
                        push.resources.push(resource.clone());
                    }
                }
                None if wanted || self.known.contains_key(&name) => push.removed.push(name),
                None => {}
            }
        }
        // The first answer is due even where there is nothing.
        let due = self.sent == 0 && self.all;
        (due || !push.resources.is_empty() || !push.removed.is_empty()).then(|| self.encode(&push))
    }

    /// The names that matter to it, also of what is gone.
    fn interest(&self, cache: &Cache) -> impl Iterator<Item = String> + use<> {
        let mut names = self.names.clone();
        if self.all {
            names.extend(cache.names(self.of));
            names.extend(self.known.keys().cloned());
        }
        names.into_iter()
    }

    /// A response, and what the other side will have by it.
    pub(super) fn encode(&mut self, push: &Push) -> Bytes {
        self.sent += 1;
        self.nonce = push.nonce.clone().unwrap_or_else(|| self.sent.to_string());
        (self.answered, self.refused) = (false, None);
        if self.delta { self.encode_delta(push) } else { self.encode_whole(push) }
    }

    fn encode_whole(&self, push: &Push) -> Bytes {
        let version = push.version.clone().unwrap_or_else(|| format!("pushed-{}", self.sent));
        let any = |resource: &Resource| match resource.ttl {
            None => resource.any(),
            // The version of such a resource is the response's.
            Some(_) => Any { type_url: WRAPPED.to_owned(), value: encoded(&resource.wrapped("")) },
        };
        let mut resources: Vec<Any> = push.resources.iter().map(any).collect();
        resources.extend(push.heartbeats.iter().map(|(name, ttl)| Any {
            type_url: WRAPPED.to_owned(),
            value: encoded(&Wrapped { name: name.clone(), ttl: Some(span_of(*ttl)), ..Wrapped::default() }),
        }));
        let type_url = push.type_url.clone().unwrap_or_else(|| self.of.url());
        encoded(&DiscoveryResponse { version_info: version, resources, type_url, nonce: self.nonce.clone() })
    }

    fn encode_delta(&mut self, push: &Push) -> Bytes {
        let own = format!("pushed-{}", self.sent);
        let mut resources = Vec::new();
        for resource in &push.resources {
            let version = push.versions.get(&resource.name).or(push.version.as_ref()).unwrap_or(&own);
            self.known.insert(resource.name.clone(), version.clone());
            resources.push(resource.wrapped(version));
        }
        for name in &push.removed {
            self.known.remove(name);
        }
        for (name, ttl) in &push.heartbeats {
            let version = self.known.get(name).cloned().unwrap_or_default();
            resources.push(Wrapped { version, resource: None, name: name.clone(), ttl: Some(span_of(*ttl)) });
        }
        encoded(&DeltaDiscoveryResponse {
            system_version_info: push.version.clone().unwrap_or(own),
            resources,
            type_url: push.type_url.clone().unwrap_or_else(|| self.of.url()),
            nonce: self.nonce.clone(),
            removed_resources: push.removed.clone(),
        })
    }
}

fn encoded(message: &impl prost::Message) -> Bytes {
    message.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn endpoints(name: &str, port: u16) -> Resource {
        let at = format!("{{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}");
        let text = format!(
            "{{ cluster_name: {name}, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {at} }} }} ] }} ] }}"
        );
        Resource::new(Type::Endpoints, &text).expect("valid")
    }

    fn request(delta: bool, names: &[&str], nonce: &str) -> Request {
        let mut request = Request::decode(delta, "test", Bytes::new()).expect("empty");
        request.names = names.iter().map(|name| (*name).to_owned()).collect();
        request.nonce = nonce.to_owned();
        request
    }

    fn cache() -> Cache {
        let mut cache = Cache::default();
        assert!(cache.set(endpoints("a", 1)) && cache.set(endpoints("b", 2)));
        assert!(!cache.set(endpoints("b", 2)));
        cache
    }

    #[test]
    fn the_state_of_the_world_is_told_once_for_each_version() {
        let mut cache = cache();
        let first = request(false, &["a"], "");
        let mut sub = Subscription::new(Type::Endpoints, false, &first);
        sub.asked(&first);
        let answer = DiscoveryResponse::decode(sub.answer(&cache).expect("an answer")).expect("valid");
        assert_eq!((answer.version_info.as_str(), answer.resources.len()), ("2", 1));
        assert_eq!(sub.answer(&cache), None);
        sub.asked(&request(false, &["a"], "1"));
        assert!(sub.answered && sub.answer(&cache).is_none());
        sub.asked(&request(false, &["a", "b"], "1"));
        let answer = DiscoveryResponse::decode(sub.answer(&cache).expect("an answer")).expect("valid");
        assert_eq!(answer.resources.len(), 2);
        assert!(cache.remove(Type::Endpoints, "a"));
        assert!(sub.answer(&cache).is_some());
        // It crossed with the response.
        sub.asked(&request(false, &[], "1"));
        assert!(!sub.answered);
    }

    #[test]
    fn a_delta_tells_what_is_new_and_what_is_gone() {
        let mut cache = cache();
        let mut first = request(true, &["a", "c"], "");
        first.initial_versions.insert("a".to_owned(), "1".to_owned());
        let mut sub = Subscription::new(Type::Endpoints, true, &first);
        sub.asked(&first);
        let answer = DeltaDiscoveryResponse::decode(sub.answer(&cache).expect("an answer")).expect("valid");
        assert_eq!(answer.resources.len(), 1);
        assert_eq!(answer.removed_resources, ["c"]);
        sub.asked(&request(true, &[], "1"));
        assert_eq!(sub.answer(&cache), None);
        assert!(cache.set(endpoints("a", 7)) && cache.set(endpoints("b", 7)));
        let answer = DeltaDiscoveryResponse::decode(sub.answer(&cache).expect("an answer")).expect("valid");
        let names: Vec<_> = answer.resources.iter().map(|resource| resource.name.as_str()).collect();
        assert_eq!(names, ["a"]);
    }
}
