//! Decides which version to install, or why none: a synchronous function from facts to the next step.
//!
//! The caller gathers facts as they are asked for, because some cost a request: [`next`] says [`Step::Probe`] or
//! [`Step::List`] until it can say [`Step::Done`]. Versions are compared by semantic version precedence throughout, so
//! build metadata never counts, and a development build (`1.3.0-dev`) stands below the release it leads to.
//!
//! What each flag lets through: `--allow-downgrade` an older version, `--allow-prerelease` a pre-release, `--force` a pin,
//! a version that was rolled back here, and installing the same version again. Nothing lets a version through that is
//! newer than the API.

use std::cmp::Ordering;

use semver::Version;

use crate::exit::Reason;
use crate::platform::version::ahead_of_api;

/// What the operator allowed on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allow {
    /// `--allow-downgrade`
    pub downgrade: bool,
    /// `--allow-prerelease`
    pub prerelease: bool,
    /// `--force`
    pub force: bool,
}

/// Everything that the choice depends on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The version of the installed binary.
    pub installed: Version,
    /// The API's version, reported or assumed; `None` where it is unknown.
    pub api: Option<Version>,
    /// `--version`.
    pub requested: Option<Version>,
    /// The version to stay on (`bamf-agent pin`).
    pub pinned: Option<Version>,
    /// Versions that were rolled back on this machine.
    pub known_bad: Vec<Version>,
    /// What the operator allowed.
    pub allow: Allow,
    /// Whether the source has the release that [`Step::Probe`] asked about; `None` until it was asked.
    pub probed: Option<bool>,
    /// The source's releases, drafts left out; `None` until [`Step::List`] asked for them.
    pub listing: Option<Vec<Version>>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Find out whether the source has this release, and set [`Facts::probed`].
    Probe(Version),
    /// List the source's releases, and set [`Facts::listing`].
    List,
    /// The choice is made.
    Done(Plan),
}

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// There is nothing to do.
    UpToDate {
        /// A sentence for people.
        message: String,
    },
    /// Install this version.
    Update {
        /// The version.
        version: Version,
        /// How it relates to the installed one.
        direction: Direction,
    },
    /// Install nothing.
    Refuse(Refusal),
}

/// How the chosen version relates to the installed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Newer.
    Up,
    /// Older.
    Down,
    /// The same again.
    Again,
}

/// Why nothing is installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The stable word, which decides the exit code.
    pub reason: Reason,
    /// What stands against it and what to do, for people.
    pub message: String,
}

fn refuse(reason: Reason, message: String) -> Plan {
    Plan::Refuse(Refusal { reason, message })
}

/// The next step towards a choice. With `probed` and `listing` set it is always [`Step::Done`].
#[must_use]
pub fn next(facts: &Facts) -> Step {
    let Some(api) = &facts.api else {
        return Step::Done(refuse(Reason::ApiVersionUnknown, unknown_api()));
    };
    let pin = facts.pinned.as_ref().filter(|pin| !facts.allow.force && !same(pin, &facts.installed));
    // A pin to another version than the installed one is a standing request for it.
    if let Some(wanted) = facts.requested.as_ref().or(pin) {
        return Step::Done(judge(facts, api, wanted));
    }
    if let Some(advice) = ahead_of_api(&facts.installed, api)
        && !facts.allow.downgrade
    {
        return Step::Done(refuse(Reason::OlderThanInstalled, advice));
    }
    match newest(facts, api) {
        Newest::Found(version) => Step::Done(settle(facts, api, &version)),
        Newest::Missing => Step::Done(refuse(
            Reason::NotFound,
            format!(
                "the source has no release that is not newer than the API's version {api}{}",
                prerelease_hint(facts)
            ),
        )),
        Newest::Ask(step) => step,
    }
}

enum Newest {
    Found(Version),
    Missing,
    Ask(Step),
}

/// Contract section 4: "the newest stable release that is not newer than the API (semantic version precedence). First try
/// the tag `v<api version>` by its download path, which costs no GitHub REST call; only if it does not exist list".
fn newest(facts: &Facts, api: &Version) -> Newest {
    let eligible =
        |version: &Version| (version.pre.is_empty() || facts.allow.prerelease) && version.cmp_precedence(api).is_le();
    if let Some(listing) = &facts.listing {
        let newest = listing.iter().filter(|version| eligible(version)).max_by(|a, b| a.cmp_precedence(b));
        return newest.map_or(Newest::Missing, |version| Newest::Found(version.clone()));
    }
    match facts.probed {
        Some(true) if eligible(api) => Newest::Found(api.clone()),
        None if eligible(api) => Newest::Ask(Step::Probe(api.clone())),
        Some(_) | None => Newest::Ask(Step::List),
    }
}

/// What to do about the newest release that nobody asked for by name.
fn settle(facts: &Facts, api: &Version, newest: &Version) -> Plan {
    let installed = &facts.installed;
    let stepping_down = installed.cmp_precedence(api).is_gt();
    // The newest eligible release may be older than what runs, e.g. a pre-release; that is no reason to go back.
    if newest.cmp_precedence(installed).is_lt() && !stepping_down {
        return Plan::UpToDate {
            message: format!("{installed} is newer than {newest}, the newest release for API {api}"),
        };
    }
    judge(facts, api, newest)
}

/// Whether `wanted` may be installed.
fn judge(facts: &Facts, api: &Version, wanted: &Version) -> Plan {
    let (installed, allow) = (&facts.installed, facts.allow);
    if wanted.cmp_precedence(api).is_gt() {
        return refuse(Reason::NewerThanApi, newer(wanted, api));
    }
    let direction = match wanted.cmp_precedence(installed) {
        Ordering::Equal if !allow.force => {
            return Plan::UpToDate { message: format!("{installed} is installed, the API runs {api}") };
        }
        Ordering::Equal => Direction::Again,
        Ordering::Greater => Direction::Up,
        Ordering::Less => Direction::Down,
    };
    let refusal = held_back(facts, wanted, direction);
    refusal.unwrap_or_else(|| Plan::Update { version: wanted.clone(), direction })
}

/// What the operator would have to allow first.
fn held_back(facts: &Facts, wanted: &Version, direction: Direction) -> Option<Plan> {
    let (installed, allow) = (&facts.installed, facts.allow);
    if let Some(pin) = facts.pinned.as_ref().filter(|pin| !same(pin, wanted) && !allow.force) {
        let message =
            format!("{wanted} is available, but the agent is pinned to {pin}: run `bamf-agent unpin`, or pass --force");
        return Some(refuse(Reason::Pinned, message));
    }
    if facts.known_bad.iter().any(|bad| same(bad, wanted)) && !allow.force {
        let message = format!(
            "{wanted} was rolled back on this machine before (see `bamf-agent history`): wait for the next release, or pass --force to try it again"
        );
        return Some(refuse(Reason::KnownBad, message));
    }
    if !wanted.pre.is_empty() && !allow.prerelease {
        return Some(refuse(
            Reason::Prerelease,
            format!("{wanted} is a pre-release: pass --allow-prerelease to install it"),
        ));
    }
    if direction == Direction::Down && !allow.downgrade {
        let what = if is_development(installed) { "the installed development build" } else { "the installed version" };
        let message = format!("{wanted} is older than {what} {installed}: pass --allow-downgrade to step down");
        return Some(refuse(Reason::OlderThanInstalled, message));
    }
    None
}

fn same(one: &Version, other: &Version) -> bool {
    one.cmp_precedence(other).is_eq()
}

/// A build without a release version: `BAMF_VERSION` was not set (contract section 1).
fn is_development(version: &Version) -> bool {
    version.pre.as_str() == "dev"
}

fn unknown_api() -> String {
    "the API does not report its version, and an agent must not be newer than its API: set update.assume_api_version \
     (or pass --assume-api-version) to the version that the API runs"
        .to_owned()
}

/// "the message names both versions and the order API → agents → CLI"
fn newer(wanted: &Version, api: &Version) -> String {
    format!(
        "{wanted} is newer than the API, which runs {api}: update the API first, then the agents, then the CLI (API → agents → CLI)"
    )
}

/// Says why nothing was found where only pre-releases are left out.
fn prerelease_hint(facts: &Facts) -> &'static str {
    let any_prerelease = facts.listing.iter().flatten().any(|version| !version.pre.is_empty());
    if any_prerelease && !facts.allow.prerelease { " (pre-releases need --allow-prerelease)" } else { "" }
}

#[cfg(test)]
mod tests;
