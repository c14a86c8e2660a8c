//! The four frames on the wire (protocol 8.1): one type byte, then big-endian integers.

/// Type byte of a data frame.
pub const DATA: u8 = 1;
/// Type byte of an acknowledgement.
pub const ACK: u8 = 2;
/// Type byte of a handshake.
pub const HANDSHAKE: u8 = 3;
/// Type byte of a close frame.
pub const CLOSE: u8 = 4;

/// Length of a data frame before its payload: type, sequence number, length.
pub const DATA_HEADER: usize = 13;
/// Length of an ACK and of a handshake: type and one number.
pub const NUMBERED: usize = 9;
/// Largest payload that a data frame may have.
pub const MAX_PAYLOAD: u32 = 65_536;
/// Sequence number of the first data frame, and what each side expects at first.
pub const FIRST_SEQ: u64 = 1;

/// The 13 bytes in front of a payload.
#[must_use]
pub fn data_header(seq: u64, len: u32) -> [u8; DATA_HEADER] {
    let mut header = [0; DATA_HEADER];
    header[0] = DATA;
    header[1..9].copy_from_slice(&seq.to_be_bytes());
    header[9..].copy_from_slice(&len.to_be_bytes());
    header
}

/// An ACK or a handshake.
#[must_use]
pub fn numbered(kind: u8, value: u64) -> [u8; NUMBERED] {
    let mut frame = [0; NUMBERED];
    frame[0] = kind;
    frame[1..].copy_from_slice(&value.to_be_bytes());
    frame
}

/// How long the part of a frame is that has to be there before its meaning is known; `None` for an unknown type.
#[must_use]
pub const fn head_len(kind: u8) -> Option<usize> {
    match kind {
        DATA => Some(DATA_HEADER),
        ACK | HANDSHAKE => Some(NUMBERED),
        CLOSE => Some(1),
        _ => None,
    }
}

/// The number at byte 1 of a frame's head: a sequence number or an acknowledged or expected one.
#[must_use]
pub fn number(head: &[u8]) -> u64 {
    head.iter().skip(1).take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The payload length in a data frame's head.
#[must_use]
pub fn payload_len(head: &[u8]) -> u32 {
    head.iter().skip(9).take(4).fold(0, |value, byte| value << 8 | u32::from(*byte))
}
