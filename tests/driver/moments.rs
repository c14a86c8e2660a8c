//! Hand-overs at moments that a schedule meets by luck only.

use bamf_agent::config::Resource;
use bamf_lab::client::{Received, Wire, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::reluctant::Reluctant;
use super::*;

fn echo() -> (Target, Arc<Rig>) {
    let target = Target::tcp(&Network::Host, Tcp::Echo).unwrap();
    let rig = Rig::new("tcp", target.address().port());
    (target, rig)
}

/// Writes, and reads the same.
async fn check_echo(tunnel: &Tunnel, text: &[u8]) {
    tunnel.write(text).await.unwrap();
    let mut back = vec![0; text.len()];
    timeout(LIMIT, tunnel.read_exact(&mut back)).await.expect("it stands still").unwrap();
    assert_eq!(back, text);
}

#[test]
fn a_session_whose_client_has_said_nothing_goes_on_and_its_target_is_dialled_when_it_speaks() {
    run(async {
        let (target, rig) = echo();
        let tunnel = rig.client(Options::robust()).await;
        for _ in 0..3 {
            assert_eq!(rig.hand_over().await, 1);
        }
        assert_eq!(target.seen().accepted, 0, "nobody has asked for it");
        check_echo(&tunnel, b"at last").await;
        assert_eq!((rig.connections(), target.seen().accepted), (1, 1));
    });
}

#[test]
fn a_target_that_is_not_dialled_yet_is_where_the_next_configuration_has_it() {
    run(async {
        let (before, rig) = echo();
        let now = Target::tcp(&Network::Host, Tcp::Echo).unwrap();
        let tunnel = rig.client(Options::robust()).await;
        let moved = Resource { port: now.address().port(), ..rig.resource().clone() };
        assert_eq!(rig.hand_over_to(&moved).await, 1);
        check_echo(&tunnel, b"over there").await;
        assert_eq!((before.seen().accepted, now.seen().accepted), (0, 1));
    });
}

#[test]
fn a_target_that_was_dialled_is_kept_and_one_that_was_not_is_gone_with_its_resource() {
    run(async {
        let (target, rig) = echo();
        let tunnel = rig.client(Options::robust()).await;
        check_echo(&tunnel, b"hello").await;
        let other = Resource { name: "other".into(), ..rig.resource().clone() };
        assert_eq!(rig.hand_over_to(&other).await, 1);
        check_echo(&tunnel, b"still there").await;
        assert_eq!(target.seen().accepted, 1);
    });
    run(async {
        let (target, rig) = echo();
        let tunnel = rig.client(Options { reconnect_pauses: Vec::new(), ..Options::robust() }).await;
        let other = Resource { name: "other".into(), ..rig.resource().clone() };
        assert_eq!(rig.lose_to(&other).await, 1);
        let ended = timeout(LIMIT, tunnel.read(&mut [0; 8])).await.expect("it is told");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        assert_eq!(target.seen().accepted, 0);
    });
}

#[test]
fn a_dial_that_takes_longer_than_the_grace_is_begun_again() {
    for kind in ["tcp", "web-db"] {
        run(async {
            let target = Target::tcp(&Network::Host, Tcp::Echo).unwrap();
            let rig = Rig::new(kind, target.address().port());
            rig.hold(true);
            rig.order(TunnelKind::Dial).await;
            for count in 1..4 {
                rig.wait_connections(count).await;
                assert_eq!(rig.hand_over().await, 1);
            }
            rig.wait_connections(4).await;
            rig.hold(false);
            let first = rig.arrival().await.unwrap();
            let tunnel = match kind {
                "tcp" => Tunnel::framed(first, None, Options::robust()),
                _ => Tunnel::raw(first, Options::robust()),
            };
            check_echo(&tunnel, b"here I am").await;
            assert_eq!(target.seen().accepted, 1);
            tunnel.close().await;
            assert!(rig.is_drained().await);
        });
    }
}

#[test]
fn a_dial_that_is_done_within_the_grace_is_carried_over() {
    run(async {
        let (target, rig) = echo();
        rig.hold(true);
        rig.order(TunnelKind::Dial).await;
        rig.wait_connections(1).await;
        let changing = tokio::spawn({
            let rig = Arc::clone(&rig);
            async move { rig.hand_over().await }
        });
        rig.hold(false);
        assert_eq!(changing.await.unwrap(), 1);
        let tunnel = Tunnel::framed(rig.arrival().await.unwrap(), None, Options::robust());
        check_echo(&tunnel, b"in time").await;
        assert_eq!(target.seen().accepted, 1);
    });
}

#[test]
fn a_target_that_is_being_dialled_is_dialled_again_and_gets_what_the_client_said_once() {
    run(async {
        let mut target = Reluctant::new().await;
        let rig = Rig::new("tcp", target.port());
        let tunnel = rig.client(Options::robust()).await;
        let words = Pattern::default().bytes(100_000);
        tunnel.write(&words).await.unwrap();
        assert!(tunnel.wait_acknowledged(LIMIT).await, "the agent has it, and dials");
        for _ in 0..2 {
            assert_eq!(rig.hand_over().await, 1);
        }
        let mut stream = target.open().await;
        let mut heard = vec![0; words.len()];
        timeout(LIMIT, stream.read_exact(&mut heard)).await.expect("it stands still").unwrap();
        assert!(heard == words);
        stream.write_all(b"thanks").await.unwrap();
        let mut thanks = [0; 6];
        timeout(LIMIT, tunnel.read_exact(&mut thanks)).await.expect("it stands still").unwrap();
        assert_eq!((&thanks, rig.connections()), (b"thanks", 1));
    });
}

#[test]
fn a_redial_under_way_goes_on_while_the_old_connection_carries() {
    run(async {
        let (target, rig) = echo();
        rig.order(TunnelKind::Dial).await;
        let mut old = Wire::new(rig.arrival().await.unwrap());
        old.write(&frame::data(1, b"one")).await.unwrap();
        assert_eq!(data(&mut old).await, (1, b"one".to_vec()));
        rig.hold(true);
        rig.order(TunnelKind::Redial).await;
        rig.wait_connections(2).await;
        assert_eq!(rig.hand_over().await, 1);
        rig.wait_connections(3).await;
        old.write(&frame::data(2, b"two")).await.unwrap();
        assert_eq!(data(&mut old).await, (2, b"two".to_vec()));
        rig.hold(false);
        let mut new = Wire::new(rig.arrival().await.unwrap());
        assert_eq!(new.next(LIMIT).await.unwrap(), Received::Handshake(3));
        new.write(&frame::handshake(2)).await.unwrap();
        assert_eq!(data(&mut new).await, (2, b"two".to_vec()));
        new.write(&frame::data(3, b"three")).await.unwrap();
        assert_eq!(data(&mut new).await, (3, b"three".to_vec()));
        assert_eq!(target.seen().accepted, 1);
    });
}

async fn data(wire: &mut Wire) -> (u64, Vec<u8>) {
    let received = wire.next_but_acks(LIMIT).await.unwrap();
    let Received::Data { seq, payload } = received else { panic!("{received:?} instead of data") };
    (seq, payload)
}

#[test]
fn a_handshake_of_which_any_part_has_come_is_completed_in_the_next_process() {
    for cut in 0..=9 {
        run(async {
            let (target, rig) = echo();
            rig.order(TunnelKind::Dial).await;
            let mut old = Wire::new(rig.arrival().await.unwrap());
            old.write(&frame::data(1, b"one")).await.unwrap();
            assert_eq!(data(&mut old).await, (1, b"one".to_vec()));
            // Half a frame that the new connection brings again.
            old.write(&frame::data(2, b"half a frame")[..20]).await.unwrap();
            rig.order(TunnelKind::Redial).await;
            let mut new = Wire::new(rig.arrival().await.unwrap());
            assert_eq!(new.next(LIMIT).await.unwrap(), Received::Handshake(2));
            let handshake = frame::handshake(1);
            new.write(&handshake[..cut]).await.unwrap();
            assert_eq!(rig.hand_over().await, 1);
            new.write(&handshake[cut..]).await.unwrap();
            assert_eq!(data(&mut new).await, (1, b"one".to_vec()), "it was never acknowledged");
            assert_eq!(rig.hand_over().await, 1);
            new.write_byte_by_byte(&frame::data(2, b"half a frame")).await.unwrap();
            let mut echoed = Vec::new();
            while echoed.len() < 12 {
                echoed.extend(data(&mut new).await.1);
            }
            assert_eq!(echoed, b"half a frame", "and none of it twice");
            assert_eq!((target.seen().accepted, rig.connections()), (1, 2));
        });
    }
}

#[test]
fn a_frame_of_which_any_part_has_come_is_completed_in_the_next_process_or_on_another_connection() {
    let text = b"it goes on";
    let whole = frame::data(1, text);
    // Of a frame that has come whole, nobody knows whether the process before has taken it.
    for (cut, again) in (0..whole.len()).flat_map(|cut| [(cut, false), (cut, true)]) {
        run(async {
            let (target, rig) = echo();
            rig.order(TunnelKind::Dial).await;
            let mut wire = Wire::new(rig.arrival().await.unwrap());
            wire.write(&whole[..cut]).await.unwrap();
            assert_eq!(rig.hand_over().await, 1);
            if again {
                rig.order(TunnelKind::Redial).await;
                wire = Wire::new(rig.arrival().await.unwrap());
                assert_eq!(wire.next(LIMIT).await.unwrap(), Received::Handshake(1));
                wire.write(&frame::handshake(1)).await.unwrap();
                wire.write(&whole).await.unwrap();
            } else {
                wire.write(&whole[cut..]).await.unwrap();
            }
            let mut echoed = Vec::new();
            while echoed.len() < text.len() {
                echoed.extend(data(&mut wire).await.1);
            }
            assert_eq!(echoed, text, "cut at {cut}");
            assert_eq!((target.seen().accepted, rig.connections()), (1, 1 + usize::from(again)));
        });
    }
}

#[test]
fn a_client_that_broke_the_protocol_is_told_by_the_next_process() {
    run(async {
        let (_target, rig) = echo();
        rig.order(TunnelKind::Dial).await;
        let mut wire = Wire::new(rig.arrival().await.unwrap());
        wire.write(&frame::data(7, b"too far")).await.unwrap();
        assert_eq!(wire.next_but_acks(LIMIT).await.unwrap(), Received::Close);
        assert_eq!(rig.hand_over().await, 1, "the bridge has not ended its side");
        assert_eq!(wire.next_but_acks(LIMIT).await.unwrap(), Received::End);
        wire.end().await;
        assert!(rig.is_drained().await);
    });
}

#[test]
fn a_session_without_a_connection_waits_for_its_client_in_the_next_process() {
    run(async {
        let (target, rig) = echo();
        let tunnel = rig.client(Options::robust()).await;
        check_echo(&tunnel, b"before").await;
        rig.cable.refuse(true);
        rig.cable.snap();
        tunnel.write(b"in between").await.unwrap();
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(rig.hand_over().await, 1);
        }
        rig.cable.refuse(false);
        let mut back = [0; 10];
        timeout(LIMIT, tunnel.read_exact(&mut back)).await.expect("it stands still").unwrap();
        assert_eq!((&back, target.seen().accepted), (b"in between", 1));
    });
}
