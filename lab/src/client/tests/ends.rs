//! Two client ends that talk to each other, through a splice that cuts them off again and again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Mutex, mpsc};

use super::super::{AckPolicy, Dial, Link, Options, Status, Tunnel, Window};
use crate::pattern::Pattern;
use crate::runtime::block_on;

const LIMIT: Duration = Duration::from_secs(30);

type Waiting = mpsc::UnboundedSender<DuplexStream>;

/// Stands in for platform and bridge: pairs the connections of both sides, oldest first.
struct Meeting {
    sides: [Waiting; 2],
}

impl Meeting {
    /// Each pair of connections is cut when this many bytes have passed; the last pair is left alone.
    fn new(cuts: Vec<usize>) -> Self {
        let ((left, mut lefts), (right, mut rights)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        tokio::spawn(async move {
            let mut cuts = cuts.into_iter();
            while let (Some(left), Some(right)) = (lefts.recv().await, rights.recv().await) {
                splice(left, right, cuts.next().unwrap_or(usize::MAX)).await;
            }
        });
        Self { sides: [left, right] }
    }

    fn link(waiting: &Waiting) -> io::Result<Link> {
        let (mine, theirs) = tokio::io::duplex(100_000);
        waiting.send(theirs).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(mine))
    }

    fn tunnels(&self, options: [Options; 2]) -> [Tunnel; 2] {
        let [left, right] = options;
        [(0, left), (1, right)].map(|(side, options)| {
            let waiting = self.sides[side].clone();
            let first = Self::link(&waiting).unwrap();
            let dial: Dial = Box::new(move || {
                let link = Self::link(&waiting);
                Box::pin(async move { link })
            });
            Tunnel::framed(first, Some(dial), options)
        })
    }
}

/// Copies both ways; what was read when the limit is reached is lost.
async fn splice(left: DuplexStream, right: DuplexStream, limit: usize) {
    let passed = Arc::new(Mutex::new(0));
    let ((from_left, to_left), (from_right, to_right)) = (tokio::io::split(left), tokio::io::split(right));
    let copy = |mut from: tokio::io::ReadHalf<DuplexStream>, mut to: tokio::io::WriteHalf<DuplexStream>| {
        let passed = Arc::clone(&passed);
        async move {
            let mut buffer = vec![0; 20_000];
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                *passed.lock().await += count;
                if *passed.lock().await > limit || to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = copy(from_left, to_right) => {}
        () = copy(from_right, to_left) => {}
    }
}

async fn send(tunnel: &Tunnel, total: usize) {
    let (mut pattern, mut sent) = (Pattern::default(), 0);
    while sent < total {
        let length = (sent % 70_001 + 1).min(total - sent);
        tunnel.write(&pattern.bytes(length)).await.unwrap();
        sent += length;
    }
}

async fn receive(tunnel: &Tunnel, total: usize) {
    let (mut pattern, mut buffer) = (Pattern::default(), vec![0; 50_000]);
    while pattern.position() < total as u64 {
        let count = tunnel.read(&mut buffer).await.unwrap();
        assert!(count > 0, "ended after {}: {:?}", pattern.position(), tunnel.status());
        pattern.check(&buffer[..count]).unwrap();
    }
}

async fn both_ways(left: &Tunnel, right: &Tunnel, total: usize) {
    let all =
        async { tokio::join!(send(left, total), receive(left, total), send(right, total), receive(right, total)) };
    tokio::time::timeout(LIMIT, all).await.unwrap();
}

fn robust() -> Options {
    Options { window: Window::Blocking(400_000), receive_buffer: 100_000, ..Options::robust() }
}

#[test]
fn bytes_stay_exact_however_often_the_connection_is_cut() {
    block_on(async {
        let cuts: Vec<usize> = (0_usize..20).map(|round| 1 + round * 104_729 % 900_000).collect();
        let meeting = Meeting::new(cuts);
        let [left, right] =
            meeting.tunnels([robust(), Options { max_payload: 65536, acks: AckPolicy::OnReceipt, ..robust() }]);
        both_ways(&left, &right, 12 << 20).await;
        let counts = left.counts();
        assert!(counts.reconnects >= 15, "{counts:?}");
        assert_eq!((counts.bytes_received, counts.longest_payload), (12 << 20, 65536));
        assert!(left.wait_acknowledged(LIMIT).await && right.wait_acknowledged(LIMIT).await);
    });
}

#[test]
fn a_connection_that_gives_every_byte_alone_is_as_good_as_any() {
    block_on(async {
        let meeting = Meeting::new(vec![3_000, 20_000]);
        let [left, right] = meeting.tunnels([Options { byte_by_byte: true, ..robust() }, robust()]);
        both_ways(&left, &right, 60_000).await;
        assert!(left.counts().reconnects >= 2, "{:?}", left.counts());
    });
}

#[test]
fn frames_that_are_sent_twice_arrive_once() {
    block_on(async {
        let meeting = Meeting::new(vec![400_000]);
        let [left, right] = meeting.tunnels([Options { copies: 2, ..robust() }, robust()]);
        both_ways(&left, &right, 1 << 20).await;
        assert!(right.counts().duplicates >= 32, "{:?}", right.counts());
    });
}

#[test]
fn a_hop_is_a_break_that_the_peer_survives() {
    block_on(async {
        let [left, right] = Meeting::new(Vec::new()).tunnels([robust(), robust()]);
        both_ways(&left, &right, 100_000).await;
        left.hop();
        assert!(left.wait_reconnects(1, LIMIT).await && right.wait_reconnects(1, LIMIT).await);
        send(&left, 300_000).await;
        receive(&right, 300_000).await;
        assert_eq!((left.counts().breaks, right.counts().breaks), (1, 1));
    });
}

#[test]
fn closing_delivers_what_was_written_before_and_ends_both() {
    block_on(async {
        let [left, right] = Meeting::new(Vec::new()).tunnels([robust(), robust()]);
        left.write(b"last words").await.unwrap();
        left.close().await;
        assert_eq!(right.read_to_end().await.unwrap(), b"last words");
        assert_eq!((left.status(), right.status()), (Status::Closed, Status::ClosedByPeer));
        assert!(right.write(b"too late").await.is_err());
        assert_eq!(right.counts().breaks, 0);
    });
}

#[test]
fn the_deadly_window_kills_and_the_blocking_one_waits() {
    block_on(async {
        for (window, dies) in [(Window::Deadly(4 << 20), true), (Window::Blocking(4 << 20), false)] {
            let deaf = Options { acks: AckPolicy::Never, receive_buffer: 64 << 20, ..robust() };
            let [left, right] = Meeting::new(Vec::new()).tunnels([Options { window, ..robust() }, deaf]);
            let written = tokio::time::timeout(Duration::from_secs(2), async {
                for _ in 0..200 {
                    left.write(&[7; 32768]).await?;
                }
                Ok::<_, io::Error>(())
            });
            let written = written.await;
            assert_eq!((written.is_err(), matches!(written, Ok(Err(_)))), (!dies, dies));
            assert_eq!(left.counts().bytes_written, 127 * 32768);
            drop(right);
        }
    });
}

#[test]
fn a_user_who_does_not_read_stops_the_sender_and_loses_nothing() {
    block_on(async {
        let meeting = Meeting::new(vec![700_000]);
        let [left, right] = meeting.tunnels([robust(), robust()]);
        let sender = {
            let left = left.clone();
            tokio::spawn(async move { send(&left, 3 << 20).await })
        };
        // The window, two buffers of 100 kB, and what a splice holds: far less than is to be sent.
        while right.counts().bytes_received < 100_000 {
            tokio::task::yield_now().await;
        }
        assert!(!sender.is_finished());
        receive(&right, 3 << 20).await;
        sender.await.unwrap();
    });
}

#[test]
fn raw_tunnels_carry_bytes_as_they_are_and_end_with_their_connection() {
    block_on(async {
        let (one, other) = tokio::io::duplex(1000);
        let [left, right] = [one, other].map(|link| Tunnel::raw(Box::new(link), Options::robust()));
        both_ways(&left, &right, 200_000).await;
        left.write(b"end").await.unwrap();
        left.close().await;
        assert_eq!(right.read_to_end().await.unwrap(), b"end");
        assert_eq!(right.counts().frames_received, 0);
    });
}

#[test]
fn a_peer_that_never_comes_back_uses_up_the_attempts() {
    block_on(async {
        let (link, other) = tokio::io::duplex(1000);
        let dial: Dial = Box::new(|| Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) }));
        let options = Options { reconnect_pauses: vec![Duration::ZERO; 3], ..Options::robust() };
        let tunnel = Tunnel::framed(Box::new(link), Some(dial), options);
        drop(other);
        tunnel.wait_over().await;
        assert!(matches!(tunnel.status(), Status::Failed(why) if why.starts_with("not reconnected")));
        assert_eq!(tunnel.counts().attempts, 3);
        assert!(tunnel.read(&mut [0]).await.is_err());
    });
}
