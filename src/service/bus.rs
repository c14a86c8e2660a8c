//! systemd over D-Bus: read a unit, start, stop and restart it, and wait until the very job is over.
//!
//! A job is waited for by its path in `JobRemoved`, subscribed to *before* the job is asked for: the job can be over
//! before the answer that names it is read. `systemctl` would do the same in a process of its own but tell less.
//!
//! Three ways lead to the manager, tried in this order: the bus; PID 1's private socket, for root on machines without a
//! bus daemon (it speaks D-Bus peer to peer and sends its signals unasked); `systemctl`.

use std::collections::{BTreeMap, HashMap};
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use zbus::connection::Builder;
use zbus::export::futures_core::Stream;
use zbus::message::Type;

use zbus::{
    Connection, DynamicType, MatchRule, Message, MessageStream, ObjectPath, OwnedObjectPath, OwnedVariant, Variant,
};

use super::job::{Error, Verb};
use super::systemctl::Systemctl;
use super::unit::{ARGUMENTS, PROPERTIES, SEPARATOR, Unit};

const NAME: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";
pub(super) const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES_INTERFACE: &str = "org.freedesktop.DBus.Properties";

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// systemd answers in milliseconds; only an overloaded or dead one takes this long.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Jobs of other units end meanwhile, e.g. at boot. When it is full, reading from the bus waits.
const SIGNAL_QUEUE: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// Which instance of systemd manages the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// PID 1.
    System,
    /// The caller's user manager (`systemctl --user`).
    User,
}

/// A way to a service manager.
#[derive(Debug)]
pub struct Services {
    via: Via,
}

#[derive(Debug)]
enum Via {
    /// The bus or the private socket.
    DBus(Connection),
    Systemctl(Systemctl),
}

impl Services {
    /// Finds a way to the manager. It does not fail: without a connection `systemctl` will say what is wrong.
    pub async fn connect(manager: Manager) -> Self {
        let systemctl = || Via::Systemctl(Systemctl::new(manager));
        Self { via: connection(manager).await.map_or_else(systemctl, Via::DBus) }
    }

    /// The unit's present state.
    ///
    /// # Errors
    /// [`Error::NoUnit`] where there is none of this name.
    pub async fn unit(&self, name: &str) -> Result<Unit, Error> {
        let unit = match &self.via {
            Via::DBus(connection) => properties(connection, name).await?,
            Via::Systemctl(systemctl) => systemctl.show(name).await?,
        };
        if unit.loaded { Ok(unit) } else { Err(Error::NoUnit { unit: name.to_owned() }) }
    }

    /// Starts, stops or restarts the unit and waits until that is done, at most `limit`. For `Type=notify` that means:
    /// until the new process has said that it is ready.
    ///
    /// Not cancel safe in one sense: dropped in the middle, the job goes on in systemd.
    ///
    /// # Errors
    /// Where the job did not end with success; after [`Error::TooSlow`] and [`Error::Lost`] it may still do so.
    pub async fn run(&self, verb: Verb, unit: &str, limit: Duration) -> Result<(), Error> {
        match &self.via {
            Via::DBus(connection) => run_job(connection, verb, unit, limit).await,
            Via::Systemctl(systemctl) => systemctl.run(verb, unit, limit).await,
        }
    }

    /// Clears the unit's failed state and its start limit, which else refuse the start after a restore.
    ///
    /// # Errors
    /// Whatever the manager says.
    pub async fn reset_failed(&self, unit: &str) -> Result<(), Error> {
        match &self.via {
            Via::DBus(connection) => {
                let reply = call(connection, PATH, MANAGER, "ResetFailedUnit", &unit).await;
                reply.map(drop).map_err(|error| explain("reset the failed state of", unit, error))
            }
            Via::Systemctl(systemctl) => systemctl.reset_failed(unit).await,
        }
    }

    /// Takes the units out of what starts at boot; they go on running.
    ///
    /// # Errors
    /// Whatever the manager says.
    pub async fn disable(&self, units: &[String]) -> Result<(), Error> {
        match &self.via {
            Via::DBus(connection) => {
                let reply = call(connection, PATH, MANAGER, "DisableUnitFiles", &(units, false)).await;
                reply.map(drop).map_err(|error| explain("disable", &units.join(" "), error))
            }
            Via::Systemctl(systemctl) => systemctl.disable(units).await,
        }
    }

    /// Lets the manager read its unit files again.
    ///
    /// # Errors
    /// Whatever the manager says.
    pub async fn reload(&self) -> Result<(), Error> {
        match &self.via {
            Via::DBus(connection) => {
                let reply = call(connection, PATH, MANAGER, "Reload", &()).await;
                reply.map(drop).map_err(|error| explain("read again", "its unit files", error))
            }
            Via::Systemctl(systemctl) => systemctl.reload().await,
        }
    }
}

/// A connection to the manager; `None` where only `systemctl` is left.
pub(super) async fn connection(manager: Manager) -> Option<Connection> {
    for (way, builder) in ways(manager) {
        let building = builder.method_timeout(CALL_LIMIT).build();
        match timeout(CONNECT_LIMIT, building).await {
            Ok(Ok(connection)) => return Some(connection),
            Ok(Err(error)) => tracing::debug!(way, %error, "cannot reach systemd this way"),
            Err(_elapsed) => tracing::debug!(way, "reaching systemd this way takes too long"),
        }
    }
    None
}

fn ways(manager: Manager) -> Vec<(&'static str, Builder<'static>)> {
    let uid = nix::unistd::geteuid();
    match manager {
        Manager::System if uid.is_root() => {
            let private = Builder::address("unix:path=/run/systemd/private").p2p();
            vec![("the system bus", Builder::system()), ("PID 1's private socket", private)]
        }
        Manager::System => vec![("the system bus", Builder::system())],
        Manager::User => {
            let private = format!("unix:path=/run/user/{uid}/systemd/private");
            vec![
                ("the session bus", Builder::session()),
                ("the user manager's private socket", Builder::address(private.as_str()).p2p()),
            ]
        }
    }
}

async fn run_job(connection: &Connection, verb: Verb, unit: &str, limit: Duration) -> Result<(), Error> {
    let (action, deadline) = (verb.word(), Instant::now() + limit);
    let too_slow = |_elapsed| Error::TooSlow { action, unit: unit.to_owned(), limit };
    let asking = async {
        let removed = subscribe(connection).await?;
        let reply = call(connection, PATH, MANAGER, verb.method(), &(unit, "replace")).await?;
        Ok((removed, reply.body().deserialize::<OwnedObjectPath>()?))
    };
    let asked = timeout_at(deadline, asking).await.map_err(too_slow)?;
    let (mut removed, job) = asked.map_err(|error| explain(action, unit, error))?;
    let result = timeout_at(deadline, result_of(&mut removed, &job)).await.map_err(too_slow)?;
    match result.as_deref() {
        Some("done") => Ok(()),
        Some(result) => Err(Error::Job { action, unit: unit.to_owned(), result: result.to_owned() }),
        None => Err(Error::Lost { action, unit: unit.to_owned() }),
    }
}

/// A stream of `JobRemoved`. systemd sends signals on a bus only after `Subscribe`.
async fn subscribe(connection: &Connection) -> Result<MessageStream, zbus::Error> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(NAME)
        .path(PATH)
        .interface(MANAGER)
        .member("JobRemoved")
        .build()?;
    let stream = MessageStream::for_match_rule(rule, connection, Some(SIGNAL_QUEUE)).await?;
    match call(connection, PATH, MANAGER, "Subscribe", &()).await {
        Ok(_) => {}
        Err(error) if error_name(&error) == Some("org.freedesktop.systemd1.AlreadySubscribed") => {}
        Err(error) => return Err(error),
    }
    Ok(stream)
}

/// Reads signals until the job's own; `None` where the connection ends first.
async fn result_of(removed: &mut MessageStream, job: &OwnedObjectPath) -> Option<String> {
    loop {
        let message = poll_fn(|context| Pin::new(&mut *removed).poll_next(context)).await?.ok()?;
        let body = message.body();
        let Ok((_id, path, _unit, result)) = body.deserialize::<(u32, ObjectPath<'_>, &str, &str)>() else { continue };
        if path == **job {
            return Some(result.to_owned());
        }
    }
}

async fn properties(connection: &Connection, name: &str) -> Result<Unit, Error> {
    let asking = async {
        // LoadUnit and not GetUnit: a unit that is not running may have been unloaded.
        let reply = call(connection, PATH, MANAGER, "LoadUnit", &name).await?;
        let path: OwnedObjectPath = reply.body().deserialize()?;
        let mut texts = BTreeMap::new();
        for interface in [UNIT, SERVICE] {
            let reply = call(connection, path.as_str(), PROPERTIES_INTERFACE, "GetAll", &interface).await?;
            let all: HashMap<String, OwnedVariant> = reply.body().deserialize()?;
            texts.extend(PROPERTIES.iter().filter_map(|name| Some(((*name).to_owned(), text(all.get(*name)?)))));
            texts.extend(all.get("ExecStart").map(|commands| (ARGUMENTS.to_owned(), arguments(commands))));
        }
        Ok(Unit::from_properties(&texts))
    };
    asking.await.map_err(|error| explain("show", name, error))
}

/// The object of the unit that the caller's process belongs to. 0 is the caller as the kernel names it to the manager: a
/// pid from inside a namespace would be another process there.
pub(super) async fn own_unit(connection: &Connection) -> Result<OwnedObjectPath, zbus::Error> {
    call(connection, PATH, MANAGER, "GetUnitByPID", &0_u32).await?.body().deserialize()
}

/// One property: `GetAll` of a service makes systemd read its cgroup.
pub(super) async fn property(
    connection: &Connection,
    path: &str,
    interface: &str,
    name: &str,
) -> Result<OwnedVariant, zbus::Error> {
    call(connection, path, PROPERTIES_INTERFACE, "Get", &(interface, name)).await?.body().deserialize()
}

async fn call<B>(
    connection: &Connection,
    path: &str,
    interface: &str,
    method: &str,
    body: &B,
) -> Result<Message, zbus::Error>
where
    B: serde::Serialize + DynamicType,
{
    connection.call_method(Some(NAME), path, Some(interface), method, body).await
}

/// The command line of the first `ExecStart=`: `a(sasbttttuii)` has it second.
fn arguments(commands: &Variant<'_>) -> String {
    if let Variant::Array(commands) = commands
        && let Some(Variant::Structure(command)) = commands.first()
        && let Some(Variant::Array(words)) = command.fields().get(1)
    {
        return joined(words.iter().map(text));
    }
    String::new()
}

fn joined(entries: impl Iterator<Item = String>) -> String {
    entries.collect::<Vec<_>>().join(&SEPARATOR.to_string())
}

/// A property as a text. Of a list of structures (`ExecStart`, `EnvironmentFiles`) the first field of each counts, and of
/// `ExecStart` only the first command.
pub(super) fn text(value: &Variant<'_>) -> String {
    if let Variant::Str(text) = value {
        return text.to_string();
    }
    if let Variant::U32(number) = value {
        return number.to_string();
    }
    if let Variant::U64(number) = value {
        return number.to_string();
    }
    if let Variant::Structure(fields) = value {
        return fields.fields().first().map(text).unwrap_or_default();
    }
    if let Variant::Array(entries) = value {
        return joined(entries.iter().map(text));
    }
    String::new()
}

fn explain(action: &'static str, unit: &str, error: zbus::Error) -> Error {
    let unit = unit.to_owned();
    match error_name(&error) {
        Some("org.freedesktop.systemd1.NoSuchUnit") => Error::NoUnit { unit },
        Some(
            "org.freedesktop.DBus.Error.AccessDenied"
            | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
            | "org.freedesktop.DBus.Error.AuthFailed",
        ) => Error::NotPermitted { action, unit },
        _ => Error::Call { action, unit, source: Box::new(error) },
    }
}

fn error_name(error: &zbus::Error) -> Option<&str> {
    if let zbus::Error::MethodError(name, _, _) = error {
        return Some(name.as_str());
    }
    if let zbus::Error::FDO(known) = error {
        return fdo_name(known);
    }
    None
}

/// The one standard error that is told apart; zbus gives it a type of its own.
fn fdo_name(error: &zbus::fdo::Error) -> Option<&'static str> {
    if matches!(error, zbus::fdo::Error::AccessDenied(_)) {
        return Some("org.freedesktop.DBus.Error.AccessDenied");
    }
    if matches!(error, zbus::fdo::Error::InteractiveAuthorizationRequired(_)) {
        return Some("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired");
    }
    None
}

#[cfg(test)]
pub(super) mod tests;
