//! Sessions through the real agent: from a client over a bridge to a target, with everything that breaks on the way.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};

use bamf_lab::agent::{Agent, Home, LIMIT, NAME, identity};
use bamf_lab::bridge::{Bridge, BridgeOptions};
use bamf_lab::client::{AckPolicy, Client, Options};
use bamf_lab::pattern::Pattern;
use bamf_lab::plane::{self, ControlPlane};
use bamf_lab::serve::Network;
use bamf_lab::targets::{Target, Tcp, Then};

const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");

/// A platform with a bridge, and an agent that serves `target` as the resource `thing`.
struct Scene {
    plane: ControlPlane,
    bridge: Bridge,
    target: Target,
    home: Home,
    agent: Agent,
}

impl Scene {
    fn new(behaviour: Tcp) -> Self {
        Self::of("tcp", behaviour, "")
    }

    /// With lines more for the resource.
    fn of(kind: &str, behaviour: Tcp, extra: &str) -> Self {
        let plane = ControlPlane::start(plane::Options::default()).unwrap();
        let bridge = Bridge::start(&plane, BridgeOptions::default()).unwrap();
        let target = Target::tcp(&Network::Host, behaviour).unwrap();
        let port = target.address().port();
        let resource = format!("{{name: thing, type: {kind}, hostname: 127.0.0.1, port: {port}{extra}}}");
        let home = Home::of(BINARY, &plane, &format!("resources: [{resource}]\nupdate: {{drain_timeout: 1s}}\n"));
        let identity = identity(&plane, NAME);
        plane.register(&identity);
        home.store(&identity);
        let agent = home.connect(&plane);
        Self { plane, bridge, target, home, agent }
    }

    fn client(&self) -> Client {
        Client::new(&self.plane.url(), self.plane.web_ca_pem(), "token").with(Options::robust())
    }
}

#[test]
fn bytes_go_both_ways_and_the_client_ends_it() {
    let scene = Scene::new(Tcp::Echo);
    let pipe = scene.client().open("thing").unwrap();
    (&pipe).write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    (&pipe).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    assert_eq!(scene.home.status()["sessions"]["active"], 1);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    scene.agent.expect("the client closed it");
    assert_eq!(scene.target.seen().accepted, 1);
    assert_eq!(scene.bridge.handshakes(), 2);
}

#[test]
fn a_target_that_sends_a_lot_and_ends_is_read_to_the_last_byte() {
    const TOTAL: u64 = 64 << 20;
    let scene = Scene::new(Tcp::Source(TOTAL, Then::Close));
    let pipe =
        scene.client().with(Options { acks: AckPolicy::EveryMs(50), ..Options::robust() }).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match (&pipe).read(&mut buffer).unwrap() {
            0 => break,
            count => pattern.check(&buffer[..count]).unwrap(),
        }
    }
    assert_eq!(pattern.position(), TOTAL);
    scene.agent.expect("the target ended it");
}
