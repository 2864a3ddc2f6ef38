//! An EDS file: what it says of the endpoints of clusters.

use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use prost::Message as _;

use crate::decode::any;
use crate::decode::{Resource, resources};
use crate::diagnostic::{Diagnostic, Segment, Severity};
use crate::load::Options;
use crate::lower::{Cx, Lower};
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
    let response = resources(text, Options { allow_unknown_fields: true, ..Options::default() })?;
    let mut cx = Cx::default();
    let assignments = cx.field("resources", |cx| {
        let each = response.resources.iter().enumerate();
        each.filter_map(|(index, resource)| cx.index(index, |cx| assignment(resource, cx))).collect()
    });
    let (errors, mut warnings): (Vec<_>, Vec<_>) =
        cx.diagnostics.into_iter().partition(|found| found.severity == Severity::Error);
    warnings.extend(response.warnings);
    if errors.is_empty() {
        Ok(Endpoints { version: response.version_info, assignments, warnings })
    } else {
        Err(errors)
    }
}

fn assignment(resource: &Resource, cx: &mut Cx) -> Option<LoadAssignment> {
    let opened = any::unpack(&resource.type_url, &resource.value);
    let decoded = opened.and_then(|(name, bytes)| {
        if name != ClusterLoadAssignment::NAME {
            return Err(format!("{name} where {} is expected", ClusterLoadAssignment::NAME));
        }
        ClusterLoadAssignment::decode(bytes.as_ref()).map_err(|error| error.to_string())
    });
    match decoded {
        Ok(message) => {
            let segment = Segment::Type("ClusterLoadAssignment".into());
            cx.within(segment, |cx| message.lower(cx))
        }
        Err(why) => {
            cx.reject_here(why);
            None
        }
    }
}

impl Endpoints {
    /// Everything that is wrong, as one text.
    pub fn problems(found: &[Diagnostic]) -> String {
        let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
        lines.join("; ")
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
        let wrong = text.replace("port_value: 80", "port_value: 80000");
        let found = endpoints(&wrong).unwrap_err();
        assert!(found[0].to_string().contains("port_value"), "{found:?}");
        let other = text.replace("endpoint.v3.ClusterLoadAssignment", "cluster.v3.Cluster");
        assert!(endpoints(&other).is_err());
    }
}
