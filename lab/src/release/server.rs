//! A release server that answers as GitHub does, or as a plain mirror, and misbehaves on request.
//!
//! GitHub spreads a download over two hosts: the download path answers with a redirect to a host that has the bytes. Here
//! the second host is a second port. What is served is read from a directory at each request, so that a test can publish
//! another release, or exchange an asset, while it runs.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hyper::header::{HeaderMap, HeaderName};

use super::faults::{Fault, Faults};
use crate::serve::{Handler, Network, Server};

mod answer;
mod body;
mod listing;
mod range;
mod route;

use listing::Marks;

/// A request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Whether it came to the host that has the bytes (always `false` at a mirror).
    pub at_asset_host: bool,
    /// `Range`.
    pub range: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// `Authorization`. Tests use invented tokens; it is here to see that none goes to a host that it is not for.
    pub authorization: Option<String>,
}

impl Request {
    fn new<B>(request: &hyper::Request<B>, at_asset_host: bool) -> Self {
        let header = |name: HeaderName| text(request.headers(), &name).map(str::to_owned);
        Self {
            method: request.method().to_string(),
            path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            at_asset_host,
            range: header(hyper::header::RANGE),
            if_range: header(hyper::header::IF_RANGE),
            if_none_match: header(hyper::header::IF_NONE_MATCH),
            authorization: header(hyper::header::AUTHORIZATION),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What the REST API allows, and how it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `x-ratelimit-limit`: calls per hour.
    pub limit: u32,
    /// `x-ratelimit-remaining`: counts down with each answer but 304; at 0 calls are refused.
    pub remaining: u32,
    /// `x-ratelimit-reset`: seconds since 1970 at which the count begins anew. The server does not act on it.
    pub reset: u64,
    /// The status of a refusal: GitHub uses 403 and 429.
    pub refusal: u16,
}

impl Default for RateLimit {
    /// GitHub's 60 calls per hour for those without a token.
    fn default() -> Self {
        Self { limit: 60, remaining: 60, reset: 4_000_000_000, refusal: 403 }
    }
}

/// What changes while the server runs.
#[derive(Debug)]
struct State {
    host: String,
    faults: Faults,
    marks: Marks,
    rate: RateLimit,
    requests: Vec<Request>,
    rest_calls: usize,
    downloads: usize,
    /// Makes the entity tags of [`Fault::ChangedEtag`] differ.
    changed_etags: usize,
}

/// What both ports share.
#[derive(Debug)]
struct Site {
    dir: PathBuf,
    scheme: &'static str,
    is_mirror: bool,
    /// Of the download paths, and of the bytes; equal at a mirror.
    ports: OnceLock<(u16, u16)>,
    state: Mutex<State>,
    bytes_sent: Arc<AtomicU64>,
}

impl Site {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `scheme://host:port` of the download paths (`asset_host` false) or of the bytes.
    fn base(&self, asset_host: bool) -> String {
        let (front, back) = self.ports.get().copied().unwrap_or_default();
        let port = if asset_host { back } else { front };
        format!("{}://{}:{port}", self.scheme, self.state().host)
    }
}

/// A running release server; it ends when this is dropped.
#[derive(Debug)]
pub struct ReleaseServer {
    site: Arc<Site>,
    front: Server,
    /// Not at a mirror.
    back: Option<Server>,
}

impl ReleaseServer {
    /// Serves the releases in `dir` (`<dir>/<tag>/<asset>`) like GitHub, on two free ports of `network`.
    ///
    /// # Errors
    /// See [`Network::bind`].
    pub fn start(network: &Network, tls: Option<Arc<rustls::ServerConfig>>, dir: &Path) -> io::Result<Self> {
        Self::serve(network, tls, dir, false)
    }

    /// Serves them like a mirror: the same download paths, without redirect, and no REST API.
    ///
    /// # Errors
    /// See [`Network::bind`].
    pub fn mirror(network: &Network, tls: Option<Arc<rustls::ServerConfig>>, dir: &Path) -> io::Result<Self> {
        Self::serve(network, tls, dir, true)
    }

    fn serve(
        network: &Network,
        tls: Option<Arc<rustls::ServerConfig>>,
        dir: &Path,
        is_mirror: bool,
    ) -> io::Result<Self> {
        let state = State {
            host: "127.0.0.1".to_owned(),
            faults: Faults::default(),
            marks: Marks::default(),
            rate: RateLimit::default(),
            requests: Vec::new(),
            rest_calls: 0,
            downloads: 0,
            changed_etags: 0,
        };
        let site = Arc::new(Site {
            dir: dir.to_owned(),
            scheme: if tls.is_some() { "https" } else { "http" },
            is_mirror,
            ports: OnceLock::new(),
            state: Mutex::new(state),
            bytes_sent: Arc::default(),
        });
        let back = if is_mirror { None } else { Some(Server::start(network, 0, tls.clone(), handler(&site, true))?) };
        let front = Server::start(network, 0, tls, handler(&site, false))?;
        let port = front.address().port();
        site.ports.get_or_init(|| (port, back.as_ref().map_or(port, |back| back.address().port())));
        Ok(Self { site, front, back })
    }

    /// Uses this name instead of `127.0.0.1` in every address, such as the name in the TLS certificate. It must resolve to
    /// 127.0.0.1 for the client.
    #[must_use]
    pub fn named(self, host: &str) -> Self {
        host.clone_into(&mut self.site.state().host);
        self
    }

    /// What `update.source` should be.
    #[must_use]
    pub fn source_url(&self) -> String {
        format!("{}/{}", self.site.base(false), route::REPOSITORY)
    }

    /// What `update.api_url` would be; the default that the agent derives from [`source_url`](Self::source_url) is the same.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("{}/api/v3", self.site.base(false))
    }

    /// The port of the download paths, and that of the bytes (equal at a mirror).
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        let front = self.front.address().port();
        (front, self.back.as_ref().map_or(front, |back| back.address().port()))
    }

    /// Lets `fault` happen to the next `times` requests for `target`: an asset's name (whatever the tag),
    /// [`LISTING`](super::LISTING) or [`LATEST`](super::LATEST).
    pub fn inject(&self, target: &str, fault: Fault, times: usize) {
        self.site.state().faults.add(target, fault, times);
    }

    /// Forgets all faults that did not happen yet.
    pub fn clear_faults(&self) {
        self.site.state().faults.clear();
    }

    /// Sets the REST API's limit from now on.
    pub fn set_rate_limit(&self, rate: RateLimit) {
        self.site.state().rate = rate;
    }

    /// Marks a release as a draft: listed with `draft: true`, and its assets are not found.
    pub fn mark_draft(&self, tag: &str) {
        self.site.state().marks.drafts.insert(tag.to_owned());
    }

    /// Marks a release as a pre-release, whatever its version says.
    pub fn mark_prerelease(&self, tag: &str) {
        self.site.state().marks.prereleases.insert(tag.to_owned());
    }

    /// How many requests for the REST API came, refused ones included.
    #[must_use]
    pub fn rest_calls(&self) -> usize {
        self.site.state().rest_calls
    }

    /// How many times the bytes of an asset, or a part of them, were sent or begun to be.
    #[must_use]
    pub fn downloads(&self) -> usize {
        self.site.state().downloads
    }

    /// How many bytes of bodies the connections took, of assets and everything else.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.site.bytes_sent.load(Ordering::Relaxed)
    }

    /// All requests so far, in the order in which they came.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.site.state().requests.clone()
    }
}

fn handler(site: &Arc<Site>, at_asset_host: bool) -> Handler {
    let site = Arc::clone(site);
    Arc::new(move |request| {
        let site = Arc::clone(&site);
        Box::pin(async move { answer::answer(&site, at_asset_host, &request).await })
    })
}

#[cfg(test)]
mod tests;
