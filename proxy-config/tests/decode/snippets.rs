//! Configurations from posts and books, each with its type in the first line.

use std::fs;
use std::path::Path;

use proxy_config::diagnostic::Severity;
use proxy_config::lower::Cx;
use proxy_config::{decode, load, load::Options};

#[test]
fn each_decodes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decode/snippets");
    let mut problems = Vec::new();
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 50);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let name = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap();
        let file = path.file_name().unwrap().to_string_lossy();
        match decode::message(name, &text, Options::default()) {
            Ok(encoded) => {
                // It survives the way there and back.
                let json = proxy_config::dump::json(name, &encoded.bytes).unwrap().to_string();
                match decode::message(name, &json, Options::default()) {
                    Ok(again) => {
                        let dumped = proxy_config::dump::json(name, &again.bytes).unwrap().to_string();
                        assert_eq!(dumped, json, "{file}");
                    }
                    Err(errors) => problems.extend(errors.iter().map(|e| format!("{file} again: {e}"))),
                }
            }
            Err(errors) => problems.extend(errors.iter().map(|error| format!("{file}: {error}"))),
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What is refused of them: parts of something larger lack the rest of it, and some is not implemented. All else has
/// a meaning.
const REFUSED: &[(&str, &str)] = &[
    ("000-02-listener.yaml", "address: is required"),
    ("000-02-listener.yaml", "no filter chains specified"),
    ("000-16-cluster.yaml", "QUIC is not implemented yet"),
    ("000-16-cluster.yaml", "HTTP/3 is not implemented yet"),
    ("000-24-listener.yaml", "ALTS is not implemented"),
    ("000-26-listener.yaml", "UDP is not implemented yet"),
    ("000-26-listener.yaml", "HTTP3 is not implemented yet"),
    ("000-26-listener.yaml", "QUIC is not implemented yet"),
    ("001-65-bootstrap.yaml", "id and cluster are required with dynamic_resources"),
    ("001-65-bootstrap.yaml", "no cluster 'xds-grpc'"),
    ("002-37-cluster.yaml", "name: must not be empty"),
    ("003-58-fragment.yaml", "address: is required"),
    ("003-58-fragment.yaml", "no filter chains specified"),
    ("003-65-fragment.yaml", "domains: must have at least one"),
    ("003-65-fragment.yaml", "name: must not be empty"),
    ("003-68-fragment.yaml", "myheader.lua is the last filter in a http filter chain"),
    ("003-68-fragment.yaml", "rds or route_config is required"),
    ("003-68-fragment.yaml", "stat_prefix: must not be empty"),
];

#[test]
fn each_has_a_meaning() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decode/snippets");
    let mut problems = Vec::new();
    let (mut lowered, mut refused) = (0, 0);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let name = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let errors = errors(name, &text);
        lowered += usize::from(errors.is_some());
        for error in errors.unwrap_or_default() {
            refused += 1;
            if !REFUSED.iter().any(|(of, why)| *of == file && error.contains(why)) {
                problems.push(format!("{file}: {error}"));
            }
        }
    }
    assert!(lowered > 50, "{lowered} only");
    assert!(refused >= REFUSED.len(), "{refused} only");
    problems.sort();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// `None`: it is a part of something that is lowered as a whole.
fn errors(name: &str, text: &str) -> Option<Vec<String>> {
    if name == "envoy.config.bootstrap.v3.Bootstrap" {
        let found = load::bootstrap(text, None, Options::default()).err().unwrap_or_default();
        return Some(found.iter().map(ToString::to_string).collect());
    }
    let message = proxy_config::lower::messages().find(|message| message.name == name)?;
    let encoded = decode::message(name, text, Options::default()).unwrap();
    let mut cx = Cx::default();
    let model = (message.lower)(&encoded.bytes, &mut cx);
    let errors = cx.diagnostics.iter().filter(|found| found.severity == Severity::Error);
    let errors: Vec<String> = errors.map(ToString::to_string).collect();
    assert!(model.is_some() || !errors.is_empty(), "{name}: refused in silence");
    Some(errors)
}
