//! Where the two ends of a session wait for each other (protocol 7.4), with the platform's flaws.
//!
//! The first to arrive leaves a channel under its session and role and waits; the second sends itself through it. A newer
//! one of the same role takes the place of the older, which does not learn of it; and whoever gives up takes away whatever
//! stands in its place.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::life::locked;
use super::link::Link;
use crate::plane::Role;

/// One end of a session, header lines read.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) link: Link,
    pub(crate) session: String,
    pub(crate) role: Role,
    pub(crate) kind: String,
}

#[derive(Debug, Default)]
pub(crate) struct Meeting(Mutex<HashMap<(String, Role), oneshot::Sender<Peer>>>);

/// How an arrival came out.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// The other end waited and takes over.
    HandedOver,
    /// The other end gave up in this very moment.
    Missed(Peer),
    /// Nobody waited.
    Waits(Peer, oneshot::Receiver<Peer>),
}

impl Meeting {
    pub(crate) fn arrive(&self, peer: Peer, never_match: bool) -> Arrival {
        let opposite = match peer.role {
            Role::Client => Role::Agent,
            Role::Agent => Role::Client,
        };
        let mut pending = locked(&self.0);
        let waiting = if never_match { None } else { pending.remove(&(peer.session.clone(), opposite)) };
        if let Some(waiting) = waiting {
            return waiting.send(peer).map_or_else(Arrival::Missed, |()| Arrival::HandedOver);
        }
        let (sender, receiver) = oneshot::channel();
        pending.insert((peer.session.clone(), peer.role), sender);
        Arrival::Waits(peer, receiver)
    }

    /// Waits for the other end until `deadline`. A replaced peer goes on waiting, for nobody.
    pub(crate) async fn wait(
        &self,
        session: &str,
        role: Role,
        mut other: oneshot::Receiver<Peer>,
        deadline: Instant,
    ) -> Option<Peer> {
        match tokio::time::timeout_at(deadline, &mut other).await {
            Ok(Ok(peer)) => return Some(peer),
            Ok(Err(_)) => tokio::time::sleep_until(deadline).await,
            Err(_) => {}
        }
        locked(&self.0).remove(&(session.to_owned(), role));
        other.try_recv().ok()
    }

    pub(crate) fn pending(&self) -> usize {
        locked(&self.0).len()
    }
}
