//! Tells the platform regularly that the agent is there (protocol chapter 5).

use std::time::Duration;

use super::board::Way;
use super::retry::Retry;
use super::{Context, Session};
use crate::http;
use crate::platform::wire::HeartbeatRequest;

/// How long an answer may take that is awaited when the agent shuts down.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// The platform forgets an agent after 180 s, so failures are retried at least this often.
const RETRY_CAP: Duration = Duration::from_secs(60);

pub(super) async fn run(context: Context) {
    let stop = context.tasks.stop_token();
    let mut replaced = context.session.subscribe();
    let cap = context.config.reconnect_max_delay.min(RETRY_CAP);
    let mut retry = Retry::new(Way::Heartbeat, context.config.reconnect_base_delay, cap);
    let mut body = HeartbeatRequest::new(&context.config, &context.instance.instance_id);
    loop {
        let session = replaced.borrow_and_update().clone();
        body.active_tunnels = context.tunnels.active() as u64;
        body.edge_rtts = context.edges.measured();
        // What relays have measured is smoother than a single probe (protocol 5.4).
        body.edge_rtts.extend(context.relay.rtts());
        let beat = beat(&context, &session, &body, &mut retry);
        tokio::pin!(beat);
        let wait = tokio::select! {
            wait = &mut beat => wait,
            () = stop.cancelled() => {
                // A heartbeat that the platform carries out after `offline` would enter the instance again for 180 s.
                drop(tokio::time::timeout(LAST_ANSWER, beat).await);
                return;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // A new certificate is used at once: only then is the one before given up.
            Ok(()) = replaced.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One heartbeat; returns how long to wait for the next.
async fn beat(context: &Context, session: &Session, body: &HeartbeatRequest, retry: &mut Retry) -> Duration {
    match session.client.heartbeat(body).await {
        Ok(answer) => {
            context.edges.ask(answer.edge_probe_targets);
            if !context.board.connected() {
                tracing::info!(agent = %session.identity.name, "the platform accepts the agent's heartbeat");
            }
            context.board.works(Way::Heartbeat);
            retry.worked();
            context.accepted(session);
            confirm(context, session);
            context.config.heartbeat_interval
        }
        Err(failure) => retry.failed(context, session, &failure),
    }
}

/// The certificate in use has proven itself.
fn confirm(context: &Context, session: &Session) {
    if !context.store.has_previous() || context.session().identity.sha256 != session.identity.sha256 {
        return;
    }
    if let Err(error) = context.store.confirm() {
        tracing::warn!(error = %http::chain(&error), "the certificate from before the renewal stays on the disk");
    }
}
