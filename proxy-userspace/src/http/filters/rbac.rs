//! `envoy.filters.http.rbac`: who may ask for what.

use std::sync::Arc;

use http::StatusCode;
use proxy_config::model::http::filters::HttpRbac;
use proxy_config::model::metadata::{Struct, Value};
use proxy_config::model::network_filter::{RbacAction, RbacRules};

use super::{FilterCx, RouteConfig};
use crate::http::Stream;
use crate::http::filter::{Filter, LocalReply, Step, StreamFilter};
use crate::network::rbac::{Judgement, RbacShadowStats, RbacStats, Subject, denial, judge};
use crate::telemetry::Flags;
use crate::telemetry::stats::Stats;

const NAMESPACE: &str = "envoy.filters.http.rbac";

pub(super) struct Rbac(Arc<Shared>);

struct Shared {
    name: Arc<str>,
    config: HttpRbac,
    /// `http.<stat_prefix>.rbac.[<rules_stat_prefix>.]`
    stats: Arc<RbacStats>,
    shadow_stats: Arc<RbacShadowStats>,
    /// For the stats of single policies.
    all: Arc<Stats>,
    prefix: String,
}

struct One(Arc<Shared>);

impl Rbac {
    pub(super) fn new(config: &HttpRbac, cx: &FilterCx<'_>) -> Self {
        let all = cx.parts.cluster.stats.clone();
        let prefix = format!("{}.rbac", cx.prefix);
        let under = |rules: &str| format!("{prefix}.{rules}").trim_end_matches('.').to_owned();
        Self(Arc::new(Shared {
            name: cx.name.clone(),
            config: config.clone(),
            stats: all.block(under(&config.rules_stat_prefix)),
            shadow_stats: all.block(under(&config.shadow_rules_stat_prefix)),
            all,
            prefix,
        }))
    }
}

impl Filter for Rbac {
    fn begin(&self, _: &Stream) -> Option<Box<dyn StreamFilter>> {
        Some(Box::new(One(self.0.clone())))
    }
}

impl StreamFilter for One {
    fn request<'a>(&'a mut self, stream: &'a mut Stream) -> Step<'a> {
        let shared = &*self.0;
        let route = stream.route();
        let config = match route.as_deref().and_then(|route| route.filters().config(&shared.name)) {
            Some(RouteConfig::Rbac(None)) => return Step::Next,
            Some(RouteConfig::Rbac(Some(own))) => own,
            Some(_) | None => &shared.config,
        };
        if let Some(rules) = &config.shadow_rules {
            shared.shadow(rules, config, stream);
        }
        match &config.rules {
            Some(rules) => shared.enforce(rules, config, stream).map_or(Step::Next, Step::reply),
            None => Step::Next,
        }
    }
}

impl Shared {
    fn shadow(&self, rules: &RbacRules, config: &HttpRbac, stream: &mut Stream) {
        let judgement = ask(rules, stream);
        let what = if judgement.allowed { "shadow_allowed" } else { "shadow_denied" };
        match judgement.allowed {
            true => self.shadow_stats.shadow_allowed.inc(),
            false => self.shadow_stats.shadow_denied.inc(),
        }
        self.per_policy(config, judgement, what);
        let prefix = first_of(&config.shadow_rules_stat_prefix, &self.config.shadow_rules_stat_prefix);
        note(stream, prefix, "shadow", judgement);
    }

    fn enforce(&self, rules: &RbacRules, config: &HttpRbac, stream: &mut Stream) -> Option<LocalReply> {
        let judgement = ask(rules, stream);
        if rules.action == RbacAction::Log {
            let hint = Value::Bool(judgement.policy.is_some());
            metadata(stream, "envoy.common").insert("access_log_hint".to_owned(), hint);
        }
        let prefix = first_of(&config.rules_stat_prefix, &self.config.rules_stat_prefix);
        note(stream, prefix, "enforced", judgement);
        if judgement.allowed {
            self.stats.allowed.inc();
            self.per_policy(config, judgement, "allowed");
            return None;
        }
        self.stats.denied.inc();
        self.per_policy(config, judgement, "denied");
        let details = denial(judgement.policy);
        Some(LocalReply::new(StatusCode::FORBIDDEN, "RBAC: access denied", Flags::NONE, details))
    }

    fn per_policy(&self, config: &HttpRbac, judgement: Judgement<'_>, what: &str) {
        if let (true, Some(policy)) = (config.track_per_rule_stats, judgement.policy) {
            self.all.counter(format!("{}.policy.{policy}.{what}", self.prefix)).inc();
        }
    }
}

fn ask<'a>(rules: &'a RbacRules, stream: &Stream) -> Judgement<'a> {
    judge(rules, Subject::request(&stream.entry.facts, stream.http()))
}

fn first_of<'a>(own: &'a str, otherwise: &'a str) -> &'a str {
    if own.is_empty() { otherwise } else { own }
}

fn note(stream: &mut Stream, prefix: &str, engine: &str, judgement: Judgement<'_>) {
    let fields = metadata(stream, NAMESPACE);
    let result = if judgement.allowed { "allowed" } else { "denied" };
    fields.insert(format!("{prefix}{engine}_engine_result"), Value::String(result.to_owned()));
    if let Some(policy) = judgement.policy {
        let policy = Value::String(policy.to_owned());
        fields.insert(format!("{prefix}{engine}_effective_policy_id"), policy);
    }
}

fn metadata<'a>(stream: &'a mut Stream, namespace: &str) -> &'a mut Struct {
    stream.http_mut().dynamic_metadata.0.get_or_insert_with(namespace, Struct::new)
}
