//! A platform with a bridge, an agent, and a web site behind it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bamf_lab::agent::{Agent, Home, LIMIT, NAME, identity, until};
use bamf_lab::bridge::{Bridge, BridgeOptions};
use bamf_lab::pattern::Pattern;
use bamf_lab::plane::{self, ControlPlane};
use bamf_lab::serve::Network;
use bamf_lab::targets::Target;
use bamf_lab::visitor::{Resource, Visitor};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

/// The file in which the agent keeps what it knows about bridges.
pub(crate) const MEMORY: &str = "relays.json";

/// As many connections as the platform expects (protocol 9.1).
pub(crate) const POOL: usize = 32;

/// How soon web requests must be served again after a restart. Seen: a few hundred milliseconds; machines that run many
/// tests at once are slow.
pub(crate) const SOON: Duration = Duration::from_secs(2);

pub(crate) struct Scene {
    pub(crate) plane: ControlPlane,
    pub(crate) bridge: Bridge,
    pub(crate) target: Target,
    pub(crate) home: Home,
    pub(crate) agent: Agent,
}

impl Scene {
    /// The site is the `http` resource `wiki`, and the relay is open.
    pub(crate) fn open() -> Self {
        Self::of("").opened()
    }

    /// With lines more for the resource; nobody has asked for the relay yet.
    pub(crate) fn of(extra: &str) -> Self {
        Self::with(|port| format!("{}\n", wiki(port, extra)))
    }

    /// With the resources, as list items, that `resources` makes of the site's port.
    pub(crate) fn with(resources: impl FnOnce(u16) -> String) -> Self {
        Self::in_home(resources, |_| {})
    }

    /// With changes to the home before the agent starts.
    pub(crate) fn in_home(resources: impl FnOnce(u16) -> String, furnish: impl FnOnce(&mut Home)) -> Self {
        let plane = ControlPlane::start(plane::Options::default()).unwrap();
        let bridge = Bridge::start(&plane, BridgeOptions::default()).unwrap();
        let target = Target::http(&Network::Host).unwrap();
        let resources = resources(target.address().port());
        let yaml = format!("resources:\n{resources}update: {{drain_timeout: 5s}}\n");
        let mut home = Home::of(BINARY, &plane, &yaml);
        furnish(&mut home);
        let identity = identity(&plane, NAME);
        plane.register(&identity);
        home.store(&identity);
        let agent = home.connect(&plane);
        Self { plane, bridge, target, home, agent }
    }

    /// Lets the platform ask for the relay, and waits until the pool is full.
    pub(crate) fn opened(self) -> Self {
        assert!(self.plane.ask_for_relay(NAME, "").unwrap().1);
        self.full();
        self
    }

    #[track_caller]
    pub(crate) fn full(&self) {
        assert!(self.bridge.wait_for(LIMIT, |bridge| bridge.relays(NAME) == POOL), "{}", self.agent.log());
    }

    /// Lets `end` end the agent, and starts it again after `meanwhile`. Everything else goes on.
    pub(crate) fn restarted(self, end: impl FnOnce(Agent), meanwhile: impl FnOnce(&Home, &Bridge)) -> Self {
        assert!(until(LIMIT, || self.memory().exists()), "{}", self.agent.log());
        let Self { plane, bridge, target, home, agent } = self;
        end(agent);
        meanwhile(&home, &bridge);
        let agent = home.start();
        Self { plane, bridge, target, home, agent }
    }

    /// Where the agent keeps what it knows about bridges.
    pub(crate) fn memory(&self) -> PathBuf {
        self.home.data_dir().join(MEMORY)
    }

    /// Somebody who visits the site.
    pub(crate) fn visitor(&self) -> Visitor {
        self.visitor_of(Resource::web("wiki", "127.0.0.1", self.target.address().port()))
    }

    pub(crate) fn visitor_of(&self, resource: Resource) -> Visitor {
        Visitor::new(self.bridge.internal_address(), NAME, resource)
    }

    /// Sends bytes to the bridge's port for the proxy, and reads until it closes.
    pub(crate) fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.bridge.internal_address()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(bytes.as_ref()).unwrap();
        let mut answer = Vec::new();
        // A reset ends it as well.
        drop(stream.read_to_end(&mut answer));
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A head of the visitor's with these lines more, after which the bridge closes.
    pub(crate) fn head(&self, method: &str, path: &str, lines: &str) -> String {
        self.visitor().head(method, path, &[]).replacen("\r\n", &format!("\r\nConnection: close\r\n{lines}"), 1)
    }

    /// The site is still there, over a connection that was there before.
    #[track_caller]
    pub(crate) fn still_serves(&self) {
        let answer = self.visitor().get("/still").unwrap();
        assert_eq!((answer.status, &answer.json()["path"]), (200, &"/still".into()), "{}", self.agent.log());
    }
}

/// The site as `http` resource, a list item.
pub(crate) fn wiki(port: u16, extra: &str) -> String {
    format!("  - {{name: wiki, type: http, hostname: 127.0.0.1, port: {port}, tunnel_hostname: wiki{extra}}}")
}

/// Asks until there is an answer from the site: how long that took, and how many attempts failed.
#[track_caller]
pub(crate) fn served(visitor: &Visitor) -> (Duration, usize) {
    let (began, mut failed) = (Instant::now(), 0);
    let answered = until(LIMIT, || {
        let good = visitor.get("/served").is_ok_and(|answer| answer.status == 200);
        failed += usize::from(!good);
        good
    });
    assert!(answered, "never served again");
    (began.elapsed(), failed)
}

/// Fails if `body` is not `length` bytes of the pattern.
#[track_caller]
pub(crate) fn is_pattern(body: &[u8], length: usize) {
    assert_eq!(body.len(), length);
    Pattern::default().check(body).unwrap();
}
