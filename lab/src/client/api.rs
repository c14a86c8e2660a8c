//! Asks the platform for a session: `POST /api/v1/connect` (protocol 11.2), over HTTPS under the web CA that it was given.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};

use super::link;
use super::options::Options;

/// How often a 429 is waited for.
const RATE_LIMIT_RETRIES: u32 = 3;
const RATE_LIMIT_MOST: Duration = Duration::from_secs(10);

/// Why there is no session or no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The platform refuses.
    #[error("the platform answers {status}: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its `detail`, or the body.
        detail: String,
    },
    /// There is no whole HTTP answer.
    #[error("the platform cannot be asked")]
    Http(#[from] hyper::Error),
    /// The answer is not what the protocol says.
    #[error("the platform's answer is no session")]
    Answer(#[from] serde_json::Error),
    /// A connection cannot be made.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the platform hands out for a session. It is JSON with more fields than these.
#[derive(Clone, Deserialize)]
pub struct Session {
    /// Where the bridge is.
    pub bridge_hostname: String,
    /// Its port.
    pub bridge_port: u16,
    /// The client's certificate for this session.
    pub session_cert: String,
    /// Its key.
    pub session_key: String,
    /// What the bridge's certificate is verified against.
    pub ca_certificate: String,
    /// The session's id.
    pub session_id: String,
    /// When the certificate expires.
    #[serde(default)]
    pub session_expires_at: String,
    /// Decides between framed and raw.
    pub resource_type: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "session {} ({}) at {}:{}",
            self.session_id, self.resource_type, self.bridge_hostname, self.bridge_port
        )
    }
}

impl Session {
    /// Whether the bytes travel in frames (protocol 7.1).
    #[must_use]
    pub fn is_framed(&self) -> bool {
        is_framed(&self.resource_type)
    }
}

/// Whether sessions of this type are framed.
#[must_use]
pub fn is_framed(resource_type: &str) -> bool {
    !matches!(resource_type, "ssh-audit" | "web-ssh" | "web-db")
}

/// Who asks, and whom.
#[derive(Clone, Debug)]
pub struct Api {
    pub(super) url: String,
    pub(super) web_ca_pem: String,
    pub(super) token: String,
}

impl Api {
    /// Asks for a session, or for another bridge for the session that is there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn connect(&self, resource: &str, again: Option<&str>, options: &Options) -> Result<Session, Error> {
        let mut body = json!({ "resource_name": resource });
        for (name, value) in [("reconnect_session_id", again), ("protocol", options.protocol.as_deref())] {
            if let Some(value) = value {
                body[name] = Value::from(value);
            }
        }
        let (status, body) = self.post("/api/v1/connect", &body, options).await?;
        if status == 200 {
            return Ok(serde_json::from_slice(&body)?);
        }
        let detail = serde_json::from_slice::<Value>(&body).ok().map(|answer| answer["detail"].to_string());
        let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        Err(Error::Refused { status, detail })
    }

    async fn post(&self, path: &str, body: &Value, options: &Options) -> Result<(u16, Bytes), Error> {
        let mut attempt = 0;
        loop {
            let response = self.post_once(path, body, options).await?;
            let (head, body) = (response.status().as_u16(), response.headers().get("retry-after").cloned());
            if head != 429 || attempt == RATE_LIMIT_RETRIES {
                return Ok((head, response.into_body()));
            }
            let retry_after = body.as_ref().and_then(|value| value.to_str().ok());
            tokio::time::sleep(rate_limit_pause(attempt, retry_after)).await;
            attempt += 1;
        }
    }

    async fn post_once(&self, path: &str, body: &Value, options: &Options) -> Result<Response<Bytes>, Error> {
        let (authority, connection) = link::to_url(&self.url, &self.web_ca_pem, options).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(path)
            .header("host", authority)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(io::Error::other)?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        connection.abort();
        Ok(Response::from_parts(head, body))
    }
}

/// How long a 429 is waited for: whole seconds of `Retry-After`, else 1, 2, 4; at most ten.
#[must_use]
pub fn rate_limit_pause(attempt: u32, retry_after: Option<&str>) -> Duration {
    let named = retry_after.and_then(|text| text.parse().ok()).filter(|seconds| *seconds > 0);
    let seconds = named.unwrap_or_else(|| 1_u64.checked_shl(attempt).unwrap_or(u64::MAX));
    Duration::from_secs(seconds).min(RATE_LIMIT_MOST)
}
