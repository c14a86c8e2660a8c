//! The bridge between hand-written peers.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::cable::Cable;
use crate::plane::SessionFlaw;
use crate::plane::tests::client::LIMIT;
use rig::{Rig, end_of, passes};

mod connect;
mod relay;
mod rig;

const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn both_ends_meet_whoever_comes_first_and_the_record_says_so() {
    let mut rig = Rig::new();
    for agent_first in [true, false] {
        let (client, agent) = rig.open("db");
        let (first, second) = if agent_first { (&agent, &client) } else { (&client, &agent) };
        let mut first = first.dial().await.unwrap();
        first.write_all(b"early").await.unwrap();
        assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.pending() == 1));
        assert!(!rig.plane.session(&client.session).unwrap().established);
        let mut second = second.dial().await.unwrap();
        let mut read = [0; 5];
        second.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"early", "nothing behind the header lines is lost");
        passes(&mut second, &mut first, "answer").await;
        assert!(rig.plane.session(&client.session).unwrap().established);
        for role in [Role::Client, Role::Agent] {
            assert_eq!(rig.bridge.session_handshakes(&client.session, role), 1);
        }
        drop((first, second));
        assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.splices().is_empty()));
    }
    assert_eq!((rig.bridge.handshakes(), rig.bridge.bytes()), (4, (11, 11)));
}

#[tokio::test]
async fn one_end_that_leaves_takes_the_other_with_it_and_then_the_record_is_gone() {
    let mut rig = Rig::new();
    let (session, mut client, mut agent) = rig.tunnel().await;
    passes(&mut agent, &mut client, "rows").await;
    agent.write_all(b"the tail").await.unwrap();
    agent.shutdown().await.unwrap();
    let (tail, end) = end_of(&mut client).await;
    assert_eq!(tail, b"the tail");
    end.expect("close_notify before the FIN");
    assert!(rig.plane.wait_for(LIMIT, |seen| seen.closed.total() == 1));
    assert_eq!(rig.plane.session(&session), None);
    assert_eq!(rig.reconnect(&session).status, 404);
    assert!(rig.plane.wait_for(LIMIT, |seen| {
        seen.closed.last().is_some_and(|end| (end.session.as_str(), end.up, end.down) == (&session, 0, 12))
    }));
}

#[tokio::test]
async fn an_end_that_waits_in_vain_is_closed_without_a_word() {
    let mut rig = Rig::with(BridgeOptions { match_wait: SHORT, ..BridgeOptions::default() });
    let (_, agent) = rig.open("db");
    let begun = Instant::now();
    let (read, end) = end_of(&mut agent.dial().await.unwrap()).await;
    assert!(read.is_empty() && end.is_ok() && begun.elapsed() >= SHORT);
    assert_eq!(rig.bridge.pending(), 0);
}

#[tokio::test]
async fn with_matching_off_both_ends_wait_in_vain() {
    let mut rig = Rig::with(BridgeOptions { match_wait: SHORT, ..BridgeOptions::default() });
    rig.bridge.never_match(true);
    let (client, agent) = rig.open("db");
    let (mut client, mut agent) = (client.dial().await.unwrap(), agent.dial().await.unwrap());
    assert!(end_of(&mut client).await.1.is_ok() && end_of(&mut agent).await.1.is_ok());
    assert!(rig.plane.commands().len() == 1 && rig.bridge.splices().is_empty());
}

#[tokio::test]
async fn a_newer_end_takes_the_place_of_an_older_one_that_waits_on_for_nobody() {
    let mut rig = Rig::with(BridgeOptions { match_wait: SHORT * 5, ..BridgeOptions::default() });
    let (client, agent) = rig.open("db");
    let mut older = agent.dial().await.unwrap();
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.pending() == 1));
    let mut newer = agent.dial().await.unwrap();
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.session_handshakes(&agent.session, Role::Agent) == 2));
    newer.write_all(b"newer").await.unwrap();
    // The older connection's bytes would come first if it were still the one.
    let mut client = client.dial().await.unwrap();
    let mut read = [0; 5];
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"newer");
    assert!(end_of(&mut older).await.1.is_ok());
    passes(&mut client, &mut newer, "still there").await;
}

#[tokio::test]
async fn wrong_names_are_turned_away_in_silence() {
    let mut rig = Rig::new();
    let flaws = [
        SessionFlaw::ForBridge("bridge-9".into()),
        SessionFlaw::WithoutBridge,
        SessionFlaw::ForSession("another".into()),
    ];
    for (turned_away, flaw) in flaws.into_iter().enumerate() {
        rig.plane.flaw_session_certificates(Role::Agent, flaw.clone());
        let (_, agent) = rig.open("db");
        let (read, end) = end_of(&mut agent.dial().await.unwrap()).await;
        assert!(read.is_empty() && end.is_ok(), "{flaw:?}");
        assert_eq!(rig.bridge.turned_away(), turned_away + 1, "{flaw:?}");
    }
    let mut stranger = rig.identity.handshake().await.unwrap();
    stranger.write_all(b"some-session\ntype=ssh\n").await.unwrap();
    assert!(end_of(&mut stranger).await.1.is_ok(), "a certificate without a session");
}

#[tokio::test]
async fn certificates_that_are_not_valid_now_or_not_ours_fail_after_the_handshake_seemed_done() {
    let mut rig = Rig::new();
    for flaw in [SessionFlaw::Expired, SessionFlaw::NotYetValid, SessionFlaw::Foreign] {
        rig.plane.flaw_session_certificates(Role::Agent, flaw.clone());
        let (_, agent) = rig.open("db");
        let mut peer = agent.handshake().await.expect("TLS 1.3 tells late");
        assert!(end_of(&mut peer).await.1.is_err(), "{flaw:?}");
    }
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.failed_handshakes() == 3) && rig.bridge.handshakes() == 0);
    rig.plane.flaw_session_certificates(Role::Agent, SessionFlaw::Backdated(Duration::from_secs(60)));
    let (session, ..) = rig.tunnel().await;
    assert_eq!(rig.bridge.session_handshakes(&session, Role::Agent), 1);
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let rig = Rig::new();
    assert!(rig.identity.handshake_with(&rustls::version::TLS12).await.is_err());
}

#[tokio::test]
async fn a_bridge_can_show_certificates_that_nobody_should_accept() {
    let rig = Rig::new();
    for wrong in
        [Certificate::ForHosts(vec!["elsewhere.example.com".into()]), Certificate::Foreign, Certificate::Expired]
    {
        rig.bridge.present(&wrong).unwrap();
        assert!(rig.identity.handshake().await.is_err(), "{wrong:?}");
    }
    rig.bridge.present(&Certificate::Proper).unwrap();
    assert!(rig.identity.handshake().await.is_ok());
}

#[tokio::test]
async fn a_bridge_learns_of_a_new_authority_when_it_starts_again() {
    let mut rig = Rig::new();
    rig.plane.rotate_ca();
    let (client, _) = rig.open("db");
    assert!(client.handshake().await.is_err(), "the bridge still shows the old one's certificate");
    rig.bridge.restart().unwrap();
    let mut client = client.dial().await.unwrap();
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.pending() == 1));
    rig.bridge.kill();
    assert!(end_of(&mut client).await.1.is_err());
}

#[tokio::test]
async fn a_killed_bridge_reports_nothing_and_the_session_goes_on_at_another() {
    let mut rig = Rig::new();
    let other = Bridge::start(&rig.plane, BridgeOptions { id: "bridge-1".into(), ..BridgeOptions::default() }).unwrap();
    let (session, mut client, mut agent) = rig.tunnel().await;
    rig.bridge.kill();
    assert!(end_of(&mut client).await.1.is_err() && end_of(&mut agent).await.1.is_err());
    assert!(rig.identity.handshake().await.is_err(), "nobody listens");
    let (client, agent) = rig.reopen(&session);
    assert_eq!((&client.session, &agent.session, client.port), (&session, &session, other.port()));
    let (mut client, mut agent) = (client.dial().await.unwrap(), agent.dial().await.unwrap());
    passes(&mut client, &mut agent, "on we go").await;
    assert!(rig.plane.session(&session).is_some_and(|session| session.bridge == "bridge-1" && session.established));
    assert!(rig.plane.wait_for(Duration::ZERO, |seen| seen.closed.total() == 0));
    rig.bridge.restart().unwrap();
    assert!(rig.identity.handshake().await.is_ok(), "on the same port");
}

#[tokio::test]
async fn a_stopped_bridge_closes_and_reports() {
    let mut rig = Rig::new();
    rig.plane.keep_sessions_on_close(true);
    let (session, mut client, mut agent) = rig.tunnel().await;
    let mut relay = rig.relay().await;
    rig.bridge.stop();
    assert!(end_of(&mut client).await.1.is_ok() && end_of(&mut agent).await.1.is_ok());
    assert!(end_of(&mut relay).await.1.is_ok());
    assert!(rig.plane.wait_for(LIMIT, |seen| seen.closed.total() == 1));
    assert!(rig.plane.session(&session).is_some(), "the friendlier behaviour");
    assert_eq!(rig.reconnect(&session).status, 503, "no bridge is left");
    rig.bridge.restart().unwrap();
    let (client, agent) = rig.reopen(&session);
    let (mut client, mut agent) = (client.dial().await.unwrap(), agent.dial().await.unwrap());
    passes(&mut agent, &mut client, "again").await;
}

#[tokio::test]
async fn a_late_report_deletes_the_renewed_record() {
    let mut rig = Rig::new();
    rig.bridge.report_closed(ClosedReport::After(SHORT * 2));
    let (session, mut client, agent) = rig.tunnel().await;
    drop(agent);
    end_of(&mut client).await.1.unwrap();
    rig.reopen(&session);
    assert!(rig.plane.wait_for(LIMIT, |seen| seen.closed.total() == 1));
    assert_eq!(rig.reconnect(&session).status, 404);
}

#[tokio::test]
async fn a_tunnel_ends_the_way_a_test_wants() {
    for (cut, client_ends_well, agent_ends_well, reports) in [
        (Cut::Clean, true, true, 1),
        (Cut::CleanUnreported, true, true, 0),
        (Cut::ResetAgent, true, false, 0),
        (Cut::ResetBoth, false, false, 0),
    ] {
        let mut rig = Rig::new();
        let (session, mut client, mut agent) = rig.tunnel().await;
        assert_eq!(rig.bridge.cut(&session, cut), 1);
        assert_eq!(end_of(&mut client).await.1.is_ok(), client_ends_well, "{cut:?}");
        assert_eq!(end_of(&mut agent).await.1.is_ok(), agent_ends_well, "{cut:?}");
        assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.splices().is_empty()));
        assert!(rig.plane.wait_for(LIMIT, |seen| seen.closed.total() == reports), "{cut:?}");
        assert_eq!(rig.plane.session(&session).is_some(), reports == 0, "{cut:?}");
    }
}

#[tokio::test]
async fn a_silenced_tunnel_stays_open_and_says_nothing() {
    let mut rig = Rig::new();
    let (session, mut client, mut agent) = rig.tunnel().await;
    rig.bridge.cut(&session, Cut::Silent);
    client.write_all(b"hello?").await.unwrap();
    assert!(tokio::time::timeout(SHORT, agent.read_u8()).await.is_err());
    rig.bridge.cut(&session, Cut::ResetBoth);
    assert!(end_of(&mut agent).await.1.is_err());
}

#[tokio::test]
async fn an_agents_link_can_break_while_the_client_notices_nothing() {
    let mut rig = Rig::new();
    let (session, mut client, mut agent) = rig.tunnel().await;
    rig.bridge.cut(&session, Cut::ResetAgentOnly);
    assert!(end_of(&mut agent).await.1.is_err());
    assert!(tokio::time::timeout(SHORT, client.read_u8()).await.is_err());
    rig.bridge.cut(&session, Cut::CleanUnreported);
    assert!(end_of(&mut client).await.1.is_ok());
}

#[tokio::test]
async fn an_audited_database_is_not_forwarded_before_eight_bytes_of_the_client() {
    let mut rig = Rig::new();
    let (client, agent) = rig.open("audited");
    let (mut client, mut agent) = (client.dial().await.unwrap(), agent.dial().await.unwrap());
    agent.write_all(b"greeting").await.unwrap();
    client.write_all(b"startup").await.unwrap();
    assert!(tokio::time::timeout(SHORT, client.read_u8()).await.is_err());
    client.write_all(b"!").await.unwrap();
    let mut read = [0; 8];
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"greeting");
    agent.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"startup!");
}

#[tokio::test]
async fn a_cable_between_agent_and_bridge_is_found_by_its_advertised_port() {
    let mut rig = Rig::new();
    let cable = Cable::start(rig.bridge.address()).unwrap();
    rig.bridge.advertise("localhost", cable.address().port());
    cable.split(1);
    let (session, mut client, mut agent) = rig.tunnel().await;
    passes(&mut agent, &mut client, "piece by piece").await;
    cable.snap();
    assert!(end_of(&mut client).await.1.is_err() && end_of(&mut agent).await.1.is_err());
    assert!(rig.plane.wait_for(LIMIT, |seen| seen.closed.iter().any(|end| end.session == session)));
    assert_eq!(cable.connections(), 2);
}

#[tokio::test]
async fn a_stalled_tunnel_loses_nothing() {
    let mut rig = Rig::new();
    let (session, mut client, mut agent) = rig.tunnel().await;
    passes(&mut client, &mut agent, "one").await;
    rig.bridge.stall(&session, true);
    client.write_all(b"two").await.unwrap();
    assert!(tokio::time::timeout(SHORT, agent.read_u8()).await.is_err());
    rig.bridge.stall(&session, false);
    let mut read = [0; 3];
    agent.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"two");
}

#[tokio::test]
async fn what_comes_without_a_type_line_is_payload_from_its_fifth_byte_on() {
    let mut rig = Rig::new();
    let (client, agent) = rig.open("db");
    let mut agent_end = agent.handshake().await.unwrap();
    agent_end.write_all(format!("{}\nfour", agent.session).as_bytes()).await.unwrap();
    let mut client_end = client.dial().await.unwrap();
    assert!(rig.bridge.wait_for(LIMIT, |bridge| bridge.pending() == 1), "only the client waits");
    agent_end.write_all(b"5").await.unwrap();
    let mut read = [0; 5];
    client_end.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"four5");
}

#[tokio::test]
async fn header_lines_may_come_byte_by_byte_and_megabytes_follow() {
    let mut rig = Rig::new();
    let (client, agent) = rig.open("db");
    let mut agent_end = agent.handshake().await.unwrap();
    for byte in format!("{}\ntype={}\n", agent.session, agent.kind).bytes() {
        agent_end.write_all(&[byte]).await.unwrap();
        agent_end.flush().await.unwrap();
    }
    let mut client_end = client.dial().await.unwrap();
    let sent: Vec<u8> = (0..8_u32 << 20).map(|number| (number % 251) as u8).collect();
    let mut read = vec![0; sent.len()];
    let (written, read_all) = tokio::join!(agent_end.write_all(&sent), client_end.read_exact(&mut read));
    written.unwrap();
    read_all.unwrap();
    assert!(sent == read);
}
