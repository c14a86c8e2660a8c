//! A bridge: the mutual-TLS rendezvous of clients and agents, and the relay that the proxy finds agents behind.
//!
//! It behaves as the real one does, seen from the outside (protocol 7.4, 7.7, 9 and 12.2), with what is bad about it, and
//! is written from the protocol alone. It runs on two threads of its own and reports to its control plane by method calls.
//!
//! ```text
//!   client ─TLS─► peer ─► meeting ─► splice ◄─ meeting ◄─ peer ◄─TLS─ agent
//!                   └────────────► pool ◄──────────────────┘ (RELAY)
//!   visitor ─HTTP─► relay ───────────┘
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

use crate::plane::{BridgeEntry, ControlPlane, Role};
use crate::serve::Network;

mod ahead;
mod http;
mod life;
mod link;
mod meeting;
mod peer;
mod pool;
mod relay;
mod splice;
mod tls;

pub use splice::{Cut, SpliceView};
pub use tls::Certificate;
pub(crate) use tls::server;
pub use tls::server_config;

use life::{Base, Life, Running};

/// When a bridge tells the platform that a tunnel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedReport {
    /// Before it closes the connections: a client that reconnects always finds the record gone.
    Before,
    /// This long after it has closed them: a client may win the race, and lose the renewed record to the late report.
    After(Duration),
    /// Never.
    Never,
}

/// How a bridge is set up.
#[derive(Clone, Debug)]
pub struct BridgeOptions {
    /// Its id: the CN of its certificate, and what session certificates have to name.
    pub id: String,
    /// The host that agents and clients are told, and that its certificate is for.
    pub host: String,
    /// The port that they are told; absent, it is the one that it listens on.
    pub advertised_port: Option<u16>,
    /// Its edge; empty, the default, for the unnamed one.
    pub edge: String,
    /// Whose loopback it listens on.
    pub network: Network,
    /// The port for peers; 0, the default, asks for a free one.
    pub port: u16,
    /// What is wrong with its certificate.
    pub certificate: Certificate,
    /// How long one end of a session waits for the other. Default: 30 seconds.
    pub match_wait: Duration,
    /// How long a proxied request waits for a free relay connection. Default: 10 seconds.
    pub relay_wait: Duration,
    /// How often the reaper comes. Default: every minute.
    pub reaper_period: Duration,
    /// How long ago the last answer of a relay connection may be. Default: 5 minutes.
    pub reaper_idle: Duration,
    /// When the end of a tunnel is reported. Default: before the connections are closed.
    pub closed_report: ClosedReport,
}

impl Default for BridgeOptions {
    fn default() -> Self {
        Self {
            id: "bridge-0".to_owned(),
            host: "localhost".to_owned(),
            advertised_port: None,
            edge: String::new(),
            network: Network::Host,
            port: 0,
            certificate: Certificate::Proper,
            match_wait: Duration::from_secs(30),
            relay_wait: Duration::from_secs(10),
            reaper_period: Duration::from_secs(60),
            reaper_idle: Duration::from_secs(5 * 60),
            closed_report: ClosedReport::Before,
        }
    }
}

/// Which connections of a pool to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reap {
    /// The first of the list, the one that the next request would use.
    One,
    /// All of them, busy ones too.
    All,
}

/// A bridge. When this is dropped it ends as if it were killed.
#[derive(Debug)]
pub struct Bridge {
    base: Arc<Base>,
    port: u16,
    internal: SocketAddr,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Running(Running),
    /// Ports that nobody else may take meanwhile.
    Down(#[expect(dead_code, reason = "held, not read")] [Option<TcpSocket>; 2]),
}

/// Life and addresses.
impl Bridge {
    /// Begins to listen and registers with the control plane.
    ///
    /// # Errors
    /// A port cannot be bound, or the id or host does not fit into a certificate.
    pub fn start(plane: &ControlPlane, options: BridgeOptions) -> io::Result<Self> {
        let tls = tls::server(&plane.ca(), &options.id, &options.host, &options.certificate)?;
        let peers = options.network.bind(options.port)?;
        let visitors = options.network.bind(0)?;
        let (port, internal) = (peers.local_addr()?.port(), visitors.local_addr()?);
        let base = Arc::new(Base::new(plane.shared(), options, tls));
        let running = Running::start(&base, peers, visitors)?;
        let bridge = Self { base, port, internal, state: Mutex::new(State::Running(running)) };
        bridge.register();
        Ok(bridge)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.base.options.id
    }

    /// The port that it listens on for peers, whichever it advertises.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens for peers.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.internal.ip(), self.port)
    }

    /// Its plain HTTP port, for the proxy.
    #[must_use]
    pub const fn internal_address(&self) -> SocketAddr {
        self.internal
    }

    /// Changes the address that agents and clients are told; the certificate stays.
    pub fn advertise(&self, host: &str, port: u16) {
        self.base.plane.with(|plane| plane.bridges.advertise(&self.base.options.id, host, port));
    }

    /// Ends everything at once: connections are reset, nothing is reported, the platform takes it for alive for 60 seconds.
    pub fn kill(&self) {
        if let Some(running) = self.take_down() {
            running.kill();
            self.base.plane.with(|plane| {
                let now = plane.now();
                plane.bridges.silence(&self.base.options.id, now);
            });
        }
        self.hold_ports();
    }

    /// Stops as on SIGTERM: tunnels are closed at once and reported, and the platform knows that it is gone.
    pub fn stop(&self) {
        if let Some(running) = self.take_down() {
            self.base.plane.with(|plane| plane.bridges.sign_off(&self.base.options.id));
            running.stop();
        }
        self.hold_ports();
    }

    /// Listens again on the same ports, with nothing remembered but what was counted and ordered. Its certificate is new, of
    /// the CA that is in place.
    ///
    /// # Errors
    /// Somebody took a port meanwhile.
    pub fn restart(&self) -> io::Result<()> {
        self.kill();
        self.present(&self.base.switches(|switches| switches.certificate.clone()))?;
        let network = &self.base.options.network;
        let (peers, visitors) = (network.bind(self.port)?, network.bind(self.internal.port())?);
        *self.state() = State::Running(Running::start(&self.base, peers, visitors)?);
        self.register();
        Ok(())
    }

    fn register(&self) {
        let options = &self.base.options;
        let known = self.base.plane.with(|plane| plane.bridges.view(&options.id));
        let port = options.advertised_port.unwrap_or(self.port);
        // What was advertised by order outlives a restart.
        let (host, port) = known.map_or_else(|| (options.host.clone(), port), |known| (known.host, known.port));
        let entry = BridgeEntry {
            id: options.id.clone(),
            host,
            port,
            edge: options.edge.clone(),
            internal: self.internal,
            load: Arc::clone(&self.base.load),
        };
        self.base.plane.with(|plane| plane.bridges.register(entry));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_down(&self) -> Option<Running> {
        match std::mem::replace(&mut *self.state(), State::Down([None, None])) {
            State::Running(running) => Some(running),
            State::Down(_) => None,
        }
    }

    fn hold_ports(&self) {
        let network = &self.base.options.network;
        *self.state() = State::Down([network.reserve(self.port), network.reserve(self.internal.port())]);
    }

    fn alive<T: Default>(&self, act: impl FnOnce(&Arc<Life>) -> T) -> T {
        match &*self.state() {
            State::Running(running) => act(&running.life),
            State::Down(_) => T::default(),
        }
    }
}

/// Steering.
impl Bridge {
    /// Ends the tunnels of a session; returns how many there were.
    pub fn cut(&self, session: &str, cut: Cut) -> usize {
        self.alive(|life| life.splices.cut(session, cut))
    }

    /// Stops forwarding on the tunnels of a session, or goes on; nothing is lost. Returns how many there were.
    pub fn stall(&self, session: &str, stall: bool) -> usize {
        self.alive(|life| life.splices.stall(session, stall))
    }

    /// Whether both ends of sessions wait in vain from now on.
    pub fn never_match(&self, never: bool) {
        self.base.switches(|switches| switches.never_match = never);
    }

    /// When ends of tunnels are reported from now on.
    pub fn report_closed(&self, report: ClosedReport) {
        self.base.switches(|switches| switches.closed_report = report);
    }

    /// Shows another certificate to connections from now on.
    ///
    /// # Errors
    /// A host name does not fit into a certificate.
    pub fn present(&self, certificate: &Certificate) -> io::Result<()> {
        let options = &self.base.options;
        let ca = self.base.plane.with(|plane| Arc::clone(&plane.ca));
        let tls = tls::server(&ca, &options.id, &options.host, certificate)?;
        self.base.switches(|switches| {
            switches.tls = tls;
            switches.certificate = certificate.clone();
        });
        Ok(())
    }

    /// Closes relay connections of an agent as the reaper does; returns how many.
    pub fn reap(&self, agent: &str, which: Reap) -> usize {
        let most = if which == Reap::One { 1 } else { usize::MAX };
        self.alive(|life| life.reap(agent, most))
    }
}

/// Observation. Counts go on over restarts.
impl Bridge {
    /// Completed TLS handshakes, tunnels and relays and probes.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        self.base.note(|seen| seen.handshakes)
    }

    /// Handshakes that failed, whoever was to blame.
    #[must_use]
    pub fn failed_handshakes(&self) -> usize {
        self.base.note(|seen| seen.failed_handshakes)
    }

    /// Completed handshakes with certificates of this end of a session.
    #[must_use]
    pub fn session_handshakes(&self, session: &str, role: Role) -> usize {
        self.base.note(|seen| seen.by_session.get(&(session.to_owned(), role)).copied().unwrap_or(0))
    }

    /// Relay connections that were ever registered for an agent.
    #[must_use]
    pub fn relays_ever(&self, agent: &str) -> usize {
        self.base.note(|seen| seen.relays.get(agent).copied().unwrap_or(0))
    }

    /// Relay connections in an agent's pool.
    #[must_use]
    pub fn relays(&self, agent: &str) -> usize {
        self.alive(|life| life.pool.size(agent).0)
    }

    /// Relay connections in an agent's pool that carry a request right now.
    #[must_use]
    pub fn busy_relays(&self, agent: &str) -> usize {
        self.alive(|life| life.pool.size(agent).1)
    }

    /// Relay connections that left an agent's pool for a stream or an upgrade and have not ended.
    #[must_use]
    pub fn detached_relays(&self, agent: &str) -> usize {
        self.alive(|life| life.pool.detached(agent))
    }

    /// Peers that were turned away in silence after their header lines.
    #[must_use]
    pub fn turned_away(&self) -> usize {
        self.base.note(|seen| seen.turned_away)
    }

    /// Peers that others have to match.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.alive(|life| life.meeting.pending())
    }

    /// The tunnels that stand.
    #[must_use]
    pub fn splices(&self) -> Vec<SpliceView> {
        self.alive(|life| life.splices.view())
    }

    /// Bytes of all tunnels that were not killed, up and down.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        // Under one lock with the end of a tunnel, which moves its bytes from here to there.
        self.base.note(|seen| {
            let finished = (seen.finished_up, seen.finished_down);
            self.splices().iter().fold(finished, |(up, down), splice| (up + splice.up, down + splice.down))
        })
    }

    /// Interim responses that were taken for final ones, as the platform's bridge takes them.
    #[must_use]
    pub fn interim_responses(&self) -> usize {
        self.base.note(|seen| seen.interim_taken_as_final)
    }

    /// How often a relay connection said something that nobody had asked for.
    #[must_use]
    pub fn unsolicited(&self) -> usize {
        self.base.note(|seen| seen.unsolicited)
    }

    /// Blocks until `condition` holds; false when it did not within `limit`.
    #[must_use]
    pub fn wait_for(&self, limit: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let begun = Instant::now();
        loop {
            if condition(self) {
                return true;
            }
            let Some(left) = limit.checked_sub(begun.elapsed()) else { return false };
            self.base.wait_for_news(left);
        }
    }
}

#[cfg(test)]
mod tests;
