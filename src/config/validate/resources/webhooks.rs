//! `webhooks` of a resource: paths that outside systems may call (protocol 2.5). The platform enforces them.

use super::{Form, judged_field};
use crate::config::Webhook;
use crate::config::keys::{self, Key};
use crate::config::raw::{Body, Entry, Node, get};
use crate::config::reader::{Reader, Text};

pub(super) fn webhooks(reader: &mut Reader<'_>, at: &str, map: &[Entry], form: Form) -> Vec<Webhook> {
    let key = &keys::RESOURCE_WEBHOOKS;
    let (node, path) = (get(map, "webhooks"), format!("{at}.webhooks"));
    if let (Form::Map, Some(node)) = (form, node) {
        let message = "have no effect in this form of resources; write resources as a list";
        reader.report.warning(reader.at(node.mark), path, message);
        return Vec::new();
    }
    let mut webhooks = Vec::new();
    for (index, item) in reader.list(&path, key.expected, node).iter().enumerate() {
        webhooks.extend(webhook(reader, &format!("{path}[{index}]"), item));
    }
    webhooks
}

fn webhook(reader: &mut Reader<'_>, at: &str, item: &Node) -> Option<Webhook> {
    if item.body == Body::Null {
        reader.report.problem(reader.at(item.mark), at, item.kind(), "a map of path, methods, source_cidrs");
        return None;
    }
    let map = reader.map(at, "a map of path, methods, source_cidrs", Some(item));
    if !matches!(item.body, Body::Map(_)) {
        return None;
    }
    reader.warn_unknown("resources[].webhooks[].", at, map);
    let methods = methods(reader, at, item, map);
    let source_cidrs = texts(reader, &keys::WEBHOOK_SOURCE_CIDRS, at, map, is_network);
    let path = judged_field(reader, &keys::WEBHOOK_PATH, at, map, |text| {
        let clean = !text.text.contains(|c: char| c.is_whitespace() || c.is_control());
        (text.text.starts_with('/') && clean).then(|| text.text.clone())
    });
    if path == Ok(None) {
        reader.problem(reader.at(item.mark), format!("{at}.path"), "none", keys::WEBHOOK_PATH.expected);
    }
    Some(Webhook { path: path.ok()??, methods, source_cidrs })
}

/// "A webhook without `methods` is serialised as null, which the API rejects with 422, and then every heartbeat of that
/// agent fails. Send `[]` or refuse the configuration": refused, because a webhook that lets nothing through is not what
/// was meant. An empty list that somebody did write is passed on.
fn methods(reader: &mut Reader<'_>, at: &str, item: &Node, map: &[Entry]) -> Vec<String> {
    let (key, path) = (&keys::WEBHOOK_METHODS, format!("{at}.methods"));
    match get(map, "methods") {
        None => reader.report.problem(reader.at(item.mark), path, "none", key.expected),
        Some(node) if node.body == Body::Null => {
            reader.report.problem(reader.at(node.mark), path, "nothing", key.expected);
        }
        Some(node) if node.body == Body::List(Vec::new()) => {
            reader.report.warning(reader.at(node.mark), path, "is empty, so the webhook lets nothing through");
        }
        Some(_) => {}
    }
    texts(reader, key, at, map, |method| !method.is_empty() && method.chars().all(|c| c.is_ascii_alphabetic()))
}

/// A list of texts that each pass a check.
fn texts(reader: &mut Reader<'_>, key: &Key, at: &str, map: &[Entry], fits: impl Fn(&str) -> bool) -> Vec<String> {
    let path = format!("{at}.{}", key.leaf());
    let mut texts = Vec::new();
    for (index, node) in reader.list(&path, key.expected, get(map, key.leaf())).iter().enumerate() {
        let path = format!("{path}[{index}]");
        let text = reader.literal(key, &path, node).map(Some);
        let fits = |text: &Text| fits(text.text.trim()).then(|| text.text.trim().to_owned()).ok_or(key.expected);
        texts.extend(reader.judge(&path, text, fits).ok().flatten());
    }
    texts
}

/// `192.0.2.0/24`, `2001:db8::/32`, or one address.
fn is_network(text: &str) -> bool {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let Ok(address) = address.parse::<std::net::IpAddr>() else { return false };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let digits = |prefix: &str| prefix.bytes().all(|byte| byte.is_ascii_digit());
    prefix.is_none_or(|prefix| digits(prefix) && prefix.parse::<u8>().is_ok_and(|bits| bits <= longest))
}
