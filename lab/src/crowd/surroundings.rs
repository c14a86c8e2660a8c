//! What a crowd needs around the agent: a bridge in its strict behaviour, targets, and the resources that name them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Mix;
use super::meter::{Errand, Way};
use crate::bridge::{Bridge, BridgeOptions};
use crate::client::{AckPolicy, Client, Options};
use crate::plane::{ControlPlane, RateLimits};
use crate::serve::Network;
use crate::site::Site;
use crate::targets::{Target, Tcp};
use crate::visitor::{Resource, Visitor};

/// The agent's name on a site.
pub(super) const NAME: &str = "edge-1";
/// Relay connections that an agent keeps (protocol 9.1).
pub(super) const POOL: usize = 32;
/// How long a pool may take to fill.
const POOL_LIMIT: Duration = Duration::from_secs(30);

/// What the greeting target says.
pub(super) const GREETING: &[u8] = b"5.7.0-lab\0 who is there?";
/// Bytes a second of a session that downloads.
const STEADY: u64 = 96 << 10;
/// Bytes a second for somebody who takes less.
const GUSH: u64 = 4 << 20;

/// A type of resource, and the protocol that the client asks for in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) resource: &'static str,
    pub(super) protocol: Option<&'static str>,
}

impl Kind {
    const fn new(resource: &'static str, protocol: Option<&'static str>) -> Self {
        Self { resource, protocol }
    }

    /// Whether the agent dials before the client has said anything.
    pub(super) fn is_eager(self) -> bool {
        self.resource == "mysql"
    }
}

/// Framed and raw sessions in turn.
pub(super) const KINDS: [Kind; 9] = [
    Kind::new("tcp", None),
    Kind::new("ssh-audit", None),
    Kind::new("ssh", None),
    Kind::new("ssh", Some("web-ssh")),
    Kind::new("mysql", None),
    Kind::new("postgres", Some("web-db")),
    Kind::new("postgres", None),
    Kind::new("mysql", Some("web-db")),
    Kind::new("postgres-audit", None),
];

/// The types among them.
const TYPES: [&str; 6] = ["tcp", "ssh", "ssh-audit", "mysql", "postgres", "postgres-audit"];

/// Bridge and targets in a site's network.
#[derive(Debug)]
pub struct Surroundings {
    pub(super) bridge: Bridge,
    pub(super) network: Network,
    plane_url: String,
    web_ca_pem: String,
    targets: BTreeMap<&'static str, Target>,
    /// Where WebSockets and event streams go.
    streams: Target,
    /// Where all other web requests go.
    pages: Target,
    ask_for_relay: Relay,
}

/// How the platform is made to ask the agent for relay connections.
struct Relay(Box<dyn Fn() -> bool + Send + Sync>);

impl std::fmt::Debug for Relay {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Relay")
    }
}

impl Surroundings {
    /// Starts everything and writes it into the site's configuration, which an agent that runs already does not hear of. The
    /// platform has no rate limits from now on: members come in a crowd.
    ///
    /// # Errors
    /// A port or the configuration cannot be had.
    pub fn set_up(site: &Site) -> Result<Self, String> {
        let network = site.machine.network();
        let surroundings = Self::around(&site.plane, &network)?;
        site.offer(&surroundings.resources()).map_err(|error| error.to_string())?;
        Ok(surroundings)
    }

    fn around(plane: &ControlPlane, network: &Network) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("no bridge or target: {error}");
        plane.set_rate_limits(RateLimits { anonymous: u32::MAX, identified: u32::MAX });
        // No connection is to end because it had nothing to do.
        let hour = Duration::from_secs(60 * 60);
        let options = BridgeOptions { network: network.clone(), reaper_idle: hour, ..BridgeOptions::default() };
        let bridge = Bridge::start(plane, options).map_err(failed)?;
        let behaviours = [
            ("echo", Tcp::Echo),
            ("greeter", Tcp::Banner(GREETING.to_vec())),
            ("steady", Tcp::Portions(STEADY)),
            ("gush", Tcp::Portions(GUSH)),
            ("receipts", Tcp::Receipts),
        ];
        let mut targets = BTreeMap::new();
        for (name, behaviour) in behaviours {
            targets.insert(name, Target::tcp(network, behaviour).map_err(failed)?);
        }
        let shared = plane.shared();
        let ask = move || shared.with(|state| state.ask_for_relay(NAME, "")).is_some();
        Ok(Self {
            bridge,
            network: network.clone(),
            plane_url: plane.url(),
            web_ca_pem: plane.web_ca_pem().to_owned(),
            targets,
            streams: Target::http(network).map_err(failed)?,
            pages: Target::http(network).map_err(failed)?,
            ask_for_relay: Relay(Box::new(ask)),
        })
    }

    /// The lines for the agent's configuration.
    fn resources(&self) -> String {
        let mut lines = "resources:\n".to_owned();
        for (name, target) in self.session_targets() {
            let port = target.address().port();
            for kind in TYPES {
                lines.push_str(&format!(
                    "  - {{name: {name}-{kind}, type: {kind}, hostname: 127.0.0.1, port: {port}}}\n"
                ));
            }
        }
        for (name, target) in [("streams", &self.streams), ("pages", &self.pages)] {
            let port = target.address().port();
            lines.push_str(&format!(
                "  - {{name: {name}, type: http, hostname: 127.0.0.1, port: {port}, tunnel_hostname: {name}}}\n"
            ));
        }
        lines
    }

    /// The targets of sessions.
    pub(super) fn session_targets(&self) -> impl Iterator<Item = (&'static str, &Target)> {
        self.targets.iter().map(|(name, target)| (*name, target))
    }

    /// Connections that were accepted where each belongs to one session or stream.
    pub(super) fn accepted(&self) -> BTreeMap<&'static str, usize> {
        let targets = self.session_targets().chain([("streams", &self.streams)]);
        targets.map(|(name, target)| (name, target.seen().accepted)).collect()
    }

    /// What the targets have to say against what they received.
    pub(super) fn complaints(&self) -> Vec<String> {
        let targets = self.session_targets().chain([("streams", &self.streams), ("pages", &self.pages)]);
        let complaints = targets.map(|(name, target)| (name, target.seen().complaints));
        complaints.flat_map(|(name, all)| all.into_iter().map(move |one| format!("target `{name}`: {one}"))).collect()
    }

    /// A user of sessions of this kind, who does not come back when one breaks.
    pub(super) fn client(&self, kind: Kind, receive_buffer: usize) -> Client {
        let options = Options {
            reconnect_pauses: Vec::new(),
            acks: AckPolicy::EveryMs(50),
            protocol: kind.protocol.map(str::to_owned),
            receive_buffer,
            ..Options::robust()
        };
        Client::new(&self.plane_url, &self.web_ca_pem, "token").with(options)
    }

    /// Somebody who comes through the relay.
    pub(super) fn visitor(&self, errand: Errand) -> Visitor {
        let (name, target) =
            if Way::Relay(errand).is_stream() { ("streams", &self.streams) } else { ("pages", &self.pages) };
        let resource = Resource::web(name, "127.0.0.1", target.address().port());
        Visitor::new(self.bridge.internal_address(), NAME, resource)
    }

    /// Lets the agent fill its pool, if anybody will need it.
    pub(super) fn open_relay(&self, mix: Mix) -> Result<(), String> {
        if mix.through_relay() == 0 {
            return Ok(());
        }
        if !(self.ask_for_relay.0)() {
            return Err("the platform knows no agent to ask for relay connections".to_owned());
        }
        if self.bridge.wait_for(POOL_LIMIT, |bridge| bridge.relays(NAME) == POOL) {
            return Ok(());
        }
        Err(format!("{} relay connections of {POOL} came", self.bridge.relays(NAME)))
    }
}
