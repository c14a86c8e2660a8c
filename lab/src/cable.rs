//! A cable to put between two ends: it can be cut, snapped, stalled, slowed down and made to deliver in small pieces.
//!
//! It carries TCP and understands nothing. Half-closes pass through, and a reset at one end is a reset at the other.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::Instant;

use crate::serve::Network;

/// Bytes that are read at a time.
const ROOM: usize = 64 << 10;

/// Reads that may be under way in one direction.
const UNDER_WAY: usize = 64;

/// How long the ends may take to close after a cut.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the end that dialled to the target.
    Up,
    /// From the target to the end that dialled.
    Down,
}

#[derive(Clone, Debug)]
struct Settings {
    target: SocketAddr,
    refuse: bool,
    stalled: [bool; 2],
    delay: Duration,
    piece: usize,
    bytes_per_second: Option<u64>,
}

impl Settings {
    const fn is_stalled(&self, direction: Direction) -> bool {
        self.stalled[direction as usize]
    }
}

#[derive(Clone, Copy, Debug)]
enum End {
    Reset,
    Close,
}

#[derive(Debug, Default)]
struct Counts {
    ever: AtomicUsize,
    open: AtomicUsize,
}

/// A cable with a plug of its own. It ends, with resets, when this is dropped.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    settings: watch::Sender<Settings>,
    ends: broadcast::Sender<End>,
    counts: Arc<Counts>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Cable {
    /// Accepts connections on a free port of the loopback and carries each to `target`.
    ///
    /// # Errors
    /// There is no free port.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = Network::Host.bind(0)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let settings = watch::Sender::new(Settings {
            target,
            refuse: false,
            stalled: [false; 2],
            delay: Duration::ZERO,
            piece: usize::MAX,
            bytes_per_second: None,
        });
        let (ends, counts, stop) = (broadcast::Sender::new(16), Arc::<Counts>::default(), watch::Sender::new(false));
        let run = Run { settings: settings.subscribe(), ends: ends.clone(), counts: Arc::clone(&counts) };
        let mut stopped = stop.subscribe();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name(format!("cable-{}", address.port())).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = run.accept(listener) => {}
                    _ = stopped.changed() => {}
                }
            });
        })?;
        Ok(Self { address, settings, ends, counts, stop, thread: Some(thread) })
    }

    /// Where it accepts connections.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all connections at both ends. New ones are carried.
    pub fn snap(&self) {
        drop(self.ends.send(End::Reset));
    }

    /// Closes all connections at both ends, with a FIN; what was under way is lost. New ones are carried.
    pub fn cut(&self) {
        drop(self.ends.send(End::Close));
    }

    /// Resets every new connection as soon as it is made, or carries them again.
    pub fn refuse(&self, refuse: bool) {
        self.settings.send_modify(|settings| settings.refuse = refuse);
    }

    /// Carries nothing more in either direction, on old connections and new ones. Nothing is lost, nothing closed.
    pub fn stall(&self) {
        self.settings.send_modify(|settings| settings.stalled = [true; 2]);
    }

    /// Carries nothing more in one direction.
    pub fn stall_direction(&self, direction: Direction) {
        self.settings.send_modify(|settings| settings.stalled[direction as usize] = true);
    }

    /// Carries on in both directions.
    pub fn resume(&self) {
        self.settings.send_modify(|settings| settings.stalled = [false; 2]);
    }

    /// How long everything is under way, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.settings.send_modify(|settings| settings.delay = delay);
    }

    /// Delivers in pieces of at most this many bytes, each in a segment of its own.
    pub fn split(&self, piece: usize) {
        self.settings.send_modify(|settings| settings.piece = piece.max(1));
    }

    /// Delivers at most this many bytes a second on each connection and direction; `None` as many as there are.
    pub fn limit(&self, bytes_per_second: Option<u64>) {
        self.settings.send_modify(|settings| settings.bytes_per_second = bytes_per_second);
    }

    /// Carries new connections to another target.
    pub fn retarget(&self, target: SocketAddr) {
        self.settings.send_modify(|settings| settings.target = target);
    }

    /// Connections that were ever accepted.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counts.ever.load(Ordering::SeqCst)
    }

    /// Connections that are carried right now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What the cable's thread does.
struct Run {
    settings: watch::Receiver<Settings>,
    ends: broadcast::Sender<End>,
    counts: Arc<Counts>,
}

impl Run {
    async fn accept(&self, listener: std::net::TcpListener) {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        loop {
            let Ok((near, _)) = listener.accept().await else {
                // Out of descriptors or the like; a lab that spins on it would hide the cause.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            self.counts.ever.fetch_add(1, Ordering::SeqCst);
            // From here on an order reaches this connection, however far it has come.
            let ends = self.ends.subscribe();
            let open = Open::new(&self.counts);
            let settings = self.settings.clone();
            tokio::spawn(async move {
                carry(near, settings, ends).await;
                drop(open);
            });
        }
    }
}

struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An end of a connection that is reset unless it was closed properly.
struct Plug {
    tcp: TcpStream,
    closed: bool,
}

impl Plug {
    fn new(tcp: TcpStream) -> Self {
        drop(tcp.set_nodelay(true));
        Self { tcp, closed: false }
    }

    async fn close(&mut self) {
        drop(self.tcp.shutdown().await);
        let mut scratch = vec![0; ROOM];
        let drain = async { while self.tcp.read(&mut scratch).await.is_ok_and(|length| length > 0) {} };
        // Bytes left unread would turn the FIN into a reset.
        drop(tokio::time::timeout(CLOSE_LIMIT, drain).await);
        self.closed = true;
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        if !self.closed {
            drop(self.tcp.set_zero_linger());
        }
    }
}

async fn carry(near: TcpStream, settings: watch::Receiver<Settings>, mut ends: broadcast::Receiver<End>) {
    let mut near = Plug::new(near);
    let (target, refuse) = {
        let settings = settings.borrow();
        (settings.target, settings.refuse)
    };
    if refuse {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let mut far = Plug::new(far);
    let (near_reads, near_writes) = near.tcp.split();
    let (far_reads, far_writes) = far.tcp.split();
    let both = async {
        tokio::try_join!(
            pump(near_reads, far_writes, settings.clone(), Direction::Up),
            pump(far_reads, near_writes, settings.clone(), Direction::Down),
        )
    };
    let end = tokio::select! {
        carried = both => if carried.is_ok() { End::Close } else { End::Reset },
        Ok(end) = ends.recv() => end,
    };
    if let End::Close = end {
        tokio::join!(near.close(), far.close());
    }
}

async fn pump<R, W>(from: R, to: W, settings: watch::Receiver<Settings>, direction: Direction) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (sender, receiver) = mpsc::channel(UNDER_WAY);
    let put_in = put_in(from, sender, settings.clone(), direction);
    tokio::try_join!(put_in, take_out(to, receiver, settings, direction)).map(|_| ())
}

async fn put_in<R: AsyncRead + Unpin>(
    mut from: R,
    cable: mpsc::Sender<(Instant, Bytes)>,
    mut settings: watch::Receiver<Settings>,
    direction: Direction,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        running(&mut settings, direction).await;
        buffer.reserve(ROOM);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let due = Instant::now() + settings.borrow().delay;
        if cable.send((due, buffer.split().freeze())).await.is_err() {
            return Ok(());
        }
    }
}

async fn take_out<W: AsyncWrite + Unpin>(
    mut to: W,
    mut cable: mpsc::Receiver<(Instant, Bytes)>,
    mut settings: watch::Receiver<Settings>,
    direction: Direction,
) -> io::Result<()> {
    while let Some((due, bytes)) = cable.recv().await {
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            running(&mut settings, direction).await;
            let (piece, rate) = {
                let settings = settings.borrow();
                (settings.piece, settings.bytes_per_second)
            };
            // Twenty pieces a second at least, so that a slow cable flows instead of gushing.
            let piece = rate.map_or(piece, |rate| piece.min(usize::try_from(rate / 20).unwrap_or(ROOM).max(1)));
            let (now, later) = rest.split_at(rest.len().min(piece));
            to.write_all(now).await?;
            rest = later;
            pause(now.len(), rate).await;
        }
    }
    running(&mut settings, direction).await;
    to.shutdown().await
}

/// The time that bytes take at a rate; other connections get their turn in any case.
async fn pause(length: usize, rate: Option<u64>) {
    match rate {
        Some(rate) => tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate.max(1) as f64)).await,
        None => tokio::task::yield_now().await,
    }
}

async fn running(settings: &mut watch::Receiver<Settings>, direction: Direction) {
    // The sender lives as long as the cable, and this task no longer than that.
    drop(settings.wait_for(|settings| !settings.is_stalled(direction)).await);
}

#[cfg(test)]
mod tests;
