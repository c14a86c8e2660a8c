//! Holds the one event stream of this instance and obeys what comes over it (protocol chapter 6).

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::board::Way;
use super::retry::Retry;
use super::{Context, Error, Session};
use crate::platform::Failure;
use crate::platform::events::{Command, EventStream, RelayRequest};

/// A stream that has lived this long was healthy: the next reconnect starts over with short waits.
const HEALTHY: Duration = Duration::from_secs(60);

pub(super) async fn run(context: Context) {
    let stop = context.tasks.stop_token();
    let mut replaced = context.session.subscribe();
    let config = &context.config;
    let mut retry = Retry::new(Way::Stream, config.reconnect_base_delay, config.reconnect_max_delay);
    loop {
        let session = replaced.borrow_and_update().clone();
        let Some(wait) = connect(&context, &session, &mut retry, &stop).await else { return };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Ok(()) = replaced.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One stream from its opening to its end; returns how long to wait for the next, `None` to stop. The stream is closed by
/// then.
async fn connect(
    context: &Context,
    session: &Session,
    retry: &mut Retry,
    stop: &CancellationToken,
) -> Option<Duration> {
    let opening = tokio::select! {
        opening = session.client.events(&context.instance.instance_id) => opening,
        () = stop.cancelled() => return None,
    };
    let mut stream = match opening {
        Ok(stream) => stream,
        Err(failure) => return Some(retry.failed(context, session, &failure)),
    };
    let opened = Instant::now();
    context.board.works(Way::Stream);
    tracing::info!("the event stream is open");
    let ended = tokio::select! {
        // First what has come: the platform delivers a command once, and this one is delivered.
        biased;
        ended = listen(context, session, &mut stream) => ended,
        () = stop.cancelled() => return None,
    };
    drop(stream);
    if opened.elapsed() >= HEALTHY {
        retry.worked();
    }
    Some(match ended {
        Ok(()) => {
            let wait = retry.ended();
            context.board.fails(Way::Stream, Some("the platform ended the event stream".into()));
            tracing::info!(wait_ms = wait.as_millis(), "the platform ended the event stream, opening it again");
            wait
        }
        Err(failure) => retry.failed(context, session, &failure),
    })
}

async fn listen(context: &Context, session: &Session, stream: &mut EventStream) -> Result<(), Failure> {
    while let Some(command) = stream.next().await? {
        obey(context, session, command);
    }
    Ok(())
}

/// Never waits: the next command may be behind this one.
fn obey(context: &Context, session: &Session, command: Command) {
    match command {
        Command::Alive => {}
        Command::Revoke { reason } => {
            let name = session.identity.name.clone();
            context.give_up(Error::Revoked { name, reason, anew: context.anew() });
        }
        Command::Tunnel(request) => context.tunnels.obey(request),
        Command::Relay(RelayRequest { edge, bridge, ca_pem }) => context.relay.connect(&edge, bridge, ca_pem),
        Command::Unknown(event) => tracing::info!(%event, "an event of a later platform was ignored"),
        Command::Unusable(why) => tracing::warn!(%why, "an event was ignored"),
    }
}
