//! TLS 1.3 of one connection: records in, bytes out, and the other way round. No socket in here.
//!
//! rustls's unbuffered connection leaves the received bytes in our hands, so that reads can be large, and nothing of the
//! stream lies where it cannot be got at.

use std::io;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};

/// Length of a record's header (RFC 8446, 5.1).
const RECORD_HEADER: usize = 5;
/// What a record of 16 KiB may be longer than its content: header, type byte, tag; rounded up.
const RECORD_OVERHEAD: usize = 64;
/// Content of a full record.
const RECORD_CONTENT: usize = 16 * 1024;

/// What was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Opened {
    /// Bytes of the input that are done with.
    pub(super) consumed: usize,
    /// Bytes of plaintext that were handed over.
    pub(super) plain: usize,
    /// The peer said that nothing follows.
    pub(super) ended: bool,
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    /// What was written must be sent, then more be read.
    Continues,
    /// Both ends may talk once what was written is sent.
    Done,
}

/// The secrets and counters of a connection.
pub(super) struct Tls {
    connection: UnbufferedClientConnection,
}

impl Tls {
    pub(super) fn new(config: Arc<rustls::ClientConfig>, name: ServerName<'static>) -> Result<Self, rustls::Error> {
        Ok(Self { connection: UnbufferedClientConnection::new(config, name)? })
    }

    /// Goes on with the handshake. `input` is shown one record at a time, and nothing behind the record that completes the
    /// handshake is looked at: it stays for [`Self::open`]. Returns how much of the input is done with.
    ///
    /// # Errors
    /// The peer is not who it should be, or does not speak TLS 1.3; `output` may hold the alert that says so.
    pub(super) fn shake_hands(
        &mut self,
        input: &mut [u8],
        output: &mut Vec<u8>,
    ) -> Result<(usize, Handshake), rustls::Error> {
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
                ConnectionState::WriteTraffic(_) => return Ok((consumed + discard, Handshake::Done)),
                ConnectionState::BlockedHandshake => {
                    let Some(next) = record_end(&input[shown..]) else {
                        return Ok((consumed + discard, Handshake::Continues));
                    };
                    shown += next;
                }
                ConnectionState::ReadTraffic(_)
                | ConnectionState::ReadEarlyData(_)
                | ConnectionState::PeerClosed
                | ConnectionState::Closed
                | _ => return Err(rustls::Error::General("the bridge ended the handshake".to_owned())),
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

    /// Opens the complete records of `input` and hands their content to `sink`. What has to be answered, e.g. a key
    /// update, is appended to `output`.
    ///
    /// # Errors
    /// The bytes are not the peer's, or it sent an alert.
    pub(super) fn open(
        &mut self,
        input: &mut [u8],
        output: &mut Vec<u8>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> io::Result<Opened> {
        let mut opened = Opened::default();
        loop {
            let status = self.connection.process_tls_records(&mut input[opened.consumed..]);
            let UnbufferedStatus { mut discard, state } = status;
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.last_words(output);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            let mut more = true;
            match state {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(io::Error::other)?;
                        discard += record.discard;
                        opened.plain += record.payload.len();
                        sink(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    grow(output, |space| data.encode(space).map_err(encode_size)).map_err(io::Error::other)?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed | ConnectionState::Closed => {
                    opened.ended = true;
                    more = false;
                }
                ConnectionState::WriteTraffic(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::ReadEarlyData(_)
                | _ => more = false,
            }
            opened.consumed += discard;
            if !more {
                return Ok(opened);
            }
        }
    }

    /// Writes `plain`, sealed, to the beginning of `space` and returns how many bytes that are. What has to be said before
    /// it, e.g. the answer to a key update, is appended to `first`.
    ///
    /// # Errors
    /// The connection is not open any more, its keys are used up, or `space` is shorter than [`sealed_len`] of `plain`.
    pub(super) fn seal(&mut self, plain: &[u8], first: &mut Vec<u8>, space: &mut [u8]) -> io::Result<usize> {
        self.write(first, |traffic| traffic.encrypt(plain, space))
    }

    /// Appends the alert that says that nothing follows.
    ///
    /// # Errors
    /// The connection is not open any more.
    pub(super) fn close_notify(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        let mut alert = [0; RECORD_OVERHEAD];
        let len = self.write(output, |traffic| traffic.queue_close_notify(&mut alert))?;
        output.extend_from_slice(alert.get(..len).unwrap_or_default());
        Ok(())
    }

    fn write(
        &mut self,
        first: &mut Vec<u8>,
        mut put: impl FnMut(&mut Traffic<'_>) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        loop {
            match self.connection.process_tls_records(&mut []).state.map_err(io::Error::other)? {
                ConnectionState::WriteTraffic(mut traffic) => return put(&mut traffic).map_err(io::Error::other),
                ConnectionState::EncodeTlsData(mut data) => {
                    grow(first, |space| data.encode(space).map_err(encode_size)).map_err(io::Error::other)?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                // Edge-triggered, said once; sending is still allowed.
                ConnectionState::PeerClosed => {}
                ConnectionState::ReadTraffic(_)
                | ConnectionState::ReadEarlyData(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::Closed
                | _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
}

/// Room that this many bytes of plaintext need when they are sealed; never too little.
pub(super) const fn sealed_len(plain: usize) -> usize {
    plain + plain.div_ceil(RECORD_CONTENT) * RECORD_OVERHEAD
}

type Traffic<'c> = rustls::unbuffered::WriteTraffic<'c, rustls::client::ClientConnectionData>;

/// Where the first complete record of `bytes` ends.
fn record_end(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<RECORD_HEADER>()?;
    let end = RECORD_HEADER + usize::from(u16::from_be_bytes([header[3], header[4]]));
    (bytes.len() >= end).then_some(end)
}

/// Appends what `put` writes, with as much space as it asks for.
fn grow(
    output: &mut Vec<u8>,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>,
) -> Result<(), rustls::Error> {
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
                return Err(rustls::Error::General("a handshake message cannot be written".to_owned()));
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
