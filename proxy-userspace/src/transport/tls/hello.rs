//! What rustls does not tell of a ClientHello.

/// `status_request`: the client takes an OCSP response.
const STATUS_REQUEST: u16 = 5;

/// Whether the ClientHello in these records has that extension. They are rustls's leftovers: it has found the message
/// good already.
pub(super) fn asks_for_status(records: &[u8]) -> bool {
    extensions(&message(records)).is_some_and(|mut rest| {
        while let Some((kind, body)) = extension(&mut rest) {
            // RFC 6066: OCSP is type 1, and the only one there is.
            if kind == STATUS_REQUEST {
                return body.first() == Some(&1);
            }
        }
        false
    })
}

/// The handshake message, out of its records.
fn message(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(records.len());
    while let Some(([22, _, _, high, low], rest)) = records.split_first_chunk() {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (body, rest) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        message.extend_from_slice(body);
        records = rest;
    }
    message
}

/// Behind the message's type, length and version, the random, the session id, the suites and the compression methods.
fn extensions(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.get(4 + 2 + 32..)?;
    vec(&mut rest, 1)?;
    vec(&mut rest, 2)?;
    vec(&mut rest, 1)?;
    vec(&mut rest, 2)
}

fn extension<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let (kind, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some((u16::from_be_bytes(*kind), vec(rest, 2)?))
}

/// Bytes behind their length, which has so many bytes itself.
fn vec<'a>(rest: &mut &'a [u8], prefix: usize) -> Option<&'a [u8]> {
    let (len, behind) = rest.split_at_checked(prefix)?;
    let len = len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
    let (body, behind) = behind.split_at_checked(len)?;
    *rest = behind;
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        // A session id of two bytes, one suite, no compression.
        body.extend([2, 8, 8, 0, 2, 0x13, 1, 1, 0]);
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0, 0];
        message.push(u8::try_from(body.len()).unwrap());
        message.extend(body);
        message
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()], part].concat();
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn status_request_is_found_among_others_and_across_records() {
        let other = [0, 23, 0, 0];
        let status = [0, 5, 0, 5, 1, 0, 0, 0, 0];
        for size in [1, 10, 200] {
            assert!(asks_for_status(&records(&hello(&[&other[..], &status].concat()), size)));
            assert!(!asks_for_status(&records(&hello(&other), size)));
        }
        assert!(!asks_for_status(b""));
        assert!(!asks_for_status(&records(&hello(&status)[..40], 200)));
    }
}
