//! Bytes that tell where they belong, cheap enough to check a gibibyte of them exactly.
//!
//! The pattern is a table of random-looking bytes, repeated. Its length is a prime, so that neither a lost frame nor a
//! repeated or swapped one leaves the rest in step; filling and checking are copies and comparisons of slices, which are
//! fast without optimisation as well.

use std::sync::OnceLock;

/// The largest prime below 2^20.
const PERIOD: usize = 1_048_573;

/// A place in the pattern, which moves on with what is filled or checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pattern {
    position: u64,
}

/// A byte that is not what belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {position} is {found:#04x}, not {expected:#04x}")]
pub struct Mismatch {
    /// Which byte, counted from the start of the pattern.
    pub position: u64,
    /// What is there.
    pub found: u8,
    /// What belongs there.
    pub expected: u8,
}

impl Pattern {
    /// The pattern from this byte on.
    #[must_use]
    pub const fn at(position: u64) -> Self {
        Self { position }
    }

    /// How many bytes were filled or checked, and the byte it began at.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Fills `into` with the next bytes.
    pub fn fill(&mut self, into: &mut [u8]) {
        let mut rest = into;
        while !rest.is_empty() {
            let next = self.run(rest.len());
            let (now, later) = rest.split_at_mut(next.len());
            now.copy_from_slice(next);
            self.advance(next.len());
            rest = later;
        }
    }

    /// The next `length` bytes.
    #[must_use]
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }

    /// Compares `bytes` with what comes next. After a mismatch the place has not moved past the piece that is wrong.
    ///
    /// # Errors
    /// The first byte that is wrong.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let expected = self.run(rest.len());
            let (now, later) = rest.split_at(expected.len());
            if now != expected {
                return Err(self.mismatch(now, expected));
            }
            self.advance(expected.len());
            rest = later;
        }
        Ok(())
    }

    fn mismatch(&self, found: &[u8], expected: &[u8]) -> Mismatch {
        let at = found.iter().zip(expected).position(|(found, expected)| found != expected).unwrap_or_default();
        Mismatch { position: self.position + at as u64, found: found[at], expected: expected[at] }
    }

    /// At most `length` bytes from here on, without a wrap.
    fn run(&self, length: usize) -> &'static [u8] {
        let start = usize::try_from(self.position % PERIOD as u64).expect("the period fits into memory");
        &table()[start..PERIOD.min(start + length)]
    }

    fn advance(&mut self, by: usize) {
        self.position += by as u64;
    }
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut table = Vec::with_capacity(PERIOD + 8);
        while table.len() < PERIOD {
            // xorshift64: any generator with a long period would do.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            table.extend_from_slice(&state.to_le_bytes());
        }
        table.truncate(PERIOD);
        table
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_in_pieces_checks_in_other_pieces() {
        let mut filled = Pattern::default();
        let bytes: Vec<u8> = [1, 7, 65536, 3 * PERIOD, 2].iter().flat_map(|&length| filled.bytes(length)).collect();
        let mut checked = Pattern::default();
        for piece in bytes.chunks(100_003) {
            checked.check(piece).unwrap();
        }
        assert_eq!(checked, filled);
    }

    #[test]
    fn a_lost_frame_is_found_where_it_was_lost() {
        let mut bytes = Pattern::at(5).bytes(200_000);
        bytes.drain(65536..65536 + 32768);
        let found = Pattern::at(5).check(&bytes).unwrap_err();
        // The bytes around it are random; one in 256 is right by chance.
        assert!((65541..65549).contains(&found.position), "{found}");
    }
}
