//! Two peers become one tunnel: bytes are copied both ways until either way ends (protocol 7.4).
//!
//! When one ends both connections are closed, `close_notify` and FIN, whatever still travels in the other direction; that is
//! the platform's way. A test may end it in other ways, or hold it up.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};

use super::ClosedReport;
use super::life::{Life, locked};
use super::link::{Link, close, reset};
use super::meeting::Peer;
use crate::plane::SessionEnd;

/// Room for one read, a TLS record: what a tunnel holds in each direction while it idles.
const RECORD: usize = 16 << 10;

/// Bytes that leave together at most.
const BULK: usize = 128 << 10;

/// How a test ends a tunnel at its bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The agent's connection is reset, the client's closed, and nothing is reported.
    ResetAgent,
    /// Both connections are reset and nothing is reported, as when the bridge dies.
    ResetBoth,
    /// Both connections are closed and that is reported: the platform's usual end.
    Clean,
    /// Both connections are closed and nothing is reported.
    CleanUnreported,
    /// Nothing is forwarded any more and nothing closed, as if the network had gone away.
    Silent,
    /// The agent's connection is reset while the client's goes silent.
    ResetAgentOnly,
}

/// A tunnel as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpliceView {
    /// The session's id.
    pub session: String,
    /// Bytes from the client to the agent.
    pub up: u64,
    /// Bytes from the agent to the client.
    pub down: u64,
}

/// Holds up a tunnel while it is shut.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: AtomicBool,
    opened: Notify,
}

impl Gate {
    fn set(&self, shut: bool) {
        self.shut.store(shut, Ordering::SeqCst);
        self.opened.notify_waiters();
    }

    async fn pass(&self) {
        while self.shut.load(Ordering::SeqCst) {
            let opened = self.opened.notified();
            if self.shut.load(Ordering::SeqCst) {
                opened.await;
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) gate: Gate,
    up: AtomicU64,
    down: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    session: String,
    counts: Arc<Counts>,
    orders: mpsc::UnboundedSender<Cut>,
}

/// The tunnels of a bridge.
#[derive(Debug)]
pub(crate) struct Splices {
    entries: Mutex<(u64, Vec<Entry>)>,
    load: Arc<AtomicUsize>,
}

impl Splices {
    pub(crate) fn new(load: Arc<AtomicUsize>) -> Self {
        load.store(0, Ordering::SeqCst);
        Self { entries: Mutex::default(), load }
    }

    fn enter(&self, session: &str) -> (u64, Arc<Counts>, mpsc::UnboundedReceiver<Cut>) {
        let (orders, ordered) = mpsc::unbounded_channel();
        let counts = Arc::new(Counts::default());
        let mut entries = locked(&self.entries);
        entries.0 += 1;
        let number = entries.0;
        entries.1.push(Entry { number, session: session.to_owned(), counts: Arc::clone(&counts), orders });
        self.load.store(entries.1.len(), Ordering::SeqCst);
        (number, counts, ordered)
    }

    fn leave(&self, number: u64) {
        let mut entries = locked(&self.entries);
        entries.1.retain(|entry| entry.number != number);
        self.load.store(entries.1.len(), Ordering::SeqCst);
    }

    fn of<T>(&self, session: &str, act: impl Fn(&Entry) -> T) -> usize {
        let entries = locked(&self.entries);
        entries.1.iter().filter(|entry| entry.session == session).map(act).count()
    }

    pub(crate) fn cut(&self, session: &str, cut: Cut) -> usize {
        self.of(session, |entry| entry.orders.send(cut).is_ok())
    }

    pub(crate) fn stall(&self, session: &str, stall: bool) -> usize {
        self.of(session, |entry| entry.counts.gate.set(stall))
    }

    pub(crate) fn view(&self) -> Vec<SpliceView> {
        let entries = locked(&self.entries);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let view = |entry: &Entry| SpliceView {
            session: entry.session.clone(),
            up: count(&entry.counts.up),
            down: count(&entry.counts.down),
        };
        entries.1.iter().map(view).collect()
    }
}

/// Runs a tunnel to its end.
pub(crate) async fn run(life: &Arc<Life>, client: Peer, agent: Peer) {
    let session = client.session.clone();
    life.base.plane.with(|plane| plane.established(&session));
    let (number, counts, mut orders) = life.splices.enter(&session);
    life.base.note(|_| ());
    let (mut client_link, mut agent_link) = (client.link, agent.link);
    let audited = client.kind == "postgres-audit";
    let mut cut = tokio::select! {
        () = copy_both(&mut client_link, &mut agent_link, &counts, audited) => Cut::Clean,
        cut = ordered(life, &mut orders) => cut,
    };
    if cut == Cut::Silent {
        cut = ordered(life, &mut orders).await;
    }
    let end = SessionEnd { session, up: counts.up.load(Ordering::Relaxed), down: counts.down.load(Ordering::Relaxed) };
    let (up, down) = (end.up, end.down);
    finish(life, cut, client_link, agent_link, end, &mut orders).await;
    life.base.note(|seen| {
        life.splices.leave(number);
        seen.finished_up += up;
        seen.finished_down += down;
    });
}

/// The next order; a stop of the bridge is one.
async fn ordered(life: &Arc<Life>, orders: &mut mpsc::UnboundedReceiver<Cut>) -> Cut {
    let mut stopping = life.stopping();
    let stopped = async { drop(stopping.wait_for(|stopping| *stopping).await) };
    tokio::select! {
        Some(cut) = orders.recv() => cut,
        () = stopped => Cut::Clean,
    }
}

async fn finish(
    life: &Arc<Life>,
    cut: Cut,
    client: Link,
    agent: Link,
    end: SessionEnd,
    orders: &mut mpsc::UnboundedReceiver<Cut>,
) {
    match cut {
        Cut::Clean => close_and_report(life, client, agent, end).await,
        Cut::CleanUnreported => drop(tokio::join!(close(client), close(agent))),
        Cut::ResetBoth => {
            reset(agent);
            reset(client);
        }
        Cut::ResetAgent => {
            reset(agent);
            close(client).await;
        }
        Cut::ResetAgentOnly => {
            reset(agent);
            ordered(life, orders).await;
            close(client).await;
        }
        // Silence twice: nothing but the end of the bridge changes anything any more.
        Cut::Silent => drop((ordered(life, orders).await, client, agent)),
    }
}

async fn close_and_report(life: &Arc<Life>, client: Link, agent: Link, end: SessionEnd) {
    let report = |end| life.base.plane.with(|plane| plane.closed(end));
    match life.base.switches(|switches| switches.closed_report) {
        ClosedReport::Before => {
            report(end);
            tokio::join!(close(client), close(agent));
        }
        ClosedReport::After(late) => {
            tokio::join!(close(client), close(agent));
            tokio::time::sleep(late).await;
            report(end);
        }
        ClosedReport::Never => drop(tokio::join!(close(client), close(agent))),
    }
}

/// Copies until either direction ends.
pub(crate) async fn copy_both<C, A>(client: &mut C, agent: &mut A, counts: &Counts, audited: bool)
where
    C: AsyncRead + AsyncWrite + Unpin,
    A: AsyncRead + AsyncWrite + Unpin,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_agent, mut to_agent) = tokio::io::split(agent);
    if audited && first_bytes(&mut from_client, &mut to_agent, counts).await.is_err() {
        return;
    }
    tokio::select! {
        _ = copy(&mut from_client, &mut to_agent, &counts.gate, &counts.up) => {}
        _ = copy(&mut from_agent, &mut to_client, &counts.gate, &counts.down) => {}
    }
}

/// For `postgres-audit` the bridge wants eight bytes of the client before anything flows (protocol 7.4).
async fn first_bytes<R, W>(from: &mut R, to: &mut W, counts: &Counts) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes).await?;
    counts.up.fetch_add(8, Ordering::Relaxed);
    to.write_all(&bytes).await?;
    to.flush().await
}

async fn copy<R, W>(from: &mut R, to: &mut W, gate: &Gate, count: &AtomicU64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = BytesMut::with_capacity(RECORD);
    loop {
        gate.pass().await;
        buffer.clear();
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        // Records that have arrived already leave together: fewer and larger writes carry bulk faster.
        let ended = take_the_rest(from, &mut buffer).await;
        gate.pass().await;
        to.write_all(&buffer).await?;
        to.flush().await?;
        count.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        if ended {
            return Ok(());
        }
    }
}

/// Reads what is there without waiting, as far as it fits; true if the stream has ended.
async fn take_the_rest<R: AsyncRead + Unpin>(from: &mut R, buffer: &mut BytesMut) -> bool {
    std::future::poll_fn(|context| {
        while buffer.len() < BULK {
            buffer.reserve(RECORD);
            match pin!(from.read_buf(buffer)).poll(context) {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(true),
                Poll::Ready(Ok(_)) => {}
            }
        }
        Poll::Ready(false)
    })
    .await
}
