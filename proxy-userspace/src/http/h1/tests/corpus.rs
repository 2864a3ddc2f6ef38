//! Inputs from files that the integration tests read too.

pub(super) struct Case {
    pub(super) id: &'static str,
    pub(super) status: u16,
    /// None: it is accepted by the codec.
    pub(super) details: Option<&'static str>,
    pub(super) input: Vec<u8>,
}

pub(super) fn requests() -> Vec<Case> {
    cases(include_str!("../../../../../tests/corpus/http1_requests.txt"))
}

pub(super) fn responses() -> Vec<Case> {
    cases(include_str!("../../../../../tests/corpus/http1_responses.txt"))
}

fn cases(file: &'static str) -> Vec<Case> {
    file.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(case).collect()
}

fn case(line: &'static str) -> Case {
    let columns: Vec<_> = line.splitn(4, '\t').collect();
    let [id, status, details, input] = columns[..] else { panic!("{line}") };
    let details = (details != "-").then_some(details);
    Case { id, status: status.parse().unwrap(), details, input: bytes(&repeated(input)) }
}

/// `{TEXT*N}` is N times the text.
fn repeated(text: &str) -> String {
    let Some((before, rest)) = text.split_once('{') else { return text.to_owned() };
    let (inner, after) = rest.split_once('}').unwrap();
    let (piece, times) = inner.rsplit_once('*').unwrap();
    format!("{before}{}{}", piece.repeat(times.parse().unwrap()), repeated(after))
}

fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        if next != '\\' {
            bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match rest.next().unwrap() {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            '0' => 0,
            'x' => {
                let digits: String = rest.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).unwrap()
            }
            other => panic!("\\{other} in {text}"),
        });
    }
    bytes
}
