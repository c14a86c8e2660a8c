//! The HTTP face: which endpoint a request means, and the order in which an answer comes about.
//!
//! fault → rate limit → the endpoint's own checks. The answer's headers are those of the real API: `X-Request-ID` echoed or
//! made up, `X-RateLimit-*` on everything under `/api`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::json;

use super::events;
use super::faults::{self, Endpoint};
use super::reply::Reply;
use super::state::Shared;
use crate::serve::{Body, Handler};

/// Bytes of a request body that are read; heartbeats of the largest agents are far below. Beyond, the connection is cut.
const BODY_LIMIT: usize = 8 << 20;

/// A request, read whole.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    /// By lower-case name; of repeated ones the last.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
}

impl Call {
    async fn read(request: Request<Incoming>) -> io::Result<Self> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(io::Error::other)?.to_bytes();
        let header = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Ok(Self {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers.iter().map(header).collect(),
            body,
        })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// A value of the query string, decoded.
    pub(crate) fn query_value(&self, name: &str) -> Option<String> {
        let pairs = self.query.as_deref()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| percent_decoded(value))
    }
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Join,
    Heartbeat(String),
    Events(String),
    Renew(String),
    Drain(String),
    Offline { agent: String, instance_id: String },
    Connect,
    Reevaluate,
    CaCertificate,
    Version,
    Health,
    Ready,
    OpenApi,
    WrongMethod,
    Unknown,
}

impl Route {
    pub(crate) fn of(method: &str, path: &str) -> Self {
        let Some(segments) = path.split('/').map(percent_decoded).collect::<Option<Vec<_>>>() else {
            return Self::Unknown;
        };
        let segments: Vec<_> = segments.iter().map(String::as_str).collect();
        let (wanted, route) = match segments[..] {
            ["", "api", "v1", "agents", "join"] => ("POST", Self::Join),
            ["", "api", "v1", "agents", agent, "heartbeat"] => ("POST", Self::Heartbeat(agent.to_owned())),
            ["", "api", "v1", "agents", agent, "events"] => ("GET", Self::Events(agent.to_owned())),
            ["", "api", "v1", "agents", agent, "renew"] => ("POST", Self::Renew(agent.to_owned())),
            ["", "api", "v1", "agents", agent, "drain"] => ("POST", Self::Drain(agent.to_owned())),
            ["", "api", "v1", "agents", agent, "instance", instance, "offline"] => {
                ("POST", Self::Offline { agent: agent.to_owned(), instance_id: instance.to_owned() })
            }
            ["", "api", "v1", "connect"] => ("POST", Self::Connect),
            ["", "api", "v1", "connect", "reevaluate"] => ("POST", Self::Reevaluate),
            ["", "api", "v1", "certificates", "ca"] => ("GET", Self::CaCertificate),
            ["", "api", "v1", "version"] => ("GET", Self::Version),
            ["", "health"] => ("GET", Self::Health),
            ["", "ready"] => ("GET", Self::Ready),
            ["", "api", "openapi.json"] => ("GET", Self::OpenApi),
            _ => return Self::Unknown,
        };
        if method == wanted { route } else { Self::WrongMethod }
    }

    pub(crate) const fn endpoint(&self) -> Option<Endpoint> {
        match self {
            Self::Join => Some(Endpoint::Join),
            Self::Heartbeat(_) => Some(Endpoint::Heartbeat),
            Self::Events(_) => Some(Endpoint::Events),
            Self::Renew(_) => Some(Endpoint::Renew),
            Self::Drain(_) => Some(Endpoint::Drain),
            Self::Offline { .. } => Some(Endpoint::Offline),
            Self::Connect => Some(Endpoint::Connect),
            Self::Reevaluate => Some(Endpoint::Reevaluate),
            Self::Version => Some(Endpoint::Version),
            Self::Health => Some(Endpoint::Health),
            Self::OpenApi => Some(Endpoint::OpenApi),
            Self::CaCertificate | Self::Ready | Self::WrongMethod | Self::Unknown => None,
        }
    }
}

/// The handler of the whole API.
pub(crate) fn handler(shared: &Arc<Shared>, heartbeat_after: Duration) -> Handler {
    let shared = Arc::clone(shared);
    Arc::new(move |request| Box::pin(answer(Arc::clone(&shared), request, heartbeat_after)))
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
    heartbeat_after: Duration,
) -> io::Result<Response<Body>> {
    let call = Call::read(request).await?;
    let route = Route::of(&call.method, &call.path);
    let (number, fault) = shared.with(|state| state.admit(&call, &route));
    let response = faults::answer(fault, route.endpoint(), || limited(&shared, &route, &call, heartbeat_after)).await?;
    shared.with(|state| state.answered(number, response.status().as_u16()));
    Ok(response)
}

fn limited(shared: &Arc<Shared>, route: &Route, call: &Call, heartbeat_after: Duration) -> Reply {
    let request_id = call.header("x-request-id").map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
    if !call.path.starts_with("/api/") {
        return carry_out(shared, route, call, heartbeat_after).with("x-request-id", request_id);
    }
    let allowance = shared.with(|state| state.allowance(call));
    let reply = match allowance.retry_after_secs {
        Some(secs) => Reply::detail(429, "Rate limit exceeded").with("retry-after", secs),
        None => carry_out(shared, route, call, heartbeat_after),
    };
    reply
        .with("x-request-id", request_id)
        .with("x-ratelimit-limit", allowance.limit)
        .with("x-ratelimit-remaining", allowance.remaining)
}

fn carry_out(shared: &Arc<Shared>, route: &Route, call: &Call, heartbeat_after: Duration) -> Reply {
    let outcome = match route {
        Route::Join => shared.with(|state| state.join(call)),
        Route::Heartbeat(agent) => shared.with(|state| state.heartbeat(agent, call)),
        Route::Events(agent) => events::open(shared, agent, call, heartbeat_after),
        Route::Renew(agent) => shared.with(|state| state.renew(agent, call)),
        Route::Drain(agent) => shared.with(|state| state.drain(agent, call)),
        Route::Offline { agent, instance_id } => shared.with(|state| state.offline(agent, instance_id, call)),
        Route::Connect => shared.with(|state| state.connect(call)),
        Route::Reevaluate => shared.with(|state| state.reevaluate(call)),
        Route::CaCertificate => Ok(shared.with(|state| Reply::json(200, &json!({ "ca_certificate": state.ca.pem() })))),
        Route::Version => shared
            .with(|state| state.versions.endpoint())
            .map(|body| Reply::json(200, &body))
            .ok_or_else(|| Reply::detail(404, "Not Found")),
        Route::Health => Ok(shared.with(|state| Reply::json(200, &state.versions.health()))),
        Route::Ready => {
            Ok(Reply::json(200, &json!({ "status": "ready", "checks": { "database": "healthy", "redis": "healthy" } })))
        }
        Route::OpenApi => Ok(shared.with(|state| Reply::json(200, &state.versions.openapi()))),
        Route::WrongMethod => Err(Reply::detail(405, "Method Not Allowed")),
        Route::Unknown => Err(Reply::detail(404, "Not Found")),
    };
    outcome.unwrap_or_else(|refusal| refusal)
}

/// Undoes percent-encoding; `None` for what is no encoding of UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
            let (high, low) = (digit()?, digit()?);
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_path_has_its_route_and_the_rest_has_none() {
        for (method, path, route) in [
            ("POST", "/api/v1/agents/join", Route::Join),
            ("POST", "/api/v1/agents/edge-1/heartbeat", Route::Heartbeat("edge-1".into())),
            ("POST", "/api/v1/agents/a%20b%2Fc/renew", Route::Renew("a b/c".into())),
            ("GET", "/api/v1/agents/edge-1/events", Route::Events("edge-1".into())),
            (
                "POST",
                "/api/v1/agents/e/instance/i/offline",
                Route::Offline { agent: "e".into(), instance_id: "i".into() },
            ),
            ("POST", "/api/v1/connect", Route::Connect),
            ("POST", "/api/v1/connect/reevaluate", Route::Reevaluate),
            ("GET", "/api/v1/certificates/ca", Route::CaCertificate),
            ("GET", "/health", Route::Health),
            ("POST", "/health", Route::WrongMethod),
            ("GET", "/api/v1/agents/join", Route::WrongMethod),
            ("GET", "//api/v1/version", Route::Unknown),
            ("GET", "/api/v1/version/", Route::Unknown),
            ("POST", "/api/v1/agents/%zz/renew", Route::Unknown),
            ("POST", "/api/v1/agents/%ff/renew", Route::Unknown),
        ] {
            assert_eq!(Route::of(method, path), route, "{method} {path}");
        }
    }
}
