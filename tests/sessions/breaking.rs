//! Bridge connections that end before the session does, and the redials that follow (protocol 7.6, 7.7, 8.5).

use std::io::{Read as _, Write as _};
use std::time::Duration;

use bamf_lab::agent::{LIMIT, until};
use bamf_lab::bridge::{Bridge, BridgeOptions, Cut};
use bamf_lab::client::{Options, Pipe, Received, Status, Window, frame};
use bamf_lab::pattern::Pattern;
use bamf_lab::plane::Role;
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::targets::{Tcp, Then};

use super::{MIB, echo, hear, id, lazy_acks, ping, read_on, read_pattern, scene, scene_of, write_pattern};

const SECONDS: Duration = Duration::from_secs(5);

fn friendly(behaviour: Tcp) -> Scene {
    scene_of(behaviour, Setting::friendly())
}

/// Cuts the agent's connection in the middle of an echo, again and again; each cut when some more bytes have come back.
fn echo_with_cuts(scene: &Scene, pipe: &Pipe, cuts: u64, step: u64, cut: impl Fn(u64)) {
    let total = (cuts + 1) * step;
    std::thread::scope(|scope| {
        scope.spawn(|| echo(pipe, total));
        for number in 1..=cuts {
            let come = until(LIMIT, || pipe.tunnel.counts().bytes_received >= number * step - step / 2);
            assert!(come, "{:?}\n{}", pipe.tunnel.status(), scene.agent.log());
            cut(number);
            let back = pipe.wait_reconnects(number, LIMIT);
            assert!(back, "cut {number}: {:?}\n{}", pipe.tunnel.status(), scene.agent.log());
        }
    });
    let counts = pipe.tunnel.counts();
    assert_eq!((counts.bytes_received, counts.breaks, counts.reconnects), (total, cuts, cuts));
    assert_eq!(scene.target.seen().accepted, 1, "the target was dialled once");
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert_eq!(scene.target.seen().received, total);
}

#[test]
fn ten_resets_in_the_middle_of_a_transfer_lose_nothing_and_double_nothing() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let session = id(&pipe);
    echo_with_cuts(&scene, &pipe, 10, 3 * MIB, |_| scene.cable.snap());
    assert_eq!(scene.bridge.session_handshakes(&session, Role::Agent), 11, "one for each redial");
    assert_eq!(scene.metric("bamf_agent_session_redials_total"), 10);
    assert!(scene.metric("bamf_agent_stream_retransmitted_bytes_total") > 0);
}

#[test]
fn ten_ends_of_file_in_the_middle_of_a_transfer_lose_nothing_and_double_nothing() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let session = id(&pipe);
    echo_with_cuts(&scene, &pipe, 10, 3 * MIB, |_| scene.cable.cut());
    assert_eq!(scene.bridge.session_handshakes(&session, Role::Agent), 11);
}

#[test]
fn cuts_of_a_slow_path_in_small_pieces_lose_nothing() {
    let scene = friendly(Tcp::Echo);
    scene.cable.delay(Duration::from_millis(20));
    scene.cable.split(7);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    echo_with_cuts(&scene, &pipe, 5, 64 * 1024 + 13, |number| {
        if number % 2 == 0 { scene.cable.snap() } else { scene.cable.cut() }
    });
}

#[test]
fn every_way_in_which_a_bridge_can_end_a_tunnel_is_survived() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let session = id(&pipe);
    let cuts = [Cut::ResetAgent, Cut::ResetBoth, Cut::Clean, Cut::CleanUnreported];
    echo_with_cuts(&scene, &pipe, 4, 2 * MIB, |number| {
        assert_eq!(scene.bridge.cut(&session, cuts[usize::try_from(number).unwrap() - 1]), 1);
    });
}

#[test]
fn a_bridge_that_is_killed_and_started_again_costs_no_byte() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    echo_with_cuts(&scene, &pipe, 3, 2 * MIB, |_| {
        scene.bridge.kill();
        scene.bridge.restart().unwrap();
    });
}

#[test]
fn a_dead_link_does_not_keep_a_client_waiting_who_is_at_another_bridge() {
    let scene = friendly(Tcp::Echo);
    let other = scene.another_bridge("bridge-1", Duration::from_secs(30));
    scene.plane.forget_bridge("bridge-1");
    let pipe = scene.client_anywhere(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"before");
    scene.plane.forget_bridge("bridge-0");
    other.restart().unwrap();
    let session = id(&pipe);
    assert_eq!(scene.bridge.stall(&session, true), 1);
    (&pipe).write_all(b"on the way").unwrap();
    pipe.tunnel.hop();
    assert!(pipe.wait_reconnects(1, SECONDS), "{:?}\n{}", pipe.tunnel.status(), scene.agent.log());
    let mut answer = [0; 10];
    (&pipe).read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"on the way");
    assert_eq!(other.session_handshakes(&session, Role::Agent), 1);
    echo(&pipe, MIB);
    assert_eq!(scene.target.seen().accepted, 1);
}

#[test]
fn on_todays_platform_a_cut_ends_the_session_for_the_client_and_the_agent_waits_for_a_while() {
    let scene = scene(Tcp::Echo);
    let options = Options { reconnect_pauses: vec![Duration::ZERO; 3], ..lazy_acks() };
    let pipe = scene.client(options).open("thing").unwrap();
    ping(&pipe, b"hello");
    scene.cable.snap();
    assert!(pipe.wait_over(LIMIT));
    assert!(matches!(pipe.tunnel.status(), Status::Failed(_)), "{:?}", pipe.tunnel.status());
    assert_eq!(scene.active(), 1, "a redial may still come");
    assert_eq!(scene.target.seen().ended, 0);
    let finished = scene.agent.terminate(LIMIT);
    finished.expect(0, &["bye"]);
    assert!(!finished.stderr.contains("ended by a fault"), "{}", finished.stderr);
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1));
}

#[test]
fn a_client_that_hops_to_another_bridge_takes_its_session_along() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| write_pattern(&pipe, 24 * MIB));
        let mut pattern = Pattern::default();
        for hop in 1..=3 {
            read_on(&pipe, &mut pattern, hop * 5 * MIB);
            pipe.tunnel.hop();
            assert!(pipe.wait_reconnects(hop, LIMIT), "{}", scene.agent.log());
        }
        read_on(&pipe, &mut pattern, 24 * MIB);
    });
    assert_eq!(scene.target.seen().accepted, 1);
}

/// A redial of which the client knows nothing, to a bridge that gives up on it after `wait`.
fn redial_in_vain(scene: &Scene, session: &str, wait: Duration) -> Bridge {
    let other = scene.another_bridge("bridge-1", wait);
    assert!(scene.plane.reissue(session, "redial", Some("bridge-1")).is_some());
    assert!(other.wait_for(LIMIT, |other| other.session_handshakes(session, Role::Agent) == 1));
    other
}

#[test]
fn a_redial_that_nobody_else_knows_of_does_not_disturb_a_healthy_tunnel() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"before");
    let other = redial_in_vain(&scene, &id(&pipe), Duration::from_secs(3));
    assert!(other.wait_for(LIMIT, |other| other.pending() == 1));
    ping(&pipe, b"while the other connection waits");
    assert!(other.wait_for(LIMIT, |other| other.pending() == 0));
    echo(&pipe, 4 * MIB);
    assert!(pipe.wait_acknowledged(LIMIT), "acknowledgements go again");
    let counts = pipe.tunnel.counts();
    assert_eq!((counts.breaks, scene.target.seen().accepted), (0, 1));
}

#[test]
fn an_upload_goes_on_while_a_redial_waits_in_vain_for_its_client() {
    let scene = friendly(Tcp::Sink);
    // The platform's client dies of 4 MiB that nobody acknowledges.
    let window = Window::Deadly(4 << 20);
    let pipe = scene.client(Options { window, ..lazy_acks() }).open("thing").unwrap();
    (&pipe).write_all(&Pattern::default().bytes(1000)).unwrap();
    let _other = redial_in_vain(&scene, &id(&pipe), Duration::from_secs(30));
    let mut pattern = Pattern::at(1000);
    for _ in 0..160 {
        (&pipe).write_all(&pattern.bytes(100_000)).unwrap();
        // At a pace that the window allows as long as acknowledgements come.
        std::thread::sleep(Duration::from_millis(25));
    }
    assert!(pipe.wait_acknowledged(LIMIT), "{:?}", pipe.tunnel.status());
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1));
    let seen = scene.target.seen();
    assert_eq!((seen.received, seen.complaints), (16_001_000, Vec::new()));
}

#[test]
fn when_a_redial_waits_and_the_client_comes_the_old_connection_is_given_up_without_loss() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client_anywhere(lazy_acks()).open("thing").unwrap();
    let session = id(&pipe);
    std::thread::scope(|scope| {
        scope.spawn(|| write_pattern(&pipe, 12 * MIB));
        let mut pattern = Pattern::default();
        read_on(&pipe, &mut pattern, 2 * MIB);
        let other = redial_in_vain(&scene, &session, Duration::from_secs(30));
        read_on(&pipe, &mut pattern, 2 * MIB + 500_000);
        // The client is sent away from the old bridge, and to the other, because the platform knows where it is now.
        scene.plane.forget_bridge("bridge-0");
        pipe.tunnel.hop();
        assert!(pipe.wait_reconnects(1, LIMIT), "{}", scene.agent.log());
        read_on(&pipe, &mut pattern, 12 * MIB);
        assert!(other.session_handshakes(&session, Role::Agent) >= 1);
    });
    assert_eq!(scene.target.seen().accepted, 1);
}

#[test]
fn of_two_redials_in_a_row_the_newest_wins() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client_anywhere(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"before");
    let session = id(&pipe);
    let first = scene.another_bridge("bridge-1", Duration::from_secs(30));
    let second = scene.another_bridge("bridge-2", Duration::from_secs(30));
    assert!(scene.plane.reissue(&session, "redial", Some("bridge-1")).is_some());
    assert!(first.wait_for(LIMIT, |first| first.pending() == 1));
    scene.plane.forget_bridge("bridge-0");
    scene.plane.forget_bridge("bridge-1");
    assert!(scene.plane.reissue(&session, "redial", Some("bridge-2")).is_some());
    pipe.tunnel.hop();
    assert!(pipe.wait_reconnects(1, LIMIT), "{}", scene.agent.log());
    echo(&pipe, MIB);
    assert_eq!(second.splices().len(), 1);
    assert_eq!(first.splices().len(), 0);
}

#[test]
fn ten_redials_in_one_burst_end_with_a_tunnel_that_works() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"before");
    let session = id(&pipe);
    for _ in 0..10 {
        assert!(scene.plane.reissue(&session, "redial", None).is_some());
    }
    pipe.tunnel.hop();
    assert!(pipe.wait_reconnects(1, LIMIT), "{}", scene.agent.log());
    echo(&pipe, MIB);
    assert_eq!(scene.target.seen().accepted, 1);
}

#[test]
fn a_redial_for_a_session_that_is_over_is_ignored() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    let session = id(&pipe);
    pipe.close();
    assert!(scene.wait_active(0, LIMIT));
    let handshakes = scene.bridge.handshakes();
    assert!(scene.plane.reissue(&session, "redial", None).is_some());
    scene.agent.expect("a redial for a session that is not open here was ignored");
    assert_eq!((scene.active(), scene.bridge.handshakes()), (0, handshakes));
}

#[test]
fn a_second_dial_for_an_open_session_is_ignored() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    assert!(scene.plane.reissue(&id(&pipe), "dial", None).is_some());
    scene.agent.expect("a second dial for an open session was ignored");
    ping(&pipe, b"still here");
    assert_eq!((scene.active(), scene.bridge.session_handshakes(&id(&pipe), Role::Agent)), (1, 1));
}

#[test]
fn a_command_of_a_later_platform_is_ignored() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    assert!(scene.plane.reissue(&id(&pipe), "migrate", None).is_some());
    ping(&pipe, b"still here");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.bridge.session_handshakes(&id(&pipe), Role::Agent), 1);
}

#[test]
fn a_handshake_that_is_never_answered_leaves_the_session_to_the_next_redial() {
    let scene = friendly(Tcp::Echo);
    let client = scene.client(lazy_acks());
    let mut wire = client.open_wire("thing").unwrap();
    wire.write(&frame::data(1, b"one")).unwrap();
    assert_eq!(hear(&mut wire, 3), b"one");
    let session = wire.session_id.clone();
    wire.end();
    let mut silent = client.open_wire_again("thing", &session).unwrap();
    assert_eq!(silent.next(LIMIT).unwrap(), Received::Handshake(2), "the agent speaks without waiting");
    silent.end();
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    assert_eq!(wire.next(LIMIT).unwrap(), Received::Handshake(2));
    wire.write(&[&frame::handshake(1)[..], &frame::data(2, b"two")].concat()).unwrap();
    assert_eq!(hear(&mut wire, 6), b"onetwo", "what was not acknowledged comes again");
    assert_eq!(scene.target.seen().accepted, 1);
}

#[test]
fn a_session_in_which_nothing_was_ever_said_survives_a_cut() {
    let scene = friendly(Tcp::Echo);
    let client = scene.client(lazy_acks());
    let wire = client.open_wire("thing").unwrap();
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.splices().len() == 1));
    let session = wire.session_id.clone();
    wire.end();
    let mut wire = client.open_wire_again("thing", &session).unwrap();
    assert_eq!(wire.next(LIMIT).unwrap(), Received::Handshake(1));
    wire.write(&[&frame::handshake(1)[..], &frame::data(1, b"one")].concat()).unwrap();
    assert_eq!(hear(&mut wire, 3), b"one");
}

#[test]
fn a_target_that_ended_while_there_was_no_bridge_is_delivered_to_the_client_that_comes_back() {
    let scene = friendly(Tcp::Source(6 * MIB, Then::Close));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    let mut pattern = Pattern::default();
    read_on(&pipe, &mut pattern, MIB);
    scene.cable.refuse(true);
    scene.cable.snap();
    std::thread::sleep(Duration::from_millis(500));
    scene.cable.refuse(false);
    read_on(&pipe, &mut pattern, 6 * MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0, "{:?}", pipe.tunnel.status());
}

#[test]
fn a_bridge_that_cannot_be_reached_for_a_moment_is_tried_again() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"before");
    scene.cable.refuse(true);
    scene.cable.snap();
    let session = id(&pipe);
    let redialled = |commands: Vec<bamf_lab::plane::SentCommand>| {
        commands.iter().any(|sent| sent.command.as_deref() == Some("redial") && sent.session.as_ref() == Some(&session))
    };
    assert!(until(LIMIT, || redialled(scene.plane.commands())));
    let attempts = scene.cable.connections();
    assert!(until(LIMIT, || scene.cable.connections() > attempts));
    scene.cable.refuse(false);
    assert!(pipe.wait_reconnects(1, SECONDS), "{:?}\n{}", pipe.tunnel.status(), scene.agent.log());
    ping(&pipe, b"after");
}

#[test]
fn a_cut_while_the_end_is_being_delivered_loses_nothing() {
    let scene = friendly(Tcp::Source(8 * MIB, Then::Close));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    // So slow that the target has ended long before the client has everything.
    scene.cable.limit(Some(4 * MIB));
    (&pipe).write_all(b"go").unwrap();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1));
    let mut pattern = Pattern::default();
    for cut in 1..=2 {
        read_on(&pipe, &mut pattern, cut * 2 * MIB);
        scene.cable.snap();
        assert!(pipe.wait_reconnects(cut, LIMIT), "{:?}\n{}", pipe.tunnel.status(), scene.agent.log());
    }
    read_on(&pipe, &mut pattern, 8 * MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0, "{:?}", pipe.tunnel.status());
}

#[test]
fn a_stall_and_a_cut_at_the_very_end_lose_nothing() {
    let scene = friendly(Tcp::Source(MIB, Then::Close));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping_source(&pipe);
    scene.cable.stall();
    // Longer than the agent waits for acknowledgements before it says the end regardless.
    std::thread::sleep(Duration::from_secs(4));
    scene.cable.snap();
    scene.cable.resume();
    let mut pattern = Pattern::at(1);
    read_on(&pipe, &mut pattern, MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0, "{:?}\n{}", pipe.tunnel.status(), scene.agent.log());
}

/// Starts a source and reads its first byte.
fn ping_source(mut pipe: &Pipe) {
    pipe.write_all(b"go").unwrap();
    pipe.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_client_that_closes_while_there_is_no_bridge_is_given_up_when_the_agent_ends() {
    let scene = friendly(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    ping(&pipe, b"hello");
    scene.cable.refuse(true);
    scene.cable.snap();
    assert!(until(LIMIT, || pipe.tunnel.counts().breaks == 1));
    pipe.close();
    assert_eq!(scene.active(), 1);
    scene.agent.terminate(LIMIT).expect(0, &["bye"]);
}

#[test]
fn duplicated_frames_are_delivered_once() {
    let scene = friendly(Tcp::Sink);
    let pipe = scene.client(Options { copies: 2, ..lazy_acks() }).open("thing").unwrap();
    write_pattern(&pipe, 4 * MIB);
    assert!(pipe.wait_acknowledged(LIMIT));
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1));
    let seen = scene.target.seen();
    assert_eq!((seen.received, seen.complaints), (4 * MIB, Vec::new()));
}

#[test]
fn a_download_survives_cuts_of_its_end_of_the_splice_only() {
    let scene = friendly(Tcp::Source(16 * MIB, Then::Close));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    let mut pattern = Pattern::default();
    for cut in 1..=3 {
        read_on(&pipe, &mut pattern, cut * 4 * MIB);
        if pipe.tunnel.status() == Status::Open {
            scene.bridge.cut(&id(&pipe), Cut::ResetAgent);
        }
    }
    read_on(&pipe, &mut pattern, 16 * MIB);
    let mut rest = Vec::new();
    (&pipe).read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 0);
    assert_eq!(scene.target.seen().accepted, 1);
}

#[test]
fn a_bridge_that_stops_in_order_takes_no_session_with_it_if_there_is_another() {
    let scene = friendly(Tcp::Echo);
    let _other =
        Bridge::start(&scene.plane, BridgeOptions { id: "bridge-9".into(), ..BridgeOptions::default() }).unwrap();
    let pipe = scene.client_anywhere(lazy_acks()).open("thing").unwrap();
    echo(&pipe, MIB);
    scene.bridge.stop();
    assert!(pipe.wait_reconnects(1, LIMIT), "{:?}\n{}", pipe.tunnel.status(), scene.agent.log());
    std::thread::scope(|scope| {
        scope.spawn(|| (&pipe).write_all(&Pattern::default().bytes(100_000)).unwrap());
        read_pattern(&pipe, 100_000);
    });
}
