//! Programs that are not ours, as users: curl, and a browser.

use std::path::Path;
use std::process::Command;

use bamf_lab::agent::{NAME, write};
use bamf_lab::machine::report_skipped;
use bamf_lab::pattern::Pattern;
use bamf_lab::visitor::FrontDoor;

use super::scene::{POOL, Scene, is_pattern};

const LONG: usize = 32 << 20;

/// Runs curl against the bridge's port for the proxy, with the proxy's header fields.
fn curl(scene: &Scene, path: &str, options: &[&str]) -> String {
    let head = scene.visitor().head("GET", path, &[]);
    let (_, fields) = head.split_once("\r\n").unwrap();
    let file = scene.home.path("fields");
    write(&file, fields.trim_end().replace("\r\n", "\n") + "\n");
    let output = Command::new("curl")
        .args(["-sS", "--noproxy", "*", "--max-time", "60", "-w", "%{http_code}", "-H"])
        .arg(format!("@{}", file.display()))
        .args(options)
        .arg(format!("http://{}/relay/{NAME}{path}", scene.bridge.internal_address()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn curl_carries_long_bodies_both_ways() {
    if !Path::new("/usr/bin/curl").exists() {
        return report_skipped("curl_carries_long_bodies_both_ways", "curl is not installed");
    }
    let scene = Scene::open();
    let (up, down) = (scene.home.path("up"), scene.home.path("down"));
    let (up, down) = (up.to_str().unwrap(), down.to_str().unwrap());
    write(up, Pattern::default().bytes(LONG));
    let answer = curl(&scene, "/sink", &["-H", "Expect: 100-continue", "-T", up]);
    assert_eq!(answer, format!("{LONG}200"));
    let answer = curl(&scene, "/sink", &["-H", "Transfer-Encoding: chunked", "-T", up]);
    assert_eq!(answer, format!("{LONG}200"));
    for path in [format!("/big/{LONG}"), format!("/chunked/{LONG}")] {
        assert_eq!(curl(&scene, &path, &["-o", down]), "200", "{path}");
        is_pattern(&std::fs::read(down).unwrap(), LONG);
    }
    assert_eq!((scene.bridge.interim_responses(), scene.bridge.relays_ever(NAME)), (0, POOL));
}

#[test]
fn a_browser_loads_a_page_that_uses_web_sockets_and_event_streams() {
    const NAME_OF_TEST: &str = "a_browser_loads_a_page_that_uses_web_sockets_and_event_streams";
    if !Path::new("/usr/bin/chromium").exists() {
        return report_skipped(NAME_OF_TEST, "chromium is not installed");
    }
    let scene = Scene::open();
    let door = FrontDoor::open(scene.visitor()).unwrap();
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["--kill-after=5", "60", "/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu"])
        .args(["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"])
        .args(["--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("http://{}/app", door.address()))
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", profile.path())
        .output()
        .unwrap();
    let page = String::from_utf8_lossy(&output.stdout);
    let why = String::from_utf8_lossy(&output.stderr);
    for result in [
        "<p id=\"socket\">over the wire</p>",
        "<p id=\"events\">1 2 3</p>",
        "<p id=\"sent\">1000000</p>",
        "<p id=\"user\">ana@example.com</p>",
    ] {
        assert!(page.contains(result), "{result} is missing in\n{page}\n{why}\n{}", scene.agent.log());
    }
    assert_eq!(scene.bridge.unsolicited(), 0);
}
