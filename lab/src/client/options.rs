//! How a client end behaves: as the platform's does, better, or badly on purpose.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// When frames are acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// At most this often, in milliseconds, and only if there is something new. The platform's client: 50.
    EveryMs(u64),
    /// As soon as anything was received.
    OnReceipt,
    /// Not at all.
    Never,
}

/// How much may be sent without having been acknowledged, in bytes on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The frame that would exceed this ends the session, as the platform's 4 MiB do (W1).
    Deadly(usize),
    /// Writing waits for acknowledgements.
    Blocking(usize),
    /// No limit.
    Unlimited,
}

/// What is said when a new connection takes a session over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The truth.
    Honest,
    /// This number.
    Claim(u64),
    /// Nothing: the peer waits for it in vain.
    Silent,
}

/// Behaviour of a client end. The default is the platform's client, except that it finds fault with its peer.
#[derive(Clone, Debug)]
pub struct Options {
    /// When frames are acknowledged.
    pub acks: AckPolicy,
    /// How much may be under way.
    pub window: Window,
    /// The longest payload of a frame that is sent.
    pub max_payload: usize,
    /// How many bytes may wait to be read before the connection is left unread, and with it acknowledgements.
    pub receive_buffer: usize,
    /// Pause before each attempt to reconnect; as many attempts as there are pauses (protocol 11.4).
    pub reconnect_pauses: Vec<Duration>,
    /// What is said in a handshake.
    pub handshake: Handshake,
    /// How long a handshake may take.
    pub handshake_limit: Duration,
    /// Write every byte for itself.
    pub byte_by_byte: bool,
    /// How often each data frame is written.
    pub copies: usize,
    /// How long closing waits for acknowledgements before the close frame. The platform's client does not.
    pub close_flush: Duration,
    /// How long the connection is read after the close frame. The platform's client does not, and may so cut it off (W10).
    pub linger: Duration,
    /// `protocol` in the request: `web-ssh` or `web-db`.
    pub protocol: Option<String>,
    /// Go through the pre-flight of an `ssh-audit` session, without keys.
    pub preflight: bool,
    /// Where bridges are, for names that no resolver knows. `localhost` and names below it need no entry.
    pub hosts: BTreeMap<String, SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        let pauses = [0, 2, 4, 8].into_iter().chain([10; 11]);
        Self {
            acks: AckPolicy::EveryMs(50),
            window: Window::Deadly(4 << 20),
            max_payload: 32768,
            receive_buffer: 64 << 10,
            reconnect_pauses: pauses.map(Duration::from_secs).collect(),
            handshake: Handshake::Honest,
            handshake_limit: Duration::from_secs(30),
            byte_by_byte: false,
            copies: 1,
            close_flush: Duration::ZERO,
            linger: Duration::ZERO,
            protocol: None,
            preflight: false,
            hosts: BTreeMap::new(),
        }
    }
}

impl Options {
    /// An end that is never the reason why something breaks or is slow: for benches, and for tests of anything else.
    #[must_use]
    pub fn robust() -> Self {
        Self {
            acks: AckPolicy::EveryMs(5),
            window: Window::Blocking(16 << 20),
            receive_buffer: 4 << 20,
            close_flush: Duration::from_secs(2),
            linger: Duration::from_secs(1),
            ..Self::default()
        }
        .impatient()
    }

    /// The same with short pauses between attempts to reconnect.
    #[must_use]
    pub fn impatient(self) -> Self {
        let pauses = [0, 20, 50, 100].into_iter().chain([200; 50]);
        Self { reconnect_pauses: pauses.map(Duration::from_millis).collect(), ..self }
    }
}
