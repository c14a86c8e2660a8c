//! Session records (protocol 7.5, 7.7 and 12.1): 30 seconds, 24 hours once established, gone with the word "closed".
//!
//! No clock in here. The platform's flaw is modelled as it is: whatever way a tunnel ends, the report deletes the record,
//! even one that a reconnect renewed a moment before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::ca::random;

/// Life of a new session's record and certificates.
pub(crate) const NEW: Duration = Duration::from_secs(30);

/// Life of a reconnecting session's record and certificates.
pub(crate) const RECONNECT: Duration = Duration::from_secs(300);

/// Life of an established session's record; nothing prolongs it.
const ESTABLISHED: Duration = Duration::from_secs(24 * 60 * 60);

/// A session as the platform keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// Who asked for it.
    pub user: String,
    /// The resource's name.
    pub resource: String,
    /// The agent's name.
    pub agent: String,
    /// The id of the bridge that both ends were sent to last.
    pub bridge: String,
    /// The instance that got the last command.
    pub instance_id: String,
    /// The effective type.
    pub kind: String,
    /// Whether a bridge has brought both ends together since the last command.
    pub established: bool,
}

#[derive(Debug)]
struct Record {
    session: SessionView,
    until: Instant,
}

#[derive(Debug, Default)]
pub(crate) struct Sessions(BTreeMap<String, Record>);

impl Sessions {
    /// Stores a record, in place of the one that is there.
    pub(crate) fn store(&mut self, session: SessionView, life: Duration, now: Instant) {
        self.0.retain(|_, record| record.until >= now);
        self.0.insert(session.id.clone(), Record { session, until: now + life });
    }

    pub(crate) fn get(&self, id: &str, now: Instant) -> Option<&SessionView> {
        self.0.get(id).filter(|record| record.until >= now).map(|record| &record.session)
    }

    pub(crate) fn established(&mut self, id: &str, now: Instant) {
        if let Some(record) = self.0.get_mut(id).filter(|record| record.until >= now) {
            record.session.established = true;
            record.until = now + ESTABLISHED;
        }
    }

    pub(crate) fn delete(&mut self, id: &str) {
        self.0.remove(id);
    }

    pub(crate) fn all(&self, now: Instant) -> Vec<SessionView> {
        self.0.values().filter(|record| record.until >= now).map(|record| record.session.clone()).collect()
    }
}

/// 32 characters of URL-safe base64; one in 32 begins with `-` or `_`.
pub(crate) fn new_id() -> String {
    URL_SAFE_NO_PAD.encode(random::<24>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str) -> SessionView {
        SessionView {
            id: id.into(),
            user: "u".into(),
            resource: "r".into(),
            agent: "a".into(),
            bridge: "b".into(),
            instance_id: "i".into(),
            kind: "ssh".into(),
            established: false,
        }
    }

    #[test]
    fn a_record_lives_30_seconds_then_a_day_and_not_after_the_report_of_its_end() {
        let (mut sessions, start) = (Sessions::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        sessions.store(session("lost"), NEW, start);
        sessions.store(session("kept"), NEW, start);
        sessions.established("kept", after(30));
        sessions.established("lost", after(31));
        assert!(sessions.get("lost", after(31)).is_none());
        assert!(sessions.get("kept", after(24 * 60 * 60)).unwrap().established);
        assert!(sessions.get("kept", after(24 * 60 * 60 + 31)).is_none());
        sessions.delete("kept");
        assert!(sessions.get("kept", after(40)).is_none());
    }

    #[test]
    fn an_id_has_32_characters_and_sometimes_begins_with_a_sign() {
        let ids: Vec<_> = (0..2000).map(|_| new_id()).collect();
        assert!(ids.iter().all(|id| id.len() == 32));
        assert!(ids.iter().any(|id| id.starts_with('-')) && ids.iter().any(|id| id.starts_with('_')));
    }
}
