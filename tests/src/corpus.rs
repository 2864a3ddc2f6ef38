//! Inputs to parsers, in files that the unit tests of the codecs read too: `tests/corpus`.

use anyhow::{Context as _, Result, bail};

/// One line of a file.
#[derive(Clone, Debug)]
pub struct Input {
    pub id: String,
    /// What a client is answered by shunt.
    pub status: u16,
    /// The codec takes it.
    pub accepted: bool,
    pub bytes: Vec<u8>,
}

/// Requests of HTTP/1 that are read in different ways.
pub fn http1_requests() -> Result<Vec<Input>> {
    parse(include_str!("../corpus/http1_requests.txt"))
}

/// Responses to a GET, likewise.
pub fn http1_responses() -> Result<Vec<Input>> {
    parse(include_str!("../corpus/http1_responses.txt"))
}

fn parse(file: &str) -> Result<Vec<Input>> {
    let lines = file.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| input(line).with_context(|| line.to_owned())).collect()
}

fn input(line: &str) -> Result<Input> {
    let columns: Vec<_> = line.splitn(4, '\t').collect();
    let [id, status, details, text] = columns[..] else { bail!("it has no four columns") };
    let bytes = unescaped(&repeated(text)?)?;
    Ok(Input { id: id.to_owned(), status: status.parse()?, accepted: details == "-", bytes })
}

/// `{TEXT*N}` is N times the text.
fn repeated(text: &str) -> Result<String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(text.to_owned()) };
    let (inner, after) = rest.split_once('}').context("a brace that is not closed")?;
    let (piece, times) = inner.rsplit_once('*').context("no star in braces")?;
    Ok(format!("{before}{}{}", piece.repeat(times.parse()?), repeated(after)?))
}

fn unescaped(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        if next != '\\' {
            bytes.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        bytes.push(match rest.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('0') => 0,
            Some('x') => u8::from_str_radix(&rest.by_ref().take(2).collect::<String>(), 16)?,
            other => bail!("\\{other:?}"),
        });
    }
    Ok(bytes)
}
