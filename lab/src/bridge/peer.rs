//! A connection from an agent or a client, from its handshake until it is spliced, pooled or turned away.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::ahead::Ahead;
use super::life::Life;
use super::link::{Leg, Link, close};
use super::meeting::{Arrival, Peer};
use super::tls::Names;
use crate::plane::Role;

/// Serves a connection until it is over or in the pool.
pub(crate) async fn attend(life: &Arc<Life>, tcp: TcpStream) {
    let mut stopping = life.stopping();
    let arrived = tokio::select! {
        arrived = arrive(life, tcp) => arrived,
        _ = stopping.changed() => return,
    };
    if let Some(peer) = arrived {
        meet(life, peer).await;
    }
}

/// Up to the end of the header lines, for which there is no time limit.
async fn arrive(life: &Arc<Life>, tcp: TcpStream) -> Option<Peer> {
    let acceptor = TlsAcceptor::from(life.base.switches(|switches| Arc::clone(&switches.tls)));
    let Ok(tls) = acceptor.accept(Leg::new(tcp, Arc::clone(&life.killed))).await else {
        life.base.note(|seen| seen.failed_handshakes += 1);
        return None;
    };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let names = certificate.and_then(|leaf| Names::of(leaf)).unwrap_or_default();
    life.base.note(|seen| {
        seen.handshakes += 1;
        if let (Some(session), Some(role)) = (names.session.clone(), names.role) {
            *seen.by_session.entry((session, role)).or_default() += 1;
        }
    });
    let mut link = Ahead::new(tls);
    let first = header_line(&mut link).await.ok()??;
    if first == "RELAY" {
        let agent = header_line(&mut link).await.ok()??;
        life.pool.add(&agent, link);
        life.base.note(|seen| *seen.relays.entry(agent).or_default() += 1);
        return None;
    }
    if names.session.as_ref() != Some(&first) || names.bridge.as_ref() != Some(&life.base.options.id) {
        life.base.note(|seen| seen.turned_away += 1);
        close(link).await;
        return None;
    }
    let told = type_line(&mut link).await.ok()?;
    Some(Peer {
        link,
        session: first,
        role: names.role.unwrap_or(Role::Agent),
        kind: names.kind.or(told).unwrap_or_default(),
    })
}

/// A line without its end; `None` when the connection ends instead.
async fn header_line(link: &mut Link) -> io::Result<Option<String>> {
    let line = link.take_until(b"\n").await?;
    Ok(line.map(|line| String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned()))
}

/// What stands in the second line, if five more bytes say that there is one; otherwise they are payload.
async fn type_line(link: &mut Link) -> io::Result<Option<String>> {
    link.fill_to(5).await?;
    if !link.surplus().starts_with(b"type=") {
        return Ok(None);
    }
    let line = header_line(link).await?;
    Ok(line.and_then(|line| line.strip_prefix("type=").map(str::to_owned)))
}

async fn meet(life: &Arc<Life>, peer: Peer) {
    let never_match = life.base.switches(|switches| switches.never_match);
    let (peer, other) = match life.meeting.arrive(peer, never_match) {
        Arrival::HandedOver => return,
        Arrival::Missed(peer) => return close(peer.link).await,
        Arrival::Waits(peer, other) => (peer, other),
    };
    life.base.note(|_| ());
    let deadline = Instant::now() + life.base.options.match_wait;
    let mut stopping = life.stopping();
    let met = tokio::select! {
        met = life.meeting.wait(&peer.session, peer.role, other, deadline) => met,
        _ = stopping.changed() => None,
    };
    let Some(met) = met else { return close(peer.link).await };
    let (client, agent) = if peer.role == Role::Client { (peer, met) } else { (met, peer) };
    super::splice::run(life, client, agent).await;
}
