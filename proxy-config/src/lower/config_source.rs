//! `config.core.v3.ConfigSource` and what it is made of: where resources come from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap as bootstrap_pb;
use envoy_types::pb::envoy::config::core::v3 as pb;

use super::Cx;
use super::registry::registry;
use super::value::number;
use crate::model::bootstrap::DynamicResources;
use crate::model::config_source::{ApiSource, ConfigSource, ConfigSourceKind, RateLimit};

registry! {
    pb::ConfigSource, pb::PathConfigSource, pb::WatchedDirectory, pb::ApiConfigSource, pb::RateLimitSettings,
    pb::SelfConfigSource, bootstrap_pb::DynamicResources,
}

const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy fills no slower.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

lower! { "envoy.config.bootstrap.v3.Bootstrap.DynamicResources"
    bootstrap_pb::DynamicResources => DynamicResources, cx;
    read { lds_config, cds_config, ads_config }
    reject {
        lds_resources_locator: "xDS resource locators (xdstp) are not implemented: use lds_config",
        cds_resources_locator: "xDS resource locators (xdstp) are not implemented: use cds_config",
    }
    {
        let ads = match ads_config {
            Some(ads) => Some(Arc::new(cx.lower("ads_config", ads)?)),
            None => None,
        };
        let mut source = |name, given: Option<pb::ConfigSource>| {
            let source = given.and_then(|given| cx.lower(name, given));
            let never = ads.is_none() && source.as_ref().is_some_and(|s: &ConfigSource| s.kind == ConfigSourceKind::Ads);
            if never {
                // As in Envoy, which starts after initial_fetch_timeout.
                cx.field(name, |cx| cx.warn("ads", "there is no ads_config: nothing ever comes"));
            }
            source
        };
        let (lds, cds) = (source("lds_config", lds_config), source("cds_config", cds_config));
        Some(DynamicResources { lds, cds, ads })
    }
}

lower! { "envoy.config.core.v3.ConfigSource" pb::ConfigSource => ConfigSource, cx;
    read { config_source_specifier, initial_fetch_timeout, resource_api_version }
    reject { authorities: "xDS resource locators are not implemented" }
    {
        use pb::config_source::ConfigSourceSpecifier as Source;
        if let pb::ApiVersion::V2 = cx.variant("resource_api_version", resource_api_version)? {
            cx.reject("resource_api_version", "V2 is gone: use V3");
        }
        let initial_fetch_timeout =
            cx.timeout("initial_fetch_timeout", initial_fetch_timeout, Some(INITIAL_FETCH_TIMEOUT));
        let kind = match config_source_specifier {
            Some(Source::Path(path)) => {
                let path = cx.non_empty("path", path)?;
                Some(ConfigSourceKind::File { path: path.into(), watched_directory: None })
            }
            Some(Source::PathConfigSource(source)) => cx.lower("path_config_source", source),
            Some(Source::ApiConfigSource(api)) => {
                cx.lower("api_config_source", api).map(Arc::new).map(ConfigSourceKind::Api)
            }
            Some(Source::Ads(pb::AggregatedConfigSource {})) => Some(ConfigSourceKind::Ads),
            Some(Source::Self_(same)) => {
                // Envoy knows it for load reports only, and calls it a missing specifier everywhere else.
                if !cx.is_dynamic() {
                    cx.reject("self", "is for what comes from a source, and this is of the bootstrap");
                }
                cx.lower("self", same)
            }
            None => {
                cx.reject("config_source_specifier", "is required");
                None
            }
        };
        Some(ConfigSource { kind: kind?, initial_fetch_timeout })
    }
}

lower! { "envoy.config.core.v3.SelfConfigSource" pb::SelfConfigSource => ConfigSourceKind, cx;
    read { transport_api_version }
    {
        v3(cx, transport_api_version)?;
        Some(cx.own_source())
    }
}

lower! { "envoy.config.core.v3.PathConfigSource" pb::PathConfigSource => ConfigSourceKind, cx;
    read { path, watched_directory }
    warn { poll_interval: "the file is watched: there is no need to poll" }
    {
        let watched_directory = watched_directory.map(|watched| cx.lower("watched_directory", watched));
        let path = cx.non_empty("path", path)?;
        Some(ConfigSourceKind::File { path: path.into(), watched_directory: watched_directory.flatten() })
    }
}

lower! { "envoy.config.core.v3.WatchedDirectory" pb::WatchedDirectory => PathBuf, cx;
    read { path }
    warn { watch_modify: "a file that is changed in place is seen without it" }
    {
        cx.non_empty("path", path).map(PathBuf::from)
    }
}

lower! { "envoy.config.core.v3.ApiConfigSource" pb::ApiConfigSource => ApiSource, cx;
    read {
        api_type, transport_api_version, cluster_names, grpc_services, request_timeout, rate_limit_settings,
        set_node_on_first_message_only
    }
    reject { config_validators: "validators of configurations are not implemented" }
    warn { refresh_delay: "is for REST: a stream tells by itself" }
    {
        let delta = delta(cx, api_type)?;
        v3(cx, transport_api_version);
        if !cluster_names.is_empty() {
            cx.reject("cluster_names", "is for REST: gRPC must not have a cluster name specified");
        }
        if request_timeout.is_some() {
            cx.duration_from("request_timeout", request_timeout, Duration::from_nanos(1));
            cx.warn("request_timeout", "is for REST: a stream has no end");
        }
        match grpc_services.len() {
            0 => cx.reject("grpc_services", "API configs must have a gRPC service"),
            1 => {}
            _ => cx.reject("grpc_services", "must have no more than 1 gRPC service"),
        }
        let service = cx.list("grpc_services", grpc_services).into_iter().next();
        let rate_limit = match rate_limit_settings {
            Some(settings) => Some(cx.lower("rate_limit_settings", settings)?),
            None => None,
        };
        Some(ApiSource { delta, service: service?, set_node_on_first_message_only, rate_limit })
    }
}

/// Whether only what changes is sent.
fn delta(cx: &mut Cx, api_type: i32) -> Option<bool> {
    use pb::api_config_source::ApiType;
    let why = match cx.variant("api_type", api_type)? {
        ApiType::Grpc => return Some(false),
        ApiType::DeltaGrpc => return Some(true),
        ApiType::Rest => "REST is not implemented: use GRPC or DELTA_GRPC",
        ApiType::AggregatedGrpc => {
            "AGGREGATED_GRPC is for xdstp, which is not implemented: use ads with GRPC"
        }
        ApiType::AggregatedDeltaGrpc => {
            "AGGREGATED_DELTA_GRPC is for xdstp, which is not implemented: use ads with DELTA_GRPC"
        }
        ApiType::DeprecatedAndUnavailableDoNotUse => "is required: GRPC or DELTA_GRPC",
    };
    cx.reject("api_type", why);
    None
}

fn v3(cx: &mut Cx, version: i32) -> Option<()> {
    match cx.variant("transport_api_version", version)? {
        pb::ApiVersion::V2 => {
            cx.reject("transport_api_version", "V2 is gone: use V3");
            None
        }
        pb::ApiVersion::Auto | pb::ApiVersion::V3 => Some(()),
    }
}

lower! { "envoy.config.core.v3.RateLimitSettings" pb::RateLimitSettings => RateLimit, cx;
    read { max_tokens, fill_rate }
    {
        let rate = fill_rate.map_or(10.0, |rate| rate.value);
        if !rate.is_finite() || rate <= 0.0 {
            cx.reject("fill_rate", "must be a number greater than 0");
            return None;
        }
        let fill_interval = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(YEAR).min(YEAR);
        let max_tokens = cx.ranged("max_tokens", number(max_tokens).unwrap_or(100), 1..=u32::MAX)?;
        Some(RateLimit { max_tokens, fill_interval: fill_interval.max(Duration::from_nanos(1)) })
    }
}

#[cfg(test)]
mod tests;
