//! The shapes of request bodies, and the array of objects in which a 422 tells what is wrong with one (protocol 3.4).
//!
//! Containers must not be `null`, plain optional values may: `"labels": null` and `"methods": null` cost real agents every
//! heartbeat (protocol 2.5 and 3.5).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};

/// The longest agent name in characters, after trimming (protocol 2.6).
const NAME_CHARACTERS: usize = 63;

#[derive(Debug)]
pub(crate) struct JoinBody {
    pub(crate) token: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub(crate) struct HeartbeatBody {
    pub(crate) resources: Vec<Value>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) cluster_internal: bool,
    pub(crate) zone: Option<String>,
    pub(crate) instance_id: Option<String>,
    /// Negative numbers are clamped to 0.
    pub(crate) active_tunnels: u64,
    pub(crate) edge_rtts: BTreeMap<String, i64>,
}

#[derive(Debug, Default)]
pub(crate) struct ConnectBody {
    pub(crate) resource: String,
    pub(crate) reconnect: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) edge_rtts: BTreeMap<String, i64>,
    pub(crate) probes: bool,
}

/// The `detail` of a 422.
pub(crate) type Problems = Vec<Value>;

/// Decodes a body; this comes before the identity check, unlike everything below.
pub(crate) fn json_body(bytes: &[u8]) -> Result<Value, Problems> {
    serde_json::from_slice(bytes).map_err(|error| vec![problem("json_invalid", &["body".into()], &error.to_string())])
}

pub(crate) fn join(body: &Value) -> Result<JoinBody, Problems> {
    let mut check = Check::default();
    let object = check.object(body);
    let token = check.text(object, "join_token", Presence::Required);
    let name = check.text(object, "name", Presence::Required).map(|name| name.trim().to_owned());
    if name.as_ref().is_some_and(|name| !(1..=NAME_CHARACTERS).contains(&name.chars().count())) {
        check.refuse("string_length", "name", "String should have 1 to 63 characters");
    }
    let labels = check.labels(object);
    check.done(|| JoinBody { token: token.unwrap_or_default(), name: name.unwrap_or_default(), labels })
}

pub(crate) fn heartbeat(body: &Value) -> Result<HeartbeatBody, Problems> {
    let mut check = Check::default();
    let object = check.object(body);
    let resources = check.list(object, "resources");
    check.each("resources", resources, Check::resource);
    let labels = check.labels(object);
    let cluster_internal = check.optional(object, "cluster_internal", "bool_type", Value::as_bool);
    let zone = check.text(object, "zone", Presence::Optional);
    let instance_id = check.text(object, "instance_id", Presence::Optional);
    let active_tunnels = check.optional(object, "active_tunnels", "int_type", Value::as_i64);
    let edge_rtts = check.edge_rtts(object, "edge_rtts");
    check.done(|| HeartbeatBody {
        resources: resources.to_vec(),
        labels,
        cluster_internal: cluster_internal.unwrap_or_default(),
        zone,
        instance_id,
        active_tunnels: active_tunnels.unwrap_or_default().try_into().unwrap_or_default(),
        edge_rtts,
    })
}

pub(crate) fn connect(body: &Value) -> Result<ConnectBody, Problems> {
    let mut check = Check::default();
    let object = check.object(body);
    let resource = check.text(object, "resource_name", Presence::Required);
    if resource.as_ref().is_some_and(|name| !(1..=NAME_CHARACTERS).contains(&name.chars().count())) {
        check.refuse("string_length", "resource_name", "String should have 1 to 63 characters");
    }
    let reconnect = check.text(object, "reconnect_session_id", Presence::Optional);
    let protocol = check.text(object, "protocol", Presence::Optional);
    let edge_rtts = check.edge_rtts(object, "client_edge_rtts");
    let probes = check.optional(object, "probe_retry_supported", "bool_type", Value::as_bool);
    check.done(|| ConnectBody {
        resource: resource.unwrap_or_default(),
        reconnect,
        protocol,
        edge_rtts,
        probes: probes.unwrap_or_default(),
    })
}

/// The session that a client asks whether to move.
pub(crate) fn reevaluate(body: &Value) -> Result<String, Problems> {
    let mut check = Check::default();
    let object = check.object(body);
    let session = check.text(object, "session_id", Presence::Required);
    check.edge_rtts(object, "client_edge_rtts");
    check.done(|| session.unwrap_or_default())
}

/// The instance id of a drain message.
pub(crate) fn drain(body: &Value) -> Result<String, Problems> {
    let mut check = Check::default();
    let object = check.object(body);
    let instance_id = check.text(object, "instance_id", Presence::Required);
    check.done(|| instance_id.unwrap_or_default())
}

/// What is said about a query parameter that must be there.
pub(crate) fn missing_query(name: &str) -> Problems {
    vec![problem("missing", &["query".into(), name.into()], "Field required")]
}

fn problem(kind: &str, location: &[Value], message: &str) -> Value {
    json!({ "type": kind, "loc": location, "msg": message })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
}

/// Walks a body and collects everything that is wrong, with the place of each problem.
struct Check {
    place: Vec<Value>,
    problems: Problems,
}

impl Default for Check {
    fn default() -> Self {
        Self { place: vec!["body".into()], problems: Vec::new() }
    }
}

/// What stands for a body or an item that is no object at all, after that was noted.
static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

impl Check {
    fn done<T>(self, value: impl FnOnce() -> T) -> Result<T, Problems> {
        if self.problems.is_empty() { Ok(value()) } else { Err(self.problems) }
    }

    fn refuse(&mut self, kind: &str, key: impl Into<Value>, message: &str) {
        self.place.push(key.into());
        self.refuse_here(kind, message);
        self.place.pop();
    }

    fn refuse_here(&mut self, kind: &str, message: &str) {
        self.problems.push(problem(kind, &self.place, message));
    }

    fn object<'a>(&mut self, value: &'a Value) -> &'a Map<String, Value> {
        value.as_object().unwrap_or_else(|| {
            self.refuse_here("model_attributes_type", "Input should be a valid dictionary or object");
            &NOTHING
        })
    }

    fn text(&mut self, object: &Map<String, Value>, key: &str, presence: Presence) -> Option<String> {
        match object.get(key) {
            Some(Value::String(text)) => return Some(text.clone()),
            None if presence == Presence::Required => self.refuse("missing", key, "Field required"),
            Some(Value::Null) if presence == Presence::Optional => {}
            None => {}
            Some(_) => self.refuse("string_type", key, "Input should be a valid string"),
        }
        None
    }

    fn optional<'a, T>(
        &mut self,
        object: &'a Map<String, Value>,
        key: &str,
        kind: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = object.get(key).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.refuse(kind, key, "Input has the wrong type");
        }
        read
    }

    fn list<'a>(&mut self, object: &'a Map<String, Value>, key: &str) -> &'a [Value] {
        match object.get(key) {
            Some(Value::Array(items)) => items,
            None => &[],
            Some(_) => {
                self.refuse("list_type", key, "Input should be a valid list");
                &[]
            }
        }
    }

    fn map<'a>(&mut self, object: &'a Map<String, Value>, key: &str) -> &'a Map<String, Value> {
        match object.get(key) {
            Some(Value::Object(map)) => map,
            None => &NOTHING,
            Some(_) => {
                self.refuse("dict_type", key, "Input should be a valid dictionary");
                &NOTHING
            }
        }
    }

    fn each(&mut self, key: &str, items: &[Value], check: fn(&mut Self, &Value)) {
        self.place.push(key.into());
        for (index, item) in items.iter().enumerate() {
            self.place.push(index.into());
            check(self, item);
            self.place.pop();
        }
        self.place.pop();
    }

    fn labels(&mut self, object: &Map<String, Value>) -> BTreeMap<String, String> {
        let map = self.map(object, "labels");
        self.place.push("labels".into());
        let labels =
            map.keys().filter_map(|key| Some((key.clone(), self.text(map, key, Presence::Required)?))).collect();
        self.place.pop();
        labels
    }

    fn resource(&mut self, value: &Value) {
        let object = self.object(value);
        for key in ["name", "resource_type"] {
            self.text(object, key, Presence::Required);
        }
        for key in ["hostname", "tunnel_hostname"] {
            self.text(object, key, Presence::Optional);
        }
        self.labels(object);
        self.optional(object, "port", "int_type", Value::as_i64);
        let webhooks = self.list(object, "webhooks");
        self.each("webhooks", webhooks, Self::webhook);
    }

    fn webhook(&mut self, value: &Value) {
        let object = self.object(value);
        self.text(object, "path", Presence::Required);
        if !object.contains_key("methods") {
            self.refuse("missing", "methods", "Field required");
        }
        for key in ["methods", "source_cidrs"] {
            let texts = self.list(object, key);
            self.each(key, texts, |check, item| {
                if !item.is_string() {
                    check.refuse_here("string_type", "Input should be a valid string");
                }
            });
        }
    }

    fn edge_rtts(&mut self, object: &Map<String, Value>, key: &str) -> BTreeMap<String, i64> {
        let map = self.map(object, key);
        self.place.push(key.into());
        let mut rtts = BTreeMap::new();
        for (edge, value) in map {
            match value.as_i64() {
                Some(rtt) => drop(rtts.insert(edge.clone(), rtt)),
                None => self.refuse("int_type", edge.as_str(), "Input should be a valid integer"),
            }
        }
        self.place.pop();
        rtts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors.json")).unwrap()
    }

    #[test]
    fn the_documented_heartbeat_is_accepted_whole() {
        let body = heartbeat(&vectors()["heartbeat_request_example"]).unwrap();
        assert_eq!(body.resources.len(), 2);
        assert_eq!(body.labels["site"], "ams");
        assert_eq!((body.zone.as_deref(), body.active_tunnels), (Some("public"), 2));
        assert_eq!(body.instance_id.as_deref(), Some("0f8fad5b-d9cb-469f-a165-70867728950e"));
        for case in vectors()["config_yaml"].as_array().unwrap() {
            let resources = case.get("heartbeat_resources").or(case.get("heartbeat_resources_any_order")).unwrap();
            heartbeat(&json!({ "resources": resources })).unwrap();
        }
    }

    #[test]
    fn an_empty_heartbeat_unknown_keys_and_negative_tunnels_are_accepted() {
        heartbeat(&json!({})).unwrap();
        assert_eq!(heartbeat(&json!({ "active_tunnels": -3, "novelty": [1] })).unwrap().active_tunnels, 0);
        heartbeat(&json!({ "zone": null, "edge_rtts": { "": 3 } })).unwrap();
    }

    #[test]
    fn every_wrong_shape_is_refused_with_its_place() {
        let place = |problems: Problems| problems[0]["loc"].to_string();
        for (body, expected) in [
            (json!([]), r#"["body"]"#),
            (json!(null), r#"["body"]"#),
            (json!({ "labels": null }), r#"["body","labels"]"#),
            (json!({ "labels": { "n": 1 } }), r#"["body","labels","n"]"#),
            (json!({ "resources": null }), r#"["body","resources"]"#),
            (json!({ "resources": ["x"] }), r#"["body","resources",0]"#),
            (json!({ "resources": [{ "name": "a" }] }), r#"["body","resources",0,"resource_type"]"#),
            (
                json!({ "resources": [{ "name": "a", "resource_type": "ssh", "port": "22" }] }),
                r#"["body","resources",0,"port"]"#,
            ),
            (
                json!({ "resources": [{ "name": "a", "resource_type": "http", "webhooks": [{ "path": "/", "methods": null }] }] }),
                r#"["body","resources",0,"webhooks",0,"methods"]"#,
            ),
            (json!({ "instance_id": 7 }), r#"["body","instance_id"]"#),
            (json!({ "active_tunnels": 1.5 }), r#"["body","active_tunnels"]"#),
            (json!({ "cluster_internal": "no" }), r#"["body","cluster_internal"]"#),
            (json!({ "edge_rtts": { "eu": "12" } }), r#"["body","edge_rtts","eu"]"#),
        ] {
            assert_eq!(place(heartbeat(&body).unwrap_err()), expected, "{body}");
        }
    }

    #[test]
    fn a_join_wants_a_token_a_name_of_1_to_63_characters_and_no_null_labels() {
        let body = |name: &str| json!({ "join_token": "t", "name": name, "labels": {} });
        assert_eq!(join(&body("  edge  ")).unwrap().name, "edge");
        assert!(join(&body(&"x".repeat(63))).is_ok());
        assert!(join(&body(&"x".repeat(64))).is_err());
        assert!(join(&body("   ")).is_err());
        assert!(join(&json!({ "join_token": "t", "name": "a", "labels": null })).is_err());
        assert_eq!(join(&json!({})).unwrap_err().len(), 2, "all problems at once");
    }
}
