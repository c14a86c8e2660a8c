//! What the agent knows about itself, written by its tasks and read by whoever asks.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use semver::Version;
use tokio::sync::Notify;

use super::bridges::Bridges;
use crate::clock;
use crate::config::Config;
use crate::control::Status;
use crate::control::status::{Api, Certificate, Kept, Update};
use crate::identity::{Identity, instance::Instance};
use crate::relay;
use crate::telemetry::Build;
use crate::telemetry::metrics::Metrics;

/// Which of the two ways to the platform something was learned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Heartbeats.
    Heartbeat,
    /// The event stream.
    Stream,
}

#[derive(Debug)]
struct State {
    status: Status,
    heartbeat_accepted: bool,
    stream_open: bool,
    heartbeat_error: Option<String>,
    stream_error: Option<String>,
    /// Something that waiting does not mend, e.g. a renewal that fails.
    standing_error: Option<String>,
    /// The Secret that replicas share cannot be read or written.
    sharing_error: Option<String>,
}

/// A shared notice board.
#[derive(Clone, Debug)]
pub struct Board {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    /// The same facts as numbers.
    pub(crate) metrics: Metrics,
    /// Asked when somebody wants to know: it has its own numbers.
    relay: Arc<OnceLock<relay::Handle<Bridges>>>,
}

impl Board {
    /// The board of an agent that has just started.
    ///
    /// # Errors
    /// See [`Metrics::new`].
    pub fn new(config: &Config, build: &Build) -> prometheus::Result<Self> {
        let version = build.version.to_string();
        let status = Status {
            version: version.clone(),
            pid: Some(std::process::id()),
            agent_name: config.agent_name.clone(),
            started_at: Some(clock::rfc3339(clock::now())),
            api: Api { url: config.platform_url.to_string().trim_end_matches('/').to_owned(), ..Api::default() },
            update: Update { installed: version.clone(), ..Update::default() },
            identity: Kept::of(config),
            ..Status::default()
        };
        Ok(Self {
            state: Arc::new(Mutex::new(State {
                status,
                heartbeat_accepted: false,
                stream_open: false,
                heartbeat_error: None,
                stream_error: None,
                standing_error: None,
                sharing_error: None,
            })),
            changed: Arc::new(Notify::new()),
            metrics: Metrics::new(&version)?,
            relay: Arc::default(),
        })
    }

    /// The present status.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.lock();
        let mut status = state.status.clone();
        let relays = self.relay.get().map(relay::Handle::status).unwrap_or_default();
        status.relays = relays.into_iter().filter_map(|pool| serde_json::to_value(pool).ok()).collect();
        status.sessions.active = u64::try_from(self.metrics.sessions.active.get()).unwrap_or_default();
        status.sessions.adopted = self.metrics.sessions.adopted.get();
        status.sessions.lost = self.metrics.sessions.lost.get();
        status.api.connected = state.connected();
        if state.sharing_error.is_some() {
            status.identity.problem.clone_from(&state.sharing_error);
        }
        let errors = [&state.standing_error, &state.heartbeat_error, &state.stream_error, &state.sharing_error];
        status.api.last_error = errors.into_iter().flatten().next().cloned();
        status
    }

    /// From now on the relay is shown too.
    pub(super) fn show_relay(&self, relay: relay::Handle<Bridges>) {
        drop(self.relay.set(relay));
    }

    /// The text that a scrape gets.
    #[must_use]
    pub fn scrape(&self) -> Vec<u8> {
        if let Some(relay) = self.relay.get() {
            self.metrics.active_relay.set(i64::from(relay.is_active()));
            self.metrics.relay.show(&relay.counters(), relay.status().iter().map(|pool| pool.connections).sum());
        }
        self.metrics.render()
    }

    /// True when registered and connected.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.lock().connected()
    }

    /// The line for `systemctl status`.
    #[must_use]
    pub fn line(&self) -> String {
        let status = self.status();
        let until = status.certificate.as_ref().map_or("none", |certificate| certificate.not_after.as_str());
        let name = &status.agent_name;
        match (status.api.connected, &status.api.last_error) {
            (true, _) => format!(
                "connected to {} as {name}, {} sessions, certificate until {until}",
                status.api.url, status.sessions.active
            ),
            (false, Some(error)) => format!("not connected: {error}"),
            (false, None) => format!("connecting to {}", status.api.url),
        }
    }

    /// Ends with the first change after the call, not only after the first poll.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.changed).notified_owned()
    }

    /// Waits until the agent is connected, or is not.
    pub(crate) async fn connection(&self, wanted: bool) {
        loop {
            let changed = self.changed();
            if self.connected() == wanted {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn identify(&self, identity: &Identity, instance: &Instance) {
        self.update(|state| {
            identity.name.clone_into(&mut state.status.agent_name);
            state.status.certificate = Some(Certificate::from(identity));
            state.status.instance_id = Some(instance.instance_id.clone());
            if instance.agent_id.is_some() {
                state.status.agent_id.clone_from(&instance.agent_id);
            }
        });
        let expiry = identity.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.certificate_expiry.set(expiry.as_secs_f64());
    }

    pub(crate) fn works(&self, way: Way) {
        let outcome = match way {
            Way::Heartbeat => &self.metrics.heartbeats.with_label_values(&["accepted"]),
            Way::Stream => &self.metrics.stream_opens,
        };
        outcome.inc();
        self.update(|state| match way {
            Way::Heartbeat => {
                state.heartbeat_accepted = true;
                state.heartbeat_error = None;
                state.status.api.last_heartbeat = Some(clock::rfc3339(clock::now()));
            }
            Way::Stream => {
                state.stream_open = true;
                state.stream_error = None;
            }
        });
    }

    /// The way is closed; `error` says why where that is known.
    pub(crate) fn fails(&self, way: Way, error: Option<String>) {
        if way == Way::Heartbeat {
            self.metrics.heartbeats.with_label_values(&["failed"]).inc();
        }
        self.update(|state| match way {
            Way::Heartbeat => {
                state.heartbeat_accepted = false;
                state.heartbeat_error = error;
            }
            Way::Stream => {
                state.stream_open = false;
                state.stream_error = error;
            }
        });
    }

    pub(crate) fn standing_error(&self, error: Option<String>) {
        self.update(|state| state.standing_error = error);
    }

    /// Notes what is wrong with the Secret; true if that is news.
    pub(crate) fn sharing_error(&self, error: Option<String>) -> bool {
        if self.lock().sharing_error == error {
            return false;
        }
        self.update(|state| state.sharing_error = error);
        true
    }

    /// Notes what the API reports as its version, and whether that makes an update available.
    pub(crate) fn api_version(&self, reported: Option<&Version>, installed: &Version) {
        self.update(|state| {
            state.status.api.version = reported.map(ToString::to_string);
            let newer = reported.filter(|reported| *reported > installed && reported.pre.is_empty());
            state.status.update.available = newer.map(ToString::to_string);
        });
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        self.metrics.connected.set(i64::from(state.connected()));
        drop(state);
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while holding the board leaves plain values behind; they are still true enough to show.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    const fn connected(&self) -> bool {
        self.heartbeat_accepted && self.stream_open
    }
}
