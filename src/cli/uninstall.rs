//! `uninstall`: asks before what cannot be taken back, removes, and says what is left.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use super::update::failed;
use super::{Call, Failed, Result, arguments, output};
use crate::config::{self, Overrides};
use crate::exit::Exit;
use crate::identity::Store;
use crate::uninstall::{self, Request, STATE_DIRECTORY};
use crate::update::site::{Place, Site, UNIT};

/// What install.sh writes, and the service reads if nothing else is said.
const CONFIG: &str = "/etc/bamf/agent.yaml";

pub(super) async fn uninstall(call: &Call, options: &arguments::Uninstall) -> Result {
    let site = Site::find(Place::system(UNIT)).await;
    let service = call.as_service(&site);
    let request = request(&service, options.purge);
    let name = Store::new(&request.data_dir).peek().ok().flatten().map(|identity| identity.name);
    if options.purge && !options.yes {
        confirm(name.as_deref())?;
    }
    let mut tell = |line: &str| output::line(line);
    let left = uninstall::uninstall(&site, &call.build, &request, &mut tell).await.map_err(failed)?;
    if !left.is_empty() {
        let paths: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
        output::line(format!("kept: {} and the user who owns the identity", paths.join(", ")));
        output::line(format!("To remove these too: `sudo rm -r {} && sudo userdel bamf`", paths.join(" ")));
    } else if let Some(name) = name {
        output::line(format!("The platform still lists the agent {name}: have an administrator delete it there."));
    }
    Ok(Exit::Done)
}

/// A configuration that is not valid any more is no reason to keep the agent.
fn request(service: &Call, purge: bool) -> Request {
    let named = service.environment.get("BAMF_CONFIG_FILE").map(PathBuf::from);
    let file = service.overrides.config.clone().or(named).unwrap_or_else(|| PathBuf::from(CONFIG));
    // Always by name: a file in the directory where the command happens to run is not the service's.
    let overrides = Overrides { config: Some(file.clone()).filter(|file| file.exists()), ..service.overrides.clone() };
    let data_dir = match (&overrides.config, config::load(&overrides, &service.environment)) {
        (None, _) => PathBuf::from(STATE_DIRECTORY),
        (Some(_), Ok(loaded)) => loaded.config.data_dir,
        (Some(_), Err(invalid)) => invalid.data_dir,
    };
    Request { purge, config: file, data_dir, kubernetes: service.environment.is_kubernetes() }
}

fn confirm(name: Option<&str>) -> Result<()> {
    if !io::stdin().is_terminal() {
        let message = "--purge removes the identity for good, and nobody can be asked here: add --yes";
        return Err(Failed { exit: Exit::Usage, message: message.into() });
    }
    let whose = name.map(|name| format!(" of agent {name}")).unwrap_or_default();
    output::note(format!(
        "This removes the configuration and the identity{whose} for good. To come back, this machine has to join again \
         with a new token. Type yes to go on:"
    ));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && answer.trim() == "yes" {
        return Ok(());
    }
    Err(Failed { exit: Exit::Failed, message: "nothing was removed".into() })
}
