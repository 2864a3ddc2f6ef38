//! Which metrics there are and which labels each has, by the configuration: worked out once.

use std::collections::BTreeMap;
use std::sync::Arc;

use proxy_config::model::expression::Expression;
use proxy_config::model::http::istio::{IstioMetricKind, IstioStats};

use super::labels::{COUNT, NAMES, PEERS};
use crate::telemetry::stats::Kind;

/// Istio's standard ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Requests,
    Duration,
    RequestBytes,
    ResponseBytes,
    RequestMessages,
    ResponseMessages,
    Opened,
    Closed,
    Sent,
    Received,
}

/// Metrics that are told together have the same labels to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A request that is over.
    Http,
    /// Messages of a stream that goes on: how it will end is not known.
    Messages,
    Tcp,
}

pub(super) const METRICS: [Metric; 10] = [
    Metric::Requests,
    Metric::Duration,
    Metric::RequestBytes,
    Metric::ResponseBytes,
    Metric::RequestMessages,
    Metric::ResponseMessages,
    Metric::Opened,
    Metric::Closed,
    Metric::Sent,
    Metric::Received,
];

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests_total",
            Self::Duration => "request_duration_milliseconds",
            Self::RequestBytes => "request_bytes",
            Self::ResponseBytes => "response_bytes",
            Self::RequestMessages => "request_messages_total",
            Self::ResponseMessages => "response_messages_total",
            Self::Opened => "tcp_connections_opened_total",
            Self::Closed => "tcp_connections_closed_total",
            Self::Sent => "tcp_sent_bytes_total",
            Self::Received => "tcp_received_bytes_total",
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Self::Duration | Self::RequestBytes | Self::ResponseBytes => Kind::Histogram,
            Self::Requests
            | Self::RequestMessages
            | Self::ResponseMessages
            | Self::Opened
            | Self::Closed
            | Self::Sent
            | Self::Received => Kind::Counter,
        }
    }

    pub fn shape(self) -> Shape {
        match self {
            Self::Requests | Self::Duration | Self::RequestBytes | Self::ResponseBytes => Shape::Http,
            Self::RequestMessages | Self::ResponseMessages => Shape::Messages,
            Self::Opened | Self::Closed | Self::Sent | Self::Received => Shape::Tcp,
        }
    }
}

impl Shape {
    /// Which of the labels it has.
    pub fn has(self, label: usize) -> bool {
        let of_response =
            NAMES.get(label).is_some_and(|name| ["response_code", "grpc_response_status"].contains(name));
        match self {
            Self::Http => label < COUNT,
            Self::Messages => label < PEERS,
            Self::Tcp => label < COUNT && !of_response,
        }
    }
}

/// Where a label's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Standard(usize),
    Expression(usize),
}

pub(super) type Tags = Vec<(Arc<str>, Origin)>;

/// What is told of one request or connection.
#[derive(Debug)]
pub(super) struct Plan {
    pub expressions: Vec<Expression>,
    /// Of each metric; `None`: it is dropped.
    pub standard: [Option<Tags>; METRICS.len()],
    pub custom: Vec<Custom>,
}

/// A metric of the configuration's own.
#[derive(Debug)]
pub(super) struct Custom {
    pub name: String,
    pub kind: Kind,
    pub value: Expression,
    pub tags: Tags,
}

/// What overrides make of a metric's labels.
#[derive(Default)]
struct Overrides {
    /// `None`: it goes.
    changed: BTreeMap<usize, Option<usize>>,
    added: Vec<(Arc<str>, usize)>,
}

fn standard_label(name: &str) -> Option<usize> {
    NAMES.iter().position(|label| *label == name)
}

impl Plan {
    pub(super) fn new(model: &IstioStats) -> Self {
        let mut custom: Vec<(Custom, Overrides)> = Vec::new();
        for definition in &model.definitions {
            let standard = METRICS.iter().any(|metric| metric.name() == &*definition.name);
            if standard || custom.iter().any(|(known, _)| known.name == *definition.name) {
                log::warn!("istio.stats: the metric \"{}\" is there already", definition.name);
                continue;
            }
            let kind = match definition.kind {
                IstioMetricKind::Counter => Kind::Counter,
                IstioMetricKind::Gauge => Kind::Gauge,
                IstioMetricKind::Histogram => Kind::Histogram,
            };
            let (name, value) = (definition.name.to_string(), definition.value.clone());
            custom.push((Custom { name, kind, value, tags: Tags::new() }, Overrides::default()));
        }
        let mut dropped = [false; METRICS.len()];
        let mut overrides = METRICS.map(|_| Overrides::default());
        let mut expressions = Vec::new();
        for metric in &model.metrics {
            let is = |name: &str| metric.name.is_empty() || *metric.name == *name;
            if metric.drop {
                let found =
                    METRICS.iter().zip(&mut dropped).filter(|(known, _)| known.name() == &*metric.name);
                found.for_each(|(_, dropped)| *dropped = true);
                continue;
            }
            for tag in &metric.tags_to_remove {
                let Some(label) = standard_label(tag) else {
                    log::info!("istio.stats: the label \"{tag}\" is none of the standard ones");
                    continue;
                };
                let of = METRICS.iter().zip(&mut overrides).filter(|(known, _)| is(known.name()));
                for (_, overrides) in of {
                    overrides.changed.insert(label, None);
                }
            }
            for (tag, expression) in &metric.dimensions {
                let id = expression.as_ref().map(|expression| {
                    expressions.push(expression.clone());
                    expressions.len() - 1
                });
                let of = METRICS.iter().zip(&mut overrides).filter(|(known, _)| is(known.name()));
                match (standard_label(tag), id) {
                    (Some(label), id) => {
                        for (_, known) in of {
                            known.changed.insert(label, id);
                        }
                    }
                    (None, Some(id)) => of.for_each(|(_, known)| known.added.push((tag.clone(), id))),
                    (None, None) => {}
                }
                if let Some(id) = id {
                    let own = custom.iter_mut().filter(|(known, _)| is(&known.name));
                    own.for_each(|(_, known)| known.added.push((tag.clone(), id)));
                }
            }
        }
        let mut standard = METRICS.map(|metric| Some(metric.shape()));
        let places = standard.iter_mut().zip(dropped).filter(|(_, dropped)| *dropped);
        places.for_each(|(metric, _)| *metric = None);
        let mut all = overrides.into_iter();
        let standard = standard.map(|shape| {
            let overrides = all.next().unwrap_or_default();
            shape.map(|shape| overrides.tags((0..COUNT).filter(|label| shape.has(*label))))
        });
        let custom = custom.into_iter().map(|(custom, overrides)| Custom {
            name: format!("istio_{}", custom.name),
            tags: overrides.tags(std::iter::empty()),
            ..custom
        });
        Self { expressions, standard, custom: custom.collect() }
    }
}

impl Overrides {
    fn tags(self, standard: impl Iterator<Item = usize>) -> Tags {
        let name = |label: usize| Arc::from(NAMES.get(label).copied().unwrap_or_default());
        let kept = standard.filter_map(|label| match self.changed.get(&label) {
            None => Some((name(label), Origin::Standard(label))),
            Some(Some(id)) => Some((name(label), Origin::Expression(*id))),
            Some(None) => None,
        });
        let mut tags: Tags = kept.collect();
        for (name, id) in self.added {
            // The last word counts: a label is there once.
            match tags.iter_mut().find(|(known, _)| *known == name) {
                Some((_, origin)) => *origin = Origin::Expression(id),
                None => tags.push((name, Origin::Expression(id))),
            }
        }
        tags
    }
}
