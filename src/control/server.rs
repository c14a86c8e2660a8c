//! The agent's end of the control socket.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use tokio::net::{UnixListener, UnixStream};

use super::announced::{Announced, may_announce};
use super::{RESTART_PATH, SOCKET, STATUS_PATH, Status};
use crate::clock;
use crate::durable::{self, Context};
use crate::listen::{self, Answer, Peer, Routes};
use crate::tasks::Tasks;

/// Owner and group may ask; nothing secret is answered, but it is nobody else's business.
const SOCKET_MODE: u32 = 0o660;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent answers there.
    #[error("another bamf-agent answers on {} (give this one its own --runtime-dir)", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The directory or the socket cannot be made.
    #[error("the control socket cannot be created (--runtime-dir chooses another place)")]
    Create(#[from] durable::Error),
}

/// Binds the socket, replacing one that a dead process left behind.
///
/// # Errors
/// See [`Error`].
pub async fn bind(runtime_dir: &Path) -> Result<UnixListener, Error> {
    let path = runtime_dir.join(SOCKET);
    durable::create_directory(runtime_dir, 0o755)?;
    if UnixStream::connect(&path).await.is_ok() {
        return Err(Error::InUse { path });
    }
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(durable::Error::new("remove the stale socket", path, error).into()),
    }
    let listener = UnixListener::bind(&path).on("bind", &path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(SOCKET_MODE)).on("set the mode of", &path)?;
    Ok(listener)
}

/// Answers until the tasks are stopped.
pub async fn serve(
    listener: UnixListener,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
    announced: Announced,
    tasks: Tasks,
) {
    let routes: Routes = Arc::new(move |request| match (request.method(), request.uri().path()) {
        (&Method::GET, STATUS_PATH) => match serde_json::to_vec(&status()) {
            Ok(json) => listen::with_type(StatusCode::OK, "application/json", Bytes::from(json)),
            Err(_) => listen::text(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be written\n"),
        },
        (&Method::POST, RESTART_PATH) => restart(request.extensions().get().copied(), &announced),
        (_, STATUS_PATH) => listen::text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
        (_, RESTART_PATH) => listen::text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n"),
        _ => listen::text(StatusCode::NOT_FOUND, "see /v1/status\n"),
    });
    listen::serve(listener, routes, tasks).await;
}

/// Contract section 5: "only root and the agent's own user may".
fn restart(peer: Option<Peer>, announced: &Announced) -> Answer {
    let uid = peer.map(|peer| peer.uid);
    if !may_announce(uid, nix::unistd::geteuid().as_raw()) {
        tracing::debug!(uid, "an announcement of a restart is refused");
        return listen::text(StatusCode::FORBIDDEN, "only root and the agent's own user may\n");
    }
    announced.note(clock::boottime());
    tracing::debug!(uid, "a restart is announced");
    listen::nothing()
}
