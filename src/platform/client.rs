//! The calls to the platform: URLs, headers, bodies, and answers read within limits (protocol chapter 3).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use url::Url;
use zeroize::Zeroizing;

use super::events::EventStream;
use super::failure::Failure;
use super::wire::{DrainRequest, HeartbeatAnswer, HeartbeatRequest, IssuedIdentity, JoinRequest};
use crate::config::NetworkConfig;
use crate::http::{self, Purpose};
use crate::identity::{Identity, Material};
use crate::secret::Secret;

/// Carries the agent's certificate on every call but join (protocol 3.2).
const CERTIFICATE_HEADER: &str = "x-bamf-client-cert";
/// An identity is about 2 KiB; a heartbeat's answer lists edges.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// As much of an error as is worth reading.
const MAX_ERROR_BYTES: usize = 4096;

/// What the platform issued: the set, and the agent's UUID where it was told.
pub struct Issued {
    /// The three texts.
    pub material: Material,
    /// The agent's UUID.
    pub agent_id: Option<String>,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("agent_id", &self.agent_id).finish_non_exhaustive()
    }
}

/// Talks to one platform, as nobody before the join and as one agent after it.
#[derive(Clone, Debug)]
pub struct Client {
    calls: reqwest::Client,
    streams: reqwest::Client,
    base: Url,
}

/// A client that shows an identity with every call.
#[derive(Clone, Debug)]
pub struct AgentClient {
    client: Client,
    /// Marked sensitive: whoever holds the certificate can act as the agent (protocol 1.4).
    certificate: HeaderValue,
    name: String,
    ca_pem: String,
}

impl Client {
    /// A client of the platform at `base`.
    ///
    /// # Errors
    /// The trust roots or the proxy cannot be used.
    pub fn new(network: &NetworkConfig, base: &Url, version: &str) -> Result<Self, http::Error> {
        let tls = http::tls_config(network)?;
        Ok(Self {
            calls: http::client_over(tls.clone(), network, Purpose::Platform, version)?,
            streams: http::client_over(tls, network, Purpose::Events, version)?,
            base: base.clone(),
        })
    }

    /// The HTTP client below, for calls that need no identity.
    #[must_use]
    pub const fn http(&self) -> &reqwest::Client {
        &self.calls
    }

    /// The platform's address.
    #[must_use]
    pub const fn base(&self) -> &Url {
        &self.base
    }

    /// Registers this agent. The platform does this once for a name; repeating it after success is a conflict.
    ///
    /// # Errors
    /// [`Failure`] by meaning.
    pub async fn join(&self, token: &Secret, name: &str, labels: &BTreeMap<String, String>) -> Result<Issued, Failure> {
        let body = JoinRequest { join_token: token.expose(), name, labels };
        let request = self.request(Method::POST, &["agents", "join"]);
        let issued: IssuedIdentity = answer("join", with_json(request, &body)).await?;
        let ca = issued.ca_certificate.clone().ok_or_else(|| Failure::unexpected("join", "no CA certificate came"))?;
        Ok(into_issued(issued, ca))
    }

    /// The same client, acting as `identity`.
    #[must_use]
    pub fn as_agent(&self, identity: &Identity) -> AgentClient {
        let text = STANDARD.encode(identity.material.certificate_pem.expose());
        let mut certificate = HeaderValue::try_from(text).expect("base64 is printable ASCII");
        certificate.set_sensitive(true);
        AgentClient {
            client: self.clone(),
            certificate,
            name: identity.name.clone(),
            ca_pem: identity.material.ca_pem.clone(),
        }
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.calls.request(method, self.url(path))
    }

    /// `{base}/api/v1/{path…}`, every part percent-encoded.
    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        url
    }
}

impl AgentClient {
    /// Tells the platform that this instance is alive, and what it offers.
    ///
    /// # Errors
    /// [`Failure`] by meaning.
    pub async fn heartbeat(&self, body: &HeartbeatRequest) -> Result<HeartbeatAnswer, Failure> {
        answer("heartbeat", with_json(self.request(Method::POST, &["heartbeat"]), body)).await
    }

    /// Asks for a new certificate and key; the present one stays valid until it ends.
    ///
    /// # Errors
    /// [`Failure`] by meaning.
    pub async fn renew(&self) -> Result<Issued, Failure> {
        let issued: IssuedIdentity = answer("renewal", with_json(self.request(Method::POST, &["renew"]), &())).await?;
        let ca = issued.ca_certificate.clone().unwrap_or_else(|| self.ca_pem.clone());
        Ok(into_issued(issued, ca))
    }

    /// Asks for no more commands to this instance.
    ///
    /// # Errors
    /// [`Failure`] by meaning.
    pub async fn drain(&self, instance_id: &str) -> Result<(), Failure> {
        let request = self.request(Method::POST, &["drain"]);
        send("drain", with_json(request, &DrainRequest { instance_id })).await.map(drop)
    }

    /// Takes this instance off the platform's list.
    ///
    /// # Errors
    /// [`Failure`] by meaning.
    pub async fn offline(&self, instance_id: &str) -> Result<(), Failure> {
        let request = self.request(Method::POST, &["instance", instance_id, "offline"]);
        send("offline", with_json(request, &())).await.map(drop)
    }

    /// Opens the command stream. Exactly one may be open for an instance: drop the old one first.
    ///
    /// # Errors
    /// [`Failure`] by meaning; an answer that is no event stream is [`super::Kind::Unexpected`].
    pub async fn events(&self, instance_id: &str) -> Result<EventStream, Failure> {
        const CALL: &str = "event stream";
        let mut url = self.client.url(&["agents", &self.name, "events"]);
        url.query_pairs_mut().append_pair("instance_id", instance_id);
        let request = self.client.streams.get(url).headers(self.identification());
        let request = request
            .header(ACCEPT, "text/event-stream")
            .header(CACHE_CONTROL, "no-cache")
            .header(ACCEPT_ENCODING, "identity");
        // The client has no limit on the whole; the answer's head must come in time all the same.
        let response = tokio::time::timeout(super::events::SILENCE_LIMIT, send(CALL, request))
            .await
            .map_err(|_| Failure::unexpected(CALL, "no answer within 75 s"))??;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream") {
            let kind = super::failure::printable(kind);
            return Err(Failure::unexpected(CALL, format!("a proxy or another service answered with {kind}")));
        }
        Ok(EventStream::new(response))
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let path = [&["agents", self.name.as_str()], path].concat();
        self.client.request(method, &path).headers(self.identification())
    }

    fn identification(&self) -> HeaderMap {
        HeaderMap::from_iter([(CERTIFICATE_HEADER.parse().expect("a valid name"), self.certificate.clone())])
    }
}

fn into_issued(issued: IssuedIdentity, ca_pem: String) -> Issued {
    Issued {
        material: Material {
            certificate_pem: Secret::new(issued.certificate),
            private_key_pem: Secret::new(issued.private_key),
            ca_pem,
        },
        agent_id: issued.agent_id.filter(|id| !id.is_empty()),
    }
}

/// A JSON body; calls without one carry the literal `null` (protocol 3.2).
fn with_json<T: Serialize + ?Sized>(request: RequestBuilder, body: &T) -> RequestBuilder {
    request.json(body)
}

async fn answer<T: DeserializeOwned>(call: &'static str, request: RequestBuilder) -> Result<T, Failure> {
    let response = send(call, request).await?;
    let body = read(call, response, MAX_ANSWER_BYTES).await?;
    if body.len() > MAX_ANSWER_BYTES {
        return Err(Failure::unexpected(call, "more than 1 MiB"));
    }
    // The body may hold a private key, so neither it nor serde's excerpt of it is shown.
    serde_json::from_slice(&body).map_err(|error| {
        Failure::unexpected(call, format!("not the expected JSON (line {}, column {})", error.line(), error.column()))
    })
}

async fn send(call: &'static str, request: RequestBuilder) -> Result<Response, Failure> {
    let response = request.send().await.map_err(|error| Failure::without_answer(call, &error.without_url()))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, headers) = (response.status(), response.headers().clone());
    let body = read(call, response, MAX_ERROR_BYTES).await.unwrap_or_default();
    Err(Failure::status(call, status, &headers, &body))
}

/// Reads a body until its end or just past `limit` bytes.
async fn read(call: &'static str, mut response: Response, limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // Room for an identity from the start, so that growing leaves no copy of a key behind.
    let mut body = Zeroizing::new(Vec::with_capacity(16 * 1024));
    while body.len() <= limit {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => return Err(Failure::without_answer(call, &error.without_url())),
        }
    }
    Ok(body)
}
