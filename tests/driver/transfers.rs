//! One process after the other while bytes flow: in the middle of records, frames and writes, and at the ends of a session.

use bamf_lab::client::{AckPolicy, Status};
use bamf_lab::targets::Then;

use super::*;

/// A target, a session with it, and processes that change for as long as the session lasts.
struct Transfer {
    target: Target,
    rig: Arc<Rig>,
    tunnel: Tunnel,
}

impl Transfer {
    async fn begin(kind: &'static str, behaviour: Tcp, options: Options) -> Self {
        let target = Target::tcp(&Network::Host, behaviour).unwrap();
        let rig = Rig::new(kind, target.address().port());
        let tunnel = rig.client(options).await;
        Self { target, rig, tunnel }
    }

    fn hand_over_all_the_time(&self, pause: u64) -> tokio::task::JoinHandle<()> {
        tokio::spawn(Arc::clone(&self.rig).hand_over_for_ever(Duration::from_millis(pause)))
    }

    /// Reads to the end of what is sent; in its first half, the process changes between any two of these steps.
    async fn read_pattern(&self, total: u64, steps: u64) {
        let mut pattern = Pattern::default();
        let mut buffer = vec![0; 64 * 1024];
        let (mut changed, mut pause) = (self.rig.hand_overs(), 0);
        while pattern.position() < total {
            if steps > 0 && pattern.position() >= pause && pause < total / 2 {
                self.rig.wait_hand_overs(changed + 1).await;
                (changed, pause) = (self.rig.hand_overs(), pause + (total / 2 / steps).max(1));
            }
            let count = timeout(LIMIT, self.tunnel.read(&mut buffer)).await.expect("it stands still").unwrap();
            assert!(count > 0, "it ended at {}: {:?}", pattern.position(), self.tunnel.status());
            pattern.check(&buffer[..count]).unwrap();
        }
    }

    fn check_connections(&self) {
        assert_eq!((self.rig.connections(), self.target.seen().accepted), (1, 1), "one connection on either side");
    }
}

#[test]
fn a_conversation_that_comes_byte_by_byte_goes_through_many_processes() {
    for kind in ["tcp", "ssh-audit"] {
        run(async {
            let transfer = Transfer::begin(kind, Tcp::Echo, Options::robust()).await;
            transfer.rig.cable.split(1);
            let changing = transfer.hand_over_all_the_time(0);
            let writer = transfer.tunnel.clone();
            let writing = tokio::spawn(async move {
                let mut pattern = Pattern::default();
                for length in (1..60).cycle().take(400) {
                    writer.write(&pattern.bytes(length)).await.unwrap();
                }
            });
            transfer.read_pattern((1..60).cycle().take(400).sum(), 200).await;
            writing.await.unwrap();
            transfer.check_connections();
            assert!(transfer.rig.hand_overs() > 100, "{}", transfer.rig.hand_overs());
            transfer.tunnel.close().await;
            changing.await.unwrap();
        });
    }
}

#[test]
fn a_download_to_its_last_byte_and_the_end_of_it_go_through_many_processes() {
    const TOTAL: u64 = 20_000_000;
    for kind in ["tcp", "web-ssh"] {
        run(async {
            let transfer = Transfer::begin(kind, Tcp::Source(TOTAL, Then::Close), Options::robust()).await;
            transfer.tunnel.write(b"?").await.unwrap();
            let changing = transfer.hand_over_all_the_time(1);
            transfer.read_pattern(TOTAL, 50).await;
            assert_eq!(timeout(LIMIT, transfer.tunnel.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
            assert_eq!(transfer.tunnel.status(), Status::ClosedByPeer);
            timeout(LIMIT, changing).await.expect("the session does not end").unwrap();
            assert!(transfer.rig.hand_overs() >= 50, "{}", transfer.rig.hand_overs());
            transfer.check_connections();
        });
    }
}

#[test]
fn an_upload_reaches_a_slow_target_whole_though_the_client_has_left_and_processes_change() {
    const TOTAL: usize = 3_000_000;
    for kind in ["tcp", "web-db"] {
        run(async {
            let transfer = Transfer::begin(kind, Tcp::SlowSink(2_500_000), Options::robust()).await;
            let changing = transfer.hand_over_all_the_time(5);
            transfer.tunnel.write(&Pattern::default().bytes(TOTAL)).await.unwrap();
            transfer.tunnel.close().await;
            let taken = |seen: &bamf_lab::targets::Seen| seen.received == TOTAL as u64 && seen.ended == 1;
            assert!(transfer.target.wait_for(LIMIT, taken), "{:?}", transfer.target.seen());
            assert_eq!(transfer.target.seen().complaints, [""; 0]);
            timeout(LIMIT, changing).await.expect("the session does not end").unwrap();
            transfer.check_connections();
        });
    }
}

#[test]
fn what_a_target_does_not_take_for_a_while_waits_in_one_process_after_the_other() {
    // More than the client's window, the session's backlog and the kernel's buffers on the way together.
    const TOTAL: usize = 64_000_000;
    for kind in ["tcp", "web-db"] {
        run(async {
            let transfer = Transfer::begin(kind, Tcp::StalledSink, Options::robust()).await;
            let writer = transfer.tunnel.clone();
            let writing = tokio::spawn(async move {
                let mut pattern = Pattern::default();
                while pattern.position() < TOTAL as u64 {
                    writer.write(&pattern.bytes(TOTAL / 100)).await.unwrap();
                }
            });
            for _ in 0..20 {
                assert_eq!(transfer.rig.hand_over().await, 1);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(!writing.is_finished(), "somebody takes what the target does not");
            transfer.target.resume();
            assert_eq!(transfer.rig.hand_over().await, 1);
            timeout(LIMIT, writing).await.expect("it stands still").unwrap();
            let taken = |seen: &bamf_lab::targets::Seen| seen.received == TOTAL as u64;
            assert!(transfer.target.wait_for(LIMIT, taken), "{:?}", transfer.target.seen());
            assert_eq!(transfer.target.seen().complaints, [""; 0]);
            transfer.check_connections();
        });
    }
}

#[test]
fn what_a_client_does_not_take_for_a_while_waits_in_one_process_after_the_other() {
    const TOTAL: u64 = 60_000_000;
    for kind in ["tcp", "web-db"] {
        run(async {
            let transfer = Transfer::begin(kind, Tcp::EagerSource(TOTAL, Then::Hold), Options::robust()).await;
            transfer.rig.cable.stall();
            transfer.tunnel.write(b"?").await.unwrap();
            transfer.rig.cable.resume();
            // The client's buffer is full, then the sockets, then the session's window or its socket.
            for _ in 0..10 {
                assert_eq!(transfer.rig.hand_over().await, 1);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            transfer.rig.cable.stall();
            assert_eq!(transfer.rig.hand_over().await, 1);
            assert!(transfer.target.seen().sent < TOTAL, "it went somewhere");
            transfer.rig.cable.resume();
            transfer.read_pattern(TOTAL, 0).await;
            transfer.check_connections();
        });
    }
}

#[test]
fn frames_that_nobody_acknowledges_are_kept_by_the_next_process_and_sent_again_on_the_next_connection() {
    run(async {
        const TOTAL: u64 = 5_000_000;
        let options = Options { acks: AckPolicy::Never, receive_buffer: 8 << 20, ..Options::robust() };
        let transfer = Transfer::begin("tcp", Tcp::Source(TOTAL, Then::Hold), options).await;
        transfer.tunnel.write(b"?").await.unwrap();
        let mut first = vec![0; 1_000_000];
        transfer.tunnel.read_exact(&mut first).await.unwrap();
        for _ in 0..5 {
            assert_eq!(transfer.rig.hand_over().await, 1);
            transfer.tunnel.hop();
            assert!(transfer.tunnel.wait_reconnects(1, LIMIT).await);
        }
        let mut rest = vec![0; usize::try_from(TOTAL).unwrap() - first.len()];
        timeout(LIMIT, transfer.tunnel.read_exact(&mut rest)).await.expect("it stands still").unwrap();
        first.extend(rest);
        Pattern::default().check(&first).unwrap();
        assert_eq!(transfer.target.seen().accepted, 1);
    });
}
