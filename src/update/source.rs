//! Where releases come from: a GitHub repository, a mirror with the same download paths, or a directory.
//!
//! ```text
//! <source>/releases/download/<tag>/<asset>      GitHub, GitHub Enterprise Server, any mirror
//! <dir>/<tag>/<asset>                           a directory
//! ```
//!
//! Nothing here decides what is believed: a source hands over bytes, [`super::trust`] judges them. So a source may be
//! anything that serves files, and a redirect may lead to any host. What a source must not be able to do is to fill the
//! disk, to keep the updater waiting for ever, or to learn the GitHub token; the limits are here.

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::{Client, StatusCode};
use semver::Version;
use url::Url;

use crate::clock;
use crate::durable;
use crate::exit::Reason;
use crate::http;
use crate::secret::Secret;

use self::address::Address;
use self::directory::Directory;
use self::github::Listing;
use self::request::{Patience, Web};
use super::digest::Sha256;

mod address;
mod directory;
mod download;
mod github;
mod request;

pub use address::AddressProblem;
pub use download::{Asset, Download, Progress};

/// What a source is made from.
#[derive(Debug)]
pub struct Config<'a> {
    /// `update.source`: an address, a directory, or a `file://` address of one.
    pub source: &'a str,
    /// `update.api_url`: base of GitHub's REST API, where it is not the default of the source's host.
    pub api_url: Option<&'a Url>,
    /// `GITHUB_TOKEN`, sent to the REST API only.
    pub github_token: Option<Secret>,
    /// Plain `http://` is accepted for hosts other than loopback.
    pub allow_insecure_http: bool,
    /// Made for [`http::Purpose::Releases`].
    pub client: Client,
    /// Where the last listing is kept, so that asking again costs nothing: a directory that only root can enter.
    pub cache_dir: PathBuf,
}

/// A place that has releases.
#[derive(Debug)]
pub struct Source {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Server(Box<Server>),
    Directory(Directory),
}

/// A server with GitHub's download paths.
#[derive(Debug)]
struct Server {
    base: Url,
    web: Web,
    /// Where it may have a list of releases as well.
    listing: Option<Listing>,
}

impl Source {
    /// Makes sense of the configured source. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Address`] where the text is neither a usable address nor an absolute path.
    pub fn open(config: Config<'_>) -> Result<Self, Error> {
        let address = address::parse(config.source, config.api_url, config.allow_insecure_http)
            .map_err(|problem| Error::Address { source: problem })?;
        let kind = match address {
            Address::Directory(path) => Kind::Directory(Directory::new(path)),
            Address::Web { base, releases } => {
                let web = Web { client: config.client, patience: Patience::DEFAULT };
                let listing =
                    releases.map(|url| Listing { url, token: config.github_token, cache_dir: config.cache_dir });
                Kind::Server(Box::new(Server { base, web, listing }))
            }
        };
        Ok(Self { kind })
    }

    /// A small file of a release; `None` where the source does not have it.
    ///
    /// # Errors
    /// The source cannot be reached, answers with something else, or with more than `cap` bytes.
    pub async fn fetch_small(&self, tag: &str, asset: &str, cap: usize) -> Result<Option<Vec<u8>>, Error> {
        match &self.kind {
            Kind::Server(server) => server.web.small(&address::asset(&server.base, tag, asset), cap).await,
            Kind::Directory(directory) => directory.small(tag, asset, cap),
        }
    }

    /// The versions of all releases that are not drafts, in no particular order.
    ///
    /// Costs a REST call, of which GitHub allows 60 an hour and address without a token: ask only when the tag that is
    /// wanted does not exist.
    ///
    /// # Errors
    /// The source cannot list, cannot be reached, or allows no more calls for now.
    pub async fn list_releases(&self) -> Result<Vec<Version>, Error> {
        match &self.kind {
            Kind::Server(server) => match &server.listing {
                Some(listing) => listing.releases(&server.web).await,
                None => Err(Error::NoListing { url: http::shown(&server.base) }),
            },
            Kind::Directory(directory) => directory.releases(),
        }
    }

    /// Fetches a file of a release into `staging`, a directory that only root can enter, and hashes it on the way.
    ///
    /// What an earlier, broken attempt left there is used; the finished file stays there as well, under its own name,
    /// until the caller clears the directory. `progress` is called with the bytes so far and in all.
    ///
    /// # Errors
    /// The source fails for good or too often in a row, the file is too large or not the expected one, or the disk fails.
    pub async fn download(
        &self,
        asset: &Asset<'_>,
        staging: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<Download, Error> {
        match &self.kind {
            Kind::Server(server) => {
                let url = address::asset(&server.base, asset.tag, asset.name);
                download::fetch(&server.web, &url, asset, staging, progress).await
            }
            Kind::Directory(directory) => directory.copy(asset, staging, progress),
        }
    }
}

/// The address as people may see it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Server(server) => f.write_str(http::shown(&server.base).trim_end_matches('/')),
            Kind::Directory(directory) => directory.path().display().fmt(f),
        }
    }
}

/// Why a source did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `update.source` or `update.api_url` is of no use.
    #[error("update.source is not usable")]
    Address {
        /// What is wrong with it.
        source: AddressProblem,
    },
    /// No answer, or one that broke off or stood still.
    #[error("cannot fetch {url}; check update.source, the network and the proxy, then try again")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// An answer that is no file.
    #[error("{url} answered {status}{}", later(*retry_after_seconds))]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
        /// How long the source wants to be left alone.
        retry_after_seconds: Option<u64>,
    },
    /// A web page in place of a file.
    #[error(
        "a proxy or captive portal answered instead of the release source: {url} is a web page that begins with {begin:?}"
    )]
    WebPage {
        /// What was asked for.
        url: String,
        /// How the page begins, made printable.
        begin: String,
    },
    /// There is no such release, or it lacks this file.
    #[error("{what} does not exist; a new release may take some minutes until all its files are there")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// More bytes than allowed, announced or sent.
    #[error("{what} is larger than the {cap_bytes} bytes that it may have")]
    TooLarge {
        /// What was asked for.
        what: String,
        /// The limit.
        cap_bytes: u64,
    },
    /// The file kept ending early.
    #[error("{url} ended after {got_bytes} of {announced_bytes} bytes, again and again")]
    Truncated {
        /// What was asked for.
        url: String,
        /// What came.
        got_bytes: u64,
        /// What was announced.
        announced_bytes: u64,
    },
    /// The file arrived and is another one.
    #[error("{what} has SHA-256 {found}, but {expected} was signed")]
    Hash {
        /// What was asked for.
        what: String,
        /// The signed hash.
        expected: Sha256,
        /// What arrived.
        found: Sha256,
    },
    /// The REST API allows no more calls for now.
    #[error("GitHub's REST API takes no more requests from here{}: wait, set GITHUB_TOKEN, or name a version with --version", until(*reset_epoch_seconds))]
    RateLimited {
        /// When it will, in seconds since 1970.
        reset_epoch_seconds: Option<u64>,
    },
    /// The token is refused.
    #[error("{url} does not accept GITHUB_TOKEN: renew it or unset it")]
    BadToken {
        /// What was asked for.
        url: String,
    },
    /// The source serves files but no list of releases.
    #[error("{url} has no list of releases: name a version with --version, or set update.api_url")]
    NoListing {
        /// What was asked for.
        url: String,
    },
    /// The list of releases makes no sense.
    #[error("{url} answered with something other than a list of releases; check update.source and update.api_url")]
    BadListing {
        /// What was asked for.
        url: String,
    },
    /// The disk failed or is full.
    #[error("cannot store the download")]
    Disk(#[from] durable::Error),
}

impl Error {
    /// The reason word of an update that stops here.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Address { .. } => Reason::ConfigInvalid,
            Self::Unreachable { .. }
            | Self::Status { .. }
            | Self::WebPage { .. }
            | Self::RateLimited { .. }
            | Self::BadToken { .. }
            | Self::BadListing { .. } => Reason::SourceUnreachable,
            Self::NotFound { .. } | Self::NoListing { .. } => Reason::NotFound,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::Truncated { .. } => Reason::Truncated,
            Self::Hash { .. } => Reason::BadChecksum,
            Self::Disk(error) if error.is_full() => Reason::NoSpace,
            Self::Disk(_) => Reason::DiskError,
        }
    }
}

fn later(retry_after_seconds: Option<u64>) -> String {
    retry_after_seconds.map(|seconds| format!("; it asks to come back in {seconds} s")).unwrap_or_default()
}

fn until(reset_epoch_seconds: Option<u64>) -> String {
    reset_epoch_seconds
        .and_then(|seconds| std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(seconds)))
        .map(|time| format!(" until {}", clock::rfc3339(time)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
