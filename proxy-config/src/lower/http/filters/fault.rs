//! `envoy.filters.http.fault`, of a filter and of a route.

use std::sync::Arc;
use std::time::Duration;

use common::fault_delay::FaultDelaySecifier as Delay;
use common::fault_rate_limit::LimitType;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent as PbPercent;
use pb::fault_abort::ErrorType;

use crate::lower::Cx;
use crate::lower::registry::registry;
use crate::lower::value::{number, structure};
use crate::model::FractionalPercent;
use crate::model::http::filters::{
    AbortKind, DelayKind, Fault, FaultAbort, FaultDelay, FaultRateLimit, RateKind,
};

registry! {
    pb::HttpFault, pb::FaultAbort, common::FaultDelay, common::FaultRateLimit, common::fault_rate_limit::FixedLimit,
}

const NO_RUNTIME: &str = "there is no runtime: what is configured holds";
/// The last status of gRPC.
const LAST_GRPC: u32 = 16;

lower! { "envoy.extensions.filters.http.fault.v3.HTTPFault" pb::HttpFault => Fault, cx;
    read {
        delay, abort, upstream_cluster, headers, downstream_nodes, max_active_faults, response_rate_limit,
        disable_downstream_cluster_stats, filter_metadata
    }
    warn {
        delay_percent_runtime: NO_RUNTIME,
        abort_percent_runtime: NO_RUNTIME,
        delay_duration_runtime: NO_RUNTIME,
        abort_http_status_runtime: NO_RUNTIME,
        max_active_faults_runtime: NO_RUNTIME,
        response_rate_limit_percent_runtime: NO_RUNTIME,
        abort_grpc_status_runtime: NO_RUNTIME,
    }
    {
        Some(Fault {
            delay: delay.and_then(|delay| cx.lower("delay", delay)),
            abort: abort.and_then(|abort| cx.lower("abort", abort)),
            response_rate_limit: response_rate_limit.and_then(|limit| cx.lower("response_rate_limit", limit)),
            upstream_cluster: Some(Arc::<str>::from(upstream_cluster)).filter(|name| !name.is_empty()),
            headers: cx.list("headers", headers),
            downstream_nodes: downstream_nodes.into_iter().map(Into::into).collect(),
            max_active_faults: number(max_active_faults),
            disable_downstream_cluster_stats,
            filter_metadata: filter_metadata.map(structure).unwrap_or_default(),
        })
    }
}

/// None at all where it is not given.
fn percentage(cx: &mut Cx, percentage: Option<PbPercent>) -> Option<FractionalPercent> {
    cx.lower("percentage", percentage.unwrap_or_default())
}

lower! { "envoy.extensions.filters.http.fault.v3.FaultAbort" pb::FaultAbort => FaultAbort, cx;
    read { percentage, response_body, error_type }
    {
        let abort = match error_type {
            Some(ErrorType::HttpStatus(status)) => {
                AbortKind::Http(u16::try_from(cx.ranged("http_status", status, 200..=599)?).ok()?)
            }
            Some(ErrorType::GrpcStatus(status)) => {
                if status > LAST_GRPC {
                    cx.warn("grpc_status", "is none that gRPC has");
                }
                AbortKind::Grpc(status)
            }
            Some(ErrorType::HeaderAbort(pb::fault_abort::HeaderAbort {})) => AbortKind::Header,
            None => {
                cx.reject("error_type", "is required");
                return None;
            }
        };
        Some(FaultAbort { percentage: self::percentage(cx, percentage)?, abort, body: response_body.into() })
    }
}

lower! { "envoy.extensions.filters.common.fault.v3.FaultDelay" common::FaultDelay => FaultDelay, cx;
    read { percentage, fault_delay_secifier }
    {
        let delay = match fault_delay_secifier {
            Some(Delay::FixedDelay(delay)) => {
                DelayKind::Fixed(cx.duration_from("fixed_delay", Some(delay), Duration::from_nanos(1))?)
            }
            Some(Delay::HeaderDelay(common::fault_delay::HeaderDelay {})) => DelayKind::Header,
            None => {
                cx.reject("fault_delay_secifier", "is required");
                return None;
            }
        };
        Some(FaultDelay { percentage: self::percentage(cx, percentage)?, delay })
    }
}

lower! { "envoy.extensions.filters.common.fault.v3.FaultRateLimit" common::FaultRateLimit => FaultRateLimit, cx;
    read { percentage, limit_type }
    {
        let limit = match limit_type {
            Some(LimitType::FixedLimit(limit)) => RateKind::Kbps(cx.lower("fixed_limit", limit)?),
            Some(LimitType::HeaderLimit(common::fault_rate_limit::HeaderLimit {})) => RateKind::Header,
            None => {
                cx.reject("limit_type", "is required");
                return None;
            }
        };
        Some(FaultRateLimit { percentage: self::percentage(cx, percentage)?, limit })
    }
}

lower! { "envoy.extensions.filters.common.fault.v3.FaultRateLimit.FixedLimit"
    common::fault_rate_limit::FixedLimit => u64, cx;
    read { limit_kbps }
    {
        cx.ranged("limit_kbps", limit_kbps, 1..=u64::MAX)
    }
}
