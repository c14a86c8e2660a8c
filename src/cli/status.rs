//! `status`: asks the running agent; without one, reads the disk.

use std::path::Path;

use super::{Call, Failed, Result, arguments, output};
use crate::config::{self, Config};
use crate::control::status::{Certificate, Kept};
use crate::control::{self, Status};
use crate::exit::Exit;
use crate::identity::{self, Store, instance::Instance};
use crate::platform::failure::one_line;
use crate::platform::version::ahead_of_api;
use crate::update;

pub(super) async fn status(call: &Call, options: &arguments::Status) -> Result {
    super::update::check_place(&options.place)?;
    // A configuration that was broken after the start is no reason not to ask the agent that runs with the one before.
    let loaded = config::load(&call.overrides, &call.environment);
    let runtime_dir = match &loaded {
        Ok(loaded) => &loaded.config.runtime_dir,
        Err(invalid) => {
            output::note(format!("the configuration has become invalid, the next start will fail:\n{invalid}"));
            &invalid.runtime_dir
        }
    };
    let mut status = match control::client::status(runtime_dir).await {
        Ok(status) => status,
        Err(error @ control::client::Error::NotRunning { .. }) => {
            let loaded = loaded.map_err(|_| Failed { exit: Exit::Config, message: error.to_string() })?;
            let mut status = from_disk(&loaded.config, &call.build.version.to_string())?;
            status.api.last_error = Some(error.to_string());
            status
        }
        Err(error) => return Err(Failed::new(Exit::Failed, &error)),
    };
    add_updates(&mut status, &super::update::state_dir(call, &options.place));
    if options.json {
        output::json(&status);
    } else {
        for line in lines(&status) {
            output::line(line);
        }
    }
    Ok(Exit::Done)
}

fn from_disk(config: &Config, version: &str) -> Result<Status> {
    let store = Store::new(&config.data_dir);
    let identity = store.peek().map_err(|error| {
        // A person asks here, who can become root.
        let foreign = matches!(error, identity::Error::NotPermitted { .. });
        let exit = if foreign { Exit::NotPermitted } else { super::identity::exit_of_identity(&error) };
        Failed::new(exit, &error)
    })?;
    let instance = Instance::read(&config.data_dir);
    let mut status = Status {
        version: version.to_owned(),
        agent_name: identity.as_ref().map_or_else(|| config.agent_name.clone(), |identity| identity.name.clone()),
        agent_id: instance.as_ref().and_then(|instance| instance.agent_id.clone()),
        instance_id: instance.map(|instance| instance.instance_id),
        certificate: identity.as_ref().map(Certificate::from),
        ..Status::default()
    };
    config.platform_url.as_str().trim_end_matches('/').clone_into(&mut status.api.url);
    status.identity = Kept::of(config);
    status.update.installed = version.to_owned();
    Ok(status)
}

/// What only root may read: the updater's own files.
fn add_updates(status: &mut Status, state_dir: &Path) {
    if let Some(view) = update::view(state_dir) {
        status.update.state = Some(view.state);
        status.update.last = view.last;
    }
}

fn lines(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    // What an agent says of itself may come from a hostile one, and goes to a person's terminal.
    let mut row = |name: &str, text: String| lines.push(format!("  {name:<12} {}", one_line(&text)));
    row(
        "agent",
        match &status.agent_id {
            Some(id) => format!("{} ({id})", status.agent_name),
            None => status.agent_name.clone(),
        },
    );
    let api = &status.api;
    let version =
        api.version.as_ref().map_or("version not reported".to_owned(), |version| format!("version {version}"));
    let connected = if api.connected { "connected" } else { "not connected" };
    row("platform", format!("{}: {connected}, {version}", api.url));
    if let Some(at) = &api.last_heartbeat {
        row("heartbeat", format!("last accepted at {at}"));
    }
    row(
        "certificate",
        status.certificate.as_ref().map_or("none: not joined".to_owned(), |certificate| {
            format!("valid until {}, renewed from {}", certificate.not_after, certificate.renew_at)
        }),
    );
    if let Some(certificate) = &status.certificate {
        row("", format!("sha256 {}", certificate.sha256));
    }
    let identity = &status.identity;
    if let Some(secret) = &identity.secret {
        row("identity", format!("in the Secret {secret}"));
    }
    if let Some(problem) = identity.problem.as_ref().filter(|problem| api.last_error.as_ref() != Some(*problem)) {
        row("identity", problem.clone());
    }
    let sessions = &status.sessions;
    row("sessions", format!("{} active, {} adopted, {} lost", sessions.active, sessions.adopted, sessions.lost));
    row("update", update_line(status));
    if let Some(error) = &api.last_error {
        row("problem", error.clone());
    }
    let head = match (status.pid, &status.started_at) {
        (Some(pid), Some(since)) => format!("bamf-agent {} runs since {since} (pid {pid})", status.version),
        _ => format!("bamf-agent {} is not running", status.version),
    };
    [vec![one_line(&head)], lines].concat()
}

fn update_line(status: &Status) -> String {
    let update = &status.update;
    let state = update.state.as_deref().filter(|state| *state != "idle").map(|state| format!(", update is {state}"));
    let api = status.api.version.as_deref().map(semver::Version::parse);
    let next = match (&update.available, semver::Version::parse(&update.installed), api) {
        (Some(version), _, _) => format!(", {version} may be available: `sudo bamf-agent update`"),
        (None, Ok(installed), Some(Ok(api))) => {
            ahead_of_api(&installed, &api).map_or_else(String::new, |advice| format!("; {advice}"))
        }
        _ => String::new(),
    };
    format!("{} installed{next}{}", update.installed, state.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_agent_can_neither_colour_the_terminal_nor_forge_a_line() {
        let evil = "\u{1b}[2J\u{9b}31m\r\nbamf-agent 9.9.9 runs";
        let text = || Some(evil.to_owned());
        let status = Status {
            version: evil.into(),
            pid: Some(1),
            agent_id: text(),
            agent_name: evil.into(),
            started_at: text(),
            certificate: Some(Certificate { sha256: evil.into(), not_after: evil.into(), ..Certificate::default() }),
            api: control::status::Api {
                url: evil.into(),
                version: text(),
                last_heartbeat: text(),
                last_error: text(),
                ..control::status::Api::default()
            },
            update: control::status::Update {
                installed: evil.into(),
                available: text(),
                state: text(),
                ..control::status::Update::default()
            },
            ..Status::default()
        };
        let lines = lines(&status);
        assert!(!lines.iter().any(|line| line.contains(char::is_control)), "{lines:?}");
        assert_eq!(lines.len(), 9, "{lines:?}");
    }
}
