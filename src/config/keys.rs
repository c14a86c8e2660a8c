//! Every key of the configuration in one table: its names, its default, what it expects, what it is for.
//!
//! Reading, the messages about wrong and unknown keys, `config show` and the reference in the documentation all go by
//! this table, so none of them can know a key that another one does not. Order here is order there.

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Dotted path, e.g. `update.window`; `[]` stands for any item of a list.
    pub path: &'static str,
    /// Whether it may stand in the file; otherwise only its variables set it.
    pub in_file: bool,
    /// Environment variables, the first non-empty one wins, and wins over the file.
    pub variables: &'static [&'static str],
    /// The default as it would be written; empty where there is none.
    pub default: &'static str,
    /// What a valid value is; completes "expected …".
    pub expected: &'static str,
    /// One line on what it is for.
    pub doc: &'static str,
    /// The value is never shown.
    pub secret: bool,
}

impl Key {
    /// The last part of the path: the key as it stands in its map.
    #[must_use]
    pub fn leaf(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }
}

/// Declares the constants and the table of all of them.
macro_rules! keys {
    ($($name:ident {
        $path:literal, $place:ident, [$($variable:literal),*], default $default:literal,
        expects $expected:literal, $doc:literal
    })+) => {
        $(#[doc = concat!("The key `", $path, "`.")]
        pub static $name: Key = Key {
            path: $path,
            in_file: keys!(@in_file $place),
            variables: &[$($variable),*],
            default: $default,
            expected: $expected,
            doc: $doc,
            secret: keys!(@secret $place),
        };)+

        /// The table, in the order in which it is shown.
        pub static ALL: &[&Key] = &[$(&$name),+];
    };
    (@in_file file) => { true };
    (@in_file secret_file) => { true };
    (@in_file environment) => { false };
    (@in_file secret_environment) => { false };
    (@secret file) => { false };
    (@secret secret_file) => { true };
    (@secret environment) => { false };
    (@secret secret_environment) => { true };
}

keys! {
    CONFIG_FILE {
        "config_file", environment, ["BAMF_CONFIG_FILE"], default "",
        expects "the path of a file", "The file to read instead of /etc/bamf/agent.yaml or ./agent.yaml; --config wins over it"
    }
    PLATFORM_URL {
        "platform_url", file, ["BAMF_PLATFORM_URL", "BAMF_API_URL"], default "https://api.bamf.example.com",
        expects "an address such as https://bamf.example.com", "Base address of the platform's API"
    }
    JOIN_TOKEN {
        "join_token", secret_file, ["BAMF_JOIN_TOKEN"], default "",
        expects "a join token", "Needed until a certificate is stored, never again"
    }
    AGENT_NAME {
        "agent_name", file, ["BAMF_AGENT_NAME"], default "the host name made valid",
        expects "a name of lower-case letters, digits and dashes that begins with a letter, 63 characters at most",
        "The name to register under; the name in a stored certificate wins over it"
    }
    DATA_DIR {
        "data_dir", file, ["BAMF_DATA_DIR"], default "/var/lib/bamf-agent",
        expects "a directory", "Where the identity is stored"
    }
    CLUSTER_INTERNAL {
        "cluster_internal", file, ["BAMF_CLUSTER_INTERNAL"], default "false",
        expects "true or false", "The agent runs inside the platform's own cluster"
    }
    ZONE {
        "zone", file, ["BAMF_ZONE"], default "",
        expects "in-cluster, internal or public", "Network zone of the agent, which decides how it reaches the relays"
    }
    LABELS {
        "labels", file, ["BAMF_LABELS"], default "",
        expects "a map of texts (in the variable: key=value,key=value)",
        "Labels of the agent, for display; the variable's labels are added to the file's and win over them"
    }
    RESOURCES {
        "resources", file, ["BAMF_RESOURCES"], default "",
        expects "a list of resources (in the variable: name:type:host:port,…)",
        "What people can connect to; the variable replaces the file's list"
    }
    RESOURCE_NAME {
        "resources[].name", file, [], default "the hostname",
        expects "a name of lower-case letters, digits, dots and dashes, 63 characters at most",
        "Unique name of the resource"
    }
    RESOURCE_TYPE {
        "resources[].type", file, [], default "",
        expects "a type such as ssh, postgres, http or tcp", "Protocol of the target; required"
    }
    RESOURCE_HOSTNAME {
        "resources[].hostname", file, [], default "",
        expects "a host name or an IP address", "The target as the agent sees it"
    }
    RESOURCE_HOST {
        "resources[].host", file, [], default "",
        expects "a host name or an IP address", "Older spelling of hostname, which wins over it"
    }
    RESOURCE_PORT {
        "resources[].port", file, [], default "by type",
        expects "a port from 0 to 65535; 0 means the default of the type", "Port of the target"
    }
    RESOURCE_LABELS {
        "resources[].labels", file, [], default "",
        expects "a map of texts", "Labels that access rules go by"
    }
    RESOURCE_TUNNEL_HOSTNAME {
        "resources[].tunnel_hostname", file, [], default "the name, for http, http-audit and https",
        expects "a sub-domain of letters, digits, dots and dashes", "Sub-domain for access with a browser"
    }
    RESOURCE_WEBHOOKS {
        "resources[].webhooks", file, [], default "",
        expects "a list of webhooks", "Paths that outside systems may call without signing in; list form of resources only"
    }
    WEBHOOK_PATH {
        "resources[].webhooks[].path", file, [], default "",
        expects "a path that begins with /", "Prefix of the paths; /hook also lets /hookx through"
    }
    WEBHOOK_METHODS {
        "resources[].webhooks[].methods", file, [], default "",
        expects "a list of HTTP methods such as [POST]; without one the platform refuses every heartbeat",
        "HTTP methods that are let through; required"
    }
    WEBHOOK_SOURCE_CIDRS {
        "resources[].webhooks[].source_cidrs", file, [], default "",
        expects "networks such as 192.0.2.0/24 or 2001:db8::/32", "Networks that calls may come from; none means any"
    }
    RESOURCE_FORWARD_SESSION_TOKEN {
        "resources[].forward_session_token", file, [], default "only where labelled managed-by: bamf",
        expects "true or false", "Hand the user's live session (X-Bamf-Session-Token) to the target"
    }
    RESOURCE_DIAL {
        "resources[].dial", file, [], default "auto",
        expects "auto, lazy or eager", "When the target is dialled; auto is eager where the server speaks first"
    }
    LISTEN {
        "listen", file, [], default "127.0.0.1:8081 (in Kubernetes 0.0.0.0:8081)",
        expects "an IP address and a port such as 127.0.0.1:8081", "Where /health, /ready and /metrics are served"
    }
    ALLOW_INSECURE_HTTP {
        "allow_insecure_http", file, ["BAMF_ALLOW_INSECURE_HTTP"], default "false",
        expects "true or false", "Accept http:// for other hosts than loopback"
    }
    HEARTBEAT_INTERVAL {
        "heartbeat_interval", environment, ["BAMF_HEARTBEAT_INTERVAL"], default "1m",
        expects "a duration such as 60s, above zero and at most 2m (the platform forgets an agent after 3m)",
        "Time between heartbeats"
    }
    RECONNECT_BASE_DELAY {
        "reconnect_base_delay", environment, ["BAMF_RECONNECT_BASE_DELAY"], default "1s",
        expects "a duration such as 1s, above zero and at most 24h", "Longest first wait before a reconnect"
    }
    RECONNECT_MAX_DELAY {
        "reconnect_max_delay", environment, ["BAMF_RECONNECT_MAX_DELAY"], default "5m",
        expects "a duration such as 5m, at least the base delay and at most 24h", "Longest wait before a reconnect"
    }
    UPDATE_SOURCE {
        "update.source", file, ["BAMF_UPDATE_SOURCE"], default "https://github.com/mattrobinsonsre/bamf",
        expects "an https:// address or an absolute directory",
        "Where releases come from: a GitHub (or GHES) repository, a mirror with the same paths, or a directory"
    }
    UPDATE_API_URL {
        "update.api_url", file, ["BAMF_UPDATE_API_URL"], default "",
        expects "an address such as https://api.github.com",
        "GitHub REST base; by default https://api.github.com, and <host>/api/v3 on GHES"
    }
    UPDATE_TRUSTED_KEYS {
        "update.trusted_keys", file, ["BAMF_UPDATE_TRUSTED_KEYS"], default "",
        expects "minisign public keys, each the base64 line that begins with RW", "Keys that replace the built-in ones"
    }
    UPDATE_REQUIRED_SIGNATURES {
        "update.required_signatures", file, [], default "1",
        expects "a number from 1 to the number of trusted keys", "How many different trusted keys must have signed"
    }
    UPDATE_ASSUME_API_VERSION {
        "update.assume_api_version", file, [], default "",
        expects "a version such as 1.2.0", "The platform's version, for platforms that do not report theirs"
    }
    UPDATE_AUTO {
        "update.auto", file, [], default "false",
        expects "true or false", "Let the timer or an upgrade of the platform update unattended"
    }
    UPDATE_WINDOW {
        "update.window", file, [], default "",
        expects "local times such as \"Sat..Sun 02:00-05:00\"", "When unattended updates may begin; empty means any time"
    }
    UPDATE_HEALTH_TIMEOUT {
        "update.health_timeout", file, [], default "1m30s",
        expects "a duration such as 90s, from 1s to 1h", "How long a new version may take to become healthy"
    }
    UPDATE_DRAIN_TIMEOUT {
        "update.drain_timeout", file, [], default "30s",
        expects "a duration such as 30s, from 0 to 24h", "How long a stop waits for sessions that cannot be handed over"
    }
    GITHUB_TOKEN {
        "update.github_token", secret_environment, ["GITHUB_TOKEN"], default "",
        expects "a token", "Sent to GitHub's REST API, which limits anonymous callers"
    }
    HTTPS_PROXY {
        "network.https_proxy", secret_environment, ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"], default "",
        expects "the address of an HTTP proxy such as http://proxy.example.com:3128", "Proxy for https:// addresses"
    }
    HTTP_PROXY {
        "network.http_proxy", secret_environment, ["http_proxy"], default "",
        expects "the address of an HTTP proxy such as http://proxy.example.com:3128", "Proxy for http:// addresses"
    }
    NO_PROXY {
        "network.no_proxy", environment, ["NO_PROXY", "no_proxy"], default "",
        expects "hosts separated by commas", "Hosts that are reached without a proxy"
    }
    EXTRA_ROOTS {
        "network.extra_roots", environment, ["SSL_CERT_FILE"], default "",
        expects "the path of a PEM file", "Further certificate authorities to trust"
    }
    CERT_SECRET_NAME {
        "kubernetes.cert_secret_name", environment, ["BAMF_CERT_SECRET_NAME"], default "bamf-agent-certs",
        expects "the name of a Secret", "In Kubernetes, the Secret that holds the identity"
    }
    CERT_SECRET_NAMESPACE {
        "kubernetes.namespace", environment, ["BAMF_NAMESPACE", "POD_NAMESPACE"], default "the pod's",
        expects "the name of a namespace", "In Kubernetes, the namespace of that Secret"
    }
    KUBERNETES_HOST {
        "kubernetes.service_host", environment, ["KUBERNETES_SERVICE_HOST"], default "",
        expects "a host", "Set by Kubernetes: the cluster's API server; its presence turns Kubernetes mode on"
    }
    KUBERNETES_PORT {
        "kubernetes.service_port", environment, ["KUBERNETES_SERVICE_PORT"], default "443",
        expects "a port", "Set by Kubernetes: port of the cluster's API server"
    }
    RUNTIME_DIR {
        "runtime_dir", environment, ["BAMF_RUNTIME_DIR", "RUNTIME_DIRECTORY"], default "/run/bamf-agent",
        expects "an absolute directory, short enough for a socket's path", "Where the control socket lies; --runtime-dir wins over it"
    }
    DEBUG {
        "debug", environment, ["BAMF_DEBUG"], default "false",
        expects "true or false", "Log at debug level, as --debug does"
    }
}

/// The keys that may stand in the map whose keys begin with `prefix`, e.g. `update.` or `resources[].`.
pub fn in_map(prefix: &str) -> impl Iterator<Item = &'static str> {
    let mut last = "";
    ALL.iter().filter(|key| key.in_file).filter_map(move |key| {
        let rest = key.path.strip_prefix(prefix)?;
        let leaf = rest.split(['.', '[']).next().filter(|leaf| !leaf.is_empty() && *leaf != last)?;
        last = leaf;
        Some(leaf)
    })
}

/// What to tell somebody who wrote `found` into the map `prefix`, where it is no key.
#[must_use]
pub fn hint(prefix: &str, found: &str) -> String {
    if let Some(key) = ALL.iter().find(|key| !key.in_file && key.leaf() == found) {
        return format!(
            "cannot stand in the file and is ignored; the environment variable {} sets it",
            key.variables[0]
        );
    }
    let elsewhere =
        ALL.iter().find(|key| key.in_file && key.leaf() == found && !in_map(prefix).any(|leaf| leaf == found));
    if let Some(key) = elsewhere {
        return format!("unknown key, ignored; did you mean {}?", key.path);
    }
    match nearest(found, in_map(prefix)) {
        Some(near) => format!("unknown key, ignored; the nearest known key is {prefix}{near}"),
        None => "unknown key, ignored".to_owned(),
    }
}

/// The known variable that `found` is probably a misspelling of.
#[must_use]
pub fn misspelt_variable(found: &str) -> Option<&'static str> {
    let known = || ALL.iter().flat_map(|key| key.variables).copied();
    if known().any(|name| name == found) {
        return None;
    }
    nearest(found, known()).filter(|name| distance(found, name) <= 2)
}

fn nearest(found: &str, known: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let found = found.to_ascii_lowercase();
    known.min_by_key(|name| distance(&found, &name.to_ascii_lowercase()))
}

/// Levenshtein's edit distance, with longer texts cut: a key of a thousand characters is near to nothing anyway.
fn distance(left: &str, right: &str) -> usize {
    const COMPARED: usize = 64;
    let right: Vec<char> = right.chars().take(COMPARED).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().take(COMPARED).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn paths_and_variables_are_unique_and_every_key_can_be_set() {
        let (mut paths, mut variables) = (BTreeSet::new(), BTreeSet::new());
        for key in ALL {
            assert!(paths.insert(key.path), "{} twice", key.path);
            assert!(key.in_file || !key.variables.is_empty(), "{} cannot be set", key.path);
            assert!(!key.doc.ends_with('.') && !key.doc.is_empty(), "{}", key.path);
            for variable in key.variables {
                assert!(variables.insert(variable), "{variable} twice");
            }
        }
    }

    /// Protocol 2.2 and contract section 2, "Environment".
    #[test]
    fn every_documented_variable_is_in_the_table() {
        let known: BTreeSet<_> = ALL.iter().flat_map(|key| key.variables).copied().collect();
        for variable in [
            "BAMF_PLATFORM_URL",
            "BAMF_API_URL",
            "BAMF_JOIN_TOKEN",
            "BAMF_AGENT_NAME",
            "BAMF_DATA_DIR",
            "BAMF_CLUSTER_INTERNAL",
            "BAMF_ZONE",
            "BAMF_LABELS",
            "BAMF_RESOURCES",
            "BAMF_HEARTBEAT_INTERVAL",
            "BAMF_RECONNECT_BASE_DELAY",
            "BAMF_RECONNECT_MAX_DELAY",
            "BAMF_DEBUG",
            "BAMF_CONFIG_FILE",
            "BAMF_CERT_SECRET_NAME",
            "BAMF_NAMESPACE",
            "POD_NAMESPACE",
            "KUBERNETES_SERVICE_HOST",
            "BAMF_UPDATE_SOURCE",
            "BAMF_UPDATE_API_URL",
            "BAMF_UPDATE_TRUSTED_KEYS",
            "GITHUB_TOKEN",
            "HTTPS_PROXY",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "BAMF_RUNTIME_DIR",
        ] {
            assert!(known.contains(variable), "{variable}");
        }
    }

    #[test]
    fn the_keys_of_each_map_come_from_the_table() {
        assert!(in_map("").eq([
            "platform_url",
            "join_token",
            "agent_name",
            "data_dir",
            "cluster_internal",
            "zone",
            "labels",
            "resources",
            "listen",
            "allow_insecure_http",
            "update",
        ]));
        assert!(in_map("resources[].webhooks[].").eq(["path", "methods", "source_cidrs"]));
        assert!(in_map("update.").any(|leaf| leaf == "window"));
        assert!(!in_map("update.").any(|leaf| leaf == "github_token"));
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_key_that_was_meant() {
        for (prefix, found, hint_part) in [
            ("", "platfrom_url", "platform_url"),
            ("", "Agent_Name", "agent_name"),
            ("", "resource", "resources"),
            ("update.", "windows", "update.window"),
            ("", "required_signatures", "update.required_signatures"),
            ("", "heartbeat_interval", "BAMF_HEARTBEAT_INTERVAL"),
            ("resources[].", "hostnam", "resources[].hostname"),
            ("", "", "nearest"),
        ] {
            assert!(hint(prefix, found).contains(hint_part), "{found}: {}", hint(prefix, found));
        }
    }

    #[test]
    fn only_near_misses_of_variables_are_pointed_out() {
        assert_eq!(misspelt_variable("BAMF_PLATFROM_URL"), Some("BAMF_PLATFORM_URL"));
        assert_eq!(misspelt_variable("BAMF_PLATFORM_URL"), None);
        // Kubernetes sets such variables for every service.
        assert_eq!(misspelt_variable("BAMF_API_PORT"), None);
        assert_eq!(misspelt_variable("BAMF_VERSION"), None);
    }

    #[test]
    fn edit_distance_counts_single_edits() {
        for (left, right, edits) in
            [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("ü", "u", 1)]
        {
            assert_eq!(distance(left, right), edits, "{left} {right}");
        }
    }
}
