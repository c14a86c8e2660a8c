//! From what was written to what it means: every key is judged, every fault is reported, and only then is one refused.
//!
//! Pure: the tree, the overrides and the environment come in as values. What could not be read falls back to its
//! default, so that one mistake does not hide the next; the caller refuses the whole if a problem was reported.
//!
//! Off-contract for protocol 2.3, which keeps the default silently where a duration or a port cannot be read: contract
//! section 2 makes every wrong value an error, wherever it was set.

mod resources;
mod update;

use core::net::{Ipv4Addr, SocketAddr};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::keys::{self, Key};
use super::raw::{Entry, Node, bare, get};
use super::reader::{Reader, Text, truth};
use super::report::Origin;
use super::source::Overrides;
use super::{Config, KubernetesConfig, NetworkConfig, Trust, address, duration, names};
use crate::secret::Secret;

/// Port of the health server (contract section 2, `listen`).
const HEALTH_PORT: u16 = 8081;

/// The platform forgets an agent 180 s after its last heartbeat (protocol 5.1); one that is late must not be the last.
const MAX_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(120);

/// A pause longer than a day is a typing mistake.
const MAX_DELAY: Duration = Duration::from_secs(24 * 3600);

/// Name of the control socket plus a slash: what a socket's path (108 bytes with its end, unix(7)) must leave room for.
const MAX_RUNTIME_DIR_BYTES: usize = 107 - "/agent.sock".len();

/// Judges a configuration. What is wrong stands in the reader's report.
pub(super) fn validate(root: Option<&Node>, overrides: &Overrides, reader: &mut Reader<'_>) -> Config {
    let top = reader.map("", "a map of keys such as platform_url: https://bamf.example.com", root);
    reader.warn_unknown("", "", top);
    warn_about_misspelt_variables(reader);
    let kubernetes = reader.environment.is_kubernetes();
    let allow_insecure_http = reader.parsed(&keys::ALLOW_INSECURE_HTTP, top, truth).unwrap_or(false);
    let (reconnect_base_delay, reconnect_max_delay) = reconnect_delays(reader);
    let (agent_name, agent_name_is_configured) = agent_name(reader, top);
    let join_token = reader.parsed(&keys::JOIN_TOKEN, top, |text| Some(Secret::new(text.text.clone())));
    Config {
        file: None,
        platform_url: platform_url(reader, top, allow_insecure_http),
        join_token,
        join_token_unset: reader.join_token_unset.as_ref().map(|(name, _)| name.clone()),
        agent_name,
        agent_name_is_configured,
        data_dir: data_dir(reader, top),
        cluster_internal: reader.parsed(&keys::CLUSTER_INTERNAL, top, truth).unwrap_or(false),
        zone: zone(reader, top),
        labels: agent_labels(reader, top),
        resources: resources::resources(reader, get(top, "resources"), kubernetes),
        listen: listen(reader, top, kubernetes),
        allow_insecure_http,
        heartbeat_interval: heartbeat_interval(reader),
        reconnect_base_delay,
        reconnect_max_delay,
        update: update::update(reader, get(top, "update"), allow_insecure_http),
        network: network(reader),
        runtime_dir: runtime_dir(overrides, reader),
        debug: debug(overrides, reader),
        kubernetes,
        cluster: cluster(reader),
    }
}

/// Judges only what says whom to trust.
pub(super) fn trust(root: Option<&Node>, reader: &mut Reader<'_>) -> Trust {
    let top = reader.map("", "a map of keys such as update", root);
    update::trust(reader, get(top, "update"))
}

/// "Not set" is a problem of its own: the default in the table is an example and belongs to nobody.
fn platform_url(reader: &mut Reader<'_>, top: &[Entry], allow_insecure_http: bool) -> Url {
    let key = &keys::PLATFORM_URL;
    let text = reader.setting(key, top);
    let url = reader.judge(key.path, text, |text| address::http_address(&text.text, allow_insecure_http));
    if url == Ok(None) {
        let expected = "the platform's address, as platform_url in the file (/etc/bamf/agent.yaml, or --config) or as \
                        BAMF_PLATFORM_URL";
        reader.problem(Origin::Default, key.path, "nothing", expected);
    }
    let default = || Url::parse(key.default).expect("the default in the table is an address");
    url.ok().flatten().unwrap_or_else(default)
}

/// The name, and whether it was configured.
fn agent_name(reader: &mut Reader<'_>, top: &[Entry]) -> (String, bool) {
    let key = &keys::AGENT_NAME;
    let name = reader.parsed(key, top, |text| names::is_agent_name(&text.text).then(|| text.text.clone()));
    if let Some(name) = name {
        return (name, true);
    }
    let name = match reader.environment.host_name.as_deref().and_then(names::agent_name_from_host) {
        Some(name) => {
            reader.origins.insert(key.path.to_owned(), Origin::Machine("host name"));
            name
        }
        None => {
            // Not an error: a stored certificate's name wins, and an agent that has one needs no host name.
            let message = "is not set, and the host name gives no valid name; \"agent\" is used";
            reader.report.warning(Origin::Default, key.path, message);
            "agent".to_owned()
        }
    };
    (name, false)
}

fn data_dir(reader: &mut Reader<'_>, top: &[Entry]) -> PathBuf {
    let key = &keys::DATA_DIR;
    let Ok(Some(text)) = reader.setting(key, top) else { return PathBuf::from(key.default) };
    let path = PathBuf::from(&text.text);
    if path.is_relative() {
        let message = format!("{} depends on the working directory; the updater may look elsewhere", text.found);
        reader.report.warning(text.origin.clone(), key.path, message);
    }
    reader.origins.insert(key.path.to_owned(), text.origin);
    path
}

/// Passed on whatever it is, because newer platforms may know more zones (protocol 2.2: "not validated by the agent").
fn zone(reader: &mut Reader<'_>, top: &[Entry]) -> Option<String> {
    let key = &keys::ZONE;
    let text = reader.setting(key, top).ok()??;
    if !matches!(text.text.as_str(), "in-cluster" | "internal" | "public") {
        let message =
            format!("{} is none of {}; the platform ignores zones that it does not know", text.found, key.expected);
        reader.report.warning(text.origin.clone(), key.path, message);
    }
    reader.origins.insert(key.path.to_owned(), text.origin);
    Some(text.text)
}

/// The file's labels, and over them the variable's, key by key.
fn agent_labels(reader: &mut Reader<'_>, top: &[Entry]) -> BTreeMap<String, String> {
    let key = &keys::LABELS;
    let mut all = labels(reader, key, key.path, get(top, key.leaf()));
    let Ok(Some(text)) = reader.variable(key) else { return all };
    let (read, skipped) = labels_from_variable(&text.text);
    for entry in skipped {
        let message = format!("{} has no name and = and is left out", super::report::quoted(&entry));
        reader.report.warning(text.origin.clone(), key.path, message);
    }
    for (name, value) in read {
        reader.origins.insert(format!("{}.{}", key.path, bare(&name)), text.origin.clone());
        all.insert(name, value);
    }
    all
}

/// `k=v,k2=v2`: the labels, and the entries that are none (protocol 2.3, `BAMF_LABELS`).
fn labels_from_variable(text: &str) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut labels, mut skipped) = (BTreeMap::new(), Vec::new());
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        match entry.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => {
                labels.insert(name.trim().to_owned(), value.trim().to_owned());
            }
            Some(_) | None => skipped.push(entry.to_owned()),
        }
    }
    (labels, skipped)
}

/// A map of texts; empty texts are values here.
fn labels(reader: &mut Reader<'_>, key: &Key, at: &str, node: Option<&Node>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for entry in reader.map(at, key.expected, node) {
        let path = format!("{at}.{}", bare(&entry.key));
        if let Ok(text) = reader.literal(key, &path, &entry.value) {
            reader.origins.insert(path, text.origin);
            labels.insert(entry.key.clone(), text.text);
        }
    }
    labels
}

fn listen(reader: &mut Reader<'_>, top: &[Entry], kubernetes: bool) -> SocketAddr {
    let address = if kubernetes { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };
    let default = SocketAddr::from((address, HEALTH_PORT));
    reader.parsed(&keys::LISTEN, top, |text| text.text.parse().ok()).unwrap_or(default)
}

/// A duration within limits; the section is empty for keys that only the environment sets.
fn duration(reader: &mut Reader<'_>, key: &Key, map: &[Entry], limits: std::ops::RangeInclusive<Duration>) -> Duration {
    let read = |text: &Text| {
        let nanos = duration::parse_nanos(&text.text)?;
        let duration = Duration::from_nanos(u64::try_from(nanos).ok()?);
        limits.contains(&duration).then_some(duration)
    };
    reader.parsed(key, map, read).unwrap_or_else(|| default_duration(key))
}

fn default_duration(key: &Key) -> Duration {
    let nanos = duration::parse_nanos(key.default).and_then(|nanos| u64::try_from(nanos).ok());
    Duration::from_nanos(nanos.expect("the default in the table is a duration"))
}

/// "Zero or negative heartbeat intervals crash REF; reject or clamp them": rejected.
fn heartbeat_interval(reader: &mut Reader<'_>) -> Duration {
    duration(reader, &keys::HEARTBEAT_INTERVAL, &[], Duration::from_nanos(1)..=MAX_HEARTBEAT_INTERVAL)
}

fn reconnect_delays(reader: &mut Reader<'_>) -> (Duration, Duration) {
    let above_zero = Duration::from_nanos(1)..=MAX_DELAY;
    let base = duration(reader, &keys::RECONNECT_BASE_DELAY, &[], above_zero.clone());
    let max = duration(reader, &keys::RECONNECT_MAX_DELAY, &[], above_zero);
    if max < base {
        let key = &keys::RECONNECT_MAX_DELAY;
        let origin = reader.origins.get(key.path).or_else(|| reader.origins.get(keys::RECONNECT_BASE_DELAY.path));
        let origin = origin.cloned().unwrap_or(Origin::Default);
        let expected = format!("at least reconnect_base_delay, {}", duration::format(base));
        reader.report.problem(origin, key.path, duration::format(max), expected);
    }
    (base, max)
}

fn network(reader: &mut Reader<'_>) -> NetworkConfig {
    let proxy = |text: &Text| address::proxy(&text.text).map(Secret::new);
    let https_proxy = reader.variable(&keys::HTTPS_PROXY);
    let http_proxy = reader.variable(&keys::HTTP_PROXY);
    NetworkConfig {
        https_proxy: reader.judge(keys::HTTPS_PROXY.path, https_proxy, proxy).ok().flatten(),
        http_proxy: reader.judge(keys::HTTP_PROXY.path, http_proxy, proxy).ok().flatten(),
        no_proxy: reader.parsed(&keys::NO_PROXY, &[], |text| Some(text.text.clone())),
        extra_roots: reader.parsed(&keys::EXTRA_ROOTS, &[], |text| Some(PathBuf::from(&text.text))),
    }
}

fn cluster(reader: &mut Reader<'_>) -> KubernetesConfig {
    let own = |text: &Text| Some(text.text.clone());
    let secret_name = reader.parsed(&keys::CERT_SECRET_NAME, &[], own);
    KubernetesConfig {
        cert_secret_name: secret_name.unwrap_or_else(|| keys::CERT_SECRET_NAME.default.to_owned()),
        namespace: reader.parsed(&keys::CERT_SECRET_NAMESPACE, &[], own),
        api_host: reader.parsed(&keys::KUBERNETES_HOST, &[], own),
        api_port: reader.parsed(&keys::KUBERNETES_PORT, &[], |text| text.text.parse().ok()).unwrap_or(443),
    }
}

/// `--runtime-dir`, else `BAMF_RUNTIME_DIR`, else the first of systemd's `RUNTIME_DIRECTORY` (a list with colons,
/// systemd.exec(5)), else the default.
fn runtime_dir(overrides: &Overrides, reader: &mut Reader<'_>) -> PathBuf {
    let key = &keys::RUNTIME_DIR;
    if let Some(path) = &overrides.runtime_dir {
        let origin = Origin::Flag("--runtime-dir");
        if path.as_os_str().len() > MAX_RUNTIME_DIR_BYTES {
            reader.report.problem(origin.clone(), key.path, path.display().to_string(), key.expected);
        }
        reader.origins.insert(key.path.to_owned(), origin);
        return path.clone();
    }
    let read = |text: &Text| {
        let of_systemd = text.origin == Origin::Variable("RUNTIME_DIRECTORY".into());
        let path = if of_systemd { text.text.split(':').next()? } else { text.text.as_str() };
        (Path::new(path).is_absolute() && path.len() <= MAX_RUNTIME_DIR_BYTES).then(|| PathBuf::from(path))
    };
    reader.parsed(key, &[], read).unwrap_or_else(|| PathBuf::from(key.default))
}

fn debug(overrides: &Overrides, reader: &mut Reader<'_>) -> bool {
    let by_variable = reader.parsed(&keys::DEBUG, &[], truth).unwrap_or(false);
    if overrides.debug {
        reader.origins.insert(keys::DEBUG.path.to_owned(), Origin::Flag("--debug"));
    }
    overrides.debug || by_variable
}

/// A misspelt variable has no effect and no other trace.
fn warn_about_misspelt_variables(reader: &mut Reader<'_>) {
    let environment = reader.environment;
    for name in environment.names().filter(|name| name.starts_with("BAMF_")) {
        if let Some(near) = keys::misspelt_variable(name) {
            let message = format!("this variable means nothing; did you mean {near}?");
            reader.report.warning(Origin::Variable(name.to_owned().into()), "", message);
        }
    }
}
