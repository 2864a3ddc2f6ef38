//! TLS ClientHellos, as bytes: enough of one for a listener that reads names and nothing else.

/// A TLS 1.2 record with a ClientHello.
pub fn client_hello(server_name: Option<&str>, protocols: &[&str]) -> Vec<u8> {
    client_hello_padded(server_name, protocols, 0)
}

/// As [`client_hello`], with so many bytes of padding.
pub fn client_hello_padded(server_name: Option<&str>, protocols: &[&str], padding: usize) -> Vec<u8> {
    let mut extensions = Vec::new();
    if let Some(name) = server_name {
        let host = [&[0], with_length(name.as_bytes()).as_slice()].concat();
        extensions.extend(extension(0, &with_length(&host)));
    }
    if !protocols.is_empty() {
        let list: Vec<u8> = protocols
            .iter()
            .flat_map(|name| [&[u8::try_from(name.len()).unwrap_or(u8::MAX)], name.as_bytes()].concat())
            .collect();
        extensions.extend(extension(16, &with_length(&list)));
    }
    // supported_versions: 1.3 and 1.2; supported_groups; signature_algorithms.
    extensions.extend(extension(43, &[4, 3, 4, 3, 3]));
    extensions.extend(extension(10, &[0, 4, 0, 29, 0, 23]));
    extensions.extend(extension(13, &[0, 4, 4, 3, 8, 4]));
    if padding > 0 {
        extensions.extend(extension(21, &vec![0; padding]));
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend(with_length(&[0x13, 0x01, 0xc0, 0x2f]));
    body.extend([1, 0]);
    body.extend(with_length(&extensions));
    let mut message = vec![1, 0];
    message.extend(with_length(&body));
    // The handshake's length has three bytes; a record has at most 2^14.
    let records = message.chunks(16_384).map(|part| [&[22, 3, 1], with_length(part).as_slice()].concat());
    records.collect::<Vec<_>>().concat()
}

fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes(), with_length(data).as_slice()].concat()
}

/// Two bytes of length in front.
fn with_length(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes(), data].concat()
}
