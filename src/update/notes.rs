//! What the operator notes down for the updater, and what others may see of its journal: pins, bad versions, history.

use std::path::Path;

use semver::Version;

use super::choose::Standing;
use super::history::{History, Record};
use super::journal::{Journal, Pin, Step};
use super::outcome::Failure;
use super::site::Place;
use super::state_dir::StateDir;
use super::{apply, fetch};
use crate::clock;
use crate::exit::Reason;
use crate::service::bus::Manager;

/// What `status` shows of the updater.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// `idle`, or the step that a change is in.
    pub state: String,
    /// The last finished change.
    pub last: Option<serde_json::Value>,
}

/// Stays on `version`, until [`unpin`].
///
/// # Errors
/// Not the owner of the installation, or the disk.
pub fn pin(place: &Place, version: &Version, by: &str) -> Result<(), Failure> {
    let state = open(place)?;
    let pin = Pin { version: version.to_string(), at: clock::rfc3339(clock::now()), by: by.to_owned() };
    Journal::change(&state.journal(), |journal| journal.pin = Some(pin)).map(drop).map_err(apply::disk_failed)
}

/// Follows the API's version again; returns what was pinned.
///
/// # Errors
/// Not the owner of the installation, or the disk.
pub fn unpin(place: &Place) -> Result<Option<String>, Failure> {
    let state = open(place)?;
    let mut was = None;
    Journal::change(&state.journal(), |journal| was = journal.pin.take().map(|pin| pin.version))
        .map_err(apply::disk_failed)?;
    Ok(was)
}

/// What others may see; `None` where the updater's directory cannot be read or was never used.
#[must_use]
pub fn view(directory: &Path) -> Option<View> {
    let journal = Journal::peek(&directory.join("state.json")).ok()??;
    let last = records(directory).ok()?.pop();
    let state = journal.transaction.map_or("idle".to_owned(), |transaction| word(transaction.step));
    Some(View { state, last: last.and_then(|record| serde_json::to_value(record).ok()) })
}

/// The history, oldest first.
///
/// # Errors
/// The directory cannot be read, e.g. without root.
pub fn records(directory: &Path) -> Result<Vec<Record>, Failure> {
    History::new(directory.join("history.jsonl")).read().map_err(|error| {
        let reason = if error.kind() == std::io::ErrorKind::PermissionDenied {
            Reason::NotPermitted
        } else {
            fetch::disk_reason(&error)
        };
        Failure::new(reason, &error)
    })
}

/// What the journal says about versions; nothing where it cannot be read.
pub(super) fn peek(directory: &Path) -> Standing {
    let journal = Journal::peek(&directory.join("state.json")).ok().flatten().unwrap_or_default();
    let parse = |text: &str| Version::parse(text).ok();
    Standing {
        pinned: journal.pin.as_ref().and_then(|pin| parse(&pin.version)),
        known_bad: journal.known_bad.iter().filter_map(|bad| parse(&bad.version)).collect(),
    }
}

fn open(place: &Place) -> Result<StateDir, Failure> {
    StateDir::open(&place.state_dir).map_err(|error| {
        let failure = fetch::no_room(error);
        if place.manager == Manager::User || nix::unistd::geteuid().is_root() {
            return failure;
        }
        Failure::because(
            Reason::NotPermitted,
            format!("{}. The updater's state belongs to root: run the command with sudo", failure.message),
        )
    })
}

fn word(step: Step) -> String {
    serde_json::to_value(step).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}
