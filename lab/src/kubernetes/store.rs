//! Secrets of one namespace, with the versions that make concurrent writers safe.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::admission::admit;

/// A refusal in the API's form.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    reason: String,
    pub(super) message: String,
    name: String,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &str, message: &str, name: &str) -> Self {
        Self { code, reason: reason.to_owned(), message: message.to_owned(), name: name.to_owned() }
    }

    fn missing(name: &str) -> Self {
        Self::new(404, "NotFound", &format!("secrets {name:?} not found"), name)
    }

    /// The body.
    pub(super) fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason, "details": {"name": self.name, "kind": "secrets"}, "code": self.code,
        })
    }
}

/// The Secrets.
#[derive(Debug, Default)]
pub(super) struct Store {
    secrets: BTreeMap<String, Value>,
    /// One counter for the whole cluster, as in etcd.
    version: u64,
}

impl Store {
    pub(super) fn get(&self, name: &str) -> Result<Value, Refusal> {
        self.secrets.get(name).cloned().ok_or_else(|| Refusal::missing(name))
    }

    pub(super) fn delete(&mut self, name: &str) -> bool {
        self.version += 1;
        self.secrets.remove(name).is_some()
    }

    pub(super) fn create(&mut self, mut secret: Value, rehearsal: bool) -> Result<Value, Refusal> {
        let name = secret["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if secret["metadata"].get("resourceVersion").is_some_and(|version| version != "") {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Refusal::new(400, "BadRequest", message, &name));
        }
        admit(&mut secret)?;
        if self.secrets.contains_key(&name) {
            return Err(Refusal::new(409, "AlreadyExists", &format!("secrets {name:?} already exists"), &name));
        }
        secret["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
        secret["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        secret["metadata"]["managedFields"] = json!([{"manager": "lab", "operation": "Update"}]);
        Ok(self.put(name, secret, rehearsal))
    }

    pub(super) fn replace(&mut self, name: &str, mut secret: Value, rehearsal: bool) -> Result<Value, Refusal> {
        let inside = secret["metadata"]["name"].as_str().unwrap_or_default();
        if inside != name {
            let message = format!("the name of the object ({inside}) does not match the name on the URL ({name})");
            return Err(Refusal::new(400, "BadRequest", &message, name));
        }
        let present = self.secrets.get(name).ok_or_else(|| Refusal::missing(name))?;
        let asked = &secret["metadata"]["resourceVersion"];
        // Without a version the write is unconditional.
        let outdated =
            asked.as_str().is_some_and(|asked| !asked.is_empty() && present["metadata"]["resourceVersion"] != asked);
        let another = secret["metadata"].get("uid").is_some_and(|uid| *uid != present["metadata"]["uid"]);
        if outdated || another {
            let message = format!(
                "Operation cannot be fulfilled on secrets {name:?}: the object has been modified; please apply your changes \
                 to the latest version and try again"
            );
            return Err(Refusal::new(409, "Conflict", &message, name));
        }
        if secret["type"].as_str().unwrap_or_default().is_empty() {
            secret["type"] = present["type"].clone();
        }
        admit(&mut secret)?;
        let invalid = |what: &str| {
            Refusal::new(422, "Invalid", &format!("Secret {name:?} is invalid: {what}: field is immutable"), name)
        };
        if secret["type"] != present["type"] {
            return Err(invalid("type: Invalid value"));
        }
        if present["immutable"] == true && (secret["immutable"] != true || secret["data"] != present["data"]) {
            return Err(invalid("data: Forbidden: when `immutable` is set"));
        }
        for field in ["uid", "creationTimestamp"] {
            secret["metadata"][field] = present["metadata"][field].clone();
        }
        secret["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"].clone();
        if secret == *present {
            // What changes nothing is no new version.
            return Ok(secret);
        }
        Ok(self.put(name.to_owned(), secret, rehearsal))
    }

    fn put(&mut self, name: String, mut secret: Value, rehearsal: bool) -> Value {
        if rehearsal {
            return secret;
        }
        self.version += 1;
        secret["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.secrets.insert(name, secret.clone());
        secret
    }
}
