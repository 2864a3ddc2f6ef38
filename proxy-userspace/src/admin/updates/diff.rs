//! Two JSON values, field by field.

use std::collections::HashMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// Differences that are told of one resource.
const MANY: usize = 200;

/// `{path, before, after}` for each difference; what is on one side alone has no other.
pub(super) fn fields(before: &Value, after: &Value) -> Vec<Value> {
    let mut found = Found::default();
    compare(&mut String::new(), before, after, &mut found);
    let Found { mut told, more } = found;
    if more > 0 {
        told.push(json!({"path": "", "more": more}));
    }
    told
}

#[derive(Default)]
struct Found {
    told: Vec<Value>,
    more: usize,
}

impl Found {
    fn tell(&mut self, path: &str, before: Option<&Value>, after: Option<&Value>) {
        if self.told.len() >= MANY {
            self.more += 1;
            return;
        }
        let sides = [("before", before), ("after", after)];
        let given = sides.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.clone())));
        let mut told = Map::from_iter([("path".to_owned(), json!(path))]);
        told.extend(given);
        self.told.push(Value::Object(told));
    }
}

fn compare(path: &mut String, before: &Value, after: &Value, found: &mut Found) {
    match (before, after) {
        (one, other) if one == other => {}
        (Value::Object(one), Value::Object(other)) => {
            for (name, before) in one {
                within(path, &if path.is_empty() { name.clone() } else { format!(".{name}") }, |path| {
                    match other.get(name) {
                        Some(after) => compare(path, before, after, found),
                        None => found.tell(path, Some(before), None),
                    }
                });
            }
            for (name, after) in other.iter().filter(|(name, _)| !one.contains_key(*name)) {
                within(path, &if path.is_empty() { name.clone() } else { format!(".{name}") }, |path| {
                    found.tell(path, None, Some(after));
                });
            }
        }
        (Value::Array(one), Value::Array(other)) => lists(path, one, other, found),
        (before, after) => found.tell(path, Some(before), Some(after)),
    }
}

/// Elements that both have are left out, wherever they stand. Of the others, those of one name, or one address, are
/// compared with each other, then those at the same place.
fn lists(path: &mut String, before: &[Value], after: &[Value], found: &mut Found) {
    let (gone, new) = unequal(before, after);
    if gone.is_empty() && new.is_empty() {
        return within(path, "[order]", |path| {
            found.tell(path, Some(&json!(before.len())), Some(&json!(after.len())));
        });
    }
    let pairs = pairs(before, after, gone, new);
    for (key, one, other) in pairs {
        within(path, &format!("[{key}]"), |path| match (one, other) {
            (Some(one), Some(other)) => compare(path, one, other, found),
            (one, other) => found.tell(path, one, other),
        });
    }
}

/// The places of those that have no equal on the other side.
fn unequal(before: &[Value], after: &[Value]) -> (Vec<usize>, Vec<usize>) {
    let mut stock: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, value) in before.iter().enumerate().rev() {
        stock.entry(value.to_string()).or_default().push(at);
    }
    let is_new = |value: &Value| stock.get_mut(&value.to_string()).and_then(Vec::pop).is_none();
    let mut is_new = is_new;
    let new = (0..after.len()).filter(|at| after.get(*at).is_some_and(&mut is_new)).collect();
    let mut gone: Vec<usize> = stock.into_values().flatten().collect();
    gone.sort_unstable();
    (gone, new)
}

type Pair<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn pairs<'a>(before: &'a [Value], after: &'a [Value], gone: Vec<usize>, new: Vec<usize>) -> Vec<Pair<'a>> {
    let mut by_key: HashMap<String, &Value> = HashMap::new();
    let (mut keyed, mut plain) = (Vec::new(), Vec::new());
    for (at, value) in new.into_iter().filter_map(|at| Some((at, after.get(at)?))) {
        match key(value) {
            Some(key) if !by_key.contains_key(&key) => {
                by_key.insert(key.clone(), value);
                keyed.push(key);
            }
            Some(_) | None => plain.push((at, value)),
        }
    }
    let mut plain = plain.into_iter();
    let mut pairs: Vec<Pair<'_>> = Vec::new();
    for (at, value) in gone.into_iter().filter_map(|at| Some((at, before.get(at)?))) {
        match key(value) {
            Some(key) => {
                let other = by_key.remove(&key);
                pairs.push((key, Some(value), other));
            }
            None => pairs.push((at.to_string(), Some(value), plain.next().map(|(_, value)| value))),
        }
    }
    for key in keyed {
        if let Some(value) = by_key.remove(&key) {
            pairs.push((key, None, Some(value)));
        }
    }
    pairs.extend(plain.map(|(at, value)| (at.to_string(), None, Some(value))));
    pairs
}

/// What an element is known by: its name, or an endpoint's address, or a locality.
fn key(value: &Value) -> Option<String> {
    if let Some(name) = value.get("name").and_then(Value::as_str).filter(|name| !name.is_empty()) {
        return Some(name.to_owned());
    }
    if let Some(endpoint) = value.get("endpoint") {
        let place = endpoint.pointer("/address/socket_address")?;
        return Some(format!("{}:{}", place.get("address")?.as_str()?, place.get("port_value")?));
    }
    let locality = value.get("lb_endpoints").and(value.get("locality"))?;
    let mut text = String::new();
    for part in ["region", "zone", "sub_zone"].iter().filter_map(|part| locality.get(part)?.as_str()) {
        let _ = write!(text, "{}{part}", if text.is_empty() { "" } else { "/" });
    }
    let priority = value.get("priority").and_then(Value::as_u64).unwrap_or(0);
    Some(format!("{text} priority {priority}"))
}

/// With `part` at the end of the path.
fn within(path: &mut String, part: &str, work: impl FnOnce(&mut String)) {
    let length = path.len();
    path.push_str(part);
    work(path);
    path.truncate(length);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_came_went_and_changed() {
        let before = json!({"a": 1, "b": {"c": "x", "d": true}, "gone": [1]});
        let after = json!({"a": 1, "b": {"c": "y", "d": true}, "new": {"e": 1}});
        assert_eq!(
            fields(&before, &after),
            [
                json!({"path": "b.c", "before": "x", "after": "y"}),
                json!({"path": "gone", "before": [1]}),
                json!({"path": "new", "after": {"e": 1}}),
            ]
        );
        assert_eq!(fields(&before, &before), [Value::Null; 0]);
        assert_eq!(fields(&json!(1), &json!("1")), [json!({"path": "", "before": 1, "after": "1"})]);
    }

    #[test]
    fn elements_of_lists_by_name_by_address_and_by_place() {
        let endpoint = |port: u16, weight: u32| {
            json!({
                "endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": port}}},
                "load_balancing_weight": weight,
            })
        };
        let group = |endpoints: Vec<Value>| json!({"locality": {"region": "r"}, "lb_endpoints": endpoints});
        let before = json!({"l": [group(vec![endpoint(1, 1), endpoint(2, 1), endpoint(3, 1)])]});
        let after = json!({"l": [group(vec![endpoint(4, 1), endpoint(1, 1), endpoint(3, 9)])]});
        assert_eq!(
            fields(&before, &after),
            [
                json!({"path": "l[r priority 0].lb_endpoints[10.0.0.1:2]", "before": endpoint(2, 1)}),
                json!({
                    "path": "l[r priority 0].lb_endpoints[10.0.0.1:3].load_balancing_weight",
                    "before": 1,
                    "after": 9,
                }),
                json!({"path": "l[r priority 0].lb_endpoints[10.0.0.1:4]", "after": endpoint(4, 1)}),
            ]
        );
        let named = |names: &[(&str, u32)]| -> Value {
            names.iter().map(|(name, x)| json!({"name": name, "x": x})).collect()
        };
        assert_eq!(
            fields(&named(&[("a", 1), ("b", 1)]), &named(&[("b", 2), ("a", 1)])),
            [json!({"path": "[b].x", "before": 1, "after": 2})]
        );
        assert_eq!(
            fields(&json!([1, 2]), &json!([2, 1])),
            [json!({"path": "[order]", "before": 2, "after": 2})]
        );
        assert_eq!(
            fields(&json!([1, 2, 3]), &json!([1, 3, 3])),
            [json!({"path": "[1]", "before": 2, "after": 3})]
        );
        assert_eq!(fields(&json!([1]), &json!([1, 1])), [json!({"path": "[1]", "after": 1})]);
    }

    #[test]
    fn of_very_many_the_first_are_told() {
        let list =
            |by: usize| -> Value { (0..300).map(|n| json!({"name": n.to_string(), "x": n + by})).collect() };
        let told = fields(&list(0), &list(1));
        assert_eq!((told.len(), &told[MANY]), (MANY + 1, &json!({"path": "", "more": 100})));
    }
}
