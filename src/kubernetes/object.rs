//! The Secret as the cluster's API shows it, with the identity in it. Pure: text in, text out.
//!
//! ```yaml
//! type: kubernetes.io/tls
//! metadata:
//!   labels: {app.kubernetes.io/name: bamf, app.kubernetes.io/component: agent,
//!            app.kubernetes.io/managed-by: bamf-agent}
//!   annotations: {bamf-agent/renewing: …}      # only while a replica renews
//! data: {tls.crt: …, tls.key: …, ca.crt: …}    # base64 of the PEM texts
//! ```
//!
//! Whatever else stands in it belongs to others and goes back as it came.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::Place;
use crate::identity::Material;
use crate::identity::inspect::Flaw;
use crate::secret::Secret;

/// The type that the Go agent makes, too.
pub const TYPE: &str = "kubernetes.io/tls";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";
const LABELS: [(&str, &str); 3] = [
    ("app.kubernetes.io/name", "bamf"),
    ("app.kubernetes.io/component", "agent"),
    ("app.kubernetes.io/managed-by", "bamf-agent"),
];
/// Who renews at present: see [`crate::identity::shared`].
const CLAIM: &str = "bamf-agent/renewing";

/// A Secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct Object {
    #[serde(default, rename = "apiVersion")]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default, rename = "type")]
    object_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    immutable: Option<bool>,
    #[serde(default, deserialize_with = "or_default")]
    data: BTreeMap<String, Option<Secret>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    /// A change is refused unless it is still this one. Absent for what is to be made.
    #[serde(default, rename = "resourceVersion", skip_serializing_if = "String::is_empty")]
    resource_version: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The API leaves out what is empty, and some writers send `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

impl Object {
    /// A Secret that is to be made, still without an identity: its type asks for the two keys.
    #[must_use]
    pub fn empty(place: &Place) -> Self {
        let mut object = Self {
            api_version: "v1".to_owned(),
            kind: "Secret".to_owned(),
            metadata: Metadata { name: place.name.clone(), namespace: place.namespace.clone(), ..Metadata::default() },
            object_type: TYPE.to_owned(),
            immutable: None,
            data: BTreeMap::new(),
            rest: Map::new(),
        };
        for key in [CERTIFICATE, KEY] {
            object.data.insert(key.to_owned(), Some(Secret::new(String::new())));
        }
        object.label();
        object
    }

    /// True for an answer that is the Secret at `place`, as the API gives it out.
    #[must_use]
    pub fn is_at(&self, place: &Place) -> bool {
        let metadata = &self.metadata;
        self.kind == "Secret" && metadata.name == place.name && !metadata.resource_version.is_empty()
    }

    /// Its type.
    #[must_use]
    pub fn object_type(&self) -> &str {
        &self.object_type
    }

    /// True where its owner has forbidden all changes.
    #[must_use]
    pub fn is_immutable(&self) -> bool {
        self.immutable == Some(true)
    }

    /// The identity in it; `None` without certificate and key, which may also be there and empty.
    ///
    /// # Errors
    /// Something is there that is no identity.
    pub fn material(&self) -> Result<Option<Material>, Flaw> {
        let (certificate, key) = (self.text(CERTIFICATE)?, self.text(KEY)?);
        let (certificate_pem, private_key_pem) = match (certificate, key) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(Flaw::Missing { file: CERTIFICATE }),
            (Some(_), None) => return Err(Flaw::Missing { file: KEY }),
            (Some(certificate), Some(key)) => (certificate, key),
        };
        let ca = self.text(AUTHORITY)?.ok_or(Flaw::Missing { file: AUTHORITY })?;
        Ok(Some(Material { certificate_pem, private_key_pem, ca_pem: ca.expose().to_owned() }))
    }

    fn text(&self, key: &'static str) -> Result<Option<Secret>, Flaw> {
        let Some(encoded) = self.data.get(key).and_then(Option::as_ref) else { return Ok(None) };
        let malformed = Flaw::Malformed { file: key, expected: "a PEM text" };
        let bytes = STANDARD.decode(encoded.expose()).map_err(|_| malformed);
        // `from_utf8` keeps the buffer, and the error that would show it is dropped.
        let text = String::from_utf8(bytes?).map_err(|_| Flaw::Malformed { file: key, expected: "a PEM text" })?;
        Ok(Some(Secret::new(text)).filter(|text| !text.expose().trim().is_empty()))
    }

    /// The same Secret with this identity; a renewal that was claimed is over.
    #[must_use]
    pub fn holding(mut self, material: &Material) -> Self {
        let texts = [
            (CERTIFICATE, material.certificate_pem.expose()),
            (KEY, material.private_key_pem.expose()),
            (AUTHORITY, material.ca_pem.as_str()),
        ];
        for (key, text) in texts {
            self.data.insert(key.to_owned(), Some(Secret::new(STANDARD.encode(text))));
        }
        self.label();
        self.metadata.annotations.remove(CLAIM);
        self
    }

    fn label(&mut self) {
        self.metadata.labels.extend(LABELS.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    /// Who says that they renew.
    #[must_use]
    pub fn claim(&self) -> Option<&str> {
        self.metadata.annotations.get(CLAIM).map(String::as_str)
    }

    /// The same Secret, with a renewal claimed.
    #[must_use]
    pub fn claimed_by(mut self, claim: &str) -> Self {
        self.metadata.annotations.insert(CLAIM.to_owned(), claim.to_owned());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place { namespace: "bamf".into(), name: "certs".into() }
    }

    fn material() -> Material {
        let secret = |text: &str| Secret::new(text.to_owned());
        Material { certificate_pem: secret("C\n"), private_key_pem: secret("K\n"), ca_pem: "A\n".into() }
    }

    fn read(json: &str) -> Object {
        serde_json::from_str(json).unwrap()
    }

    fn flaw(data: &str) -> Option<Flaw> {
        read(&format!(r#"{{"data":{data}}}"#)).material().err()
    }

    #[test]
    fn a_new_secret_is_what_the_protocol_says() {
        let object = serde_json::to_value(Object::empty(&place()).holding(&material())).unwrap();
        assert_eq!(
            object,
            serde_json::json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": {"name": "certs", "namespace": "bamf", "labels": {
                    "app.kubernetes.io/name": "bamf", "app.kubernetes.io/component": "agent",
                    "app.kubernetes.io/managed-by": "bamf-agent"}},
                "data": {"tls.crt": "Qwo=", "tls.key": "Swo=", "ca.crt": "QQo="},
            })
        );
    }

    #[test]
    fn what_belongs_to_others_goes_back_as_it_came() {
        let theirs = r#"{"apiVersion":"v1","kind":"Secret","type":"kubernetes.io/tls","immutable":false,
            "data":{"tls.crt":"","tls.key":"","note":"aGk=","nothing":null},
            "metadata":{"name":"certs","namespace":"bamf","resourceVersion":"7","uid":"u","generation":3,
                "labels":{"team":"a","app.kubernetes.io/managed-by":"Helm"},"annotations":{"x/y":"z"},
                "ownerReferences":[{"uid":"o"}],"managedFields":[{"manager":"m"}]},
            "later":{"field":[1,2]}}"#;
        let mut expected: Value = serde_json::from_str(theirs).unwrap();
        let back = serde_json::to_value(read(theirs).claimed_by("me").holding(&material())).unwrap();
        for (key, text) in [("tls.crt", "Qwo="), ("tls.key", "Swo="), ("ca.crt", "QQo=")] {
            expected["data"][key] = text.into();
        }
        for (key, value) in LABELS {
            expected["metadata"]["labels"][key] = value.into();
        }
        assert_eq!(back, expected);
    }

    #[test]
    fn without_certificate_and_key_there_is_no_identity_and_with_half_of_it_there_is_a_flaw() {
        for empty in ["null", "{}", r#"{"tls.crt":"","tls.key":""}"#, r#"{"tls.crt":null}"#, r#"{"ca.crt":"QQo="}"#] {
            assert!(read(&format!(r#"{{"data":{empty}}}"#)).material().unwrap().is_none(), "{empty}");
        }
        assert_eq!(flaw(r#"{"tls.crt":"Qwo="}"#), Some(Flaw::Missing { file: "tls.key" }));
        assert_eq!(flaw(r#"{"tls.key":"Qwo=","tls.crt":""}"#), Some(Flaw::Missing { file: "tls.crt" }));
        assert_eq!(flaw(r#"{"tls.key":"Qwo=","tls.crt":"Qwo="}"#), Some(Flaw::Missing { file: "ca.crt" }));
        let malformed = Some(Flaw::Malformed { file: "tls.crt", expected: "a PEM text" });
        assert_eq!(flaw(r#"{"tls.crt":"%","tls.key":"Qwo="}"#), malformed);
        assert_eq!(flaw(r#"{"tls.crt":"//8=","tls.key":"Qwo="}"#), malformed);
    }

    #[test]
    fn debug_output_shows_nothing_of_the_identity() {
        let shown = format!("{:?}", Object::empty(&place()).holding(&material()));
        assert!(!shown.contains("Swo=") && !shown.contains("Qwo="), "{shown}");
    }
}
