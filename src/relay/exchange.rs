//! Drives one relay connection: moves bytes between the bridge, the state machine and the target, within limits of time.
//!
//! Both directions are always pumped, so that a response may begin before its request has ended. There is no buffer per
//! connection: bytes are read into one that the thread shares, and what the other side does not take at once waits in
//! the [`Conversation`], which stops the reading when that is much.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::conversation::{Conversation, Need, Refusal, Release, Wait};
use super::counters::Counters;
use super::fixed::Fixed;
use super::route::Target;
use super::rules::RuleBook;
use super::streams::Kind;
use super::targets::{Stream, Targets};

/// What one read takes at most: four TLS records.
const SCRATCH_BYTES: usize = 64 * 1024;
/// Read and thrown away after a refusal, so that its answer is not lost to a reset.
const MAX_LINGER: usize = 1024 * 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH_BYTES]);
}

/// How long what may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Without a request. Bridges close idle connections after 5 to 6 minutes (protocol 9.2); one that did not is gone,
    /// and its end was never heard of.
    pub idle: Duration,
    /// The rest of a request's head.
    pub request_head: Duration,
    /// From the end of a request to the head of its answer (protocol 9.3: 30 s).
    pub response_head: Duration,
    /// Without a byte of a body in either direction. The proxy itself gives up after 300 s.
    pub body: Duration,
    /// Without a byte of the rest of a request's body after its answer.
    pub discard: Duration,
    /// The end of a connection.
    pub close: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(720),
            request_head: Duration::from_secs(30),
            response_head: Duration::from_secs(30),
            body: Duration::from_secs(300),
            discard: Duration::from_secs(10),
            close: Duration::from_secs(2),
        }
    }
}

impl Limits {
    fn of(&self, wait: Wait) -> Option<Duration> {
        match wait {
            Wait::Unlimited => None,
            // Spread, because the connections of a pool are of one age.
            Wait::Request => Some(self.idle.mul_f64(1.0 + fastrand::f64() / 4.0)),
            Wait::RequestHead => Some(self.request_head),
            Wait::ResponseHead => Some(self.response_head),
            Wait::Body => Some(self.body),
            Wait::Discard => Some(self.discard),
            Wait::Close => Some(self.close),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Service {
    /// Where requests go.
    pub rules: RuleBook,
    /// Connections there.
    pub targets: Targets,
    /// What happened.
    pub counters: Counters,
    /// What could not be carried to another process at present.
    pub fixed: Fixed,
    /// How long it may take.
    pub limits: Limits,
}

/// Somebody who wants to know what happens on a connection.
pub trait Observer: Send + Sync {
    /// A request was begun.
    fn requested(&self);
    /// The connection left the bridge's pool for good.
    fn detached(&self, kind: Kind);
}

/// Asks connections to stop.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Stop where you are: the connection will be carried to another process.
    pub freeze: CancellationToken,
    /// Stop after the present request.
    pub end: CancellationToken,
    /// Break off what is under way.
    pub cut: CancellationToken,
}

/// One relay connection: plain data, and the sockets beside it.
#[derive(Debug)]
pub struct Connection<B> {
    /// What is known about it.
    pub conversation: Conversation,
    /// The bridge's side.
    pub bridge: B,
    /// The target's side, while there is one.
    pub target: Option<(Target, Stream)>,
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection is closed.
    Closed,
    /// The connection is as it was left, in the middle of whatever it was.
    Frozen,
}

/// Serves requests until the connection ends or is frozen. Dropping the future freezes it as well: nothing that was read
/// or written is forgotten, all of it is in `connection`.
pub async fn serve<B>(
    connection: &mut Connection<B>,
    service: &Service,
    signals: &Signals,
    observer: &dyn Observer,
) -> End
where
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut frozen = pin!(signals.freeze.cancelled());
    let mut ending = pin!(signals.end.cancelled());
    let mut is_ending = false;
    let mut cut = pin!(signals.cut.cancelled());
    let mut is_cut = false;
    let mut driver = Driver::new(connection, service, observer);
    loop {
        match driver.connection.conversation.need() {
            Need::Close => tokio::select! {
                biased;
                () = &mut frozen => return End::Frozen,
                () = close(driver.connection, service.limits.close) => return End::Closed,
            },
            Need::Dial { target, reuse } => {
                let target = target.clone();
                driver.begin_request();
                // A request can come from a process that lived by another configuration.
                if !service.rules.reaches(&target) {
                    let gone = Refusal::new(403, "the target of this request is not configured at the agent any more");
                    driver.connection.conversation.not_dialled(&gone, &service.rules);
                    continue;
                }
                let connected = tokio::select! {
                    biased;
                    () = &mut frozen => return End::Frozen,
                    connected = service.targets.connect(&target, reuse) => connected,
                };
                let conversation = &mut driver.connection.conversation;
                match connected {
                    Ok((stream, reused)) => {
                        driver.connection.target = Some((target, stream));
                        conversation.dialled(reused, &service.rules);
                        driver.count_fixed();
                    }
                    Err(refusal) => conversation.not_dialled(&refusal, &service.rules),
                }
            }
            Need::Transfer => tokio::select! {
                biased;
                () = &mut frozen => return End::Frozen,
                () = &mut ending, if !is_ending => {
                    is_ending = true;
                    driver.connection.conversation.finish_soon();
                }
                () = &mut cut, if !is_cut => {
                    is_cut = true;
                    driver.connection.conversation.abandon();
                    driver.settle();
                }
                () = poll_fn(|cx| driver.poll_transfer(cx)) => {}
            },
        }
    }
}

/// In good order: the bridge does not notice the end of a connection that just vanishes until a request fails on it.
async fn close<B: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<B>, limit: Duration) {
    connection.target = None;
    let lingers = connection.conversation.leaves_unread();
    let bridge = &mut connection.bridge;
    let closing = async {
        if bridge.shutdown().await.is_err() || !lingers {
            return;
        }
        let mut left = MAX_LINGER;
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = bridge.read(&mut buffer).await {
            left = left.saturating_sub(count);
            if left == 0 {
                return;
            }
        }
    };
    drop(tokio::time::timeout(limit, closing).await);
}

struct Driver<'a, B> {
    connection: &'a mut Connection<B>,
    service: &'a Service,
    observer: &'a dyn Observer,
    /// A request is counted as being in flight.
    in_flight: bool,
    detached: bool,
    /// It is counted among the fixed ones.
    fixed: bool,
    bridge_unflushed: bool,
    target_unflushed: bool,
    wait: Wait,
    limit: Option<Duration>,
    /// The last progress while a body was waited for, or when the wait began.
    progress: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl<'a, B: AsyncRead + AsyncWrite + Unpin> Driver<'a, B> {
    fn new(connection: &'a mut Connection<B>, service: &'a Service, observer: &'a dyn Observer) -> Self {
        Self {
            // A connection that comes from another process is in the middle of something.
            bridge_unflushed: true,
            target_unflushed: connection.target.is_some(),
            connection,
            service,
            observer,
            in_flight: false,
            detached: false,
            fixed: false,
            wait: Wait::Unlimited,
            limit: None,
            progress: Instant::now(),
            sleep: None,
        }
    }

    fn begin_request(&mut self) {
        if !self.in_flight {
            self.in_flight = true;
            self.service.counters.begun();
            self.observer.requested();
        }
    }

    /// Moves bytes until nothing moves any more; ready when something other than moving bytes is needed.
    fn poll_transfer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut moved = self.poll_read_bridge(cx);
            moved |= self.poll_read_target(cx);
            self.settle();
            moved |= self.poll_write_target(cx);
            moved |= self.poll_write_bridge(cx);
            self.settle();
            if self.connection.conversation.need() != Need::Transfer {
                return Poll::Ready(());
            }
            if moved {
                if matches!(self.wait, Wait::Body | Wait::Discard) {
                    self.progress = Instant::now();
                }
            } else if self.poll_limit(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_read_bridge(&mut self, cx: &mut Context<'_>) -> bool {
        let conversation = &mut self.connection.conversation;
        if !conversation.wants_bridge() {
            return false;
        }
        read(&mut self.connection.bridge, cx, |input| match input {
            Input::Bytes(bytes) => {
                self.service.counters.received(bytes.len());
                conversation.bridge_sent(bytes, &self.service.rules);
            }
            Input::End | Input::Broken => conversation.bridge_ended(),
        })
    }

    fn poll_read_target(&mut self, cx: &mut Context<'_>) -> bool {
        let conversation = &mut self.connection.conversation;
        let Some((_, stream)) = &mut self.connection.target else {
            if conversation.wants_target() {
                // Carried here without the target's connection, which cannot be carried if it is in TLS.
                conversation.target_broke(&self.service.rules);
                return true;
            }
            return false;
        };
        if !conversation.wants_target() {
            return false;
        }
        read(stream, cx, |input| match input {
            Input::Bytes(bytes) => conversation.target_sent(bytes, &self.service.rules),
            Input::End => conversation.target_ended(&self.service.rules),
            Input::Broken => conversation.target_broke(&self.service.rules),
        })
    }

    fn poll_write_target(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((_, stream)) = &mut self.connection.target else { return false };
        let conversation = &mut self.connection.conversation;
        match write(stream, cx, conversation.target_output(), &mut self.target_unflushed) {
            Poll::Pending => false,
            Poll::Ready(Ok(count)) => {
                conversation.wrote_target(count);
                count > 0
            }
            Poll::Ready(Err(_)) => {
                self.target_unflushed = false;
                conversation.target_refuses_input();
                true
            }
        }
    }

    fn poll_write_bridge(&mut self, cx: &mut Context<'_>) -> bool {
        let conversation = &mut self.connection.conversation;
        match write(&mut self.connection.bridge, cx, conversation.bridge_output(), &mut self.bridge_unflushed) {
            Poll::Pending => false,
            Poll::Ready(Ok(count)) => {
                self.service.counters.sent(count);
                conversation.wrote_bridge(count);
                count > 0
            }
            Poll::Ready(Err(_)) => {
                self.bridge_unflushed = false;
                conversation.abandon();
                true
            }
        }
    }

    /// Carries out what the last bytes led to.
    fn settle(&mut self) {
        let conversation = &mut self.connection.conversation;
        if let Some(release) = conversation.take_release()
            && let Some((target, stream)) = self.connection.target.take()
            && release == Release::Reuse
        {
            self.service.targets.keep(target, stream);
        }
        if let Some(outcome) = conversation.take_outcome() {
            if !std::mem::take(&mut self.in_flight) {
                // Answered without a look at any target.
                self.service.counters.begun();
                self.observer.requested();
            }
            self.service.counters.ended(outcome);
            // The next request's waits are new ones, even where they are of the same kind as the last.
            self.wait = Wait::Unlimited;
            self.limit = None;
        }
        if conversation.is_detached() && !self.detached {
            self.detached = true;
            self.observer.detached(if conversation.is_spliced() { Kind::Upgrade } else { Kind::Events });
        }
        self.count_fixed();
    }

    /// Whether the connection can be carried changes with its target.
    fn count_fixed(&mut self) {
        let fixed = !self.detached && matches!(self.connection.target, Some((_, Stream::Tls(_))));
        match (std::mem::replace(&mut self.fixed, fixed), fixed) {
            (false, true) => self.service.fixed.enter(),
            (true, false) => self.service.fixed.leave(),
            (true, true) | (false, false) => {}
        }
    }

    /// Ready when a limit was over and the state has changed.
    fn poll_limit(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let wait = self.connection.conversation.wait();
        if wait != self.wait {
            self.wait = wait;
            self.limit = self.service.limits.of(wait);
            self.progress = Instant::now();
            if let Some(limit) = self.limit {
                self.arm(self.progress + limit);
            }
        }
        let Some(limit) = self.limit else { return Poll::Pending };
        loop {
            let Some(sleep) = &mut self.sleep else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            let deadline = self.progress + limit;
            if deadline <= Instant::now() {
                self.wait = Wait::Unlimited;
                self.limit = None;
                self.connection.conversation.timed_out(wait, &self.service.rules);
                self.settle();
                return Poll::Ready(());
            }
            self.arm(deadline);
        }
    }

    fn arm(&mut self, deadline: Instant) {
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(deadline),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(deadline))),
        }
    }
}

impl<B> Drop for Driver<'_, B> {
    fn drop(&mut self) {
        if self.in_flight {
            self.service.counters.carried();
        }
        if self.fixed {
            self.service.fixed.leave();
        }
    }
}

/// What one read brought.
enum Input<'a> {
    Bytes(&'a [u8]),
    End,
    /// A reset, or TLS without a good-bye.
    Broken,
}

/// One read. True if there was anything.
fn read<S: AsyncRead + Unpin>(stream: &mut S, cx: &mut Context<'_>, take: impl FnOnce(Input<'_>)) -> bool {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        match Pin::new(stream).poll_read(cx, &mut buffer) {
            Poll::Pending => return false,
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => take(Input::Bytes(buffer.filled())),
            Poll::Ready(Ok(())) => take(Input::End),
            Poll::Ready(Err(_)) => take(Input::Broken),
        }
        true
    })
}

/// One write, or a flush when there is nothing to write.
fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    bytes: &[u8],
    unflushed: &mut bool,
) -> Poll<io::Result<usize>> {
    let mut stream = Pin::new(stream);
    if !bytes.is_empty() {
        let count = ready!(stream.as_mut().poll_write(cx, bytes))?;
        *unflushed = true;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        return Poll::Ready(Ok(count));
    }
    if *unflushed {
        ready!(stream.poll_flush(cx))?;
        *unflushed = false;
    }
    Poll::Ready(Ok(0))
}

#[cfg(test)]
mod tests;
