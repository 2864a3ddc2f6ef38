//! Routes, as far as they are known without HTTP: by name.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;

use super::registry::registry;
use crate::model::network_filter::RouteRef;
use crate::model::route::RouteConfiguration;

registry! { pb::RouteConfiguration, Rds }

const HTTP: &str = "HTTP is not implemented yet: routes are kept to be shown";
pub(super) const NO_VHDS: &str = "the discovery of virtual hosts (VHDS) is not implemented";

lower! { "envoy.config.route.v3.RouteConfiguration" pb::RouteConfiguration => RouteConfiguration, cx;
    read { name }
    reject { vhds: NO_VHDS }
    warn {
        virtual_hosts: HTTP,
        internal_only_headers: HTTP,
        response_headers_to_add: HTTP,
        response_headers_to_remove: HTTP,
        request_headers_to_add: HTTP,
        request_headers_to_remove: HTTP,
        most_specific_header_mutations_wins: HTTP,
        validate_clusters: HTTP,
        max_direct_response_body_size_bytes: HTTP,
        cluster_specifier_plugins: HTTP,
        request_mirror_policies: HTTP,
        ignore_port_in_host_matching: HTTP,
        vhost_header: HTTP,
        ignore_path_parameters_in_path_matching: HTTP,
        typed_per_filter_config: HTTP,
        metadata: HTTP,
        route_specifiers: HTTP,
    }
    {
        Some(RouteConfiguration { name: cx.name("name", name)? })
    }
}

lower! { "envoy.extensions.filters.network.http_connection_manager.v3.Rds" Rds => RouteRef, cx;
    read { config_source, route_config_name }
    {
        let source = cx.required("config_source", config_source);
        let name = cx.name("route_config_name", route_config_name);
        Some(RouteRef { name: name?, source: source? })
    }
}
