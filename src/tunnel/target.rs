//! A session's target: dialled when it is time, read and written without waiting (protocol 7.2).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::link;
use crate::config::{Dial, Resource};
use crate::handoff::{Arrival, Departure};

/// How long a target may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What is read and thrown away at most once the client has closed: enough to free a target that is stuck with its answers,
/// too little to go on with a download that nobody wants.
const SCRAP: usize = 64 * 1024 * 1024;

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// Where a target is: always as configured, never as a command says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// The address of a resource; `None` where the configuration has no port for it (protocol 2.4).
    pub(super) fn of(resource: &Resource) -> Option<Self> {
        let host = if resource.hostname.is_empty() { "localhost" } else { &resource.hostname };
        (resource.port != 0).then(|| Self { host: host.to_owned(), port: resource.port })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Whether the target is dialled at once: where the server speaks first, waiting for the client's first byte would wait
/// for ever (protocol W15). Elsewhere waiting keeps the target's login timer from running before the user is there.
pub(super) fn is_eager(resource: &Resource, session_type: &str) -> bool {
    let greets = |kind: &str| matches!(kind, "mysql" | "mysql-audit");
    match resource.dial {
        Dial::Eager => true,
        Dial::Lazy => false,
        Dial::Auto => greets(session_type) || session_type == "web-db" && greets(&resource.resource_type),
    }
}

enum State {
    Waiting,
    Connecting(Connecting),
    Open(TcpStream),
    /// It was told that nothing follows; what it says is thrown away.
    Leaving(TcpStream),
    /// It has nothing more to say and hears nothing more.
    Gone,
}

/// The target's end of a session.
pub(super) struct Target {
    address: Address,
    state: State,
    /// It does not take anything any more; what it still has to say is read all the same.
    deaf: bool,
    /// Bytes that were thrown away.
    scrapped: usize,
}

impl Target {
    pub(super) const fn new(address: Address) -> Self {
        Self { address, state: State::Waiting, deaf: false, scrapped: 0 }
    }

    pub(super) const fn address(&self) -> &Address {
        &self.address
    }

    /// Dials, unless that was done already.
    pub(super) fn dial(&mut self) {
        if !matches!(self.state, State::Waiting) {
            return;
        }
        let Address { host, port } = self.address.clone();
        self.state = State::Connecting(Box::pin(async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s");
            let socket = timeout(CONNECT_LIMIT, TcpStream::connect((host, port))).await.map_err(|_| late())??;
            super::dial::tune(&socket)?;
            Ok(socket)
        }));
    }

    /// Goes on with the dial; ready once, when it has ended.
    ///
    /// # Errors
    /// The target cannot be reached.
    pub(super) fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let State::Connecting(connecting) = &mut self.state else { return Poll::Pending };
        let outcome = ready!(connecting.as_mut().poll(cx));
        Poll::Ready(match outcome {
            Ok(socket) => {
                self.state = State::Open(socket);
                Ok(())
            }
            Err(error) => {
                self.state = State::Gone;
                Err(error)
            }
        })
    }

    pub(super) const fn is_connecting(&self) -> bool {
        matches!(self.state, State::Connecting(_))
    }

    /// Whether nothing more can come from it or go to it.
    pub(super) const fn is_gone(&self) -> bool {
        matches!(self.state, State::Leaving(_) | State::Gone)
    }

    /// Whether it was asked for at all.
    pub(super) const fn was_dialled(&self) -> bool {
        !matches!(self.state, State::Waiting)
    }

    /// Whether bytes for it are of any use.
    pub(super) const fn listens(&self) -> bool {
        !self.deaf && !self.is_gone()
    }

    /// Reads; 0 bytes mean that it has nothing more to say. Pending for ever while it is not connected.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let State::Open(socket) = &mut self.state else { return Poll::Pending };
        let mut space = ReadBuf::new(buffer);
        ready!(Pin::new(socket).poll_read(cx, &mut space))?;
        Poll::Ready(Ok(space.filled().len()))
    }

    /// Writes what it takes. Pending for ever while it is not connected. A target that takes nothing any more is deaf
    /// from then on: bytes for it vanish, and what it still says is read.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<usize> {
        if !self.listens() {
            return Poll::Ready(bytes.len());
        }
        let State::Open(socket) = &mut self.state else { return Poll::Pending };
        match ready!(Pin::new(socket).poll_write(cx, bytes)) {
            Ok(count @ 1..) => Poll::Ready(count),
            Ok(0) | Err(_) => {
                self.deaf = true;
                Poll::Ready(bytes.len())
            }
        }
    }

    /// Closes both directions at once, unless it is leaving already. What the target has not taken may be lost.
    pub(super) fn close(&mut self) {
        if !matches!(self.state, State::Leaving(_)) {
            self.state = State::Gone;
        }
    }

    /// Reads and throws away what has come: a target that cannot speak may not listen either.
    pub(super) fn hush(&mut self, cx: &mut Context<'_>) {
        let mut scrap = [0; 4096];
        while self.scrapped < SCRAP
            && let Poll::Ready(Ok(count @ 1..)) = self.poll_read(cx, &mut scrap)
        {
            self.scrapped += count;
        }
    }

    /// Says that nothing follows, and goes when the target has taken everything: closing a socket with unread input throws
    /// away what was written to it.
    pub(super) fn finish(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Gone) {
            State::Open(socket) if !self.deaf => State::Leaving(socket),
            State::Waiting | State::Connecting(_) | State::Open(_) | State::Leaving(_) | State::Gone => State::Gone,
        };
    }

    /// Goes on with the leave; ready when the target is gone.
    pub(super) fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scrap = [0; 4096];
        while let State::Leaving(socket) = &mut self.state {
            let mut space = ReadBuf::new(&mut scrap);
            // Telling it again does nothing.
            let told = ready!(Pin::new(&mut *socket).poll_shutdown(cx));
            let read = ready!(Pin::new(&mut *socket).poll_read(cx, &mut space));
            self.scrapped += space.filled().len();
            if told.is_err() || read.is_err() || space.filled().is_empty() || self.scrapped >= SCRAP {
                self.state = State::Gone;
            }
        }
        Poll::Ready(())
    }
}

/// A target as plain data.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    host: String,
    port: u16,
    state: Standing,
    #[serde(default)]
    deaf: bool,
    #[serde(default)]
    scrapped: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    Waiting,
    Connecting,
    Open { socket: u32 },
    Leaving { socket: u32 },
    Gone,
}

impl Target {
    /// Takes it apart; its socket goes to `departure`.
    pub(super) fn record(self, departure: &mut Departure) -> Record {
        // A socket that the runtime does not give back is closed, and missing in the other process.
        let mut take = |socket: TcpStream| socket.into_std().map_or(u32::MAX, |socket| departure.take(socket.into()));
        let state = match self.state {
            State::Waiting => Standing::Waiting,
            State::Connecting(_) => Standing::Connecting,
            State::Open(socket) => Standing::Open { socket: take(socket) },
            State::Leaving(socket) => Standing::Leaving { socket: take(socket) },
            State::Gone => Standing::Gone,
        };
        Record { host: self.address.host, port: self.address.port, state, deaf: self.deaf, scrapped: self.scrapped }
    }
}

impl Record {
    /// Puts it together again; true if its connection is lost.
    ///
    /// What is dialled is what is `configured` now, whatever was when the session began.
    pub(super) fn revive(self, arrival: &mut Arrival, configured: Option<&Address>) -> (Target, bool) {
        let recorded = Address { host: self.host, port: self.port };
        let is_open = !matches!(self.state, Standing::Waiting | Standing::Connecting);
        let mut target = match configured {
            Some(configured) if !is_open => Target::new(configured.clone()),
            Some(_) | None => Target::new(recorded),
        };
        (target.deaf, target.scrapped) = (self.deaf, self.scrapped.min(SCRAP));
        let mut socket = |number| arrival.socket(number).and_then(|socket| link::adopt(socket).ok());
        let (state, is_lost) = match self.state {
            Standing::Waiting | Standing::Connecting if configured.is_none() => (State::Gone, true),
            Standing::Waiting => (State::Waiting, false),
            Standing::Connecting => {
                target.dial();
                return (target, false);
            }
            Standing::Open { socket: number } => match socket(number) {
                Some(socket) => (State::Open(socket), false),
                None => (State::Gone, true),
            },
            // It has nothing more to say, so that nobody misses it.
            Standing::Leaving { socket: number } => (socket(number).map_or(State::Gone, State::Leaving), false),
            Standing::Gone => (State::Gone, false),
        };
        target.state = state;
        (target, is_lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(resource_type: &str, dial: Dial) -> Resource {
        Resource {
            name: "db".into(),
            resource_type: resource_type.into(),
            hostname: String::new(),
            port: 3306,
            labels: Default::default(),
            tunnel_hostname: None,
            webhooks: Vec::new(),
            forward_session_token: false,
            dial,
        }
    }

    #[test]
    fn a_target_that_speaks_first_is_dialled_at_once_unless_told_otherwise() {
        let cases = [
            ("mysql", "mysql", Dial::Auto, true),
            ("mysql-audit", "mysql-audit", Dial::Auto, true),
            ("mysql", "web-db", Dial::Auto, true),
            ("postgres", "web-db", Dial::Auto, false),
            ("ssh", "ssh", Dial::Auto, false),
            ("tcp", "tcp", Dial::Eager, true),
            ("mysql", "mysql", Dial::Lazy, false),
        ];
        for (configured, asked, dial, eager) in cases {
            assert_eq!(is_eager(&resource(configured, dial), asked), eager, "{configured} as {asked}, {dial:?}");
        }
    }

    #[test]
    fn a_resource_without_a_host_is_on_this_machine_and_one_without_a_port_is_nowhere() {
        let mut resource = resource("tcp", Dial::Auto);
        assert_eq!(Address::of(&resource).unwrap().to_string(), "localhost:3306");
        resource.port = 0;
        assert_eq!(Address::of(&resource), None);
    }
}
