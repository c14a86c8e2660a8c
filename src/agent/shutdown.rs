//! The one place that knows the order of shutdown.
//!
//! Before all of it the service manager is asked what comes after this process: only it knows. Before a restart everything
//! is left to the next process ([`handover`]), and the platform hears nothing. Otherwise:
//!
//! 1. A new instance id is stored for the next start: `draining` sticks to an id on the platform (protocol 5.2).
//! 2. Drain: no more commands, while heartbeats go on.
//! 3. Sessions get `update.drain_timeout` to end by themselves, then web requests a few seconds; the rest is ended, and
//!    clients are told.
//! 4. The tasks end; no heartbeat may register the instance again.
//! 5. Offline: the platform forgets the instance now instead of in 180 s.
//!
//! Every step is limited, and a second signal skips what is left.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Context, Error, handover};
use crate::clock;
use crate::control::Announced;
use crate::http;
use crate::identity::Identity;
use crate::identity::instance::Instance;
use crate::platform::Failure;
use crate::service::ending::{self, Ending};
use crate::service::{fds, notify};

/// How long tasks may take to end once they were asked to.
pub(super) const TASK_LIMIT: Duration = Duration::from_secs(5);
/// How long web requests may take once sessions have ended.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long clients may take to hear that their sessions are ended.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// How long the platform may take for each of the two calls.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How long the answer to a join may take that was under way when the agent was asked to end.
const JOIN_LIMIT: Duration = Duration::from_secs(20);

/// The signals that end the agent.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn install() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one. Cancel safe.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: shutting down"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: shutting down"),
        }
    }
}

/// Ends an agent that has not joined yet. The platform registers a name once, so the answer to a join that is under way is
/// waited for and stored: the next start needs it.
pub(super) async fn after_joining(
    registered: impl Future<Output = Result<Option<Identity>, Error>>,
    signals: &mut Signals,
) -> Result<(), Error> {
    notify::stopping();
    tokio::select! {
        outcome = tokio::time::timeout(JOIN_LIMIT, registered) => match outcome {
            Ok(outcome) => outcome.map(drop),
            Err(_) => {
                tracing::error!("the platform did not answer the join within 20 s; it may have registered the name");
                Ok(())
            }
        },
        () = signals.next() => {
            tracing::error!("a second signal: the join under way is given up; the platform may have registered the name");
            Ok(())
        }
    }
}

/// What a shutdown has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Everything goes on in the next process; this one must only end.
    Everything,
    /// Nothing goes on.
    Nothing,
}

/// Whether the service manager restarts or stops the service, asked once the signal has come: then the unit has the job
/// that tells. Cancel safe; at most two seconds.
async fn why(announced: &Announced) -> Ending {
    let socket = fds::notify_socket().map(|socket| socket.to_string_lossy().into_owned());
    let said = ending::ask(socket.as_deref()).await;
    let ending = said.or_announced(announced.holds(clock::boottime()));
    match ending {
        Ending::Restart(_) if said == Ending::Unknown => {
            tracing::info!("SIGTERM: a restart of the service was announced")
        }
        _ if socket.is_none() => tracing::debug!("no service manager started this agent"),
        Ending::Restart(store) => tracing::info!(room = store.room(), "SIGTERM: systemd restarts the service"),
        Ending::Stop => tracing::info!("SIGTERM: systemd stops the service"),
        Ending::Unknown => tracing::warn!("SIGTERM: systemd does not say whether it restarts or stops the service"),
    }
    ending
}

/// Shuts down; `goodbye` says whether the platform is told.
pub(super) async fn in_order(context: &Context, announced: &Announced, signals: &mut Signals, goodbye: bool) -> Left {
    let shutting_down = async {
        if goodbye
            && let Ending::Restart(store) = why(announced).await
            && handover::release(context, store.room()).await
        {
            return Left::Everything;
        }
        notify::stopping();
        all_steps(context, goodbye).await;
        Left::Nothing
    };
    tokio::select! {
        left = shutting_down => left,
        () = signals.next() => {
            tracing::warn!("a second signal: the rest of the shutdown is skipped");
            Left::Nothing
        }
    }
}

async fn all_steps(context: &Context, goodbye: bool) {
    let session = context.session();
    let id = context.instance.instance_id.as_str();
    context.tunnels.leave();
    if goodbye {
        retire(context);
        limited("drain", session.client.drain(id)).await;
        drain_sessions(context).await;
    }
    context.tunnels.end_all();
    tokio::join!(context.tunnels.drained(GOODBYE_LIMIT), context.relay.drain(Duration::ZERO));
    let left = context.work.shut_down(Duration::ZERO).await + context.tasks.shut_down(TASK_LIMIT).await;
    if left > 0 {
        tracing::warn!(left, "tasks did not end in time");
    }
    if goodbye {
        limited("offline", session.client.offline(id)).await;
    }
    tracing::info!("bye");
}

/// Gives sessions the time to end by themselves.
async fn drain_sessions(context: &Context) {
    let (open, limit) = (context.tunnels.active(), context.config.update.drain_timeout);
    if open > 0 {
        tracing::info!(open, limit_s = limit.as_secs(), "waiting for sessions to end");
    }
    let left = context.tunnels.drained(limit).await;
    // Web requests are served until then: event streams do not end by themselves, and a relay that waits for them takes no
    // other request.
    let cut_off = context.relay.drain(limit.min(REQUEST_LIMIT)).await;
    if left + cut_off > 0 {
        tracing::warn!(sessions = left, requests = cut_off, "cut off (`update.drain_timeout` is over)");
    }
}

fn retire(context: &Context) {
    let directory = context.store.directory();
    if let Err(error) = Instance::load(directory).renewed().write(directory) {
        tracing::warn!(error = %http::chain(&error), "the next start will use the drained instance id again");
    }
}

async fn limited(step: &'static str, call: impl Future<Output = Result<(), Failure>>) {
    match tokio::time::timeout(CALL_LIMIT, call).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, step, "the platform was not told"),
        Err(_) => tracing::warn!(step, "the platform was not told within 5 s"),
    }
}
