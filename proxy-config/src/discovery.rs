//! What a file of dynamic resources says: a `DiscoveryResponse` of one type, all of it or nothing.

use prost::Message;

use crate::decode::any;
use crate::decode::{Resource, resources};
use crate::diagnostic::{Diagnostic, Segment, Severity};
use crate::load::Options;
use crate::lower::{Cx, Lower};

/// A response, lowered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Response<T> {
    pub(crate) version: String,
    pub(crate) resources: Vec<T>,
    /// What was accepted without effect.
    pub(crate) warnings: Vec<Diagnostic>,
}

/// Reads a response, YAML or JSON. Fields that Envoy does not know are warnings, as in all dynamic configuration.
pub(crate) fn response<M: Message + Default + Lower>(
    text: &str,
) -> Result<Response<M::Model>, Vec<Diagnostic>> {
    response_of::<M, _>(text, |model, _| model)
}

/// As [`response`], with something made of each model and the message that it came from.
pub(crate) fn response_of<M: Message + Default + Lower, T>(
    text: &str,
    make: impl Fn(M::Model, &[u8]) -> T,
) -> Result<Response<T>, Vec<Diagnostic>> {
    let response = resources(text, Options { allow_unknown_fields: true, ..Options::default() })?;
    let mut cx = Cx::default();
    let lowered = cx.field("resources", |cx| {
        let each = response.resources.iter().enumerate();
        each.filter_map(|(index, one)| cx.index(index, |cx| resource::<M, T>(one, &make, cx))).collect()
    });
    let (errors, mut warnings): (Vec<_>, Vec<_>) =
        cx.diagnostics.into_iter().partition(|found| found.severity == Severity::Error);
    warnings.extend(response.warnings);
    if errors.is_empty() {
        Ok(Response { version: response.version_info, resources: lowered, warnings })
    } else {
        Err(errors)
    }
}

fn resource<M: Message + Default + Lower, T>(
    resource: &Resource,
    make: impl Fn(M::Model, &[u8]) -> T,
    cx: &mut Cx,
) -> Option<T> {
    let opened = any::unpack(&resource.type_url, &resource.value);
    let decoded = opened.and_then(|(name, bytes)| {
        if name != M::NAME {
            return Err(format!("{name} where {} is expected", M::NAME));
        }
        let message = M::decode(bytes.as_ref()).map_err(|error| error.to_string())?;
        Ok((message, bytes))
    });
    match decoded {
        Ok((message, bytes)) => {
            let short = M::NAME.rsplit('.').next().unwrap_or_default();
            let model = cx.within(Segment::Type(short.into()), |cx| message.lower(cx));
            model.map(|model| make(model, bytes.as_ref()))
        }
        Err(why) => {
            cx.reject_here(why);
            None
        }
    }
}

/// Everything that is wrong, as one text.
pub(crate) fn problems(found: &[Diagnostic]) -> String {
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    lines.join("; ")
}
