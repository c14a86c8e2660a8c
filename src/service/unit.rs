//! What a service manager says about a unit, from D-Bus properties or from `systemctl show`: the same words in both.
//!
//! The words are those of systemctl(1) and org.freedesktop.systemd1(5). Words that a later systemd may add are kept as
//! they are rather than refused.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The properties that are asked for, under the names that both interfaces use.
pub const PROPERTIES: &[&str] = &[
    "LoadState",
    "ActiveState",
    "SubState",
    "FragmentPath",
    "MainPID",
    "NRestarts",
    "Result",
    "User",
    "ExecStart",
    "Environment",
    "EnvironmentFiles",
    "Type",
    "ExecMainStartTimestampMonotonic",
    "ActiveEnterTimestampMonotonic",
    "NFileDescriptorStore",
];

/// A unit's state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    /// The manager has a unit file for it.
    pub loaded: bool,
    /// Whether it runs.
    pub active: Active,
    /// The finer state, e.g. `running` or `auto-restart`.
    pub sub_state: String,
    /// Its main process.
    pub main_pid: Option<u32>,
    /// Automatic restarts since the last start by hand.
    pub restarts: u32,
    /// When the latest main process was started, in systemd's own clock; 0 if never.
    pub main_started: u64,
    /// When the unit became active last, in systemd's own clock; 0 if never.
    pub entered_active: u64,
    /// Descriptors that are kept for the next main process to take over.
    pub stored: u32,
    /// Why it ended last, e.g. `success`, `exit-code`, `watchdog`, `start-limit-hit`.
    pub result: String,
    /// The program of the first `ExecStart=`.
    pub program: Option<PathBuf>,
    /// The unit file.
    pub fragment: Option<PathBuf>,
    /// `User=`; empty means the manager's own user.
    pub user: String,
    /// `Type=`, e.g. `notify`.
    pub kind: String,
    /// The whole command line of the first `ExecStart=`; empty where only `systemctl` could be asked.
    pub arguments: Vec<String>,
    /// `Environment=`, as `NAME=value`; empty where only `systemctl` could be asked.
    pub environment: Vec<String>,
    /// The files of `EnvironmentFile=`; empty where only `systemctl` could be asked.
    pub environment_files: Vec<PathBuf>,
}

/// Stands for the command line among the properties; D-Bus has it inside `ExecStart`.
pub(super) const ARGUMENTS: &str = "ExecStart.argv";
/// Separates what D-Bus has as a list; systemd accepts it neither in an argument nor in a path of a unit file.
pub(super) const SEPARATOR: char = '\u{1e}';

/// `ActiveState`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Active {
    /// Started and running.
    Active,
    /// Being started, the wait before an automatic restart included.
    Activating,
    /// Being stopped.
    Deactivating,
    /// Reloading its configuration while it runs.
    Reloading,
    /// Not running.
    #[default]
    Inactive,
    /// Ended with an error, and will not be started again by itself.
    Failed,
    /// A word that this code does not know.
    Other(String),
}

impl Active {
    /// Reads the manager's word.
    #[must_use]
    pub fn from_word(word: &str) -> Self {
        match word {
            "active" => Self::Active,
            "activating" => Self::Activating,
            "deactivating" => Self::Deactivating,
            "reloading" | "refreshing" => Self::Reloading,
            "inactive" | "" => Self::Inactive,
            "failed" => Self::Failed,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The manager's word.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Active => "active",
            Self::Activating => "activating",
            Self::Deactivating => "deactivating",
            Self::Reloading => "reloading",
            Self::Inactive => "inactive",
            Self::Failed => "failed",
            Self::Other(word) => word,
        }
    }

    /// It runs: active, or reloading while it runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Active | Self::Reloading)
    }
}

impl Unit {
    /// Builds a unit from properties as texts; what is missing is empty.
    #[must_use]
    pub fn from_properties(properties: &BTreeMap<String, String>) -> Self {
        let text = |name: &str| properties.get(name).cloned().unwrap_or_default();
        let path = |name: &str| Some(text(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self {
            loaded: text("LoadState") == "loaded",
            active: Active::from_word(&text("ActiveState")),
            sub_state: text("SubState"),
            main_pid: text("MainPID").parse().ok().filter(|pid| *pid != 0),
            restarts: text("NRestarts").parse().unwrap_or(0),
            main_started: text("ExecMainStartTimestampMonotonic").parse().unwrap_or(0),
            entered_active: text("ActiveEnterTimestampMonotonic").parse().unwrap_or(0),
            stored: text("NFileDescriptorStore").parse().unwrap_or(0),
            result: text("Result"),
            program: list(&text("ExecStart")).next().map(PathBuf::from),
            fragment: path("FragmentPath"),
            user: text("User"),
            kind: text("Type"),
            arguments: list(&text(ARGUMENTS)).collect(),
            environment: list(&text("Environment")).collect(),
            environment_files: list(&text("EnvironmentFiles")).map(PathBuf::from).collect(),
        }
    }

    /// It runs, or its process is there and not ready yet.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.active.is_running() || (self.active == Active::Activating && self.main_pid.is_some())
    }

    /// The main process has ended, and systemd is about to start another one by itself (`Restart=`).
    #[must_use]
    pub fn waits_for_restart(&self) -> bool {
        // `auto-restart-queued` since systemd 254.
        self.sub_state.starts_with("auto-restart")
    }

    /// Builds a unit from the output of `systemctl show --property=…`.
    #[must_use]
    pub fn from_show(output: &str) -> Self {
        let mut properties: BTreeMap<String, String> =
            output.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        // Lists are printed quoted and escaped for people; what cannot be read back is not guessed.
        properties.remove("Environment");
        properties.remove("EnvironmentFiles");
        if let Some(start) = properties.get_mut("ExecStart") {
            *start = program_of(start).unwrap_or_default();
        }
        Self::from_properties(&properties)
    }
}

fn list(text: &str) -> impl Iterator<Item = String> {
    text.split(SEPARATOR).filter(|entry| !entry.is_empty()).map(str::to_owned)
}

/// The program in `{ path=/usr/bin/x ; argv[]=… }`. systemd refuses `;` as an argument of its own unescaped, so " ; " ends it.
fn program_of(shown: &str) -> Option<String> {
    let (_, rest) = shown.split_once("path=")?;
    rest.split_once(" ; ").map(|(path, _)| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Type=notify\nMainPID=812\nNRestarts=2\nExecMainStartTimestampMonotonic=41000000\n\
        ActiveEnterTimestampMonotonic=42000000\nNFileDescriptorStore=2\nResult=success\nUser=bamf\n\
        ExecStart={ path=/usr/local/bin/bamf-agent ; argv[]=/usr/local/bin/bamf-agent run ; ignore_errors=no ; pid=812 }\n\
        LoadState=loaded\nActiveState=active\nSubState=running\nFragmentPath=/etc/systemd/system/bamf-agent.service\n";

    #[test]
    fn what_systemctl_shows_is_read() {
        let unit = Unit::from_show(SHOWN);
        let expected = Unit {
            loaded: true,
            active: Active::Active,
            sub_state: "running".into(),
            main_pid: Some(812),
            restarts: 2,
            main_started: 41_000_000,
            entered_active: 42_000_000,
            stored: 2,
            result: "success".into(),
            program: Some("/usr/local/bin/bamf-agent".into()),
            fragment: Some("/etc/systemd/system/bamf-agent.service".into()),
            user: "bamf".into(),
            kind: "notify".into(),
            ..Unit::default()
        };
        assert_eq!(unit, expected);
    }

    #[test]
    fn a_unit_that_does_not_exist_has_no_process_and_no_program() {
        let unit = Unit::from_show("MainPID=0\nLoadState=not-found\nActiveState=inactive\nExecStart=\nFragmentPath=\n");
        assert_eq!(unit, Unit::default());
    }

    #[test]
    fn a_unit_between_two_starts_is_not_up_and_one_that_is_not_ready_yet_is() {
        let unit = |shown: &str| Unit::from_show(&format!("LoadState=loaded\n{shown}"));
        let waiting = unit("ActiveState=activating\nSubState=auto-restart\nMainPID=0\n");
        assert!(waiting.waits_for_restart() && !waiting.is_up());
        assert!(unit("ActiveState=activating\nSubState=auto-restart-queued\nMainPID=0\n").waits_for_restart());
        let starting = unit("ActiveState=activating\nSubState=start\nMainPID=812\n");
        assert!(starting.is_up() && !starting.waits_for_restart());
        assert!(!unit("ActiveState=deactivating\nSubState=stop-sigterm\nMainPID=812\n").is_up());
    }

    #[test]
    fn broken_numbers_and_unknown_words_are_not_taken_for_something_else() {
        let unit = Unit::from_show("MainPID=-1\nNRestarts=many\nActiveState=maintenance\nnoise\n");
        assert_eq!((unit.main_pid, unit.restarts), (None, 0));
        assert_eq!(unit.active, Active::Other("maintenance".into()));
        assert!(!unit.active.is_running());
    }

    #[test]
    fn every_word_is_written_as_it_was_read() {
        for word in ["active", "activating", "deactivating", "reloading", "inactive", "failed", "maintenance"] {
            assert_eq!(Active::from_word(word).word(), word);
        }
    }
}
