//! `config.route.v3.RetryPolicy`.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::retry::host as hosts;
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use hosts::omit_canary_hosts::v3::OmitCanaryHostsPredicate;
use hosts::omit_host_metadata::v3::OmitHostMetadataConfig;
use hosts::previous_hosts::v3::PreviousHostsPredicate;
use pb::retry_policy as inner;

use super::header::header_name;
use crate::lower::extension::{Extension, by_name};
use crate::lower::registry::registry;
use crate::lower::value::number;
use crate::model::http::retry::{
    RateLimitedBackoff, ResetFormat, ResetHeader, RetryBackoff, RetryHostPredicate, RetryOn, RetryPolicy,
    RetryPriority,
};

registry! {
    pb::RetryPolicy, inner::RetryBackOff, inner::RateLimitedRetryBackOff, inner::ResetHeader,
    inner::RetryPriority, inner::RetryHostPredicate, PreviousPrioritiesConfig, PreviousHostsPredicate,
    OmitCanaryHostsPredicate, OmitHostMetadataConfig,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

lower! { "envoy.config.route.v3.RetryPolicy" pb::RetryPolicy => RetryPolicy, cx;
    read {
        retry_on, num_retries, per_try_timeout, per_try_idle_timeout, retry_priority, retry_host_predicate,
        host_selection_retry_max_attempts, retriable_status_codes, retry_back_off, rate_limited_retry_back_off,
        retriable_headers, retriable_request_headers
    }
    reject {
        retry_options_predicates: "predicates that change a retry's options are not implemented",
        refresh_cluster_on_retry: "choosing another cluster for a retry is not implemented",
    }
    {
        let (on, unknown) = RetryOn::parse(&retry_on);
        if !unknown.is_empty() {
            // As in Envoy, which passes them over in silence.
            cx.warn("retry_on", format!("unknown: {}", unknown.join(", ")));
        }
        if on.has(RetryOn::HTTP3_POST_CONNECT_FAILURE) {
            cx.warn("retry_on", "http3-post-connect-failure never happens: no upstream is spoken to by HTTP/3");
        }
        // As in Envoy, which takes any number: no response has it.
        let codes = retriable_status_codes.into_iter().filter_map(|code| u16::try_from(code).ok()).collect();
        let attempts = host_selection_retry_max_attempts.max(1);
        let backoff = match retry_back_off {
            Some(backoff) => cx.lower("retry_back_off", backoff)?,
            None => RetryBackoff::default(),
        };
        Some(RetryPolicy {
            retry_on: on,
            num_retries: number(num_retries).unwrap_or(1),
            per_try_timeout: cx.timeout("per_try_timeout", per_try_timeout, None),
            per_try_idle_timeout: cx.timeout("per_try_idle_timeout", per_try_idle_timeout, None),
            priority: retry_priority.and_then(|priority| cx.lower("retry_priority", priority)),
            host_predicates: cx.list("retry_host_predicate", retry_host_predicate),
            host_selection_max_attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
            retriable_status_codes: codes,
            backoff,
            rate_limited_backoff: rate_limited_retry_back_off
                .and_then(|backoff| cx.lower("rate_limited_retry_back_off", backoff)),
            retriable_headers: cx.list("retriable_headers", retriable_headers),
            retriable_request_headers: cx.list("retriable_request_headers", retriable_request_headers),
        })
    }
}

lower! { "envoy.config.route.v3.RetryPolicy.RetryBackOff" inner::RetryBackOff => RetryBackoff, cx;
    read { base_interval, max_interval }
    {
        if base_interval.is_none() {
            cx.reject("base_interval", "is required");
        }
        let base = cx.duration_from("base_interval", base_interval, Duration::from_nanos(1));
        let given = max_interval.is_some();
        let max = cx.duration_from("max_interval", max_interval, Duration::from_nanos(1));
        // Envoy counts in milliseconds, and never less than one.
        let base = base?.max(MILLISECOND);
        let max = if given { max? } else { base * 10 };
        if max < base {
            cx.reject("max_interval", "must be greater than or equal to the base_interval");
        }
        Some(RetryBackoff { base, max })
    }
}

lower! { "envoy.config.route.v3.RetryPolicy.RateLimitedRetryBackOff"
    inner::RateLimitedRetryBackOff => RateLimitedBackoff, cx;
    read { reset_headers, max_interval }
    {
        if reset_headers.is_empty() {
            cx.reject("reset_headers", "must have at least one");
        }
        let given = max_interval.is_some();
        let max = cx.duration_from("max_interval", max_interval, Duration::from_nanos(1));
        let max_interval = if given { max? } else { RATE_LIMITED_MAX };
        Some(RateLimitedBackoff { reset_headers: cx.list("reset_headers", reset_headers), max_interval })
    }
}

lower! { "envoy.config.route.v3.RetryPolicy.ResetHeader" inner::ResetHeader => ResetHeader, cx;
    read { name, format }
    {
        let format = match cx.variant("format", format)? {
            inner::ResetHeaderFormat::Seconds => ResetFormat::Seconds,
            inner::ResetHeaderFormat::UnixTimestamp => ResetFormat::UnixTimestamp,
        };
        Some(ResetHeader { name: header_name(cx, "name", &name)?, format })
    }
}

lower! { "envoy.config.route.v3.RetryPolicy.RetryPriority" inner::RetryPriority => RetryPriority, cx;
    read { name, config_type }
    {
        let name = cx.non_empty("name", name)?;
        let Some(inner::retry_priority::ConfigType::TypedConfig(any)) = config_type else {
            return by_name(cx, &name, None);
        };
        let e = Extension::unpack(cx, &any)?;
        if e.type_name != PreviousPrioritiesConfig::NAME {
            return e.refuse(cx);
        }
        e.lower::<PreviousPrioritiesConfig>(cx)
    }
}

lower! { "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    PreviousPrioritiesConfig => RetryPriority, cx;
    read { update_frequency }
    {
        if update_frequency <= 0 {
            cx.reject("update_frequency", "must be greater than 0");
        }
        Some(RetryPriority::Previous { update_frequency: u32::try_from(update_frequency).ok()? })
    }
}

lower! { "envoy.config.route.v3.RetryPolicy.RetryHostPredicate"
    inner::RetryHostPredicate => RetryHostPredicate, cx;
    read { name, config_type }
    {
        let name = cx.non_empty("name", name)?;
        let Some(inner::retry_host_predicate::ConfigType::TypedConfig(any)) = config_type else {
            let known = match name.as_str() {
                "envoy.retry_host_predicates.previous_hosts" => Some(RetryHostPredicate::PreviousHosts),
                "envoy.retry_host_predicates.omit_canary_hosts" => Some(RetryHostPredicate::OmitCanaryHosts),
                _ => None,
            };
            return by_name(cx, &name, known);
        };
        let e = Extension::unpack(cx, &any)?;
        match e.type_name.as_str() {
            PreviousHostsPredicate::NAME => e.lower::<PreviousHostsPredicate>(cx),
            OmitCanaryHostsPredicate::NAME => e.lower::<OmitCanaryHostsPredicate>(cx),
            OmitHostMetadataConfig::NAME => e.lower::<OmitHostMetadataConfig>(cx),
            _ => e.refuse(cx),
        }
    }
}

lower! { "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    PreviousHostsPredicate => RetryHostPredicate, cx;
    read {}
    {
        let _ = cx;
        Some(RetryHostPredicate::PreviousHosts)
    }
}

lower! { "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate"
    OmitCanaryHostsPredicate => RetryHostPredicate, cx;
    read {}
    {
        let _ = cx;
        Some(RetryHostPredicate::OmitCanaryHosts)
    }
}

lower! { "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig"
    OmitHostMetadataConfig => RetryHostPredicate, cx;
    read { metadata_match }
    {
        Some(RetryHostPredicate::OmitHostMetadata(crate::lower::core::metadata(cx, "metadata_match", metadata_match)))
    }
}
