//! Agents, their tokens, and their running instances, as protocol 4 and 5 keep them.
//!
//! No clock in here: `now` is an argument, so that 180-second lifetimes are tested without waiting. What the platform
//! does badly is modelled badly: a dead instance stays a candidate for commands until its last heartbeat is 180 s old,
//! "draining" is for ever, and nothing but the tunnel count decides who gets a command.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::ca::{hex, random};
use super::schema::HeartbeatBody;

/// How long a heartbeat keeps an agent and its instance alive (protocol 5.1).
pub(crate) const PRESENCE: Duration = Duration::from_secs(180);

/// Join tokens by their text. The platform keeps a hash; a lab has nothing to hide.
#[derive(Debug, Default)]
pub(crate) struct Tokens(BTreeMap<String, u32>);

impl Tokens {
    pub(crate) fn issue(&mut self, uses: u32) -> String {
        let token = format!("bamf_{}", hex(&random::<16>()));
        self.0.insert(token.clone(), uses);
        token
    }

    pub(crate) fn revoke(&mut self, token: &str) {
        self.0.remove(token);
    }

    pub(crate) fn is_good(&self, token: &str) -> bool {
        self.0.get(token).is_some_and(|left| *left > 0)
    }

    pub(crate) fn spend(&mut self, token: &str) {
        if let Some(left) = self.0.get_mut(token) {
            *left = left.saturating_sub(1);
        }
    }
}

/// All agents by name.
#[derive(Debug, Default)]
pub(crate) struct Registry(BTreeMap<String, Agent>);

/// One agent.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) id: String,
    /// Fingerprint of the certificate given out last, by join or renewal.
    pub(crate) recorded_sha256: String,
    labels: BTreeMap<String, String>,
    resources: Vec<Value>,
    zone: Option<String>,
    cluster_internal: bool,
    edge_rtts: BTreeMap<String, i64>,
    heartbeat_at: Option<Instant>,
    instances: BTreeMap<String, Instance>,
}

#[derive(Debug)]
struct Instance {
    /// Sticky: heartbeats do not undo it (protocol 5.2).
    draining: bool,
    tunnels: u64,
    /// Set when a `relay_connect` is enqueued, never cleared.
    has_relay: bool,
    heartbeat_at: Instant,
}

impl Instance {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heartbeat_at) <= PRESENCE
    }
}

/// An agent as the platform would show it.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentView {
    /// The UUID that join returned.
    pub id: String,
    /// The name, CN of its certificates.
    pub name: String,
    /// Whether its last heartbeat is at most 180 s old. Offline agents have neither labels nor resources.
    pub online: bool,
    /// Labels of the last heartbeat that had some.
    pub labels: BTreeMap<String, String>,
    /// Resources of the last heartbeat that had some.
    pub resources: Vec<Value>,
    /// `in-cluster`, `internal` or `public`; anything else was dropped.
    pub zone: Option<String>,
    /// Whether the last heartbeat said so.
    pub cluster_internal: bool,
    /// The instances that count, by id.
    pub instances: Vec<InstanceView>,
}

/// A running process of an agent, as far as the platform knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceView {
    /// The id that the process chose.
    pub id: String,
    /// Whether it said that it drains.
    pub draining: bool,
    /// Its last `active_tunnels`.
    pub tunnels: u64,
}

impl Registry {
    /// Enters an agent, or notes a new certificate for one that is there.
    pub(crate) fn add(&mut self, name: &str, labels: BTreeMap<String, String>, recorded_sha256: String) -> &Agent {
        let agent = Agent {
            id: uuid::Uuid::new_v4().to_string(),
            recorded_sha256: String::new(),
            labels,
            resources: Vec::new(),
            zone: None,
            cluster_internal: false,
            edge_rtts: BTreeMap::new(),
            heartbeat_at: None,
            instances: BTreeMap::new(),
        };
        let agent = self.0.entry(name.to_owned()).or_insert(agent);
        agent.recorded_sha256 = recorded_sha256;
        agent
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Agent> {
        self.0.remove(name)
    }

    /// By name or by UUID: the API accepts either in its paths (protocol 1.1).
    pub(crate) fn find(&self, name_or_id: &str) -> Option<(&str, &Agent)> {
        let by_id = || self.0.iter().find(|(_, agent)| agent.id == name_or_id);
        self.0.get_key_value(name_or_id).or_else(by_id).map(|(name, agent)| (name.as_str(), agent))
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Agent> {
        self.0.get_mut(name)
    }

    /// The agent whose latest certificate has this fingerprint.
    pub(crate) fn holding(&self, sha256: &str) -> Option<&Agent> {
        self.0.values().find(|agent| agent.recorded_sha256 == sha256)
    }

    pub(crate) fn view(&self, name: &str, now: Instant) -> Option<AgentView> {
        let (name, agent) = self.find(name)?;
        let online = agent.is_online(now);
        let instances = agent.instances.iter().filter(|(_, instance)| instance.is_fresh(now));
        Some(AgentView {
            id: agent.id.clone(),
            name: name.to_owned(),
            online,
            labels: if online { agent.labels.clone() } else { BTreeMap::new() },
            resources: if online { agent.resources.clone() } else { Vec::new() },
            zone: agent.zone.clone().filter(|_| online),
            cluster_internal: online && agent.cluster_internal,
            instances: instances
                .map(|(id, i)| InstanceView { id: id.clone(), draining: i.draining, tunnels: i.tunnels })
                .collect(),
        })
    }
}

impl Agent {
    pub(crate) fn is_online(&self, now: Instant) -> bool {
        self.heartbeat_at.is_some_and(|at| now.saturating_duration_since(at) <= PRESENCE)
    }

    /// Takes in a heartbeat; empty resources and labels mean "no change" (protocol 3.5).
    pub(crate) fn heartbeat(&mut self, body: &HeartbeatBody, now: Instant) {
        if !self.is_online(now) {
            self.resources.clear();
            // Labels of the join wait for the first heartbeat; those of earlier ones have expired.
            if self.heartbeat_at.is_some() {
                self.labels.clear();
            }
        }
        self.heartbeat_at = Some(now);
        if !body.resources.is_empty() {
            self.resources.clone_from(&body.resources);
        }
        if !body.labels.is_empty() {
            self.labels.clone_from(&body.labels);
        }
        if !body.edge_rtts.is_empty() {
            self.edge_rtts.clone_from(&body.edge_rtts);
        }
        let known = |zone: &&String| matches!(zone.as_str(), "in-cluster" | "internal" | "public");
        self.zone = body.zone.as_ref().filter(known).cloned();
        self.cluster_internal = body.cluster_internal;
        self.instances.retain(|_, instance| instance.is_fresh(now));
        if let Some(id) = &body.instance_id {
            let new = Instance { draining: false, tunnels: 0, has_relay: false, heartbeat_at: now };
            let instance = self.instances.entry(id.clone()).or_insert(new);
            instance.tunnels = body.active_tunnels;
            instance.heartbeat_at = now;
        }
    }

    /// How far an edge's bridges are from here, in milliseconds, as the last heartbeat that said so had it.
    pub(crate) fn edge_rtt(&self, edge: &str) -> Option<i64> {
        self.edge_rtts.get(edge).copied()
    }

    /// Unknown instances are accepted silently (protocol 3.5).
    pub(crate) fn drain(&mut self, instance_id: &str) {
        if let Some(instance) = self.instances.get_mut(instance_id) {
            instance.draining = true;
        }
    }

    /// The entry goes at once; the agent stays online until its heartbeat is too old (protocol 5.2).
    pub(crate) fn offline(&mut self, instance_id: &str) {
        self.instances.remove(instance_id);
    }

    /// The instance that gets a dial or redial: fresh, not draining, fewest tunnels.
    pub(crate) fn choose(&self, now: Instant) -> Option<String> {
        self.candidates(now).min_by_key(|(_, instance)| instance.tunnels).map(|(id, _)| id.clone())
    }

    /// The instance that gets a `relay_connect`: those not yet flagged come first, and the chosen one is flagged.
    pub(crate) fn choose_for_relay(&mut self, now: Instant) -> Option<String> {
        let order = |(_, instance): &(&String, &Instance)| (instance.has_relay, instance.tunnels);
        let chosen = self.candidates(now).min_by_key(order).map(|(id, _)| id.clone())?;
        if let Some(instance) = self.instances.get_mut(&chosen) {
            instance.has_relay = true;
        }
        Some(chosen)
    }

    fn candidates(&self, now: Instant) -> impl Iterator<Item = (&String, &Instance)> {
        self.instances.iter().filter(move |(_, instance)| instance.is_fresh(now) && !instance.draining)
    }

    /// Every instance that the table holds: those that `revoke` goes to.
    pub(crate) fn known_instances(&self) -> Vec<String> {
        self.instances.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
