//! The way to systemd without a bus: the `systemctl` program, which finds its own.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::bus::Manager;
use super::job::{Error, Verb};
use super::unit::{PROPERTIES, Unit};

/// For what does not wait for a job.
const SHORT_LIMIT: Duration = Duration::from_secs(10);
/// systemctl's messages are a line or two.
const SAID_LIMIT_CHARS: usize = 500;

/// `systemctl`, for one manager.
#[derive(Clone, Debug)]
pub struct Systemctl {
    program: PathBuf,
    /// Come before all other arguments.
    leading: Vec<OsString>,
}

impl Systemctl {
    /// The `systemctl` on the search path.
    #[must_use]
    pub fn new(manager: Manager) -> Self {
        let leading = match manager {
            Manager::System => Vec::new(),
            Manager::User => vec!["--user".into()],
        };
        Self { program: "systemctl".into(), leading }
    }

    /// The unit's present state; a unit that does not exist is not [`Unit::loaded`].
    ///
    /// # Errors
    /// Where `systemctl` cannot be run or fails.
    pub async fn show(&self, unit: &str) -> Result<Unit, Error> {
        let properties = format!("--property={}", PROPERTIES.join(","));
        let output = self.call("show", &["show", &properties, "--", unit], unit, SHORT_LIMIT).await?;
        Ok(Unit::from_show(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Runs a job and waits for its end, at most `limit`.
    ///
    /// # Errors
    /// Where it did not end with success.
    pub async fn run(&self, verb: Verb, unit: &str, limit: Duration) -> Result<(), Error> {
        self.call(verb.word(), &[verb.word(), "--job-mode=replace", "--", unit], unit, limit).await.map(drop)
    }

    /// Clears the failed state and the start limit.
    ///
    /// # Errors
    /// Whatever `systemctl` says.
    pub async fn reset_failed(&self, unit: &str) -> Result<(), Error> {
        self.call("reset-failed", &["reset-failed", "--", unit], unit, SHORT_LIMIT).await.map(drop)
    }

    /// Takes units out of what starts at boot.
    ///
    /// # Errors
    /// Whatever `systemctl` says.
    pub async fn disable(&self, units: &[String]) -> Result<(), Error> {
        let arguments: Vec<&str> = ["disable", "--"].into_iter().chain(units.iter().map(String::as_str)).collect();
        self.call("disable", &arguments, &units.join(" "), SHORT_LIMIT).await.map(drop)
    }

    /// Lets the manager read its unit files again.
    ///
    /// # Errors
    /// Whatever `systemctl` says.
    pub async fn reload(&self) -> Result<(), Error> {
        self.call("daemon-reload", &["daemon-reload"], "", SHORT_LIMIT).await.map(drop)
    }

    async fn call(
        &self,
        action: &'static str,
        arguments: &[&str],
        unit: &str,
        limit: Duration,
    ) -> Result<Output, Error> {
        let mut command = Command::new(&self.program);
        command.args(&self.leading).args(["--no-pager", "--no-ask-password"]).args(arguments);
        command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(limit, command.output())
            .await
            .map_err(|_elapsed| Error::TooSlow { action, unit: unit.to_owned(), limit })?
            .map_err(Error::NoSystemctl)?;
        if output.status.success() {
            return Ok(output);
        }
        Err(explain(action, unit, &output))
    }
}

/// systemctl(1): exit code 5 is "unit not found", 4 "insufficient privilege" (after LSB; it is not always kept to).
fn explain(action: &'static str, unit: &str, output: &Output) -> Error {
    let unit = unit.to_owned();
    match output.status.code() {
        Some(5) => return Error::NoUnit { unit },
        Some(4) => return Error::NotPermitted { action, unit },
        _ => {}
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said: String = lines.join(" ").chars().filter(|c| !c.is_control()).take(SAID_LIMIT_CHARS).collect();
    let said = if said.is_empty() { output.status.to_string() } else { said };
    Error::Systemctl { action, unit, said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A `systemctl` played by a script; run by a shell, because a file just written may be busy for execve(2).
    struct Played {
        _directory: tempfile::TempDir,
        systemctl: Systemctl,
    }

    fn played(script: &str) -> Played {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        durable::write(&path, format!("{script}\n").as_bytes(), 0o644).unwrap();
        Played { _directory: directory, systemctl: Systemctl { program: "/bin/sh".into(), leading: vec![path.into()] } }
    }

    async fn restart(script: &str, limit: Duration) -> Result<(), Error> {
        played(script).systemctl.run(Verb::Restart, "x.service", limit).await
    }

    #[tokio::test]
    async fn the_unit_is_an_argument_and_never_an_option() {
        restart("[ \"$*\" = '--no-pager --no-ask-password restart --job-mode=replace -- x.service' ]", LIMIT)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn units_are_disabled_by_name_and_files_are_read_again() {
        let units = ["a.service".to_owned(), "b.timer".to_owned()];
        let asked = |words: &str| played(&format!("[ \"$*\" = '--no-pager --no-ask-password {words}' ]"));
        asked("disable -- a.service b.timer").systemctl.disable(&units).await.unwrap();
        asked("daemon-reload").systemctl.reload().await.unwrap();
    }

    #[tokio::test]
    async fn exit_codes_and_messages_become_sentences() {
        let failed = restart("echo 'Job for x.service failed.' >&2; echo >&2; echo 'See journal.' >&2; exit 1", LIMIT);
        let text = failed.await.unwrap_err().to_string();
        assert_eq!(text, "`systemctl restart x.service` failed: Job for x.service failed. See journal.");
        assert!(matches!(restart("exit 5", LIMIT).await.unwrap_err(), Error::NoUnit { .. }));
        assert!(matches!(restart("exit 4", LIMIT).await.unwrap_err(), Error::NotPermitted { .. }));
        assert!(restart("exit 3", LIMIT).await.unwrap_err().to_string().contains("exit status: 3"));
    }

    #[tokio::test]
    async fn a_systemctl_that_hangs_is_killed_at_the_limit() {
        let error = restart("exec sleep 600", Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::TooSlow { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_machine_without_systemctl_is_told_so() {
        let systemctl = Systemctl { program: "/nothing/systemctl".into(), leading: Vec::new() };
        let error = systemctl.reset_failed("x.service").await.unwrap_err();
        assert!(error.to_string().contains("is systemd the service manager here?"), "{error}");
    }

    #[tokio::test]
    async fn a_units_state_is_read() {
        let played = played("echo LoadState=loaded; echo ActiveState=failed; echo Result=start-limit-hit");
        let unit = played.systemctl.show("x.service").await.unwrap();
        assert!(unit.loaded && unit.active == super::super::unit::Active::Failed);
        assert_eq!(unit.result, "start-limit-hit");
    }
}
