//! What went wrong with a call, by meaning: what the agent should do differs, the status number does not matter.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// The longest `Retry-After` that is honoured; the platform's buckets are 60 s (protocol 3.3).
const RETRY_AFTER_CAP: Duration = Duration::from_secs(300);
/// Characters of an answer's explanation that are shown.
const DETAIL_CHARACTERS: usize = 300;

/// The meaning of a failed call (protocol 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No answer: name, network, TLS or time.
    Unreachable,
    /// 401: the token or the certificate is not accepted.
    Unauthorized,
    /// 403: the certificate is another agent's.
    Forbidden,
    /// 404: the platform does not know this agent.
    NotFound,
    /// 409: the name is taken.
    Conflict,
    /// 422 or another 4xx: the platform does not understand the request.
    Invalid,
    /// 429, with the wait that was asked for.
    RateLimited(Option<Duration>),
    /// 5xx.
    Server,
    /// An answer that is none: HTML from a proxy, a wrong shape, a redirect.
    Unexpected,
}

/// A failed call to the platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the platform's {call} {}: {detail}", self.verb())]
pub struct Failure {
    /// Which call: "join", "heartbeat", …
    pub call: &'static str,
    /// What it means.
    pub kind: Kind,
    /// What came back, made printable; never more than a line.
    pub detail: String,
}

impl Failure {
    /// No answer came.
    #[must_use]
    pub fn unreachable(call: &'static str, error: &reqwest::Error) -> Self {
        Self { call, kind: Kind::Unreachable, detail: crate::http::chain(error) }
    }

    /// An answer came that is not what the call answers.
    #[must_use]
    pub fn unexpected(call: &'static str, detail: impl Into<String>) -> Self {
        Self { call, kind: Kind::Unexpected, detail: detail.into() }
    }

    /// An answer with another status than success.
    #[must_use]
    pub fn status(call: &'static str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let kind = match status.as_u16() {
            401 => Kind::Unauthorized,
            403 => Kind::Forbidden,
            404 => Kind::NotFound,
            409 => Kind::Conflict,
            429 => Kind::RateLimited(retry_after(headers, crate::clock::now())),
            400..=499 => Kind::Invalid,
            500..=599 => Kind::Server,
            _ => Kind::Unexpected,
        };
        Self { call, kind, detail: format!("{} {}", status.as_u16(), explanation(body)) }
    }

    /// How long the platform asked to wait, if it did.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            Kind::RateLimited(wait) => wait,
            Kind::Unreachable
            | Kind::Unauthorized
            | Kind::Forbidden
            | Kind::NotFound
            | Kind::Conflict
            | Kind::Invalid
            | Kind::Server
            | Kind::Unexpected => None,
        }
    }

    /// True where only time helps: the same request may well work later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::RateLimited(_) | Kind::Server | Kind::Unexpected)
    }

    const fn verb(&self) -> &'static str {
        match self.kind {
            Kind::Unreachable => "cannot be reached",
            Kind::Unauthorized | Kind::Forbidden | Kind::Conflict | Kind::Invalid => "was refused",
            Kind::NotFound => "found no such agent",
            Kind::RateLimited(_) => "was put off by the rate limit",
            Kind::Server => "failed on the platform's side",
            Kind::Unexpected => "was answered by something else",
        }
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3), capped.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::parse(text).ok()?;
            SystemTime::from(date.timestamp()).duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_CAP)).filter(|wait| !wait.is_zero())
}

/// The `detail` of a JSON error (a text, or for 422 a list), else the first words of whatever came.
fn explanation(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(serde_json::Value::Object(mut object)) => match object.remove("detail") {
            Some(serde_json::Value::String(detail)) => detail,
            Some(other) => other.to_string(),
            None => String::from_utf8_lossy(body).into_owned(),
        },
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    printable(&text)
}

/// One line without control characters, so that an answer can neither forge log lines nor colour a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clean: String = line.chars().filter(|c| !c.is_control()).take(DETAIL_CHARACTERS).collect();
    if clean.is_empty() { "(no explanation)".to_owned() } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, body: &str) -> Failure {
        Failure::status("heartbeat", StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn each_status_has_its_meaning() {
        let cases = [
            (401, Kind::Unauthorized),
            (403, Kind::Forbidden),
            (404, Kind::NotFound),
            (409, Kind::Conflict),
            (422, Kind::Invalid),
            (400, Kind::Invalid),
            (429, Kind::RateLimited(None)),
            (500, Kind::Server),
            (503, Kind::Server),
            (302, Kind::Unexpected),
        ];
        for (status, kind) in cases {
            assert_eq!(failure(status, "{}").kind, kind, "{status}");
        }
    }

    #[test]
    fn the_explanation_is_found_in_each_of_the_platforms_forms() {
        assert_eq!(failure(401, r#"{"detail":"Invalid token"}"#).detail, "401 Invalid token");
        assert_eq!(failure(422, r#"{"detail":[{"loc":["body"]}]}"#).detail, r#"422 [{"loc":["body"]}]"#);
        assert_eq!(
            failure(502, "<html>\n<h1>Bad\u{1b}[31m Gateway</h1>").detail,
            "502 <html> <h1>Bad[31m Gateway</h1>"
        );
        assert_eq!(failure(500, "").detail, "500 (no explanation)");
    }

    #[test]
    fn a_long_explanation_is_cut() {
        assert!(failure(500, &"x".repeat(100_000)).detail.len() < 400);
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_date_and_capped() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("17"), Some(Duration::from_secs(17)));
        assert_eq!(read("0"), None);
        assert_eq!(read("999999999"), Some(RETRY_AFTER_CAP));
        assert_eq!(read("Sun, 06 Nov 1994 08:50:37 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(read("Sun, 06 Nov 1994 08:00:00 GMT"), None);
        assert_eq!(read("soon"), None);
    }
}
