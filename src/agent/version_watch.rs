//! Keeps an eye on the API's version: the agent must not be newer (contract section 4).
//!
//! Asked once the agent is connected, again whenever it has been disconnected (an upgraded API restarts), and every hour.

use std::time::Duration;

use semver::Version;

use super::Context;
use crate::http;
use crate::platform::version::{self, ApiVersion};

/// Upgrades of a control plane are hours apart; one small request an hour is nothing to it.
const INTERVAL: Duration = Duration::from_secs(3600);
/// After a failure.
const RETRY: Duration = Duration::from_secs(300);

pub(super) async fn run(context: Context, installed: Version) {
    let stop = context.tasks.stop_token();
    let mut told = None;
    loop {
        let connected = async {
            context.board.connection(true).await;
            version::discover(context.client.http(), context.client.base()).await
        };
        let found = tokio::select! {
            found = connected => found,
            () = stop.cancelled() => return,
        };
        let wait = match found {
            Ok(ApiVersion::Reported { version, .. }) => {
                context.board.api_version(Some(&version), &installed);
                if let Some(advice) = version::ahead_of_api(&installed, &version)
                    && told.as_ref() != Some(&version)
                {
                    tracing::warn!("{advice}");
                    told = Some(version);
                }
                INTERVAL
            }
            Ok(ApiVersion::NotReported) => {
                context.board.api_version(None, &installed);
                INTERVAL
            }
            Err(error) => {
                tracing::debug!(error = %http::chain(&error), "the API's version is not known");
                RETRY
            }
        };
        // Spread over a tenth, so that a fleet does not ask in step.
        let wait = wait.mul_f64(fastrand::f64().mul_add(0.1, 0.95));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = context.board.connection(false) => {}
            () = stop.cancelled() => return,
        }
    }
}
