//! The tests' hold on sessions, bridges and relays.

use std::sync::Arc;
use std::time::Duration;

use super::ControlPlane;
use super::bridges::BridgeView;
use super::ca::Role;
use super::connect::SessionFlaw;
use super::record::{SentCommand, SessionEnd};
use super::sessions::SessionView;
use super::state::Shared;

/// How long the API waits after a `relay_connect` before it lets the first request through (protocol 9.1).
const RELAY_WAIT: Duration = Duration::from_secs(1);

/// Sessions.
impl ControlPlane {
    /// The record of a session, unless it has expired or was deleted.
    #[must_use]
    pub fn session(&self, id: &str) -> Option<SessionView> {
        self.shared.with(|state| state.sessions.get(id, state.now()).cloned())
    }

    /// All records that are alive.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        self.shared.with(|state| state.sessions.all(state.now()))
    }

    /// A bridge has brought both ends together: the record lives for 24 hours.
    pub fn established(&self, session: &str) {
        self.shared.with(|state| state.established(session));
    }

    /// A bridge has seen the tunnel end: the record is deleted, unless [`Self::keep_sessions_on_close`] says otherwise.
    pub fn closed(&self, session: &str, up: u64, down: u64) {
        let end = SessionEnd { session: session.to_owned(), up, down };
        self.shared.with(|state| state.closed(end));
    }

    /// Whether records outlive the report of their end, which today's platform does not grant.
    pub fn keep_sessions_on_close(&self, keep: bool) {
        self.shared.with(|state| state.steer.keep_sessions_on_close = keep);
    }

    /// Deletes a record, as `DELETE /api/v1/tunnels/{id}` does: nobody is told, a running tunnel goes on.
    pub fn delete_session(&self, session: &str) {
        self.shared.with(|state| state.sessions.delete(session));
    }

    /// What is wrong with the certificates given to this end of sessions from now on.
    pub fn flaw_session_certificates(&self, role: Role, flaw: SessionFlaw) {
        self.shared.with(|state| state.steer.flaws.insert(role, flaw));
    }

    /// The id of the next new session.
    pub fn set_next_session_id(&self, id: &str) {
        self.shared.with(|state| state.steer.next_session_ids.insert(0, id.to_owned()));
    }

    /// Tells a session's agent alone to dial again, with new certificates, as the platform's drain does. `command` is
    /// `redial`, or whatever a test wants to see ignored; without a bridge another one than the last is chosen. Returns the
    /// instance that was chosen.
    pub fn reissue(&self, session: &str, command: &str, bridge: Option<&str>) -> Option<String> {
        self.shared.with(|state| state.reissue(session, command, bridge))
    }

    /// What `/connect/reevaluate` answers as `hop_edge`; at first nothing.
    pub fn set_hop_edge(&self, edge: Option<&str>) {
        self.shared.with(|state| state.steer.hop_edge = edge.map(str::to_owned));
    }

    /// Commands that were enqueued, the newest 4096.
    #[must_use]
    pub fn commands(&self) -> Vec<SentCommand> {
        self.shared.with(|state| state.seen.commands.to_vec())
    }
}

/// Bridges and relays.
impl ControlPlane {
    /// A bridge as it registered, whether or not it is still there.
    #[must_use]
    pub fn bridge(&self, id: &str) -> Option<BridgeView> {
        self.shared.with(|state| state.bridges.view(id))
    }

    /// Ids of the bridges that the platform takes for alive: a killed one for 60 seconds more.
    #[must_use]
    pub fn bridges(&self) -> Vec<String> {
        self.shared.with(|state| state.bridges.alive(state.now()).into_iter().collect())
    }

    /// Lets the platform notice at once that a killed bridge is gone.
    pub fn forget_bridge(&self, id: &str) {
        self.shared.with(|state| state.bridges.sign_off(id));
    }

    /// The bridge that an agent's relay is assigned to at an edge; the default edge is the empty name.
    #[must_use]
    pub fn proxy_route(&self, agent: &str, edge: &str) -> Option<BridgeView> {
        self.shared.with(|state| state.relay_route(agent, edge))
    }

    /// What the API does for a proxied request: the assigned bridge at once; without an assignment it sends `relay_connect`
    /// and waits a second. `None` when no bridge or no instance is there to ask.
    pub async fn open_proxy_route(&self, agent: &str, edge: &str) -> Option<BridgeView> {
        let (bridge, asked) = self.shared.with(|state| state.ask_for_relay(agent, edge))?;
        if asked {
            tokio::time::sleep(RELAY_WAIT).await;
        }
        Some(bridge)
    }

    /// The same without the wait, which is the caller's. The flag says whether `relay_connect` was sent.
    pub fn ask_for_relay(&self, agent: &str, edge: &str) -> Option<(BridgeView, bool)> {
        self.shared.with(|state| state.ask_for_relay(agent, edge))
    }

    /// Sends `relay_connect` for a bridge, whatever is assigned, and assigns it. Returns the instance that was chosen.
    pub fn command_relay(&self, agent: &str, bridge: &str) -> Option<String> {
        self.shared.with(|state| {
            let bridge = state.bridges.view(bridge)?;
            state.command_relay(agent, &bridge)
        })
    }

    /// Forgets an agent's relay assignments.
    pub fn forget_relays(&self, agent: &str) {
        self.shared.with(|state| state.relays.forget(agent));
    }

    /// The state itself, for a bridge, which reports by method calls what a real one posts to the API.
    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}
