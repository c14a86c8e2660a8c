//! The frames of the reliable stream as bytes (protocol 8.1). Knows no connection and no sequence.

/// Bytes before a data frame's payload.
pub const DATA_HEADER: usize = 13;
/// The longest payload that a frame may have.
pub const MAX_PAYLOAD: usize = 65536;
/// The whole close frame.
pub const CLOSE: [u8; 1] = [4];

const NUMBERED: usize = 9;

/// A frame as it was found in the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Payload under a sequence number.
    Data {
        /// Its number.
        seq: u64,
        /// What it carries.
        payload: &'a [u8],
    },
    /// Everything up to this number has arrived.
    Ack(u64),
    /// The next number that is expected.
    Handshake(u64),
    /// The end, on purpose.
    Close,
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A data frame without payload.
    #[error("data frame {0} is empty")]
    Empty(u64),
    /// A data frame that announces too much.
    #[error("data frame {0} announces {1} bytes")]
    TooLong(u64, u32),
    /// An unknown first byte.
    #[error("{0:#04x} is no type of a frame")]
    Unknown(u8),
}

/// The frame that `bytes` begin with and its length on the wire; `None` if more bytes are needed to tell.
///
/// # Errors
/// See [`Malformed`]; a length is judged by the header alone.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let Some(&kind) = bytes.first() else { return Ok(None) };
    match kind {
        1 => decode_data(bytes),
        2 => Ok(number(bytes).map(|number| (Frame::Ack(number), NUMBERED))),
        3 => Ok(number(bytes).map(|number| (Frame::Handshake(number), NUMBERED))),
        4 => Ok(Some((Frame::Close, CLOSE.len()))),
        other => Err(Malformed::Unknown(other)),
    }
}

fn decode_data(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let (Some(seq), Some(length)) = (number(bytes), bytes.get(NUMBERED..).and_then(<[u8]>::first_chunk)) else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length);
    match length as usize {
        0 => Err(Malformed::Empty(seq)),
        size if size > MAX_PAYLOAD => Err(Malformed::TooLong(seq, length)),
        size => {
            let end = DATA_HEADER + size;
            Ok(bytes.get(DATA_HEADER..end).map(|payload| (Frame::Data { seq, payload }, end)))
        }
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.get(1..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// What stands before a payload of `length` bytes. Any length can be announced: some tests have to lie.
#[must_use]
pub fn data_header(seq: u64, length: u32) -> [u8; DATA_HEADER] {
    let mut header = [0; DATA_HEADER];
    header[0] = 1;
    header[1..NUMBERED].copy_from_slice(&seq.to_be_bytes());
    header[NUMBERED..].copy_from_slice(&length.to_be_bytes());
    header
}

/// A whole data frame.
///
/// # Panics
/// The payload does not fit into memory twice.
#[must_use]
pub fn data(seq: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads of tests are short");
    [&data_header(seq, length), payload].concat()
}

/// An acknowledgement.
#[must_use]
pub fn ack(seq: u64) -> [u8; NUMBERED] {
    numbered(2, seq)
}

/// A handshake.
#[must_use]
pub fn handshake(next_expected: u64) -> [u8; NUMBERED] {
    numbered(3, next_expected)
}

fn numbered(kind: u8, number: u64) -> [u8; NUMBERED] {
    let mut frame = [0; NUMBERED];
    frame[0] = kind;
    frame[1..].copy_from_slice(&number.to_be_bytes());
    frame
}
