//! An old reader and a new writer, and the other way round: a rollback, and the update after it.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

/// Variants of enums: the map that holds one holds nothing else.
const VARIANTS: [&str; 22] = [
    "open",
    "leaving",
    "finishing",
    "delivering",
    "lingering",
    "target_unreachable",
    "violation",
    "dialling",
    "serving",
    "discarding",
    "head",
    "body",
    "length",
    "chunked",
    "until_close",
    "size",
    "extension",
    "size_end",
    "data",
    "trailer",
    "trailer_end",
    "partial",
];

/// Every structure of a record, as a path.
fn structures(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let is_variant = map.len() == 1 && map.values().all(|value| !value.is_array()) && {
                let key = map.keys().next().unwrap();
                VARIANTS.contains(&key.as_str())
            };
            if !is_variant {
                found.push(path.clone());
            }
            map.iter().for_each(|(key, value)| structures(value, format!("{path}/{key}"), found));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| structures(value, format!("{path}/{at}"), found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn structures_of(record: &Value) -> Vec<String> {
    let mut found = Vec::new();
    structures(record, String::new(), &mut found);
    found
}

fn at<'a>(record: &'a mut Value, path: &str) -> &'a mut serde_json::Map<String, Value> {
    record.pointer_mut(path).unwrap().as_object_mut().unwrap()
}

#[test]
fn a_later_versions_fields_are_passed_over_in_every_structure() {
    let additions = [
        json!(null),
        json!(true),
        json!(u64::MAX),
        json!("text"),
        json!([1, [2, {"three": null}]]),
        json!({"deeper": {"and": {"deeper": [0.5]}}}),
        json!(vec![7; 300]),
    ];
    for (name, kind, record) in samples::all() {
        let structures = structures_of(&record);
        let expected = if name == "process" { 1 } else { 9 };
        assert!(structures.len() >= expected, "{name}: {structures:?}");
        let mut all_at_once = record.clone();
        for (path, addition) in structures.iter().zip(additions.iter().cycle()) {
            // Before, between and behind what is known: names come in any order.
            for field in ["a_new_one", "m", "zz_the_last"] {
                let mut later = record.clone();
                at(&mut later, path).insert(field.to_owned(), addition.clone());
                assert_eq!(carried(kind, &later).unwrap(), record, "{name}{path}: {addition}");
                at(&mut all_at_once, path).insert(field.to_owned(), addition.clone());
            }
        }
        assert_eq!(carried(kind, &all_at_once).unwrap(), record, "{name}");
    }
}

/// What may be missing, in whatever record it is. A field that is added goes here, since nothing that was written before has
/// it; one that is here stays here.
const OPTIONAL: [&str; 32] = [
    "process/instance_id",
    "process/relays",
    "process/version",
    "relay/ca_pem",
    "relay/superseded",
    "relay/target",
    "session/backlog",
    "session/connection/ack",
    "session/connection/deaf",
    "session/dialling",
    "session/doubt",
    "session/end",
    "session/link",
    "session/next",
    "session/next_left_ms",
    "session/redial_left_ms",
    // Without it, it is another session, but a possible one.
    "session/stream",
    "session/stream/inbox/partial",
    "session/target/deaf",
    "session/target/scrapped",
    "session/was_connected",
    "tls/closing",
    "tls/ended",
    "tls/incoming",
    "tls/outgoing",
    "tls/plain",
    "tls/records/standing",
    "tls/records/standing/ask",
    "tls/records/standing/broken",
    "tls/records/standing/fragment",
    "tls/records/standing/fragment/head",
    "tls/records/standing/fragment/skip",
];

/// The fields of a record without which it is still understood, whichever of its connections they are in.
fn dispensable(name: &str, kind: Kind, record: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in structures_of(record) {
        for key in record.pointer(&path).unwrap().as_object().unwrap().keys() {
            let mut without = record.clone();
            at(&mut without, &path).remove(key);
            if carried(kind, &without).is_ok() {
                let whole = format!("{}{path}/{key}", if kind == Kind::SESSION { "" } else { name });
                let whole = whole.trim_start_matches('/').replace("session/next/", "session/link/");
                let whole = whole.replace("session/link/link/", "tls/").replace("relay/link/", "tls/");
                found.insert(
                    whole
                        .replace("session/link/connection/", "session/connection/")
                        .replace("session/link/deaf", "session/connection/deaf"),
                );
            }
        }
    }
    found
}

#[test]
fn what_is_optional_may_be_missing_and_nothing_else() {
    let mut found = BTreeSet::new();
    for (name, kind, record) in samples::all() {
        found.extend(dispensable(name, kind, &record));
    }
    let standing = ["heard_all", "said_all", "update_due", "updates_in_a_row"];
    let standing = standing.map(|field| format!("tls/records/standing/{field}"));
    let expected = OPTIONAL.into_iter().map(str::to_owned).chain(standing).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_is_missing_has_the_value_of_something_on_which_nothing_has_happened() {
    let (_, kind, record) = samples::all().into_iter().find(|(name, ..)| *name == "session-framed").unwrap();
    let session = &record["session"];
    let least = json!({
        "id": record["id"],
        "resource": record["resource"],
        "session": {
            "header": session["header"],
            "target": {"host": "127.0.0.1", "port": 1, "state": "waiting"},
            "phase": "running",
        }
    });
    let understood = carried(kind, &least).unwrap();
    for (field, value) in understood["session"].as_object().unwrap() {
        let nothing = [json!(null), json!(false), json!([]), json!(0)];
        let is_given = least["session"].get(field).is_some();
        assert!(is_given || nothing.contains(value), "{field} is {value}");
    }
}
