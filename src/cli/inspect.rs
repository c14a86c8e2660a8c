//! `config check`, `config show` and `selftest`: what would be, without doing it.

use std::path::Path;

use nix::unistd::{AccessFlags, access};

use super::{Call, Failed, Result, output};
use crate::clock;
use crate::config::Loaded;
use crate::exit::Exit;
use crate::http;
use crate::identity::shared::{self, Kind};
use crate::identity::{Identity, Store};

pub(super) fn check(call: &Call) -> Result {
    let loaded = call.load()?;
    warn(&loaded);
    // Without any token the file may be complete: `join --token-file` brings one. A variable that is not set is a fault
    // of the file, unless a certificate has made the token needless.
    // In a cluster the Secret may hold a certificate, and what is not set is the token that was used up.
    let unset = loaded.config.join_token_unset.is_some() && !matches!(shared::kind(&loaded.config), Kind::Secret(_));
    match (Store::new(&loaded.config.data_dir).peek(), unset) {
        (Ok(Some(_)), _) => warn_of_token(&loaded),
        (Ok(None), true) => {
            if let Err(problem) = loaded.check_join_token(false) {
                return Err(Failed { exit: Exit::Config, message: problem.to_string() });
            }
        }
        (Err(error), true) => output::note(format!(
            "warning: join_token names a variable that is not set, and whether a certificate makes it needless cannot be \
             told: {}",
            http::chain(&error)
        )),
        (Ok(None) | Err(_), false) => {}
    }
    let place = loaded.config.file.as_ref().map_or_else(|| "the environment".into(), |file| file.display().to_string());
    output::line(format!("{place}: valid, {} resources", loaded.config.resources.len()));
    Ok(Exit::Done)
}

pub(super) fn show(call: &Call, json: bool) -> Result {
    let loaded = call.load()?;
    warn(&loaded);
    let rows = loaded.show();
    if json {
        let rows = rows.iter().map(|row| serde_json::json!({"key": row.key, "value": row.value, "origin": row.origin}));
        output::json(&serde_json::json!({"settings": rows.collect::<Vec<_>>()}));
        return Ok(Exit::Done);
    }
    let widths = rows.iter().fold((0, 0), |(key, value), row| (key.max(row.key.len()), value.max(row.value.len())));
    let (key_width, value_width) = (widths.0, widths.1.min(60));
    for row in &rows {
        output::line(format!("{:key_width$}  {:value_width$}  # {}", row.key, row.value, row.origin));
    }
    Ok(Exit::Done)
}

/// Everything that `run` needs before it talks to anybody (contract section 1).
pub(super) fn selftest(call: &Call) -> Result {
    let loaded = call.load()?;
    warn(&loaded);
    let found = findings(&loaded, &call.build.version.to_string());
    for good in &found.good {
        output::line(format!("ok: {good}"));
    }
    if found.problems.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failed { exit: Exit::Config, message: found.problems.join("\n") })
}

/// What a self-test found.
#[derive(Default)]
struct Findings {
    good: Vec<String>,
    problems: Vec<String>,
}

fn findings(loaded: &Loaded, version: &str) -> Findings {
    let config = &loaded.config;
    let mut found = Findings::default();
    found.good.push("the configuration is valid".into());
    match Store::new(&config.data_dir).peek() {
        Ok(Some(identity)) => {
            warn_of_token(loaded);
            judge(&identity, &mut found);
        }
        // Whether a token is needed is known once the Secret was asked for, which is not touched here.
        Ok(None) if matches!(shared::kind(config), Kind::Secret(_)) => {}
        Ok(None) => match loaded.check_join_token(false) {
            Ok(_) => {
                found
                    .good
                    .push(format!("not joined yet: will join as {} with the configured token", config.agent_name));
            }
            Err(problem) => {
                found.problems.push(format!("{} holds no certificate. {problem}", config.data_dir.display()));
            }
        },
        Err(error) => found.problems.push(http::chain(&error)),
    }
    match shared::kind(config) {
        Kind::DataDirectory => {}
        Kind::Secret(place) => {
            found.good.push(format!("the identity is kept in the Secret {place}, which was not looked at"))
        }
        Kind::NotShared(sentence) => output::note(format!("warning: {sentence}")),
    }
    let writable = |path: &Path| access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    if config.data_dir.exists() && !writable(&config.data_dir) {
        found.problems.push(format!("{} is not writable for this user", config.data_dir.display()));
    }
    match http::client(&config.network, http::Purpose::Platform, version) {
        Ok(_) => found.good.push("TLS trust roots and proxies are usable".into()),
        Err(error) => found.problems.push(http::chain(&error)),
    }
    found
}

fn judge(identity: &Identity, found: &mut Findings) {
    let until = clock::rfc3339(identity.not_after);
    if identity.is_expired(clock::now()) {
        found.problems.push(format!("the certificate of agent {} expired at {until}", identity.name));
    } else {
        found.good.push(format!("the identity of agent {} is sound, valid until {until}", identity.name));
    }
}

/// What there is to say of the join token where a certificate is stored.
fn warn_of_token(loaded: &Loaded) {
    if let Ok(Some(warning)) = loaded.check_join_token(true) {
        output::note(format!("warning: {warning}"));
    }
}

fn warn(loaded: &Loaded) {
    for warning in &loaded.warnings {
        output::note(format!("warning: {warning}"));
    }
}
