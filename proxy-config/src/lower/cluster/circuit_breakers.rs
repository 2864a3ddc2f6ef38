//! `config.cluster.v3.CircuitBreakers`.

use envoy_types::pb::envoy::config::cluster::v3::CircuitBreakers;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::{Thresholds, thresholds::RetryBudget};
use envoy_types::pb::envoy::config::core::v3::RoutingPriority;

use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::lower::{Cx, IsSet};
use crate::model::cluster as model;

const BUDGET_PERCENT: f64 = 20.0;
const MIN_RETRIES: u32 = 3;

registry! { CircuitBreakers, Thresholds, RetryBudget }

lower! { "envoy.config.cluster.v3.CircuitBreakers" CircuitBreakers => model::CircuitBreakers, cx;
    read { thresholds, per_host_thresholds }
    {
        let mut breakers = model::CircuitBreakers::default();
        let (mut default_seen, mut high_seen) = (false, false);
        for (i, (priority, lowered)) in cx.list("thresholds", thresholds).into_iter().enumerate() {
            let (slot, seen) = match priority {
                RoutingPriority::Default => (&mut breakers.default, &mut default_seen),
                RoutingPriority::High => (&mut breakers.high, &mut high_seen),
            };
            if std::mem::replace(seen, true) {
                cx.field("thresholds", |cx| {
                    cx.index(i, |cx| cx.warn_here("comes after another of this priority, and the first holds"));
                });
            } else {
                *slot = lowered;
            }
        }
        breakers.per_host_max_connections =
            cx.field("per_host_thresholds", |cx| per_host_max_connections(cx, per_host_thresholds));
        Some(breakers)
    }
}

/// Envoy takes `max_connections` per host, and refuses the rest.
fn per_host_max_connections(cx: &mut Cx, thresholds: Vec<Thresholds>) -> Option<u32> {
    let mut found = None;
    let mut seen = false;
    for (i, threshold) in thresholds.into_iter().enumerate() {
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = threshold;
        cx.index(i, |cx| {
            let others = [
                ("max_pending_requests", max_pending_requests.is_set()),
                ("max_requests", max_requests.is_set()),
                ("max_retries", max_retries.is_set()),
                ("retry_budget", retry_budget.is_set()),
                ("track_remaining", track_remaining.is_set()),
                ("max_connection_pools", max_connection_pools.is_set()),
            ];
            for (name, _) in others.into_iter().filter(|(_, set)| *set) {
                cx.reject(name, "per_host_thresholds take max_connections only");
            }
            match cx.variant::<RoutingPriority>("priority", priority) {
                Some(RoutingPriority::Default) if seen => {
                    cx.warn_here("comes after another of this priority, and the first holds");
                }
                Some(RoutingPriority::Default) => {
                    seen = true;
                    found = max_connections.map(|v| v.value);
                }
                Some(RoutingPriority::High) => cx.warn("priority", "HIGH is for HTTP routes only"),
                None => {}
            }
        });
    }
    found
}

lower! { "envoy.config.cluster.v3.CircuitBreakers.Thresholds" Thresholds => (RoutingPriority, model::Thresholds), cx;
    read {
        priority, max_connections, max_pending_requests, max_requests, max_retries, track_remaining,
        max_connection_pools, retry_budget,
    }
    {
        let default = model::Thresholds::default();
        let priority = cx.variant::<RoutingPriority>("priority", priority)?;
        let thresholds = model::Thresholds {
            max_connections: max_connections.map_or(default.max_connections, |v| v.value),
            max_pending_requests: max_pending_requests.map_or(default.max_pending_requests, |v| v.value),
            max_requests: max_requests.map_or(default.max_requests, |v| v.value),
            max_retries: max_retries.map_or(default.max_retries, |v| v.value),
            track_remaining,
            max_connection_pools: max_connection_pools.map_or(default.max_connection_pools, |v| v.value),
            retry_budget: retry_budget.and_then(|budget| cx.lower("retry_budget", budget)),
        };
        Some((priority, thresholds))
    }
}

lower! { "envoy.config.cluster.v3.CircuitBreakers.Thresholds.RetryBudget" RetryBudget => model::RetryBudget, cx;
    read { budget_percent, min_retry_concurrency }
    warn { budget_interval: "the budget is of the requests that are active" }
    {
        let budget_percent = match budget_percent {
            Some(percent) => cx.lower("budget_percent", percent),
            None => Some(BUDGET_PERCENT),
        };
        Some(model::RetryBudget {
            min_retry_concurrency: number(min_retry_concurrency).unwrap_or(MIN_RETRIES),
            budget_percent: budget_percent?,
        })
    }
}
