//! `deviations.toml`: where shunt differs from Envoy on purpose. What differs without an entry fails, and so does an
//! entry whose difference is gone.

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
            let (envoy, shunt) = differing(envoy, shunt);
            bail!("{id:?}:\n    envoy: {envoy}\n    shunt: {shunt}")
        }
    }
}

/// Of two objects only the entries that differ.
fn differing(one: &Value, other: &Value) -> (Value, Value) {
    let (Some(a), Some(b)) = (one.as_object(), other.as_object()) else {
        return (one.clone(), other.clone());
    };
    let only = |from: &serde_json::Map<String, Value>, than: &serde_json::Map<String, Value>| -> Value {
        from.iter()
            .filter(|(key, value)| than.get(*key) != Some(value))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    (only(a, b), only(b, a))
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
