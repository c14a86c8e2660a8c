//! The asking end of the control socket: `status`, the updater's watch, and its announcement of a restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{RESTART_PATH, SOCKET, STATUS_PATH, Status};

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
    let body = ask(&path, Method::GET, STATUS_PATH, StatusCode::OK).await?;
    serde_json::from_slice(&body).map_err(|error| Error::NoAnswer { path, why: format!("not a status: {error}") })
}

/// Tells the agent in `runtime_dir` that a restart is about to come.
///
/// # Errors
/// See [`Error`]; an older agent does not know what this is.
pub async fn announce_restart(runtime_dir: &Path) -> Result<(), Error> {
    ask(&runtime_dir.join(SOCKET), Method::POST, RESTART_PATH, StatusCode::NO_CONTENT).await.map(drop)
}

/// One request; the body of the answer, which has to have the status `expected`.
async fn ask(path: &Path, method: Method, target: &'static str, expected: StatusCode) -> Result<Bytes, Error> {
    let answer = tokio::time::timeout(LIMIT, exchange(path, method, target, expected)).await;
    answer.unwrap_or_else(|_| Err(Error::NoAnswer { path: path.into(), why: "nothing came within 5 s".into() }))
}

async fn exchange(path: &Path, method: Method, target: &'static str, expected: StatusCode) -> Result<Bytes, Error> {
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
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(hyper::header::HOST, "agent")
        .body(Empty::<Bytes>::new())
        .expect("a constant request is valid");
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        if response.status() != expected {
            return Err(failed(format!("status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), MAX_STATUS_BYTES);
        Ok(body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes())
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

    use super::super::{Announced, server};
    use super::*;
    use crate::clock;
    use crate::tasks::Tasks;

    /// An agent that answers in `directory`.
    async fn agent(directory: &Path, announced: &Announced) -> Tasks {
        let listener = server::bind(directory).await.unwrap();
        let tasks = Tasks::new();
        let answer: Arc<dyn Fn() -> Status + Send + Sync> =
            Arc::new(|| Status { version: "1.2.0".into(), ..Status::default() });
        tasks.spawn("control", server::serve(listener, answer, announced.clone(), tasks.clone()));
        tasks
    }

    #[tokio::test]
    async fn a_restart_that_is_announced_is_noted_and_only_asking_in_the_right_way_is_announcing() {
        let directory = tempfile::tempdir().unwrap();
        let announced = Announced::default();
        let tasks = agent(directory.path(), &announced).await;
        let path = directory.path().join(SOCKET);
        for (method, target, status) in [
            (Method::GET, RESTART_PATH, StatusCode::METHOD_NOT_ALLOWED),
            (Method::POST, STATUS_PATH, StatusCode::METHOD_NOT_ALLOWED),
            (Method::POST, "/v1/restart/", StatusCode::NOT_FOUND),
        ] {
            ask(&path, method, target, status).await.unwrap();
        }
        assert!(!announced.holds(clock::boottime()));
        announce_restart(directory.path()).await.unwrap();
        assert!(announced.holds(clock::boottime()));
        tasks.shut_down(Duration::from_secs(5)).await;
    }

    #[tokio::test]
    async fn a_status_comes_through_the_socket_and_a_second_agent_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let tasks = agent(directory.path(), &Announced::default()).await;
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
