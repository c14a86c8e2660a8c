//! A control plane and a bridge on loopback for trying things by hand, until Ctrl-C.

use std::io::Write;

use crate::bridge::{Bridge, BridgeOptions};
use crate::demo::screen;
use crate::plane::{ControlPlane, Options};

/// Serves until the process is interrupted; prints what an agent needs to join.
///
/// # Errors
/// The control plane or the bridge cannot listen, or the directory for its certificate cannot be made.
pub fn serve(api_version: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("the control plane cannot be started: {error}");
    let plane = ControlPlane::start(Options::default()).map_err(failed)?;
    plane.set_version(Some(api_version));
    let bridge = Bridge::start(&plane, BridgeOptions::default())
        .map_err(|error| format!("the bridge cannot be started: {error}"))?;
    let mut roots = tempfile::Builder::new().prefix("bamf-lab-ca.").suffix(".pem").tempfile().map_err(failed)?;
    roots.write_all(plane.web_ca_pem().as_bytes()).map_err(failed)?;
    screen::line(&format!("a control plane of version {api_version} listens; Ctrl-C ends it. To join it:\n"));
    screen::line(&format!("  export SSL_CERT_FILE={}", roots.path().display()));
    screen::line(&format!("  export BAMF_PLATFORM_URL={}", plane.url()));
    screen::line("  export BAMF_DATA_DIR=/tmp/bamf-data BAMF_RUNTIME_DIR=/tmp/bamf-run");
    screen::line(&format!("  export BAMF_JOIN_TOKEN={}", plane.issue_token(1)));
    screen::line("  bamf-agent run\n");
    screen::line(&format!("a bridge listens on localhost:{}; for a session of your own:\n", bridge.port()));
    let connect = "-H 'Authorization: Bearer me' -d '{\"resource_name\":\"NAME\"}'";
    screen::line(&format!("  curl --cacert $SSL_CERT_FILE {}/api/v1/connect {connect}\n", plane.url()));
    screen::line(&format!("  http://{}/relay/AGENT/PATH leads to an agent's relay", bridge.internal_address()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(tokio::signal::ctrl_c()).map_err(failed)
}
