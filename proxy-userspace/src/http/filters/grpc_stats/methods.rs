//! `cluster.<name>.grpc.[<service>.<method>.]`

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderMap;
use proxy_config::model::http::filters::{GrpcMethods, GrpcStats as Config};

use crate::telemetry::stats::{Counter, Stats, stats_block};

/// Peers choose what they call: beyond so many methods the others are counted together.
const MOST: usize = 4_096;

stats_block! {
    /// Its histogram.
    pub struct TimeStats {
        histogram upstream_rq_time;
    }
}

/// Its counters, those of statuses as they come.
pub(crate) struct Method {
    all: Arc<Stats>,
    prefix: String,
    pub(crate) request_messages: Arc<Counter>,
    pub(crate) response_messages: Arc<Counter>,
    success: Arc<Counter>,
    failure: Arc<Counter>,
    total: Arc<Counter>,
    ok: Arc<Counter>,
    time: Arc<TimeStats>,
}

pub(crate) struct Methods {
    which: GrpcMethods,
    replace_dots: bool,
    /// `grpc` or `grpc-web`.
    protocol: &'static str,
    all: Arc<Stats>,
    /// By cluster and path.
    known: RwLock<HashMap<String, Arc<Method>>>,
}

impl Methods {
    pub(crate) fn new(config: &Config, all: Arc<Stats>, protocol: &'static str) -> Self {
        let (which, replace_dots) = (config.methods.clone(), config.replace_dots_in_grpc_service_name);
        Self { which, replace_dots, protocol, all, known: RwLock::default() }
    }

    /// None: the path is not one of gRPC.
    pub(crate) fn of(&self, cluster: &str, path: &str) -> Option<Arc<Method>> {
        let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
        if service.is_empty() || method.is_empty() || service.contains('/') {
            return None;
        }
        let named = match &self.which {
            GrpcMethods::None => false,
            GrpcMethods::All => true,
            GrpcMethods::Listed(listed) => {
                let listed = listed.iter().find(|(known, _)| **known == *service);
                listed.is_some_and(|(_, methods)| methods.iter().any(|known| **known == *method))
            }
        };
        Some(self.counted(cluster, named.then_some((service, method))))
    }

    fn counted(&self, cluster: &str, named: Option<(&str, &str)>) -> Arc<Method> {
        let key = match named {
            Some((service, method)) => format!("{cluster}/{service}/{method}"),
            None => cluster.to_owned(),
        };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(method) = known.get(&key) {
            return method.clone();
        }
        if named.is_some() && known.len() >= MOST {
            drop(known);
            return self.counted(cluster, None);
        }
        drop(known);
        let method = Arc::new(self.make(cluster, named));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_insert(method).clone()
    }

    fn make(&self, cluster: &str, named: Option<(&str, &str)>) -> Method {
        let cluster = cluster.replace(':', "_");
        let mut prefix = format!("cluster.{cluster}.{}", self.protocol);
        if let Some((service, method)) = named {
            let service = if self.replace_dots { service.replace('.', "_") } else { service.to_owned() };
            prefix = format!("{prefix}.{service}.{method}");
        }
        let counter = |name: &str| self.all.counter(format!("{prefix}.{name}"));
        Method {
            request_messages: counter("request_message_count"),
            response_messages: counter("response_message_count"),
            success: counter("success"),
            failure: counter("failure"),
            total: counter("total"),
            ok: counter("0"),
            time: self.all.block(prefix.as_str()),
            all: self.all.clone(),
            prefix,
        }
    }
}

impl Method {
    /// By the status in trailers, or in the headers of a response without a body; none: it is still to come.
    pub(crate) fn ended(&self, headers: &HeaderMap) {
        let Some(status) = headers.get("grpc-status") else { return };
        self.total.inc();
        match status.as_bytes() {
            b"0" => {
                self.ok.inc();
                self.success.inc();
            }
            // What a server may say is a number, and a short one.
            digits @ ([_] | [_, _]) if digits.iter().all(u8::is_ascii_digit) => {
                let status = String::from_utf8_lossy(digits);
                self.all.counter(format!("{}.{status}", self.prefix)).inc();
                self.failure.inc();
            }
            _ => self.failure.inc(),
        }
    }
}

impl std::ops::Deref for Method {
    type Target = TimeStats;

    fn deref(&self) -> &TimeStats {
        &self.time
    }
}
