//! A traffic secret: whoever has it can read and forge everything that one side says from then on.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};
use zeroize::Zeroizing;

/// The longest one, of SHA-384.
const LONGEST: usize = 48;

/// An application traffic secret (RFC 8446, 7.1).
///
/// It is on the heap, so that moving it leaves no copy behind; wiped when dropped, and never shown.
pub struct TrafficSecret(Zeroizing<Box<[u8]>>);

impl TrafficSecret {
    /// Copies a secret out of `bytes`, which the caller wipes if they are the caller's.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    pub(super) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Bytes: whoever serialises a secret says by that where it may lie.
impl Serialize for TrafficSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for TrafficSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Bytes)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = TrafficSecret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {LONGEST} bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<TrafficSecret, E> {
        if bytes.len() > LONGEST {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        Ok(TrafficSecret::new(bytes))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TrafficSecret, A::Error> {
        let mut bytes = Zeroizing::new([0; LONGEST]);
        let mut filled = 0;
        while let Some(byte) = list.next_element::<u8>()? {
            *bytes.get_mut(filled).ok_or_else(|| A::Error::invalid_length(filled + 1, &self))? = byte;
            filled += 1;
        }
        Ok(TrafficSecret::new(&bytes[..filled]))
    }
}
