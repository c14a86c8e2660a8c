//! `BAMF_RESOURCES`: `name:type:host:port,…` (protocol 2.3), which replaces the file's list.

use std::collections::BTreeMap;

use super::{Placed, is_type, port_number};
use crate::config::keys::{self, Key};
use crate::config::names::{ResourceName, is_host, judge_resource_name};
use crate::config::reader::Reader;
use crate::config::report::{Origin, quoted};
use crate::config::{Dial, Resource};

/// What one entry of `BAMF_RESOURCES` is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Listed {
    /// A resource.
    Resource(Box<Resource>),
    /// Fewer than four parts: left out, as ever.
    Skipped(String),
    /// A port that is none.
    BadPort(String),
    /// Parts beyond the fourth, which have never had a meaning: an IPv6 address ends up here.
    Surplus(Box<Resource>, String),
}

/// Reads `name:type:host:port,…` (protocol 2.3). No default port, no labels, no `tunnel_hostname`.
fn from_variable(text: &str) -> Vec<Listed> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(listed).collect()
}

fn listed(entry: &str) -> Listed {
    let parts: Vec<&str> = entry.split(':').map(str::trim).collect();
    let [name, kind, host, port, surplus @ ..] = parts.as_slice() else { return Listed::Skipped(entry.to_owned()) };
    let Some(port) = port_number(port) else { return Listed::BadPort(entry.to_owned()) };
    let resource = Box::new(Resource {
        name: (*name).to_owned(),
        resource_type: (*kind).to_owned(),
        hostname: (*host).to_owned(),
        port,
        labels: BTreeMap::new(),
        tunnel_hostname: None,
        webhooks: Vec::new(),
        forward_session_token: false,
        dial: Dial::Auto,
    });
    if surplus.is_empty() { Listed::Resource(resource) } else { Listed::Surplus(resource, entry.to_owned()) }
}

/// The variable's resources; `None` where it is not set or nothing in it is a resource, so that the file's list counts.
///
/// Off-contract for protocol 2.3, where a port that is none discards the whole variable silently: it is a problem.
pub(super) fn listed_in_variable(reader: &mut Reader<'_>) -> Option<Vec<Placed>> {
    let key = &keys::RESOURCES;
    let text = reader.variable(key).ok()??;
    let origin = text.origin;
    let mut placed = Vec::new();
    let mut wrong = false;
    for (index, listed) in from_variable(&text.text).into_iter().enumerate() {
        let at = format!("resources[{index}]");
        let resource = match listed {
            Listed::Resource(resource) => resource,
            Listed::Surplus(resource, entry) => {
                let message = format!("{} has more than four parts; the rest is ignored", quoted(&entry));
                reader.report.warning(origin.clone(), at.clone(), message);
                resource
            }
            Listed::Skipped(entry) => {
                let message = format!("{} is not name:type:host:port and is left out", quoted(&entry));
                reader.report.warning(origin.clone(), at, message);
                continue;
            }
            Listed::BadPort(entry) => {
                wrong = true;
                reader.report.problem(
                    origin.clone(),
                    at,
                    quoted(&entry),
                    "name:type:host:port with a port up to 65535",
                );
                continue;
            }
        };
        check_listed(reader, &resource, &at, &origin);
        for key in [&keys::RESOURCE_NAME, &keys::RESOURCE_TYPE, &keys::RESOURCE_HOSTNAME, &keys::RESOURCE_PORT] {
            reader.origins.insert(format!("{at}.{}", key.leaf()), origin.clone());
        }
        placed.push(Placed { resource: *resource, at, origin: origin.clone() });
    }
    if placed.is_empty() && !wrong {
        return None;
    }
    reader.origins.insert(key.path.to_owned(), origin);
    Some(placed)
}

/// The checks that a resource in the file gets key by key.
fn check_listed(reader: &mut Reader<'_>, resource: &Resource, at: &str, origin: &Origin) {
    let checks: [(&Key, &str, bool); 3] = [
        (&keys::RESOURCE_NAME, &resource.name, judge_resource_name(&resource.name) != ResourceName::Unusable),
        (&keys::RESOURCE_TYPE, &resource.resource_type, is_type(&resource.resource_type)),
        (&keys::RESOURCE_HOSTNAME, &resource.hostname, resource.hostname.is_empty() || is_host(&resource.hostname)),
    ];
    for (key, value, fine) in checks {
        if !fine {
            reader.report.problem(origin.clone(), format!("{at}.{}", key.leaf()), quoted(value), key.expected);
        }
    }
}
