//! No field of the model is carried for nothing: the daemon's sources read each of them.
//!
//! The reflection test of proxy-config shows that a field of the configuration changes the model; this one, that
//! something then looks at it. It goes by names, so a field that shares its name with another one's is not proven by
//! it, but a field that nothing reads any more, and a new one that nothing reads yet, fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// `Type.field`: why nothing in the daemon reads it.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("Extension.type_name", "read by Discovered::accepts"),
    ("StringMatcher.ignore_case", "read by its own is_match"),
    ("HeaderMatcher.treat_missing_as_empty", "read by its own is_match"),
];

/// Files that make models of their own, or are for tests.
const NOT_READERS: &[&str] = &["builtin.rs", "testing.rs", "rig.rs", "tests.rs"];

#[test]
fn the_daemon_reads_each_field_of_the_model() {
    let daemon = daemon();
    let read = reads(&daemon);
    let mut exceptions: BTreeMap<&str, &str> = EXCEPTIONS.iter().copied().collect();
    let mut problems = Vec::new();
    let fields = fields();
    assert!(fields.len() > 250, "the scanner found {} fields only", fields.len());
    for (owner, field) in &fields {
        let name = format!("{owner}.{field}");
        match (read.contains(field.as_str()), exceptions.remove(name.as_str()).is_some()) {
            (false, false) => problems.push(format!("{name} is read by nothing")),
            (true, true) => problems.push(format!("{name} needs no exception")),
            (true, false) | (false, true) => {}
        }
    }
    problems.extend(exceptions.into_keys().map(|name| format!("{name}: an exception for no field")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn what_counts_as_a_read() {
    let shown = ["model.port", "let Self { host, port } = x;", "Kind::A { port, .. } =>", "  port,\n"];
    for text in shown {
        assert!(reads(text).contains("port"), "{text}");
    }
    // A literal that sets it, a method, a longer name.
    for text in ["Self { port: 1 }", "address.port()", "model.port_value", "report,", "\"port\""] {
        assert!(!reads(text).contains("port"), "{text}");
    }
}

/// The names after a dot, or alone in a pattern. Setting a field (`field: …`) is no read, nor is a method's call.
fn reads(text: &str) -> BTreeSet<&str> {
    let access = Regex::new(r"\.(\w+)").unwrap();
    let pattern = Regex::new(r"(?m)(?:[{,(]|^)\s*(\w+)\s*").unwrap();
    let after = |end| text.get(end..).and_then(|rest| rest.chars().next());
    let accessed =
        access.captures_iter(text).filter_map(|c| c.get(1)).filter(|m| after(m.end()) != Some('('));
    let matched = pattern
        .captures_iter(text)
        .filter(|c| matches!(c.get(0).and_then(|m| after(m.end())), Some(',' | '}')));
    accessed.chain(matched.filter_map(|c| c.get(1))).map(|m| m.as_str()).collect()
}

/// Type (or `Type` of the enum) and name of each field of the model.
fn fields() -> Vec<(String, String)> {
    let owner = Regex::new(r"^pub (?:struct|enum) (\w+)").unwrap();
    let field = Regex::new(r"^(?:    pub|       ) (\w+): ").unwrap();
    let variant = Regex::new(r"^    \w+ \{ (.*) \},").unwrap();
    let inner = Regex::new(r"(\w+): ").unwrap();
    let mut found = Vec::new();
    for file in sources(&root().join("../proxy-config/src/model")) {
        let (mut of, mut in_type) = (String::new(), false);
        for line in fs::read_to_string(file).unwrap().lines() {
            if let Some(name) = owner.captures(line) {
                (of, in_type) = (name[1].to_owned(), true);
            }
            in_type &= line != "}";
            if !in_type {
                continue;
            }
            let inside = variant.captures(line).map(|c| c[1].to_owned()).unwrap_or_default();
            let names = field.captures(line).into_iter().chain(inner.captures_iter(&inside));
            found.extend(names.map(|c| (of.clone(), c[1].to_owned())));
        }
    }
    found
}

/// All that may read the model: the daemon without its tests and comments.
fn daemon() -> String {
    let mut all = String::new();
    for file in sources(&root().join("src")) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if NOT_READERS.contains(&name.as_str()) || name.ends_with("_tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            all.push_str(line);
            all.push('\n');
        }
    }
    all
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
