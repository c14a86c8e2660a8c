//! Asks what [`super::plan`] wants to know, until it has decided.

use semver::Version;

use super::outcome::{Failure, Outcome};
use super::plan::{self, Allow, Facts, Plan, Step};
use super::source::Source;
use super::trust;
use super::{Event, Updater};
use crate::exit::Reason;
use crate::http::{self, Purpose};
use crate::platform::version::{self, Settled};

/// What the operator asked for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `--version`
    pub version: Option<Version>,
    /// `--assume-api-version`, else the configured one.
    pub assume_api_version: Option<Version>,
    /// The three flags.
    pub allow: Allow,
}

/// What stands in the journal about versions.
pub(super) struct Standing {
    pub(super) pinned: Option<Version>,
    pub(super) known_bad: Vec<Version>,
}

/// Finds out the API's version and what the source has, and decides.
pub(super) async fn choose(
    updater: &mut Updater<'_>,
    wish: &Wish,
    installed: Version,
    standing: Standing,
    source: &Source,
    outcome: &mut Outcome,
) -> Result<Plan, Failure> {
    let api = api_version(updater, wish).await?;
    outcome.api_version = api.as_ref().map(ToString::to_string);
    let mut facts = Facts {
        installed,
        api,
        requested: wish.version.clone(),
        pinned: standing.pinned,
        known_bad: standing.known_bad,
        allow: wish.allow,
        probed: None,
        listing: None,
    };
    let failed = |error: super::source::Error| Failure::new(error.reason(), &error);
    loop {
        match plan::next(&facts) {
            Step::Done(plan) => return Ok(plan),
            Step::Probe(version) => {
                // The signature rather than the list: it is the smaller of the two, and a release without one is none.
                let name = trust::CHECKSUMS_SIGNATURE;
                let found = source.fetch_small(&trust::tag(&version), name, trust::MAX_SIGNATURE_BYTES).await;
                facts.probed = Some(found.map_err(failed)?.is_some());
            }
            Step::List => facts.listing = Some(source.list_releases().await.map_err(failed)?),
        }
    }
}

/// The API's version, reported or assumed.
async fn api_version(updater: &mut Updater<'_>, wish: &Wish) -> Result<Option<Version>, Failure> {
    let config = updater.config;
    let client = http::client(&config.network, Purpose::Platform, &updater.build.version.to_string())
        .map_err(|error| Failure::new(Reason::ConfigInvalid, &error))?;
    let found =
        version::discover(&client, &config.platform_url).await.map_err(|error| Failure::new(error.reason(), &error))?;
    let assumed = wish.assume_api_version.as_ref().or(config.update.assume_api_version.as_ref());
    let Settled { version, warning, .. } = version::settle(found, assumed);
    if let Some(warning) = warning {
        updater.tell(&Event::Warning(warning));
    }
    Ok(version)
}
