//! The asking end of the control socket: `status`, and the updater's watch.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{SOCKET, STATUS_PATH, Status};

/// A healthy agent answers within a millisecond; one that hangs must not hang the caller.
const LIMIT: Duration = Duration::from_secs(5);
/// A status with thousands of relays would still fit.
const MAX_STATUS_BYTES: usize = 4 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens: the agent is not running.
    #[error("no agent answers on {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The caller may not ask.
    #[error("not permitted to ask the agent on {} (as root, or as a member of its group)", path.display())]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody listens and does not answer as an agent does.
    #[error("the agent on {} does not answer: {why}", path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What happened instead.
        why: String,
    },
}

/// Asks the agent in `runtime_dir` for its status.
///
/// # Errors
/// See [`Error`]; every wait is limited to 5 s in all.
pub async fn status(runtime_dir: &Path) -> Result<Status, Error> {
    let path = runtime_dir.join(SOCKET);
    let answer = tokio::time::timeout(LIMIT, ask(&path)).await;
    answer.unwrap_or_else(|_| Err(Error::NoAnswer { path, why: "nothing came within 5 s".into() }))
}

async fn ask(path: &Path) -> Result<Status, Error> {
    let stream = UnixStream::connect(path).await.map_err(|source| {
        if source.kind() == std::io::ErrorKind::PermissionDenied {
            Error::NotPermitted { path: path.into() }
        } else {
            Error::NotRunning { path: path.into(), source }
        }
    })?;
    let failed = |why: String| Error::NoAnswer { path: path.into(), why };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(error.to_string()))?;
    let request = Request::get(STATUS_PATH)
        .header(hyper::header::HOST, "agent")
        .body(Empty::<Bytes>::new())
        .expect("a constant request is valid");
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        if !response.status().is_success() {
            return Err(failed(format!("status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), MAX_STATUS_BYTES);
        let body = body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| failed(format!("not a status: {error}")))
    };
    // The connection is driven here, beside the exchange, so that no task outlives the question.
    tokio::select! {
        answer = exchange => answer,
        ended = connection => Err(failed(ended.err().map_or_else(|| "it hung up".into(), |error| error.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::server;
    use super::*;
    use crate::tasks::Tasks;

    #[tokio::test]
    async fn a_status_comes_through_the_socket_and_a_second_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let listener = server::bind(directory.path()).await.unwrap();
        let tasks = Tasks::new();
        let answer: Arc<dyn Fn() -> Status + Send + Sync> =
            Arc::new(|| Status { version: "1.2.0".into(), ..Status::default() });
        tasks.spawn("control", server::serve(listener, answer, tasks.clone()));
        assert_eq!(status(directory.path()).await.unwrap().version, "1.2.0");
        assert!(matches!(server::bind(directory.path()).await, Err(server::Error::InUse { .. })));
        tasks.shut_down(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_socket_that_a_dead_agent_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        drop(server::bind(directory.path()).await.unwrap());
        assert!(matches!(status(directory.path()).await, Err(Error::NotRunning { .. })));
        server::bind(directory.path()).await.unwrap();
    }

    #[tokio::test]
    async fn an_agent_that_accepts_and_says_nothing_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let _listener = server::bind(directory.path()).await.unwrap();
        tokio::time::pause();
        assert!(matches!(status(directory.path()).await, Err(Error::NoAnswer { .. })));
    }
}
