//! The configuration: what was written, where, and what it means (contract section 2, protocol chapter 2).
//!
//! It enters once. `source` reads the file and the environment, `raw` keeps every value with the place it came from,
//! `validate` turns that into a [`Config`] and reports all problems together, each with file, line, key and what was
//! expected. Nothing else in the crate reads the environment.
//!
//! ```text
//! flags, environment ─► source ─► text ─► raw ─► tree ─► reader (expand) ─► validate ─► Config
//!                                                           │ keys: the one table          │
//!                                                           └──────► report ◄──────────────┘
//! ```
//!
//! [`load`] does all of it; [`interpret`] is the same without the file system, a function of its arguments.

pub mod address;
pub mod duration;
pub mod expand;
pub mod keys;
pub mod names;
pub mod raw;
mod reader;
pub mod report;
mod show;
pub mod source;
mod validate;
pub mod window;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use self::reader::Reader;
use self::report::Report;
pub use self::report::{Origin, Problem, Warning};
pub use self::show::Row;
pub use self::source::{Document, Environment, Overrides};
use crate::secret::Secret;

/// The effective configuration of the agent and the updater.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
    /// Base address of the platform's API, without a trailing slash.
    pub platform_url: Url,
    /// Needed until a certificate is stored, never again.
    pub join_token: Option<Secret>,
    /// The unset variable that `join_token` names: an error only while no certificate is stored.
    pub join_token_unset: Option<String>,
    /// The name to register under; a stored certificate's name wins over it.
    pub agent_name: String,
    /// The name was configured, not derived from the host's.
    pub agent_name_is_configured: bool,
    /// Where the identity lives.
    pub data_dir: PathBuf,
    /// The agent runs inside the platform's own cluster.
    pub cluster_internal: bool,
    /// Network zone of the agent: `in-cluster`, `internal` or `public`.
    pub zone: Option<String>,
    /// Labels of the agent itself.
    pub labels: BTreeMap<String, String>,
    /// What people can connect to.
    pub resources: Vec<Resource>,
    /// Where `/health`, `/ready` and `/metrics` are served.
    pub listen: SocketAddr,
    /// Plain `http://` is accepted for hosts other than loopback.
    pub allow_insecure_http: bool,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// Ceiling of the first wait before a reconnect.
    pub reconnect_base_delay: Duration,
    /// Ceiling of every wait before a reconnect.
    pub reconnect_max_delay: Duration,
    /// The updater's part.
    pub update: UpdateConfig,
    /// How the network is reached.
    pub network: NetworkConfig,
    /// Where the control socket lies (`--runtime-dir`, `BAMF_RUNTIME_DIR`, default `/run/bamf-agent`).
    pub runtime_dir: PathBuf,
    /// Log at debug level.
    pub debug: bool,
    /// The process runs in Kubernetes (protocol chapter 13, detection).
    pub kubernetes: bool,
    /// What Kubernetes mode needs to know.
    pub cluster: KubernetesConfig,
}

impl Config {
    /// [`Config::platform_url`] as a text to which a path that begins with `/` can be appended.
    #[must_use]
    pub fn platform_base(&self) -> &str {
        self.platform_url.as_str().trim_end_matches('/')
    }
}

/// Where the identity lies in Kubernetes (protocol chapter 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// Name of the Secret.
    pub cert_secret_name: String,
    /// Its namespace; `None` means the one in the mounted service account, else `default`.
    pub namespace: Option<String>,
    /// The cluster's API server.
    pub api_host: Option<String>,
    /// Port of the cluster's API server.
    pub api_port: u16,
}

/// How HTTP clients reach the world.
#[derive(Clone, Debug, Default)]
pub struct NetworkConfig {
    /// Proxy for `https://` addresses (`HTTPS_PROXY`, `https_proxy`, `ALL_PROXY`).
    pub https_proxy: Option<Secret>,
    /// Proxy for `http://` addresses (`http_proxy` only: the upper-case name can be forged by a CGI caller).
    pub http_proxy: Option<Secret>,
    /// Hosts that are reached directly (`NO_PROXY`, `no_proxy`).
    pub no_proxy: Option<String>,
    /// Further trust roots, a PEM file (`SSL_CERT_FILE`).
    pub extra_roots: Option<PathBuf>,
}

/// The `update:` section.
#[derive(Clone, Debug)]
pub struct UpdateConfig {
    /// Where releases come from: an `https://` address or a directory, as written.
    pub source: String,
    /// GitHub REST base; empty means the default for the source's host.
    pub api_url: Option<Url>,
    /// minisign public keys (base64) that replace the built-in ones; empty means the built-in ones.
    pub trusted_keys: Vec<String>,
    /// How many different trusted keys must have signed, at least 1.
    pub required_signatures: usize,
    /// The API's version for control planes that do not report theirs.
    pub assume_api_version: Option<semver::Version>,
    /// Unattended updates are wanted.
    pub auto: bool,
    /// When unattended updates may run, as written and checked; empty means any time.
    pub window: String,
    /// How long a new version may take to become healthy.
    pub health_timeout: Duration,
    /// How long a stop may wait for sessions that cannot be handed over.
    pub drain_timeout: Duration,
    /// Token for GitHub's REST API (`GITHUB_TOKEN`).
    pub github_token: Option<Secret>,
}

/// Whom to trust: the two keys of the `update:` section that checking downloaded files takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// See [`UpdateConfig::trusted_keys`].
    pub trusted_keys: Vec<String>,
    /// See [`UpdateConfig::required_signatures`].
    pub required_signatures: usize,
}

/// One configured target (protocol 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Unique name of the resource.
    pub name: String,
    /// Protocol type, e.g. `ssh` or `postgres-audit`; unknown ones are passed on.
    pub resource_type: String,
    /// Target host as the agent sees it; empty where none was given.
    pub hostname: String,
    /// Target port; 0 where none was given and the type has no default.
    pub port: u16,
    /// Labels that access rules match.
    pub labels: BTreeMap<String, String>,
    /// Sub-domain for web access.
    pub tunnel_hostname: Option<String>,
    /// Paths that outside systems may call.
    pub webhooks: Vec<Webhook>,
    /// Hand `X-Bamf-Session-Token` on to the target.
    pub forward_session_token: bool,
    /// When the target is dialled.
    pub dial: Dial,
}

/// When a tunnel's target is dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dial {
    /// Eager where the server speaks first, else lazy.
    #[default]
    Auto,
    /// With the first byte from the client.
    Lazy,
    /// At once.
    Eager,
}

/// A webhook of a web resource (protocol 2.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Path prefix.
    pub path: String,
    /// HTTP methods; never null on the wire, the API refuses that.
    pub methods: Vec<String>,
    /// Source networks; empty means any.
    pub source_cidrs: Vec<String>,
}

/// A configuration without problems.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub config: Config,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
    /// Warnings beyond the ones kept.
    pub further_warnings: usize,
    /// Where each value came from, by path; what is missing is a default.
    origins: BTreeMap<String, Origin>,
    /// The unset variable that `join_token` names.
    join_token_unset: Option<(String, Origin)>,
    /// Invariant: as long as the configuration's resources; where each is written.
    resource_places: Vec<String>,
}

/// A configuration that cannot be used: exit 78.
///
/// `Display` has one problem per line, `FILE:LINE:COL: key: found …, expected …`.
#[derive(Clone, Debug)]
pub struct Invalid {
    /// What is wrong, in the order of reading, at least one.
    pub problems: Vec<Problem>,
    /// Problems beyond the ones kept.
    pub further_problems: usize,
    /// What the operator should know besides.
    pub warnings: Vec<Warning>,
    /// Where the identity probably lies, for commands that only look (`status`).
    pub data_dir: PathBuf,
    /// Where the control socket probably lies, for the same.
    pub runtime_dir: PathBuf,
}

impl std::error::Error for Invalid {}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        match self.further_problems {
            0 => Ok(()),
            further => write!(f, "\nand {further} more problems"),
        }
    }
}

/// Finds and reads the configuration (contract section 2): defaults, then one file, then the environment, then flags.
///
/// # Errors
/// Every problem at once.
pub fn load(overrides: &Overrides, environment: &Environment) -> Result<Loaded, Invalid> {
    let mut report = Report::default();
    let document = source::find(overrides, environment, &mut report);
    understand(document.as_ref(), overrides, environment, report)
}

/// Whom to trust, also where no agent is configured: nothing is required, and what is wrong elsewhere does not matter.
///
/// # Errors
/// The configuration cannot be read, or what it says of trust makes no sense.
pub fn load_trust(overrides: &Overrides, environment: &Environment) -> Result<Trust, Vec<Problem>> {
    let mut report = Report::default();
    let document = source::find(overrides, environment, &mut report);
    let root = document.as_ref().and_then(|document| raw::parse(&document.path, &document.text, &mut report));
    let mut reader = Reader::new(environment, document.map(|document| document.path), report);
    let trust = validate::trust(root.as_ref(), &mut reader);
    let problems = reader.report.problems;
    if problems.is_empty() { Ok(trust) } else { Err(problems) }
}

/// [`load`] for a file that was read already, or for none.
///
/// # Errors
/// Every problem at once.
pub fn interpret(
    document: Option<&Document>,
    overrides: &Overrides,
    environment: &Environment,
) -> Result<Loaded, Invalid> {
    understand(document, overrides, environment, Report::default())
}

fn understand(
    document: Option<&Document>,
    overrides: &Overrides,
    environment: &Environment,
    mut report: Report,
) -> Result<Loaded, Invalid> {
    let root = document.and_then(|document| raw::parse(&document.path, &document.text, &mut report));
    // A file that could not be read says nothing about what is missing: its own problem is the only one to repair.
    let unread = !report.problems.is_empty() && root.is_none();
    let before = unread.then(|| report.clone());
    let mut reader = Reader::new(environment, document.map(|document| document.path.clone()), report);
    let mut config = validate::validate(root.as_ref(), overrides, &mut reader);
    let Reader { report, mut origins, join_token_unset, resource_places, .. } = reader;
    let report = before.unwrap_or(report);
    if let Some(document) = document {
        config.file = Some(document.path.to_path_buf());
        origins.insert(keys::CONFIG_FILE.path.to_owned(), document.named_by.clone());
    }
    let Report { problems, warnings, further_problems, further_warnings } = report;
    if !problems.is_empty() {
        let Config { data_dir, runtime_dir, .. } = config;
        return Err(Invalid { problems, further_problems, warnings, data_dir, runtime_dir });
    }
    Ok(Loaded { config, warnings, further_warnings, origins, join_token_unset, resource_places })
}

impl Loaded {
    /// Whether the join token is as it should be, which depends on whether a certificate is stored in
    /// [`Config::data_dir`] (contract sections 2 and 3). A warning where a certificate makes the token needless, `None`
    /// where there is nothing to say. `join --token` has no need to ask.
    ///
    /// # Errors
    /// No certificate is stored, and no token to get one with.
    pub fn check_join_token(&self, certificate_stored: bool) -> Result<Option<Warning>, Problem> {
        let key = &keys::JOIN_TOKEN;
        let origin = || self.origins.get(key.path).cloned().unwrap_or(Origin::Default);
        let warning = |origin, message: String| Some(Warning { origin, key: key.path.to_owned(), message });
        match (&self.join_token_unset, &self.config.join_token, certificate_stored) {
            (Some((name, place)), _, true) => {
                let message = format!("names {name}, which is not set; a certificate is stored, so it is not needed");
                Ok(warning(place.clone(), message))
            }
            (Some((name, place)), _, false) => Err(Problem {
                origin: place.clone(),
                key: key.path.to_owned(),
                found: format!("${{{name}}}, and {name} is not set in the environment"),
                expected: "a join token, since no certificate is stored".to_owned(),
            }),
            (None, Some(_), true) => {
                Ok(warning(origin(), "is not needed any more, since a certificate is stored; remove it".to_owned()))
            }
            (None, None, false) => Err(Problem {
                origin: Origin::Default,
                key: key.path.to_owned(),
                found: "none, and no stored certificate".to_owned(),
                expected: "a join token, as join_token in the file or BAMF_JOIN_TOKEN".to_owned(),
            }),
            (None, Some(_), false) | (None, None, true) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests;
