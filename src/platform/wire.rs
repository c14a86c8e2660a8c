//! The bodies of the platform's calls (protocol 3.5 and 6.2). Unknown fields are ignored everywhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Resource};

/// `POST /api/v1/agents/join`.
#[derive(Serialize)]
pub struct JoinRequest<'a> {
    /// The one-time token.
    pub join_token: &'a str,
    /// The name to register under.
    pub name: &'a str,
    /// Always an object: the platform refuses `null`.
    pub labels: &'a BTreeMap<String, String>,
}

/// The answer to join and to renew. Not `Debug`: it holds a private key.
#[derive(Deserialize)]
pub struct IssuedIdentity {
    /// The agent's UUID.
    pub agent_id: Option<String>,
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS#8.
    pub private_key: String,
    /// PEM. Renewals of some platforms may leave it out; the stored one then stays.
    pub ca_certificate: Option<String>,
}

/// `POST /api/v1/agents/{id}/heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeartbeatRequest {
    /// Every configured resource; each heartbeat overwrites the platform's list.
    pub resources: Vec<WireResource>,
    /// Labels of the agent.
    pub labels: BTreeMap<String, String>,
    /// False deletes the flag on the platform, so it is always sent.
    pub cluster_internal: bool,
    /// Left out when unset: anything else would delete the stored zone as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Without it the agent is online but gets no commands.
    pub instance_id: String,
    /// Sessions, those that wait for a redial included.
    pub active_tunnels: u64,
    /// Round-trip times to the edges in whole milliseconds; left out when empty.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub edge_rtts: BTreeMap<String, u64>,
}

impl HeartbeatRequest {
    /// The heartbeat of an agent with this configuration and nothing to do yet.
    #[must_use]
    pub fn new(config: &Config, instance_id: &str) -> Self {
        Self {
            resources: config.resources.iter().map(WireResource::from).collect(),
            labels: config.labels.clone(),
            cluster_internal: config.cluster_internal,
            zone: config.zone.clone(),
            instance_id: instance_id.to_owned(),
            active_tunnels: 0,
            edge_rtts: BTreeMap::new(),
        }
    }
}

/// One resource in a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WireResource {
    name: String,
    resource_type: String,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    hostname: String,
    #[serde(skip_serializing_if = "is_zero")]
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel_hostname: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    webhooks: Vec<WireWebhook>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_zero(port: &u16) -> bool {
    *port == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct WireWebhook {
    path: String,
    /// Never null: the platform refuses the whole heartbeat then (protocol 2.5).
    methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    source_cidrs: Vec<String>,
}

impl From<&Resource> for WireResource {
    fn from(resource: &Resource) -> Self {
        let webhooks = resource.webhooks.iter().map(|hook| WireWebhook {
            path: hook.path.clone(),
            methods: hook.methods.clone(),
            source_cidrs: hook.source_cidrs.clone(),
        });
        Self {
            name: resource.name.clone(),
            resource_type: resource.resource_type.clone(),
            labels: resource.labels.clone(),
            hostname: resource.hostname.clone(),
            port: resource.port,
            tunnel_hostname: resource.tunnel_hostname.clone(),
            webhooks: webhooks.collect(),
        }
    }
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeartbeatAnswer {
    /// Edges whose round-trip time the platform wants to know.
    pub edge_probe_targets: Vec<EdgeProbeTarget>,
}

/// An edge to probe (protocol 5.4).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct EdgeProbeTarget {
    /// Name of the edge; the default edge has the empty name.
    pub edge: String,
    /// Host to connect to.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
}

/// Where a bridge is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BridgeAddress {
    /// Host to dial, and the name that its certificate must have.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl BridgeAddress {
    /// False for what cannot be an address.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        self.port != 0 && (1..=253).contains(&self.host.len()) && self.host.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl std::fmt::Display for BridgeAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// `POST /api/v1/agents/{id}/drain`.
#[derive(Serialize)]
pub struct DrainRequest<'a> {
    /// The instance that should get no more commands.
    pub instance_id: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Dial, Webhook};

    fn resource(name: &str, resource_type: &str, hostname: &str, port: u16) -> Resource {
        Resource {
            name: name.into(),
            resource_type: resource_type.into(),
            hostname: hostname.into(),
            port,
            labels: BTreeMap::new(),
            tunnel_hostname: None,
            webhooks: Vec::new(),
            forward_session_token: false,
            dial: Dial::Auto,
        }
    }

    #[test]
    fn a_heartbeat_is_what_the_platform_expects() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../tests/vectors.json")).unwrap();
        let expected = &vectors["heartbeat_request_example"];
        let mut database = resource("orders-db", "postgres", "localhost", 5432);
        database.labels.insert("env".into(), "prod".into());
        let mut web = resource("ci-web", "http", "ci.internal", 8080);
        web.tunnel_hostname = Some("ci".into());
        web.webhooks = vec![Webhook {
            path: "/hooks/push/".into(),
            methods: vec!["POST".into()],
            source_cidrs: vec!["192.0.2.0/24".into()],
        }];
        let heartbeat = HeartbeatRequest {
            resources: vec![WireResource::from(&database), WireResource::from(&web)],
            labels: BTreeMap::from([("site".into(), "ams".into())]),
            cluster_internal: false,
            zone: Some("public".into()),
            instance_id: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
            active_tunnels: 2,
            edge_rtts: BTreeMap::from([("eu".into(), 12), ("us-east".into(), 88)]),
        };
        assert_eq!(&serde_json::to_value(heartbeat).unwrap(), expected);
    }

    #[test]
    fn empty_fields_are_left_out_and_labels_are_never_null() {
        let heartbeat = HeartbeatRequest {
            resources: vec![WireResource::from(&resource("x", "tcp", "", 0))],
            labels: BTreeMap::new(),
            cluster_internal: false,
            zone: None,
            instance_id: "i".into(),
            active_tunnels: 0,
            edge_rtts: BTreeMap::new(),
        };
        let text = serde_json::to_string(&heartbeat).unwrap();
        let expected = concat!(
            r#"{"resources":[{"name":"x","resource_type":"tcp","labels":{}}],"labels":{},"#,
            r#""cluster_internal":false,"instance_id":"i","active_tunnels":0}"#
        );
        assert_eq!(text, expected);
    }
}
