//! `envoy.filters.network.rbac`: who may connect to what.

mod judge;

use std::borrow::Cow;
use std::sync::Arc;

use proxy_config::model::metadata::{Struct, Value};
use proxy_config::model::network_filter::{Rbac as Config, RbacAction};

pub(crate) use self::judge::{Judgement, Subject, judge, value_at};
use super::gates::{Close, Verdict};
use crate::net::facts::Facts;
use crate::telemetry::Flags;
use crate::telemetry::stats::{Stats, stats_block};

stats_block! {
    /// `<stat_prefix>.rbac.`
    pub struct RbacStats {
        counter allowed;
        counter denied;
    }
}

stats_block! {
    /// `<stat_prefix>.rbac.[<shadow_rules_stat_prefix>.]`
    pub struct RbacShadowStats {
        counter shadow_allowed;
        counter shadow_denied;
    }
}

/// Judges a connection once, by its first bytes or its end, whichever comes first. With
/// `enforcement_type: CONTINUOUS` Envoy asks again with every read; nothing that it judges by changes on a plain
/// connection, so the answer is the same and only counted once.
#[derive(Debug)]
pub struct Rbac {
    config: Config,
    stats: Arc<RbacStats>,
    shadow_stats: Arc<RbacShadowStats>,
}

impl Rbac {
    pub fn new(config: &Config, stats: &Stats) -> Self {
        let prefix = format!("{}rbac", with_dot(&config.stat_prefix));
        let shadow = format!("{prefix}.{}", config.shadow_rules_stat_prefix);
        Self {
            config: config.clone(),
            stats: stats.block(prefix),
            shadow_stats: stats.block(shadow.trim_end_matches('.')),
        }
    }

    /// Judges, counts, and leaves the judgement of the shadow rules in the dynamic metadata.
    pub fn check(&self, facts: &mut Facts) -> Verdict {
        if let Some(rules) = &self.config.shadow_rules {
            let judgement = judge(rules, Subject::connection(facts));
            let stats = &self.shadow_stats;
            if judgement.allowed {
                stats.shadow_allowed.inc()
            } else {
                stats.shadow_denied.inc()
            }
            note_shadow(&self.config.shadow_rules_stat_prefix, judgement, facts);
        }
        let Some(rules) = &self.config.rules else {
            return Verdict::Continue;
        };
        let judgement = judge(rules, Subject::connection(facts));
        if rules.action == RbacAction::Log {
            let fields = metadata(facts, "envoy.common");
            fields.insert("access_log_hint".to_owned(), Value::Bool(judgement.policy.is_some()));
        }
        if judgement.allowed {
            self.stats.allowed.inc();
            return Verdict::Continue;
        }
        self.stats.denied.inc();
        Verdict::Close(Close {
            flags: Flags::NONE,
            details: Cow::Borrowed("rbac_deny_close"),
            response_code_details: None,
            termination_details: Some(denial(judgement.policy).into()),
            delay: self.config.delay_deny.filter(|delay| !delay.is_zero()),
            drain: true,
        })
    }
}

fn with_dot(prefix: &str) -> Cow<'_, str> {
    if prefix.is_empty() || prefix.ends_with('.') { prefix.into() } else { format!("{prefix}.").into() }
}

/// Log lines are split at white space, so there is none in it.
pub(crate) fn denial(policy: Option<&str>) -> String {
    let name = policy.unwrap_or("none");
    let name = name.replace([' ', '\t', '\n', '\r', '\x0b', '\x0c'], "_");
    format!("rbac_access_denied_matched_policy[{name}]")
}

fn note_shadow(prefix: &str, judgement: Judgement<'_>, facts: &mut Facts) {
    let fields = metadata(facts, "envoy.filters.network.rbac");
    let result = if judgement.allowed { "allowed" } else { "denied" };
    fields.insert(format!("{prefix}shadow_engine_result"), Value::String(result.to_owned()));
    if let Some(policy) = judgement.policy {
        fields.insert(format!("{prefix}shadow_effective_policy_id"), Value::String(policy.to_owned()));
    }
}

fn metadata<'a>(facts: &'a mut Facts, namespace: &str) -> &'a mut Struct {
    facts.extra_mut().dynamic_metadata.0.get_or_insert_with(namespace, Struct::new)
}

#[cfg(test)]
mod tests;
