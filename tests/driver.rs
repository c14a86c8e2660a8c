//! The session's driver over real TLS sockets, under arbitrary schedules of cuts, stalls, splits, redials and hand-overs.
//!
//! Agent's side: the real `Tunnels`, in this process. Far side: a bridge of a few lines and the lab's client end, which
//! was written from the protocol alone. In between a cable that does what the schedule says. Whatever it says, every byte
//! comes back in order and once, and the target sees one connection. A hand-over is the real one, less systemd: sessions are
//! frozen, written to a sealed file, and adopted by another `Tunnels`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "the far side of a test has no owner but the test")]

#[path = "driver/moments.rs"]
mod moments;
#[path = "driver/reluctant.rs"]
mod reluctant;
#[path = "driver/rig.rs"]
mod rig;
#[path = "driver/transfers.rs"]
mod transfers;

use std::sync::Arc;
use std::time::Duration;

use bamf_agent::platform::events::TunnelKind;
use bamf_lab::client::{Options, Tunnel};
use bamf_lab::pattern::Pattern;
use bamf_lab::serve::Network;
use bamf_lab::targets::{Target, Tcp};
use proptest::prelude::*;
use tokio::time::timeout;

use self::rig::Rig;

const LIMIT: Duration = Duration::from_secs(60);

/// Something that the network, the platform or the service manager does.
#[derive(Clone, Debug)]
enum Event {
    Reset,
    Fin,
    /// The client moves on while the connection is healthy.
    Hop,
    /// A redial that nobody comes for.
    Redial,
    Stall(u64),
    Split(usize),
    Delay(u64),
    Calm,
    /// The agent's process is replaced.
    HandOver,
}

/// What costs no connection.
fn patience() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::HandOver),
        1 => (1..60u64).prop_map(Event::Stall),
        1 => prop_oneof![1..40usize, 1000..9000usize].prop_map(Event::Split),
        1 => (1..15u64).prop_map(Event::Delay),
        1 => Just(Event::Calm),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let loss = prop_oneof![
        3 => Just(Event::Reset),
        2 => Just(Event::Fin),
        2 => Just(Event::Hop),
        1 => Just(Event::Redial),
    ];
    prop_oneof![loss, patience()]
}

fn schedule(event: impl Strategy<Value = Event>) -> impl Strategy<Value = Vec<(u64, Event)>> {
    prop::collection::vec((0..40u64, event), 1..25)
}

async fn disturb(rig: Arc<Rig>, tunnel: Tunnel, events: Vec<(u64, Event)>) {
    for (pause, event) in events {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match event {
            Event::Reset => rig.cable.snap(),
            Event::Fin => rig.cable.cut(),
            Event::Hop => tunnel.hop(),
            Event::Redial => rig.order(TunnelKind::Redial).await,
            Event::Stall(time) => {
                rig.cable.stall();
                tokio::time::sleep(Duration::from_millis(time)).await;
                rig.cable.resume();
            }
            Event::Split(piece) => rig.cable.split(piece),
            Event::Delay(time) => rig.cable.delay(Duration::from_millis(time)),
            Event::Calm => {
                rig.cable.split(usize::MAX);
                rig.cable.delay(Duration::ZERO);
            }
            Event::HandOver => assert_eq!(rig.hand_over().await, 1),
        }
    }
    rig.cable.split(usize::MAX);
    rig.cable.delay(Duration::ZERO);
}

/// Sends `total` bytes through an echo and compares what comes back, while `events` happen. Returns how many bridge
/// connections that took.
async fn echo_under(kind: &'static str, events: Vec<(u64, Event)>, total: usize, chunk: usize) -> usize {
    let target = Target::tcp(&Network::Host, Tcp::Echo).unwrap();
    let rig = Rig::new(kind, target.address().port());
    let tunnel = rig.client(Options::robust()).await;
    let writer = tunnel.clone();
    let writing = tokio::spawn(async move {
        let mut pattern = Pattern::default();
        while pattern.position() < total as u64 {
            let left = total - usize::try_from(pattern.position()).unwrap();
            let bytes = pattern.bytes(chunk.min(left));
            writer.write(&bytes).await.unwrap();
        }
    });
    let disturbing = tokio::spawn(disturb(Arc::clone(&rig), tunnel.clone(), events));
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 64 * 1024];
    while pattern.position() < total as u64 {
        let count = timeout(LIMIT, tunnel.read(&mut buffer)).await.expect("it stands still").unwrap();
        assert!(count > 0, "it ended at {}: {:?}", pattern.position(), tunnel.status());
        pattern.check(&buffer[..count]).unwrap();
    }
    writing.await.unwrap();
    disturbing.await.unwrap();
    // A last cut may just have happened, and a close frame without a connection reaches nobody: one more round trip.
    tunnel.write(b"!").await.unwrap();
    let mut last = [0];
    timeout(LIMIT, tunnel.read_exact(&mut last)).await.expect("it stands still").unwrap();
    assert_eq!(target.seen().accepted, 1, "one target connection");
    tunnel.close().await;
    assert!(rig.is_drained().await, "{:?}", tunnel.status());
    rig.connections()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

fn total() -> impl Strategy<Value = usize> {
    prop_oneof![1..5_000usize, 200_000..6_000_000usize]
}

fn chunk() -> impl Strategy<Value = usize> {
    prop_oneof![1..700usize, 10_000..200_000usize]
}

/// A byte at a time would take all day.
fn bearable(chunk: usize, total: usize) -> usize {
    chunk.max(total / 3_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 5, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_connections_every_byte_comes_back_in_order_and_once(
        events in schedule(event()), total in total(), chunk in chunk(),
    ) {
        run(echo_under("tcp", events, total, bearable(chunk, total)));
    }

    #[test]
    fn hand_overs_alone_cost_no_connection_however_slow_and_cut_up_the_network_is(
        events in schedule(patience()), total in total(), chunk in chunk(), raw in any::<bool>(),
    ) {
        let kind = if raw { "web-db" } else { "tcp" };
        let connections = run(echo_under(kind, events, total, bearable(chunk, total)));
        prop_assert_eq!(connections, 1);
    }
}
