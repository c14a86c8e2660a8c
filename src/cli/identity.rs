//! `join`, and the exit codes of whatever can go wrong with an identity.

use std::io::Read;
use std::path::Path;

use super::{Call, Failed, Result, arguments, output};
use crate::agent::{self, registration};
use crate::exit::Exit;
use crate::http;
use crate::identity::shared::Shared;
use crate::identity::{self, Store};
use crate::platform::Client;
use crate::secret::Secret;

/// Tokens are 37 characters today; a file of megabytes is not one.
const MAX_TOKEN_BYTES: u64 = 4096;

/// The exit code of a failed run or join.
pub(super) fn exit_of(error: &agent::Error) -> Exit {
    match error {
        agent::Error::Identity(error) => exit_of_identity(error),
        agent::Error::Registration(error) if error.is_unreachable() => Exit::Unreachable,
        agent::Error::Shared(error) if error.is_unreachable() => Exit::Unreachable,
        agent::Error::Registration(_)
        | agent::Error::Shared(_)
        | agent::Error::Expired { .. }
        | agent::Error::Revoked { .. }
        | agent::Error::Http(_) => Exit::Config,
        agent::Error::Control(_) | agent::Error::Signals(_) | agent::Error::Metrics(_) => Exit::Failed,
    }
}

pub(super) const fn exit_of_identity(error: &identity::Error) -> Exit {
    match error {
        identity::Error::Disk { .. } | identity::Error::NotPermitted { .. } => Exit::Disk,
        identity::Error::Damaged { .. } => Exit::Config,
        identity::Error::Unusable(_) | identity::Error::InUse { .. } => Exit::Failed,
    }
}

pub(super) async fn join(call: &Call, options: arguments::Join) -> Result {
    let loaded = call.load()?;
    let config = loaded.config;
    for warning in &loaded.warnings {
        output::note(format!("warning: {warning}"));
    }
    // While still root: a token belongs in a file that nobody else can read.
    let given = token(options.token, options.token_file.as_deref())?;
    become_owner(&config.data_dir)?;
    let store = Store::new(&config.data_dir);
    let failed = |error: identity::Error| Failed::new(exit_of_identity(&error), &error);
    if let (Ok(Some(identity)), false) = (store.peek(), options.force) {
        // Before the lock: a running agent is the usual reason for being joined.
        output::line(registration::already_joined(&identity));
        return Ok(Exit::Done);
    }
    store.prepare().map_err(failed)?;
    let _lock = store.lock().map_err(failed)?;
    match (store.load(), options.force) {
        (Ok(Some(identity)), false) => {
            output::line(registration::already_joined(&identity));
            return Ok(Exit::Done);
        }
        (Err(error), false) => return Err(failed(error)),
        (Ok(None), _) | (_, true) => {}
    }
    let shared = Shared::of(&config, &call.build.version.to_string());
    let of_agent = |error: agent::Error| Failed::new(exit_of(&error), &error);
    if let (Some(shared), false) = (&shared, options.force)
        && let Some(identity) = registration::found_in_secret(shared, &store).await.map_err(of_agent)?
    {
        output::line(registration::already_joined(&identity));
        return Ok(Exit::Done);
    }
    let token = given.or_else(|| config.join_token.clone());
    let token =
        token.ok_or_else(|| Failed::new(Exit::Config, &registration::no_token(&config, &store, shared.as_ref())))?;
    let client = Client::new(&config.network, &config.platform_url, &call.build.version.to_string())
        .map_err(|error| Failed::new(Exit::Config, &error))?;
    let identity = registration::join_now(&config, &store, &client, &token).await.map_err(of_agent)?;
    if let Some(shared) = &shared {
        registration::keep_in_secret(shared, &identity).await.map_err(of_agent)?;
    }
    output::line(format!("joined as {} (certificate {})", identity.name, identity.sha256));
    Ok(Exit::Done)
}

fn token(given: Option<String>, file: Option<&Path>) -> Result<Option<Secret>> {
    let text = match (given, file) {
        (Some(token), _) => token,
        (None, None) => return Ok(None),
        (None, Some(path)) => {
            let mut text = String::new();
            let read = if path == Path::new("-") {
                std::io::stdin().lock().take(MAX_TOKEN_BYTES).read_to_string(&mut text)
            } else {
                std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN_BYTES).read_to_string(&mut text))
            };
            read.map_err(|error| Failed {
                exit: Exit::Config,
                message: format!("the join token cannot be read from {}: {error}", path.display()),
            })?;
            text
        }
    };
    let token = Secret::new(text.trim().to_owned());
    if token.expose().is_empty() {
        return Err(Failed { exit: Exit::Config, message: "the join token is empty".into() });
    }
    Ok(Some(token))
}

/// As root, goes on as the user that owns the data directory: the service must be able to read and renew what is
/// written, and root must not follow a link that this user may have put there.
fn become_owner(data_dir: &Path) -> Result<()> {
    use nix::unistd::{Gid, Uid, User, setgid, setgroups, setuid};
    use std::os::unix::fs::{MetadataExt, chown};

    if !Uid::effective().is_root() {
        return Ok(());
    }
    let failed = |error: &(dyn std::error::Error + 'static)| Failed {
        exit: Exit::Failed,
        message: format!("cannot act for the owner of {}: {}", data_dir.display(), http::chain(error)),
    };
    if !data_dir.exists() {
        let Ok(Some(user)) = User::from_name("bamf") else { return Ok(()) };
        crate::durable::create_directory(data_dir, 0o700).map_err(|error| Failed::new(Exit::Disk, &error))?;
        chown(data_dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(|error| failed(&error))?;
    }
    let owner = data_dir.metadata().map_err(|error| failed(&error))?;
    if owner.uid() == 0 {
        return Ok(());
    }
    let group = Gid::from_raw(owner.gid());
    setgroups(&[group])
        .and_then(|()| setgid(group))
        .and_then(|()| setuid(Uid::from_raw(owner.uid())))
        .map_err(|error| failed(&error))
}
