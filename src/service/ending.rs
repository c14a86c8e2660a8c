//! What the service manager means by a SIGTERM: a restart, which sessions may survive, or the end of the service.
//!
//! The signal itself does not tell, and `ExecStop=` would run too early and as another process. systemd knows: while it
//! stops a unit, the unit has a *job*, and the job's type says what comes after the stop.
//!
//! ```text
//! SIGTERM ── $NOTIFY_SOCKET? ── whose unit am I? ── its job? ─┬─ restart, start (queued behind the stop) ──► Restart
//!                 │ none                                      ├─ stop ─────────────────────────────────────► Stop
//!                 ▼                                           └─ none: somebody sent the signal ─┐
//!               Stop                                     `Restart=` after a clean exit ? Restart : Stop
//! ```
//!
//! Asked over the bus and never of the `systemctl` program: what cannot be reached from here cannot be reached from there.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use zbus::{Connection, OwnedObjectPath, Variant};

use super::bus::{self, Manager};

/// The whole question. systemd answers in milliseconds, and whoever stops the service waits meanwhile.
const LIMIT: Duration = Duration::from_secs(2);
/// A job can be replaced between its name and its type, as when `systemctl start` follows `systemctl stop`.
const JOB_TRIES: usize = 3;
const JOB: &str = "org.freedesktop.systemd1.Job";

/// What comes after this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Another process of the same unit, at once.
    Restart(Store),
    /// Nothing.
    Stop,
    /// The service manager did not say.
    Unknown,
}

/// The unit's descriptor store; `None` is what the manager did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Store {
    /// How many descriptors it may hold (`FileDescriptorStoreMax=`).
    pub limit: Option<u32>,
    /// How many it holds; adopted ones stay until they are removed.
    pub held: Option<u32>,
}

impl Store {
    /// How many more descriptors fit.
    #[must_use]
    pub fn room(&self) -> Option<u32> {
        Some(self.limit?.saturating_sub(self.held?))
    }
}

impl Ending {
    /// Where the manager did not say, what was announced over the control socket counts. Where it did, nothing else does.
    #[must_use]
    pub fn or_announced(self, restart_announced: bool) -> Self {
        match self {
            Self::Unknown if restart_announced => Self::Restart(Store::default()),
            Self::Restart(_) | Self::Stop | Self::Unknown => self,
        }
    }
}

/// Asks the service manager. `notify_socket` is `$NOTIFY_SOCKET`, which only a service manager sets; without one there is
/// nobody to ask and nobody who would start the agent again. Takes at most two seconds.
pub async fn ask(notify_socket: Option<&str>) -> Ending {
    let Some(manager) = notify_socket.map(manager_behind) else { return Ending::Stop };
    let began = Instant::now();
    let ending = limited(async { of_unit(&bus::connection(manager).await?).await }).await;
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    tracing::debug!(?ending, took_us, "systemd was asked what comes after this process");
    ending
}

async fn limited(asking: impl Future<Output = Option<Ending>>) -> Ending {
    timeout(LIMIT, asking).await.ok().flatten().unwrap_or(Ending::Unknown)
}

/// A user manager's socket lies in its `$XDG_RUNTIME_DIR`, PID 1's elsewhere or in no directory at all.
fn manager_behind(notify_socket: &str) -> Manager {
    if notify_socket.starts_with("/run/user/") { Manager::User } else { Manager::System }
}

/// What the manager says about the caller's unit; `None` where it does not answer.
async fn of_unit(connection: &Connection) -> Option<Ending> {
    match facts(connection).await {
        Ok(facts) => Some(judge(&facts)),
        Err(error) => {
            tracing::debug!(%error, "systemd does not say what comes after this process");
            None
        }
    }
}

/// What the manager says about the unit.
#[derive(Debug, Default)]
struct Facts {
    /// The type of the job that the unit has.
    job: Option<String>,
    /// `Restart=`; empty for what is no service.
    restart: String,
    store: Store,
}

async fn facts(connection: &Connection) -> Result<Facts, zbus::Error> {
    let unit = bus::own_unit(connection).await?;
    let of_service = |name| bus::property(connection, unit.as_str(), bus::SERVICE, name);
    let (job, restart, limit, held) = tokio::join!(
        job(connection, &unit),
        of_service("Restart"),
        of_service("FileDescriptorStoreMax"),
        of_service("NFileDescriptorStore"),
    );
    // Older managers and units of other kinds lack some of these, which says enough.
    let restart = restart.map(|word| bus::text(&word)).unwrap_or_default();
    let number =
        |value: Result<zbus::OwnedVariant, zbus::Error>| value.ok().and_then(|value| u32::try_from(value).ok());
    Ok(Facts { job: job?, restart, store: Store { limit: number(limit), held: number(held) } })
}

/// The type of the unit's job.
async fn job(connection: &Connection, unit: &OwnedObjectPath) -> Result<Option<String>, zbus::Error> {
    let mut tries = JOB_TRIES;
    loop {
        let named = bus::property(connection, unit.as_str(), bus::UNIT, "Job").await?;
        let Some(path) = path_of(&named) else { return Ok(None) };
        tries -= 1;
        match bus::property(connection, path, JOB, "JobType").await {
            Ok(kind) => return Ok(Some(bus::text(&kind))),
            Err(error) if tries == 0 => return Err(error),
            Err(error) => tracing::debug!(%error, "the job is gone already"),
        }
    }
}

/// The path in `(uo)`, id and path of a job; id 0 is no job.
fn path_of<'a>(named: &'a Variant<'_>) -> Option<&'a str> {
    let Variant::Structure(named) = named else { return None };
    match named.fields() {
        [Variant::U32(id), Variant::ObjectPath(path)] if *id != 0 => Some(path.as_str()),
        _ => None,
    }
}

/// The words are those of systemd's `job_type_to_string` and of systemd.service(5).
fn judge(facts: &Facts) -> Ending {
    match facts.job.as_deref() {
        // `start`: asked for while the unit was on its way down, so it waits for the end of this process.
        Some("restart" | "try-restart" | "reload-or-restart" | "reload-or-start" | "start") => {
            Ending::Restart(facts.store)
        }
        Some("stop") => Ending::Stop,
        // Jobs that end no process: somebody else sent the signal.
        None | Some("nop" | "verify-active" | "reload" | "try-reload") => match facts.restart.as_str() {
            "always" | "on-success" => Ending::Restart(facts.store),
            _ => Ending::Stop,
        },
        Some(_) => Ending::Unknown,
    }
}

#[cfg(test)]
mod tests;
