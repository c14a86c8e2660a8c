//! Faults to inject, endpoint by endpoint (protocol 12.5): what a broken API, proxy or network would answer.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use hyper::Response;
use serde_json::json;

use super::reply::{Content, Reply, cut};
use crate::serve::Body;

/// An endpoint that faults are injected at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /api/v1/agents/join`.
    Join,
    /// `POST /api/v1/agents/{id}/heartbeat`.
    Heartbeat,
    /// `GET /api/v1/agents/{id}/events`.
    Events,
    /// `POST /api/v1/agents/{id}/renew`.
    Renew,
    /// `POST /api/v1/agents/{id}/drain`.
    Drain,
    /// `POST /api/v1/agents/{id}/instance/{instance}/offline`.
    Offline,
    /// `POST /api/v1/connect`.
    Connect,
    /// `POST /api/v1/connect/reevaluate`.
    Reevaluate,
    /// `GET /api/v1/version`.
    Version,
    /// `GET /health`.
    Health,
    /// `GET /api/openapi.json`.
    OpenApi,
    /// Every request, also to paths that no other variant names.
    All,
}

/// What happens instead of, or to, the right answer. Unless said otherwise the request is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status with the body that the API sends with it.
    Status(u16),
    /// The same with a `Retry-After` in seconds.
    StatusWithRetryAfter(u16, u64),
    /// This status with a page of HTML: an ingress's error, or with 200 a captive portal.
    Html(u16),
    /// The success status and bytes that are neither JSON nor text.
    Garbage,
    /// The success status and JSON with nothing in it that belongs there.
    WrongShape,
    /// Carried out, and answered rightly, but only after this time.
    Delay(Duration),
    /// Carried out; then the connection is cut without an answer.
    CutBeforeAnswer,
    /// Carried out; the connection is cut in the middle of the answer's body.
    CutMidBody,
    /// 307 to this location.
    Redirect(String),
    /// No answer ever.
    Hang,
    /// The success status and 256 MiB of well-formed JSON.
    HugeBody,
}

/// The faults that wait to be used up, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Faults(VecDeque<(Endpoint, Fault, u32)>);

impl Faults {
    pub(crate) fn inject(&mut self, endpoint: Endpoint, fault: Fault, times: u32) {
        self.0.push_back((endpoint, fault, times));
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault for a request; `endpoint` is absent for paths that have no name here.
    pub(crate) fn take(&mut self, endpoint: Option<Endpoint>) -> Option<Fault> {
        self.0.retain(|(_, _, times)| *times > 0);
        let fits = |wanted: Endpoint| wanted == Endpoint::All || Some(wanted) == endpoint;
        let (_, fault, times) = self.0.iter_mut().find(|(wanted, _, _)| fits(*wanted))?;
        *times -= 1;
        Some(fault.clone())
    }
}

/// Answers a request under a fault; `carry_out` does what the request asks for and words the right answer.
///
/// # Errors
/// The fault is that the connection is cut.
pub(crate) async fn answer(
    fault: Option<Fault>,
    endpoint: Option<Endpoint>,
    carry_out: impl FnOnce() -> Reply,
) -> io::Result<Response<Body>> {
    let reply = match fault {
        None => carry_out(),
        Some(Fault::Delay(time)) => {
            tokio::time::sleep(time).await;
            carry_out()
        }
        Some(Fault::CutBeforeAnswer) => {
            drop(carry_out());
            return Err(cut());
        }
        Some(Fault::CutMidBody) => carry_out().torn(),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Status(status)) => refusal(status),
        Some(Fault::StatusWithRetryAfter(status, secs)) => refusal(status).with("retry-after", secs),
        Some(Fault::Html(status)) => Reply::text(status, "text/html; charset=utf-8", HTML),
        Some(Fault::Garbage) => {
            Reply::text(success(endpoint), "application/json", &b"\x00\xff\xfe{\"message\": \x80\x00"[..])
        }
        Some(Fault::WrongShape) => Reply::json(success(endpoint), &json!({ "unexpected": ["shape", 1, null] })),
        Some(Fault::Redirect(location)) => Reply::text(307, "text/plain", "").with("location", location),
        Some(Fault::HugeBody) => {
            Reply { content: Content::Huge, ..Reply::text(success(endpoint), "application/json", "") }
        }
    };
    reply.into_response()
}

const HTML: &str = "<!DOCTYPE html>\n<html><head><title>Sign in to the network</title></head>\
    <body><h1>Almost there</h1><form action=\"/login\"></form></body></html>\n";

fn success(endpoint: Option<Endpoint>) -> u16 {
    if endpoint == Some(Endpoint::Join) { 201 } else { 200 }
}

/// The API's own bodies (protocol 3.4), so that what an agent logs of them is realistic.
fn refusal(status: u16) -> Reply {
    match status {
        401 => Reply::detail(status, "Invalid client certificate"),
        403 => Reply::detail(status, "Certificate does not match agent"),
        404 => Reply::detail(status, "Agent not found"),
        409 => Reply::detail(status, "Agent with this name already exists"),
        422 => Reply::invalid(vec![json!({ "type": "missing", "loc": ["body", "name"], "msg": "Field required" })]),
        429 => Reply::detail(status, "Rate limit exceeded"),
        500 => Reply::detail(status, "Internal server error"),
        other => Reply::detail(other, "Fault injected"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_its_endpoint_as_often_as_asked_and_the_oldest_comes_first() {
        let mut faults = Faults::default();
        faults.inject(Endpoint::Join, Fault::Garbage, 2);
        faults.inject(Endpoint::All, Fault::Hang, 1);
        faults.inject(Endpoint::Renew, Fault::WrongShape, 0);
        assert_eq!(faults.take(Some(Endpoint::Join)), Some(Fault::Garbage));
        assert_eq!(faults.take(None), Some(Fault::Hang), "All means the nameless paths too");
        assert_eq!(faults.take(Some(Endpoint::Renew)), None);
        assert_eq!(faults.take(Some(Endpoint::Join)), Some(Fault::Garbage));
        assert_eq!(faults.take(Some(Endpoint::Join)), None);
    }
}
