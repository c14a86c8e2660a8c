//! A connection as plain data: what another process needs to go on at the same byte.

use serde::{Deserialize, Serialize};

use super::direction::{Direction, Suite};
use super::message::Fragment;
use super::secret::TrafficSecret;
use super::{Error, Records};

/// Everything that [`Records`] knows.
///
/// Whoever goes on from it uses its nonces: it can be used once, and there is no `Clone`. Bytes that were received and not
/// opened, and sealed bytes that were not sent, are with the caller and have to be carried beside it.
///
/// Fields that are not known are passed over, and missing ones have the value of a fresh connection.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// The cipher suite's registered number.
    pub suite: u16,
    /// What we send.
    pub outbound: Half,
    /// What we receive.
    pub inbound: Half,
    /// Everything that is not a key.
    #[serde(default)]
    pub standing: Standing,
}

/// One direction.
#[derive(Debug, Serialize, Deserialize)]
pub struct Half {
    /// The secret of the present generation.
    pub secret: TrafficSecret,
    /// The number of the next record.
    pub sequence: u64,
}

/// Where a connection stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// A handshake message that has begun.
    pub fragment: Fragment,
    /// A key update of ours goes before the next data.
    pub update_due: bool,
    /// Whether the peer is asked for new keys.
    pub ask: Ask,
    /// Key updates of the peer since its last data.
    pub updates_in_a_row: u8,
    /// The peer has said that nothing follows.
    pub heard_all: bool,
    /// We have said so, or sent a fatal alert.
    pub said_all: bool,
    /// The peer sent an alert or nonsense: nothing is read or written any more.
    pub broken: bool,
}

/// Whether the peer is asked for new keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// There is no need.
    #[default]
    No,
    /// With our next key update.
    Due,
    /// It was, and has not answered.
    Sent,
}

impl Records {
    /// The connection as plain data. There is no other use of it from here on.
    #[must_use]
    pub fn export(self) -> State {
        let half = |direction: Direction| {
            let (secret, sequence) = direction.into_parts();
            Half { secret, sequence }
        };
        State {
            suite: self.outbound.suite().number(),
            outbound: half(self.outbound),
            inbound: half(self.inbound),
            standing: self.standing,
        }
    }

    /// Goes on where [`Self::export`] stopped.
    ///
    /// # Errors
    /// No connection can be in such a state.
    pub fn import(state: State) -> Result<Self, Error> {
        let suite = Suite::from_number(state.suite).ok_or(Error::State("an unknown cipher suite"))?;
        if !state.standing.fragment.is_possible() {
            return Err(Error::State("an impossible piece of a message"));
        }
        let direction = |half: Half| Direction::new(suite, half.secret, half.sequence);
        Ok(Self { outbound: direction(state.outbound)?, inbound: direction(state.inbound)?, standing: state.standing })
    }
}
