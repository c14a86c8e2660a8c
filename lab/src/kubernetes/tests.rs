//! The store refuses what a real API server refuses.

use serde_json::{Value, json};

use super::store::Store;

fn tls(name: &str) -> Value {
    json!({"kind": "Secret", "apiVersion": "v1", "type": "kubernetes.io/tls", "metadata": {"name": name},
        "data": {"tls.crt": "", "tls.key": ""}})
}

#[test]
fn of_two_writers_with_one_version_the_second_is_refused_and_without_a_version_nobody_is() {
    let mut store = Store::default();
    let made = store.create(tls("a"), false).unwrap();
    let with = |key: &str| {
        let mut secret = made.clone();
        secret["data"][key] = "eA==".into();
        secret
    };
    let first = store.replace("a", with("one"), false).unwrap();
    assert_eq!(store.replace("a", with("two"), false).unwrap_err().code, 409);
    assert_eq!(store.get("a").unwrap(), first);
    let mut unconditional = with("three");
    unconditional["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert!(store.replace("a", unconditional, false).unwrap()["data"].get("three").is_some());
    // Deleted and made again, it is another one.
    store.delete("a");
    assert_eq!(store.replace("a", with("four"), false).unwrap_err().code, 404);
    store.create(tls("a"), false).unwrap();
    assert_eq!(store.replace("a", with("four"), false).unwrap_err().code, 409);
    assert_eq!(store.create(tls("a"), false).unwrap_err().code, 409);
}

#[test]
fn a_rehearsal_is_checked_and_leaves_nothing() {
    let mut store = Store::default();
    store.create(tls("a"), true).unwrap();
    assert_eq!(store.get("a").unwrap_err().code, 404);
    let made = store.create(tls("a"), false).unwrap();
    let mut changed = made.clone();
    changed["type"] = "Opaque".into();
    assert_eq!(store.replace("a", changed, true).unwrap_err().code, 422);
    assert_eq!(store.get("a").unwrap(), made);
}

#[test]
fn what_is_no_secret_is_refused_with_the_status_that_says_so() {
    let change = |key: &str, value: Value| {
        let mut secret = tls("a");
        secret[key] = value;
        secret
    };
    let cases = [
        (change("kind", "ConfigMap".into()), 400),
        (change("metadata", json!({"name": "A"})), 422),
        (change("metadata", json!({"name": "a", "namespace": "other"})), 400),
        (change("metadata", json!({"name": "a", "resourceVersion": "1"})), 400),
        (change("metadata", json!({"name": "a", "labels": {"k": "not a word"}})), 422),
        (change("metadata", json!({"name": "a", "annotations": {"no/pre/fix": "x"}})), 422),
        (change("data", json!({"tls.crt": ""})), 422),
        (change("data", json!({"tls.crt": "", "tls.key": "%"})), 400),
        (change("data", json!({"tls.crt": "", "tls.key": "", "a/b": ""})), 422),
    ];
    for (secret, code) in cases {
        assert_eq!(Store::default().create(secret.clone(), false).unwrap_err().code, code, "{secret}");
    }
    let mut immutable = tls("a");
    immutable["immutable"] = true.into();
    let mut store = Store::default();
    let mut made = store.create(immutable, false).unwrap();
    made["data"]["x"] = "".into();
    assert_eq!(store.replace("a", made, false).unwrap_err().code, 422);
}
