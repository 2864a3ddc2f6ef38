//! An EDS file: what it says of the endpoints of clusters.

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

use crate::diagnostic::Diagnostic;
use crate::discovery::{self, Response};
use crate::model::LoadAssignment;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoints {
    pub version: String,
    pub assignments: Vec<LoadAssignment>,
    /// What was accepted without effect.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a `DiscoveryResponse` of `ClusterLoadAssignment`s, YAML or JSON; all of it or nothing. Fields that Envoy
/// does not know are warnings, as in all dynamic configuration.
pub fn endpoints(text: &str) -> Result<Endpoints, Vec<Diagnostic>> {
    let Response { version, resources, warnings } = discovery::response::<ClusterLoadAssignment>(text)?;
    Ok(Endpoints { version, assignments: resources, warnings })
}

impl Endpoints {
    /// Everything that is wrong, as one text.
    pub fn problems(found: &[Diagnostic]) -> String {
        discovery::problems(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_read_or_refused_with_the_place() {
        let text = r#"
version_info: "7"
resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: web
  endpoints:
  - lb_endpoints:
    - endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}
"#;
        let read = endpoints(text).unwrap();
        assert_eq!((read.version.as_str(), read.assignments.len()), ("7", 1));
        assert_eq!(read.assignments[0].localities[0].endpoints.len(), 1);
        let of_locality = text.replace(
            "  - lb_endpoints:",
            "  - metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}}}\n    lb_endpoints:",
        );
        let read = endpoints(&of_locality).unwrap();
        assert!(read.assignments[0].localities[0].transport_match.contains_key("tlsMode"), "{read:?}");
        assert_eq!(read.warnings, []);
        let wrong = text.replace("port_value: 80", "port_value: 80000");
        let found = endpoints(&wrong).unwrap_err();
        assert!(found[0].to_string().contains("port_value"), "{found:?}");
        let other = text.replace("endpoint.v3.ClusterLoadAssignment", "cluster.v3.Cluster");
        assert!(endpoints(&other).is_err());
    }
}
