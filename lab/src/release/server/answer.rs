//! From a request to its answer: first the fault that the whole answer may be, then the route.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use hyper::body::Incoming;
use hyper::header::{self, HeaderName};
use hyper::http::response::Builder;
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::super::faults::{Fault, Hop, LATEST, LISTING};
use super::super::flaws::HTML;
use super::range::{Part, part};
use super::route::{REPOSITORY, Route, route};
use super::{Site, body, listing, text};
use crate::serve::Body;

type Reply = io::Result<Response<Body>>;

/// Only the status and the headers of a refusal mean something; GitHub's own words are longer and change.
const RATE_LIMITED: &str = "API rate limit exceeded";

/// Answers one request at the download paths' port or at that of the bytes.
pub(super) async fn answer(site: &Site, at_asset_host: bool, request: &Request<Incoming>) -> Reply {
    let route = route(request.uri().path());
    let fault = {
        let mut state = site.state();
        state.requests.push(super::Request::new(request, at_asset_host));
        state.rest_calls += usize::from(route.is_rest());
        target(&route).and_then(|(target, hop)| state.faults.take(target, if site.is_mirror { Hop::Only } else { hop }))
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return site.say(StatusCode::METHOD_NOT_ALLOWED, "");
    }
    if let Some(Fault::Stall(long)) = fault {
        tokio::time::sleep(long).await;
    } else if let Some(instead) = fault.as_ref().and_then(|fault| site.instead(fault, request)) {
        return instead;
    }
    let ask = Ask { site, request, fault };
    match route {
        Route::Bytes { tag, asset } if at_asset_host => ask.bytes(&tag, &asset),
        Route::Download { tag, asset } if site.is_mirror => ask.bytes(&tag, &asset),
        Route::Download { tag, asset } if !at_asset_host => ask.download(&tag, &asset),
        Route::LatestDownload { asset } if !at_asset_host && !site.is_mirror => ask.latest_download(&asset),
        Route::LatestPage if !at_asset_host && !site.is_mirror => ask.latest_page(),
        Route::Listing | Route::LatestRelease | Route::TaggedRelease { .. } if !at_asset_host && !site.is_mirror => {
            ask.rest(&route)
        }
        Route::Bytes { .. }
        | Route::Download { .. }
        | Route::LatestDownload { .. }
        | Route::LatestPage
        | Route::Listing
        | Route::LatestRelease
        | Route::TaggedRelease { .. }
        | Route::Nothing => site.not_found(),
    }
}

/// Whose faults a request takes.
fn target(route: &Route) -> Option<(&str, Hop)> {
    match route {
        Route::Download { asset, .. } | Route::LatestDownload { asset } => Some((asset, Hop::Download)),
        Route::Bytes { asset, .. } => Some((asset, Hop::Bytes)),
        Route::LatestPage => Some((LATEST, Hop::Only)),
        Route::Listing | Route::LatestRelease | Route::TaggedRelease { .. } => Some((LISTING, Hop::Only)),
        Route::Nothing => None,
    }
}

impl Site {
    /// A short answer.
    fn say(&self, status: StatusCode, content: &str) -> Reply {
        self.short(Response::builder().status(status), content, None)
    }

    fn not_found(&self) -> Reply {
        self.say(StatusCode::NOT_FOUND, "Not Found")
    }

    fn redirect(&self, to: &str) -> Reply {
        self.short(Response::builder().status(StatusCode::FOUND).header(header::LOCATION, to), "", None)
    }

    fn short(&self, response: Builder, content: &str, fault: Option<&Fault>) -> Reply {
        self.send(response, body::bytes(content), content.len() as u64, fault)
    }

    /// An answer of `length` bytes, unless `fault` says otherwise.
    fn send(&self, response: Builder, source: body::Source, length: u64, fault: Option<&Fault>) -> Reply {
        let announced = match fault {
            Some(Fault::Endless) => None,
            Some(Fault::ContentLength(other)) => Some(*other),
            Some(_) | None => Some(length),
        };
        let response = match announced {
            Some(length) => response.header(header::CONTENT_LENGTH, length),
            None => response,
        };
        response.body(body::body(source, fault, &self.bytes_sent)).map_err(io::Error::other)
    }

    /// The answer that a fault puts in the place of the right one.
    fn instead(&self, fault: &Fault, request: &Request<Incoming>) -> Option<Reply> {
        let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let ok = Response::builder();
        Some(match fault {
            Fault::Status(code) => self.say(status(*code), ""),
            Fault::RetryAfter(code, when) => {
                self.short(ok.status(status(*code)).header(header::RETRY_AFTER, when), "", None)
            }
            Fault::Html => self.short(ok.header(header::CONTENT_TYPE, "text/html; charset=utf-8"), HTML, None),
            Fault::NotJson => self.short(ok.header(header::CONTENT_TYPE, "application/json"), "[{\"tag_name\":", None),
            Fault::RedirectTo(address) => self.redirect(address),
            Fault::RedirectLoop => self.redirect(&request.uri().to_string()),
            Fault::Stall(_)
            | Fault::CutAfter(_)
            | Fault::StallAfter(..)
            | Fault::Slow(_)
            | Fault::ContentLength(_)
            | Fault::Endless
            | Fault::NoRange
            | Fault::ChangedEtag => return None,
        })
    }
}

/// A request on its way to its answer.
struct Ask<'a> {
    site: &'a Site,
    request: &'a Request<Incoming>,
    fault: Option<Fault>,
}

impl Ask<'_> {
    fn header(&self, name: &HeaderName) -> Option<&str> {
        text(self.request.headers(), name)
    }

    fn is_published(&self, tag: &str, asset: &str) -> bool {
        !self.site.state().marks.is_draft(tag) && self.site.dir.join(tag).join(asset).is_file()
    }

    fn download(&self, tag: &str, asset: &str) -> Reply {
        if !self.is_published(tag, asset) {
            return self.site.not_found();
        }
        // GitHub's asset host takes a signed query, which stands for a long address here.
        self.site.redirect(&format!("{}/assets/{tag}/{asset}?sig=lab", self.site.base(true)))
    }

    fn bytes(&self, tag: &str, asset: &str) -> Reply {
        if !self.is_published(tag, asset) {
            return self.site.not_found();
        }
        let file = File::open(self.site.dir.join(tag).join(asset))?;
        let about = file.metadata()?;
        let etag = self.etag(&format!("{:x}-{:x}-{:x}", about.len(), about.mtime(), about.mtime_nsec()));
        let ignores_ranges = matches!(self.fault, Some(Fault::NoRange));
        let range = if ignores_ranges { None } else { self.header(&header::RANGE) };
        let mut response =
            Response::builder().header(header::ETAG, &etag).header(header::CONTENT_TYPE, "application/octet-stream");
        if !ignores_ranges {
            response = response.header(header::ACCEPT_RANGES, "bytes");
        }
        let (first, length) = match part(range, self.header(&header::IF_RANGE), &etag, about.len()) {
            Part::Whole => (0, about.len()),
            Part::Slice { first, length } => {
                let range = format!("bytes {first}-{}/{}", first + length - 1, about.len());
                response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
                (first, length)
            }
            Part::Unsatisfiable => {
                let range = format!("bytes */{}", about.len());
                let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, range);
                return self.site.short(response, "", None);
            }
        };
        if self.request.method() == Method::GET {
            self.site.state().downloads += 1;
        }
        self.site.send(response, body::slice(file, first, length)?, length, self.fault.as_ref())
    }

    /// A strong entity tag of this state of an asset.
    fn etag(&self, of: &str) -> String {
        if matches!(self.fault, Some(Fault::ChangedEtag)) {
            let mut state = self.site.state();
            state.changed_etags += 1;
            return format!("\"{of}-changed-{}\"", state.changed_etags);
        }
        format!("\"{of}\"")
    }

    fn latest(&self) -> io::Result<Option<String>> {
        let marks = self.site.state().marks.clone();
        Ok(listing::tags(&self.site.dir)?.into_iter().find(|tag| marks.is_stable(tag)))
    }

    fn latest_page(&self) -> Reply {
        match self.latest()? {
            Some(tag) => self.site.redirect(&format!("{}/{REPOSITORY}/releases/tag/{tag}", self.site.base(false))),
            None => self.site.not_found(),
        }
    }

    fn latest_download(&self, asset: &str) -> Reply {
        match self.latest()? {
            Some(tag) => {
                self.site.redirect(&format!("{}/{REPOSITORY}/releases/download/{tag}/{asset}", self.site.base(false)))
            }
            None => self.site.not_found(),
        }
    }

    /// The REST API: limit, then condition, then content.
    fn rest(&self, route: &Route) -> Reply {
        let rate = self.site.state().rate;
        if rate.remaining == 0 {
            let status = StatusCode::from_u16(rate.refusal).unwrap_or(StatusCode::FORBIDDEN);
            return self.json(Response::builder().status(status), &json!({ "message": RATE_LIMITED }));
        }
        let Some((content, link)) = self.content(route)? else {
            self.count_down();
            let response = Response::builder().status(StatusCode::NOT_FOUND);
            return self.json(response, &json!({ "message": "Not Found" }));
        };
        let mut hash = DefaultHasher::new();
        content.to_string().hash(&mut hash);
        // GitHub's are weak, and so must be compared weakly (RFC 9110, 13.1.2).
        let etag = format!("W/\"{:016x}\"", hash.finish());
        let mut response = Response::builder().header(header::ETAG, &etag);
        if let Some(link) = link {
            response = response.header(header::LINK, link);
        }
        if self.header(&header::IF_NONE_MATCH) == Some(&etag) {
            let response = self.limits(response.status(StatusCode::NOT_MODIFIED));
            return response.body(body::body(body::bytes(""), None, &self.site.bytes_sent)).map_err(io::Error::other);
        }
        self.count_down();
        self.json(response, &content)
    }

    /// The JSON of a route and its `Link` header, or nothing where there is no such release.
    fn content(&self, route: &Route) -> io::Result<Option<(Value, Option<String>)>> {
        let (dir, base) = (&self.site.dir, self.site.base(false));
        let marks = self.site.state().marks.clone();
        let tag = match route {
            Route::TaggedRelease { tag } => dir.join(tag).is_dir().then(|| tag.clone()),
            Route::LatestRelease => self.latest()?,
            Route::Listing
            | Route::Download { .. }
            | Route::LatestDownload { .. }
            | Route::LatestPage
            | Route::Bytes { .. }
            | Route::Nothing => {
                let address = format!("{base}{}", self.request.uri().path());
                let page = listing::page(&listing::tags(dir)?, self.request.uri().query().unwrap_or(""), &address);
                let releases = page.tags.iter().map(|tag| listing::release(dir, tag, &marks, &base));
                return Ok(Some((releases.collect::<io::Result<Value>>()?, page.link)));
            }
        };
        Ok(match tag {
            Some(tag) => Some((listing::release(dir, &tag, &marks, &base)?, None)),
            None => None,
        })
    }

    fn count_down(&self) {
        let mut state = self.site.state();
        state.rate.remaining = state.rate.remaining.saturating_sub(1);
    }

    fn limits(&self, response: Builder) -> Builder {
        let rate = self.site.state().rate;
        response
            .header("x-ratelimit-limit", rate.limit)
            .header("x-ratelimit-remaining", rate.remaining)
            .header("x-ratelimit-used", rate.limit.saturating_sub(rate.remaining))
            .header("x-ratelimit-reset", rate.reset)
    }

    fn json(&self, response: Builder, content: &Value) -> Reply {
        let response = self.limits(response.header(header::CONTENT_TYPE, "application/json; charset=utf-8"));
        self.site.short(response, &content.to_string(), self.fault.as_ref())
    }
}
