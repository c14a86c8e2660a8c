//! From what was found to the steps that remove it: pure, so that the order can be read and tested.

use std::fmt;
use std::path::{Path, PathBuf};

use super::STATE_DIRECTORY;
use crate::update::ownership::Owner;
use crate::update::site::UNIT;

/// What lies on the machine. Every path in it exists.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The binary, links resolved; it alone may be gone.
    pub(super) installed: PathBuf,
    /// Who put it there.
    pub(super) owner: Owner,
    /// systemd knows the agent's unit, and it runs this binary.
    pub(super) has_unit: bool,
    /// Unit files that no package owns, the agent's first.
    pub(super) units: Vec<PathBuf>,
    /// Directories of drop-ins.
    pub(super) drop_ins: Vec<PathBuf>,
    /// Other files that came with the agent: links to it, its user's definition, staged and kept binaries.
    pub(super) files: Vec<PathBuf>,
    /// The updater's directory.
    pub(super) state_dir: Option<PathBuf>,
    /// What install.sh has set aside, with the name that it had: the Go agent's binary and unit.
    pub(super) set_aside: Vec<(PathBuf, PathBuf)>,
    /// Another unit of the agent's name is left below, a package's.
    pub(super) has_other_unit: bool,
    /// Configuration files.
    pub(super) config: Vec<PathBuf>,
    /// The directory of the identity.
    pub(super) data_dir: Option<PathBuf>,
    /// Files of the identity, where its directory may hold more.
    pub(super) identity: Vec<PathBuf>,
    /// Directories of the identity, where its directory may hold more.
    pub(super) identity_trees: Vec<PathBuf>,
    /// The service's own user, made for it.
    pub(super) user: Option<String>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Sessions are drained and the platform is told.
    Stop(String),
    /// They do not start at boot any more.
    Disable(Vec<String>),
    /// systemd reads its files again.
    Reload,
    /// A file.
    Remove(PathBuf),
    /// A directory with what is in it.
    RemoveTree(PathBuf),
    /// A directory, if nothing is in it.
    RemoveIfEmpty(PathBuf),
    /// What was set aside gets its name again.
    PutBack {
        /// Where it lies.
        kept: PathBuf,
        /// Where it belongs.
        place: PathBuf,
    },
    /// The service's user.
    RemoveUser(String),
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop(unit) => write!(out, "stopped {unit}"),
            Self::Disable(units) => write!(out, "disabled {}", units.join(", ")),
            Self::Reload => out.write_str("reloaded systemd"),
            Self::Remove(path) | Self::RemoveTree(path) | Self::RemoveIfEmpty(path) => {
                write!(out, "removed {}", path.display())
            }
            Self::PutBack { place, .. } => write!(out, "put {} back, as it was before", place.display()),
            Self::RemoveUser(name) => write!(out, "removed the user {name}"),
        }
    }
}

/// What to do, in this order.
pub(super) fn plan(found: &Found, purge: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let remove = |paths: &[PathBuf]| paths.iter().cloned().map(Step::Remove).collect::<Vec<_>>();
    if found.has_unit {
        steps.push(Step::Stop(UNIT.to_owned()));
    }
    if !found.units.is_empty() {
        let names = found.units.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        steps.push(Step::Disable(names.collect()));
        steps.extend(remove(&found.units));
    }
    let (binaries, others): (Vec<_>, Vec<_>) =
        found.set_aside.iter().cloned().partition(|(_, place)| *place == found.installed);
    let put_back = |(kept, place)| Step::PutBack { kept, place };
    steps.extend(others.into_iter().map(put_back));
    if purge {
        steps.extend(found.drop_ins.iter().cloned().map(Step::RemoveTree));
    }
    if found.has_unit || !found.units.is_empty() {
        steps.push(Step::Reload);
    }
    if purge {
        steps.extend(purged(found));
    }
    steps.extend(remove(&found.files));
    // Few machines have this one; the others are systemd's own.
    let made = found.files.iter().filter_map(|path| path.parent()).find(|above| above.ends_with("etc/sysusers.d"));
    steps.extend(made.map(|directory| Step::RemoveIfEmpty(directory.to_owned())));
    steps.extend(found.state_dir.clone().map(Step::RemoveTree));
    if let Some(name) = found.user.clone().filter(|_| purge && found.set_aside.is_empty() && !found.has_other_unit) {
        steps.push(Step::RemoveUser(name));
    }
    // Last: without it nobody could go on.
    if binaries.is_empty() {
        steps.push(Step::Remove(found.installed.clone()));
        steps.extend(own_prefix(&found.installed));
    } else {
        steps.extend(binaries.into_iter().map(put_back));
    }
    steps
}

fn purged(found: &Found) -> Vec<Step> {
    let mut steps: Vec<Step> = found.config.iter().cloned().map(Step::Remove).collect();
    let above = found.config.first().and_then(|path| path.parent());
    steps.extend(above.map(|directory| Step::RemoveIfEmpty(directory.to_owned())));
    match &found.data_dir {
        Some(directory) if directory == Path::new(STATE_DIRECTORY) => steps.push(Step::RemoveTree(directory.clone())),
        Some(directory) => {
            steps.extend(found.identity.iter().cloned().map(Step::Remove));
            steps.extend(found.identity_trees.iter().cloned().map(Step::RemoveTree));
            steps.push(Step::RemoveIfEmpty(directory.clone()));
        }
        None => {}
    }
    steps
}

/// The directories of a prefix of the agent's own, as `install.sh --prefix /opt/bamf` makes them.
fn own_prefix(installed: &Path) -> Vec<Step> {
    let shared = ["/", "/bin", "/usr", "/usr/bin", "/usr/local", "/usr/local/bin", "/opt", "/srv", "/sbin"];
    let directories = installed.ancestors().skip(1).take(2);
    let own = directories.take_while(|directory| !shared.iter().any(|shared| *directory == Path::new(shared)));
    own.map(|directory| Step::RemoveIfEmpty(directory.to_owned())).collect()
}

/// What stays although it belongs to the agent, to be told.
pub(super) fn left(found: &Found, purge: bool) -> Vec<PathBuf> {
    if purge {
        return Vec::new();
    }
    found.config.iter().chain(&found.drop_ins).chain(&found.data_dir).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        Found {
            installed: "/usr/local/bin/bamf-agent".into(),
            has_unit: true,
            units: vec!["/etc/systemd/system/bamf-agent.service".into()],
            drop_ins: vec!["/etc/systemd/system/bamf-agent.service.d".into()],
            files: vec!["/etc/sysusers.d/bamf-agent.conf".into()],
            state_dir: Some("/var/lib/bamf-agent-updater".into()),
            config: vec!["/etc/bamf/agent.yaml".into(), "/etc/bamf/agent.env".into()],
            data_dir: Some(STATE_DIRECTORY.into()),
            user: Some("bamf".into()),
            ..Found::default()
        }
    }

    fn told(found: &Found, purge: bool) -> Vec<String> {
        plan(found, purge).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_service_ends_first_and_the_binary_goes_last() {
        for purge in [false, true] {
            let steps = plan(&found(), purge);
            assert_eq!(steps[0], Step::Stop(UNIT.to_owned()));
            assert_eq!(steps.last(), Some(&Step::Remove("/usr/local/bin/bamf-agent".into())));
        }
    }

    #[test]
    fn configuration_identity_drop_ins_and_the_user_go_only_when_they_are_asked_for() {
        let kept = told(&found(), false).join("\n");
        for name in ["agent.yaml", "agent.env", "/var/lib/bamf-agent\n", "service.d", "the user"] {
            assert!(!kept.contains(name), "{name} in {kept}");
        }
        assert_eq!(left(&found(), false).len(), 4);
        let purged = told(&found(), true).join("\n");
        for name in ["agent.yaml", "agent.env", "/var/lib/bamf-agent\n", "service.d", "the user bamf"] {
            assert!(purged.contains(name), "{name} not in {purged}");
        }
        assert!(left(&found(), true).is_empty());
    }

    #[test]
    fn of_a_directory_that_may_hold_more_only_the_identity_goes() {
        let elsewhere =
            Found { data_dir: Some("/srv/data".into()), identity: vec!["/srv/data/agent.key".into()], ..found() };
        let steps = plan(&elsewhere, true);
        assert!(steps.contains(&Step::Remove("/srv/data/agent.key".into())));
        assert!(steps.contains(&Step::RemoveIfEmpty("/srv/data".into())));
        assert!(!steps.contains(&Step::RemoveTree("/srv/data".into())));
    }

    #[test]
    fn what_was_set_aside_comes_back_and_keeps_its_user() {
        let place = PathBuf::from("/usr/local/bin/bamf-agent");
        let kept = PathBuf::from("/usr/local/bin/bamf-agent.go-agent");
        let before = Found { set_aside: vec![(kept.clone(), place.clone())], ..found() };
        let steps = plan(&before, true);
        assert_eq!(steps.last(), Some(&Step::PutBack { kept, place: place.clone() }));
        assert!(!steps.contains(&Step::Remove(place)));
        assert!(!steps.contains(&Step::RemoveUser("bamf".into())));
        let package = Found { has_other_unit: true, ..found() };
        assert!(!plan(&package, true).contains(&Step::RemoveUser("bamf".into())));
    }

    #[test]
    fn directories_of_an_own_prefix_go_and_shared_ones_stay() {
        let of = |path: &str| told(&Found { installed: path.into(), ..Found::default() }, false);
        assert_eq!(
            of("/opt/bamf/bin/bamf-agent"),
            ["removed /opt/bamf/bin/bamf-agent", "removed /opt/bamf/bin", "removed /opt/bamf"]
        );
        assert_eq!(of("/usr/local/bin/bamf-agent"), ["removed /usr/local/bin/bamf-agent"]);
    }
}
