//! Which of the sets on the disk is the identity. Pure: three slots in, one choice out.

use super::super::Identity;
use super::super::inspect::Flaw;

/// What lies in one place where a set may be.
#[derive(Debug)]
pub(super) enum Slot {
    /// Neither certificate nor key.
    Absent,
    /// Something, but no identity.
    Flawed(Flaw),
    /// A set that belongs together.
    Sound(Box<Identity>),
}

/// Which set to use.
#[derive(Debug)]
pub(super) enum Choice {
    /// The agent never joined.
    None,
    /// The files in place.
    Current(Box<Identity>),
    /// A committed set whose move into place was interrupted.
    Next(Box<Identity>),
    /// The set from before a renewal, because the files in place are damaged.
    Previous(Box<Identity>),
}

/// Chooses; a damaged set never counts as "never joined", since joining again would be the second time.
pub(super) fn choose(next: Slot, current: Slot, previous: Slot) -> Result<Choice, Flaw> {
    match (next, current, previous) {
        // A Go agent that ran in between may have renewed: the younger certificate wins.
        (Slot::Sound(next), Slot::Sound(current), _) if next.not_before < current.not_before => {
            Ok(Choice::Current(current))
        }
        (Slot::Sound(next), _, _) => Ok(Choice::Next(next)),
        (_, Slot::Sound(current), _) => Ok(Choice::Current(current)),
        (_, _, Slot::Sound(previous)) => Ok(Choice::Previous(previous)),
        (_, Slot::Flawed(flaw), _) | (_, Slot::Absent, Slot::Flawed(flaw)) => Err(flaw),
        (Slot::Flawed(flaw), Slot::Absent, Slot::Absent) => Err(flaw),
        (Slot::Absent, Slot::Absent, Slot::Absent) => Ok(Choice::None),
    }
}
