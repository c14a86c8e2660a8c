//! Bytes: all of them, in order, in bounded memory, whoever is slow.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use bamf_lab::agent::{LIMIT, until};
use bamf_lab::cable::Direction;
use bamf_lab::client::Options;
use bamf_lab::pattern::Pattern;
use bamf_lab::scene::{Scene, Setting};
use bamf_lab::targets::{Tcp, Then};

use super::{MIB, echo, id, lazy_acks, ping, read_on, read_pattern, scene, scene_of, write_pattern};

/// What a session may make the agent grow by: the window, the backlog, and buffers that belong to the thread.
const GROWTH: usize = 100 << 20;

/// The most that the agent occupies above `before` until `done`.
fn peak(scene: &Scene, before: usize, done: impl Fn() -> bool) -> usize {
    let (mut peak, begun) = (0, Instant::now());
    while !done() {
        peak = peak.max(scene.agent.resident().saturating_sub(before));
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", scene.agent.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

#[test]
fn bytes_go_both_ways_and_the_client_ends_it() {
    let scene = scene(Tcp::Echo);
    let pipe = scene.client(Options::robust()).open("thing").unwrap();
    ping(&pipe, b"hello");
    assert_eq!(scene.active(), 1);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    scene.agent.expect("the client closed it");
    assert_eq!(scene.target.seen().accepted, 1);
    assert_eq!(scene.bridge.handshakes(), 2);
    assert!(scene.wait_active(0, LIMIT));
}

#[test]
fn a_target_that_sends_a_lot_and_ends_is_read_to_the_last_byte() {
    let scene = scene(Tcp::Source(64 * MIB, Then::Close));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    read_pattern(&pipe, 64 * MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0);
    scene.agent.expect("the target ended it");
}

#[test]
fn an_upload_of_64_mib_arrives_and_the_end_of_it_too() {
    let scene = scene(Tcp::Sink);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    write_pattern(&pipe, 64 * MIB);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    let seen = scene.target.seen();
    assert_eq!((seen.received, seen.complaints), (64 * MIB, Vec::new()));
}

#[test]
fn an_echo_returns_64_mib_in_frames_that_the_platforms_client_can_take() {
    let scene = scene(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let before = scene.agent.resident();
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| echo(&pipe, 64 * MIB));
        let peak = peak(&scene, before, || transfer.is_finished());
        transfer.join().unwrap();
        assert!(peak < GROWTH, "grew by {peak} bytes");
    });
    assert!(pipe.tunnel.counts().longest_payload <= 32768, "{:?}", pipe.tunnel.counts());
    assert!(pipe.wait_acknowledged(LIMIT));
}

#[test]
fn the_platforms_own_client_with_its_deadly_window_can_upload_and_download() {
    let scene = scene(Tcp::Echo);
    let pipe = scene.client(Options::default()).open("thing").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut pattern = Pattern::default();
            for _ in 0..128 {
                (&pipe).write_all(&pattern.bytes(64 << 10)).unwrap();
                // Faster than its window and its peer's 50 ms allow it kills itself (protocol W1).
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        read_pattern(&pipe, 8 * MIB);
    });
    pipe.close();
}

#[test]
fn a_target_that_does_not_read_costs_no_memory_and_gets_everything_later() {
    let scene = scene(Tcp::StalledSink);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let before = scene.agent.resident();
    std::thread::scope(|scope| {
        let upload = scope.spawn(|| write_pattern(&pipe, 64 * MIB));
        let peak = peak(&scene, before, || {
            let moved = scene.metric("bamf_agent_session_bytes_total{direction=\"to_target\"}");
            std::thread::sleep(Duration::from_millis(300));
            moved > 0 && scene.metric("bamf_agent_session_bytes_total{direction=\"to_target\"}") == moved
        });
        assert!(peak < GROWTH, "grew by {peak} bytes");
        assert!(!upload.is_finished(), "64 MiB went into a target that does not read");
        scene.target.resume();
        upload.join().unwrap();
    });
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    let seen = scene.target.seen();
    assert_eq!((seen.received, seen.complaints), (64 * MIB, Vec::new()));
}

#[test]
fn a_slow_target_gets_everything_that_a_fast_client_said_before_it_closed() {
    let scene = scene(Tcp::SlowSink(8 * MIB));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    write_pattern(&pipe, 24 * MIB);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    let seen = scene.target.seen();
    assert_eq!((seen.received, seen.complaints), (24 * MIB, Vec::new()));
}

#[test]
fn a_target_that_talks_gets_everything_that_the_client_said_before_it_closed() {
    let scene = scene(Tcp::Grumble(4 * MIB));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    write_pattern(&pipe, 8 * MIB);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    let seen = scene.target.seen();
    assert_eq!((seen.received, seen.complaints), (8 * MIB, Vec::new()), "{}", scene.agent.log());
}

#[test]
fn an_echo_that_nobody_listens_to_gets_everything_that_the_client_said_before_it_closed() {
    let scene = scene(Tcp::Echo);
    let hasty = Options { close_flush: Duration::ZERO, linger: Duration::ZERO, ..lazy_acks() };
    let pipe = scene.client(hasty).open("thing").unwrap();
    ping(&pipe, b"x");
    // Its answers get stuck, and with them the echo.
    scene.cable.stall_direction(Direction::Up);
    write_pattern(&pipe, 15 * MIB);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert_eq!(scene.target.seen().received, 15 * MIB + 1);
}

#[test]
fn a_download_that_the_client_closes_ends_at_the_target_soon() {
    let scene = scene(Tcp::Source(1 << 40, Then::Close));
    // A bridge that closes with input unread resets the connection, and now and then the reset overtakes the close frame
    // (protocol W10). Then the session waits for a redial, as after any break; one of several is told.
    let is_told = |_| {
        let pipe = scene.client(Options::robust()).open("thing").unwrap();
        (&pipe).write_all(b"go").unwrap();
        read_on(&pipe, &mut Pattern::default(), 4 * MIB);
        pipe.close();
        scene.target.wait_for(Duration::from_secs(5), |seen| seen.ended == 1)
    };
    assert!((0..8).any(is_told), "{}", scene.agent.log());
    scene.agent.expect("the client closed it");
}

#[test]
fn a_client_that_does_not_read_costs_no_memory_and_gets_everything_later() {
    let scene = scene(Tcp::Source(128 * MIB, Then::Close));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    let before = scene.agent.resident();
    (&pipe).write_all(b"go").unwrap();
    let peak = peak(&scene, before, || {
        let sent = scene.target.seen().sent;
        std::thread::sleep(Duration::from_millis(300));
        sent > 0 && scene.target.seen().sent == sent
    });
    assert!(peak < GROWTH, "grew by {peak} bytes");
    assert!(scene.target.seen().sent < 100 * MIB, "the target was not held back");
    read_pattern(&pipe, 128 * MIB);
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_client_that_never_acknowledges_holds_its_target_back_and_costs_bounded_memory() {
    let acks = bamf_lab::client::AckPolicy::Never;
    let scene = scene(Tcp::Source(256 * MIB, Then::Close));
    let pipe = scene.client(Options { acks, ..Options::robust() }).open("thing").unwrap();
    let before = scene.agent.resident();
    (&pipe).write_all(b"go").unwrap();
    let peak = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 256 * 1024];
            while !matches!((&pipe).read(&mut buffer), Ok(0) | Err(_)) {}
        });
        let peak = peak(&scene, before, || scene.metric("bamf_agent_stream_blocked_total") > 0);
        assert!(scene.target.seen().sent < 128 * MIB, "the target was not held back");
        pipe.tunnel.vanish();
        peak
    });
    assert!(peak < GROWTH, "grew by {peak} bytes");
}

#[test]
fn a_target_that_sends_before_it_reads_is_served_while_the_client_writes_first() {
    let scene = scene(Tcp::Stubborn(96 * MIB));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| write_pattern(&pipe, 15 * MIB));
        read_pattern(&pipe, 96 * MIB);
    });
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert_eq!(scene.target.seen().received, 15 * MIB);
}

#[test]
fn a_client_that_writes_a_lot_before_it_reads_does_not_stall_with_an_echo() {
    let scene = scene(Tcp::Echo);
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    write_pattern(&pipe, 6 * MIB);
    read_pattern(&pipe, 6 * MIB);
    echo(&pipe, MIB);
}

#[test]
fn a_client_that_pauses_for_longer_than_networks_do_is_not_cut_off() {
    let scene = scene(Tcp::Source(48 * MIB, Then::Hold));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    let mut pattern = Pattern::default();
    read_on(&pipe, &mut pattern, MIB);
    // Longer than any timer in the agent or its sockets: a user looks at a pager.
    std::thread::sleep(Duration::from_secs(45));
    read_on(&pipe, &mut pattern, 48 * MIB);
    assert_eq!(pipe.tunnel.counts().breaks, 0, "{}", scene.agent.log());
}

#[test]
fn a_client_that_reads_the_end_late_and_slowly_still_gets_all_of_it() {
    let scene = scene(Tcp::Source(24 * MIB, Then::Close));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    (&pipe).write_all(b"go").unwrap();
    let mut pattern = Pattern::default();
    std::thread::sleep(Duration::from_secs(5));
    while pattern.position() < 24 * MIB {
        let next = pattern.position() + 2 * MIB;
        read_on(&pipe, &mut pattern, next);
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!((&pipe).read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_slow_path_in_single_bytes_changes_nothing() {
    let scene = scene(Tcp::Echo);
    scene.cable.split(1);
    scene.cable.delay(Duration::from_millis(30));
    let pipe = scene.client(lazy_acks()).open("thing").unwrap();
    echo(&pipe, 128 * 1024);
    pipe.close();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
}

#[test]
fn frames_in_single_bytes_from_the_client_change_nothing() {
    let scene = scene(Tcp::Echo);
    let options = Options { byte_by_byte: true, max_payload: 100, ..lazy_acks() };
    let pipe = scene.client(options).open("thing").unwrap();
    echo(&pipe, 4000);
}

#[test]
fn sessions_share_the_agent_without_mixing_their_bytes() {
    let scene = scene_of(Tcp::Echo, Setting::default());
    let client = scene.client(lazy_acks());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let pipe = client.open("thing").unwrap();
                echo(&pipe, 8 * MIB);
                pipe.close();
            });
        }
    });
    assert!(until(LIMIT, || scene.active() == 0), "{}", scene.agent.log());
    assert_eq!(scene.target.seen().accepted, 8);
}

#[test]
fn a_session_id_that_begins_with_a_sign_is_as_good_as_any() {
    let scene = scene(Tcp::Echo);
    scene.plane.set_next_session_id("-_3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke");
    let pipe = scene.client(Options::robust()).open("thing").unwrap();
    assert!(id(&pipe).starts_with("-_"));
    ping(&pipe, b"hello");
    assert!(!scene.agent.log().contains("8h-TtYx2LrW7cPq1Ab9Dn4Ke"), "the whole id is logged");
}
