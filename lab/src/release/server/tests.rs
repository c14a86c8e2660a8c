//! The server as a client on a socket sees it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::super::faults::{ALWAYS, LATEST, LISTING};
use super::super::{Release, SigningKey};
use super::*;

const BINARY: &str = "bamf-agent-linux-amd64";

/// An answer as far as it came: `body` is what followed the headers, chunk marks included.
#[derive(Debug)]
struct Answered {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answered {
    /// Whether all bytes that `Content-Length` promised came.
    fn is_complete(&self) -> bool {
        self.headers["content-length"].parse() == Ok(self.body.len())
    }
}

/// Sends one request and reads until the server closes, or until `limit` bytes came.
fn ask(url: &str, headers: &[(&str, &str)], limit: u64) -> Answered {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let extra: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{extra}\r\n").unwrap();
    let mut raw = Vec::new();
    stream.take(limit).read_to_end(&mut raw).unwrap();
    let end = raw.windows(4).position(|window| window == b"\r\n\r\n").expect("a header section");
    let head = String::from_utf8(raw[..end].to_vec()).unwrap();
    let (first, rest) = head.split_once("\r\n").unwrap();
    let line = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
    Answered {
        status: first.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: rest.lines().map(line).collect(),
        body: raw.split_off(end + 4),
    }
}

fn get(url: &str) -> Answered {
    ask(url, &[], u64::MAX)
}

/// Follows the one redirect of a download.
fn fetch(server: &ReleaseServer, asset: &str, headers: &[(&str, &str)]) -> Answered {
    let redirect = get(&download(server, "v1.2.0", asset));
    assert_eq!(redirect.status, 302, "{redirect:?}");
    ask(&redirect.headers["location"], headers, u64::MAX)
}

fn download(server: &ReleaseServer, tag: &str, asset: &str) -> String {
    format!("{}/releases/download/{tag}/{asset}", server.source_url())
}

fn content() -> Vec<u8> {
    (0_u32..50_000).flat_map(u32::to_le_bytes).collect()
}

/// Releases v1.0.0, v1.1.0 and v1.2.0; the last has a binary of 200 000 bytes.
fn releases() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::from_seed([5; 32]);
    for tag in ["v1.0.0", "v1.1.0", "v1.2.0"] {
        Release::new(tag).binary("amd64", content()).signed_by(&key).write(dir.path()).unwrap();
    }
    dir
}

fn github() -> (tempfile::TempDir, ReleaseServer) {
    let dir = releases();
    let server = ReleaseServer::start(&Network::Host, None, dir.path()).unwrap();
    (dir, server)
}

#[test]
fn a_download_is_redirected_to_another_host_that_has_the_bytes() {
    let (_dir, server) = github();
    let redirect = get(&download(&server, "v1.2.0", BINARY));
    assert_eq!(redirect.status, 302);
    let (front, back) = server.ports();
    assert_ne!(front, back);
    assert!(redirect.headers["location"].starts_with(&format!("http://127.0.0.1:{back}/assets/v1.2.0/{BINARY}")));
    assert_eq!(server.downloads(), 0);

    let answer = fetch(&server, BINARY, &[("Authorization", "Bearer invented")]);
    assert_eq!((answer.status, answer.body == content()), (200, true));
    assert_eq!(answer.headers["content-length"], "200000");
    assert_eq!((server.downloads(), server.bytes_sent(), server.rest_calls()), (1, 200_000, 0));
    let last = server.requests().pop().unwrap();
    assert_eq!((last.at_asset_host, last.authorization.as_deref()), (true, Some("Bearer invented")));
}

#[test]
fn what_is_not_published_is_not_found() {
    let (_dir, server) = github();
    server.mark_draft("v1.1.0");
    for (tag, asset) in [("v9.0.0", BINARY), ("v1.2.0", "no-such-asset"), ("v1.1.0", BINARY), ("..", "passwd")] {
        assert_eq!(get(&download(&server, tag, asset)).status, 404, "{tag}/{asset}");
    }
}

#[test]
fn a_download_resumes_where_it_was_cut() {
    let (_dir, server) = github();
    server.inject(BINARY, Fault::CutAfter(120_000), 1);
    let first = fetch(&server, BINARY, &[]);
    assert_eq!((first.status, first.is_complete(), first.body.len()), (200, false, 120_000));
    let etag = first.headers["etag"].as_str();
    let rest = fetch(&server, BINARY, &[("Range", "bytes=120000-"), ("If-Range", etag)]);
    assert_eq!((rest.status, rest.headers["content-range"].as_str()), (206, "bytes 120000-199999/200000"));
    assert_eq!([first.body, rest.body].concat(), content());
    assert_eq!(server.requests().pop().unwrap().range.as_deref(), Some("bytes=120000-"));
    assert_eq!(fetch(&server, BINARY, &[("Range", "bytes=200000-")]).status, 416);
}

#[test]
fn a_resume_of_a_replaced_asset_begins_anew() {
    let (_dir, server) = github();
    let etag = fetch(&server, BINARY, &[]).headers["etag"].clone();
    server.inject(BINARY, Fault::ChangedEtag, 2);
    for _ in 0..2 {
        let answer = fetch(&server, BINARY, &[("Range", "bytes=120000-"), ("If-Range", &etag)]);
        assert_eq!((answer.status, answer.body.len()), (200, 200_000));
        assert_ne!(answer.headers["etag"], etag);
    }
    server.inject(BINARY, Fault::NoRange, 1);
    let answer = fetch(&server, BINARY, &[("Range", "bytes=120000-"), ("If-Range", &etag)]);
    assert_eq!((answer.status, answer.body.len(), answer.headers.contains_key("accept-ranges")), (200, 200_000, false));
}

#[test]
fn answers_can_be_replaced_by_errors_portals_and_redirects() {
    let (_dir, server) = github();
    let url = download(&server, "v1.2.0", BINARY);
    for code in [500, 502, 503, 404] {
        server.inject(BINARY, Fault::Status(code), 1);
        assert_eq!(get(&url).status, code);
    }
    server.inject(BINARY, Fault::RetryAfter(429, "7".into()), 1);
    let limited = get(&url);
    assert_eq!((limited.status, limited.headers["retry-after"].as_str()), (429, "7"));
    server.inject(BINARY, Fault::Html, 1);
    let portal = get(&url);
    assert_eq!((portal.status, portal.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
    let elsewhere = "http://releases.example.com/agent";
    server.inject(BINARY, Fault::RedirectTo(elsewhere.into()), 1);
    assert_eq!(get(&url).headers["location"], elsewhere);
    server.inject(BINARY, Fault::RedirectLoop, 1);
    assert!(url.ends_with(&get(&url).headers["location"]));
    // All of them were for once.
    assert_eq!(fetch(&server, BINARY, &[]).body, content());
    assert_eq!(fetch(&server, "checksums.txt", &[]).status, 200);
}

#[test]
fn lengths_can_be_lies_in_both_directions_and_bodies_without_an_end() {
    let (_dir, server) = github();
    server.inject(BINARY, Fault::ContentLength(1 << 40), 1);
    let announced = fetch(&server, BINARY, &[]);
    assert_eq!(announced.headers["content-length"], (1_u64 << 40).to_string());
    assert_eq!((announced.is_complete(), announced.body.len()), (false, 200_000));
    server.inject(BINARY, Fault::ContentLength(1000), 1);
    let short = fetch(&server, BINARY, &[]);
    assert_eq!((short.is_complete(), short.body == content()[..1000]), (true, true));
    server.inject(BINARY, Fault::Endless, 1);
    let to = get(&download(&server, "v1.2.0", BINARY)).headers["location"].clone();
    let endless = ask(&to, &[], 3 << 20);
    assert!(endless.body.len() > 2 << 20 && !endless.headers.contains_key("content-length"));
}

#[test]
fn answers_can_be_late_slow_and_stall_half_way() {
    let (_dir, server) = github();
    let waits = [
        (Fault::Stall(Duration::from_millis(300)), 300),
        (Fault::StallAfter(1000, Duration::from_millis(300)), 300),
        // 200 000 bytes at 500 000 per second.
        (Fault::Slow(500_000), 400),
    ];
    for (fault, least_ms) in waits {
        server.inject(BINARY, fault.clone(), 1);
        let begin = Instant::now();
        let answer = fetch(&server, BINARY, &[]);
        assert_eq!(answer.body, content(), "{fault:?}");
        assert!(begin.elapsed() >= Duration::from_millis(least_ms), "{fault:?} took {:?}", begin.elapsed());
    }
}

#[test]
fn the_listing_has_pages_conditions_and_marks() {
    let (_dir, server) = github();
    server.mark_draft("v1.2.0");
    server.mark_prerelease("v1.1.0");
    let url = format!("{}/repos/{}/releases", server.api_url(), route::REPOSITORY);
    let all = get(&format!("{url}?per_page=100&page=1"));
    let listed: serde_json::Value = serde_json::from_slice(&all.body).unwrap();
    let marks = |number: usize| {
        let release = &listed[number];
        (release["tag_name"].clone(), release["draft"].clone(), release["prerelease"].clone())
    };
    assert_eq!(marks(0), ("v1.2.0".into(), true.into(), false.into()));
    assert_eq!(marks(1), ("v1.1.0".into(), false.into(), true.into()));
    assert_eq!(marks(2), ("v1.0.0".into(), false.into(), false.into()));
    assert_eq!(listed[2]["assets"][0]["browser_download_url"], download(&server, "v1.0.0", BINARY));
    assert_eq!(listed[2]["assets"][0]["size"], 200_000);
    assert_eq!(all.headers["x-ratelimit-remaining"], "59");

    let page = get(&format!("{url}?per_page=2&page=1"));
    assert!(page.headers["link"].contains(&format!("<{url}?per_page=2&page=2>; rel=\"next\"")), "{page:?}");

    let etag = all.headers["etag"].as_str();
    let same = ask(&format!("{url}?per_page=100&page=1"), &[("If-None-Match", etag)], u64::MAX);
    assert_eq!((same.status, same.body.len(), same.headers["x-ratelimit-remaining"].as_str()), (304, 0, "58"));
    assert_eq!((server.rest_calls(), server.downloads()), (3, 0));
    assert_eq!(server.requests().pop().unwrap().if_none_match.as_deref(), Some(etag));

    let latest: serde_json::Value = serde_json::from_slice(&get(&format!("{url}/latest")).body).unwrap();
    assert_eq!(latest["tag_name"], "v1.0.0");
    assert_eq!(get(&format!("{url}/tags/v9.0.0")).status, 404);
}

#[test]
fn the_rest_api_refuses_when_its_limit_is_used_up() {
    let (_dir, server) = github();
    let url = format!("{}/repos/{}/releases", server.api_url(), route::REPOSITORY);
    for refusal in [403, 429] {
        server.set_rate_limit(RateLimit { remaining: 1, refusal, reset: 1_800_000_000, ..RateLimit::default() });
        assert_eq!(get(&url).status, 200);
        let refused = get(&url);
        assert_eq!(refused.status, refusal);
        assert_eq!(refused.headers["x-ratelimit-remaining"], "0");
        assert_eq!(refused.headers["x-ratelimit-reset"], "1800000000");
    }
    assert_eq!(fetch(&server, BINARY, &[]).status, 200, "downloads do not count against the limit");
}

#[test]
fn the_listing_has_faults_of_its_own() {
    let (_dir, server) = github();
    let url = format!("{}/repos/{}/releases", server.api_url(), route::REPOSITORY);
    server.inject(LISTING, Fault::NotJson, 1);
    let answer = get(&url);
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, "application/json"));
    assert!(serde_json::from_slice::<serde_json::Value>(&answer.body).is_err());
    server.inject(LISTING, Fault::CutAfter(10), 1);
    assert!(!get(&url).is_complete());
    server.inject(LISTING, Fault::Status(503), ALWAYS);
    assert_eq!((get(&url).status, get(&url).status), (503, 503));
    server.clear_faults();
    assert_eq!(get(&url).status, 200);
}

#[test]
fn the_latest_page_redirects_without_a_rest_call() {
    let (_dir, server) = github();
    server.mark_prerelease("v1.2.0");
    let source = server.source_url();
    assert_eq!(get(&format!("{source}/releases/latest")).headers["location"], format!("{source}/releases/tag/v1.1.0"));
    assert_eq!(
        get(&format!("{source}/releases/latest/download/install.sh")).headers["location"],
        download(&server, "v1.1.0", "install.sh")
    );
    server.inject(LATEST, Fault::Status(502), 1);
    assert_eq!(get(&format!("{source}/releases/latest")).status, 502);
    assert_eq!(server.rest_calls(), 0);
}

#[test]
fn a_mirror_has_the_same_paths_without_redirect_and_no_rest_api() {
    let dir = releases();
    let mirror = ReleaseServer::mirror(&Network::Host, None, dir.path()).unwrap();
    let answer = get(&download(&mirror, "v1.2.0", BINARY));
    assert_eq!((answer.status, answer.body == content()), (200, true));
    assert_eq!(get(&format!("{}/repos/{}/releases", mirror.api_url(), route::REPOSITORY)).status, 404);
    mirror.inject(BINARY, Fault::CutAfter(10), 1);
    assert_eq!(get(&download(&mirror, "v1.2.0", BINARY)).body.len(), 10);
    assert_eq!((mirror.downloads(), mirror.rest_calls()), (2, 1));
}

#[test]
fn what_is_published_later_is_found() {
    let (dir, server) = github();
    assert_eq!(get(&download(&server, "v1.3.0", BINARY)).status, 404);
    Release::new("v1.3.0").write(dir.path()).unwrap();
    assert_eq!(get(&download(&server, "v1.3.0", BINARY)).status, 302);
}

#[test]
fn a_given_name_stands_in_every_address() {
    let dir = releases();
    let server = ReleaseServer::start(&Network::Host, None, dir.path()).unwrap().named("localhost");
    assert!(server.source_url().starts_with("http://localhost:"));
    let on_loopback = download(&server, "v1.2.0", BINARY).replace("localhost", "127.0.0.1");
    assert!(get(&on_loopback).headers["location"].starts_with("http://localhost:"));
}
