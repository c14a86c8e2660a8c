//! Where an input is cut: its first line has one byte for each piece's length, and the rest of the last piece follows.
//!
//! Plain enough that a seed can be written by hand: an empty first line means one piece.

/// More pieces teach nothing and cost time.
const MAX_PIECES: usize = 24;

/// The lengths, and what is cut.
#[must_use]
pub fn split(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    (&data[..end.min(MAX_PIECES)], data.get(end + 1..).unwrap_or_default())
}

/// `wire` in pieces of these lengths, and one with what is left. Together they are `wire`.
#[must_use]
pub fn pieces<'a>(lengths: &[u8], mut wire: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for &length in lengths.iter().take(MAX_PIECES) {
        let (piece, rest) = wire.split_at(usize::from(length).min(wire.len()));
        pieces.push(piece);
        wire = rest;
    }
    pieces.push(wire);
    pieces
}
