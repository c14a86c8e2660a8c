//! The control plane: an API that agents join, report to and take commands from, and that tests steer by method calls.
//!
//! It answers as the real platform does, in its unpleasant ways too (protocol chapters 1 to 6, 12 and 16), and is written
//! from the protocol alone: nothing here is shared with the agent, so that a misreading on one side cannot hide behind the
//! same misreading on the other. It lives in the test's process; nothing is stored.
//!
//! ```text
//!   test ──── methods of ControlPlane ────┐
//!                                         ▼
//!   agent ── HTTP ── api ─► faults ─► state{ agents, queues, … } ─► record ─► wait_for
//!                     └──► events (one feed per open stream) ◄── queues
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpSocket;

use crate::serve::{Network, Server};

mod agents;
mod api;
mod auth;
mod bridges;
mod ca;
mod catalogue;
mod connect;
mod events;
mod faults;
mod limits;
mod queues;
mod record;
mod relays;
mod reply;
mod schema;
mod sessions;
mod state;
mod tunnels;
mod version;
mod web;

pub use agents::{AgentView, InstanceView};
pub use bridges::BridgeView;
pub use ca::{CertificateAuthority, IssuedCertificate, IssuedIdentity, Role, SessionNames};
pub use connect::SessionFlaw;
pub use faults::{Endpoint, Fault};
pub use limits::RateLimits;
pub use record::{
    Heartbeat, InstanceReport, Join, Log, Observed, Renewal, RequestRecord, SentCommand, SessionEnd, Stream,
};
pub use sessions::SessionView;
pub use version::VersionReport;

pub(crate) use bridges::BridgeEntry;
pub(crate) use ca::hex;
pub(crate) use state::Shared;
pub(crate) use web::WebIdentity;

use state::{CertificatePolicy, State};

/// How a control plane is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose loopback it listens on. Default: this process's.
    pub network: Network,
    /// The port; 0, the default, asks for a free one.
    pub port: u16,
    /// HTTPS under the web CA (the default), or plain HTTP.
    pub tls: bool,
    /// How long identities are valid. Default: 8760 hours.
    pub certificate_lifetime: Duration,
    /// How far before now an identity's validity begins. Default: not at all, as on the platform.
    pub certificate_backdate: Duration,
    /// DNS names of the web certificate besides `localhost`.
    pub server_names: Vec<String>,
    /// Idle time after which a stream carries a `heartbeat` event. Default: 30 seconds.
    pub heartbeat_event_after: Duration,
    /// What the limiter allows. Default: the platform's 100 and 1000 requests a minute.
    pub rate_limits: RateLimits,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            network: Network::Host,
            port: 0,
            tls: true,
            certificate_lifetime: Duration::from_secs(8760 * 60 * 60),
            certificate_backdate: Duration::ZERO,
            server_names: Vec::new(),
            heartbeat_event_after: Duration::from_secs(30),
            rate_limits: RateLimits::default(),
        }
    }
}

/// A running control plane; it ends when this is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    shared: Arc<Shared>,
    held: Mutex<Port>,
    web: web::WebIdentity,
    options: Options,
    port: u16,
}

/// What holds the port.
#[derive(Debug, Default)]
struct Port {
    server: Option<Server>,
    /// While there is no server: bound but not listening, so that connections are refused and yet no other process is given
    /// the port.
    reserved: Option<TcpSocket>,
}

/// Life and addresses.
impl ControlPlane {
    /// Makes both authorities and begins to listen.
    ///
    /// # Errors
    /// The port cannot be bound (see [`Network::bind`]), or a server name is no DNS name.
    pub fn start(options: Options) -> io::Result<Self> {
        let web = web::WebIdentity::new(&options.server_names).map_err(io::Error::other)?;
        let policy =
            CertificatePolicy { lifetime: options.certificate_lifetime, backdate: options.certificate_backdate };
        let shared = Arc::new(Shared::new(State::new(policy, options.rate_limits)));
        let port = options.port;
        let mut plane = Self { shared, held: Mutex::default(), web, options, port };
        let server = plane.listen()?;
        plane.port = server.address().port();
        plane.held = Mutex::new(Port { server: Some(server), reserved: None });
        Ok(plane)
    }

    /// Where agents find it: `https://localhost:PORT`, or `http://127.0.0.1:PORT` without TLS.
    #[must_use]
    pub fn url(&self) -> String {
        if self.options.tls {
            format!("https://localhost:{}", self.port)
        } else {
            format!("http://127.0.0.1:{}", self.port)
        }
    }

    /// The authority of the API's HTTPS certificate. It is not the BAMF CA.
    #[must_use]
    pub fn web_ca_pem(&self) -> &str {
        &self.web.ca_pem
    }

    /// What another server needs to speak TLS under the same authority, as `localhost` and 127.0.0.1.
    #[must_use]
    pub fn web_tls(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.web.tls)
    }

    /// The BAMF CA's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> String {
        self.ca().pem().to_owned()
    }

    /// The BAMF CA, to mint identities that no join handed out.
    #[must_use]
    pub fn ca(&self) -> Arc<CertificateAuthority> {
        self.shared.with(|state| Arc::clone(&state.ca))
    }

    /// Refuses connections from now on and cuts those that are open.
    pub fn stop_listening(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // The listener has to go first; nobody can bind beside it.
        if held.server.take().is_some() {
            held.reserved = self.options.network.reserve(self.port);
        }
    }

    /// Listens again, on the same port.
    ///
    /// # Errors
    /// Somebody took the port meanwhile.
    pub fn resume(&self) -> io::Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.server.is_none() {
            held.server = Some(self.listen()?);
            drop(held.reserved.take());
        }
        Ok(())
    }

    fn listen(&self) -> io::Result<Server> {
        let tls = self.options.tls.then(|| Arc::clone(&self.web.tls));
        let handler = api::handler(&self.shared, self.options.heartbeat_event_after);
        Server::start(&self.options.network, self.port, tls, handler)
    }
}

/// Administration: what an operator would do in the platform's interface.
impl ControlPlane {
    /// A join token for this many joins: `bamf_` and 32 hex digits.
    #[must_use]
    pub fn issue_token(&self, uses: u32) -> String {
        self.shared.with(|state| state.tokens.issue(uses))
    }

    /// Makes a token worthless.
    pub fn revoke_token(&self, token: &str) {
        self.shared.with(|state| state.tokens.revoke(token));
    }

    /// Puts a new CA in place. Every identity of the old one is answered with 401 from now on (protocol 4.3).
    pub fn rotate_ca(&self) {
        let ca = Arc::new(CertificateAuthority::new());
        self.shared.with(|state| state.ca = ca);
    }

    /// Changes how long identities are valid that are given out from now on.
    pub fn set_certificate_lifetime(&self, lifetime: Duration) {
        self.shared.with(|state| state.policy.lifetime = lifetime);
    }

    /// Changes how far the validity of identities is back-dated that are given out from now on.
    pub fn set_certificate_backdate(&self, backdate: Duration) {
        self.shared.with(|state| state.policy.backdate = backdate);
    }

    /// Enters an agent whose identity was minted by [`Self::ca`], as if it had joined long ago. Returns its UUID.
    pub fn register(&self, identity: &IssuedIdentity) -> String {
        let sha256 = identity.sha256.clone();
        self.shared.with(|state| state.registry.add(&identity.name, BTreeMap::new(), sha256).id.clone())
    }

    /// Puts a certificate on the denylist, by SHA-256 of its DER in hex. If it is an agent's latest, the agent's instances
    /// are sent `revoke`.
    pub fn revoke_certificate(&self, sha256: &str) {
        self.shared.with(|state| state.revoke(&sha256.to_ascii_lowercase()));
    }

    /// Deletes an agent: its instances are sent `revoke`, later calls get 404, its certificate stays good for a new agent of
    /// that name (protocol 4.4). False if there is none.
    pub fn delete_agent(&self, name: &str) -> bool {
        self.shared.with(|state| state.delete_agent(name))
    }

    /// What the platform knows of an agent, by name or UUID.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<AgentView> {
        self.shared.with(|state| state.registry.view(name, state.now()))
    }

    /// What heartbeats are answered as `edge_probe_targets`: objects of `edge`, `host` and `port`. At first they are the
    /// named edges that have a bridge.
    pub fn set_edge_probe_targets(&self, targets: Vec<Value>) {
        self.shared.with(|state| state.edge_probe_targets = Some(targets));
    }
}

/// The version and where it is told.
impl ControlPlane {
    /// The version to report; at first there is none.
    pub fn set_version(&self, version: Option<&str>) {
        self.shared.with(|state| state.versions.set(version));
    }

    /// The one place that tells it; at first [`VersionReport::Endpoint`].
    pub fn report_version_at(&self, place: VersionReport) {
        self.shared.with(|state| state.versions.report_at(place));
    }

    /// Lets a further place tell a version of its own, so that places contradict each other.
    pub fn also_report_version_at(&self, place: VersionReport, version: &str) {
        self.shared.with(|state| state.versions.also_report(place, version));
    }
}

/// Observation. Lists hold the newest 4096 entries, oldest first.
impl ControlPlane {
    /// Joins that were answered with 201.
    #[must_use]
    pub fn joins(&self) -> Vec<Join> {
        self.shared.with(|state| state.seen.joins.to_vec())
    }

    /// How often the join endpoint was asked, whatever came of it.
    #[must_use]
    pub fn join_attempts(&self) -> usize {
        self.shared.with(|state| state.seen.join_attempts)
    }

    /// Accepted heartbeats.
    #[must_use]
    pub fn heartbeats(&self) -> Vec<Heartbeat> {
        self.shared.with(|state| state.seen.heartbeats.to_vec())
    }

    /// Renewals that gave out a certificate.
    #[must_use]
    pub fn renewals(&self) -> Vec<Renewal> {
        self.shared.with(|state| state.seen.renewals.to_vec())
    }

    /// Accepted drain messages.
    #[must_use]
    pub fn drains(&self) -> Vec<InstanceReport> {
        self.shared.with(|state| state.seen.drains.to_vec())
    }

    /// Accepted offline messages.
    #[must_use]
    pub fn offlines(&self) -> Vec<InstanceReport> {
        self.shared.with(|state| state.seen.offlines.to_vec())
    }

    /// Event streams that are open right now.
    #[must_use]
    pub fn open_streams(&self) -> Vec<Stream> {
        self.shared.with(|state| state.seen.open_streams.clone())
    }

    /// How many event streams were ever opened.
    #[must_use]
    pub fn stream_opens(&self) -> usize {
        self.shared.with(|state| state.seen.stream_opens)
    }

    /// All requests, the refused and faulted ones too.
    #[must_use]
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.shared.with(|state| state.seen.requests.to_vec())
    }

    /// Blocks until `condition` holds for what has been seen; false when it did not within `limit`. The condition runs under
    /// the state's lock, so it must not call this plane.
    #[must_use]
    pub fn wait_for(&self, limit: Duration, condition: impl FnMut(&Observed) -> bool) -> bool {
        self.shared.wait_for(limit, condition)
    }

    /// Blocks until this many heartbeats have ever been accepted.
    #[must_use]
    pub fn wait_for_heartbeats(&self, total: usize, limit: Duration) -> bool {
        self.wait_for(limit, |seen| seen.heartbeats.total() >= total)
    }

    /// Blocks until an event stream is open.
    #[must_use]
    pub fn wait_for_stream(&self, limit: Duration) -> bool {
        self.wait_for(limit, |seen| !seen.open_streams.is_empty())
    }

    /// Blocks until this many renewals have ever been granted.
    #[must_use]
    pub fn wait_for_renewals(&self, total: usize, limit: Duration) -> bool {
        self.wait_for(limit, |seen| seen.renewals.total() >= total)
    }
}

/// Steering: commands, and everything that can go wrong with them.
impl ControlPlane {
    /// Enqueues a command for the instance that the platform would choose: of those with a fresh heartbeat that do not drain,
    /// the one with the fewest tunnels. Returns its id, or `None` when there is no candidate.
    pub fn send(&self, agent: &str, event: &str, data: &Value) -> Option<String> {
        self.shared.with(|state| state.send(agent, event, data))
    }

    /// Writes bytes as they are to every open stream: half events, endless lines, broken JSON. Returns how many streams.
    pub fn send_raw_to_streams(&self, bytes: &[u8]) -> usize {
        self.shared.with(|state| state.order_streams(|| state::raw(bytes)))
    }

    /// Ends every stream's connection in the middle of an event. Returns how many there were.
    pub fn cut_streams(&self) -> usize {
        self.shared.with(|state| state.order_streams(|| events::Order::Cut))
    }

    /// Ends the body of every stream properly, as the API does when it shuts down. Returns how many there were.
    pub fn end_streams(&self) -> usize {
        self.shared.with(|state| state.order_streams(|| events::Order::End))
    }

    /// Keeps every stream open but sends nothing at all on it, neither commands nor `heartbeat` events, and the same on
    /// streams opened from now on. Commands are popped all the same, and lost. `false` ends that for all streams.
    pub fn silence_streams(&self, silent: bool) {
        self.shared.with(|state| {
            state.silence = silent;
            state.streams.values_mut().for_each(|steering| steering.silent = silent);
        });
    }

    /// Silences the streams that are open now, as if their connections were half-open; those opened later work.
    pub fn silence_open_streams(&self) {
        self.shared.with(|state| state.streams.values_mut().for_each(|steering| steering.silent = true));
    }

    /// Lets a fault happen to the next `times` requests of an endpoint. Faults of an endpoint are used up oldest first.
    pub fn inject(&self, endpoint: Endpoint, fault: Fault, times: u32) {
        self.shared.with(|state| state.faults.inject(endpoint, fault, times));
    }

    /// Forgets the faults that have not been used up.
    pub fn clear_faults(&self) {
        self.shared.with(|state| state.faults.clear());
    }

    /// Changes what the limiter allows.
    pub fn set_rate_limits(&self, limits: RateLimits) {
        self.shared.with(|state| state.limiter.limits = limits);
    }

    /// Pushes the clock of lifetimes forward: 180-second presence, 60-second queues, rate limits. Certificates live by the
    /// real clock.
    pub fn skip_time(&self, time: Duration) {
        self.shared.with(|state| state.skipped += time);
    }
}

#[cfg(test)]
pub(crate) mod tests;
