//! `config.cluster.v3.OutlierDetection`, with Envoy's defaults.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection;
use envoy_types::pb::google::protobuf::UInt32Value;

use super::scalars::{at_most, positive};
use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::model::cluster as model;

registry! { OutlierDetection }

lower! { "envoy.config.cluster.v3.OutlierDetection" OutlierDetection => model::OutlierDetection, cx;
    read {
        consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx,
        enforcing_success_rate, success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor,
        consecutive_gateway_failure, enforcing_consecutive_gateway_failure, split_external_local_origin_errors,
        consecutive_local_origin_failure, enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate, failure_percentage_threshold, enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin, failure_percentage_minimum_hosts,
        failure_percentage_request_volume, max_ejection_time, max_ejection_time_jitter,
        successful_active_health_check_uneject_host, always_eject_one_host,
    }
    reject { monitors: "outlier monitors are extensions, and none is built in" }
    warn { detect_degraded_hosts: "hosts are degraded by an HTTP response header, which TCP does not have" }
    {
        let base = positive(cx, "base_ejection_time", base_ejection_time).unwrap_or(Duration::from_secs(30));
        let max = ejection_limit(base, positive(cx, "max_ejection_time", max_ejection_time));
        if max < base {
            cx.reject("max_ejection_time", "must not be less than base_ejection_time");
        }
        Some(model::OutlierDetection {
            interval: positive(cx, "interval", interval).unwrap_or(Duration::from_secs(10)),
            base_ejection_time: base,
            max_ejection_time: max,
            max_ejection_time_jitter: cx.duration("max_ejection_time_jitter", max_ejection_time_jitter)
                .unwrap_or_default(),
            max_ejection_percent: hundred(cx, "max_ejection_percent", max_ejection_percent, 10),
            always_eject_one_host: always_eject_one_host.is_some_and(|v| v.value),
            split_external_local_origin_errors,
            successful_active_health_check_uneject_host: successful_active_health_check_uneject_host
                .is_none_or(|v| v.value),
            consecutive_5xx: model::Enforced {
                threshold: number(consecutive_5xx, 5),
                enforcing: hundred(cx, "enforcing_consecutive_5xx", enforcing_consecutive_5xx, 100),
            },
            consecutive_gateway_failure: model::Enforced {
                threshold: number(consecutive_gateway_failure, 5),
                enforcing: hundred(
                    cx, "enforcing_consecutive_gateway_failure", enforcing_consecutive_gateway_failure, 0,
                ),
            },
            consecutive_local_origin_failure: model::Enforced {
                threshold: number(consecutive_local_origin_failure, 5),
                enforcing: hundred(
                    cx, "enforcing_consecutive_local_origin_failure", enforcing_consecutive_local_origin_failure, 100,
                ),
            },
            success_rate: model::SuccessRate {
                enforcing: hundred(cx, "enforcing_success_rate", enforcing_success_rate, 100),
                enforcing_local_origin: hundred(
                    cx, "enforcing_local_origin_success_rate", enforcing_local_origin_success_rate, 100,
                ),
                minimum_hosts: number(success_rate_minimum_hosts, 5),
                request_volume: number(success_rate_request_volume, 100),
                stdev_factor: number(success_rate_stdev_factor, 1900),
            },
            failure_percentage: model::FailurePercentage {
                threshold: hundred(cx, "failure_percentage_threshold", failure_percentage_threshold, 85),
                enforcing: hundred(cx, "enforcing_failure_percentage", enforcing_failure_percentage, 0),
                enforcing_local_origin: hundred(
                    cx, "enforcing_failure_percentage_local_origin", enforcing_failure_percentage_local_origin, 0,
                ),
                minimum_hosts: number(failure_percentage_minimum_hosts, 5),
                request_volume: number(failure_percentage_request_volume, 50),
            },
        })
    }
}

/// Without a limit it is five minutes, or the base where that is more.
fn ejection_limit(base: Duration, given: Option<Duration>) -> Duration {
    given.unwrap_or_else(|| base.max(Duration::from_secs(300)))
}

fn number(value: Option<UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |v| v.value)
}

fn hundred(cx: &mut Cx, name: &'static str, value: Option<UInt32Value>, default: u32) -> u32 {
    at_most(cx, name, value.map(|v| v.value), 100).unwrap_or(default)
}
