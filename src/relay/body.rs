//! Where a message body ends: length, chunks, or the end of the connection, as a machine that can stop at any byte.
//!
//! Pure. A [`Decoder`] is plain data, so that a body can be cut between any two bytes and be carried on by another
//! process. It is strict where two readers of one message could disagree (RFC 9112 chapter 11.2, request smuggling):
//! no bare line feeds, no signs or spaces in sizes, bounded lines.

use serde::{Deserialize, Serialize};

/// The digits of 2^64; more could only be padding.
const MAX_SIZE_DIGITS: u8 = 16;
/// Chunk extensions carry nothing for us; nobody sends long ones in good faith.
const MAX_EXTENSION: u16 = 4096;
/// All trailer lines of one body. They are dropped, as RFC 9110 6.5.1 permits.
const MAX_TRAILERS: u16 = 8192;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framing {
    /// There is none.
    None,
    /// This many bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// Everything until the connection ends; responses only.
    UntilClose,
}

/// A body that is not delimited as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A chunk's size is not a hexadecimal number, or too large.
    #[error("a chunk has a bad size")]
    Size,
    /// A line of the chunked coding does not end as it should.
    #[error("a chunk does not end with CR LF")]
    LineEnd,
    /// A chunk extension or the trailers are too long, or hold control characters.
    #[error("a chunk extension or trailer is too long or malformed")]
    Extra,
}

/// Where in a chunked body the machine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Chunk {
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        value: u64,
        length: u16,
    },
    SizeEnd {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataEnd,
    /// Between trailer lines; `total` counts all trailer bytes so far.
    Trailer {
        total: u16,
        empty: bool,
    },
    TrailerEnd {
        total: u16,
        empty: bool,
    },
    Done,
}

/// Takes a body apart, wherever its bytes were cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoder(State);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Length(u64),
    Chunked(Chunk),
    UntilClose { ended: bool },
}

impl Decoder {
    /// A decoder at the start of a body.
    #[must_use]
    pub const fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::None => State::Length(0),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunk::Size { value: 0, digits: 0 }),
            Framing::UntilClose => State::UntilClose { ended: false },
        })
    }

    /// True once the body is complete.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.0, State::Length(0) | State::Chunked(Chunk::Done) | State::UntilClose { ended: true })
    }

    /// How many bytes are surely still to come; zero where that is not known.
    #[must_use]
    pub const fn known_rest(&self) -> u64 {
        match self.0 {
            State::Length(left) | State::Chunked(Chunk::Data { left }) => left,
            State::Chunked(_) | State::UntilClose { .. } => 0,
        }
    }

    /// The connection ended. True if that completes the body.
    pub const fn end(&mut self) -> bool {
        if let State::UntilClose { ended } = &mut self.0 {
            *ended = true;
        }
        self.is_done()
    }

    /// Takes from the front of `input` and returns the next stretch of content; `None` when the body is complete or
    /// `input` is used up. What belongs to the next message stays in `input`.
    ///
    /// # Errors
    /// The framing is broken; nothing behind this point can be believed.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Error> {
        match &mut self.0 {
            State::Length(left) => Ok(take(left, input)),
            State::UntilClose { .. } => Ok(take(&mut u64::MAX.clone(), input)),
            State::Chunked(chunk) => loop {
                if let Chunk::Data { left } = chunk {
                    let content = take(left, input);
                    if *left == 0 {
                        *chunk = Chunk::DataReturn;
                    }
                    if content.is_some() {
                        return Ok(content);
                    }
                }
                if matches!(chunk, Chunk::Done) {
                    return Ok(None);
                }
                let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
                *chunk = chunk.after(byte)?;
                *input = rest;
            },
        }
    }
}

/// Cuts at most `left` bytes from the front.
fn take<'a>(left: &mut u64, input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    let (content, rest) = input.split_at(length);
    *input = rest;
    *left = left.saturating_sub(length as u64);
    (length > 0).then_some(content)
}

impl Chunk {
    /// The step for one byte of framing. `Data` and `Done` take none.
    fn after(self, byte: u8) -> Result<Self, Error> {
        match self {
            Self::Size { value, digits } => Self::size(value, digits, byte),
            Self::Extension { value, length } => match byte {
                b'\r' => Ok(Self::SizeEnd { value }),
                _ if length >= MAX_EXTENSION || is_control(byte) => Err(Error::Extra),
                _ => Ok(Self::Extension { value, length: length + 1 }),
            },
            Self::SizeEnd { value } => match (byte, value) {
                (b'\n', 0) => Ok(Self::Trailer { total: 0, empty: true }),
                (b'\n', left) => Ok(Self::Data { left }),
                _ => Err(Error::LineEnd),
            },
            Self::DataReturn if byte == b'\r' => Ok(Self::DataEnd),
            Self::DataEnd if byte == b'\n' => Ok(Self::Size { value: 0, digits: 0 }),
            Self::Trailer { total, empty } => match byte {
                b'\r' => Ok(Self::TrailerEnd { total, empty }),
                _ if total >= MAX_TRAILERS || is_control(byte) => Err(Error::Extra),
                _ => Ok(Self::Trailer { total: total + 1, empty: false }),
            },
            Self::TrailerEnd { empty: true, .. } if byte == b'\n' => Ok(Self::Done),
            Self::TrailerEnd { total, .. } if byte == b'\n' => Ok(Self::Trailer { total, empty: true }),
            Self::DataReturn | Self::DataEnd | Self::TrailerEnd { .. } | Self::Data { .. } | Self::Done => {
                Err(Error::LineEnd)
            }
        }
    }

    fn size(value: u64, digits: u8, byte: u8) -> Result<Self, Error> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if digits > 0 => return Ok(Self::SizeEnd { value }),
            // RFC 9112 7.1.1 permits white space before the semicolon, and some servers pad with it.
            b';' | b' ' | b'\t' if digits > 0 => return Ok(Self::Extension { value, length: 1 }),
            _ => return Err(Error::Size),
        };
        if digits >= MAX_SIZE_DIGITS {
            return Err(Error::Size);
        }
        Ok(Self::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
    }
}

const fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// Appends `content` as one chunk; nothing for no content, which would end the body.
pub fn encode_chunk(content: &[u8], out: &mut Vec<u8>) {
    if content.is_empty() {
        return;
    }
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut rest = content.len();
    while rest > 0 {
        at -= 1;
        digits[at] = b"0123456789abcdef"[rest & 15];
        rest >>= 4;
    }
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
}

/// What ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `wire` in pieces cut at `cuts` and returns the content and what was left over.
    fn decode(framing: Framing, wire: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, usize, bool), Error> {
        let mut decoder = Decoder::new(framing);
        let (mut content, mut left_over, mut from) = (Vec::new(), 0, 0);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).chain([wire.len()]).collect();
        ends.sort_unstable();
        for end in ends {
            let mut input = &wire[from..end];
            while let Some(part) = decoder.next(&mut input)? {
                content.extend_from_slice(part);
            }
            left_over += input.len();
            from = end;
        }
        Ok((content, left_over, decoder.is_done()))
    }

    #[test]
    fn a_chunked_body_ends_where_it_says_and_leaves_the_rest() {
        let wire = b"4;name=value\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1";
        assert_eq!(decode(Framing::Chunked, wire, &[]), Ok((b"Wikipedia".to_vec(), 14, true)));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(5000));
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(3000));
        let cases: [(&str, Error); 15] = [
            ("\r\n", Error::Size),
            ("+5\r\nhello", Error::Size),
            (" 5\r\nhello", Error::Size),
            ("0x5\r\nhello", Error::Size),
            ("-1\r\n", Error::Size),
            ("5\nhello", Error::Size),
            ("g\r\n", Error::Size),
            ("00000000000000000\r\n", Error::Size),
            ("5\rhello", Error::LineEnd),
            ("5\r\nhelloX", Error::LineEnd),
            ("5\r\nhello\n5\r\n", Error::LineEnd),
            ("5;a\nb\r\nhello", Error::Extra),
            ("0\r\na: b\n\r\n", Error::Extra),
            (&long, Error::Extra),
            (&trailers, Error::Extra),
        ];
        for (wire, error) in cases {
            assert_eq!(decode(Framing::Chunked, wire.as_bytes(), &[]), Err(error), "{wire:?}");
        }
    }

    #[test]
    fn a_body_until_the_end_is_complete_when_the_connection_ends_and_no_other_is() {
        assert!(Decoder::new(Framing::UntilClose).end());
        assert!(!Decoder::new(Framing::Chunked).end());
        assert!(!Decoder::new(Framing::Length(1)).end());
        assert!(Decoder::new(Framing::None).end());
    }

    #[test]
    fn the_largest_size_does_not_overflow() {
        let mut decoder = Decoder::new(Framing::Chunked);
        let mut input: &[u8] = b"ffffffffffffffff\r\nx";
        assert_eq!(decoder.next(&mut input), Ok(Some(&b"x"[..])));
        assert_eq!(decoder.known_rest(), u64::MAX - 1);
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_how_the_bytes_were_cut(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
            damage in proptest::option::of((any::<usize>(), any::<u8>())),
            cuts in proptest::collection::vec(any::<usize>(), 0..12),
        ) {
            let mut wire = Vec::new();
            for part in &parts {
                encode_chunk(part, &mut wire);
            }
            wire.extend_from_slice(LAST_CHUNK);
            wire.extend_from_slice(b"next");
            if let Some((at, byte)) = damage {
                let at = at % wire.len();
                wire[at] = byte;
            } else {
                let whole = (parts.concat(), 4, true);
                prop_assert_eq!(decode(Framing::Chunked, &wire, &[]), Ok(whole));
            }
            for framing in [Framing::Chunked, Framing::Length(20), Framing::UntilClose] {
                prop_assert_eq!(decode(framing, &wire, &cuts), decode(framing, &wire, &[]));
            }
        }
    }
}
