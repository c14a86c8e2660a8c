//! Answers that have no end of their own: event streams and WebSockets.

use std::time::{Duration, Instant};

use bamf_lab::agent::{LIMIT, NAME, until};
use bamf_lab::runtime::block_on;
use bamf_lab::visitor::Error;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::{self, Message};

use super::scene::{POOL, Scene};

/// What is passed on at once comes at once, even on a slow machine, when the next thing never comes.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Streams can be opened faster than connections, and the bridge refuses where it has none.
#[track_caller]
fn has_room(scene: &Scene) {
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.relays(NAME) > bridge.busy_relays(NAME)));
}

#[test]
fn events_pass_one_by_one_and_the_stream_ends_cleanly() {
    let scene = Scene::open();
    block_on(async {
        let mut events = scene.visitor().stream("/sse/3").await.unwrap();
        assert_eq!(events.status, 200);
        assert!(events.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        for number in 1..=3 {
            let event = events.next(AT_ONCE).await.unwrap().unwrap();
            assert_eq!(event, format!("id: {number}\nevent: tick\ndata: {{\"number\":{number}}}"));
        }
        // An error would say that it was cut off.
        assert_eq!(events.next(AT_ONCE).await.unwrap(), None);
    });
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.detached_relays(NAME) == 0));
    scene.full();
    scene.still_serves();
}

#[test]
fn an_event_does_not_wait_for_the_next_one_and_streams_do_not_count_in_the_pool() {
    let scene = Scene::open();
    let mut streams = Vec::new();
    for _ in 0..40 {
        has_room(&scene);
        let mut events = block_on(scene.visitor().stream("/sse-silent")).unwrap();
        assert!(block_on(events.next(AT_ONCE)).unwrap().unwrap().contains("number\":1"));
        streams.push(events);
    }
    assert_eq!(scene.bridge.detached_relays(NAME), 40);
    scene.full();
    let shown = |what: &str| scene.home.status()["relays"][0][what].clone();
    assert!(until(LIMIT, || shown("streams") == 40 && shown("connections") == POOL), "{}", scene.home.status());
    scene.still_serves();
    scene.target.resume();
    for events in &mut streams {
        assert_eq!(block_on(events.next(AT_ONCE)).unwrap(), None);
    }
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.detached_relays(NAME) == 0));
    assert!(until(LIMIT, || shown("streams") == 0));
}

#[test]
fn a_stream_that_everyone_left_frees_the_target_as_soon_as_the_bridge_lets_go() {
    let scene = Scene::open();
    block_on(async {
        let mut events = scene.visitor().stream("/sse-endless").await.unwrap();
        events.next(AT_ONCE).await.unwrap().unwrap();
    });
    // The browser has left. The bridge reads on regardless (protocol 9.6), so the agent cannot know it yet.
    assert_eq!(scene.bridge.detached_relays(NAME), 1);
    assert_eq!(scene.target.seen().ended, 0);
    let began = Instant::now();
    scene.bridge.kill();
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    println!("the target of an abandoned stream was free after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn streams_that_browsers_leave_behind_never_use_the_pool_up() {
    let scene = Scene::open();
    // More than the agent lets stand at once, and a pool besides. The bridge reads all of them on for ever.
    for _ in 0..300 {
        has_room(&scene);
        let mut events = block_on(scene.visitor().stream("/sse-silent")).unwrap();
        block_on(events.next(AT_ONCE)).unwrap().unwrap();
    }
    scene.full();
    scene.still_serves();
    let streams = || scene.home.status()["relays"][0]["streams"].as_u64().unwrap();
    assert!(until(LIMIT, || streams() == 256), "{}", scene.home.status());
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended >= 300 - 256), "the oldest targets are free");
}

#[test]
fn a_stream_whose_target_dies_is_cut_and_its_connection_goes() {
    let scene = Scene::open();
    block_on(async {
        let mut events = scene.visitor().stream("/sse-silent").await.unwrap();
        events.next(AT_ONCE).await.unwrap().unwrap();
        scene.target.cut();
        assert!(events.next(AT_ONCE).await.is_err(), "no clean end: the stream was not complete");
    });
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.detached_relays(NAME) == 0));
    scene.full();
}

#[test]
fn a_web_socket_carries_messages_both_ways_until_it_is_closed() {
    let scene = Scene::open();
    block_on(async {
        let mut socket = scene.visitor().websocket("/ws", Some("chat, other")).await.unwrap();
        for length in [0, 1, 125, 126, 70_000, 3 << 20] {
            let message = Message::binary(bamf_lab::pattern::Pattern::default().bytes(length));
            socket.send(message.clone()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), message);
        }
        assert_eq!(scene.bridge.detached_relays(NAME), 1);
        socket.close(None).await.unwrap();
        while socket.next().await.is_some() {}
    });
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    let request = scene.target.seen().requests.pop().unwrap();
    assert_eq!(request.header("sec-websocket-protocol"), Some("chat, other"));
    assert_eq!(request.header("upgrade"), Some("websocket"));
    assert_eq!(request.header("x-bamf-session-token"), None);
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.detached_relays(NAME) == 0));
    scene.full();
}

#[test]
fn what_comes_in_one_piece_with_the_switch_is_not_lost() {
    let scene = Scene::open();
    block_on(async {
        let mut socket = scene.visitor().websocket("/ws-greeting", None).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
        socket.send(Message::text("and back")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("and back"));
    });
}

#[test]
fn a_web_socket_that_a_visitor_drops_frees_the_target() {
    let scene = Scene::open();
    let socket = block_on(scene.visitor().websocket("/ws", None)).unwrap();
    drop(socket);
    assert!(scene.target.wait_for(LIMIT, |seen| seen.ended == 1), "{}", scene.agent.log());
    assert!(scene.bridge.wait_for(LIMIT, |bridge| bridge.detached_relays(NAME) == 0));
}

#[test]
fn a_refused_upgrade_is_an_answer_like_any_other() {
    let scene = Scene::open();
    for _ in 0..3 {
        let error = block_on(scene.visitor().websocket("/ws-refused", None)).unwrap_err();
        let Error::WebSocket(error) = error else { panic!("{error}") };
        let tungstenite::Error::Http(answer) = *error else { panic!("{error}") };
        assert_eq!(answer.status(), 403);
        scene.still_serves();
    }
    assert_eq!((scene.bridge.relays_ever(NAME), scene.bridge.unsolicited()), (POOL, 0), "the connection stays usable");
}

#[test]
fn forty_web_sockets_stand_at_once_and_the_pool_stays_full() {
    let scene = Scene::open();
    block_on(async {
        let mut sockets = Vec::new();
        for number in 0..40 {
            has_room(&scene);
            let mut socket = scene.visitor().websocket("/ws", None).await.unwrap();
            socket.send(Message::text(number.to_string())).await.unwrap();
            sockets.push(socket);
        }
        for (number, socket) in sockets.iter_mut().enumerate() {
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(number.to_string()));
        }
        assert_eq!(scene.bridge.detached_relays(NAME), 40);
        scene.full();
    });
}
