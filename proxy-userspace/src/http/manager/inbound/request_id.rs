//! `x-request-id`: a UUID that goes with a request wherever it goes.

use http::{HeaderMap, HeaderName, HeaderValue};
use proxy_config::model::http as model;

use crate::telemetry::trace::Reason;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// `edge`: the client is not trusted with it.
pub(super) fn set(headers: &mut HeaderMap, model: &model::Hcm, edge: bool) {
    let settings = model.request_id;
    if !settings.generate {
        return;
    }
    let there = headers.get(X_REQUEST_ID).filter(|id| !id.is_empty());
    match there {
        Some(_) if !edge => {}
        Some(id) if settings.preserve_external => {
            if settings.pack_trace_reason
                && let Ok(id) = id.to_str()
            {
                let mut id = id.to_owned();
                Reason::NotTraceable.put(&mut id);
                put(headers, &id);
            }
        }
        Some(_) | None => {
            headers.insert(X_REQUEST_ID, fresh());
        }
    }
}

fn put(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(X_REQUEST_ID, value);
    }
}

/// A UUID of version 4.
pub(crate) fn fresh() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0xf | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (place, byte) in bytes.into_iter().enumerate() {
        at += usize::from(matches!(place, 4 | 6 | 8 | 10));
        text[at] = DIGITS[usize::from(byte >> 4)];
        text[at + 1] = DIGITS[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::{any_route, manager};

    #[test]
    fn clients_outside_get_a_new_one() {
        let given = "b1b7ed07-5ff1-9ab9-8a51-000000000000";
        let mut model = manager(Vec::new(), any_route());
        for (preserve, edge, expected) in [
            (false, false, Some(given)),
            (false, true, None),
            (true, false, Some(given)),
            (true, true, Some("b1b7ed07-5ff1-4ab9-8a51-000000000000")),
        ] {
            model.request_id.preserve_external = preserve;
            let mut headers = HeaderMap::from_iter([(X_REQUEST_ID, HeaderValue::from_static(given))]);
            set(&mut headers, &model, edge);
            let id = headers.get(X_REQUEST_ID).unwrap().to_str().unwrap();
            assert_eq!(id.len(), 36);
            match expected {
                Some(expected) => assert_eq!(id, expected),
                None => assert!(id != given && Reason::of(id) == Reason::NotTraceable, "{id}"),
            }
        }
        let id = fresh();
        let id = id.to_str().unwrap();
        assert!(&id[14..15] == "4" && "89ab".contains(&id[19..20]), "{id}");
    }
}
