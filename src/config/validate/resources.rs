//! `resources`: the list and the older map by type in the file, or the variable (protocol 2.3 to 2.6).
//!
//! Off-contract for protocol 2.4, which ignores anything else under `resources` silently: a text there is a mistake and
//! an alias is what it stands for (contract section 2, "a wrong value is exit 78").

mod variable;
mod webhooks;

use std::collections::BTreeMap;

use super::labels;
use crate::config::keys::{self, Key};
use crate::config::names::{ResourceName, is_host, judge_resource_name};
use crate::config::raw::{Body, Entry, Node, bare, get};
use crate::config::reader::{Read, Reader, Reported, Text, truth};
use crate::config::report::{Origin, quoted};
use crate::config::{Dial, Resource};

/// Types that the platform knows, and their ports (protocol 2.4); 0 where the type has none.
const TYPES: [(&str, u16); 11] = [
    ("ssh", 22),
    ("ssh-audit", 22),
    ("postgres", 5432),
    ("postgres-audit", 5432),
    ("mysql", 3306),
    ("mysql-audit", 3306),
    ("kubernetes", 6443),
    ("http", 80),
    ("http-audit", 80),
    ("https", 443),
    ("tcp", 0),
];

/// Long enough for any type there will be.
const MAX_TYPE: usize = 63;

/// Which of the two forms in the file a resource is written in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    List,
    /// The key is the type; webhooks have no effect, as ever: turning them on unasked would open paths to the outside.
    Map,
}

/// A resource and where it is written.
struct Placed {
    resource: Resource,
    /// `resources[2]` or `resources.ssh`.
    at: String,
    origin: Origin,
}

pub(super) fn resources(reader: &mut Reader<'_>, node: Option<&Node>, kubernetes: bool) -> Vec<Resource> {
    let placed = match variable::listed_in_variable(reader) {
        Some(placed) => placed,
        None => listed_in_file(reader, node),
    };
    let mut first: BTreeMap<String, Origin> = BTreeMap::new();
    for Placed { resource, at, origin } in &placed {
        if let Some(other) = first.get(&resource.name) {
            let found = format!("the name {} a second time (first at {other})", quoted(&resource.name));
            reader.report.problem(origin.clone(), format!("{at}.name"), found, "every name once");
        } else {
            first.insert(resource.name.clone(), origin.clone());
        }
        warn_where_useless(reader, resource, at, origin, kubernetes);
    }
    let (places, resources) = placed.into_iter().map(|placed| (placed.at, placed.resource)).unzip();
    reader.resource_places = places;
    resources
}

/// What the platform takes and nobody can use.
fn warn_where_useless(reader: &mut Reader<'_>, resource: &Resource, at: &str, origin: &Origin, kubernetes: bool) {
    let mut warn = |leaf: &str, message: String| {
        reader.report.warning(origin.clone(), format!("{at}.{leaf}"), message);
    };
    let kind = resource.resource_type.as_str();
    if judge_resource_name(&resource.name) == ResourceName::Odd {
        warn("name", format!("{} is not {}", quoted(&resource.name), keys::RESOURCE_NAME.expected));
    }
    if !TYPES.iter().any(|(name, _)| *name == kind) {
        warn("type", format!("{} is an unknown type and is passed on as it is", quoted(kind)));
    }
    if resource.port == 0 {
        warn("port", "is not set and the type has no default, so the target cannot be dialled".to_owned());
    }
    if resource.hostname.is_empty() && kind != "kubernetes" {
        warn("hostname", "is not set, so the target cannot be dialled".to_owned());
    }
    if kind == "kubernetes" && !kubernetes {
        warn("type", "kubernetes works only for an agent inside the cluster".to_owned());
    }
    if has_web_access(kind) && resource.tunnel_hostname.is_none() {
        warn("tunnel_hostname", "cannot be set in BAMF_RESOURCES, so browsers cannot reach it".to_owned());
    }
}

fn has_web_access(kind: &str) -> bool {
    matches!(kind, "http" | "http-audit" | "https")
}

fn default_port(kind: &str) -> u16 {
    TYPES.iter().find(|(name, _)| *name == kind).map_or(0, |(_, port)| *port)
}

fn listed_in_file(reader: &mut Reader<'_>, node: Option<&Node>) -> Vec<Placed> {
    let Some(node) = node else { return Vec::new() };
    reader.origins.insert(keys::RESOURCES.path.to_owned(), reader.at(node.mark));
    let mut placed = Vec::new();
    match &node.body {
        Body::Null => {}
        Body::List(items) => {
            for (index, item) in items.iter().enumerate() {
                let at = format!("resources[{index}]");
                let map = item_map(reader, &at, item);
                let kind = reader.field(&keys::RESOURCE_TYPE, &at, map);
                placed.extend(map_to_resource(reader, item, at, map, kind, Form::List));
            }
        }
        Body::Map(entries) => {
            for entry in entries {
                let at = format!("resources.{}", bare(&entry.key));
                let map = item_map(reader, &at, &entry.value);
                let origin = reader.at(entry.mark);
                let kind = Text { text: entry.key.clone(), found: quoted(&entry.key), origin };
                placed.extend(map_to_resource(reader, &entry.value, at, map, Ok(Some(kind)), Form::Map));
            }
        }
        Body::Text(_) => {
            let expected = keys::RESOURCES.expected;
            reader.report.problem(reader.at(node.mark), keys::RESOURCES.path, node.kind(), expected);
        }
    }
    placed
}

/// The keys of one resource. An item without any is an item that somebody forgot to fill in.
fn item_map<'n>(reader: &mut Reader<'_>, at: &str, item: &'n Node) -> &'n [Entry] {
    let expected = "a map of keys such as name, type, hostname";
    if item.body == Body::Null {
        reader.report.problem(reader.at(item.mark), at, item.kind(), expected);
    }
    reader.map(at, expected, Some(item))
}

/// One resource; `None` where there is nothing to read, which has been reported.
fn map_to_resource(
    reader: &mut Reader<'_>,
    item: &Node,
    at: String,
    map: &[Entry],
    kind: Read<Text>,
    form: Form,
) -> Option<Placed> {
    if !matches!(item.body, Body::Map(_)) {
        return None;
    }
    reader.warn_unknown("resources[].", &at, map);
    let origin = reader.at(item.mark);
    reader.origins.insert(at.clone(), origin.clone());
    let resource_type = resource_type(reader, &at, map, kind, form, &origin);
    let hostname = hostname(reader, &at, map);
    let name = name(reader, &at, map, &hostname, &origin);
    let labels = labels(reader, &keys::RESOURCE_LABELS, &format!("{at}.labels"), get(map, "labels"));
    let managed = labels.get("managed-by").is_some_and(|by| by == "bamf");
    let resource = Resource {
        port: port(reader, &at, map, &resource_type),
        tunnel_hostname: tunnel_hostname(reader, &at, map)
            .or_else(|| name.clone().ok().filter(|_| has_web_access(&resource_type))),
        webhooks: webhooks::webhooks(reader, &at, map, form),
        forward_session_token: choice(reader, &keys::RESOURCE_FORWARD_SESSION_TOKEN, &at, map, truth)
            .unwrap_or(managed),
        dial: choice(reader, &keys::RESOURCE_DIAL, &at, map, dial).unwrap_or_default(),
        // Without a name it is not kept; the rest of it is read for what else is wrong.
        name: name.clone().unwrap_or_default(),
        resource_type,
        hostname: hostname.ok().flatten().unwrap_or_default(),
        labels,
    };
    name.is_ok().then_some(Placed { resource, at, origin })
}

/// A field whose only fault can be that it is not what the key expects.
pub(super) fn judged_field<T>(
    reader: &mut Reader<'_>,
    key: &Key,
    at: &str,
    map: &[Entry],
    read: impl FnOnce(&Text) -> Option<T>,
) -> Read<T> {
    let text = reader.field(key, at, map);
    reader.judge(&format!("{at}.{}", key.leaf()), text, |text| read(text).ok_or(key.expected))
}

/// [`judged_field`] for a key that need not be set.
fn choice<T>(
    reader: &mut Reader<'_>,
    key: &Key,
    at: &str,
    map: &[Entry],
    read: impl FnOnce(&Text) -> Option<T>,
) -> Option<T> {
    judged_field(reader, key, at, map, read).ok().flatten()
}

/// Required in the list. Off-contract for protocol 2.4, where the Go agent sends an empty type: nothing could use it.
fn resource_type(
    reader: &mut Reader<'_>,
    at: &str,
    map: &[Entry],
    kind: Read<Text>,
    form: Form,
    origin: &Origin,
) -> String {
    let (key, path) = (&keys::RESOURCE_TYPE, format!("{at}.type"));
    if form == Form::Map && get(map, "type").is_some() {
        reader.report.warning(origin.clone(), path.clone(), "has no effect here; the key above is the type");
    }
    let judged = reader.judge(&path, kind, |text| is_type(&text.text).then(|| text.text.clone()).ok_or(key.expected));
    if judged == Ok(None) {
        reader.problem(origin.clone(), path, "none", key.expected);
    }
    judged.ok().flatten().unwrap_or_default()
}

fn is_type(kind: &str) -> bool {
    !kind.is_empty() && kind.len() <= MAX_TYPE && kind.chars().all(|c| c.is_ascii_graphic())
}

/// `hostname`, else the older `host`. Brackets around an IPv6 address are for addresses with ports and are dropped.
fn hostname(reader: &mut Reader<'_>, at: &str, map: &[Entry]) -> Read<String> {
    let host = |text: &Text| {
        let bracketed = text.text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = bracketed.unwrap_or(&text.text);
        is_host(host).then(|| host.to_owned())
    };
    match judged_field(reader, &keys::RESOURCE_HOSTNAME, at, map, host)? {
        Some(hostname) => Ok(Some(hostname)),
        None => judged_field(reader, &keys::RESOURCE_HOST, at, map, host),
    }
}

/// The name, by default the hostname.
fn name(
    reader: &mut Reader<'_>,
    at: &str,
    map: &[Entry],
    hostname: &Read<String>,
    origin: &Origin,
) -> Result<String, Reported> {
    let key = &keys::RESOURCE_NAME;
    let usable = |text: &Text| (judge_resource_name(&text.text) != ResourceName::Unusable).then(|| text.text.clone());
    if let Some(name) = judged_field(reader, key, at, map, usable)? {
        return Ok(name);
    }
    let found = match hostname.as_ref().map_err(|reported| *reported)? {
        Some(hostname) if judge_resource_name(hostname) != ResourceName::Unusable => return Ok(hostname.clone()),
        Some(hostname) => format!("none, and the hostname {} cannot be one", quoted(hostname)),
        None => "none, and no hostname to name it by".to_owned(),
    };
    Err(reader.problem(origin.clone(), format!("{at}.name"), found, key.expected))
}

fn port(reader: &mut Reader<'_>, at: &str, map: &[Entry], kind: &str) -> u16 {
    let port = choice(reader, &keys::RESOURCE_PORT, at, map, |text| port_number(&text.text)).unwrap_or(0);
    if port == 0 { default_port(kind) } else { port }
}

/// Decimal digits only: YAML 1.1 reads `022` as 18, `0x16` as 22 and `1_000` as 1000, and none of them is meant.
fn port_number(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

fn tunnel_hostname(reader: &mut Reader<'_>, at: &str, map: &[Entry]) -> Option<String> {
    let sub_domain = |text: &Text| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        (text.text.len() <= 253 && text.text.chars().all(allowed)).then(|| text.text.clone())
    };
    choice(reader, &keys::RESOURCE_TUNNEL_HOSTNAME, at, map, sub_domain)
}

fn dial(text: &Text) -> Option<Dial> {
    match text.text.as_str() {
        "auto" => Some(Dial::Auto),
        "lazy" => Some(Dial::Lazy),
        "eager" => Some(Dial::Eager),
        _ => None,
    }
}
