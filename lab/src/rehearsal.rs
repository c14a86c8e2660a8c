//! A finished release, installed before anybody else does: a real machine with an agent on it updates from the directory.
//!
//! The agent is the previous release's, as on everybody's machines: what it does not believe, nobody can install. It goes by
//! the keys that are built into it, so the configuration names none.

use std::path::Path;

use crate::demo::screen;
use crate::machine::Machine;
use crate::site::{CONFIG, Site};

/// Installs `agent` on a machine, runs it, and updates it to `version` from `releases`, which has the release as `vX.Y.Z/`.
///
/// Where machines cannot run, that is said, and nothing else happens.
///
/// # Errors
/// Any step fails; the text has what was printed.
pub fn run(agent: &Path, releases: &Path, version: &str) -> Result<(), String> {
    if let Err(why) = Machine::available() {
        screen::line(&format!("rehearsal: LEFT OUT, {why}"));
        return Ok(());
    }
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: crate::site::Error| format!("{what}: {error}")
    };
    let site = Site::install_binary(agent).map_err(failed("the machine cannot be set up"))?;
    site.plane.set_version(Some(version));
    let inside = |error: crate::machine::Error| error.to_string();
    let tag = format!("v{version}");
    for entry in releases.join(&tag).read_dir().map_err(|error| format!("{}: {error}", releases.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let name = path.file_name().unwrap_or_default();
        site.machine.copy_in(&path, Path::new("/srv/releases").join(&tag).join(name), 0o644).map_err(inside)?;
    }
    let config = format!(
        "platform_url: {}\nagent_name: rehearsal\njoin_token: {}\nupdate:\n  source: /srv/releases\n",
        site.plane.url(),
        site.token
    );
    site.machine.write(CONFIG, config, 0o640, "root:bamf").map_err(inside)?;
    site.start().map_err(failed("the agent that updates does not run"))?;
    let before = site.status()["version"].to_string();
    // `--force`: the agent may be of this very release, when there is none before it.
    let ended = site.agent(&["update", "--version", version, "--force", "--allow-prerelease", "--json"]);
    if ended.code != 0 || ended.json["outcome"] != "updated" {
        return Err(format!("the update ended with {}\n{}{}", ended.code, ended.stdout, ended.stderr));
    }
    let status = site.status();
    if status["version"] != *version || status["api"]["connected"] != true {
        return Err(format!("after the update the agent says {status}"));
    }
    screen::line(&format!("updated {before} to \"{version}\" on a machine; it runs and is connected"));
    Ok(())
}
