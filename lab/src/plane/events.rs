//! The event stream of one instance (protocol 5.3 and chapter 6): one-second pops, pop then write, a `heartbeat` event
//! when idle.
//!
//! A command that was popped is gone, whether or not the connection still carries it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::api::Call;
use super::queues::{Address, Command, Popped};
use super::reply::{Content, Piece, Pieces, Reply};
use super::state::Shared;

/// How long one pop blocks; expiry of the queue and idleness are looked at this often.
const POLL: Duration = Duration::from_secs(1);

/// Orders that wait for a stream; a test gives one at a time.
const ORDERS: usize = 64;

const HEARTBEAT: &[u8] = b"event: heartbeat\ndata: {}\n\n";
const HALF_AN_EVENT: &[u8] = b"event: tunnel_request\ndata: {\"command\": \"dial\", \"session_id\": \"";

/// What a test makes a stream do.
pub(crate) enum Order {
    /// Write these bytes as they are.
    Raw(Bytes),
    /// Write half an event and end the connection.
    Cut,
    /// End the body as the API does when it shuts down.
    End,
}

/// A test's hold on an open stream.
#[derive(Debug)]
pub(crate) struct Steering {
    pub(crate) orders: mpsc::Sender<Order>,
    /// Nothing at all is sent, and what is popped meanwhile is lost, as on a half-open connection.
    pub(crate) silent: bool,
}

/// Opens a stream, or refuses to.
pub(crate) fn open(
    shared: &Arc<Shared>,
    path_id: &str,
    call: &Call,
    heartbeat_after: Duration,
) -> Result<Reply, Reply> {
    let (steer, orders) = mpsc::channel(ORDERS);
    let (number, address, first) = shared.with(|state| state.open_stream(path_id, call, steer))?;
    let (pieces, body) = Pieces::new();
    let feed = Feed { shared: Arc::clone(shared), number, address, orders, pieces, heartbeat_after };
    tokio::spawn(feed.run(first));
    let reply = Reply { content: Content::Pieces(body), ..Reply::text(200, "text/event-stream; charset=utf-8", "") };
    Ok(reply.with("cache-control", "no-cache").with("x-accel-buffering", "no"))
}

/// Fills the body of one stream until its connection is gone.
struct Feed {
    shared: Arc<Shared>,
    number: u64,
    address: Address,
    orders: mpsc::Receiver<Order>,
    pieces: mpsc::Sender<Piece>,
    heartbeat_after: Duration,
}

/// The connection is gone, or was told to go.
struct Over;

impl Feed {
    async fn run(mut self, mut popped: Popped) {
        let mut idle_since = Instant::now();
        while self.turn(popped, &mut idle_since).await.is_ok() {
            popped = self.shared.with(|state| state.pop(&self.address));
        }
    }

    /// Sends a command, or waits up to a second for one.
    async fn turn(&mut self, popped: Popped, idle_since: &mut Instant) -> Result<(), Over> {
        let mut later = match popped {
            Popped::Command(command) => return self.deliver(command, idle_since).await,
            Popped::Later(later) => later,
        };
        let order = tokio::select! {
            () = self.pieces.closed() => return Err(Over),
            order = self.orders.recv() => Some(order),
            Ok(command) = &mut later => return self.deliver(command, idle_since).await,
            () = tokio::time::sleep(POLL.min(self.heartbeat_after)) => None,
        };
        // The pop is given up; what it got at the last moment was popped and is written.
        later.close();
        if let Ok(command) = later.try_recv() {
            self.deliver(command, idle_since).await?;
        }
        match order {
            Some(order) => self.obey(order).await,
            None => self.beat(idle_since).await,
        }
    }

    async fn deliver(&self, command: Command, idle_since: &mut Instant) -> Result<(), Over> {
        *idle_since = Instant::now();
        self.say(framed(&command)).await
    }

    async fn beat(&self, idle_since: &mut Instant) -> Result<(), Over> {
        if idle_since.elapsed() < self.heartbeat_after {
            return Ok(());
        }
        *idle_since = Instant::now();
        self.say(Bytes::from_static(HEARTBEAT)).await
    }

    /// What the API itself says; a silenced stream loses it.
    async fn say(&self, event: Bytes) -> Result<(), Over> {
        if self.shared.with(|state| state.is_silent(self.number)) {
            Ok(())
        } else {
            self.write(Piece::Data(event)).await
        }
    }

    async fn obey(&self, order: Option<Order>) -> Result<(), Over> {
        match order {
            Some(Order::Raw(bytes)) => self.write(Piece::Data(bytes)).await,
            Some(Order::Cut) => {
                self.write(Piece::Data(Bytes::from_static(HALF_AN_EVENT))).await?;
                self.write(Piece::Cut).await?;
                Err(Over)
            }
            Some(Order::End) | None => Err(Over),
        }
    }

    async fn write(&self, piece: Piece) -> Result<(), Over> {
        self.pieces.send(piece).await.map_err(|_| Over)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.with(|state| state.close_stream(self.number));
    }
}

fn framed(command: &Command) -> Bytes {
    format!("event: {}\ndata: {}\n\n", command.event, command.data).into()
}
