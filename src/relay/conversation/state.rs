//! A conversation that comes from another process: is it one?

use super::{Answer, Conversation, Outbox, Phase};

/// No conversation can be in such a state; whoever wrote it was of another mind, or the bytes were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved {0} is in an impossible state")]
pub struct Impossible(&'static str);

impl Conversation {
    /// Takes a deserialised conversation for good if it can be one.
    ///
    /// # Errors
    /// It cannot: more was sent, or searched, than there is.
    pub fn checked(self) -> Result<Self, Impossible> {
        let possible = |outbox: &Outbox| outbox.sent <= outbox.bytes.len();
        if !possible(&self.bridge_out) || !possible(&self.target_out) {
            return Err(Impossible("output"));
        }
        let searching = match &self.phase {
            Phase::Waiting => &self.bridge_in,
            Phase::Serving(exchange) if matches!(exchange.answer, Answer::Head { .. }) => &self.target_in,
            Phase::Dialling(_)
            | Phase::Serving(_)
            | Phase::Discarding { .. }
            | Phase::Spliced
            | Phase::Closing
            | Phase::Closed => return Ok(self),
        };
        if self.searched > searching.len() { Err(Impossible("input")) } else { Ok(self) }
    }
}
