//! Assignments of many endpoints, of which a control plane says all again whenever one has changed.
//!
//! What the last assignment had in the same bytes is not read again: it is named by its place in that one. Whatever is
//! unusual is read as a whole, so that both ways say the same.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use prost::Message as _;

use super::{Decoder, RawResource, unknown};
use crate::decode::any;
use crate::diagnostic::{Diagnostic, Path, Segment, Severity};
use crate::lower::endpoint::{Pool, alone};
use crate::lower::{Cx, Lower};
use crate::model::address::Address;
use crate::model::endpoint::{AssignmentPolicy, Endpoint, LoadAssignment, LocalityEndpoints};
use crate::proto::schema;
use crate::proto::wire::{Fields, Value, begin, end, put};

/// What an assignment says, compared with the last one.
#[derive(Clone, Debug)]
pub struct Assignment {
    pub policy: AssignmentPolicy,
    /// Without their endpoints.
    pub localities: Arc<[LocalityEndpoints]>,
    /// Of each of the localities.
    pub endpoints: Vec<Vec<Said>>,
    /// What was accepted without effect, of what was read.
    pub warnings: Vec<Diagnostic>,
    /// For the next one, where it is worth it.
    pub assigned: Option<Assigned>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// The endpoint at that place of the last assignment, its localities counted through; no place is named twice.
    Again(usize),
    New(Box<Endpoint>),
}

/// An assignment that was read. Cheap to keep: its bytes are those of the resource.
#[derive(Clone, Debug)]
pub struct Assigned {
    value: Bytes,
    localities: Arc<[LocalityEndpoints]>,
    /// The greatest weight of an endpoint.
    heaviest: u32,
    pool: Pool,
}

/// Fewer endpoints are read anew each time.
const MANY: usize = 64;
/// They are compared one by one.
const LOCALITIES: usize = 256;
/// So many allocations are shared with the endpoints of later assignments.
const POOLED: usize = 256;

const NAME: &str = pb::ClusterLoadAssignment::NAME;
const ENDPOINTS: u32 = 2;
const NAMED_ENDPOINTS: u32 = 5;
const LB_ENDPOINTS: u32 = 2;

impl Assignment {
    /// The meaning of a `ClusterLoadAssignment`, or everything that is wrong with it. It names nothing that is
    /// elsewhere. `before`: the last one.
    pub fn read(raw: &RawResource, before: Option<&Assigned>) -> Result<Self, Vec<Diagnostic>> {
        let is_one = any::type_name(&raw.type_url) == Ok(NAME);
        let parts = is_one.then(|| Parts::of(&raw.value)).flatten().filter(Parts::has_many);
        if let (Some(parts), Some(before)) = (&parts, before)
            && let Some(assignment) = compared(&raw.value, parts, before)
        {
            return Ok(assignment);
        }
        let (model, warnings) = Decoder::default().lowered::<LoadAssignment>(raw)?;
        let names: Vec<_> = endpoints(&model).filter_map(name).collect();
        if !names.is_empty() {
            return Err(names);
        }
        Ok(whole(model, warnings, parts.is_some().then_some(&raw.value)))
    }
}

fn endpoints(model: &LoadAssignment) -> impl Iterator<Item = &Endpoint> {
    model.localities.iter().flat_map(|locality| &locality.endpoints)
}

/// Nobody resolves the names of an assignment that has come, as in Envoy.
fn name(endpoint: &Endpoint) -> Option<Diagnostic> {
    let Address::Host(host) = &endpoint.address else { return None };
    let why = format!(
        "malformed IP address: {}. Consider setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'",
        host.host
    );
    let path = start().field("endpoints");
    Some(Diagnostic { severity: Severity::Error, position: None, path, why })
}

fn start() -> Path {
    let mut path = Path::default();
    path.push(Segment::Type(NAME.rsplit('.').next().unwrap_or_default().to_owned()));
    path
}

/// All of it is new.
fn whole(model: LoadAssignment, warnings: Vec<Diagnostic>, value: Option<&Bytes>) -> Assignment {
    let heaviest = endpoints(&model).map(|endpoint| endpoint.load_balancing_weight).max();
    let (mut localities, mut all) = (Vec::with_capacity(model.localities.len()), Vec::new());
    for mut locality in model.localities {
        let endpoints = std::mem::take(&mut locality.endpoints);
        all.push(endpoints.into_iter().map(|endpoint| Said::New(Box::new(endpoint))).collect());
        localities.push(locality);
    }
    let localities: Arc<[_]> = localities.into();
    let assigned = value.map(|value| Assigned {
        value: value.clone(),
        localities: localities.clone(),
        heaviest: heaviest.unwrap_or(1),
        pool: Pool::default(),
    });
    Assignment { policy: model.policy, localities, endpoints: all, warnings, assigned }
}

/// An assignment with its endpoints apart.
struct Parts<'a> {
    /// An assignment without endpoints, encoded.
    head: Vec<u8>,
    localities: Vec<Vec<&'a [u8]>>,
}

impl<'a> Parts<'a> {
    /// `None` where an endpoint may mean something else in another assignment, and for what is no assignment.
    fn of(value: &'a [u8]) -> Option<Self> {
        let (mut head, mut localities) = (Vec::new(), Vec::new());
        for field in Fields(value) {
            match field.ok()? {
                (ENDPOINTS, Value::Bytes(locality)) => {
                    let start = begin(&mut head, ENDPOINTS);
                    localities.push(of_locality(locality, &mut head)?);
                    end(&mut head, start);
                }
                (NAMED_ENDPOINTS, _) => return None,
                (number, value) => put(&mut head, number, value),
            }
        }
        Some(Self { head, localities })
    }

    /// So many that it is worth to compare them, and not so many localities that it is not.
    fn has_many(&self) -> bool {
        self.count() >= MANY && self.localities.len() <= LOCALITIES
    }

    fn count(&self) -> usize {
        self.localities.iter().map(Vec::len).sum()
    }
}

/// The endpoints; what else there is goes to the head.
fn of_locality<'a>(locality: &'a [u8], head: &mut Vec<u8>) -> Option<Vec<&'a [u8]>> {
    let mut endpoints = Vec::new();
    for field in Fields(locality) {
        match field.ok()? {
            (LB_ENDPOINTS, Value::Bytes(endpoint)) => endpoints.push(endpoint),
            (number, value) => put(head, number, value),
        }
    }
    Some(endpoints)
}

/// `None` where it has to be read as a whole.
fn compared(value: &Bytes, parts: &Parts<'_>, before: &Assigned) -> Option<Assignment> {
    let (model, mut warnings) = head(&parts.head)?;
    let known = Parts::of(&before.value)?;
    let mut read =
        Read { before, pool: before.pool.clone(), heaviest: before.heaviest, warnings: Vec::new() };
    let mut all = Vec::with_capacity(parts.localities.len());
    for (index, (locality, endpoints)) in model.localities.iter().zip(&parts.localities).enumerate() {
        let known = read.place(index, locality, &model).map(|at| Known::of(&known, at));
        all.push(read.locality(index, endpoints, known)?);
    }
    if u64::from(read.heaviest).saturating_mul(parts.count() as u64) > u32::MAX.into() {
        // The sum may be too much.
        return None;
    }
    warnings.append(&mut read.warnings);
    let localities: Arc<[_]> = model.localities.into();
    let pool = if read.pool.len() > POOLED { Pool::default() } else { read.pool };
    let assigned =
        Assigned { value: value.clone(), localities: localities.clone(), heaviest: read.heaviest, pool };
    Some(Assignment { policy: model.policy, localities, endpoints: all, warnings, assigned: Some(assigned) })
}

/// All but the endpoints.
fn head(bytes: &[u8]) -> Option<(LoadAssignment, Vec<Diagnostic>)> {
    let message = pb::ClusterLoadAssignment::decode(bytes).ok()?;
    let mut cx = Cx::at(start()).dynamic(None);
    let model = message.lower(&mut cx).filter(|_| !cx.failed())?;
    let mut warnings = cx.diagnostics;
    warnings.extend(unknown::fields(schema::message(NAME)?, bytes));
    Some((model, warnings))
}

/// A locality of the last assignment, of which some endpoints are named again.
struct Known<'a> {
    endpoints: &'a [&'a [u8]],
    named: Vec<bool>,
    /// The place of the first, all localities counted through.
    start: usize,
    /// What is as it was mostly is where it was.
    next: usize,
    /// Made when something is elsewhere.
    places: Option<HashMap<&'a [u8], usize, RandomState>>,
}

impl<'a> Known<'a> {
    fn of(parts: &'a Parts<'_>, at: usize) -> Self {
        let start = parts.localities.iter().take(at).map(Vec::len).sum();
        let endpoints = parts.localities.get(at).map_or(&[] as &[_], Vec::as_slice);
        Self { endpoints, named: vec![false; endpoints.len()], start, next: 0, places: None }
    }

    fn find(&mut self, endpoint: &[u8]) -> Option<usize> {
        let next = self.next;
        // Where it is not found, another one has taken its place.
        self.next += 1;
        let at = if self.endpoints.get(next) == Some(&endpoint) {
            next
        } else {
            let places = self.places.get_or_insert_with(|| {
                self.endpoints.iter().enumerate().map(|(at, endpoint)| (*endpoint, at)).collect()
            });
            *places.get(endpoint)?
        };
        let named = self.named.get_mut(at).filter(|named| !**named)?;
        *named = true;
        self.next = at + 1;
        Some(self.start + at)
    }
}

struct Read<'a> {
    before: &'a Assigned,
    pool: Pool,
    heaviest: u32,
    warnings: Vec<Diagnostic>,
}

impl Read<'_> {
    /// The locality of the last assignment whose endpoints are the same where their bytes are. One that is there
    /// twice, then or now, is none: the first has the endpoints of both.
    fn place(&self, index: usize, locality: &LocalityEndpoints, now: &LoadAssignment) -> Option<usize> {
        let same = |known: &&LocalityEndpoints| {
            known.locality == locality.locality
                && known.priority == locality.priority
                && known.transport_match == locality.transport_match
        };
        let before = &self.before.localities;
        if before.iter().filter(same).count() != 1 || now.localities.iter().filter(same).count() != 1 {
            return None;
        }
        if before.get(index).is_some_and(|known| same(&known)) {
            return Some(index);
        }
        before.iter().position(|known| same(&known))
    }

    fn locality(
        &mut self,
        index: usize,
        endpoints: &[&[u8]],
        mut known: Option<Known<'_>>,
    ) -> Option<Vec<Said>> {
        let said = endpoints.iter().enumerate().map(|(at, endpoint)| {
            match known.as_mut().and_then(|known| known.find(endpoint)) {
                Some(place) => Some(Said::Again(place)),
                None => self.new_one((index, at), endpoint).map(|endpoint| Said::New(Box::new(endpoint))),
            }
        });
        said.collect()
    }

    fn new_one(&mut self, (locality, at): (usize, usize), bytes: &[u8]) -> Option<Endpoint> {
        let mut path = start().field("endpoints");
        path.push(Segment::Index(locality));
        let mut path = path.field("lb_endpoints");
        path.push(Segment::Index(at));
        let message = pb::LbEndpoint::decode(bytes).ok()?;
        let mut cx = Cx::at(path.clone()).dynamic(None);
        let endpoint = alone(message, &mut self.pool, &mut cx).filter(|_| !cx.failed())?;
        if name(&endpoint).is_some() {
            return None;
        }
        self.heaviest = self.heaviest.max(endpoint.load_balancing_weight);
        self.warnings.append(&mut cx.diagnostics);
        let schema = schema::message(pb::LbEndpoint::NAME)?;
        self.warnings.extend(unknown::fields_at(path, schema, bytes));
        Some(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xds::{Kind, file::Reader};

    /// `region: port port …`, each port an endpoint; a port above 9000 weighs more.
    fn raw(localities: &[(u8, Vec<u16>)], rest: &str) -> RawResource {
        let mut text =
            format!("resources:\n- '@type': {}\n  cluster_name: c\n{rest}", Kind::Endpoints.type_url());
        text.push_str("  endpoints:\n");
        for (region, ports) in localities {
            text.push_str(&format!("  - locality: {{ region: r{region} }}\n    priority: {}\n", region / 4));
            text.push_str(&format!("    load_balancing_weight: {}\n    lb_endpoints:\n", ports.len() + 1));
            for port in ports {
                let address = format!("{{ address: 10.0.0.1, port_value: {port} }}");
                let weight = if *port > 9000 { ", load_balancing_weight: 7" } else { "" };
                text.push_str(&format!(
                    "    - {{ endpoint: {{ address: {{ socket_address: {address} }} }}{weight} }}\n"
                ));
            }
        }
        Reader::new(Kind::Endpoints).read(&text).unwrap().resources.remove(0)
    }

    fn ports(from: u16, count: u16) -> Vec<u16> {
        (from..from + count).collect()
    }

    /// All endpoints of an assignment, given those of the last one.
    fn opened(said: &[Vec<Said>], before: &[Endpoint]) -> Vec<Endpoint> {
        let one = |said: &Said| match said {
            Said::Again(at) => before[*at].clone(),
            Said::New(endpoint) => (**endpoint).clone(),
        };
        said.iter().flatten().map(one).collect()
    }

    fn news(assignment: &Assignment) -> usize {
        assignment.endpoints.iter().flatten().filter(|said| matches!(said, Said::New(_))).count()
    }

    #[test]
    fn only_what_is_new_is_read() {
        let decoder = Decoder::default();
        let first = Assignment::read(&raw(&[(0, ports(1, 100)), (1, ports(500, 5))], ""), None).unwrap();
        assert_eq!(news(&first), 105);
        let mut some = ports(1, 100);
        some[7] = 300;
        some.remove(50);
        some.push(301);
        let next = [(1, ports(500, 5)), (0, some)];
        let second = Assignment::read(&raw(&next, ""), first.assigned.as_ref()).unwrap();
        assert_eq!(news(&second), 2);
        let all = opened(&second.endpoints, &opened(&first.endpoints, &[]));
        let whole = decoder.decode::<LoadAssignment>(&raw(&next, "")).unwrap();
        assert_eq!(all, endpoints(&whole.resource.model).cloned().collect::<Vec<_>>());
        // In another priority it is another endpoint.
        let moved = Assignment::read(&raw(&[(4, ports(1, 100))], ""), second.assigned.as_ref()).unwrap();
        assert_eq!(news(&moved), 100);
    }

    #[test]
    fn few_are_read_each_time() {
        let few = raw(&[(0, ports(1, 10))], "");
        assert!(Assignment::read(&few, None).unwrap().assigned.is_none());
    }

    #[test]
    fn names_are_no_addresses() {
        let first = Assignment::read(&raw(&[(0, ports(1, 100))], ""), None).unwrap();
        let text = format!(
            "resources: [{{'@type': {}, cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
             {{socket_address: {{address: a.example, port_value: 1}}}}}}}}]}}]}}]",
            Kind::Endpoints.type_url()
        );
        let named = Reader::new(Kind::Endpoints).read(&text).unwrap().resources.remove(0);
        for before in [None, first.assigned.as_ref()] {
            let found = Assignment::read(&named, before).unwrap_err();
            assert!(found[0].to_string().contains("endpoints: malformed IP address: a.example"), "{found:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_as_in_a_whole_one() {
        let first = Assignment::read(&raw(&[(0, ports(1, 100))], ""), None).unwrap();
        let mut bad = raw(&[(0, ports(1, 99))], "");
        let mut more = Vec::new();
        let locality = begin(&mut more, ENDPOINTS);
        put(&mut more, LB_ENDPOINTS, Value::Bytes(&[0x20, 1]));
        end(&mut more, locality);
        bad.value = [&bad.value[..], &more].concat().into();
        let wrong = |before| Assignment::read(&bad, before).unwrap_err();
        assert_eq!(wrong(first.assigned.as_ref()), wrong(None));
    }

    fn sets() -> impl Strategy<Value = Vec<(u8, Vec<u16>)>> {
        let some = prop::collection::vec(prop_oneof![1_u16..40, 9001_u16..9010], 0..60);
        prop::collection::vec((0_u8..6, some), 1..5).prop_map(|mut all| {
            all.push((9, ports(100, 64)));
            all
        })
    }

    proptest! {
        #[test]
        fn compared_or_whole_is_the_same(sequence in prop::collection::vec(sets(), 2..6)) {
            let decoder = Decoder::default();
            let (mut before, mut assigned) = (Vec::new(), None);
            for set in &sequence {
                let raw = raw(set, "  policy: { overprovisioning_factor: 150 }\n");
                let whole = decoder.decode::<LoadAssignment>(&raw).unwrap().resource.model;
                let read = Assignment::read(&raw, assigned.as_ref()).unwrap();
                prop_assert_eq!(&read.policy, &whole.policy);
                let mut named: Vec<_> = read.endpoints.iter().flatten().filter_map(|said| match said {
                    Said::Again(at) => Some(*at),
                    Said::New(_) => None,
                }).collect();
                let count = named.len();
                named.sort_unstable();
                named.dedup();
                prop_assert_eq!(named.len(), count, "each place once");
                let all = opened(&read.endpoints, &before);
                prop_assert_eq!(&all, &endpoints(&whole).cloned().collect::<Vec<_>>());
                for (ours, theirs) in read.localities.iter().zip(&whole.localities) {
                    prop_assert_eq!(ours, &LocalityEndpoints { endpoints: Vec::new(), ..theirs.clone() });
                }
                (before, assigned) = (all, read.assigned);
            }
        }
    }
}
