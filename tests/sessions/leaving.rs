//! The agent as a whole: what it reports of its sessions, how it leaves, and what is left behind (protocol 5.4, 10).

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use bamf_lab::agent::{LIMIT, NAME, until};
use bamf_lab::bridge::{Bridge, BridgeOptions};
use bamf_lab::client::{Options, Received, Status, frame};
use bamf_lab::plane::RateLimits;
use bamf_lab::runtime::block_on;
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::targets::{Tcp, Then};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{MIB, echo, lazy_acks, ping, read_pattern, scene, scene_of};

fn reported(scene: &Scene) -> u64 {
    scene.plane.heartbeats().last().unwrap().body["active_tunnels"].as_u64().unwrap_or_default()
}

#[test]
fn heartbeats_status_and_metrics_count_the_open_sessions() {
    let scene = scene(Tcp::Echo);
    let pipes: Vec<_> = (0..3).map(|_| scene.client(lazy_acks()).open("thing").unwrap()).collect();
    pipes.iter().for_each(|pipe| ping(pipe, b"hello"));
    assert_eq!((scene.active(), scene.metric("bamf_agent_active_tunnels")), (3, 3));
    assert!(until(LIMIT, || reported(&scene) == 3), "the heartbeats say {}", reported(&scene));
    pipes.iter().for_each(bamf_lab::client::Pipe::close);
    assert!(scene.wait_active(0, LIMIT));
    assert_eq!(scene.metric("bamf_agent_active_tunnels"), 0);
    assert_eq!(scene.metric("bamf_agent_sessions_opened_total"), 3);
    assert_eq!(scene.metric("bamf_agent_session_bytes_total{direction=\"to_client\"}"), 15);
    assert_eq!(scene.metric("bamf_agent_session_bytes_total{direction=\"to_target\"}"), 15);
    assert!(until(LIMIT, || reported(&scene) == 0));
}

#[test]
fn a_drain_waits_for_sessions_while_heartbeats_go_on_and_ends_when_they_do() {
    let scene = scene_of(Tcp::Echo, Setting { drain_timeout: "60s", ..Setting::default() });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    scene.agent.signal(Signal::SIGTERM);
    assert!(scene.plane.wait_for(LIMIT, |seen| seen.drains.total() == 1));
    let beats = scene.plane.heartbeats().len();
    assert!(scene.plane.wait_for_heartbeats(beats + 3, LIMIT), "heartbeats go on");
    echo(&pipe, MIB);
    let begun = Instant::now();
    pipe.close();
    let finished = scene.agent.wait(LIMIT);
    finished.expect(0, &["bye"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "it did not wait for the timeout");
    assert_eq!(scene.plane.offlines().len(), 1);
}

#[test]
fn a_drain_that_takes_too_long_ends_sessions_with_a_close_frame() {
    let scene = scene_of(Tcp::Echo, Setting { drain_timeout: "2s", ..Setting::default() });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let mut wire = scene.client(lazy_acks()).open_wire("thing").unwrap();
    ping(&pipe, b"hello");
    wire.write(&frame::data(1, b"one")).unwrap();
    assert_eq!(super::hear(&mut wire, 3), b"one");
    let begun = Instant::now();
    scene.agent.signal(Signal::SIGTERM);
    assert_eq!(wire.next_but_acks(LIMIT).unwrap(), Received::Close);
    assert!(begun.elapsed() >= Duration::from_secs(2), "sessions had their time");
    assert!(pipe.wait_over(LIMIT));
    assert_eq!(pipe.tunnel.status(), Status::ClosedByPeer);
    drop(wire);
    scene.agent.wait(LIMIT).expect(0, &["update.drain_timeout", "bye"]);
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 2));
    assert_eq!(scene.plane.offlines().len(), 1);
}

#[test]
fn a_drain_lets_a_transfer_finish() {
    let setting = Setting { drain_timeout: "60s", ..Setting::default() };
    let scene = scene_of(Tcp::Source(48 * MIB, Then::Close), setting);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    (&pipe).read_exact(&mut [0]).unwrap();
    scene.agent.signal(Signal::SIGTERM);
    assert!(scene.plane.wait_for(LIMIT, |seen| seen.drains.total() == 1));
    super::read_on(&pipe, &mut bamf_lab::pattern::Pattern::at(1), 48 * MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0);
    scene.agent.wait(LIMIT).expect(0, &["bye"]);
}

#[test]
fn a_client_in_the_middle_of_a_download_hears_the_end_of_the_agent() {
    let scene = scene(Tcp::Source(256 * MIB, Then::Hold));
    scene.cable.limit(Some(30 * MIB));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    (&pipe).read_exact(&mut [0]).unwrap();
    let finished = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut pattern, mut buffer) = (bamf_lab::pattern::Pattern::at(1), vec![0; 256 << 10]);
            while let Ok(count @ 1..) = (&pipe).read(&mut buffer) {
                pattern.check(&buffer[..count]).unwrap();
            }
        });
        let finished = scene.agent.terminate(LIMIT);
        reader.join().unwrap();
        finished
    });
    finished.expect(0, &["bye"]);
    assert_eq!(pipe.tunnel.status(), Status::ClosedByPeer);
}

#[test]
fn an_agent_that_drains_is_not_asked_for_new_sessions() {
    let scene = scene_of(Tcp::Echo, Setting { drain_timeout: "60s", ..Setting::default() });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    scene.agent.signal(Signal::SIGTERM);
    assert!(scene.plane.wait_for(LIMIT, |seen| seen.drains.total() == 1));
    // The platform does not choose an instance that drains.
    let refused = scene.client(lazy_acks()).open("thing");
    assert!(refused.is_err(), "{refused:?}");
    pipe.close();
    scene.agent.wait(LIMIT).expect(0, &["bye"]);
}

#[test]
fn a_second_signal_ends_a_drain() {
    let scene = scene_of(Tcp::Echo, Setting { drain_timeout: "300s", ..Setting::default() });
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    scene.agent.signal(Signal::SIGTERM);
    assert!(scene.plane.wait_for(LIMIT, |seen| seen.drains.total() == 1));
    scene.agent.terminate(LIMIT).expect(0, &["a second signal"]);
}

#[test]
fn a_revoked_agent_closes_its_sessions() {
    let scene = scene(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    assert!(scene.plane.delete_agent(NAME));
    assert!(pipe.wait_over(LIMIT), "{}", scene.agent.log());
    assert_eq!(pipe.tunnel.status(), Status::ClosedByPeer);
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1));
    let finished = scene.agent.wait(LIMIT);
    assert_ne!(finished.code, 137, "it had to be killed: {}", finished.stderr);
    assert!(!finished.stderr.contains("ended by a fault"), "{}", finished.stderr);
}

#[test]
fn an_end_with_a_bridge_that_does_not_answer_is_an_end_all_the_same() {
    let scene = scene(Tcp::Source(256 * MIB, Then::Hold));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    (&pipe).read_exact(&mut [0]).unwrap();
    scene.cable.stall();
    let begun = Instant::now();
    scene.agent.terminate(LIMIT).expect(0, &["bye"]);
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[test]
fn edges_are_measured_and_dead_ones_do_no_harm() {
    let scene = scene(Tcp::Echo);
    let options = BridgeOptions { id: "edge-nl".into(), edge: "nl".into(), ..BridgeOptions::default() };
    let alive = Bridge::start(&scene.plane, options).unwrap();
    let closed = bamf_lab::targets::Closed::reserve(&bamf_lab::serve::Network::Host).unwrap();
    let silent = bamf_lab::targets::Target::tcp(&bamf_lab::serve::Network::Host, Tcp::Silent).unwrap();
    let target = |edge: &str, port: u16| json!({"edge": edge, "host": "localhost", "port": port});
    scene.plane.set_edge_probe_targets(vec![
        target("dead", closed.address().port()),
        target("mute", silent.address().port()),
        target("nl", alive.port()),
        json!({"edge": "odd", "host": "no such host", "port": 1}),
    ]);
    let rtts = || scene.plane.heartbeats().last().unwrap().body["edge_rtts"].clone();
    assert!(until(LIMIT, || rtts()["nl"].is_u64()), "{}", scene.agent.log());
    assert_eq!(rtts().as_object().unwrap().keys().collect::<Vec<_>>(), ["nl"]);
    assert!(rtts()["nl"].as_u64().unwrap() < 3000);
    assert!(alive.handshakes() >= 1);
    let beats = scene.plane.heartbeats().len();
    assert!(scene.plane.wait_for_heartbeats(beats + 2, Duration::from_secs(10)), "probes do not hold heartbeats up");
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
}

#[test]
fn three_hundred_sessions_leave_nothing_behind() {
    let scene = scene(Tcp::Echo);
    scene.plane.set_rate_limits(RateLimits { anonymous: u32::MAX, identified: u32::MAX });
    let client = scene.client(lazy_acks());
    let round = |count: usize| {
        for _ in 0..count / 25 {
            let pipes: Vec<_> = (0..25).map(|_| client.open("thing").unwrap()).collect();
            pipes.iter().for_each(|pipe| ping(pipe, b"hello"));
            pipes.iter().for_each(bamf_lab::client::Pipe::close);
        }
        assert!(scene.wait_active(0, LIMIT), "{}", scene.agent.log());
    };
    round(25);
    let (descriptors, threads, memory) = (scene.agent.descriptors(), scene.agent.threads(), scene.agent.resident());
    round(300);
    assert!(until(LIMIT, || scene.agent.descriptors() <= descriptors), "{} descriptors", scene.agent.descriptors());
    assert!(until(LIMIT, || scene.agent.threads() <= threads + 1), "{} threads", scene.agent.threads());
    let grown = scene.agent.resident().saturating_sub(memory);
    assert!(grown < 4 << 20, "grew by {grown} bytes");
    assert_eq!(scene.target.seen().accepted, 325);
}

#[test]
fn clients_that_do_not_come_and_targets_that_refuse_leave_nothing_behind_but_their_wait() {
    let scene = scene(Tcp::Echo);
    let client = scene.client(Options::robust());
    let descriptors = scene.agent.descriptors();
    for _ in 0..10 {
        block_on(client.session("thing")).unwrap();
    }
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.pending() == 10));
    assert_eq!(scene.active(), 10);
    scene.bridge.kill();
    assert!(until(LIMIT, || scene.agent.descriptors() <= descriptors), "{}", scene.agent.descriptors());
    scene.agent.terminate(LIMIT).expect(0, &["bye"]);
}

#[test]
fn a_download_is_whole_when_the_client_reads_after_the_agent_has_ended() {
    let scene = scene_of(Tcp::Source(2 * MIB, Then::Hold), Setting::default());
    let pipe = scene.client(Options { receive_buffer: 4 << 20, ..lazy_acks() }).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.sent == 2 * MIB));
    scene.agent.terminate(LIMIT).expect(0, &["bye"]);
    read_pattern(&pipe, 2 * MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0);
}
