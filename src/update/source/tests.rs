//! What real sockets and real directories do to a download.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::Digest;

use super::*;
use crate::config::NetworkConfig;

/// A server that answers every request with prepared bytes and closes the connection. It ends with the test's process.
struct Scripted {
    address: SocketAddr,
    /// The heads of the requests, in lower case.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// `answer` gets the number of the request, from 0, and its head.
    fn start(answer: impl Fn(usize, &str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&heads);
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap() == 0 {
                        break;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8(head).unwrap().to_lowercase();
                record.lock().unwrap().push(head.clone());
                // The client may have gone away after the head of an answer that it does not want.
                drop(stream.write_all(&answer(number, &head)));
            }
        });
        Self { address, heads }
    }

    fn url(&self) -> String {
        format!("http://{}/o/r", self.address)
    }

    /// The values of a header over all requests; empty where it was not sent.
    fn sent(&self, header: &str) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        let value =
            |head: &String| head.lines().find_map(|line| line.strip_prefix(&format!("{header}: ")).map(str::to_owned));
        heads.iter().map(|head| value(head).unwrap_or_default()).collect()
    }

    fn requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }
}

/// An answer with `content-length` of the whole body, of which `sent` bytes are sent.
fn answer(status: u16, headers: &[&str], body: &[u8], sent: usize) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    [head.as_bytes(), b"\r\n", &body[..sent]].concat()
}

fn whole(status: u16, headers: &[&str], body: &[u8]) -> Vec<u8> {
    answer(status, headers, body, body.len())
}

const TAG: &str = "v1.2.0";
const NAME: &str = "bamf-agent-linux-amd64";
const ETAG: &str = "etag: \"one\"";

/// 200,000 bytes without a period that a wrong offset could hide in.
fn content() -> Vec<u8> {
    (0_u32..50_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn asset(content: &[u8]) -> Asset<'static> {
    Asset { tag: TAG, name: NAME, sha256: Sha256::new(sha2::Sha256::digest(content).into()) }
}

/// A source with little patience, and the directory for its staging and cache.
fn source(address: &str, directory: &Path, failures: u32) -> Source {
    let client = http::client(&NetworkConfig::default(), http::Purpose::Releases, "1.2.0").unwrap();
    let mut source = Source::open(Config {
        source: address,
        api_url: None,
        github_token: Some(Secret::new("ghp_hunter2".into())),
        allow_insecure_http: false,
        client,
        cache_dir: directory.to_owned(),
    })
    .unwrap();
    if let Kind::Server(server) = &mut source.kind {
        server.web.patience = Patience { failures, base: Duration::from_millis(1), cap: Duration::from_millis(1) };
    }
    source
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn small(source: &Source) -> Result<Option<Vec<u8>>, Error> {
    run(source.fetch_small(TAG, "checksums.txt", 100))
}

fn download(source: &Source, expected: &[u8], staging: &Path) -> Result<(Vec<u8>, u64), Error> {
    let download = run(source.download(&asset(expected), staging, &mut |_, _| {}))?;
    let mut file = download.file;
    let mut found = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut found).unwrap();
    Ok((found, download.fetched_bytes))
}

fn left_in(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

mod small_files {
    use super::*;

    #[test]
    fn a_file_is_fetched_from_the_download_path_without_the_token() {
        let server = Scripted::start(|_, _| whole(200, &[], b"# tag: v1.2.0\n"));
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(small(&source(&server.url(), directory.path(), 1)).unwrap().unwrap(), b"# tag: v1.2.0\n");
        assert!(
            server.heads.lock().unwrap()[0].starts_with("get /o/r/releases/download/v1.2.0/checksums.txt http/1.1")
        );
        assert_eq!(server.sent("authorization"), [""]);
        assert_eq!(server.sent("user-agent"), ["bamf-agent/1.2.0"]);
    }

    #[test]
    fn a_missing_file_is_none_even_where_the_404_is_a_web_page() {
        let server = Scripted::start(|_, _| whole(404, &["content-type: text/html"], b"<html>nothing here"));
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(small(&source(&server.url(), directory.path(), 5)).unwrap(), None);
        assert_eq!(server.requests(), 1);
    }

    #[test]
    fn a_web_page_with_status_200_is_named_as_one() {
        for header in ["content-type: text/html", "content-type: application/octet-stream"] {
            let server =
                Scripted::start(move |_, _| whole(200, &[header], b"<!DOCTYPE html><title>Hotel WiFi</title>"));
            let directory = tempfile::tempdir().unwrap();
            let error = small(&source(&server.url(), directory.path(), 5)).unwrap_err();
            assert_eq!(error.reason(), Reason::SourceUnreachable);
            assert!(error.to_string().contains("captive portal") && error.to_string().contains("Hotel"), "{error}");
            assert_eq!(server.requests(), 1);
        }
    }

    #[test]
    fn more_bytes_than_allowed_are_refused_announced_or_not() {
        let unannounced = b"HTTP/1.1 200 x\r\nconnection: close\r\n\r\n".to_vec();
        let answers = [whole(200, &[], &[b'x'; 101]), [unannounced, vec![b'x'; 101]].concat()];
        for bytes in answers {
            let server = Scripted::start(move |_, _| bytes.clone());
            let directory = tempfile::tempdir().unwrap();
            let error = small(&source(&server.url(), directory.path(), 5)).unwrap_err();
            assert_eq!(error.reason(), Reason::TooLarge);
        }
    }

    #[test]
    fn what_passes_is_tried_again_and_what_does_not_pass_is_reported() {
        let server = Scripted::start(|number, _| match number {
            0 => whole(503, &["retry-after: 0"], b""),
            1 => whole(429, &[], b""),
            2 => answer(200, &[], b"# tag", 2),
            3 => Vec::new(),
            _ => whole(200, &[], b"# tag"),
        });
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(small(&source(&server.url(), directory.path(), 5)).unwrap().unwrap(), b"# tag");

        let server = Scripted::start(|_, _| whole(503, &[], b""));
        let error = small(&source(&server.url(), directory.path(), 3)).unwrap_err();
        assert_eq!((error.reason(), server.requests()), (Reason::SourceUnreachable, 3));
        assert!(error.to_string().contains("503"), "{error}");
    }

    #[test]
    fn a_server_that_wants_an_hour_is_reported_at_once() {
        let server = Scripted::start(|_, _| whole(429, &["retry-after: 3600"], b""));
        let directory = tempfile::tempdir().unwrap();
        let error = small(&source(&server.url(), directory.path(), 5)).unwrap_err();
        assert!(error.to_string().contains("come back in 3600 s"), "{error}");
        assert_eq!(server.requests(), 1);
    }

    #[test]
    fn a_source_that_does_not_answer_is_unreachable_and_its_password_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let error = small(&source("http://u:hunter2@127.0.0.1:1/o/r", directory.path(), 2)).unwrap_err();
        let text = http::chain(&error);
        assert_eq!(error.reason(), Reason::SourceUnreachable);
        assert!(text.contains("127.0.0.1:1/o/r") && text.contains("refused") && !text.contains("hunter2"), "{text}");
    }
}

mod downloads {
    use super::*;

    #[test]
    fn a_file_arrives_private_and_is_not_fetched_twice() {
        let server = Scripted::start(|_, _| whole(200, &[ETAG], &content()));
        let directory = tempfile::tempdir().unwrap();
        let source = source(&server.url(), directory.path(), 1);
        let mut seen = Vec::new();
        let arrived = run(source.download(&asset(&content()), directory.path(), &mut |now, all| seen.push((now, all))));
        let about = arrived.unwrap().file.metadata().unwrap();
        assert_eq!((about.len(), about.permissions().mode() & 0o777, about.nlink()), (200_000, 0o600, 1));
        assert_eq!(seen.last(), Some(&(200_000, Some(200_000))));
        assert!(seen.is_sorted(), "progress only grows");

        assert_eq!(download(&source, &content(), directory.path()).unwrap(), (content(), 0));
        assert_eq!(server.requests(), 1);
    }

    #[test]
    fn a_download_that_breaks_off_is_continued_where_it_ended() {
        let server = Scripted::start(|number, _| match number {
            0 => answer(200, &[ETAG], &content(), 70_000),
            _ => whole(206, &[ETAG, "content-range: bytes 70000-199999/200000"], &content()[70_000..]),
        });
        let directory = tempfile::tempdir().unwrap();
        let source = source(&server.url(), directory.path(), 5);
        assert_eq!(download(&source, &content(), directory.path()).unwrap(), (content(), 200_000));
        assert_eq!(server.sent("range"), ["", "bytes=70000-"]);
        assert_eq!(server.sent("if-range"), ["", "\"one\""]);
    }

    #[test]
    fn the_next_run_continues_what_the_last_one_left() {
        let server = Scripted::start(|number, _| match number {
            0 => answer(200, &[ETAG], &content(), 70_000),
            _ => whole(206, &[ETAG, "content-range: bytes 70000-199999/200000"], &content()[70_000..]),
        });
        let directory = tempfile::tempdir().unwrap();
        let error = download(&source(&server.url(), directory.path(), 1), &content(), directory.path()).unwrap_err();
        assert_eq!(error.reason(), Reason::Truncated);
        assert!(error.to_string().contains("70000 of 200000"), "{error}");
        let next = source(&server.url(), directory.path(), 1);
        assert_eq!(download(&next, &content(), directory.path()).unwrap(), (content(), 130_000));
    }

    #[test]
    fn a_file_that_changed_in_between_is_fetched_from_its_first_byte() {
        let server = Scripted::start(|number, _| match number {
            0 => answer(200, &["etag: \"old\""], &[b'x'; 200_000], 70_000),
            _ => whole(200, &[ETAG], &content()),
        });
        let directory = tempfile::tempdir().unwrap();
        let source = source(&server.url(), directory.path(), 5);
        assert_eq!(download(&source, &content(), directory.path()).unwrap().0, content());
        assert_eq!(server.requests(), 2);
    }

    #[test]
    fn bytes_of_two_files_joined_by_the_source_are_found_out_and_fetched_again() {
        let server = Scripted::start(|number, _| match number {
            0 => answer(200, &[ETAG], &[b'x'; 200_000], 70_000),
            1 => whole(206, &[ETAG, "content-range: bytes 70000-199999/200000"], &content()[70_000..]),
            _ => whole(200, &[ETAG], &content()),
        });
        let directory = tempfile::tempdir().unwrap();
        let source = source(&server.url(), directory.path(), 5);
        assert_eq!(download(&source, &content(), directory.path()).unwrap().0, content());
        assert_eq!(server.sent("range"), ["", "bytes=70000-", ""]);
    }

    #[test]
    fn another_file_than_the_signed_one_is_refused_and_not_kept() {
        let server = Scripted::start(|_, _| whole(200, &[ETAG], &[b'x'; 200_000]));
        let directory = tempfile::tempdir().unwrap();
        let error = download(&source(&server.url(), directory.path(), 5), &content(), directory.path()).unwrap_err();
        assert_eq!((error.reason(), server.requests()), (Reason::BadChecksum, 1));
        assert_eq!(left_in(directory.path()), 0);
    }

    #[test]
    fn a_file_that_keeps_ending_early_is_truncated() {
        let server = Scripted::start(|_, _| answer(200, &[], &content(), 1000));
        let directory = tempfile::tempdir().unwrap();
        let error = download(&source(&server.url(), directory.path(), 4), &content(), directory.path()).unwrap_err();
        assert_eq!((error.reason(), server.requests()), (Reason::Truncated, 4));
        assert!(server.sent("range").iter().all(String::is_empty), "without a validator nothing is joined");
    }

    #[test]
    fn a_range_that_the_source_does_not_know_starts_over() {
        let server = Scripted::start(|number, _| match number {
            0 => answer(200, &[ETAG], &content(), 70_000),
            1 => whole(416, &["content-range: bytes */10"], b""),
            2 => answer(200, &[ETAG], &content(), 70_000),
            3 => whole(206, &[ETAG, "content-range: bytes 0-199999/200000"], &content()),
            _ => whole(200, &[ETAG], &content()),
        });
        let directory = tempfile::tempdir().unwrap();
        let source = source(&server.url(), directory.path(), 5);
        assert_eq!(download(&source, &content(), directory.path()).unwrap().0, content());
        assert_eq!(server.sent("range"), ["", "bytes=70000-", "", "bytes=70000-", ""]);
    }

    #[test]
    fn an_announced_size_beyond_the_limit_is_refused_before_a_byte_is_stored() {
        let server = Scripted::start(|_, _| {
            format!("HTTP/1.1 200 x\r\nconnection: close\r\ncontent-length: {}\r\n\r\nx", (256 << 20) + 1).into_bytes()
        });
        let directory = tempfile::tempdir().unwrap();
        let error = download(&source(&server.url(), directory.path(), 5), &content(), directory.path()).unwrap_err();
        assert_eq!((error.reason(), server.requests()), (Reason::TooLarge, 1));
    }

    #[test]
    fn a_captive_portal_does_not_cost_what_was_fetched_before() {
        let server = Scripted::start(|number, _| match number {
            0 => answer(200, &[ETAG], &content(), 70_000),
            1 => whole(200, &["content-type: text/html"], b"<html>pay here"),
            _ => whole(206, &[ETAG, "content-range: bytes 70000-199999/200000"], &content()[70_000..]),
        });
        let directory = tempfile::tempdir().unwrap();
        let source = source(&server.url(), directory.path(), 5);
        let error = download(&source, &content(), directory.path()).unwrap_err();
        assert!(error.to_string().contains("pay here"), "{error}");
        assert_eq!(download(&source, &content(), directory.path()).unwrap(), (content(), 130_000));
    }

    #[test]
    fn a_download_that_stands_still_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for mut stream in listener.incoming().flatten() {
                stream.write_all(&answer(200, &[], &content(), 1000)).unwrap();
                // No further byte, and no end either.
                open.push(stream);
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let mut source = source(&format!("http://{address}/o/r"), directory.path(), 2);
        if let Kind::Server(server) = &mut source.kind {
            server.web.client = reqwest::Client::builder()
                .tls_backend_preconfigured(http::tls_config(&NetworkConfig::default()).unwrap())
                .read_timeout(Duration::from_millis(50))
                .build()
                .unwrap();
        }
        let error = download(&source, &content(), directory.path()).unwrap_err();
        assert_eq!(error.reason(), Reason::SourceUnreachable);
        assert!(http::chain(&error).contains("timed out"), "{}", http::chain(&error));
    }

    #[test]
    fn a_missing_file_is_not_found() {
        let server = Scripted::start(|_, _| whole(404, &[], b"Not Found"));
        let directory = tempfile::tempdir().unwrap();
        let error = download(&source(&server.url(), directory.path(), 5), &content(), directory.path()).unwrap_err();
        assert_eq!((error.reason(), server.requests()), (Reason::NotFound, 1));
    }

    #[test]
    fn a_link_planted_under_the_parts_name_is_not_followed() {
        let server = Scripted::start(|_, _| whole(200, &[ETAG], &content()));
        let directory = tempfile::tempdir().unwrap();
        let victim = directory.path().join("victim");
        durable::write(&victim, b"precious", 0o600).unwrap();
        let staging = directory.path().join("staging");
        durable::create_directory(&staging, 0o700).unwrap();
        let hash = asset(&content()).sha256.to_string();
        for extension in ["part", "validator"] {
            symlink(&victim, staging.join(format!("{TAG}-{NAME}-{}.{extension}", &hash[..16]))).unwrap();
        }
        let source = source(&server.url(), directory.path(), 1);
        assert_eq!(download(&source, &content(), &staging).unwrap().0, content());
        assert_eq!(std::fs::read(victim).unwrap(), b"precious");
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let on = |kind: std::io::ErrorKind| Error::Disk(durable::Error::new("write", "/x", kind.into())).reason();
        assert_eq!(on(std::io::ErrorKind::StorageFull), Reason::NoSpace);
        assert_eq!(on(std::io::ErrorKind::PermissionDenied), Reason::DiskError);
    }
}

mod listings {
    use super::*;

    const PAGE: &[u8] = br#"[
        {"tag_name":"v1.2.0","draft":false,"prerelease":false,"assets":[{"name":"x"}]},
        {"tag_name":"v1.3.0-rc.1","draft":false,"prerelease":true},
        {"tag_name":"v1.3.0","draft":true,"prerelease":false},
        {"tag_name":"v1.4.0","draft":false,"prerelease":true},
        {"tag_name":"chart-9.9.9"},
        {"tag_name":"1.1.0"}]"#;

    fn list(source: &Source) -> Result<Vec<String>, Error> {
        Ok(run(source.list_releases())?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn drafts_foreign_tags_and_versions_held_back_are_left_out_and_the_token_is_sent() {
        let server = Scripted::start(|_, _| whole(200, &[], PAGE));
        let directory = tempfile::tempdir().unwrap();
        let found = list(&source(&server.url(), directory.path(), 1)).unwrap();
        assert_eq!(found, ["1.2.0", "1.3.0-rc.1"]);
        assert!(server.heads.lock().unwrap()[0].starts_with("get /api/v3/repos/o/r/releases?per_page=50&page=1 "));
        assert_eq!(server.sent("authorization"), ["bearer ghp_hunter2"]);
    }

    #[test]
    fn further_pages_are_read_up_to_a_limit() {
        let next = "link: <http://127.0.0.1:1/evil>; rel=\"next\", <http://127.0.0.1:1/evil>; rel=\"last\"";
        let server = Scripted::start(move |number, _| {
            whole(200, &[next], format!(r#"[{{"tag_name":"v1.0.{number}"}}]"#).as_bytes())
        });
        let directory = tempfile::tempdir().unwrap();
        let found = list(&source(&server.url(), directory.path(), 1)).unwrap();
        assert_eq!(found, ["1.0.0", "1.0.1", "1.0.2", "1.0.3"]);
    }

    #[test]
    fn an_unchanged_listing_costs_nothing() {
        let server = Scripted::start(|_, head| {
            if head.contains("if-none-match: \"one\"") { whole(304, &[], b"") } else { whole(200, &[ETAG], PAGE) }
        });
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            // A new source: what is remembered lies on the disk.
            let found = list(&source(&server.url(), directory.path(), 1)).unwrap();
            assert_eq!(found, ["1.2.0", "1.3.0-rc.1"]);
        }
        assert_eq!(server.sent("if-none-match"), ["", "\"one\""]);
    }

    #[test]
    fn what_is_remembered_of_another_repository_or_is_damaged_is_not_used() {
        let server = Scripted::start(|_, _| whole(200, &[ETAG], PAGE));
        let directory = tempfile::tempdir().unwrap();
        list(&source(&server.url(), directory.path(), 1)).unwrap();
        list(&source(&server.url().replace("/o/r", "/o/other"), directory.path(), 1)).unwrap();
        durable::write(&directory.path().join("releases.json"), b"{\"schema\":1,\"url\":", 0o600).unwrap();
        list(&source(&server.url(), directory.path(), 1)).unwrap();
        assert_eq!(server.sent("if-none-match"), ["", "", ""]);
    }

    #[test]
    fn an_exhausted_limit_says_until_when_and_what_to_do() {
        for status in [403, 429] {
            let server = Scripted::start(move |_, _| {
                whole(status, &["x-ratelimit-remaining: 0", "x-ratelimit-reset: 1783936800"], b"{}")
            });
            let directory = tempfile::tempdir().unwrap();
            let error = list(&source(&server.url(), directory.path(), 5)).unwrap_err();
            let text = error.to_string();
            assert_eq!((error.reason(), server.requests()), (Reason::SourceUnreachable, 1));
            assert!(text.contains("until 2026-07-13T10:00:00Z") && text.contains("GITHUB_TOKEN"), "{text}");
        }
    }

    #[test]
    fn refusals_of_the_rest_api_have_their_own_words() {
        for (status, body, word, reason) in [
            (401, "{}", "GITHUB_TOKEN", Reason::SourceUnreachable),
            (404, "{}", "no list of releases", Reason::NotFound),
            (200, "{}", "other than a list", Reason::SourceUnreachable),
            (200, "<html>hello", "captive portal", Reason::SourceUnreachable),
            (403, "{}", "403", Reason::SourceUnreachable),
        ] {
            let server = Scripted::start(move |_, _| whole(status, &[], body.as_bytes()));
            let directory = tempfile::tempdir().unwrap();
            let error = list(&source(&server.url(), directory.path(), 1)).unwrap_err();
            assert!(error.to_string().contains(word) && error.reason() == reason, "{status} {body}: {error}");
        }
    }

    #[test]
    fn a_mirror_without_rest_is_not_asked_for_a_list() {
        let directory = tempfile::tempdir().unwrap();
        let error = list(&source("https://mirror.invalid/bamf", directory.path(), 1)).unwrap_err();
        assert!(matches!(error, Error::NoListing { .. }) && error.to_string().contains("--version"), "{error}");
    }
}

mod directories {
    use super::*;

    fn release(directory: &Path, tag: &str, name: &str, content: &[u8]) {
        durable::create_directory(&directory.join(tag), 0o755).unwrap();
        durable::write(&directory.join(tag).join(name), content, 0o644).unwrap();
    }

    #[test]
    fn files_are_found_by_tag_and_the_others_are_none() {
        let directory = tempfile::tempdir().unwrap();
        release(directory.path(), TAG, "checksums.txt", b"# tag: v1.2.0\n");
        let found = source(directory.path().to_str().unwrap(), directory.path(), 1);
        assert_eq!(small(&found).unwrap().unwrap(), b"# tag: v1.2.0\n");
        assert_eq!(run(found.fetch_small("v1.3.0", "checksums.txt", 100)).unwrap(), None);
        assert_eq!(run(found.fetch_small(TAG, "checksums.txt.minisig", 100)).unwrap(), None);
        let error = run(found.fetch_small(TAG, "checksums.txt", 5)).unwrap_err();
        assert_eq!(error.reason(), Reason::TooLarge);
    }

    #[test]
    fn directories_named_like_tags_are_the_releases() {
        let directory = tempfile::tempdir().unwrap();
        for tag in ["v1.2.0", "v1.3.0-rc.1", "latest", "1.1.0", "v1"] {
            release(directory.path(), tag, "checksums.txt", b"");
        }
        let found = source(&format!("file://{}", directory.path().display()), directory.path(), 1);
        let mut versions = run(found.list_releases()).unwrap();
        versions.sort();
        assert_eq!(versions.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1.2.0", "1.3.0-rc.1"]);
        let missing = source("/does/not/exist", directory.path(), 1);
        assert_eq!(run(missing.list_releases()).unwrap_err().reason(), Reason::NotFound);
    }

    #[test]
    fn a_file_is_copied_into_staging_before_it_is_used() {
        let (directory, staging) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        release(directory.path(), TAG, NAME, &content());
        let found = source(directory.path().to_str().unwrap(), directory.path(), 1);
        assert_eq!(download(&found, &content(), staging.path()).unwrap(), (content(), 200_000));
        let arrived = run(found.download(&asset(&content()), staging.path(), &mut |_, _| {})).unwrap().file;
        let original = directory.path().join(TAG).join(NAME).metadata().unwrap();
        assert_ne!(arrived.metadata().unwrap().ino(), original.ino());

        let error = download(&found, b"another file", staging.path()).unwrap_err();
        assert_eq!(error.reason(), Reason::BadChecksum);
        let missing = Asset { name: "bamf-agent-linux-arm64", ..asset(b"") };
        let error = run(found.download(&missing, staging.path(), &mut |_, _| {})).unwrap_err();
        assert_eq!(error.reason(), Reason::NotFound);
    }

    #[test]
    fn a_pipe_in_place_of_a_file_does_not_keep_the_updater_waiting() {
        let directory = tempfile::tempdir().unwrap();
        durable::create_directory(&directory.path().join(TAG), 0o755).unwrap();
        let pipe = directory.path().join(TAG).join("checksums.txt");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = small(&source(directory.path().to_str().unwrap(), directory.path(), 1)).unwrap_err();
        assert_eq!(error.reason(), Reason::DiskError);
    }
}
