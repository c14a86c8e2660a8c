//! The event streams and upgrades of all pools, so that those that nobody watches any more do not pile up.
//!
//! A bridge does not tell when a browser leaves an event stream: it reads on for as long as the target writes (protocol
//! 9.6), so every visit to a page with such a stream leaves one behind. When there are too many, the oldest goes, which
//! is most likely one of those; a browser that still watches opens its own again. An upgrade is different: the bridge
//! closes it with its visitor, and what it carries cannot be begun anew.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Streams in all pools, which are replaced in their pool while they last. Beyond this they count as its connections.
pub const MAX_STREAMS: usize = 256;

/// What a connection became when it left the bridge's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An event stream.
    Events,
    /// Another protocol.
    Upgrade,
}

/// The place of a stream.
#[derive(Debug)]
pub struct Place(u64);

#[derive(Debug, Default)]
struct Book {
    count: usize,
    last: u64,
    /// What cuts event streams off, oldest first.
    events: BTreeMap<u64, CancellationToken>,
}

/// All streams.
#[derive(Debug, Default)]
pub struct Streams(Mutex<Book>);

impl Streams {
    /// Enters a stream that `cut` ends. `None` where there is no room and nothing that could make some.
    pub fn enter(&self, kind: Kind, cut: &CancellationToken) -> Option<Place> {
        let mut book = self.book();
        if book.count >= MAX_STREAMS {
            let (_, oldest) = book.events.pop_first()?;
            oldest.cancel();
        }
        book.count += 1;
        book.last += 1;
        let place = book.last;
        if kind == Kind::Events {
            book.events.insert(place, cut.clone());
        }
        Some(Place(place))
    }

    /// A stream has ended, of itself or because it was cut off.
    pub fn leave(&self, place: &Place) {
        let mut book = self.book();
        book.count = book.count.saturating_sub(1);
        book.events.remove(&place.0);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_event_stream_makes_room_and_upgrades_are_never_cut() {
        let streams = Streams::default();
        let enter = |kind| {
            let cut = CancellationToken::new();
            streams.enter(kind, &cut).map(|place| (place, cut))
        };
        let upgrade = enter(Kind::Upgrade).unwrap();
        let (first, second) = (enter(Kind::Events).unwrap(), enter(Kind::Events).unwrap());
        let upgrades: Vec<_> = (3..MAX_STREAMS).map(|_| enter(Kind::Upgrade).unwrap()).collect();
        assert!(!first.1.is_cancelled());
        let third = enter(Kind::Events).unwrap();
        assert!(first.1.is_cancelled() && !second.1.is_cancelled());
        streams.leave(&first.0);
        let _another = enter(Kind::Upgrade).unwrap();
        assert!(second.1.is_cancelled() && !third.1.is_cancelled());
        streams.leave(&second.0);
        let _last = enter(Kind::Upgrade).unwrap();
        assert!(third.1.is_cancelled());
        streams.leave(&third.0);
        assert!(enter(Kind::Upgrade).is_none() && enter(Kind::Events).is_none());
        assert!(!upgrade.1.is_cancelled() && upgrades.iter().all(|(_, cut)| !cut.is_cancelled()));
        streams.leave(&upgrade.0);
        assert!(enter(Kind::Events).is_some());
    }
}
