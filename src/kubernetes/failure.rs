//! What went wrong between the agent and its cluster, as a sentence for whoever can mend it.

use std::time::Duration;

use super::Place;

/// What is done to the Secret, in the words of a Role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Read it.
    Get,
    /// Make it.
    Create,
    /// Change it.
    Update,
}

impl Verb {
    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create => "create",
            Self::Update => "update",
        }
    }
}

/// A failed call to the cluster's API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The pod does not say where the API is.
    #[error("KUBERNETES_SERVICE_HOST is not set, so the cluster's API cannot be found for the Secret {place}")]
    NoAddress {
        /// The Secret.
        place: Place,
    },
    /// The address is none.
    #[error("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT give no address of the cluster's API")]
    BadAddress,
    /// Token or authority cannot be read.
    #[error(
        "the pod's service account cannot be used for the Secret {place} (is `automountServiceAccountToken: false` set?): \
         {detail}"
    )]
    Account {
        /// The Secret.
        place: Place,
        /// What failed.
        detail: String,
    },
    /// No connection, or no whole answer: a write may or may not have been carried out.
    #[error("the cluster's API did not answer to `{} secrets` for {place}: {detail}", verb.word())]
    Unanswered {
        /// What was tried.
        verb: Verb,
        /// The Secret.
        place: Place,
        /// What the network said.
        detail: String,
    },
    /// 401.
    #[error("the cluster's API does not accept the pod's service account token ({detail})")]
    Unauthorized {
        /// The API's words.
        detail: String,
    },
    /// 403.
    #[error(
        "the pod's service account may not {} the Secret {place}: its Role in the namespace {} needs the rule {} ({detail})",
        verb.word(), place.namespace, rule(*verb, &place.name)
    )]
    Forbidden {
        /// What was tried.
        verb: Verb,
        /// The Secret.
        place: Place,
        /// The API's words.
        detail: String,
    },
    /// 409, or 404 for a change: somebody else was there in between. Read again.
    #[error("somebody else changed the Secret {place} at the same moment ({detail})")]
    Conflict {
        /// The Secret.
        place: Place,
        /// The API's words.
        detail: String,
    },
    /// 429 and 5xx.
    #[error("the cluster's API cannot {} the Secret {place} now ({detail})", verb.word())]
    Unavailable {
        /// What was tried.
        verb: Verb,
        /// The Secret.
        place: Place,
        /// The API's words.
        detail: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// Any other refusal.
    #[error("the cluster's API refuses to {} the Secret {place} ({detail})", verb.word())]
    Refused {
        /// What was tried.
        verb: Verb,
        /// The Secret.
        place: Place,
        /// The API's words.
        detail: String,
    },
    /// An answer that is none of the API's.
    #[error("something else than the cluster's API answered to `{} secrets` for {place} ({detail})", verb.word())]
    Unexpected {
        /// What was tried.
        verb: Verb,
        /// The Secret.
        place: Place,
        /// What came.
        detail: String,
    },
}

/// The rule that a Role needs. `create` cannot be limited by name: the name is not known to the check (Kubernetes, "RBAC").
fn rule(verb: Verb, name: &str) -> String {
    match verb {
        Verb::Create => r#"{apiGroups: [""], resources: [secrets], verbs: [create]}"#.to_owned(),
        Verb::Get | Verb::Update => {
            format!(r#"{{apiGroups: [""], resources: [secrets], resourceNames: [{name}], verbs: [get, update]}}"#)
        }
    }
}

impl Failure {
    /// How long the API asked to wait.
    #[must_use]
    pub const fn asked_wait(&self) -> Option<Duration> {
        if let Self::Unavailable { retry_after, .. } = self { *retry_after } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_names_the_rule_that_is_missing() {
        let place = Place { namespace: "bamf".into(), name: "certs".into() };
        let forbidden = |verb| Failure::Forbidden { verb, place: place.clone(), detail: "403".into() }.to_string();
        let named = "resourceNames: [certs], verbs: [get, update]";
        assert!(forbidden(Verb::Get).contains(named) && forbidden(Verb::Update).contains(named));
        let create = forbidden(Verb::Create);
        assert!(create.contains("verbs: [create]") && !create.contains("resourceNames"), "{create}");
        assert!(create.contains("may not create the Secret bamf/certs"), "{create}");
    }
}
