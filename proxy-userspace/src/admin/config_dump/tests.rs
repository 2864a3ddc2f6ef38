use std::time::{Duration, SystemTime};

use proxy_config::model::address::Address;
use proxy_config::model::cluster::{Cluster, Discovery, Eds};
use proxy_config::model::config_source::{ConfigSource, ConfigSourceKind};
use proxy_config::model::endpoint::AssignmentPolicy;
use proxy_config::model::{FractionalPercent, Raw};

use super::super::testing::{Fake, read};
use super::super::view::{
    ClusterView, DynamicView, ErrorView, Health, HostCounts, HostView, ResourceView, SuccessRates,
};
use super::*;

/// A message whose first field is a name.
fn raw(name: &str) -> Raw {
    [b"\x0a", [u8::try_from(name.len()).unwrap()].as_slice(), name.as_bytes()].concat().as_slice().into()
}

fn resource(name: &str, version: &str) -> ResourceView {
    let updated = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    ResourceView { name: name.into(), raw: raw(name), version: version.into(), updated }
}

fn nothing(name: &str) -> DynamicView {
    DynamicView { name: name.into(), active: None, warming: None, draining: None, error: None }
}

fn refused(name: &str) -> ErrorView {
    ErrorView {
        raw: raw(name),
        version: "3".into(),
        last_attempt: SystemTime::UNIX_EPOCH + Duration::from_secs(2),
        details: "no".to_owned(),
    }
}

fn host(port: u16, health: Health, region: &str, priority: u32) -> HostView {
    HostView {
        address: Address::Ip(([127, 0, 0, 1], port).into()),
        hostname: "".into(),
        health,
        weight: 1,
        region: region.into(),
        zone: "".into(),
        sub_zone: "".into(),
        canary: false,
        priority,
        success_rate: None,
        local_origin_success_rate: None,
        metadata: None,
        stats: HostCounts::default(),
    }
}

fn eds_cluster() -> ClusterView {
    let source = ConfigSource { kind: ConfigSourceKind::Ads, initial_fetch_timeout: None };
    let eds = Discovery::Eds(Box::new(Eds { service_name: "svc".into(), source }));
    let draining = Health { eds_status_draining: true, ..Health::default() };
    let degraded = Health { degraded_eds_health: true, ..Health::default() };
    ClusterView {
        model: Cluster::new("dyn", eds).into(),
        added_via_api: true,
        hosts: vec![
            host(11, draining, "r", 0),
            host(12, degraded, "r", 0),
            host(13, Health::default(), "r2", 1),
        ],
        locality_weights: vec![7, 7, 0],
        policy: AssignmentPolicy {
            drop_overloads: vec![("x".into(), FractionalPercent { numerator: 5, denominator: 100 })],
            overprovisioning_factor: 150,
            ..AssignmentPolicy::default()
        },
        success_rates: SuccessRates::default(),
    }
}

fn fake() -> Fake {
    use xds::Kind::{Cluster, Extension, Listener, Route};
    let active = |name: &str| DynamicView { active: Some(resource(name, "1")), ..nothing(name) };
    Fake {
        clusters: vec![eds_cluster()],
        dynamic: vec![
            (Cluster, DynamicView { error: Some(refused("dyn")), ..active("dyn") }),
            (Cluster, DynamicView { warming: Some(resource("both", "2")), ..active("both") }),
            (Cluster, DynamicView { warming: Some(resource("new", "2")), ..nothing("new") }),
            (Cluster, DynamicView { error: Some(refused("never")), ..nothing("never") }),
            (Listener, DynamicView { warming: Some(resource("l", "2")), ..active("l") }),
            (Listener, DynamicView { draining: Some(resource("old", "1")), ..nothing("old") }),
            (Listener, DynamicView { error: Some(refused("bad")), ..nothing("bad") }),
            (Route, active("r")),
            (Extension, active("e")),
        ],
        version: "3",
        is_dynamic: true,
        ..Fake::default()
    }
}

async fn ask(fake: Fake, query: &str) -> (u16, String) {
    let view: Arc<dyn View> = Arc::new(fake);
    read(answer(&Params::parse(Some(query)), &view)).await
}

async fn dump(fake: Fake, query: &str) -> Vec<Value> {
    let (status, body) = ask(fake, query).await;
    assert_eq!(status, 200, "{body}");
    let mut dump: Value = serde_json::from_str(&body).unwrap();
    serde_json::from_value(dump["configs"].take()).unwrap()
}

fn names(configs: &[Value]) -> Vec<String> {
    let name = |config: &Value| {
        let of_type = config["@type"].as_str().unwrap();
        of_type.rsplit('.').next().unwrap().trim_end_matches("ConfigDump").to_owned()
    };
    configs.iter().map(name).collect()
}

fn of<'a>(configs: &'a [Value], name: &str) -> &'a Value {
    let of_type = format!("type.googleapis.com/envoy.admin.v3.{name}ConfigDump");
    configs.iter().find(|config| config["@type"] == *of_type).unwrap()
}

#[tokio::test]
async fn the_sections_in_envoys_order() {
    let all = dump(fake(), "include_eds").await;
    let wanted =
        ["Bootstrap", "Clusters", "Ecds", "Endpoints", "Listeners", "ScopedRoutes", "Routes", "Secrets"];
    assert_eq!(names(&all), wanted);
    assert_eq!(names(&dump(Fake::default(), "").await), ["Bootstrap", "Clusters", "Listeners", "Secrets"]);
    assert_eq!(
        *of(&all, "ScopedRoutes"),
        json!({"@type": "type.googleapis.com/envoy.admin.v3.ScopedRoutesConfigDump"})
    );
}

/// Field by field as Envoy 1.40 has them.
#[tokio::test]
async fn dynamic_clusters_listeners_routes_and_extensions() {
    let all = dump(fake(), "").await;
    let message = |of: &str, name: &str| json!({"@type": format!("type.googleapis.com/{of}"), "name": name});
    let state = |of: &str, field: &str, name: &str, version: &str| json!({"version_info": version, field: message(of, name), "last_updated": "1970-01-01T00:00:01.000Z"});
    let error = |of: &str, name: &str| {
        json!({
            "failed_configuration": message(of, name),
            "last_update_attempt": "1970-01-01T00:00:02.000Z",
            "details": "no",
            "version_info": "3",
        })
    };
    let of_cluster = "envoy.config.cluster.v3.Cluster";
    let cluster = |name, version| state(of_cluster, "cluster", name, version);
    let mut failed = cluster("dyn", "1");
    failed["error_state"] = error(of_cluster, "dyn");
    let clusters = of(&all, "Clusters");
    assert_eq!(clusters["version_info"], "3");
    assert_eq!(clusters["dynamic_active_clusters"], json!([failed, cluster("both", "1")]));
    assert_eq!(clusters["dynamic_warming_clusters"], json!([cluster("both", "2"), cluster("new", "2")]));
    assert!(clusters.get("static_clusters").is_none());

    let of_listener = "envoy.config.listener.v3.Listener";
    let listener = |name, version| state(of_listener, "listener", name, version);
    let listeners = of(&all, "Listeners");
    assert_eq!(listeners["version_info"], "3");
    assert_eq!(
        listeners["dynamic_listeners"],
        json!([
            {"name": "l", "active_state": listener("l", "1"), "warming_state": listener("l", "2")},
            {"name": "old", "draining_state": listener("old", "1")},
            {"name": "bad", "error_state": error(of_listener, "bad")},
        ])
    );
    let of_route = "envoy.config.route.v3.RouteConfiguration";
    assert_eq!(
        of(&all, "Routes")["dynamic_route_configs"],
        json!([state(of_route, "route_config", "r", "1")])
    );
    let of_extension = "envoy.config.core.v3.TypedExtensionConfig";
    assert_eq!(of(&all, "Ecds")["ecds_filters"], json!([state(of_extension, "ecds_filter", "e", "1")]));
}

#[tokio::test]
async fn endpoints_as_they_came() {
    let all = dump(fake(), "include_eds").await;
    let place = |port| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let endpoint = |port, health| {
        json!({
            "endpoint": {"address": place(port), "health_check_config": {}},
            "health_status": health,
            "load_balancing_weight": 1,
        })
    };
    assert_eq!(
        of(&all, "Endpoints")["dynamic_endpoint_configs"],
        json!([{"endpoint_config": {
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "svc",
            "endpoints": [
                {
                    "locality": {"region": "r"},
                    "lb_endpoints": [endpoint(11, "UNHEALTHY"), endpoint(12, "DEGRADED")],
                    "load_balancing_weight": 7,
                },
                {
                    "locality": {"region": "r2"},
                    "lb_endpoints": [endpoint(13, "HEALTHY")],
                    "load_balancing_weight": 0,
                    "priority": 1,
                },
            ],
            "policy": {
                "overprovisioning_factor": 150,
                "drop_overloads": [
                    {"category": "x", "drop_percentage": {"numerator": 50000, "denominator": "MILLION"}}
                ],
            },
        }}])
    );
}

#[tokio::test]
async fn resources_and_masks() {
    let element = |of: &str| format!("type.googleapis.com/envoy.admin.v3.{of}");
    let listener = element("ListenersConfigDump.DynamicListener");
    assert_eq!(
        dump(fake(), "resource=dynamic_listeners&mask=name").await,
        ["l", "old", "bad"].map(|name| json!({"@type": listener, "name": name}))
    );
    assert_eq!(
        dump(fake(), "resource=dynamic_listeners&mask=active_state.version_info&name_regex=l").await,
        [json!({"@type": listener, "active_state": {"version_info": "1"}})]
    );
    assert_eq!(dump(fake(), "resource=dynamic_endpoint_configs&include_eds").await.len(), 1);
    assert_eq!(names(&dump(fake(), "mask=version_info").await), ["Clusters", "Listeners"]);
    assert_eq!(names(&dump(fake(), "mask=last_updated").await), ["Bootstrap"]);
    for (query, status, body) in [
        ("resource=dynamic_endpoint_configs", 404, "dynamic_endpoint_configs not found in config dump"),
        ("resource=dynamic_scoped_route_configs", 200, "{}\n"),
        ("resource=dynamic_listeners&name_regex=x", 200, "{}\n"),
        (
            "resource=dynamic_listeners&mask=listener",
            400,
            "FieldMask paths: \"listener\"\n could not be successfully used.",
        ),
        (
            "mask=dynamic_listeners.name",
            400,
            "FieldMask dynamic_listeners.name could not be successfully applied to any configs.",
        ),
    ] {
        assert_eq!(ask(fake(), query).await, (status, body.to_owned()), "{query}");
    }
}
