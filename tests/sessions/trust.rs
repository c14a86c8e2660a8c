//! Whom the agent believes, and what becomes of certificates that are not believed (protocol 1.2 to 1.4, 7.1).

use std::time::Duration;

use bamf_lab::agent::LIMIT;
use bamf_lab::bridge::Certificate;
use bamf_lab::client::{Options, Received, frame};
use bamf_lab::plane::{Role, SessionFlaw};
use bamf_lab::runtime::block_on;
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::targets::Tcp;

use super::{hear, lazy_acks, ping, scene, scene_of};

/// The agent goes to a bridge with this certificate, says why it does not stay, and has sent nothing.
fn bridge_is_refused(certificate: &Certificate, why: &str) {
    let scene = scene(Tcp::Echo);
    scene.bridge.present(certificate).unwrap();
    block_on(scene.client(Options::robust()).session("thing")).unwrap();
    scene.agent.expect("no connection to the bridge");
    let log = scene.agent.log();
    let line = log.lines().find(|line| line.contains("no connection to the bridge")).unwrap();
    assert!(line.contains(why), "{line}");
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.failed_handshakes() == 1));
    assert_eq!(scene.bridge.handshakes(), 0);
    still_works(&scene);
}

/// The session waits for a redial, others are served, and the agent ends in order.
fn still_works(scene: &Scene) {
    assert_eq!(scene.active(), 1, "{}", scene.agent.log());
    scene.bridge.present(&Certificate::Proper).unwrap();
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    pipe.close();
    assert!(scene.wait_active(1, LIMIT));
    scene.agent.signal(nix::sys::signal::Signal::SIGTERM);
    scene.agent.expect("bye");
}

#[test]
fn a_bridge_with_a_certificate_for_another_host_is_refused() {
    bridge_is_refused(&Certificate::ForHosts(vec!["other.example.com".into()]), "not valid for name");
}

#[test]
fn a_bridge_of_a_foreign_authority_is_refused() {
    bridge_is_refused(&Certificate::Foreign, "invalid peer certificate");
}

#[test]
fn a_bridge_with_an_expired_certificate_is_refused() {
    bridge_is_refused(&Certificate::Expired, "expired");
}

#[test]
fn a_bridge_that_speaks_tls_1_2_only_is_refused() {
    bridge_is_refused(&Certificate::OverTls12, "handshake");
}

/// The bridge does not take the agent's session certificate: the agent says so, and the session is not lost for ever.
fn certificate_is_refused(flaw: SessionFlaw, why: &str) {
    let scene = scene(Tcp::Echo);
    scene.plane.flaw_session_certificates(Role::Agent, flaw);
    block_on(scene.client(Options::robust()).session("thing")).unwrap();
    scene.agent.expect(why);
    scene.plane.flaw_session_certificates(Role::Agent, SessionFlaw::None);
    still_works(&scene);
}

#[test]
fn a_session_certificate_that_has_just_expired_is_refused_by_the_bridge_and_that_is_said() {
    certificate_is_refused(SessionFlaw::Expired, "the bridge ended the first connection");
}

#[test]
fn a_session_certificate_that_is_not_valid_yet_is_refused_by_the_bridge_and_that_is_said() {
    certificate_is_refused(SessionFlaw::NotYetValid, "the bridge ended the first connection");
}

#[test]
fn a_session_certificate_for_another_bridge_is_refused_by_the_bridge_and_that_is_said() {
    certificate_is_refused(SessionFlaw::ForBridge("bridge-7".into()), "the bridge ended the first connection");
}

#[test]
fn a_session_certificate_of_a_foreign_authority_is_refused_by_the_bridge_and_that_is_said() {
    certificate_is_refused(SessionFlaw::Foreign, "the bridge ended the first connection");
}

#[test]
fn a_session_survives_that_its_first_certificate_was_refused() {
    let scene = scene_of(Tcp::Echo, Setting::friendly());
    scene.plane.flaw_session_certificates(Role::Agent, SessionFlaw::NotYetValid);
    let client = scene.client(lazy_acks());
    let session = block_on(client.session("thing")).unwrap();
    scene.agent.expect("the bridge ended the first connection");
    scene.plane.flaw_session_certificates(Role::Agent, SessionFlaw::None);
    let mut wire = client.open_wire_again("thing", &session.session_id).unwrap();
    wire.write(&[&frame::handshake(1)[..], &frame::data(1, b"one")].concat()).unwrap();
    assert_eq!(wire.next(Duration::from_secs(5)).unwrap(), Received::Handshake(1));
    assert_eq!(hear(&mut wire, 3), b"one");
}
