//! From a chosen version to a verified file: signatures, checksums, download, hash.

use std::time::Instant;

use semver::Version;

use super::outcome::{Failure, Outcome};
use super::source::{Asset, Source};
use super::state_dir::{self, StateDir};
use super::trust::{self, Expected, SignedChecksums, TrustedKeys, Verified};
use super::{Event, Updater};
use crate::exit::Reason;
use crate::telemetry::build::architecture;

/// Assumed size of a binary whose size is not known before the download: twice what a release has today.
const ASSUMED_BINARY_BYTES: u64 = 32 << 20;

/// The name of this machine's binary in a release (contract section 4, "Release layout").
pub(super) fn asset_name() -> String {
    format!("bamf-agent-{}-{}", std::env::consts::OS, architecture())
}

/// Fetches and verifies; nothing but the staging directory is written.
pub(super) async fn fetch(
    updater: &mut Updater<'_>,
    version: &Version,
    source: &Source,
    state: &StateDir,
    outcome: &mut Outcome,
) -> Result<Verified, Failure> {
    let config = &updater.config.update;
    let keys = TrustedKeys::new(&config.trusted_keys, config.required_signatures).map_err(distrust)?;
    updater.tell(&Event::Message(format!("checking the signatures of {version}")));
    let signed = signed_checksums(&keys, version, source).await?;
    let name = asset_name();
    let sha256 = signed.sha256_of(&name).ok_or_else(|| {
        Failure::because(
            Reason::WrongPlatform,
            format!("release {} has no {name}: it was not built for this machine", signed.tag()),
        )
    })?;
    let staging = state.staging();
    state_dir::check_space(&[(&staging, ASSUMED_BINARY_BYTES)]).map_err(no_room)?;
    let began = Instant::now();
    let tag = signed.tag();
    let asset = Asset { tag: &tag, name: &name, sha256 };
    let mut progress = |done: u64, total: Option<u64>| updater.tell(&Event::Download { done, total });
    let download = source.download(&asset, &staging, &mut progress).await;
    let download = download.map_err(|error| Failure::new(error.reason(), &error))?;
    outcome.downloaded_bytes = Some(download.fetched_bytes);
    outcome.download_ms = u64::try_from(began.elapsed().as_millis()).ok();
    signed.accept(&name, download.file).map_err(distrust)
}

async fn signed_checksums(keys: &TrustedKeys, version: &Version, source: &Source) -> Result<SignedChecksums, Failure> {
    let tag = trust::tag(version);
    let failed = |error: super::source::Error| Failure::new(error.reason(), &error);
    let text = source.fetch_small(&tag, trust::CHECKSUMS, trust::MAX_CHECKSUMS_BYTES).await.map_err(failed)?;
    let Some(text) = text else {
        return Err(Failure::because(
            Reason::NotFound,
            format!("{source} has no release {tag}, or no checksums.txt in it: nothing without one is installed"),
        ));
    };
    let mut signatures = Vec::new();
    for name in keys.signature_names() {
        signatures.extend(source.fetch_small(&tag, &name, trust::MAX_SIGNATURE_BYTES).await.map_err(failed)?);
        if signatures.len() > keys.required() {
            break;
        }
    }
    trust::verify_checksums(keys, Expected::Version(version), &text, &signatures).map_err(distrust)
}

fn distrust(error: trust::Error) -> Failure {
    Failure::new(error.reason(), &error)
}

/// What the state directory has against it.
pub(super) fn no_room(error: state_dir::Error) -> Failure {
    let reason = match &error {
        state_dir::Error::NoSpace { .. } => Reason::NoSpace,
        state_dir::Error::Disk(disk) => disk_reason(disk),
        state_dir::Error::NotADirectory { .. } | state_dir::Error::Owner { .. } | state_dir::Error::Writable { .. } => {
            Reason::NotWritable
        }
    };
    Failure::new(reason, &error)
}

/// The reason word of a failed disk operation.
pub(super) fn disk_reason(error: &crate::durable::Error) -> Reason {
    if error.is_full() {
        Reason::NoSpace
    } else if error.is_not_writable() {
        Reason::NotWritable
    } else {
        Reason::DiskError
    }
}
