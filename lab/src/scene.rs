//! The usual scene of a session: a platform with a bridge, a target, and the real agent that serves it.
//!
//! ```text
//!   client ──────────► bridge ◄── cable ◄── agent ──► target
//! ```
//!
//! The cable lies between agent and bridge only: what is done to it the client does not feel, but through the bridge.

use std::time::Duration;

use crate::agent::{Agent, Home, NAME, identity};
use crate::bridge::{Bridge, BridgeOptions, ClosedReport};
use crate::cable::Cable;
use crate::client::{Client, Options};
use crate::plane::{self, ControlPlane};
use crate::serve::Network;
use crate::targets::{Target, Tcp};

/// A name for this machine that the client uses for the API, so that `localhost` can mean the bridge to it.
const API_HOST: &str = "plane.localhost";

/// What differs from scene to scene.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The resource's type.
    pub kind: &'static str,
    /// More fields of the resource, each after a comma.
    pub fields: &'static str,
    /// More resources, each after a comma.
    pub resources: &'static str,
    /// `update.drain_timeout`.
    pub drain_timeout: &'static str,
    /// The bridge's.
    pub bridge: BridgeOptions,
    /// Whether sessions outlive the end of a connection, which today's platform does not grant.
    pub friendly: bool,
    /// The port of the target where it is none of the lab's.
    pub port: Option<u16>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            kind: "tcp",
            fields: "",
            resources: "",
            drain_timeout: "1s",
            bridge: BridgeOptions::default(),
            friendly: false,
            port: None,
        }
    }
}

impl Setting {
    /// For cuts that sessions survive.
    #[must_use]
    pub fn friendly() -> Self {
        Self { friendly: true, ..Self::default() }
    }
}

/// A platform with a bridge, and an agent that serves `target` as the resource `thing`.
#[derive(Debug)]
pub struct Scene {
    /// The platform.
    pub plane: ControlPlane,
    /// Its bridge.
    pub bridge: Bridge,
    /// Between agent and bridge.
    pub cable: Cable,
    /// What the agent forwards to.
    pub target: Target,
    /// The agent's.
    pub home: Home,
    /// It is connected to the platform.
    pub agent: Agent,
}

impl Scene {
    /// A strict platform and a `tcp` resource.
    #[must_use]
    pub fn new(binary: &str, behaviour: Tcp) -> Self {
        Self::of(binary, behaviour, Setting::default())
    }

    /// As `setting` says.
    ///
    /// # Panics
    /// Something cannot be started.
    #[must_use]
    pub fn of(binary: &str, behaviour: Tcp, setting: Setting) -> Self {
        let options = plane::Options { server_names: vec![API_HOST.to_owned()], ..plane::Options::default() };
        let plane = ControlPlane::start(options).expect("a control plane can be started");
        let bridge = Bridge::start(&plane, setting.bridge).expect("a bridge can be started");
        let cable = Cable::start(bridge.address()).expect("a cable can be laid");
        bridge.advertise("localhost", cable.address().port());
        if setting.friendly {
            plane.keep_sessions_on_close(true);
            bridge.report_closed(ClosedReport::Never);
        }
        let target = Target::tcp(&Network::Host, behaviour).expect("a target can be started");
        let port = setting.port.unwrap_or(target.address().port());
        let (kind, fields, more) = (setting.kind, setting.fields, setting.resources);
        let thing = format!("{{name: thing, type: {kind}, hostname: 127.0.0.1, port: {port}{fields}}}");
        let drain = setting.drain_timeout;
        let yaml = format!("resources: [{thing}{more}]\nupdate: {{drain_timeout: {drain}}}\n");
        let home = Home::of(binary, &plane, &yaml);
        let identity = identity(&plane, NAME);
        plane.register(&identity);
        home.store(&identity);
        let agent = home.connect(&plane);
        Self { plane, bridge, cable, target, home, agent }
    }

    /// A user with these manners who reaches the bridge without the cable.
    #[must_use]
    pub fn client(&self, options: Options) -> Client {
        let hosts = [("localhost".to_owned(), self.bridge.address())].into();
        let url = self.plane.url().replace("localhost", API_HOST);
        Client::new(&url, self.plane.web_ca_pem(), "token").with(Options { hosts, ..options })
    }

    /// A user who goes where the agent goes: to whichever bridge, and through the cable.
    #[must_use]
    pub fn client_anywhere(&self, options: Options) -> Client {
        Client::new(&self.plane.url(), self.plane.web_ca_pem(), "token").with(options)
    }

    /// A further bridge without a cable.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn another_bridge(&self, id: &str, match_wait: Duration) -> Bridge {
        let options = BridgeOptions {
            id: id.to_owned(),
            match_wait,
            closed_report: ClosedReport::Never,
            ..BridgeOptions::default()
        };
        Bridge::start(&self.plane, options).expect("a bridge can be started")
    }

    /// Sessions that the agent counts.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.home.status()["sessions"]["active"].as_u64().unwrap_or(u64::MAX)
    }

    /// Waits until the agent counts so many.
    #[must_use]
    pub fn wait_active(&self, count: u64, limit: Duration) -> bool {
        crate::agent::until(limit, || self.active() == count)
    }

    /// The value of a metric without labels.
    ///
    /// # Panics
    /// There is none of that name.
    #[must_use]
    pub fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.agent.get("/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }
}
