//! The effective configuration as rows of key, value and origin, for `config show`. Printing is done elsewhere.

use super::keys::{self, Key};
use super::raw::bare;
use super::report::Origin;
use super::{Config, Dial, Loaded, Resource, Webhook, duration};

/// One line of `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key, e.g. `update.window`, `labels.env` or `resources[0].port`.
    pub key: String,
    /// The value as it could be written; `***` for a secret that is set, empty for what is not set.
    pub value: String,
    /// `/etc/bamf/agent.yaml:12`, `BAMF_ZONE`, `--debug`, `host name` or `default`.
    pub origin: String,
}

/// What a secret shows of itself: that it is there.
const MASK: &str = "***";

impl Loaded {
    /// Every value in the order of the table, with where it came from; secrets masked.
    #[must_use]
    pub fn show(&self) -> Vec<Row> {
        let top = keys::ALL.iter().filter(|key| !key.path.contains("[]"));
        top.flat_map(|key| self.rows(key)).collect()
    }

    fn rows(&self, key: &'static Key) -> Vec<Row> {
        let config = &self.config;
        match key.path {
            "labels" if !config.labels.is_empty() => config
                .labels
                .iter()
                .map(|(name, value)| self.row(format!("labels.{}", bare(name)), value.clone()))
                .collect(),
            "resources" if !config.resources.is_empty() => self.resource_rows(),
            "join_token" => vec![self.join_token()],
            path => vec![self.row(path.to_owned(), value(config, path).unwrap_or_default())],
        }
    }

    fn row(&self, key: String, value: String) -> Row {
        let origin = self.origins.get(&key).unwrap_or(&Origin::Default).to_string();
        Row { key, value, origin }
    }

    fn join_token(&self) -> Row {
        let key = keys::JOIN_TOKEN.path.to_owned();
        match &self.join_token_unset {
            Some((name, origin)) => Row { key, value: format!("(${{{name}}} is not set)"), origin: origin.to_string() },
            None => self.row(key, masked(self.config.join_token.is_some())),
        }
    }

    fn resource_rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for (resource, at) in self.config.resources.iter().zip(&self.resource_places) {
            let fields = resource_fields(resource).into_iter();
            rows.extend(fields.map(|(leaf, value)| self.row(format!("{at}.{leaf}"), value)));
        }
        rows
    }
}

fn masked(is_set: bool) -> String {
    if is_set { MASK.to_owned() } else { String::new() }
}

/// The value of a key that stands for itself; `None` for a key that this function does not know.
fn value(config: &Config, path: &str) -> Option<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (update, network, cluster) = (&config.update, &config.network, &config.cluster);
    Some(match path {
        "config_file" => config.file.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "platform_url" => config.platform_base().to_owned(),
        "join_token" => masked(config.join_token.is_some()),
        "agent_name" => config.agent_name.clone(),
        "data_dir" => config.data_dir.display().to_string(),
        "cluster_internal" => config.cluster_internal.to_string(),
        "zone" => text(&config.zone),
        "labels" | "resources" => String::new(),
        "listen" => config.listen.to_string(),
        "allow_insecure_http" => config.allow_insecure_http.to_string(),
        "heartbeat_interval" => duration::format(config.heartbeat_interval),
        "reconnect_base_delay" => duration::format(config.reconnect_base_delay),
        "reconnect_max_delay" => duration::format(config.reconnect_max_delay),
        "update.source" => update.source.clone(),
        "update.api_url" => update.api_url.as_ref().map(ToString::to_string).unwrap_or_default(),
        "update.trusted_keys" => update.trusted_keys.join(","),
        "update.required_signatures" => update.required_signatures.to_string(),
        "update.assume_api_version" => update.assume_api_version.as_ref().map(ToString::to_string).unwrap_or_default(),
        "update.auto" => update.auto.to_string(),
        "update.window" => update.window.clone(),
        "update.health_timeout" => duration::format(update.health_timeout),
        "update.drain_timeout" => duration::format(update.drain_timeout),
        "update.github_token" => masked(update.github_token.is_some()),
        "network.https_proxy" => masked(network.https_proxy.is_some()),
        "network.http_proxy" => masked(network.http_proxy.is_some()),
        "network.no_proxy" => text(&network.no_proxy),
        "network.extra_roots" => {
            network.extra_roots.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
        }
        "kubernetes.cert_secret_name" => cluster.cert_secret_name.clone(),
        "kubernetes.namespace" => text(&cluster.namespace),
        "kubernetes.service_host" => text(&cluster.api_host),
        "kubernetes.service_port" => cluster.api_port.to_string(),
        "runtime_dir" => config.runtime_dir.display().to_string(),
        "debug" => config.debug.to_string(),
        _ => return None,
    })
}

fn resource_fields(resource: &Resource) -> Vec<(String, String)> {
    let mut fields = vec![
        ("name".to_owned(), resource.name.clone()),
        ("type".to_owned(), resource.resource_type.clone()),
        ("hostname".to_owned(), resource.hostname.clone()),
        ("port".to_owned(), resource.port.to_string()),
    ];
    let labels = resource.labels.iter();
    fields.extend(labels.map(|(name, value)| (format!("labels.{}", bare(name)), value.clone())));
    if let Some(tunnel_hostname) = &resource.tunnel_hostname {
        fields.push(("tunnel_hostname".to_owned(), tunnel_hostname.clone()));
    }
    let webhooks = resource.webhooks.iter().enumerate();
    fields.extend(webhooks.map(|(index, webhook)| (format!("webhooks[{index}]"), webhook_text(webhook))));
    fields.push(("forward_session_token".to_owned(), resource.forward_session_token.to_string()));
    let dial = match resource.dial {
        Dial::Auto => "auto",
        Dial::Lazy => "lazy",
        Dial::Eager => "eager",
    };
    fields.push(("dial".to_owned(), dial.to_owned()));
    fields
}

/// `POST,PUT /hook from 192.0.2.0/24`
fn webhook_text(webhook: &Webhook) -> String {
    let mut text = format!("{} {}", webhook.methods.join(","), webhook.path);
    if !webhook.source_cidrs.is_empty() {
        text.push_str(" from ");
        text.push_str(&webhook.source_cidrs.join(","));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, interpret};

    #[test]
    fn every_key_of_the_table_has_a_value_to_show() {
        let environment = Environment::from_pairs([("BAMF_PLATFORM_URL", "https://bamf.test")]);
        let loaded = interpret(None, &Overrides::default(), &environment).unwrap();
        for key in keys::ALL.iter().filter(|key| !key.path.contains("[]")) {
            assert!(value(&loaded.config, key.path).is_some(), "{}", key.path);
        }
    }
}
