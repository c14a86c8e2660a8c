//! What the API does about sessions: `/connect`, its certificates, and the commands that follow (protocol 11.2 and 12.1).
//!
//! The order of the checks is the platform's: resource, previous session, agent, edge, bridge, certificates, instance. The
//! command is enqueued before the client has its answer, so the agent is usually first at the bridge.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::api::Call;
use super::bridges::BridgeView;
use super::ca::{CertificateAuthority, IssuedCertificate, Role, SessionNames};
use super::record::SessionEnd;
use super::reply::Reply;
use super::schema::{self, ConnectBody};
use super::sessions::{self, SessionView};
use super::state::{Outcome, State, timestamp};

/// How far beside now the validity of a certificate lies that is to be refused.
const FAR: Duration = Duration::from_secs(60 * 60);

/// What is wrong with the certificates of sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SessionFlaw {
    /// Nothing.
    #[default]
    None,
    /// The validity begins this long before now.
    Backdated(Duration),
    /// The validity has ended.
    Expired,
    /// The validity begins in an hour.
    NotYetValid,
    /// The bridge SAN names this bridge.
    ForBridge(String),
    /// There is no bridge SAN.
    WithoutBridge,
    /// The session SAN names this session.
    ForSession(String),
    /// There is no type SAN, as on very old platforms.
    WithoutType,
    /// Another authority signed it.
    Foreign,
}

/// What tests have ordered.
#[derive(Debug, Default)]
pub(crate) struct Steer {
    pub(crate) keep_sessions_on_close: bool,
    pub(crate) flaws: BTreeMap<Role, SessionFlaw>,
    pub(crate) hop_edge: Option<String>,
    pub(crate) next_session_ids: Vec<String>,
}

/// The certificates of both ends, and when they end.
struct Pair {
    client: IssuedCertificate,
    agent: IssuedCertificate,
    expires_at: SystemTime,
}

impl State {
    pub(crate) fn connect(&mut self, call: &Call) -> Outcome {
        let user = bearer(call)?;
        let body = schema::json_body(&call.body).and_then(|json| schema::connect(&json)).map_err(Reply::invalid)?;
        let now = self.now();
        let listed = self.catalogue.get(&body.resource, now).cloned();
        let listed = listed.ok_or_else(|| Reply::detail(404, "Resource not found"))?;
        let previous = self.previous(&body, &user)?;
        let kind = effective_type(&listed.kind, body.protocol.as_deref())?;
        let agent = self.registry.get_mut(&listed.agent).filter(|agent| agent.is_online(now));
        let agent_id = agent.ok_or_else(|| Reply::detail(503, "Agent is offline"))?.id.clone();
        if previous.is_none() && self.wants_probes(&body, &kind) {
            return Ok(Reply::json(200, &self.probe_first(&kind)));
        }
        let edge = self.nearest_edge(&body, &listed.agent);
        let avoided = previous.as_ref().map(|session| session.bridge.as_str());
        let bridge = self.bridges.choose(edge.as_deref(), avoided, now);
        let bridge = bridge.ok_or_else(|| Reply::detail(503, "No bridge is available"))?;
        let (command, life) =
            if previous.is_some() { ("redial", sessions::RECONNECT) } else { ("dial", sessions::NEW) };
        let mut session = SessionView {
            id: previous.map_or_else(|| self.new_session_id(), |previous| previous.id),
            user,
            resource: body.resource,
            agent: listed.agent,
            bridge: bridge.id.clone(),
            instance_id: String::new(),
            kind,
            established: false,
        };
        let pair = self.issue_pair(&session, &agent_id, life)?;
        let data = self.tunnel_request(command, &session, &bridge, &pair.agent);
        let instance_id = self.send(&session.agent, "tunnel_request", &data);
        session.instance_id = instance_id.ok_or_else(|| Reply::detail(502, "No live agent instance"))?;
        let answer = self.connect_answer(&session, &bridge, &pair);
        self.sessions.store(session, life, now);
        Ok(Reply::json(200, &answer))
    }

    /// Whether to move to another edge; read-only.
    pub(crate) fn reevaluate(&self, call: &Call) -> Outcome {
        let user = bearer(call)?;
        let id = schema::json_body(&call.body).and_then(|json| schema::reevaluate(&json)).map_err(Reply::invalid)?;
        self.own_session(&id, &user)?;
        Ok(Reply::json(200, &json!({ "hop_edge": self.steer.hop_edge })))
    }

    /// Sends both ends' session anew to its agent, and to nobody else, as the platform's drain does (protocol 7.7). Returns
    /// the instance that was chosen; `None` if the session, the bridge or a candidate is missing.
    pub(crate) fn reissue(&mut self, id: &str, command: &str, bridge: Option<&str>) -> Option<String> {
        let now = self.now();
        let mut session = self.sessions.get(id, now)?.clone();
        let bridge = match bridge {
            Some(bridge) => self.bridges.view(bridge),
            None => self.bridges.choose(None, Some(&session.bridge), now),
        }?;
        let agent_id = self.registry.get_mut(&session.agent)?.id.clone();
        session.bridge.clone_from(&bridge.id);
        session.established = false;
        let pair = self.issue_pair(&session, &agent_id, sessions::RECONNECT).ok()?;
        let data = self.tunnel_request(command, &session, &bridge, &pair.agent);
        session.instance_id = self.send(&session.agent, "tunnel_request", &data)?;
        let instance_id = session.instance_id.clone();
        self.sessions.store(session, sessions::RECONNECT, now);
        Some(instance_id)
    }

    pub(crate) fn established(&mut self, session: &str) {
        let now = self.now();
        self.sessions.established(session, now);
        self.seen.established.push(session.to_owned());
    }

    pub(crate) fn closed(&mut self, end: SessionEnd) {
        if !self.steer.keep_sessions_on_close {
            self.sessions.delete(&end.session);
        }
        self.seen.closed.push(end);
    }

    /// The bridge that the proxy finds an agent's relay connections at, and whether the agent was only just asked for them.
    /// `None` when there is neither an assignment nor somebody to ask.
    pub(crate) fn ask_for_relay(&mut self, agent: &str, edge: &str) -> Option<(BridgeView, bool)> {
        let now = self.now();
        if let Some(bridge) = self.relay_route(agent, edge) {
            return Some((bridge, false));
        }
        let bridge = self.bridges.choose(Some(edge), None, now)?;
        self.command_relay(agent, &bridge).map(|_| (bridge, true))
    }

    pub(crate) fn relay_route(&self, agent: &str, edge: &str) -> Option<BridgeView> {
        self.relays.get(agent, edge, self.now()).and_then(|bridge| self.bridges.view(bridge))
    }

    /// Sends `relay_connect` and notes the assignment.
    pub(crate) fn command_relay(&mut self, agent: &str, bridge: &BridgeView) -> Option<String> {
        let now = self.now();
        let mut data = json!({
            "command": "relay_connect",
            "bridge_host": bridge.host,
            "bridge_port": bridge.port,
            "ca_certificate": self.ca.pem(),
        });
        if !bridge.edge.is_empty() {
            data["edge"] = json!(bridge.edge);
        }
        let instance_id = self.send(agent, "relay_connect", &data)?;
        self.relays.assign(agent, &bridge.edge, &bridge.id, now);
        Some(instance_id)
    }

    fn previous(&self, body: &ConnectBody, user: &str) -> Result<Option<SessionView>, Reply> {
        body.reconnect.as_ref().map(|id| self.own_session(id, user).cloned()).transpose()
    }

    fn own_session(&self, id: &str, user: &str) -> Result<&SessionView, Reply> {
        let session = self.sessions.get(id, self.now());
        let session = session.ok_or_else(|| Reply::detail(404, "Session not found or expired"))?;
        if session.user == user { Ok(session) } else { Err(Reply::detail(403, "Session belongs to another user")) }
    }

    fn wants_probes(&self, body: &ConnectBody, kind: &str) -> bool {
        body.probes && body.edge_rtts.is_empty() && is_raw(kind) && self.bridges.edges(self.now()).len() > 1
    }

    /// The answer that sends a client to measure edges first: every session field is empty.
    fn probe_first(&self, kind: &str) -> Value {
        json!({
            "bridge_hostname": "", "bridge_port": 0, "session_cert": "", "session_key": "", "ca_certificate": "",
            "session_id": "", "session_expires_at": "", "resource_type": kind,
            "candidate_edges": self.candidate_edges(), "probe_required": true,
        })
    }

    /// The edge with the shortest way through it, of those that the client has measured; without measurements any.
    fn nearest_edge(&mut self, body: &ConnectBody, agent: &str) -> Option<String> {
        let edges = self.bridges.edges(self.now());
        let agent = self.registry.get_mut(agent)?;
        let way = |edge: &String| Some(body.edge_rtts.get(edge)?.saturating_add(agent.edge_rtt(edge).unwrap_or(0)));
        edges.into_keys().filter_map(|edge| Some((way(&edge)?, edge))).min().map(|(_, edge)| edge)
    }

    /// The edges that agents are to probe.
    pub(crate) fn edges_to_probe(&self) -> Vec<Value> {
        let target = |(edge, at): (_, BridgeView)| json!({ "edge": edge, "host": at.host, "port": at.port });
        self.named_edges().map(target).collect()
    }

    /// The edges that a client may probe.
    fn candidate_edges(&self) -> Vec<Value> {
        let candidate =
            |(edge, at): (_, BridgeView)| json!({ "name": edge, "probe_host": at.host, "probe_port": at.port });
        self.named_edges().map(candidate).collect()
    }

    fn named_edges(&self) -> impl Iterator<Item = (String, BridgeView)> {
        self.bridges.edges(self.now()).into_iter().filter(|(edge, _)| !edge.is_empty())
    }

    fn new_session_id(&mut self) -> String {
        self.steer.next_session_ids.pop().unwrap_or_else(sessions::new_id)
    }

    fn issue_pair(&self, session: &SessionView, agent_id: &str, life: Duration) -> Result<Pair, Reply> {
        let now = SystemTime::now();
        // Names that fit in no URI break the platform in the same place (protocol 1.2).
        let failed = |_| Reply::detail(500, "Internal server error");
        let client = self.issue_end(&session.user, Role::Client, session, now, life).map_err(failed)?;
        let agent = self.issue_end(agent_id, Role::Agent, session, now, life).map_err(failed)?;
        Ok(Pair { client, agent, expires_at: now + life })
    }

    fn issue_end(
        &self,
        common_name: &str,
        role: Role,
        session: &SessionView,
        now: SystemTime,
        life: Duration,
    ) -> Result<IssuedCertificate, rcgen::Error> {
        let mut names = SessionNames {
            session: session.id.clone(),
            resource: session.resource.clone(),
            bridge: session.bridge.clone(),
            kind: Some(session.kind.clone()),
        };
        let (mut from, mut until) = (now, now + life);
        let foreign;
        let mut ca = self.ca.as_ref();
        match self.steer.flaws.get(&role).cloned().unwrap_or_default() {
            SessionFlaw::None => {}
            SessionFlaw::Backdated(time) => from = now - time,
            SessionFlaw::Expired => (from, until) = (now - FAR, now - Duration::from_secs(2)),
            SessionFlaw::NotYetValid => (from, until) = (now + FAR, now + FAR + life),
            SessionFlaw::ForBridge(bridge) => names.bridge = bridge,
            SessionFlaw::WithoutBridge => names.bridge.clear(),
            SessionFlaw::ForSession(other) => names.session = other,
            SessionFlaw::WithoutType => names.kind = None,
            SessionFlaw::Foreign => {
                foreign = CertificateAuthority::new();
                ca = &foreign;
            }
        }
        ca.session(common_name, role, &names, from, until)
    }

    fn tunnel_request(
        &self,
        command: &str,
        session: &SessionView,
        bridge: &BridgeView,
        issued: &IssuedCertificate,
    ) -> Value {
        json!({
            "command": command,
            "session_id": session.id,
            "bridge_host": bridge.host,
            "bridge_port": bridge.port,
            "resource_name": session.resource,
            "resource_type": session.kind,
            "session_cert": issued.certificate_pem,
            "session_key": issued.private_key_pem,
            "ca_certificate": self.ca.pem(),
        })
    }

    fn connect_answer(&self, session: &SessionView, bridge: &BridgeView, pair: &Pair) -> Value {
        json!({
            "bridge_hostname": bridge.host,
            "bridge_port": bridge.port,
            "session_cert": pair.client.certificate_pem,
            "session_key": pair.client.private_key_pem,
            "ca_certificate": self.ca.pem(),
            "session_id": session.id,
            "session_expires_at": timestamp(pair.expires_at),
            "resource_type": session.kind,
            "candidate_edges": self.candidate_edges(),
            "probe_required": false,
        })
    }
}

/// Whoever holds a token is a user: the token's own text stands for the e-mail address.
fn bearer(call: &Call) -> Result<String, Reply> {
    let token = call.header("authorization").and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    let token = token.filter(|token| !token.is_empty()).ok_or_else(|| Reply::detail(401, "Not authenticated"))?;
    Ok(if token.contains('@') { token.to_owned() } else { format!("{token}@lab.example.com") })
}

fn effective_type(kind: &str, protocol: Option<&str>) -> Result<String, Reply> {
    match (protocol, kind) {
        (None, kind) => Ok(kind.to_owned()),
        (Some("web-ssh"), "ssh" | "ssh-audit") => Ok("web-ssh".to_owned()),
        (Some("web-db"), kind) if kind.starts_with("postgres") || kind.starts_with("mysql") => Ok("web-db".to_owned()),
        (Some(_), _) => Err(Reply::detail(400, "Protocol does not fit the resource")),
    }
}

/// The types whose bytes the bridge itself speaks (protocol 7.1).
fn is_raw(kind: &str) -> bool {
    matches!(kind, "ssh-audit" | "web-ssh" | "web-db")
}
