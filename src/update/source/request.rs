//! One request with its retries, and what an answer means.
//!
//! What may pass by itself (no connection, 5xx, 429, a body that breaks off) is tried again, with growing, random pauses
//! or after the time that the server names; what will not (404, a refused redirect, a web page) ends at once.

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use url::Url;

use super::Error;
use crate::backoff::Backoff;
use crate::{clock, http};

/// A small file takes no longer than this, in all.
const SMALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A server that wants a longer pause is not waited for: the timer comes again, and an operator wants to know.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// A transfer that keeps breaking off after some progress goes on this often.
const MAX_ATTEMPTS: u32 = 50;
/// How much of a web page is shown.
const SHOWN_CHARS: usize = 60;

/// How often to try, and how long to wait in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Failures in a row until it is enough.
    pub(super) failures: u32,
    /// Ceiling of the first pause.
    pub(super) base: Duration,
    /// Ceiling of every pause.
    pub(super) cap: Duration,
}

impl Patience {
    /// Five attempts over about half a minute: a restart of a mirror passes, an outage is reported soon.
    pub(super) const DEFAULT: Self = Self { failures: 5, base: Duration::from_secs(2), cap: Duration::from_secs(30) };
}

/// An attempt that failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// May pass: try again, not before `after` if the server said so.
    Again {
        /// What to report when it was tried often enough.
        error: Error,
        /// The pause that the server asked for.
        after: Option<Duration>,
    },
    /// Will not pass.
    Never(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Never(error)
    }
}

/// The attempts at one thing.
#[derive(Debug)]
pub(super) struct Tries {
    patience: Patience,
    backoff: Backoff,
    failures_in_a_row: u32,
    attempts: u32,
}

impl Tries {
    pub(super) const fn new(patience: Patience) -> Self {
        let backoff = Backoff::new(patience.base, patience.cap);
        Self { patience, backoff, failures_in_a_row: 0, attempts: 0 }
    }

    /// The attempt got somewhere before it failed, so that it is no sign of an outage.
    pub(super) const fn progressed(&mut self) {
        self.failures_in_a_row = 0;
        self.backoff.reset();
    }

    /// Waits until the next attempt, or gives the error back where there should be none.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Error> {
        match self.pause(failure, fastrand::f64())? {
            Duration::ZERO => {}
            pause => tokio::time::sleep(pause).await,
        }
        Ok(())
    }

    fn pause(&mut self, failure: Failure, draw: f64) -> Result<Duration, Error> {
        let (error, after) = match failure {
            Failure::Never(error) => return Err(error),
            Failure::Again { error, after } => (error, after.unwrap_or_default()),
        };
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        self.attempts = self.attempts.saturating_add(1);
        let enough = self.failures_in_a_row >= self.patience.failures || self.attempts >= MAX_ATTEMPTS;
        if enough || after > MAX_RETRY_AFTER {
            return Err(error);
        }
        Ok(self.backoff.next(draw).max(after))
    }
}

/// The HTTP client with its patience.
#[derive(Debug)]
pub(super) struct Web {
    pub(super) client: Client,
    pub(super) patience: Patience,
}

impl Web {
    /// A file of at most `cap` bytes; `None` where there is none.
    pub(super) async fn small(&self, url: &Url, cap: usize) -> Result<Option<Vec<u8>>, Error> {
        let mut tries = Tries::new(self.patience);
        loop {
            match self.small_once(url, cap).await {
                Ok(body) => return Ok(Some(body)),
                Err(Failure::Never(Error::NotFound { .. })) => return Ok(None),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    async fn small_once(&self, url: &Url, cap: usize) -> Result<Vec<u8>, Failure> {
        let request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity").timeout(SMALL_TIMEOUT);
        let response = request.send().await.map_err(|error| transport(url, error))?;
        check(&response, url)?;
        let page = is_web_page(response.headers());
        let body = body(response, url, cap).await?;
        if page || begins_like_a_web_page(&body) {
            return Err(web_page(url, &body).into());
        }
        Ok(body)
    }
}

/// The whole body, as long as it has at most `cap` bytes.
pub(super) async fn body(mut response: Response, url: &Url, cap: usize) -> Result<Vec<u8>, Failure> {
    let too_large = || Error::TooLarge { what: http::shown(url), cap_bytes: cap as u64 };
    if response.content_length().is_some_and(|announced| announced > cap as u64) {
        return Err(too_large().into());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| transport(url, error))? {
        if body.len().saturating_add(chunk.len()) > cap {
            return Err(too_large().into());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What a failed request means for the next one.
pub(super) fn transport(url: &Url, error: reqwest::Error) -> Failure {
    let hopeless = error.is_builder() || error.is_redirect() || is_bad_certificate(&error);
    // The address is named once, without what may be secret in it.
    let error = Error::Unreachable { url: http::shown(url), source: error.without_url() };
    if hopeless { Failure::Never(error) } else { Failure::Again { error, after: None } }
}

/// A certificate does not become valid by asking again.
fn is_bad_certificate(error: &reqwest::Error) -> bool {
    let mut next = error.source();
    while let Some(cause) = next {
        // An io::Error skips the error it wraps when it is asked for its source.
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = cause
            .downcast_ref::<rustls::Error>()
            .or_else(|| wrapped.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::General(_))) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Passes an answer that brings the file.
pub(super) fn check(response: &Response, url: &Url) -> Result<(), Failure> {
    let redirected = response.url() != url;
    judge(response.status(), response.headers(), redirected, &http::shown(url), clock::now())
}

/// What status and headers mean.
fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    redirected: bool,
    shown: &str,
    now: SystemTime,
) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    if matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
        return Err(Error::NotFound { what: shown.to_owned() }.into());
    }
    let after = retry_after(headers, now);
    let retry_after_seconds = after.map(|pause| pause.as_secs());
    let error = Error::Status { url: shown.to_owned(), status, retry_after_seconds };
    let passing = match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => true,
        // The signed address that GitHub redirects to may be too new or too old; the next attempt gets another.
        StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN => redirected,
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => false,
        other => other.is_server_error(),
    };
    Err(if passing { Failure::Again { error, after } } else { Failure::Never(error) })
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(SystemTime::from(date.timestamp()).duration_since(now).unwrap_or_default())
}

/// True where the answer calls itself a web page.
pub(super) fn is_web_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml")
}

/// True where it is one, whatever it calls itself.
pub(super) fn begins_like_a_web_page(body: &[u8]) -> bool {
    let begin = body.trim_ascii_start();
    ["<!doctype", "<html", "<head"]
        .iter()
        .any(|tag| begin.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes())))
}

/// The error for a web page, with its first characters made printable.
pub(super) fn web_page(url: &Url, body: &[u8]) -> Error {
    let begin: String = String::from_utf8_lossy(body)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .filter(|c| !c.is_control())
        .take(SHOWN_CHARS)
        .collect();
    Error::WebPage { url: http::shown(url), begin }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn headers(retry_after: &str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, retry_after.parse().unwrap())])
    }

    fn again(after: Option<Duration>) -> Failure {
        Failure::Again { error: Error::NotFound { what: "x".into() }, after }
    }

    #[test]
    fn what_may_pass_is_tried_again_and_the_rest_is_not() {
        for (status, redirected, expected) in [
            (408, false, "again"),
            (425, false, "again"),
            (429, false, "again"),
            (500, false, "again"),
            (503, false, "again"),
            (400, true, "again"),
            (403, true, "again"),
            (400, false, "never"),
            (401, true, "never"),
            (403, false, "never"),
            (404, false, "missing"),
            (410, true, "missing"),
            (301, false, "never"),
            (416, false, "never"),
            (501, false, "never"),
            (200, false, "good"),
            (206, false, "good"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let found = match judge(status, &HeaderMap::new(), redirected, "x", UNIX_EPOCH) {
                Ok(()) => "good",
                Err(Failure::Never(Error::NotFound { .. })) => "missing",
                Err(Failure::Never(_)) => "never",
                Err(Failure::Again { .. }) => "again",
            };
            assert_eq!(found, expected, "{status} redirected {redirected}");
        }
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(1_445_412_480 - 30);
        for (text, expected) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("-5", None),
            ("soon", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(retry_after(&headers(text), now), expected.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn pauses_grow_follow_the_server_and_end() {
        let patience = Patience { failures: 5, base: Duration::from_secs(2), cap: Duration::from_secs(30) };
        let mut tries = Tries::new(patience);
        let pauses: Vec<u64> = (0..3).map(|_| tries.pause(again(None), 1.0).unwrap().as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8]);
        assert_eq!(tries.pause(again(Some(Duration::from_secs(60))), 0.0).unwrap().as_secs(), 60);
        tries.pause(again(None), 1.0).unwrap_err();
    }

    #[test]
    fn a_server_that_wants_an_hour_is_not_waited_for() {
        let mut tries = Tries::new(Patience::DEFAULT);
        tries.pause(again(Some(Duration::from_secs(3600))), 1.0).unwrap_err();
    }

    #[test]
    fn progress_earns_further_attempts_up_to_a_limit() {
        let mut tries = Tries::new(Patience { failures: 2, base: Duration::ZERO, cap: Duration::ZERO });
        let mut attempts = 0;
        while tries.pause(again(None), 1.0).is_ok() {
            tries.progressed();
            attempts += 1;
        }
        assert_eq!(attempts, MAX_ATTEMPTS - 1);
    }

    #[test]
    fn a_web_page_is_known_by_its_header_or_its_first_bytes() {
        let typed = |text: &str| HeaderMap::from_iter([(CONTENT_TYPE, text.parse().unwrap())]);
        assert!(is_web_page(&typed("text/HTML; charset=utf-8")));
        assert!(!is_web_page(&typed("application/octet-stream")));
        assert!(!is_web_page(&HeaderMap::new()));
        assert!(begins_like_a_web_page(b"\r\n <!DOCTYPE html>"));
        assert!(begins_like_a_web_page(b"<html lang=en>"));
        assert!(!begins_like_a_web_page(b"# tag: v1.2.0"));
        assert!(!begins_like_a_web_page(b"\x7fELF"));
    }

    #[test]
    fn a_web_page_is_quoted_briefly_and_without_control_characters() {
        let page = format!("<html>\x1b[2J\n\n <title>Sign\tin</title>{}", "x".repeat(1000));
        let error = web_page(&Url::parse("https://u:hunter2@m.corp/f?t=hunter2").unwrap(), page.as_bytes()).to_string();
        assert!(error.contains("captive portal") && error.contains("<title>Sign in</title>"), "{error}");
        assert!(!error.contains('\x1b') && !error.contains("hunter2") && error.len() < 300, "{error}");
    }
}
