//! Lists a repository's releases over GitHub's REST API.
//!
//! Sixty calls an hour are all that GitHub allows an address without a token, and a fleet behind one NAT shares them. So
//! this is the second choice (contract section 4), and it is conditional: an answer "not modified" does not count. The
//! last listing and its ETag lie in a file between runs.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, LINK};
use reqwest::{RequestBuilder, StatusCode};
use semver::Version;
use serde::{Deserialize, Serialize};
use url::Url;

use super::Error;
use super::request::{self, Failure, Tries, Web};
use crate::secret::Secret;
use crate::{durable, http};

/// GitHub's slowest listings take some seconds.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
const RELEASES_PER_PAGE: usize = 50;
/// 200 releases: an agent further behind than that can be given a version.
const MAX_PAGES: usize = 4;
/// A release with 30 assets is about 60 kB of JSON.
const PAGE_BYTES: usize = 8 << 20;
/// 200 tags and an ETag.
const CACHE_BYTES: u64 = 1 << 20;
const CACHE_NAME: &str = "releases.json";
/// Longer ones are not kept.
const MAX_ETAG_CHARS: usize = 256;

/// A repository's releases.
#[derive(Debug)]
pub(super) struct Listing {
    /// `<api>/repos/<owner>/<repository>/releases`
    pub(super) url: Url,
    pub(super) token: Option<Secret>,
    /// Only root can enter it.
    pub(super) cache_dir: PathBuf,
}

/// One release as the REST API describes it; the rest of its many fields is skipped.
#[derive(Deserialize)]
struct Release {
    tag_name: String,
    #[serde(default)]
    draft: bool,
    #[serde(default)]
    prerelease: bool,
}

/// What is kept between runs. Readers ignore a file that they do not understand.
#[derive(Debug, Serialize, Deserialize)]
struct Cache {
    schema: u32,
    url: String,
    etag: String,
    tags: Vec<String>,
}

impl Cache {
    const SCHEMA: u32 = 1;

    fn versions(&self) -> Vec<Version> {
        self.tags.iter().filter_map(|tag| tagged(tag)).collect()
    }
}

/// One page of the listing.
enum Page {
    NotModified,
    Releases { versions: Vec<Version>, etag: Option<String>, more: bool },
}

impl Listing {
    pub(super) async fn releases(&self, web: &Web) -> Result<Vec<Version>, Error> {
        let cache = self.read_cache();
        let (mut versions, mut first_etag) = (Vec::new(), None);
        for number in 1..=MAX_PAGES {
            // New releases are on the first page: while that is unchanged, so is what matters of the others.
            let known = cache.as_ref().filter(|_| number == 1);
            match self.page(web, number, known.map(|cache| cache.etag.as_str())).await? {
                Page::NotModified => return Ok(cache.map(|cache| cache.versions()).unwrap_or_default()),
                Page::Releases { versions: page, etag, more } => {
                    versions.extend(page);
                    first_etag = first_etag.or(etag.filter(|_| number == 1));
                    if !more {
                        break;
                    }
                }
            }
        }
        if let Some(etag) = first_etag {
            self.write_cache(etag, &versions);
        }
        Ok(versions)
    }

    async fn page(&self, web: &Web, number: usize, etag: Option<&str>) -> Result<Page, Error> {
        let mut tries = Tries::new(web.patience);
        loop {
            match self.page_once(web, number, etag).await {
                Ok(page) => return Ok(page),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    async fn page_once(&self, web: &Web, number: usize, etag: Option<&str>) -> Result<Page, Failure> {
        let mut url = self.url.clone();
        url.set_query(Some(&format!("per_page={RELEASES_PER_PAGE}&page={number}")));
        let request = self.authorized(web.client.get(url.clone()));
        let request = match etag {
            Some(etag) => request.header(IF_NONE_MATCH, etag),
            None => request,
        };
        let response = request.send().await.map_err(|error| request::transport(&url, error))?;
        if response.status() == StatusCode::NOT_MODIFIED && etag.is_some() {
            return Ok(Page::NotModified);
        }
        self.refusal(response.status(), response.headers()).map_or(Ok(()), Err)?;
        request::check(&response, &url)?;
        let (etag, more) = (kept_etag(response.headers()), has_next(response.headers()));
        let body = request::body(response, &url, PAGE_BYTES).await?;
        if request::begins_like_a_web_page(&body) {
            return Err(request::web_page(&url, &body).into());
        }
        let releases: Vec<Release> =
            serde_json::from_slice(&body).map_err(|_| Error::BadListing { url: http::shown(&self.url) })?;
        Ok(Page::Releases { versions: releases.iter().filter_map(version).collect(), etag, more })
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request
            .header(ACCEPT, "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .timeout(LIST_TIMEOUT);
        let bearer = self.token.as_ref().and_then(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose().trim())).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        match bearer {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }

    /// Refusals that a REST API phrases in its own way.
    fn refusal(&self, status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
        let url = || http::shown(&self.url);
        let exhausted = number(headers, "x-ratelimit-remaining") == Some(0);
        let error = match status {
            StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS if exhausted => {
                Error::RateLimited { reset_epoch_seconds: number(headers, "x-ratelimit-reset") }
            }
            StatusCode::UNAUTHORIZED if self.token.is_some() => Error::BadToken { url: url() },
            // github.com always lists, so there it is the repository that is missing.
            StatusCode::NOT_FOUND if self.url.host_str() == Some("api.github.com") => {
                Error::NotFound { what: format!("the repository of {}", url()) }
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Error::NoListing { url: url() },
            _ => return None,
        };
        Some(error.into())
    }

    fn read_cache(&self) -> Option<Cache> {
        let mut text = Vec::new();
        let file = File::open(self.cache_dir.join(CACHE_NAME)).ok()?;
        file.take(CACHE_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice::<Cache>(&text)
            .ok()
            .filter(|cache| cache.schema == Cache::SCHEMA && cache.url == http::shown(&self.url))
    }

    /// Without the file the next listing costs a call; that is no reason to fail.
    fn write_cache(&self, etag: String, versions: &[Version]) {
        let tags = versions.iter().map(crate::update::trust::tag).collect();
        let cache = Cache { schema: Cache::SCHEMA, url: http::shown(&self.url), etag, tags };
        let path = self.cache_dir.join(CACHE_NAME);
        let written = serde_json::to_vec(&cache).map(|text| durable::write(&path, &text, 0o600));
        if let Ok(Err(error)) = written {
            tracing::debug!(error = http::chain(&error), "the list of releases is not kept");
        }
    }
}

/// The version of a release that people may install: no draft, and not held back as a pre-release under a stable name.
fn version(release: &Release) -> Option<Version> {
    let version = tagged(&release.tag_name)?;
    let held_back = release.prerelease && version.pre.is_empty();
    (!release.draft && !held_back).then_some(version)
}

/// The version behind a tag `vX.Y.Z`; other tags belong to something else.
pub(super) fn tagged(tag: &str) -> Option<Version> {
    Version::parse(tag.strip_prefix('v')?).ok().filter(|version| version.build.is_empty())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn kept_etag(headers: &HeaderMap) -> Option<String> {
    let etag = headers.get(ETAG)?.to_str().ok()?;
    (etag.len() <= MAX_ETAG_CHARS).then(|| etag.to_owned())
}

/// True where `Link` (RFC 8288) names a next page. Its address is not used: pages are counted here.
fn has_next(headers: &HeaderMap) -> bool {
    let links = headers.get(LINK).and_then(|value| value.to_str().ok()).unwrap_or_default();
    links.split(',').any(|link| link.split(';').any(|part| matches!(part.trim(), r#"rel="next""# | "rel=next")))
}
