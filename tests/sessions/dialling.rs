//! When targets are dialled, what becomes of those that cannot be, and the types that carry plain bytes (protocol 7.1, 7.2).

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use bamf_lab::agent::{LIMIT, until};
use bamf_lab::bridge::BridgeOptions;
use bamf_lab::client::{Client, Options, Received, Status, frame};
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::serve::Network;
use bamf_lab::targets::{Closed, Tcp, Then};
use nix::sys::signal::Signal;

use super::{MIB, hear, id, lazy_acks, ping, read_pattern, scene, scene_of, write_pattern};

/// Far less than the 30 s that a client waits for an agent that says nothing.
const SOON: Duration = Duration::from_secs(5);

fn banner() -> Tcp {
    Tcp::Banner(b"5.7.0 speaks first".to_vec())
}

fn kind(kind: &'static str) -> Setting {
    Setting { kind, ..Setting::default() }
}

fn hear_banner(scene: &Scene, client: &Client) {
    let pipe = client.open("thing").unwrap();
    let mut greeting = [0; 18];
    assert_eq!(pipe.read_within(SOON, &mut greeting).unwrap(), 18, "{}", scene.agent.log());
    assert_eq!(&greeting, b"5.7.0 speaks first");
    ping(&pipe, b"and then listens");
}

#[test]
fn mysql_greets_a_client_that_says_nothing() {
    for of_type in ["mysql", "mysql-audit"] {
        let scene = scene_of(banner(), kind(of_type));
        hear_banner(&scene, &scene.client(lazy_acks()));
    }
}

#[test]
fn web_db_of_mysql_greets_without_frames() {
    let scene = scene_of(banner(), kind("mysql"));
    hear_banner(&scene, &scene.client(Options { protocol: Some("web-db".into()), ..lazy_acks() }));
}

#[test]
fn a_resource_can_be_dialled_eagerly_by_configuration() {
    let scene = scene_of(banner(), Setting { fields: ", dial: eager", ..Setting::default() });
    hear_banner(&scene, &scene.client(lazy_acks()));
}

#[test]
fn a_target_is_not_dialled_before_the_clients_first_byte() {
    for setting in [kind("tcp"), Setting { fields: ", dial: lazy", ..kind("mysql") }] {
        let scene = scene_of(banner(), setting);
        let pipe = scene.client(lazy_acks()).open("thing").unwrap();
        assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.splices().len() == 1));
        assert!(pipe.read_within(Duration::from_millis(500), &mut [0]).is_err());
        assert_eq!((scene.target.seen().accepted, scene.active()), (0, 1));
        (&pipe).write_all(b"x").unwrap();
        let mut greeting = [0; 18];
        (&pipe).read_exact(&mut greeting).unwrap();
    }
}

#[test]
fn a_target_that_refuses_ends_the_session_with_a_close_frame_at_once() {
    let closed = Closed::reserve(&Network::Host).unwrap();
    let scene = scene_of(Tcp::Echo, Setting { port: Some(closed.address().port()), ..Setting::default() });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let begun = Instant::now();
    (&pipe).write_all(b"hello").unwrap();
    assert!(pipe.wait_over(SOON), "{}", scene.agent.log());
    assert!(begun.elapsed() < SOON);
    assert_eq!(pipe.tunnel.status(), Status::ClosedByPeer);
    scene.agent.expect("the target cannot be reached");
    assert!(scene.wait_active(0, LIMIT));
    assert_eq!(scene.metric("bamf_agent_targets_unreachable_total"), 1);
}

#[test]
fn a_target_that_refuses_an_eager_dial_ends_the_session_at_once() {
    let closed = Closed::reserve(&Network::Host).unwrap();
    let scene = scene_of(Tcp::Echo, Setting { port: Some(closed.address().port()), ..kind("mysql") });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    assert!(pipe.wait_over(SOON), "{}", scene.agent.log());
    assert_eq!(pipe.tunnel.status(), Status::ClosedByPeer);
    assert!(scene.wait_active(0, LIMIT));
}

/// The client is told, and nothing is left of it.
fn is_refused(scene: &Scene, client: &Client, resource: &str, why: &str) {
    let pipe = client.open(resource).unwrap();
    assert!(pipe.wait_over(SOON), "{}", scene.agent.log());
    assert_eq!(pipe.tunnel.status(), Status::ClosedByPeer);
    scene.agent.expect(why);
    assert_eq!(scene.active(), 0);
    assert_eq!(scene.metric("bamf_agent_sessions_refused_total"), 1);
}

#[test]
fn a_resource_without_a_port_is_refused_at_once() {
    let resources = ", {name: nowhere, type: tcp, hostname: 127.0.0.1}";
    let scene = scene_of(Tcp::Echo, Setting { resources, ..Setting::default() });
    is_refused(&scene, &scene.client(lazy_acks()), "nowhere", "the resource has no port");
}

#[test]
fn an_unknown_resource_is_refused_at_once() {
    let mut scene = scene(Tcp::Echo);
    scene.agent.signal(Signal::SIGKILL);
    assert!(!scene.agent.logs("it says nothing more", LIMIT));
    // The platform remembers for 180 s what an agent had that reports nothing any more.
    scene.home.configure(&format!("platform_url: {}\nresources: []\n", scene.plane.url()));
    scene.agent = scene.home.connect(&scene.plane);
    is_refused(&scene, &scene.client(lazy_acks()), "thing", "no resource of that name");
}

#[test]
fn web_ssh_carries_plain_bytes_both_ways() {
    let scene = scene_of(Tcp::Echo, kind("ssh"));
    let options = Options { protocol: Some("web-ssh".into()), ..lazy_acks() };
    let pipe = scene.client(options).open("thing").unwrap();
    super::echo(&pipe, 16 * MIB);
    assert_eq!(pipe.tunnel.session().unwrap().resource_type, "web-ssh");
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert_eq!(scene.target.seen().received, 16 * MIB);
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn the_end_of_a_raw_target_is_the_end_of_the_connection_and_everything_before_it_arrives() {
    let scene = scene_of(Tcp::Source(16 * MIB, Then::Close), kind("ssh-audit"));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    read_pattern(&pipe, 16 * MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0);
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn a_raw_target_gets_everything_that_came_before_the_end() {
    let scene = scene_of(Tcp::SlowSink(8 * MIB), kind("ssh-audit"));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    write_pattern(&pipe, 6 * MIB);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert_eq!(scene.target.seen().received, 6 * MIB);
}

#[test]
fn a_cut_ends_a_raw_session_for_good() {
    let scene = scene_of(Tcp::Echo, Setting { friendly: true, ..kind("ssh-audit") });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    scene.cable.snap();
    assert!(pipe.wait_over(LIMIT));
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn redials_for_raw_sessions_are_ignored_and_the_tunnel_goes_on() {
    let scene = scene_of(Tcp::Echo, Setting { friendly: true, ..kind("ssh-audit") });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    let before = scene.bridge.handshakes();
    assert!(scene.plane.reissue(&id(&pipe), "redial", None).is_some());
    scene.agent.expect("redial");
    ping(&pipe, b"still here");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.bridge.handshakes(), before);
    ping(&pipe, b"and here");
}

#[test]
fn a_target_that_half_closes_ends_the_session_with_its_last_word() {
    let scene = scene(Tcp::HalfClose(b"the last word".to_vec()));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"hello").unwrap();
    let mut said = Vec::new();
    (&pipe).read_to_end(&mut said).unwrap();
    assert_eq!(said, b"the last word");
    assert_eq!(pipe.tunnel.status(), Status::ClosedByPeer);
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1));
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn a_target_that_resets_ends_the_session_with_a_close_frame() {
    let scene = scene(Tcp::Reset);
    let mut wire = scene.client(lazy_acks()).open_wire("thing").unwrap();
    wire.write(&frame::data(1, b"hello")).unwrap();
    assert_eq!(wire.next_but_acks(SOON).unwrap(), Received::Close);
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn a_client_that_vanishes_leaves_a_session_that_waits_and_then_ends_with_the_agent() {
    let scene = scene(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    pipe.tunnel.vanish();
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.splices().is_empty()));
    assert_eq!(scene.active(), 1);
    scene.agent.terminate(LIMIT).expect(0, &["bye"]);
}

#[test]
fn a_client_that_never_comes_leaves_a_session_that_waits() {
    let bridge = BridgeOptions { match_wait: Duration::from_secs(1), ..BridgeOptions::default() };
    let scene = scene_of(Tcp::Echo, Setting { bridge, ..Setting::default() });
    let client = scene.client(lazy_acks());
    bamf_lab::runtime::block_on(client.session("thing")).unwrap();
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.pending() == 1));
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.pending() == 0));
    assert_eq!((scene.active(), scene.target.seen().accepted), (1, 0));
    scene.agent.terminate(LIMIT).expect(0, &["bye"]);
}

#[test]
fn an_audited_database_is_framed() {
    let scene = scene_of(Tcp::Echo, kind("postgres-audit"));
    let mut wire = scene.client(lazy_acks()).open_wire("thing").unwrap();
    wire.write(&frame::data(1, b"a startup message")).unwrap();
    assert_eq!(hear(&mut wire, 17), b"a startup message");
}

/// Whether a connection to this port of the loopback has its keep-alive timer set (column `tr`, see proc_pid_net(5)).
fn is_kept_alive(port: u16) -> bool {
    let text = bamf_lab::agent::read(std::path::Path::new("/proc/net/tcp"));
    let peer = format!("0100007F:{port:04X}");
    text.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, _, remote, "01", _, timer, ..] if remote == peer && timer.starts_with("02"))
    })
}

#[test]
fn idle_targets_and_bridges_are_probed() {
    let scene = scene(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    assert!(until(LIMIT, || is_kept_alive(scene.cable.address().port())), "the bridge");
    assert!(until(LIMIT, || is_kept_alive(scene.target.address().port())), "the target");
}
