//! Finds what belongs to the agent on this machine.

use std::path::{Path, PathBuf};

use nix::unistd::User;

use super::plan::Found;
use super::{Request, STATE_DIRECTORY, exists};
use crate::durable;
use crate::telemetry::Build;
use crate::update::Failure;
use crate::update::ownership::Owner;
use crate::update::ownership::probe::Probe;
use crate::update::site::Site;
use crate::update::swap::Paths;

/// Where operators and install.sh put unit files.
const UNITS: &str = "/etc/systemd/system";
/// Where packages put them.
const PACKAGED_UNITS: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];
/// The agent's, and those of unattended updates.
const UNIT_NAMES: [&str; 4] =
    ["bamf-agent.service", "bamf-agent-update.timer", "bamf-agent-update.path", "bamf-agent-update.service"];
/// By install.sh, and by the hands that follow the README.
const SYSUSERS: [&str; 2] = ["/etc/sysusers.d/bamf-agent.conf", "/usr/lib/sysusers.d/bamf-agent.conf"];
/// What install.sh adds to the names of what the Go agent leaves.
const SET_ASIDE: &str = ".go-agent";
/// Variables of the service, beside its configuration.
const ENVIRONMENT: &str = "/etc/bamf/agent.env";
/// All files that the agent writes into its data directory (contract section 3).
const IDENTITY: [&str; 7] = ["agent.crt", "agent.key", "ca.crt", "join.json", "instance.json", "relays.json", ".lock"];
/// All directories.
const IDENTITY_TREES: [&str; 3] = [".next", ".next.tmp", ".previous"];
/// The service's user.
const USER: &str = "bamf";
/// Below are users that the system made (SYS_UID_MAX of login.defs(5), where nothing else is said).
const FIRST_PERSON: u32 = 1000;

pub(super) async fn look(site: &Site, build: &Build, request: &Request) -> Result<Found, Failure> {
    let has_unit = site.runs_ours(build).await;
    let paths = if has_unit { paths_of_unit(site)? } else { site.own_paths()? };
    let owner = Probe::default().owner(&paths.installed).await;
    let mut found = Found { has_unit, owner, ..Found::default() };
    look_for_units(&mut found).await;
    look_for_files(&mut found, &paths);
    found.state_dir = Some(site.place.state_dir.clone()).filter(|path| exists(path));
    let config = [request.config.clone(), ENVIRONMENT.into()];
    found.config = config.into_iter().filter(|path| exists(path)).collect();
    found.data_dir = Some(request.data_dir.clone()).filter(|path| exists(path));
    if request.data_dir != Path::new(STATE_DIRECTORY) {
        found.identity = existing(IDENTITY.iter().map(|name| request.data_dir.join(name)));
        found.identity_trees = existing(IDENTITY_TREES.iter().map(|name| request.data_dir.join(name)));
    }
    found.user = service_user();
    found.installed = paths.installed;
    Ok(found)
}

/// Also where the binary is gone and a copy of it runs.
fn paths_of_unit(site: &Site) -> Result<Paths, Failure> {
    site.paths().or_else(|failure| {
        let program = site.unit().and_then(|unit| unit.program.as_deref());
        program.and_then(|program| Paths::recorded(program).ok()).ok_or(failure)
    })
}

async fn look_for_units(found: &mut Found) {
    for name in UNIT_NAMES {
        let path = Path::new(UNITS).join(name);
        if !exists(&path) || Probe::default().owner(&path).await != Owner::Nobody {
            continue;
        }
        // The Go agent's own, where ours was never installed.
        if name == UNIT_NAMES[0] && !found.has_unit {
            continue;
        }
        found.units.push(path);
    }
    found.drop_ins = existing(UNIT_NAMES.iter().map(|name| Path::new(UNITS).join(format!("{name}.d"))));
    found.has_other_unit = PACKAGED_UNITS.iter().any(|directory| exists(&Path::new(directory).join(UNIT_NAMES[0])));
}

fn look_for_files(found: &mut Found, paths: &Paths) {
    let link = (paths.asked != paths.installed).then(|| paths.asked.clone());
    found.files = existing(SYSUSERS.iter().map(PathBuf::from).chain(link));
    found.files.extend(beside(&paths.installed));
    let unit = Path::new(UNITS).join(UNIT_NAMES[0]);
    for place in [unit, paths.installed.clone()] {
        let mut kept = place.clone().into_os_string();
        kept.push(SET_ASIDE);
        if exists(Path::new(&kept)) {
            found.set_aside.push((kept.into(), place));
        }
    }
}

/// Staged and kept binaries, and what a cut left of a probe or of an install.sh: all of the updater's names.
fn beside(installed: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(durable::parent(installed)).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b".bamf-agent."));
    ours.map(|entry| entry.path()).collect()
}

fn existing(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    paths.filter(|path| exists(path)).collect()
}

/// The user that `bamf-agent.sysusers` makes, and nobody who only has its name.
fn service_user() -> Option<String> {
    let user = User::from_name(USER).ok().flatten()?;
    let made_for_it = user.uid.as_raw() < FIRST_PERSON && user.dir == Path::new(STATE_DIRECTORY);
    made_for_it.then_some(user.name)
}
