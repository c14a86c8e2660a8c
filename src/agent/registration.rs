//! From nothing to an identity: the stored one, or the one join that an agent ever makes (contract section 3).
//!
//! A stored certificate wins over everything; an identity that is there but damaged is an error and never a reason to
//! join again. Joining is repeated only where the platform cannot have registered the name, or where repeating shows
//! whether it did: it takes a name once, so a second attempt is answered with a conflict, never with a second agent.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::clock;
use crate::config::Config;
use crate::http;
use crate::identity::shared::{Over, Shared};
use crate::identity::store::JoinIntent;
use crate::identity::{self, Identity, Store, instance::Instance};
use crate::platform::{Client, Failure, Kind};
use crate::secret::Secret;
use crate::service::notify;

use super::board::{Board, Way};
use super::sharing;

/// First wait between two attempts to join.
const RETRY_BASE: Duration = Duration::from_secs(1);
/// However lucky the draw.
const SHORTEST: Duration = Duration::from_millis(100);
/// The platform allows 100 anonymous calls a minute and address, which a fleet may share (protocol 3.3).
const RETRY_CAP: Duration = Duration::from_secs(60);
/// Attempts of the `join` command before it reports that the platform cannot be reached.
pub const COMMAND_ATTEMPTS: u32 = 4;

/// Why the platform will not register this agent. Waiting mends none of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a certificate nor a token.
    #[error(
        "{data_dir} holds no certificate and no join token is configured: make a token on the platform, then set \
         BAMF_JOIN_TOKEN or `join_token`, or run `bamf-agent join --token-file FILE`"
    )]
    NoToken {
        /// Where a certificate was looked for.
        data_dir: String,
    },
    /// No certificate, and the configured token is a variable that is not set.
    #[error(
        "{data_dir} holds no certificate, and join_token is ${{{variable}}}, which is not set in the environment: set \
         {variable}, or run `bamf-agent join --token-file FILE`"
    )]
    TokenUnset {
        /// Where a certificate was looked for.
        data_dir: String,
        /// The variable.
        variable: String,
    },
    /// The token is not accepted.
    #[error(
        "the platform does not accept the join token (unknown, revoked, expired or used up): make a new one on the \
         platform ({failure})"
    )]
    TokenRefused {
        /// The answer.
        failure: Failure,
    },
    /// Another agent has the name.
    #[error(
        "the platform already has an agent {name}: choose another agent_name, or have an administrator delete that agent \
         if this machine replaces it ({failure})"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// The answer.
        failure: Failure,
    },
    /// An earlier attempt of this machine may have taken the name.
    #[error(
        "the platform already has an agent {name}, and this machine asked for that name at {at} without getting the \
         certificate stored: the join was interrupted. Have an administrator delete the agent {name}, then start again \
         with a new token ({failure})"
    )]
    Interrupted {
        /// The name.
        name: String,
        /// When the interrupted join began.
        at: String,
        /// The answer.
        failure: Failure,
    },
    /// The token is not accepted, and an earlier attempt of this machine may be what used it up.
    #[error(
        "the platform does not accept the join token. This machine asked for the name {name} at {at} without getting the \
         certificate stored: that join was probably interrupted after the platform had used up the token. If the platform \
         lists an agent {name}, have an administrator delete it; then start again with a new token ({failure})"
    )]
    TokenSpent {
        /// The name.
        name: String,
        /// When the interrupted join began.
        at: String,
        /// The answer.
        failure: Failure,
    },
    /// The platform does not understand or allow the request.
    #[error("the platform refuses to register agent {name}: check platform_url and agent_name ({failure})")]
    Refused {
        /// The name.
        name: String,
        /// The answer.
        failure: Failure,
    },
    /// The platform could not be asked; only the `join` command ends with this.
    #[error("the platform could not register agent {name} after {attempts} attempts ({failure})")]
    GaveUp {
        /// The name.
        name: String,
        /// How often.
        attempts: u32,
        /// The last answer.
        failure: Failure,
    },
}

impl Error {
    /// True where the network or the platform is to blame, not the configuration.
    #[must_use]
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::GaveUp { .. })
    }

    /// True where it may mean that another replica of this agent was faster: the name is taken, or the token used up.
    const fn may_be_another_replicas(&self) -> bool {
        matches!(
            self,
            Self::NameTaken { .. } | Self::Interrupted { .. } | Self::TokenRefused { .. } | Self::TokenSpent { .. }
        )
    }
}

/// The identity to run with: the stored one, else the one that joining gives. Waits as long as the platform is away.
///
/// `None` if the agent is `leaving`. An attempt that is under way then is ended first: its answer can be had only once.
pub(super) async fn identity(
    config: &Config,
    store: &Store,
    client: &Client,
    board: &Board,
    known: Known<'_>,
    leaving: &CancellationToken,
) -> Result<Option<Identity>, super::Error> {
    let Known { stored, shared } = known;
    let mut waiting = Waiting { board, leaving, backoff: Backoff::new(RETRY_BASE, RETRY_CAP), told: false };
    let stored = match shared {
        None => stored?,
        Some(shared) => match sharing::start(shared, store, stored, &mut waiting).await {
            Some(stored) => stored?,
            None => return Ok(None),
        },
    };
    if let Some(identity) = stored {
        remark(config, &identity);
        return Ok(Some(identity));
    }
    let token = config.join_token.clone().ok_or_else(|| no_token(config, store, shared))?;
    loop {
        let (sentence, asked) = match join_here(config, store, client, &token, shared, leaving).await? {
            Ok(identity) => return Ok(Some(identity)),
            Err(delay) => delay,
        };
        if !waiting.pause(&sentence, asked).await {
            return Ok(None);
        }
    }
}

/// What is known of the identity when the agent starts.
pub(super) struct Known<'a> {
    /// What the data directory says.
    pub(super) stored: sharing::Stored,
    /// The Secret that replicas share, in a cluster.
    pub(super) shared: Option<&'a Shared>,
}

/// Waits for what may get better by itself, and tells of it.
pub(super) struct Waiting<'a> {
    board: &'a Board,
    leaving: &'a CancellationToken,
    backoff: Backoff,
    told: bool,
}

impl Waiting<'_> {
    /// Waits as long as was asked for, else with back-off. False if the agent is leaving.
    pub(super) async fn pause(&mut self, sentence: &str, asked: Option<Duration>) -> bool {
        let wait = asked.unwrap_or_else(|| self.backoff.next(fastrand::f64()).max(SHORTEST));
        tracing::warn!(error = %sentence, wait_ms = wait.as_millis(), "not joined yet, trying again");
        self.board.fails(Way::Heartbeat, Some(sentence.to_owned()));
        if !self.told {
            // The start itself is fine; what is missing is the platform, or the cluster.
            notify::ready();
            self.told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.leaving.cancelled() => false,
        }
    }
}

/// A sentence, and how long to wait where that was said.
type Delay = (String, Option<Duration>);

/// One attempt, with regard to other replicas: none if one of them has joined, or if what comes of it could not be kept.
async fn join_here(
    config: &Config,
    store: &Store,
    client: &Client,
    token: &Secret,
    shared: Option<&Shared>,
    leaving: &CancellationToken,
) -> Result<Result<Identity, Delay>, super::Error> {
    if let Some(shared) = shared {
        match shared.rehearse().await {
            Ok(None) => {}
            Ok(Some(theirs)) => return Ok(Ok(sharing::mirror(store, theirs))),
            Err(error) => return Ok(Err((http::chain(&error), error.asked_wait()))),
        }
        if leaving.is_cancelled() {
            // What can be done once only should not be begun by who is about to go.
            return Ok(Err(("the agent was asked to end before it had joined".to_owned(), None)));
        }
    }
    let joined = join(config, store, client, token).await;
    match (joined, shared) {
        (Ok(Ok(identity)), Some(shared)) => Ok(Ok(sharing::keep_first(shared, store, identity).await)),
        (Ok(Ok(identity)), None) => Ok(Ok(identity)),
        (Ok(Err(failure)), _) => Ok(Err((failure.to_string(), failure.asked_wait(fastrand::f64())))),
        (Err(super::Error::Registration(refused)), Some(shared)) if refused.may_be_another_replicas() => {
            match sharing::joined_elsewhere(shared).await {
                Some(theirs) => Ok(Ok(sharing::mirror(store, theirs))),
                None => Err(refused.into()),
            }
        }
        (Err(error), _) => Err(error),
    }
}

/// How long to wait for the next attempt.
fn pause(failure: &Failure, backoff: &mut Backoff) -> Duration {
    failure.asked_wait(fastrand::f64()).unwrap_or_else(|| backoff.next(fastrand::f64()).max(SHORTEST))
}

/// For the `join` command in a cluster: the identity that another replica, or this one earlier, has put into the Secret.
///
/// # Errors
/// See [`super::Error`]; a join should not be asked for then.
pub async fn found_in_secret(shared: &Shared, store: &Store) -> Result<Option<Identity>, super::Error> {
    Ok(shared.rehearse().await?.map(|theirs| sharing::mirror(store, theirs)))
}

/// For the `join` command in a cluster: puts what it has joined as into the Secret, whatever is there.
///
/// # Errors
/// See [`super::Error`]. The identity lies in the data directory then, and the next `run` there goes on with it.
pub async fn keep_in_secret(shared: &Shared, identity: &Identity) -> Result<(), super::Error> {
    Ok(sharing::keep_joined(shared, identity, Over::Anything).await?)
}

/// The `join` command: registers once, with a few attempts.
///
/// # Errors
/// See [`super::Error`].
pub async fn join_now(
    config: &Config,
    store: &Store,
    client: &Client,
    token: &Secret,
) -> Result<Identity, super::Error> {
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_CAP);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let failure = match join(config, store, client, token).await? {
            Ok(identity) => return Ok(identity),
            Err(failure) => failure,
        };
        if attempts == COMMAND_ATTEMPTS {
            return Err(Error::GaveUp { name: config.agent_name.clone(), attempts, failure }.into());
        }
        tokio::time::sleep(pause(&failure, &mut backoff)).await;
    }
}

/// One attempt. The inner error may go away by itself.
async fn join(
    config: &Config,
    store: &Store,
    client: &Client,
    token: &Secret,
) -> Result<Result<Identity, Failure>, super::Error> {
    let name = &config.agent_name;
    let earlier = store.unfinished_join().filter(|intent| intent.name == *name);
    // The space first: what the platform answers can be asked for only once.
    let reservation = store.reserve()?;
    if earlier.is_none() {
        store.begin_join(&JoinIntent { name: name.clone(), at: clock::rfc3339(clock::now()) })?;
    }
    match client.join(token, name, &config.labels).await {
        Ok(issued) => {
            let identity = reservation.commit(issued.material)?;
            tracing::info!(agent = %identity.name, certificate = %identity.sha256, "joined the platform");
            remember_agent_id(store, issued.agent_id);
            Ok(Ok(identity))
        }
        Err(failure) if failure.is_transient() => {
            if earlier.is_none() && failure.is_certainly_void() {
                // Else a later conflict with somebody else's agent would be taken for our own interrupted join.
                forget(store);
            }
            Ok(Err(failure))
        }
        Err(failure) => {
            if earlier.is_none() {
                // The platform knows nothing of this machine: a later conflict is not ours.
                forget(store);
            }
            Err(refusal(name, earlier, failure).into())
        }
    }
}

fn refusal(name: &str, earlier: Option<JoinIntent>, failure: Failure) -> Error {
    let name = name.to_owned();
    match (failure.kind, earlier) {
        (Kind::Unauthorized, Some(JoinIntent { at, .. })) => Error::TokenSpent { name, at, failure },
        (Kind::Unauthorized, None) => Error::TokenRefused { failure },
        (Kind::Conflict, Some(JoinIntent { at, .. })) => Error::Interrupted { name, at, failure },
        (Kind::Conflict, None) => Error::NameTaken { name, failure },
        _ => Error::Refused { name, failure },
    }
}

fn forget(store: &Store) {
    if let Err(error) = store.end_join() {
        tracing::warn!(error = %http::chain(&error), "the note of the refused join stays");
    }
}

/// Keeps the agent's UUID beside the instance id. Losing it costs nothing but a line in `status`.
pub(super) fn remember_agent_id(store: &Store, agent_id: Option<String>) {
    let mut instance = Instance::load(store.directory());
    if agent_id.is_none() || instance.agent_id == agent_id {
        return;
    }
    instance.agent_id = agent_id;
    if let Err(error) = instance.write(store.directory()) {
        tracing::warn!(error = %http::chain(&error), "the agent's UUID is not kept");
    }
}

fn remark(config: &Config, identity: &Identity) {
    if config.join_token.is_some() {
        tracing::warn!("a certificate is stored: the join token in the configuration is no longer needed, remove it");
    }
    if let Some(variable) = &config.join_token_unset {
        tracing::warn!(
            "join_token is ${{{variable}}}, which is not set; a certificate is stored, so no token is needed: remove it"
        );
    }
    if config.agent_name_is_configured && config.agent_name != identity.name {
        tracing::warn!(
            configured = %config.agent_name,
            certificate = %identity.name,
            "agent_name differs from the certificate's name, which is the one that counts"
        );
    }
}

/// What is missing where there is neither a certificate nor a token.
#[must_use]
pub fn no_token(config: &Config, store: &Store, shared: Option<&Shared>) -> Error {
    let mut data_dir = store.directory().display().to_string();
    if let Some(shared) = shared {
        data_dir = format!("{data_dir}, like the Secret {},", shared.place());
    }
    match config.join_token_unset.clone() {
        Some(variable) => Error::TokenUnset { data_dir, variable },
        None => Error::NoToken { data_dir },
    }
}

/// How a stored identity reads when the `join` command finds one.
#[must_use]
pub fn already_joined(identity: &Identity) -> String {
    format!(
        "already joined as {} (certificate {}, valid until {}); --force registers anew and replaces it",
        identity.name,
        identity.sha256,
        clock::rfc3339(identity.not_after)
    )
}

impl From<identity::inspect::Flaw> for super::Error {
    fn from(flaw: identity::inspect::Flaw) -> Self {
        Self::Identity(identity::Error::Unusable(flaw))
    }
}
