//! A trace's context on its way through headers: B3 (of several headers, or of one) and W3C.

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");
const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Where a span stands in its trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pub trace: u128,
    pub span: u64,
    pub parent: Option<u64>,
    /// `None`: nobody has decided yet.
    pub sampled: Option<bool>,
    /// Handed on as it is.
    pub state: Option<HeaderValue>,
}

/// What a request says of its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extracted {
    /// It is part of one.
    Context(Context),
    /// Only whether it is to be traced.
    Sampled(Option<bool>),
    /// Headers that are no context: Envoy makes no span of such a request.
    Broken,
}

impl Context {
    pub fn trace_id(&self) -> String {
        match self.trace >> 64 {
            0 => format!("{:016x}", self.trace),
            _ => format!("{:032x}", self.trace),
        }
    }

    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }

    pub fn inject_b3(&self, headers: &mut HeaderMap) {
        let mut set = |name, text: String| {
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        set(TRACE_ID, self.trace_id());
        set(SPAN_ID, self.span_id());
        if let Some(parent) = self.parent {
            set(PARENT_ID, format!("{parent:016x}"));
        }
        set(SAMPLED, if self.sampled == Some(true) { "1" } else { "0" }.to_owned());
    }

    /// In one header, as it came.
    pub fn inject_b3_single(&self, headers: &mut HeaderMap) {
        let sampled = u8::from(self.sampled == Some(true));
        let mut text = format!("{}-{}-{sampled}", self.trace_id(), self.span_id());
        if let Some(parent) = self.parent {
            text += &format!("-{parent:016x}");
        }
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(SINGLE, value);
        }
    }

    pub fn inject_w3c(&self, headers: &mut HeaderMap) {
        let flags = u8::from(self.sampled == Some(true));
        let text = format!("00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(TRACEPARENT, value);
        }
    }

    /// As Envoy, an empty one where there is none.
    pub fn inject_state(&self, headers: &mut HeaderMap) {
        headers.insert(TRACESTATE, self.state.clone().unwrap_or_else(|| HeaderValue::from_static("")));
    }
}

/// Whether a request has its context in one header: so it goes on.
pub fn is_single(headers: &HeaderMap) -> bool {
    headers.contains_key(SINGLE)
}

/// B3: one header goes before the several, as in Envoy.
pub fn b3(headers: &HeaderMap) -> Extracted {
    if let Some(single) = headers.get(SINGLE) {
        return single.to_str().map_or(Extracted::Broken, b3_single);
    }
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let sampled = match text(SAMPLED) {
        Some("1" | "true") => Some(true),
        Some(_) => Some(false),
        None => text(FLAGS).filter(|flags| *flags == "1").map(|_| true),
    };
    let (Some(trace), Some(span)) = (text(TRACE_ID), text(SPAN_ID)) else {
        return Extracted::Sampled(sampled);
    };
    let parent = text(PARENT_ID).filter(|parent| !parent.is_empty());
    let ids = (trace_id(trace), hex64(span), parent.map(hex64).transpose());
    let (Some(trace), Some(span), Ok(parent)) = (ids.0, ids.1.ok(), ids.2) else { return Extracted::Broken };
    Extracted::Context(Context { trace, span, parent: parent.filter(|id| *id != 0), sampled, state: None })
}

/// `0`, `1`, `d`, or `TRACE-SPAN[-SAMPLED[-PARENT]]`.
fn b3_single(text: &str) -> Extracted {
    let decision = |text: &str| match text {
        "0" => Some(false),
        "1" | "d" => Some(true),
        _ => None,
    };
    if let Some(sampled) = decision(text) {
        return Extracted::Sampled(Some(sampled));
    }
    let mut parts = text.split('-');
    let (Some(trace), Some(span)) = (parts.next().and_then(trace_id), parts.next()) else {
        return Extracted::Broken;
    };
    let Ok(span) = hex64(span) else { return Extracted::Broken };
    let (third, fourth) = (parts.next(), parts.next());
    let (sampled, parent) = match (third, fourth) {
        (Some(third), None) if third.len() == 16 => (None, Some(third)),
        (third, fourth) => (third.and_then(decision), fourth),
    };
    match (parent.map(hex64).transpose(), parts.next()) {
        (Ok(parent), None) => Extracted::Context(Context { trace, span, parent, sampled, state: None }),
        (Ok(_) | Err(()), _) => Extracted::Broken,
    }
}

/// `00-TRACE-SPAN-FLAGS`; of later versions what follows is passed over.
pub fn w3c(headers: &HeaderMap) -> Extracted {
    let Some(parent) = headers.get(TRACEPARENT) else { return Extracted::Sampled(None) };
    let found = parent.to_str().ok().and_then(traceparent);
    match found {
        Some(mut context) => {
            context.state = headers.get(TRACESTATE).cloned();
            Extracted::Context(context)
        }
        None => Extracted::Broken,
    }
}

fn traceparent(text: &str) -> Option<Context> {
    let mut parts = text.split('-');
    let version = parts.next().filter(|version| version.len() == 2 && *version != "ff")?;
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    if (version == "00" && parts.next().is_some())
        || trace.len() != 32
        || span.len() != 16
        || flags.len() != 2
    {
        return None;
    }
    let (trace, span) = (trace_id(trace)?, hex64(span).ok().filter(|span| *span != 0)?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some(Context { trace, span, parent: None, sampled: Some(flags & 1 == 1), state: None })
}

/// Of 16 or 32 digits.
fn trace_id(text: &str) -> Option<u128> {
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits || !(text.len() == 16 || text.len() == 32) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().filter(|id| *id != 0)
}

fn hex64(text: &str) -> Result<u64, ()> {
    let digits = text.len() <= 16 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if digits { u64::from_str_radix(text, 16).map_err(|_| ()) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        list.iter().map(pair).collect()
    }

    fn context(trace: u128, span: u64, parent: Option<u64>, sampled: Option<bool>) -> Extracted {
        Extracted::Context(Context { trace, span, parent, sampled, state: None })
    }

    #[test]
    fn b3_of_several_headers_and_of_one() {
        let wide = 0x463a_c35c_9f64_13ad_4848_5a39_53bb_6124;
        let (trace, span) = ("463ac35c9f6413ad48485a3953bb6124", "a2fb4a1d1a96d312");
        let table: &[(&[(&'static str, &str)], Extracted)] = &[
            (&[], Extracted::Sampled(None)),
            (&[("x-b3-sampled", "0")], Extracted::Sampled(Some(false))),
            (&[("x-b3-flags", "1")], Extracted::Sampled(Some(true))),
            (&[("b3", "0")], Extracted::Sampled(Some(false))),
            (&[("b3", "d")], Extracted::Sampled(Some(true))),
            (
                &[("x-b3-traceid", trace), ("x-b3-spanid", span), ("x-b3-sampled", "1")],
                context(wide, 0xa2fb_4a1d_1a96_d312, None, Some(true)),
            ),
            (
                &[("x-b3-traceid", span), ("x-b3-spanid", "1"), ("x-b3-parentspanid", "2")],
                context(0xa2fb_4a1d_1a96_d312, 1, Some(2), None),
            ),
            (&[("x-b3-traceid", "xyz"), ("x-b3-spanid", span)], Extracted::Broken),
            (&[("x-b3-traceid", trace), ("x-b3-spanid", "")], Extracted::Broken),
            (
                &[("b3", "463ac35c9f6413ad48485a3953bb6124-a2fb4a1d1a96d312-1-0020000000000001")],
                context(wide, 0xa2fb_4a1d_1a96_d312, Some(0x20_0000_0000_0001), Some(true)),
            ),
            (&[("b3", "463ac35c9f6413ad48485a3953bb6124")], Extracted::Broken),
        ];
        for (list, expected) in table {
            assert_eq!(b3(&headers(list)), *expected, "{list:?}");
        }
    }

    #[test]
    fn w3c_traceparent() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let known =
            context(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, None, Some(true));
        assert_eq!(w3c(&headers(&[("traceparent", good)])), known);
        assert_eq!(w3c(&headers(&[])), Extracted::Sampled(None));
        for bad in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(w3c(&headers(&[("traceparent", bad)])), Extracted::Broken, "{bad}");
        }
    }

    #[test]
    fn what_is_sent_is_understood() {
        let sent = Context { trace: 1 << 100, span: 7, parent: Some(9), sampled: Some(true), state: None };
        let mut map = HeaderMap::new();
        sent.inject_b3(&mut map);
        assert_eq!(b3(&map), Extracted::Context(sent.clone()));
        let mut map = HeaderMap::new();
        sent.inject_w3c(&mut map);
        assert_eq!(w3c(&map), Extracted::Context(Context { parent: None, ..sent }));
    }
}
