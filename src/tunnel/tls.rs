//! The handshake of a connection to a bridge: rustls checks who is there, then hands over to our own record layer.
//!
//! rustls keeps traffic secrets to itself, and a connection that is to outlive the process needs them. They are published in
//! one way that works at every point of a handshake, the key log; here it logs into the connection's own memory. rustls is
//! shown one record at a time, so that it stops exactly where [`Records`] begins: had it seen more, it would have opened
//! records, or changed keys, that nobody could take over from it.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, Error, KeyLog};

use super::record::{HEADER, Records, Suite, TrafficSecret};

/// A handshake that goes on.
pub struct Handshake {
    connection: UnbufferedClientConnection,
    secrets: Arc<Secrets>,
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

impl Handshake {
    /// Begins one. `config` has TLS 1.3 only.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub fn new(config: &ClientConfig, name: ServerName<'static>) -> Result<Self, Error> {
        let secrets = Arc::<Secrets>::default();
        // One configuration for each connection, because a key log is not told which one a secret belongs to.
        let mut config = config.clone();
        config.key_log = Arc::<Secrets>::clone(&secrets);
        Ok(Self { connection: UnbufferedClientConnection::new(Arc::new(config), name)?, secrets })
    }

    /// Goes on. Nothing behind the record that completes the handshake is looked at: it stays for [`Records::open`]. Returns
    /// how much of the input is done with, and the connection once both ends may talk, which is when `output` is sent.
    ///
    /// # Errors
    /// The peer is not who it should be, or does not speak TLS 1.3; `output` may hold the alert that says so.
    pub fn proceed(&mut self, input: &mut [u8], output: &mut Vec<u8>) -> Result<(usize, Option<Records>), Error> {
        let (mut consumed, mut shown) = (0, 0);
        loop {
            let UnbufferedStatus { discard, state } = self.connection.process_tls_records(&mut input[consumed..shown]);
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.last_words(output);
                    return Err(error);
                }
            };
            match state {
                ConnectionState::EncodeTlsData(mut data) => {
                    grow(output, |space| data.encode(space).map_err(encode_size))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(_) => return Ok((consumed + discard, Some(self.take_over()?))),
                ConnectionState::BlockedHandshake => {
                    let Some(next) = record_end(&input[shown..]) else {
                        return Ok((consumed + discard, None));
                    };
                    shown += next;
                }
                ConnectionState::ReadTraffic(_)
                | ConnectionState::ReadEarlyData(_)
                | ConnectionState::PeerClosed
                | ConnectionState::Closed
                | _ => return Err(Error::General("the bridge ended the handshake".to_owned())),
            }
            consumed += discard;
        }
    }

    /// The alert that tells the peer what is wrong.
    fn last_words(&mut self, output: &mut Vec<u8>) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = self.connection.process_tls_records(&mut []).state {
            drop(grow(output, |space| data.encode(space).map_err(encode_size)));
        }
    }

    /// Neither side has used an application key yet.
    fn take_over(&self) -> Result<Records, Error> {
        let suite = self.connection.negotiated_cipher_suite().map(|suite| u16::from(suite.suite()));
        let suite = suite.and_then(Suite::from_number);
        let [client, server] = self.secrets.take();
        let (Some(suite), Some(client), Some(server)) = (suite, client, server) else {
            return Err(Error::General("the handshake had no outcome that can be gone on from".to_owned()));
        };
        Records::new(suite, client, server).map_err(|error| Error::General(error.to_string()))
    }
}

/// The two secrets that matter, until they are taken.
#[derive(Debug, Default)]
struct Secrets(Mutex<[Option<TrafficSecret>; 2]>);

impl Secrets {
    fn take(&self) -> [Option<TrafficSecret>; 2] {
        mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Client's, server's.
    fn place(label: &str) -> Option<usize> {
        ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"].iter().position(|known| *known == label)
    }
}

impl KeyLog for Secrets {
    fn will_log(&self, label: &str) -> bool {
        Self::place(label).is_some()
    }

    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if let Some(place) = Self::place(label) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(TrafficSecret::new(secret));
        }
    }
}

/// Where the first complete record of `bytes` ends.
fn record_end(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<HEADER>()?;
    let end = HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    (bytes.len() >= end).then_some(end)
}

/// Appends what `put` writes, with as much space as it asks for.
fn grow(output: &mut Vec<u8>, mut put: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>) -> Result<(), Error> {
    let start = output.len();
    let mut room = 1024;
    loop {
        output.resize(start + room, 0);
        match put(&mut output[start..]) {
            Ok(written) => {
                output.truncate(start + written);
                return Ok(());
            }
            Err(Some(needed)) if needed > room => room = needed,
            Err(_) => {
                output.truncate(start);
                return Err(Error::General("a handshake message cannot be written".to_owned()));
            }
        }
    }
}

/// How much space was missing, if that was the trouble.
fn encode_size(error: EncodeError) -> Option<usize> {
    match error {
        EncodeError::InsufficientSize(size) => Some(size.required_size),
        EncodeError::AlreadyEncoded => None,
    }
}
