//! `deviations.toml`: where shunt differs from Envoy on purpose. What differs without an entry fails, and so does an
//! entry whose difference is gone.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

const FILE: &str = include_str!("../deviations.toml");

/// One deliberate difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deviation {
    pub id: String,
    /// What differs.
    pub what: String,
    pub reason: String,
}

/// All entries of the file.
pub fn all() -> Result<Vec<Deviation>> {
    parse(FILE).context("tests/deviations.toml")
}

/// Fails unless the two are the same, or different where an entry says so.
pub fn check(id: &str, envoy: &Value, shunt: &Value) -> Result<()> {
    let entry = all()?.into_iter().find(|deviation| deviation.id == id);
    match (envoy == shunt, entry) {
        (true, None) | (false, Some(_)) => Ok(()),
        (true, Some(entry)) => bail!("the deviation {id:?} is gone, take its entry out: {}", entry.what),
        (false, None) => {
            let mut lines = Vec::new();
            differing("", envoy, shunt, &mut lines);
            let more = lines.len().saturating_sub(MANY);
            lines.truncate(MANY);
            if more > 0 {
                lines.push(format!("and {more} more"));
            }
            bail!("{id:?}:\n    {}", lines.join("\n    "))
        }
    }
}

/// How many differences of one case are told.
const MANY: usize = 40;

/// One line for each place where the two differ.
fn differing(path: &str, envoy: &Value, shunt: &Value, into: &mut Vec<String>) {
    match (envoy, shunt) {
        (one, other) if one == other => {}
        (Value::Object(one), Value::Object(other)) => {
            let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
            for key in keys {
                let of = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                differing(&format!("{path}.{key}"), &of(one), &of(other), into);
            }
        }
        // Lists of names are told as sets; others place by place.
        (Value::Array(one), Value::Array(other))
            if one.len() == other.len() && !(one.len() > 5 && one.iter().all(Value::is_string)) =>
        {
            for (n, (one, other)) in one.iter().zip(other).enumerate() {
                differing(&format!("{path}[{n}]"), one, other, into);
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            let only = |these: &[Value], than: &[Value]| {
                these.iter().filter(|v| !than.contains(v)).map(Value::to_string).collect::<Vec<_>>().join(" ")
            };
            into.push(format!("{path} only envoy: {}", only(one, other)));
            into.push(format!("{path} only shunt: {}", only(other, one)));
        }
        _ => into.push(format!("{path} envoy: {envoy}, shunt: {shunt}")),
    }
}

/// The part of TOML that the file uses: tables `[[deviation]]` of one-line strings.
fn parse(text: &str) -> Result<Vec<Deviation>> {
    let mut found: Vec<Deviation> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line == "[[deviation]]" {
            found.push(Deviation::default());
            continue;
        }
        let (key, value) = line.split_once('=').with_context(|| format!("no key: {line}"))?;
        let value = serde_json::from_str(value.trim()).with_context(|| format!("no string: {line}"))?;
        let last = found.last_mut().with_context(|| format!("outside of a table: {line}"))?;
        match key.trim() {
            "id" => last.id = value,
            "what" => last.what = value,
            "reason" => last.reason = value,
            other => bail!("unknown key {other:?}"),
        }
    }
    for (n, entry) in found.iter().enumerate() {
        let Deviation { id, what, reason } = entry;
        ensure!(![id, what, reason].iter().any(|text| text.is_empty()), "incomplete: {entry:?}");
        ensure!(!found[..n].iter().any(|earlier| earlier.id == *id), "twice: {id}");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_well_formed() {
        all().expect("well formed");
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        let whole = "[[deviation]]\nid = \"a\"\nwhat = \"b\"\nreason = \"c\"\n";
        assert_eq!(parse(whole).expect("valid").len(), 1);
        let doubled = whole.repeat(2);
        for bad in
            ["id = \"a\"", "[[deviation]]\nid = \"a\"", "[[deviation]]\nextra = \"a\"", doubled.as_str()]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_difference_needs_an_entry() {
        assert!(check("no such entry", &Value::from(1), &Value::from(1)).is_ok());
        assert!(check("no such entry", &Value::from(1), &Value::from(2)).is_err());
    }
}
