//! Carries a tunnel over one connection after the other.
//!
//! ```text
//!            ┌───────────────────────────────┐
//!   link ───►│ receive            transmit   │── close frame, violation ──► over
//!            └──────────── break ────────────┘
//!                            │        ▲
//!                            ▼        │
//!            pause ─► dial ─► handshake ── attempts used up ──► over
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::frame::{self, Frame};
use super::options::Handshake;
use super::sequence::Violation;
use super::shared::{BATCH, Next, Shared, Status, Wish};

/// Anything that carries bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection to the peer, through a bridge or straight; the header lines are written already.
pub type Link = Box<dyn Duplex>;

/// What gets the next connection of a session.
pub type Dial = Box<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Link>> + Send>> + Send + Sync>;

/// How long a peer with an impossible handshake may take to be gone.
const STALE_LIMIT: Duration = Duration::from_millis(500);

/// How long a connection that cannot be written is still read: a close frame may be in it.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// What the platform's client allows for its close frame.
const CLOSE_LIMIT: Duration = Duration::from_millis(100);

/// How a connection ended.
enum End {
    /// Without a close frame.
    Broken(String),
    /// The peer said so.
    Closed,
    /// This end said so.
    Done,
    /// This end wants to be rid of it.
    Dropped,
    Violated(Violation),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What was read and not taken in.
struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    fn new() -> Self {
        Self { bytes: vec![0; 2 * BATCH].into_boxed_slice(), start: 0, end: 0 }
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn used(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads at least one byte; no frame is longer than the room that is left.
    async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        if self.bytes.len() - self.end < BATCH {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match from.read(&mut self.bytes[self.end..]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }
}

/// Carries the tunnel to its end.
pub(super) async fn carry(shared: Arc<Shared>, mut link: Link, redial: Option<Dial>) {
    let mut inbox = Inbox::new();
    let status = loop {
        shared.connections.send_modify(|count| *count += 1);
        let why = match converse(&shared, &mut link, &mut inbox).await {
            End::Done => break Status::Closed,
            End::Closed if shared.framed => {
                drop(timeout(CLOSE_LIMIT, goodbye(&shared, &mut link)).await);
                break Status::ClosedByPeer;
            }
            End::Closed => break Status::ClosedByPeer,
            End::Violated(violation) => break Status::Failed(format!("the peer violates the protocol: {violation}")),
            End::Dropped if shared.lock().wish == Wish::Vanish => break Status::Closed,
            End::Broken(_) | End::Dropped if !shared.framed => break Status::ClosedByPeer,
            End::Broken(why) => why,
            End::Dropped => "dropped on purpose".to_owned(),
        };
        shared.lock().counts.breaks += 1;
        drop(link);
        inbox.used(inbox.filled().len());
        let Some(dial) = &redial else { break Status::Failed(format!("the connection broke: {why}")) };
        match reconnect(&shared, dial, &mut inbox).await {
            Ok(next) => link = next,
            Err(status) => break status,
        }
    };
    shared.end(status);
}

async fn reconnect(shared: &Shared, dial: &Dial, inbox: &mut Inbox) -> Result<Link, Status> {
    let mut last = "no attempt was made".to_owned();
    for pause in &shared.options.reconnect_pauses {
        {
            let mut core = shared.lock();
            if core.wish == Wish::Hop {
                core.wish = Wish::Carry;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(*pause) => {}
            status = given_up(shared) => return Err(status),
        }
        shared.lock().counts.attempts += 1;
        let attempt = async {
            let mut link = dial().await.map_err(End::from)?;
            inbox.used(inbox.filled().len());
            handshake(shared, &mut link, inbox).await?;
            Ok(link)
        };
        let attempt = tokio::select! {
            attempt = attempt => attempt,
            status = given_up(shared) => return Err(status),
        };
        match attempt {
            Ok(link) => {
                shared.lock().counts.reconnects += 1;
                return Ok(link);
            }
            Err(End::Violated(violation)) => return Err(Status::Failed(violation.to_string())),
            Err(End::Broken(why)) => last = why,
            Err(End::Closed | End::Done | End::Dropped) => last = "the connection was closed".to_owned(),
        }
    }
    Err(Status::Failed(format!("not reconnected: {last}")))
}

/// Waits until the user closes the tunnel while there is no connection. A close frame has no way then.
async fn given_up(shared: &Shared) -> Status {
    loop {
        if matches!(shared.lock().wish, Wish::Close | Wish::Vanish) {
            return Status::Closed;
        }
        shared.to_write.notified().await;
    }
}

/// Both ends speak at once; nobody waits for the other (protocol 8.5).
async fn handshake(shared: &Shared, link: &mut Link, inbox: &mut Inbox) -> Result<(), End> {
    let claim = match shared.options.handshake {
        Handshake::Honest => Some(shared.lock().receiving.next_expected()),
        Handshake::Claim(number) => Some(number),
        Handshake::Silent => None,
    };
    let (mut from, mut to) = tokio::io::split(link);
    let speak = async {
        if let Some(next) = claim {
            write(shared, &mut to, &frame::handshake(next)).await?;
        }
        Ok::<_, End>(())
    };
    let listen = async {
        loop {
            match frame::decode(inbox.filled()).map_err(|malformed| End::Violated(malformed.into()))? {
                Some((Frame::Handshake(asked), length)) => {
                    inbox.used(length);
                    return Ok(asked);
                }
                Some(_) => return Err(End::Violated(Violation::Handshake)),
                None => inbox.fill(&mut from).await?,
            }
        }
    };
    let both = async { tokio::try_join!(speak, listen) };
    let ((), asked) = timeout(shared.options.handshake_limit, both)
        .await
        .map_err(|_| End::Broken("no handshake came".to_owned()))??;
    let resumed = shared.lock().sending.resume(asked);
    let repeated = match resumed {
        Ok(repeated) => repeated,
        // A bridge that has brought this end together with one that had left hears the end of that soon (protocol 7.4).
        Err(violation) => match timeout(STALE_LIMIT, gone(&mut from)).await {
            Ok(()) => return Err(End::Broken("the peer had given this connection up".to_owned())),
            Err(_) => return Err(End::Violated(violation)),
        },
    };
    shared.lock().counts.frames_repeated += repeated as u64;
    shared.writable.notify_one();
    Ok(())
}

/// Reads to the end and throws away what comes.
async fn gone(from: &mut (impl AsyncRead + Unpin)) {
    let mut scrap = [0; 1024];
    while matches!(from.read(&mut scrap).await, Ok(1..)) {}
}

async fn converse(shared: &Shared, link: &mut Link, inbox: &mut Inbox) -> End {
    let (mut from, mut to) = tokio::io::split(link);
    let transmitted = {
        let receive = receive(shared, &mut from, inbox);
        let transmit = transmit(shared, &mut to);
        tokio::pin!(receive, transmit);
        tokio::select! {
            () = unwanted(shared) => return End::Dropped,
            end = &mut receive => return end,
            end = &mut transmit => match end {
                End::Broken(why) => return timeout(LAST_WORDS, receive).await.unwrap_or(End::Broken(why)),
                End::Closed | End::Done | End::Dropped | End::Violated(_) => end,
            },
        }
    };
    // Unread input would turn the end of the connection into a reset, and the reset may overtake the close frame (W10).
    let drained = async { while matches!(from.read(&mut inbox.bytes).await, Ok(1..)) {} };
    if matches!(transmitted, End::Done) && !shared.options.linger.is_zero() {
        drop(timeout(shared.options.linger, drained).await);
    }
    transmitted
}

async fn unwanted(shared: &Shared) {
    while !matches!(shared.lock().wish, Wish::Hop | Wish::Vanish) {
        shared.unwanted.notified().await;
    }
}

async fn receive(shared: &Shared, from: &mut (impl AsyncRead + Unpin), inbox: &mut Inbox) -> End {
    loop {
        match shared.take_in(inbox.filled()) {
            Err(violation) => return End::Violated(violation),
            Ok((_, true)) => return End::Closed,
            Ok((used, false)) => inbox.used(used),
        }
        while shared.lock().receiving.unread() >= shared.options.receive_buffer {
            shared.room.notified().await;
        }
        // Frames that had no room come before anything new.
        let exhausted = match shared.framed {
            true => matches!(frame::decode(inbox.filled()), Ok(None)),
            false => inbox.filled().is_empty(),
        };
        if exhausted && let Err(error) = inbox.fill(from).await {
            return End::from(error);
        }
    }
}

async fn transmit(shared: &Shared, to: &mut (impl AsyncWrite + Unpin)) -> End {
    let mut scratch = Vec::with_capacity(BATCH + 2 * frame::MAX_PAYLOAD);
    let pause = shared.ack_pause();
    let mut last_ack = Instant::now();
    loop {
        let is_due = pause.is_some_and(|pause| last_ack.elapsed() >= pause);
        match shared.collect(&mut scratch, is_due) {
            (Next::Write, acknowledged) => {
                if acknowledged {
                    last_ack = Instant::now();
                }
                if let Err(error) = write(shared, to, &scratch).await {
                    return End::from(error);
                }
                shared.writable.notify_one();
            }
            (Next::Wait, _) => {
                let owed = shared.framed && shared.lock().receiving.owed().is_some();
                wait(shared, pause.filter(|_| owed).map(|pause| last_ack + pause)).await;
            }
            (Next::Close, _) => return close(shared, to).await,
        }
    }
}

async fn wait(shared: &Shared, until: Option<Instant>) {
    match until {
        Some(until) => drop(tokio::time::timeout_at(until, shared.to_write.notified()).await),
        None => shared.to_write.notified().await,
    }
}

async fn close(shared: &Shared, to: &mut (impl AsyncWrite + Unpin)) -> End {
    let acknowledged = async {
        while shared.lock().sending.unacknowledged() > 0 {
            shared.writable.notified().await;
        }
    };
    if shared.framed {
        drop(timeout(shared.options.close_flush, acknowledged).await);
    }
    drop(timeout(CLOSE_LIMIT, goodbye(shared, to)).await);
    End::Done
}

async fn goodbye(shared: &Shared, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    if shared.framed {
        write(shared, to, &frame::CLOSE).await?;
    }
    to.shutdown().await
}

async fn write(shared: &Shared, to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    if !shared.options.byte_by_byte {
        to.write_all(bytes).await?;
        return to.flush().await;
    }
    for byte in bytes {
        to.write_all(std::slice::from_ref(byte)).await?;
        to.flush().await?;
    }
    Ok(())
}
