//! Configurations from posts and books, each with its type in the first line.

use std::fs;
use std::path::Path;

use proxy_config::{decode, load::Options};

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
