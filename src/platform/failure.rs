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
    /// No connection: name, network or TLS. The request was certainly not carried out.
    Unreachable,
    /// The request was sent and no whole answer came: it may or may not have been carried out.
    Unanswered,
    /// 401 in the platform's words: the token or the certificate is not accepted.
    Unauthorized,
    /// 403 in the platform's words: the certificate is another agent's.
    Forbidden,
    /// 404 in the platform's words: the platform does not know this agent.
    NotFound,
    /// 409 in the platform's words: the name is taken.
    Conflict,
    /// 422 or another 4xx in the platform's words: the platform does not understand the request.
    Invalid,
    /// 429, of the platform or of what stands before it.
    RateLimited,
    /// 5xx.
    Server,
    /// An answer that is none: HTML from a proxy or an ingress whatever its status, a wrong shape, a redirect.
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
    /// How long the platform asked to wait (429 and 503), capped.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// No answer came, or none that the HTTP library lets pass.
    #[must_use]
    pub fn without_answer(call: &'static str, error: &reqwest::Error) -> Self {
        let kind = match error {
            _ if error.is_redirect() => Kind::Unexpected,
            _ if error.is_connect() => Kind::Unreachable,
            _ => Kind::Unanswered,
        };
        let detail = match crate::http::chain(error) {
            // The TLS library's sentence is about protocol purity and ends in an address of its manual.
            text if text.contains("close_notify") => "the connection was cut in the middle of the answer".to_owned(),
            text => text,
        };
        Self { call, kind, detail, retry_after: None }
    }

    /// An answer came that is not what the call answers.
    #[must_use]
    pub fn unexpected(call: &'static str, detail: impl Into<String>) -> Self {
        Self { call, kind: Kind::Unexpected, detail: detail.into(), retry_after: None }
    }

    /// An answer with another status than success.
    ///
    /// A refusal counts as the platform's only if it speaks like the platform (protocol 3.4: JSON with a `detail`). A page
    /// of an ingress that is being rolled out says 404 too, and nobody should be told to register anew because of it.
    #[must_use]
    pub fn status(call: &'static str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let detail = detail(body);
        let kind = match status.as_u16() {
            429 => Kind::RateLimited,
            400..=499 if detail.is_none() => Kind::Unexpected,
            401 => Kind::Unauthorized,
            403 => Kind::Forbidden,
            404 => Kind::NotFound,
            409 => Kind::Conflict,
            400..=499 => Kind::Invalid,
            500..=599 => Kind::Server,
            _ => Kind::Unexpected,
        };
        let explanation = printable(&detail.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned()));
        let asked = matches!(status.as_u16(), 429 | 503).then(|| retry_after(headers, crate::clock::now())).flatten();
        Self { call, kind, detail: format!("{} {explanation}", status.as_u16()), retry_after: asked }
    }

    /// The wait that was asked for, a little longer by `draw` (0 to 1): a fleet that was told to come back in 30 s should
    /// not come back in one instant.
    #[must_use]
    pub fn asked_wait(&self, draw: f64) -> Option<Duration> {
        self.retry_after.map(|wait| wait + wait.mul_f64(draw / 10.0))
    }

    /// True where the platform cannot have carried out the request.
    #[must_use]
    pub const fn is_certainly_void(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::RateLimited)
    }

    /// True where only time helps: the same request may well work later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, Kind::Unreachable | Kind::Unanswered | Kind::RateLimited | Kind::Server | Kind::Unexpected)
    }

    const fn verb(&self) -> &'static str {
        match self.kind {
            Kind::Unreachable => "cannot be reached",
            Kind::Unanswered => "was not answered",
            Kind::Unauthorized | Kind::Forbidden | Kind::Conflict | Kind::Invalid => "was refused",
            Kind::NotFound => "found no such agent",
            Kind::RateLimited => "was put off by the rate limit",
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

/// The `detail` of the platform's JSON errors: a text, or for 422 a list.
fn detail(body: &[u8]) -> Option<String> {
    let Ok(serde_json::Value::Object(mut object)) = serde_json::from_slice(body) else { return None };
    let detail = object.remove("detail")?;
    Some(detail.as_str().map_or_else(|| detail.to_string(), str::to_owned))
}

/// One line without control characters, so that an answer can neither forge log lines nor colour a terminal.
#[must_use]
pub fn printable(text: &str) -> String {
    let clean: String = one_line(text).chars().take(DETAIL_CHARACTERS).collect();
    if clean.is_empty() { "(no explanation)".to_owned() } else { clean }
}

/// The text as one line without control characters, whatever its length.
#[must_use]
pub fn one_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).collect()
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
            (429, Kind::RateLimited),
            (500, Kind::Server),
            (503, Kind::Server),
            (302, Kind::Unexpected),
        ];
        for (status, kind) in cases {
            assert_eq!(failure(status, r#"{"detail":"no"}"#).kind, kind, "{status}");
        }
    }

    #[test]
    fn a_refusal_that_does_not_speak_like_the_platform_is_somebody_elses() {
        for status in [400, 401, 403, 404, 409, 422] {
            for body in ["<html>404 page not found</html>", "", "{}", "[]", r#"{"message":"no Route matched"}"#] {
                assert_eq!(failure(status, body).kind, Kind::Unexpected, "{status} {body}");
            }
        }
        assert_eq!(failure(429, "<html>").kind, Kind::RateLimited, "an ingress limits as well");
    }

    #[test]
    fn only_429_and_503_can_ask_for_a_wait() {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, "7".parse().unwrap())]);
        for (status, wait) in [(429, Some(7)), (503, Some(7)), (500, None), (404, None)] {
            let failure = Failure::status("join", StatusCode::from_u16(status).unwrap(), &headers, b"{}");
            assert_eq!(failure.retry_after, wait.map(Duration::from_secs), "{status}");
        }
        let failure = Failure::status("join", StatusCode::TOO_MANY_REQUESTS, &headers, b"");
        assert_eq!(failure.asked_wait(1.0), Some(Duration::from_millis(7700)), "never less than was asked for");
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
