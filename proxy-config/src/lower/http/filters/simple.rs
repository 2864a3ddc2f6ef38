//! Filters that have little to say: gRPC statistics, gRPC-Web, buffer, health check, CSRF, header mutation, filter
//! state.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3 as state;
use envoy_types::pb::envoy::extensions::filters::http as hf;
use hf::buffer::v3::buffer_per_route;
use hf::grpc_stats::v3::filter_config::PerMethodStatSpecifier;
use hf::health_check::v3::HealthCheck;

use crate::diagnostic::Segment;
use crate::lower::Cx;
use crate::lower::access_log::line_format;
use crate::lower::http::header::format;
use crate::lower::registry::registry;
use crate::lower::value::flag;
use crate::model::http::filter::FilterKind;
use crate::model::http::filters::{
    Buffer, CsrfPolicy, FilterStateValue, GrpcMethods, GrpcStats, HealthCheckFilter, Mutations,
    MutationsFilter, QueryMutation, SetFilterState,
};
use crate::model::http::header::AppendAction;

registry! {
    hf::grpc_stats::v3::FilterConfig, core::GrpcMethodList, core::grpc_method_list::Service,
    hf::grpc_web::v3::GrpcWeb, hf::buffer::v3::Buffer, hf::buffer::v3::BufferPerRoute, HealthCheck,
    hf::csrf::v3::CsrfPolicy, hf::header_mutation::v3::HeaderMutation,
    hf::header_mutation::v3::HeaderMutationPerRoute, hf::header_mutation::v3::Mutations, core::KeyValueMutation,
    core::KeyValueAppend, core::KeyValuePair, hf::set_filter_state::v3::Config, state::FilterStateValue,
}

lower! { "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" hf::grpc_stats::v3::FilterConfig => GrpcStats, cx;
    read { emit_filter_state, enable_upstream_stats, replace_dots_in_grpc_service_name, per_method_stat_specifier }
    {
        let methods = match per_method_stat_specifier {
            Some(PerMethodStatSpecifier::IndividualMethodStatsAllowlist(list)) => {
                GrpcMethods::Listed(cx.lower("individual_method_stats_allowlist", list)?)
            }
            Some(PerMethodStatSpecifier::StatsForAllMethods(all)) if all.value => GrpcMethods::All,
            Some(PerMethodStatSpecifier::StatsForAllMethods(_)) | None => GrpcMethods::None,
        };
        Some(GrpcStats { emit_filter_state, enable_upstream_stats, replace_dots_in_grpc_service_name, methods })
    }
}

type Service = (Arc<str>, Vec<Arc<str>>);

lower! { "envoy.config.core.v3.GrpcMethodList" core::GrpcMethodList => Vec<Service>, cx;
    read { services }
    {
        Some(cx.list("services", services))
    }
}

lower! { "envoy.config.core.v3.GrpcMethodList.Service" core::grpc_method_list::Service => Service, cx;
    read { name, method_names }
    {
        if method_names.is_empty() {
            cx.reject("method_names", "must have at least one");
        }
        Some((cx.name("name", name)?, method_names.into_iter().map(Into::into).collect()))
    }
}

lower! { "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb" hf::grpc_web::v3::GrpcWeb => FilterKind, cx;
    read {}
    {
        let _ = cx;
        Some(FilterKind::GrpcWeb)
    }
}

lower! { "envoy.extensions.filters.http.buffer.v3.Buffer" hf::buffer::v3::Buffer => Buffer, cx;
    read { max_request_bytes }
    {
        let Some(max) = max_request_bytes else {
            cx.reject("max_request_bytes", "is required");
            return None;
        };
        Some(Buffer { max_request_bytes: cx.ranged("max_request_bytes", max.value, 1..=u32::MAX)? })
    }
}

lower! { "envoy.extensions.filters.http.buffer.v3.BufferPerRoute" hf::buffer::v3::BufferPerRoute => Option<Buffer>, cx;
    read { r#override }
    {
        match r#override {
            Some(buffer_per_route::Override::Disabled(true)) => Some(None),
            Some(buffer_per_route::Override::Disabled(false)) => {
                cx.reject("disabled", "must be true");
                None
            }
            Some(buffer_per_route::Override::Buffer(buffer)) => cx.lower("buffer", buffer).map(Some),
            None => {
                cx.reject("override", "is required");
                None
            }
        }
    }
}

lower! { "envoy.extensions.filters.http.health_check.v3.HealthCheck" HealthCheck => HealthCheckFilter, cx;
    read { pass_through_mode, cache_time, cluster_min_healthy_percentages, headers }
    {
        if pass_through_mode.is_none() {
            cx.reject("pass_through_mode", "is required");
        }
        let pass_through_mode = flag(pass_through_mode, false);
        let cache_time = cx.timeout("cache_time", cache_time, None);
        if cache_time.is_some() && !pass_through_mode {
            cx.reject("cache_time", "must not be set when pass_through_mode is disabled");
        }
        if pass_through_mode && !cluster_min_healthy_percentages.is_empty() {
            cx.warn("cluster_min_healthy_percentages", "has no effect in pass-through mode");
        }
        Some(HealthCheckFilter {
            pass_through_mode,
            cache_time,
            cluster_min_healthy_percentages: cx
                .map("cluster_min_healthy_percentages", cluster_min_healthy_percentages),
            headers: cx.list("headers", headers),
        })
    }
}

lower! { "envoy.extensions.filters.http.csrf.v3.CsrfPolicy" hf::csrf::v3::CsrfPolicy => CsrfPolicy, cx;
    read { filter_enabled, shadow_enabled, additional_origins }
    {
        let enabled = cx.required("filter_enabled", filter_enabled);
        Some(CsrfPolicy {
            shadow_enabled: shadow_enabled.and_then(|shadow| cx.lower("shadow_enabled", shadow)),
            additional_origins: cx.list("additional_origins", additional_origins),
            enabled: enabled?,
        })
    }
}

lower! { "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
    hf::header_mutation::v3::HeaderMutation => MutationsFilter, cx;
    read { mutations, most_specific_header_mutations_wins }
    {
        let mutations = mutations.and_then(|mutations| cx.lower("mutations", mutations)).unwrap_or_default();
        Some(MutationsFilter { mutations, most_specific_wins: most_specific_header_mutations_wins })
    }
}

lower! { "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"
    hf::header_mutation::v3::HeaderMutationPerRoute => Mutations, cx;
    read { mutations }
    {
        Some(mutations.and_then(|mutations| cx.lower("mutations", mutations)).unwrap_or_default())
    }
}

lower! { "envoy.extensions.filters.http.header_mutation.v3.Mutations" hf::header_mutation::v3::Mutations => Mutations, cx;
    read {
        request_mutations, query_parameter_mutations, response_mutations, response_trailers_mutations,
        request_trailers_mutations
    }
    {
        Some(Mutations {
            request: cx.list("request_mutations", request_mutations),
            query: cx.list("query_parameter_mutations", query_parameter_mutations),
            response: cx.list("response_mutations", response_mutations),
            request_trailers: cx.list("request_trailers_mutations", request_trailers_mutations),
            response_trailers: cx.list("response_trailers_mutations", response_trailers_mutations),
        })
    }
}

lower! { "envoy.config.core.v3.KeyValueMutation" core::KeyValueMutation => QueryMutation, cx;
    read { append, remove }
    {
        match (append, remove.is_empty()) {
            (Some(append), true) => cx.lower("append", append),
            (None, false) => Some(QueryMutation::Remove(remove.into())),
            (Some(_), false) => {
                cx.reject("remove", "Only one of 'append'/'remove can be specified.");
                None
            }
            (None, true) => {
                cx.reject("append", "One of 'append'/'remove' must be specified.");
                None
            }
        }
    }
}

lower! { "envoy.config.core.v3.KeyValueAppend" core::KeyValueAppend => QueryMutation, cx;
    read { record, action }
    reject { entry: "is deprecated, and not known to Envoy 1.40 here: use record" }
    {
        use core::key_value_append::KeyValueAppendAction as Action;
        let append = match cx.variant("action", action)? {
            Action::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
            Action::AddIfAbsent => AppendAction::AddIfAbsent,
            Action::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
            Action::OverwriteIfExists => AppendAction::OverwriteIfExists,
        };
        let (key, value) = cx.required("record", record)?;
        let value = cx.field("record", |cx| format(cx, "value", &value, &[]))?;
        Some(QueryMutation::Add { key, value, append })
    }
}

lower! { "envoy.config.core.v3.KeyValuePair" core::KeyValuePair => (Arc<str>, String), cx;
    read { key, value }
    {
        use envoy_types::pb::google::protobuf::value::Kind;
        let key: Option<Arc<str>> = cx.name("key", key);
        let Some(Kind::StringValue(text)) = value.and_then(|value| value.kind) else {
            cx.reject("value", "must be a string");
            return None;
        };
        Some((key?, text))
    }
}

lower! { "envoy.extensions.filters.http.set_filter_state.v3.Config"
    hf::set_filter_state::v3::Config => SetFilterState, cx;
    read { on_request_headers, clear_route_cache }
    {
        if on_request_headers.is_empty() {
            cx.warn("on_request_headers", "there is nothing to set");
        }
        Some(SetFilterState { on_request_headers: cx.list("on_request_headers", on_request_headers), clear_route_cache })
    }
}

lower! { "envoy.extensions.filters.common.set_filter_state.v3.FilterStateValue"
    state::FilterStateValue => FilterStateValue, cx;
    read { skip_if_empty, key, value }
    warn {
        read_only: "an object is set once only",
        factory_key: "every object is a text, whatever makes it elsewhere",
        shared_with_upstream: "connections upstream do not know the state of a request",
    }
    {
        use state::filter_state_value::{Key, SharedWithUpstream, Value};
        cx.variant::<SharedWithUpstream>("shared_with_upstream", shared_with_upstream)?;
        let key: Option<Arc<str>> = match key {
            Some(Key::ObjectKey(key)) => cx.name("object_key", key),
            None => {
                cx.reject("key", "object_key is required");
                None
            }
        };
        let value = match value {
            Some(Value::FormatString(format)) => line_format(cx, "format_string", format),
            None => {
                cx.reject("value", "format_string is required");
                None
            }
        };
        Some(FilterStateValue { key: key?, value: value?, skip_if_empty })
    }
}

/// Runs `f` under the key of a map.
pub(super) fn under<T>(cx: &mut Cx, field: &'static str, key: &str, f: impl FnOnce(&mut Cx) -> T) -> T {
    cx.field(field, |cx| cx.within(Segment::Key(key.to_owned()), f))
}
