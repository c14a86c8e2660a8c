//! The JSON of `status --json` and of `GET /v1/status` (contract section 5).
//!
//! Field names are a promise. Readers are of other versions than the writer: unknown fields are ignored, and every field
//! that is not in all versions has a default.

use serde::{Deserialize, Serialize};

use crate::identity::shared::{self, Kind};

/// What an agent says about itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the running program.
    pub version: String,
    /// Process id, as the agent sees it. `null` when no agent is running.
    pub pid: Option<u32>,
    /// UUID at the platform, where a join or renewal has told it.
    pub agent_id: Option<String>,
    /// The certificate's name; before the join the configured one.
    pub agent_name: String,
    /// This instance.
    pub instance_id: Option<String>,
    /// Start of the process, RFC 3339.
    pub started_at: Option<String>,
    /// The identity certificate; `null` before the join.
    pub certificate: Option<Certificate>,
    /// Where the identity is kept.
    pub identity: Kept,
    /// The connection to the platform.
    pub api: Api,
    /// Sessions.
    pub sessions: Sessions,
    /// Relay endpoints.
    pub relays: Vec<serde_json::Value>,
    /// The updater's view.
    pub update: Update,
}

/// The identity certificate's public facts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// SHA-256 of the DER form, lower-case hex.
    pub sha256: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// When renewal begins, RFC 3339.
    pub renew_at: String,
}

impl From<&crate::identity::Identity> for Certificate {
    fn from(identity: &crate::identity::Identity) -> Self {
        Self {
            sha256: identity.sha256.clone(),
            not_before: crate::clock::rfc3339(identity.not_before),
            not_after: crate::clock::rfc3339(identity.not_after),
            renew_at: crate::clock::rfc3339(crate::identity::schedule::renew_at(identity)),
        }
    }
}

/// Where the identity is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// `data_dir` or `secret`.
    pub kept_in: String,
    /// The Secret, `NAMESPACE/NAME`; `null` where it is none.
    pub secret: Option<String>,
    /// Why it is not as safe there as it should be, and what to do about it.
    pub problem: Option<String>,
}

impl Kept {
    /// Where an agent with this configuration keeps it.
    #[must_use]
    pub fn of(config: &crate::config::Config) -> Self {
        let (kept_in, secret, problem) = match shared::kind(config) {
            Kind::DataDirectory => ("data_dir", None, None),
            Kind::Secret(place) => ("secret", Some(place.to_string()), None),
            Kind::NotShared(sentence) => ("data_dir", None, Some(sentence)),
        };
        Self { kept_in: kept_in.to_owned(), secret, problem }
    }
}

/// The connection to the platform.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Api {
    /// The configured address.
    pub url: String,
    /// What the API reports as its version; `null` if it does not.
    pub version: Option<String>,
    /// The last heartbeat was accepted and the event stream is open.
    pub connected: bool,
    /// Time of the last accepted heartbeat, RFC 3339.
    pub last_heartbeat: Option<String>,
    /// What is wrong at present, and what to do about it.
    pub last_error: Option<String>,
}

/// Sessions, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sessions {
    /// Open at present.
    pub active: u64,
    /// Taken over from the process before.
    pub adopted: u64,
    /// That could not be taken over.
    pub lost: u64,
}

/// The updater's view.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Update {
    /// The version that is installed.
    pub installed: String,
    /// A newer version that the platform would accept; `null` if there is none or it is not known.
    pub available: Option<String>,
    /// `idle`, or the step that an update is in; `null` where the updater's files cannot be read.
    pub state: Option<String>,
    /// The last finished update; `null` where there was none or it cannot be read.
    pub last: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_those_of_the_contract() {
        let status = serde_json::to_value(Status { certificate: Some(Certificate::default()), ..Status::default() });
        let status = status.unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut top = vec!["version", "pid", "agent_id", "agent_name", "instance_id", "started_at", "certificate"];
        top.extend(["identity", "api", "sessions", "relays", "update"]);
        top.sort_unstable();
        assert_eq!(keys(&status), top);
        assert_eq!(keys(&status["certificate"]), ["not_after", "not_before", "renew_at", "sha256"]);
        assert_eq!(keys(&status["identity"]), ["kept_in", "problem", "secret"]);
        assert_eq!(keys(&status["api"]), ["connected", "last_error", "last_heartbeat", "url", "version"]);
        assert_eq!(keys(&status["sessions"]), ["active", "adopted", "lost"]);
        assert_eq!(keys(&status["update"]), ["available", "installed", "last", "state"]);
    }

    #[test]
    fn a_status_of_a_later_version_is_still_read() {
        let status: Status =
            serde_json::from_str(r#"{"version":"9.0.0","added":{"x":1},"api":{"connected":true}}"#).unwrap();
        assert!(status.api.connected);
        assert_eq!(status.version, "9.0.0");
    }
}
