//! The configuration: what was written, where, and what it means (contract section 2, protocol chapter 2).
//!
//! It enters once. `source` reads the file and the environment, `raw` keeps every value with the place it came from,
//! `validate` turns that into a [`Config`] and reports all problems together, each with file, line, key and what was
//! expected. Nothing else in the crate reads the environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

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
