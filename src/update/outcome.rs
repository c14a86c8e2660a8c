//! How an update ended: the JSON of `update --json`, the sentence for people, and the exit code (contract section 1).

use serde::{Serialize, Serializer};

use crate::exit::{Exit, Reason};

/// The word for how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Another version is installed and runs.
    Updated,
    /// There was nothing to do.
    UpToDate,
    /// There is something to do and it was not done: `--check`, `--dry-run`.
    Available,
    /// It was not done, for a reason that trying again does not change.
    Refused,
    /// The version from before is installed and runs again.
    RolledBack,
    /// It went wrong; the message says what state things are in.
    Failed,
}

/// Why something was not done: the stable word and the sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Decides the exit code.
    pub reason: Reason,
    /// What was tried, what came back, what to do next.
    pub message: String,
}

impl Failure {
    /// A failure with all the causes of `error` in its message.
    #[must_use]
    pub fn new(reason: Reason, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { reason, message: crate::http::chain(error) }
    }

    /// A failure in words of our own.
    #[must_use]
    pub fn because(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// The end of an update or a rollback. Absent numbers were never known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// How it ended.
    pub outcome: Ending,
    /// What the process exits with.
    #[serde(rename = "exit_code", serialize_with = "code")]
    pub exit: Exit,
    /// The stable word, where something stood against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// For people.
    pub message: String,
    /// The version that was installed before.
    pub from: Option<String>,
    /// The version that was asked for or chosen.
    pub to: Option<String>,
    /// The API's version, reported or assumed.
    pub api_version: Option<String>,
    /// Where releases come from.
    pub source: Option<String>,
    /// Bytes that came over the network for this update.
    pub downloaded_bytes: Option<u64>,
    /// Duration of the download.
    pub download_ms: Option<u64>,
    /// From the restart's begin until the new version was connected again.
    pub restart_ms: Option<u64>,
    /// Sessions that were open before the restart.
    pub sessions_before: Option<u64>,
    /// Sessions that were open when the new version was found healthy.
    pub sessions_after: Option<u64>,
}

impl Outcome {
    /// The beginning of every outcome: nothing known but what is installed.
    #[must_use]
    pub fn new(from: Option<String>) -> Self {
        Self {
            outcome: Ending::Failed,
            exit: Exit::Failed,
            reason: None,
            message: String::new(),
            from,
            to: None,
            api_version: None,
            source: None,
            downloaded_bytes: None,
            download_ms: None,
            restart_ms: None,
            sessions_before: None,
            sessions_after: None,
        }
    }

    /// Ends it well.
    #[must_use]
    pub fn ended(mut self, outcome: Ending, exit: Exit, message: impl Into<String>) -> Self {
        (self.outcome, self.exit, self.message) = (outcome, exit, message.into());
        self
    }

    /// Ends it with what stood against it; the reason alone decides the exit code.
    #[must_use]
    pub fn failed(mut self, failure: Failure) -> Self {
        self.exit = failure.reason.exit();
        self.outcome = match self.exit {
            Exit::RolledBack => Ending::RolledBack,
            Exit::BeyondApi | Exit::NotAuthentic | Exit::NotSelfUpdatable | Exit::HeldBack | Exit::Locked => {
                Ending::Refused
            }
            Exit::NotPermitted => Ending::Refused,
            Exit::Done
            | Exit::Failed
            | Exit::Usage
            | Exit::Available
            | Exit::OperatorNeeded
            | Exit::Unreachable
            | Exit::Disk
            | Exit::Config => Ending::Failed,
        };
        self.reason = Some(failure.reason);
        self.message = failure.message;
        self
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn code<S: Serializer>(exit: &Exit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u8(exit.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_gives_the_code_and_the_word_that_the_contract_pairs_with_it() {
        for &reason in Reason::ALL {
            let outcome = Outcome::new(None).failed(Failure::because(reason, "why"));
            assert_eq!(outcome.exit, reason.exit());
            let json = serde_json::to_value(&outcome).unwrap();
            assert_eq!(json["exit_code"], reason.exit().code());
            assert_eq!(json["reason"], reason.word());
        }
    }

    #[test]
    fn the_fields_are_those_of_the_contract() {
        let json = serde_json::to_value(Outcome::new(None).failed(Failure::because(Reason::Locked, ""))).unwrap();
        let keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = vec![
            "outcome",
            "exit_code",
            "reason",
            "message",
            "from",
            "to",
            "api_version",
            "source",
            "downloaded_bytes",
            "download_ms",
            "restart_ms",
            "sessions_before",
            "sessions_after",
        ];
        expected.sort_unstable();
        assert_eq!(keys, expected);
    }
}
