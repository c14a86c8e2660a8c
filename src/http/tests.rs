//! What the clients do on a real socket, and what their errors say.

use std::sync::{Arc, Mutex};

use bamf_lab::serve::{Body, Handler, Network, Server};
use http_body_util::{BodyExt, Full};
use hyper::Response;

use super::*;

/// Answers `status` with `location` on `/`, 200 elsewhere, and keeps the request lines.
fn redirecting(location: String) -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let handler: Handler = Arc::new(move |request| {
        record.lock().unwrap().push(request.uri().to_string());
        let answer = if request.uri().path() == "/" {
            Response::builder().status(302).header("location", &location)
        } else {
            Response::builder().status(200)
        };
        let body: Body = Full::default().map_err(|never| match never {}).boxed();
        Box::pin(async move { Ok(answer.body(body).unwrap()) })
    });
    (Server::start(&Network::Host, 0, None, handler).unwrap(), seen)
}

fn get(client: &Client, url: &str) -> Result<u16, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { client.get(url).send().await }).map(|r| r.status().as_u16()).map_err(|e| chain(&e))
}

fn plain(purpose: Purpose) -> Client {
    client(&NetworkConfig::default(), purpose, "1.2.0").unwrap()
}

#[test]
fn a_platform_call_follows_a_redirect_within_its_origin() {
    let (server, seen) = redirecting("/elsewhere".into());
    assert_eq!(get(&plain(Purpose::Platform), &format!("http://{}/", server.address())), Ok(200));
    assert_eq!(*seen.lock().unwrap(), ["/", "/elsewhere"]);
}

#[test]
fn a_platform_call_does_not_follow_a_redirect_to_another_origin() {
    let (other, seen) = redirecting("/".into());
    let (server, _) = redirecting(format!("http://{}/stolen", other.address()));
    for purpose in [Purpose::Platform, Purpose::Events] {
        let error = get(&plain(purpose), &format!("http://{}/", server.address())).unwrap_err();
        assert!(error.contains("set platform_url"), "{error}");
    }
    assert!(seen.lock().unwrap().is_empty(), "the other origin was never asked");
}

#[test]
fn a_redirect_loop_ends() {
    let (server, seen) = redirecting("/".into());
    for (purpose, most) in [(Purpose::Platform, PLATFORM_REDIRECTS), (Purpose::Releases, RELEASE_REDIRECTS)] {
        seen.lock().unwrap().clear();
        let error = get(&plain(purpose), &format!("http://{}/", server.address())).unwrap_err();
        assert!(error.contains("redirects"), "{error}");
        assert_eq!(seen.lock().unwrap().len(), most + 1);
    }
}

#[test]
fn a_release_is_not_fetched_over_a_redirect_to_plain_http() {
    let (server, _) = redirecting("http://192.0.2.1/release".into());
    let error = get(&plain(Purpose::Releases), &format!("http://{}/", server.address())).unwrap_err();
    assert!(error.contains("redirects to http://192.0.2.1/, which is not HTTPS"), "{error}");
}

#[test]
fn a_release_may_be_redirected_on_loopback() {
    let (other, _) = redirecting("/".into());
    let (server, _) = redirecting(format!("http://{}/release", other.address()));
    assert_eq!(get(&plain(Purpose::Releases), &format!("http://{}/", server.address())), Ok(200));
}

#[test]
fn a_configured_proxy_is_asked_except_for_loopback() {
    let (proxy, seen) = redirecting("/".into());
    let (direct, _) = redirecting("/elsewhere".into());
    let network =
        NetworkConfig { http_proxy: Some(Secret::new(proxy.address().to_string())), ..NetworkConfig::default() };
    let client = client(&network, Purpose::Releases, "1.2.0").unwrap();
    assert_eq!(get(&client, "http://release.invalid/file"), Ok(200));
    assert_eq!(*seen.lock().unwrap(), ["http://release.invalid/file"]);
    assert_eq!(get(&client, &format!("http://{}/file", direct.address())), Ok(200));
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[test]
fn a_host_in_no_proxy_is_reached_directly() {
    let (proxy, seen) = redirecting("/".into());
    for no_proxy in ["other.invalid, .release.invalid", "*"] {
        let network = NetworkConfig {
            http_proxy: Some(Secret::new(format!("http://{}", proxy.address()))),
            no_proxy: Some(no_proxy.into()),
            ..NetworkConfig::default()
        };
        let client = client(&network, Purpose::Releases, "1.2.0").unwrap();
        get(&client, "http://a.release.invalid/file").unwrap_err();
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn a_proxy_that_would_be_ignored_is_an_error_that_does_not_show_its_password() {
    for address in ["socks5://user:hunter2@proxy:1080", "http://", "https://user:hunter2@:99999"] {
        let network = NetworkConfig { https_proxy: Some(Secret::new(address.into())), ..NetworkConfig::default() };
        let error = client(&network, Purpose::Platform, "1.2.0").unwrap_err();
        assert!(matches!(error, Error::Proxy { variable: "HTTPS_PROXY" }), "{address}: {error}");
        assert!(!chain(&error).contains("hunter2"));
    }
}

#[test]
fn extra_roots_that_cannot_be_read_or_hold_no_certificate_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty.pem");
    crate::durable::write(&empty, b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n", 0o600)
        .unwrap();
    let with = |path: PathBuf| NetworkConfig { extra_roots: Some(path), ..NetworkConfig::default() };
    let error = tls_config(&with(empty)).unwrap_err();
    assert!(matches!(error, Error::NoCertificate { .. }), "{error}");
    for unreadable in [directory.path().join("missing.pem"), directory.path().to_owned(), "/dev/zero".into()] {
        let error = tls_config(&with(unreadable)).unwrap_err();
        assert!(matches!(error, Error::ReadRoots { .. }), "{error}");
    }
}

#[test]
fn an_error_names_its_cause_once_and_no_secret_of_the_address() {
    let error = get(&plain(Purpose::Platform), "http://user:hunter2@127.0.0.1:1/path?token=hunter2").unwrap_err();
    assert!(error.contains("http://127.0.0.1:1/path"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    assert_eq!(error.matches("refused").count(), 1, "{error}");
}
