//! Rewriting an object without losing what this version does not know.
//!
//! A newer server may have written fields and enum values that our types drop or fold into `Unknown`. So a rewrite does
//! not store the typed value: it stores what was read, changed only where the typed value changed between reading and
//! writing. What nobody touched survives to the byte (as JSON values).

use serde_json::{Map, Value};

/// Applies to `raw` (what the store holds) the difference between `before` (the typed value as it was read, serialised
/// again) and `after` (the typed value to write).
///
/// Objects are gone through field by field; anything else, arrays included, is replaced whole when it changed. A field
/// that the type fills in with its default and that `raw` does not have stays out as long as it does not change.
pub fn overlay(raw: &Value, before: &Value, after: &Value) -> Value {
    if before == after {
        return raw.clone();
    }
    match (raw, before, after) {
        (Value::Object(raw), Value::Object(before), Value::Object(after)) => {
            Value::Object(fields(raw, before, after))
        }
        // The whole object came or went, or it was never one.
        _ => after.clone(),
    }
}

fn fields(
    raw: &Map<String, Value>,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
) -> Map<String, Value> {
    let mut out = raw.clone();
    for name in before.keys() {
        if !after.contains_key(name) {
            out.remove(name);
        }
    }
    for (name, now) in after {
        match (raw.get(name), before.get(name)) {
            (_, Some(was)) if was == now => {}
            (Some(stored), Some(was)) => {
                out.insert(name.clone(), overlay(stored, was, now));
            }
            (None, _) | (_, None) => {
                out.insert(name.clone(), now.clone());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_we_do_not_know_survives() {
        let raw = json!({"spec": {"cpus": "1", "gpu": {"model": "x"}, "restart": "sometimes"}, "new": [1]});
        let before = json!({"spec": {"cpus": "1", "restart": "unknown", "swap": 0}});
        let after = json!({"spec": {"cpus": "2", "restart": "unknown", "swap": 0}});
        assert_eq!(
            overlay(&raw, &before, &after),
            json!({"spec": {"cpus": "2", "gpu": {"model": "x"}, "restart": "sometimes"}, "new": [1]})
        );
    }

    #[test]
    fn table() {
        for (raw, before, after, want) in [
            // A known field removed, added, replaced by another type.
            (json!({"a": 1, "x": 2}), json!({"a": 1}), json!({}), json!({"x": 2})),
            (json!({"x": 2}), json!({}), json!({"a": 1}), json!({"x": 2, "a": 1})),
            (json!({"a": {"x": 1, "b": 2}}), json!({"a": {"b": 2}}), json!({"a": 3}), json!({"a": 3})),
            // Arrays whole.
            (json!({"a": [{"x": 1}]}), json!({"a": [{}]}), json!({"a": [{}, {}]}), json!({"a": [{}, {}]})),
            (json!({"a": [{"x": 1}]}), json!({"a": [{}]}), json!({"a": [{}]}), json!({"a": [{"x": 1}]})),
            // A default that the stored JSON lacks is written only once it changes.
            (json!({}), json!({"a": 0}), json!({"a": 0}), json!({})),
            (json!({}), json!({"a": 0, "b": 0}), json!({"a": 1, "b": 0}), json!({"a": 1})),
            // The value of an enum that we could not read is replaced when it is set.
            (json!({"r": "odd"}), json!({"r": "unknown"}), json!({"r": "always"}), json!({"r": "always"})),
        ] {
            assert_eq!(overlay(&raw, &before, &after), want, "{raw} {before} {after}");
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Value> {
        prop::collection::btree_map("[a-d]", tree(), 0..4)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// `known` with a field that no type knows in every object outside of arrays.
    fn newer(known: &Value) -> Value {
        match known {
            Value::Object(map) => {
                let mut out: Map<String, Value> = map.iter().map(|(k, v)| (k.clone(), newer(v))).collect();
                out.insert("zz".into(), json!({"from": "the future"}));
                Value::Object(out)
            }
            other => other.clone(),
        }
    }

    /// What a type that does not know `zz` reads.
    fn known(newer: &Value) -> Value {
        match newer {
            Value::Object(map) => Value::Object(
                map.iter().filter(|(k, _)| *k != "zz").map(|(k, v)| (k.clone(), known(v))).collect(),
            ),
            other => other.clone(),
        }
    }

    /// Every object that stands at one path in all three keeps its unknown field.
    fn keeps_unknown(raw: &Value, after: &Value, out: &Value) -> bool {
        match (raw, after, out) {
            (Value::Object(raw), Value::Object(after), Value::Object(out)) => {
                out.get("zz") == raw.get("zz")
                    && after.iter().all(|(k, v)| match (raw.get(k), out.get(k)) {
                        (Some(r), Some(o)) => keeps_unknown(r, v, o),
                        _ => true,
                    })
            }
            _ => true,
        }
    }

    proptest! {
        #[test]
        fn nothing_changed_changes_nothing(raw in tree(), typed in tree()) {
            prop_assert_eq!(overlay(&raw, &typed, &typed), raw);
        }

        #[test]
        fn without_unknowns_it_is_the_new_value(before in object(), after in object()) {
            prop_assert_eq!(overlay(&before, &before, &after), after);
        }

        #[test]
        fn the_known_part_becomes_the_new_value_and_the_unknown_stays(before in object(), after in object()) {
            let raw = newer(&before);
            let out = overlay(&raw, &before, &after);
            prop_assert_eq!(known(&out), known(&after));
            prop_assert!(keeps_unknown(&raw, &after, &out));
        }
    }
}
