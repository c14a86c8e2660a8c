//! What the control plane has seen: the material of assertions.
//!
//! Every list is bounded, because a soak test sends heartbeats for hours; totals count on when entries have left.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use serde_json::Value;

/// Entries that a [`Log`] keeps. A test asserts on the last few; a soak test must not eat the machine's memory.
const KEPT: usize = 4096;

/// The newest entries of a kind, oldest first, and how many there have ever been.
#[derive(Clone, Debug)]
pub struct Log<T> {
    entries: VecDeque<T>,
    total: usize,
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), total: 0 }
    }
}

impl<T> Log<T> {
    /// How many there have ever been.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.total
    }

    /// The kept entries, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.entries.iter()
    }

    /// The newest entry.
    #[must_use]
    pub fn last(&self) -> Option<&T> {
        self.entries.back()
    }

    pub(crate) fn push(&mut self, entry: T) {
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
        self.total += 1;
    }

    /// The entry that was the `number`th ever, counted from zero, unless it has left.
    pub(crate) fn nth_ever(&mut self, number: usize) -> Option<&mut T> {
        let left = self.total - self.entries.len();
        number.checked_sub(left).and_then(|index| self.entries.get_mut(index))
    }
}

impl<T: Clone> Log<T> {
    pub(crate) fn to_vec(&self) -> Vec<T> {
        self.entries.iter().cloned().collect()
    }
}

/// Everything seen so far; what the conditions of [`wait_for`](super::ControlPlane::wait_for) look at.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Joins answered with 201.
    pub joins: Log<Join>,
    /// Requests to the join endpoint, however they ended.
    pub join_attempts: usize,
    /// Heartbeats that were accepted.
    pub heartbeats: Log<Heartbeat>,
    /// Renewals that gave out a certificate.
    pub renewals: Log<Renewal>,
    /// Instances that said they drain.
    pub drains: Log<InstanceReport>,
    /// Instances that said they go offline.
    pub offlines: Log<InstanceReport>,
    /// Event streams that are open right now.
    pub open_streams: Vec<Stream>,
    /// Event streams that were ever opened.
    pub stream_opens: usize,
    /// Commands that were enqueued for an instance.
    pub commands: Log<SentCommand>,
    /// Sessions whose two ends a bridge brought together, once for every time.
    pub established: Log<String>,
    /// Sessions that a bridge reported closed.
    pub closed: Log<SessionEnd>,
    /// Every request, the refused and faulted ones too.
    pub requests: Log<RequestRecord>,
}

/// An agent that joined.
#[derive(Clone, Debug)]
pub struct Join {
    /// When it was answered.
    pub at: SystemTime,
    /// The name that the agent chose.
    pub name: String,
    /// The UUID that the API gave it.
    pub agent_id: String,
    /// Labels of the request.
    pub labels: BTreeMap<String, String>,
    /// The token that was spent.
    pub token: String,
    /// Fingerprint of the certificate handed out.
    pub certificate_sha256: String,
}

/// An accepted heartbeat.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// When it was answered.
    pub at: SystemTime,
    /// The agent's name.
    pub agent: String,
    /// Which of the agent's processes sent it.
    pub instance_id: Option<String>,
    /// Fingerprint of the header certificate.
    pub certificate_sha256: String,
    /// The body as it came.
    pub body: Value,
}

/// A renewed certificate.
#[derive(Clone, Debug)]
pub struct Renewal {
    /// When it was answered.
    pub at: SystemTime,
    /// The agent's name.
    pub agent: String,
    /// Fingerprint of the certificate that asked.
    pub presented_sha256: String,
    /// Fingerprint of the certificate handed out.
    pub issued_sha256: String,
}

/// A drain or offline message.
#[derive(Clone, Debug)]
pub struct InstanceReport {
    /// When it was answered.
    pub at: SystemTime,
    /// The agent's name.
    pub agent: String,
    /// The instance it is about, known or not.
    pub instance_id: String,
}

/// An open event stream.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Counts up from 1 in the order of opening.
    pub number: u64,
    /// When it was opened.
    pub opened_at: SystemTime,
    /// The agent's name.
    pub agent: String,
    /// The instance of the query string.
    pub instance_id: String,
    /// Fingerprint of the header certificate.
    pub certificate_sha256: String,
}

/// A command on its way to an agent, without the secrets in it.
#[derive(Clone, Debug)]
pub struct SentCommand {
    /// When it was enqueued.
    pub at: SystemTime,
    /// The agent's name.
    pub agent: String,
    /// The instance that was chosen.
    pub instance_id: String,
    /// The event's name.
    pub event: String,
    /// The `command` in its data.
    pub command: Option<String>,
    /// The `session_id` in its data.
    pub session: Option<String>,
    /// The `bridge_host` and `bridge_port` in its data.
    pub bridge: Option<(String, u64)>,
}

/// What a bridge says of a session when it reports it closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEnd {
    /// The session's id.
    pub session: String,
    /// Bytes from the client to the agent.
    pub up: u64,
    /// Bytes from the agent to the client.
    pub down: u64,
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// When its body had been read.
    pub at: SystemTime,
    /// The method, upper case.
    pub method: String,
    /// The path, still percent-encoded.
    pub path: String,
    /// The query without its question mark.
    pub query: Option<String>,
    /// All headers by lower-case name, but the header certificate: it is a bearer secret (protocol 1.4).
    pub headers: BTreeMap<String, String>,
    /// Fingerprint of the header certificate, if one came that could be decoded.
    pub certificate_sha256: Option<String>,
    /// Length of the body in bytes.
    pub body_len: usize,
    /// The answer's status; absent while there is none, and for good when the connection was cut instead.
    pub status: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_forgets_its_oldest_entries_but_counts_on() {
        let mut log = Log::default();
        (0..KEPT + 10).for_each(|number| log.push(number));
        assert_eq!((log.total(), log.iter().count()), (KEPT + 10, KEPT));
        assert_eq!((log.iter().next(), log.last()), (Some(&10), Some(&(KEPT + 9))));
        assert_eq!(log.nth_ever(9), None, "it has left");
        assert_eq!(log.nth_ever(10), Some(&mut 10));
        assert_eq!(log.nth_ever(KEPT + 10), None, "it has not come yet");
    }
}
