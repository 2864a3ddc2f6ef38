//! Which lists `/config_dump` has, and which paths a mask may name in them.

use proxy_config::{dump, xds};

use super::super::view::Kind;

/// A `…ConfigDump`.
pub(super) struct Section {
    /// Behind `envoy.admin.v3.`.
    pub(super) name: &'static str,
    /// Whose version stands at its beginning.
    pub(super) version: Option<xds::Kind>,
    pub(super) lists: &'static [List],
    pub(super) shown: Shown,
}

/// When a section is there at all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Always,
    /// With `include_eds`.
    Asked,
    /// With something in it, or where listeners come from a control plane or a file: Envoy has it from the first
    /// HTTP connection manager on, and control planes' tools want to find it.
    Dynamic,
    /// With something in it.
    NotEmpty,
}

/// A list of a section.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct List {
    pub(super) field: &'static str,
    /// The message of an element, behind `envoy.admin.v3.`.
    pub(super) element: &'static str,
    pub(super) source: Source,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Static(Kind),
    /// Of that type, those in use.
    Active(xds::Kind),
    WarmingClusters,
    /// Those that connection managers bring with them.
    InlineRoutes,
    Listeners,
    /// Of static clusters, or of those of CDS.
    Endpoints {
        dynamic: bool,
    },
    /// Of SDS: those in use, or those that are waited for.
    Secrets {
        warming: bool,
    },
    /// Of what is not implemented.
    Nothing,
}

pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "ClustersConfigDump",
        version: Some(xds::Kind::Cluster),
        shown: Shown::Always,
        lists: &[
            list("static_clusters", "ClustersConfigDump.StaticCluster", Source::Static(Kind::StaticCluster)),
            list("dynamic_active_clusters", DYNAMIC_CLUSTER, Source::Active(xds::Kind::Cluster)),
            list("dynamic_warming_clusters", DYNAMIC_CLUSTER, Source::WarmingClusters),
        ],
    },
    Section {
        name: "EcdsConfigDump",
        version: None,
        shown: Shown::NotEmpty,
        lists: &[list(
            "ecds_filters",
            "EcdsConfigDump.EcdsFilterConfig",
            Source::Active(xds::Kind::Extension),
        )],
    },
    Section {
        name: "EndpointsConfigDump",
        version: None,
        shown: Shown::Asked,
        lists: &[
            list(
                "static_endpoint_configs",
                "EndpointsConfigDump.StaticEndpointConfig",
                Source::Endpoints { dynamic: false },
            ),
            list(
                "dynamic_endpoint_configs",
                "EndpointsConfigDump.DynamicEndpointConfig",
                Source::Endpoints { dynamic: true },
            ),
        ],
    },
    Section {
        name: "ListenersConfigDump",
        version: Some(xds::Kind::Listener),
        shown: Shown::Always,
        lists: &[
            list(
                "static_listeners",
                "ListenersConfigDump.StaticListener",
                Source::Static(Kind::StaticListener),
            ),
            list("dynamic_listeners", "ListenersConfigDump.DynamicListener", Source::Listeners),
        ],
    },
    Section {
        name: "ScopedRoutesConfigDump",
        version: None,
        shown: Shown::Dynamic,
        lists: &[
            list(
                "inline_scoped_route_configs",
                "ScopedRoutesConfigDump.InlineScopedRouteConfigs",
                Source::Nothing,
            ),
            list(
                "dynamic_scoped_route_configs",
                "ScopedRoutesConfigDump.DynamicScopedRouteConfigs",
                Source::Nothing,
            ),
        ],
    },
    Section {
        name: "RoutesConfigDump",
        version: None,
        shown: Shown::Dynamic,
        lists: &[
            list("static_route_configs", "RoutesConfigDump.StaticRouteConfig", Source::InlineRoutes),
            list(
                "dynamic_route_configs",
                "RoutesConfigDump.DynamicRouteConfig",
                Source::Active(xds::Kind::Route),
            ),
        ],
    },
    Section {
        name: "SecretsConfigDump",
        version: None,
        shown: Shown::Always,
        lists: &[
            list("static_secrets", "SecretsConfigDump.StaticSecret", Source::Static(Kind::StaticSecret)),
            list("dynamic_active_secrets", DYNAMIC_SECRET, Source::Secrets { warming: false }),
            list("dynamic_warming_secrets", DYNAMIC_SECRET, Source::Secrets { warming: true }),
        ],
    },
];

const DYNAMIC_CLUSTER: &str = "ClustersConfigDump.DynamicCluster";
const DYNAMIC_SECRET: &str = "SecretsConfigDump.DynamicSecret";

const fn list(field: &'static str, element: &'static str, source: Source) -> List {
    List { field, element, source }
}

impl Section {
    /// A list of no section has been asked for, or of one that was not: `include_eds`.
    pub(super) fn list(field: &str, include_eds: bool) -> Option<&'static List> {
        let shown = SECTIONS.iter().filter(|section| section.shown != Shown::Asked || include_eds);
        shown.flat_map(|section| section.lists).find(|list| list.field == field)
    }

    /// No mask leads into a list, as in Envoy.
    pub(super) fn has(&self, path: &[String]) -> bool {
        let [field] = path else { return false };
        (field == "version_info" && self.version.is_some())
            || self.lists.iter().any(|list| list.field == field)
    }
}

/// Whether a path leads to something in the bootstrap's section.
pub(super) fn bootstrap_has(path: &[String]) -> bool {
    match path {
        [field] => field == "bootstrap" || field == "last_updated",
        [first, rest @ ..] => {
            first == "bootstrap" && dump::has_path("envoy.config.bootstrap.v3.Bootstrap", rest)
        }
        [] => false,
    }
}

/// What is below a field of an element.
enum Below {
    Nothing,
    /// A message in an Any.
    Any(xds::Kind),
    Fields(&'static [&'static str]),
}

impl Source {
    /// Whether a path leads to something in an element: Envoy looks into the Any at its top, and into no other.
    pub(super) fn has(self, path: &[String]) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        match self.below(first) {
            None => false,
            Some(_) if rest.is_empty() => true,
            Some(Below::Nothing) => false,
            Some(Below::Any(kind)) => dump::has_path(kind.type_name(), rest),
            Some(Below::Fields(fields)) => {
                matches!(rest, [field] if fields.contains(&field.as_str()))
            }
        }
    }

    fn below(self, field: &str) -> Option<Below> {
        const STATE: &[&str] = &["version_info", "listener", "last_updated"];
        const ERROR: &[&str] = &["failed_configuration", "last_update_attempt", "details", "version_info"];
        let (any, kind) = match self {
            Self::Static(Kind::StaticCluster) | Self::Active(xds::Kind::Cluster) | Self::WarmingClusters => {
                ("cluster", xds::Kind::Cluster)
            }
            Self::Static(Kind::StaticListener) | Self::Active(xds::Kind::Listener) => {
                ("listener", xds::Kind::Listener)
            }
            Self::Listeners => {
                return match field {
                    "name" | "client_status" => Some(Below::Nothing),
                    "active_state" | "warming_state" | "draining_state" => Some(Below::Fields(STATE)),
                    "error_state" => Some(Below::Fields(ERROR)),
                    _ => None,
                };
            }
            Self::Endpoints { .. } | Self::Active(xds::Kind::Endpoints) => {
                ("endpoint_config", xds::Kind::Endpoints)
            }
            Self::Secrets { .. } | Self::Static(Kind::StaticSecret) | Self::Active(xds::Kind::Secret) => {
                ("secret", xds::Kind::Secret)
            }
            Self::InlineRoutes | Self::Active(xds::Kind::Route) => ("route_config", xds::Kind::Route),
            Self::Active(xds::Kind::Extension) => ("ecds_filter", xds::Kind::Extension),
            Self::Nothing => return None,
        };
        let named = matches!(self, Self::Secrets { .. } | Self::Static(Kind::StaticSecret));
        let is_static =
            matches!(self, Self::InlineRoutes | Self::Static(Kind::StaticCluster | Kind::StaticListener));
        match field {
            _ if field == any => Some(Below::Any(kind)),
            "last_updated" => Some(Below::Nothing),
            "name" if named => Some(Below::Nothing),
            "version_info" | "client_status" if !is_static => Some(Below::Nothing),
            "error_state" if !is_static => Some(Below::Fields(ERROR)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    /// As Envoy 1.40 answered.
    #[test]
    fn masks_of_elements() {
        for (list, mask, valid) in [
            ("static_clusters", "cluster.name", true),
            ("static_clusters", "version_info", false),
            ("dynamic_active_clusters", "cluster.load_assignment.cluster_name", true),
            ("dynamic_active_clusters", "cluster.load_assignment.endpoints.priority", false),
            ("dynamic_active_clusters", "cluster.nosuch", false),
            ("dynamic_active_clusters", "version_info", true),
            ("dynamic_listeners", "name", true),
            ("dynamic_listeners", "listener", false),
            ("dynamic_listeners", "active_state.version_info", true),
            ("dynamic_listeners", "active_state.listener.name", false),
            ("dynamic_listeners", "error_state.details", true),
            ("dynamic_listeners", "name.x", false),
            ("dynamic_active_secrets", "secret.name", true),
            ("ecds_filters", "ecds_filter.name", true),
            ("dynamic_route_configs", "route_config.name", true),
            ("dynamic_scoped_route_configs", "name", false),
        ] {
            let found = Section::list(list, false).unwrap();
            assert_eq!(found.source.has(&path(mask)), valid, "{list} {mask}");
        }
        assert!(Section::list("dynamic_endpoint_configs", false).is_none());
        let endpoints = Section::list("dynamic_endpoint_configs", true).unwrap();
        assert!(endpoints.source.has(&path("endpoint_config.cluster_name")));
    }

    #[test]
    fn masks_of_sections() {
        let section = |name: &str| SECTIONS.iter().find(|section| section.name == name).unwrap();
        assert!(section("ClustersConfigDump").has(&path("version_info")));
        assert!(!section("SecretsConfigDump").has(&path("version_info")));
        assert!(section("ListenersConfigDump").has(&path("dynamic_listeners")));
        assert!(!section("ListenersConfigDump").has(&path("dynamic_listeners.name")));
        for (mask, valid) in [
            ("bootstrap", true),
            ("last_updated", true),
            ("bootstrap.node.id", true),
            ("bootstrap.foo", false),
        ] {
            assert_eq!(bootstrap_has(&path(mask)), valid, "{mask}");
        }
    }
}
