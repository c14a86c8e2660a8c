//! `update`, `rollback`, `history`, `pin`, `unpin` and `verify`: options in, one outcome out.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use semver::Version;

use super::output::Progress;
use super::{Call, Failed, Result, arguments, output};
use crate::clock;
use crate::config::{self, Config};
use crate::exit::{Exit, Reason};
use crate::update::plan::Allow;
use crate::update::site::{Place, Site};
use crate::update::state_dir::check_file;
use crate::update::trust::{self, Expected, TrustedKeys};
use crate::update::{self, Ending, Event, Failure, Outcome, Request, Updater, Wish};

pub(super) async fn update(call: &Call, options: arguments::Update) -> Result {
    let json = options.json;
    let outcome = match check_place(&options.place).and_then(|()| request(&options)) {
        Ok(request) => match prepare(call, &options.place, request.check).await {
            Ok((config, site)) => {
                let mut teller = Teller::new(json);
                let mut tell = |event: &Event| teller.tell(event);
                let outcome = Updater::new(&config, &call.build, &site, &mut tell).update(&request).await;
                teller.finish();
                outcome
            }
            Err(failure) => Outcome::new(None).failed(failure),
        },
        Err(failed) => return misused(failed, json),
    };
    Ok(report(&outcome, json))
}

pub(super) async fn rollback(call: &Call, options: arguments::Rollback) -> Result {
    if let Err(failed) = check_place(&options.place) {
        return misused(failed, options.json);
    }
    let outcome = match prepare(call, &options.place, false).await {
        Ok((config, site)) => {
            let mut teller = Teller::new(options.json);
            let mut tell = |event: &Event| teller.tell(event);
            Updater::new(&config, &call.build, &site, &mut tell).rollback(options.no_restart, &asker()).await
        }
        Err(failure) => Outcome::new(None).failed(failure),
    };
    Ok(report(&outcome, options.json))
}

pub(super) fn history(call: &Call, options: &arguments::History) -> Result {
    check_place(&options.place)?;
    let records = update::records(&state_dir(call, &options.place)).map_err(failed)?;
    if options.json {
        output::json(&records);
        return Ok(Exit::Done);
    }
    if records.is_empty() {
        output::line("nothing was installed by the updater yet");
    }
    for record in &records {
        let version = |version: &Option<String>| version.clone().unwrap_or_else(|| "?".into());
        let (from, to) = (version(&record.from), version(&record.to));
        output::line(format!(
            "{}  {:<8} {from} -> {to}  {:<12} by {}",
            record.at, record.action, record.outcome, record.by
        ));
        output::line(format!("    {}", record.message));
    }
    Ok(Exit::Done)
}

pub(super) async fn pin(call: &Call, version: Option<&str>, place: &arguments::Place) -> Result {
    check_place(place)?;
    let version = match version {
        Some(text) => parse_version(text)?,
        None => {
            let site = Site::find(self::place(call, place)).await;
            let installed = update::installed_version(&site, &call.build).await.map_err(failed)?;
            installed.ok_or_else(|| Failed {
                exit: Exit::Failed,
                message: "the installed binary does not say its version: name one, `bamf-agent pin 1.2.0`".into(),
            })?
        }
    };
    update::pin(&self::place(call, place), &version, &asker()).map_err(failed)?;
    output::line(format!("pinned to {version}; `bamf-agent unpin` follows the API again"));
    Ok(Exit::Done)
}

pub(super) fn unpin(call: &Call, place: &arguments::Place) -> Result {
    check_place(place)?;
    match update::unpin(&self::place(call, place)).map_err(failed)? {
        Some(version) => output::line(format!("no longer pinned to {version}")),
        None => output::line("nothing was pinned"),
    }
    Ok(Exit::Done)
}

pub(super) fn verify(call: &Call, options: &arguments::Verify) -> Result {
    let configured = config::load_trust(&call.overrides, &call.environment).map_err(|problems| Failed {
        exit: Exit::Config,
        message: problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
    })?;
    let distrust = |error: trust::Error| failed(Failure::new(error.reason(), &error));
    let keys = TrustedKeys::new(&configured.trusted_keys, configured.required_signatures).map_err(distrust)?;
    let text = read_small(&options.checksums, trust::MAX_CHECKSUMS_BYTES)?.ok_or_else(|| {
        failed(Failure::because(Reason::NotFound, format!("there is no {}", options.checksums.display())))
    })?;
    let mut signatures = Vec::new();
    for name in keys.signature_names() {
        signatures.extend(read_small(&options.checksums.with_file_name(name), trust::MAX_SIGNATURE_BYTES)?);
    }
    let tag = options.tag.as_deref().map(parse_version).transpose()?;
    let expected = tag.as_ref().map_or(Expected::Any, Expected::Version);
    let signed = trust::verify_checksums(&keys, expected, &text, &signatures).map_err(distrust)?;
    for path in &options.files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(path).map_err(|error| Failed {
            exit: Exit::Disk,
            message: format!("cannot open {}: {error}", path.display()),
        })?;
        let verified = signed.accept(&name, file).map_err(distrust)?;
        output::line(format!("{}: authentic, of release {}", path.display(), verified.tag()));
    }
    Ok(Exit::Done)
}

/// The configuration that the running service lives by, and where it is installed.
///
/// Who may not read the configuration is told what he lacks, not what is wrong with a file that he cannot see; but not
/// to become root where root could not do it either.
async fn prepare(
    call: &Call,
    place: &arguments::Place,
    only_look: bool,
) -> std::result::Result<(Config, Site), Failure> {
    let site = Site::find(self::place(call, place)).await;
    let service = call.as_service(&site);
    if !only_look && !place.user && !Uid::effective().is_root() {
        update::check_ownership(&site, service.environment.is_kubernetes()).await?;
        return Err(Failure::because(
            Reason::NotPermitted,
            "replacing the installed agent needs root: run the command with sudo",
        ));
    }
    let loaded = service.load().map_err(|failed| Failure::because(Reason::ConfigInvalid, failed.message))?;
    // It names the keys that are trusted, so it must be nobody else's to write.
    if let Some(file) = &loaded.config.file {
        check_file(file).map_err(|error| Failure::new(Reason::ConfigInvalid, &error))?;
    }
    for warning in &loaded.warnings {
        tracing::debug!("{warning}");
    }
    Ok((loaded.config, site))
}

/// Root's own service manager is never the one that runs the agent; `sudo` before a command for one's own is a slip.
///
/// # Errors
/// `--user` as root: a usage error.
pub(super) fn check_place(wanted: &arguments::Place) -> Result<()> {
    if wanted.user && Uid::effective().is_root() {
        let message = "--user means a unit of your own service manager: run the command as the user whose agent it is, \
                       without sudo, or leave --user out for the system's unit";
        return Err(Failed { exit: Exit::Usage, message: message.into() });
    }
    Ok(())
}

/// Which installation the command line means.
fn place(call: &Call, wanted: &arguments::Place) -> Place {
    if !wanted.user {
        return Place::system(&wanted.unit);
    }
    let home = || PathBuf::from(call.environment.get("HOME").unwrap_or("/"));
    // XDG base directory specification: a path that is relative "should be considered invalid and ignored".
    let configured = call.environment.get("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state_home = configured.unwrap_or_else(|| home().join(".local/state"));
    Place::user(&wanted.unit, &state_home)
}

/// Where the updater of the installation keeps its files.
pub(super) fn state_dir(call: &Call, wanted: &arguments::Place) -> PathBuf {
    place(call, wanted).state_dir
}

fn request(options: &arguments::Update) -> Result<Request> {
    let version = |text: &Option<String>| text.as_deref().map(parse_version).transpose();
    Ok(Request {
        wish: Wish {
            version: version(&options.version)?,
            assume_api_version: version(&options.assume_api_version)?,
            allow: Allow {
                downgrade: options.allow_downgrade,
                prerelease: options.allow_prerelease,
                force: options.force,
            },
        },
        check: options.check,
        dry_run: options.dry_run,
        no_restart: options.no_restart,
        unattended: options.unattended.then(clock::local_moment),
        source: options.source.clone(),
        by: asker(),
    })
}

fn parse_version(text: &str) -> Result<Version> {
    Version::parse(text.strip_prefix('v').unwrap_or(text)).map_err(|error| Failed {
        exit: Exit::Usage,
        message: format!("{text:?} is not a version such as 1.2.0: {error}"),
    })
}

/// Who asks, for the history: the person behind sudo where there is one.
fn asker() -> String {
    let uid = Uid::current();
    let name = User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    if uid.is_root() { login_user().map_or(name, |login| format!("{login} as root")) } else { name }
}

/// The login that the process belongs to (audit's loginuid), which sudo does not change.
fn login_user() -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    let uid: u32 = text.trim().parse().ok().filter(|uid| !matches!(*uid, 0 | u32::MAX))?;
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name)
}

fn read_small(path: &Path, cap: usize) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let failed = |error: std::io::Error| Failed {
        exit: Exit::Disk,
        message: format!("cannot read {}: {error}", path.display()),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(cap as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

pub(super) fn failed(failure: Failure) -> Failed {
    Failed { exit: failure.reason.exit(), message: failure.message }
}

/// A command line whose values make no sense: with `--json` that is an outcome like any other.
fn misused(failed: Failed, json: bool) -> Result {
    if !json {
        return Err(failed);
    }
    let outcome = Outcome::new(None).ended(Ending::Refused, failed.exit, failed.message);
    Ok(report(&outcome, json))
}

/// Says how it ended: JSON or a sentence on standard output, what went wrong on standard error.
fn report(outcome: &Outcome, json: bool) -> Exit {
    if json {
        output::json(outcome);
    } else if let Some(reason) = outcome.reason {
        output::error(format!("{} ({reason})", outcome.message));
    } else {
        output::line(&outcome.message);
    }
    outcome.exit
}

/// Tells a person what happens, on standard error.
struct Teller {
    quiet: bool,
    progress: Option<Progress>,
}

impl Teller {
    const fn new(json: bool) -> Self {
        Self { quiet: json, progress: None }
    }

    fn tell(&mut self, event: &Event) {
        // A script that reads the JSON still wants its log to have what the JSON has no field for.
        if self.quiet && !matches!(event, Event::Warning(_)) {
            return;
        }
        if let Event::Download { done, total } = event {
            if let Some(total) = total {
                self.progress.get_or_insert_with(Progress::new).update(*done, *total);
            }
            return;
        }
        self.finish();
        match event {
            Event::Message(text) => output::note(text),
            Event::Warning(text) => output::note(format!("warning: {text}")),
            Event::Download { .. } => {}
        }
    }

    fn finish(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
    }
}

impl Call {
    /// The same call with what the unit gives the service, where the command line says nothing else.
    pub(super) fn as_service(&self, site: &Site) -> Self {
        let mut overrides = self.overrides.clone();
        let mut environment = self.environment.clone();
        let line = site.arguments().iter().map(OsString::from);
        if let Ok(live) = arguments::parse(line) {
            overrides.config = overrides.config.or(live.config);
            overrides.runtime_dir = overrides.runtime_dir.or(live.runtime_dir);
        }
        environment.adopt(site.environment());
        Self { build: self.build.clone(), overrides, environment }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_with_or_without_the_v_and_anything_else_is_a_usage_error() {
        assert_eq!(parse_version("v1.2.0").unwrap(), Version::new(1, 2, 0));
        for text in ["", "latest", "1.2", "vv1.2.0", "1.2.0; rm"] {
            assert_eq!(parse_version(text).unwrap_err().exit, Exit::Usage, "{text}");
        }
    }
}
