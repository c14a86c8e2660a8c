//! What goes wrong between a release and whoever fetches it, and how often.
//!
//! Faults are queued per target: the name of an asset, [`LISTING`] or [`LATEST`]. Each request takes at most one fault per
//! hop, the oldest first, so a row of them (`503`, then a cut, then nothing) plays in order.

use std::collections::VecDeque;
use std::time::Duration;

/// The REST listing of releases, as a target of faults.
pub const LISTING: &str = "(listing)";

/// The page `releases/latest`, as a target of faults.
pub const LATEST: &str = "(latest)";

/// For a fault that stays until [`clear_faults`](super::ReleaseServer::clear_faults).
pub const ALWAYS: usize = usize::MAX;

/// One thing that goes wrong with one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status code and nothing else.
    Status(u16),
    /// This status code with this `Retry-After`: seconds or an HTTP date (RFC 9110, 10.2.3).
    RetryAfter(u16, String),
    /// The answer begins only after this long.
    Stall(Duration),
    /// A captive portal: 200 with an HTML page, whatever was asked.
    Html,
    /// 200 with `application/json` that is none.
    NotJson,
    /// 302 to this address, such as one of plain HTTP.
    RedirectTo(String),
    /// 302 to the address that was asked.
    RedirectLoop,
    /// The connection is cut after this many bytes of the body.
    CutAfter(u64),
    /// The body pauses after this many bytes (first) for this long (second).
    StallAfter(u64, Duration),
    /// The body comes at this many bytes per second.
    Slow(u64),
    /// `Content-Length` says this. A longer one than the truth ends in a cut connection, a shorter one in a shorter body.
    ContentLength(u64),
    /// The right bytes come first, then zeros without an end and without a `Content-Length`.
    Endless,
    /// `Range` is ignored: 200 and everything.
    NoRange,
    /// The entity tag is another one than ever before, as after the asset was replaced.
    ChangedEtag,
}

/// Where in the row of redirects a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hop {
    /// The download path, which redirects.
    Download,
    /// The host that has the bytes.
    Bytes,
    /// Both in one: a mirror, a listing.
    Only,
}

impl Fault {
    const fn hop(&self) -> Hop {
        match self {
            Self::Status(_)
            | Self::RetryAfter(..)
            | Self::Stall(_)
            | Self::Html
            | Self::NotJson
            | Self::RedirectTo(_)
            | Self::RedirectLoop => Hop::Download,
            Self::CutAfter(_)
            | Self::StallAfter(..)
            | Self::Slow(_)
            | Self::ContentLength(_)
            | Self::Endless
            | Self::NoRange
            | Self::ChangedEtag => Hop::Bytes,
        }
    }
}

/// The faults that are still to happen.
#[derive(Debug, Default)]
pub(super) struct Faults(VecDeque<(String, Fault, usize)>);

impl Faults {
    pub(super) fn add(&mut self, target: &str, fault: Fault, times: usize) {
        self.0.push_back((target.to_owned(), fault, times));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault for this request, if any; it counts as having happened.
    pub(super) fn take(&mut self, target: &str, hop: Hop) -> Option<Fault> {
        self.0.retain(|(_, _, times)| *times > 0);
        let (_, fault, times) =
            self.0.iter_mut().find(|(of, fault, _)| of == target && (hop == Hop::Only || fault.hop() == hop))?;
        if *times != ALWAYS {
            *times -= 1;
        }
        Some(fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_happen_in_order_as_often_as_asked_and_to_their_target_only() {
        let mut faults = Faults::default();
        faults.add("a", Fault::Status(503), 2);
        faults.add("a", Fault::Status(404), 1);
        faults.add("b", Fault::Html, ALWAYS);
        let taken: Vec<_> = (0..4).map(|_| faults.take("a", Hop::Download)).collect();
        assert_eq!(taken, [Some(Fault::Status(503)), Some(Fault::Status(503)), Some(Fault::Status(404)), None]);
        assert!((0..100).all(|_| faults.take("b", Hop::Download) == Some(Fault::Html)));
        faults.clear();
        assert_eq!(faults.take("b", Hop::Download), None);
    }

    #[test]
    fn a_fault_of_the_body_waits_for_the_hop_that_has_a_body() {
        let mut faults = Faults::default();
        faults.add("a", Fault::CutAfter(7), 1);
        faults.add("a", Fault::RedirectLoop, 1);
        assert_eq!(faults.take("a", Hop::Download), Some(Fault::RedirectLoop));
        assert_eq!(faults.take("a", Hop::Download), None);
        assert_eq!(faults.take("a", Hop::Bytes), Some(Fault::CutAfter(7)));
        faults.add("a", Fault::RedirectLoop, 1);
        assert_eq!(faults.take("a", Hop::Only), Some(Fault::RedirectLoop));
    }
}
