//! The command operators of access-log formats: `%START_TIME(%s)%`, `%REQ(X-REQUEST-ID):10%`.
//!
//! [`parse`] cuts a format into pieces, which the daemon compiles; [`check`] refuses what Envoy refuses: an operator
//! that nobody knows, and an argument or a length where there must be none, or none where there must be one.
//! A limit that is Envoy's too: an argument ends at the first `)` after which the operator can end.

/// A part of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Operator {
        name: &'a str,
        /// Without its brackets; an empty one is as none.
        argument: Option<&'a str>,
        max_len: Option<usize>,
    },
}

/// Cuts a format into its pieces. `%%` is the text `%`.
pub fn parse(format: &str) -> Result<Vec<Piece<'_>>, String> {
    let pieces = located(format)?;
    Ok(pieces.into_iter().map(|(_, piece)| piece).collect())
}

/// Whether Envoy would take the format, and we can.
pub fn check(format: &str) -> Result<(), String> {
    check_with(format, &[])
}

/// The same where formatter extensions bring `more` operators, each with one argument and perhaps a length.
pub fn check_with(format: &str, more: &[&str]) -> Result<(), String> {
    for (offset, piece) in located(format)? {
        if let Piece::Operator { name, argument, max_len } = piece {
            verify(name, argument, max_len, more).map_err(|why| format!("{why}, at offset {offset}"))?;
        }
    }
    Ok(())
}

/// What may follow an operator's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    None,
    Optional,
    Required,
}

/// An operator that Envoy 1.40 knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operator {
    pub name: &'static str,
    pub argument: Argument,
    pub length: bool,
}

/// All operators, found in Envoy 1.40 by trying each of them.
pub fn operators() -> impl Iterator<Item = Operator> {
    let of = |names: &'static str, argument, length| {
        names.split_ascii_whitespace().map(move |name| Operator { name, argument, length })
    };
    of(PLAIN, Argument::None, false)
        .chain(of(OPTIONAL, Argument::Optional, false))
        .chain(of(OPTIONAL_WITH_LENGTH, Argument::Optional, true))
        .chain(of(REQUIRED, Argument::Required, false))
        .chain(of(REQUIRED_WITH_LENGTH, Argument::Required, true))
}

const PLAIN: &str = "
    REQUEST_HEADERS_BYTES BYTES_RECEIVED BYTES_RETRANSMITTED PACKETS_RETRANSMITTED PROTOCOL UPSTREAM_PROTOCOL
    RESPONSE_CODE CONNECTION_TERMINATION_DETAILS RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES BYTES_SENT
    UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_WIRE_BYTES_SENT UPSTREAM_WIRE_BYTES_RECEIVED
    UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HEADER_BYTES_RECEIVED UPSTREAM_DECOMPRESSED_HEADER_BYTES_SENT
    UPSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DOWNSTREAM_WIRE_BYTES_RECEIVED
    DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_SENT
    DOWNSTREAM_DECOMPRESSED_HEADER_BYTES_RECEIVED DURATION REQUEST_DURATION REQUEST_TX_DURATION
    RESPONSE_DURATION RESPONSE_TX_DURATION DOWNSTREAM_HANDSHAKE_DURATION ROUNDTRIP_DURATION RESPONSE_FLAGS
    RESPONSE_FLAGS_LONG UPSTREAM_HOST UPSTREAM_HOST_NAME UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_CLUSTER
    UPSTREAM_CLUSTER_RAW UPSTREAM_LOCAL_ADDRESS UPSTREAM_LOCAL_PORT UPSTREAM_REMOTE_ADDRESS
    UPSTREAM_REMOTE_PORT UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_DETECTED_CLOSE_TYPE
    UPSTREAM_LOCAL_CLOSE_REASON DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_REMOTE_PORT
    DOWNSTREAM_DIRECT_REMOTE_ADDRESS DOWNSTREAM_DIRECT_REMOTE_PORT DOWNSTREAM_LOCAL_ADDRESS
    DOWNSTREAM_LOCAL_PORT DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID DOWNSTREAM_DIRECT_LOCAL_ADDRESS
    DOWNSTREAM_DIRECT_LOCAL_PORT DOWNSTREAM_DETECTED_CLOSE_TYPE DOWNSTREAM_LOCAL_CLOSE_REASON CONNECTION_ID
    UPSTREAM_CONNECTION_ID GRPC_STATUS_NUMBER ROUTE_NAME VIRTUAL_CLUSTER_NAME UPSTREAM_PEER_URI_SAN
    UPSTREAM_PEER_DNS_SAN UPSTREAM_PEER_IP_SAN UPSTREAM_PEER_SUBJECT UPSTREAM_PEER_ISSUER
    UPSTREAM_LOCAL_URI_SAN UPSTREAM_LOCAL_DNS_SAN UPSTREAM_LOCAL_IP_SAN UPSTREAM_TLS_SESSION_ID
    UPSTREAM_TLS_CIPHER UPSTREAM_TLS_VERSION UPSTREAM_TLS_GROUP UPSTREAM_PEER_CERT UPSTREAM_SERVER_NAME
    DOWNSTREAM_PEER_URI_SAN DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_PEER_IP_SAN DOWNSTREAM_PEER_EMAIL_SAN
    DOWNSTREAM_PEER_OTHERNAME_SAN DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_PEER_ISSUER DOWNSTREAM_LOCAL_URI_SAN
    DOWNSTREAM_LOCAL_DNS_SAN DOWNSTREAM_LOCAL_IP_SAN DOWNSTREAM_LOCAL_EMAIL_SAN
    DOWNSTREAM_LOCAL_OTHERNAME_SAN DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_TLS_CIPHER
    DOWNSTREAM_TLS_VERSION DOWNSTREAM_TLS_GROUP DOWNSTREAM_PEER_CERT DOWNSTREAM_PEER_FINGERPRINT_256
    DOWNSTREAM_PEER_FINGERPRINT_1 DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256
    DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1 DOWNSTREAM_PEER_CHAIN_SERIALS DOWNSTREAM_TRANSPORT_FAILURE_REASON
    TLS_JA3_FINGERPRINT TLS_JA4_FINGERPRINT HOSTNAME FILTER_CHAIN_NAME STREAM_ID UNIQUE_ID ACCESS_LOG_TYPE
    TRACE_ID SPAN_ID LOCAL_REPLY_BODY CUSTOM_FLAGS UPSTREAM_CONNECTION_POOL_READY_DURATION
    UPSTREAM_HOSTS_ATTEMPTED UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT UPSTREAM_HOST_NAMES_ATTEMPTED
    UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT UPSTREAM_CONNECTION_IDS_ATTEMPTED";

const OPTIONAL: &str = "
    START_TIME START_TIME_LOCAL EMIT_TIME EMIT_TIME_LOCAL RESPONSE_CODE_DETAILS GRPC_STATUS REQUESTED_SERVER_NAME
    UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT
    DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT
    DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT
    UPSTREAM_PEER_CERT_V_START UPSTREAM_PEER_CERT_V_END DOWNSTREAM_PEER_CERT_V_START DOWNSTREAM_PEER_CERT_V_END";

const OPTIONAL_WITH_LENGTH: &str = "PATH QUERY_PARAMS";

const REQUIRED: &str = "COMMON_DURATION CLUSTER_METADATA UPSTREAM_METADATA";

const REQUIRED_WITH_LENGTH: &str = "
    REQ RESP TRAILER REQUEST_HEADER RESPONSE_HEADER RESPONSE_TRAILER FILTER_STATE UPSTREAM_FILTER_STATE
    DYNAMIC_METADATA ENVIRONMENT QUERY_PARAM METADATA CEL TYPED_CEL COALESCE";

/// Envoy has them, and we cannot do them.
const NOT_IMPLEMENTED: &[&str] = &["CEL", "TYPED_CEL", "COALESCE"];

type Located<'a> = Vec<(usize, Piece<'a>)>;

fn located(format: &str) -> Result<Located<'_>, String> {
    let mut pieces = Vec::new();
    let mut rest = format;
    while !rest.is_empty() {
        let offset = format.len() - rest.len();
        let Some(percent) = rest.find('%') else {
            pieces.push((offset, Piece::Text(rest)));
            break;
        };
        if percent > 0 {
            let (text, after) = rest.split_at(percent);
            pieces.push((offset, Piece::Text(text)));
            rest = after;
            continue;
        }
        let (piece, after) =
            operator(rest).ok_or_else(|| format!("no valid command operator at offset {offset}"))?;
        pieces.push((offset, piece));
        rest = after;
    }
    Ok(pieces)
}

/// One operator, or `%%`, at the start of `text`, and what follows it.
fn operator(text: &str) -> Option<(Piece<'_>, &str)> {
    let body = text.strip_prefix('%')?;
    if let Some(after) = body.strip_prefix('%') {
        return Some((Piece::Text(&body[..1]), after));
    }
    let end = body.find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))?;
    let (name, tail) = body.split_at(end);
    if name.is_empty() {
        return None;
    }
    let Some(inside) = tail.strip_prefix('(') else {
        let (max_len, after) = operator_end(tail)?;
        return Some((Piece::Operator { name, argument: None, max_len }, after));
    };
    let line = inside.split('\n').next()?;
    line.match_indices(')').find_map(|(close, _)| {
        let (argument, after) = (&inside[..close], &inside[close + 1..]);
        let (max_len, after) = operator_end(after)?;
        let argument = Some(argument).filter(|a| !a.is_empty());
        Some((Piece::Operator { name, argument, max_len }, after))
    })
}

/// `%` or `:10%`.
fn operator_end(text: &str) -> Option<(Option<usize>, &str)> {
    let Some(length) = text.strip_prefix(':') else {
        return text.strip_prefix('%').map(|after| (None, after));
    };
    let (digits, after) = length.split_once('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((Some(digits.parse().ok()?), after))
}

fn verify(name: &str, argument: Option<&str>, length: Option<usize>, more: &[&str]) -> Result<(), String> {
    let brought = more.contains(&name);
    let Some(operator) = operators().find(|o| o.name == name) else {
        return match (brought, argument) {
            (true, Some(_)) => Ok(()),
            (true, None) => Err(format!("operator {name} requires an argument")),
            (false, _) => Err(format!("unknown operator {name:?}")),
        };
    };
    if NOT_IMPLEMENTED.contains(&name) {
        return Err(format!("operator {name} is not implemented"));
    }
    match (operator.argument, argument) {
        (Argument::None, Some(_)) => return Err(format!("operator {name} takes no argument")),
        (Argument::Required, None) => return Err(format!("operator {name} requires an argument")),
        (Argument::None | Argument::Optional | Argument::Required, _) => {}
    }
    if length.is_some() && !operator.length {
        return Err(format!("operator {name} takes no length"));
    }
    argument.map_or(Ok(()), |argument| verify_argument(name, argument))
}

fn verify_argument(name: &str, argument: &str) -> Result<(), String> {
    let part = |index| argument.split(':').nth(index);
    let one_of = |value: Option<&str>, known: &[&str]| match value {
        Some(value) if !known.contains(&value) => {
            Err(format!("operator {name} knows {}, not {value:?}", known.join(", ")))
        }
        Some(_) | None => Ok(()),
    };
    match name {
        "REQ" | "RESP" | "TRAILER" | "REQUEST_HEADER" | "RESPONSE_HEADER" | "RESPONSE_TRAILER" => {
            headers(name, argument)
        }
        "START_TIME" | "START_TIME_LOCAL" | "EMIT_TIME" | "EMIT_TIME_LOCAL" if argument.contains("%n") => {
            Err(format!("operator {name} would write a newline"))
        }
        "GRPC_STATUS" => one_of(Some(argument), &["CAMEL_STRING", "SNAKE_STRING", "NUMBER"]),
        "REQUESTED_SERVER_NAME" => one_of(part(0), &["SNI_ONLY", "SNI_FIRST", "HOST_FIRST"]),
        "PATH" => one_of(part(0), &["WQ", "NQ"]),
        "FILTER_STATE" | "UPSTREAM_FILTER_STATE" => one_of(part(1), &["PLAIN", "TYPED", "FIELD"]),
        "METADATA" => one_of(
            part(0),
            &[
                "DYNAMIC",
                "CLUSTER",
                "ROUTE",
                "UPSTREAM_HOST",
                "LISTENER",
                "VIRTUAL_HOST",
                "LISTENER_FILTER_CHAIN",
            ],
        ),
        "COMMON_DURATION" if part(1).is_none() => Err(format!("operator {name} requires two points in time")),
        "COMMON_DURATION" => one_of(part(2), &["ms", "us", "ns"]),
        _ => Ok(()),
    }
}

/// `MAIN?ALTERNATIVE`, both the names of headers.
fn headers(name: &str, argument: &str) -> Result<(), String> {
    if argument.split('?').count() > 2 {
        return Err(format!("operator {name} takes one alternative header at most"));
    }
    let name_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:".contains(&b);
    match argument.bytes().find(|b| *b != b'?' && !name_byte(*b)) {
        Some(byte) => Err(format!("operator {name}: {:?} cannot be in a header's name", char::from(byte))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces() {
        let op = |name, argument, max_len| Piece::Operator { name, argument, max_len };
        let table: &[(&str, Vec<Piece<'_>>)] = &[
            ("", vec![]),
            ("plain", vec![Piece::Text("plain")]),
            ("%%", vec![Piece::Text("%")]),
            (
                "a%%b%PROTOCOL%",
                vec![Piece::Text("a"), Piece::Text("%"), Piece::Text("b"), op("PROTOCOL", None, None)],
            ),
            ("%REQ(A?B):10%", vec![op("REQ", Some("A?B"), Some(10))]),
            ("%START_TIME(%Y/%m:%S)%\n", vec![op("START_TIME", Some("%Y/%m:%S"), None), Piece::Text("\n")]),
            ("%REQ(a(b))%", vec![op("REQ", Some("a(b)"), None)]),
            ("%PROTOCOL()%", vec![op("PROTOCOL", None, None)]),
        ];
        for (format, expected) in table {
            assert_eq!(parse(format).as_ref(), Ok(expected), "{format}");
        }
    }

    // Each was tried on Envoy 1.40.
    #[test]
    fn refused() {
        let table = [
            ("100%", "no valid command operator at offset 3"),
            ("%START_TIME", "no valid command operator at offset 0"),
            ("%start%", "no valid command operator at offset 0"),
            ("%%%", "no valid command operator at offset 2"),
            ("%PROTOCOL:%", "no valid command operator at offset 0"),
            ("%REQ(a):99999999999999999999%", "no valid command operator at offset 0"),
            ("x %NOPE%", "unknown operator \"NOPE\", at offset 2"),
            ("%REQ_WITHOUT_QUERY(a)%", "unknown operator \"REQ_WITHOUT_QUERY\", at offset 0"),
            ("%REQ()%", "operator REQ requires an argument, at offset 0"),
            ("%REQ(a?b?c)%", "operator REQ takes one alternative header at most, at offset 0"),
            ("%REQ(a b)%", "operator REQ: ' ' cannot be in a header's name, at offset 0"),
            ("%TRACE_ID(a)%", "operator TRACE_ID takes no argument, at offset 0"),
            ("%PROTOCOL:5%", "operator PROTOCOL takes no length, at offset 0"),
            ("%START_TIME:5%", "operator START_TIME takes no length, at offset 0"),
            ("%START_TIME(%Y %n)%", "operator START_TIME would write a newline, at offset 0"),
            (
                "%METADATA(UPSTREAM_CLUSTER:a)%",
                "operator METADATA knows DYNAMIC, CLUSTER, ROUTE, UPSTREAM_HOST, \
              LISTENER, VIRTUAL_HOST, LISTENER_FILTER_CHAIN, not \"UPSTREAM_CLUSTER\", at offset 0",
            ),
            (
                "%FILTER_STATE(a:b)%",
                "operator FILTER_STATE knows PLAIN, TYPED, FIELD, not \"b\", at offset 0",
            ),
            ("%COMMON_DURATION(a)%", "operator COMMON_DURATION requires two points in time, at offset 0"),
            ("%COMMON_DURATION(a:b:h)%", "operator COMMON_DURATION knows ms, us, ns, not \"h\", at offset 0"),
            ("%CEL(request.path)%", "operator CEL is not implemented, at offset 0"),
        ];
        for (format, why) in table {
            assert_eq!(check(format), Err(why.to_owned()), "{format}");
        }
    }

    #[test]
    fn accepted() {
        for format in [
            "[%START_TIME%] %BYTES_SENT% %UPSTREAM_TRANSPORT_FAILURE_REASON%\n",
            "%GRPC_STATUS(CAMEL_STRING)% %PATH(WQ:ORIG):9% %FILTER_STATE(a:FIELD:x)% %FILTER_STATE(wasm.key):3%",
            "%METADATA(ROUTE:a:b)% %DYNAMIC_METADATA(a:b:c):7% %RESPONSE_CODE_DETAILS(X)% %REQ(:AUTHORITY)%",
        ] {
            assert_eq!(check(format), Ok(()), "{format}");
        }
        assert_eq!(check_with("%REQ_WITHOUT_QUERY(X)%", &["REQ_WITHOUT_QUERY"]), Ok(()));
    }

    #[test]
    fn no_operator_is_listed_twice() {
        let mut names: Vec<_> = operators().map(|o| o.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
