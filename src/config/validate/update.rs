//! The `update:` section: where releases come from, whose signatures count, when and how long.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::duration;
use crate::config::keys::{self, Key};
use crate::config::raw::{Entry, Node, get};
use crate::config::reader::{Reader, Reported, Text, truth};
use crate::config::window::Window;
use crate::config::{Trust, UpdateConfig, address};
use crate::secret::Secret;

/// A minisign public key: algorithm `Ed`, key number (8), Ed25519 key (32).
const KEY_BYTES: usize = 2 + 8 + 32;

/// More keys than anybody signs with; a bound, since each is tried against each signature.
const MAX_KEYS: usize = 32;

pub(super) fn update(reader: &mut Reader<'_>, node: Option<&Node>, allow_insecure_http: bool) -> UpdateConfig {
    let map = reader.map("update", "a map of keys such as source: https://github.com/mattrobinsonsre/bamf", node);
    reader.warn_unknown("update.", "update", map);
    let source = reader.setting(&keys::UPDATE_SOURCE, map);
    let api_url = reader.setting(&keys::UPDATE_API_URL, map);
    let window = reader.setting(&keys::UPDATE_WINDOW, map);
    let Trust { trusted_keys, required_signatures } = trust_in(reader, map);
    UpdateConfig {
        source: reader
            .judge(keys::UPDATE_SOURCE.path, source, |text| address::update_source(&text.text, allow_insecure_http))
            .ok()
            .flatten()
            .unwrap_or_else(|| keys::UPDATE_SOURCE.default.to_owned()),
        api_url: reader
            .judge(keys::UPDATE_API_URL.path, api_url, |text| address::http_address(&text.text, allow_insecure_http))
            .ok()
            .flatten(),
        required_signatures,
        trusted_keys,
        assume_api_version: reader.parsed(&keys::UPDATE_ASSUME_API_VERSION, map, version),
        auto: reader.parsed(&keys::UPDATE_AUTO, map, truth).unwrap_or(false),
        window: reader
            .judge(keys::UPDATE_WINDOW.path, window, |text| match Window::parse(&text.text) {
                Ok(_) => Ok(text.text.clone()),
                Err(error) => Err(format!("{} ({error})", keys::UPDATE_WINDOW.expected)),
            })
            .ok()
            .flatten()
            .unwrap_or_default(),
        health_timeout: duration(
            reader,
            &keys::UPDATE_HEALTH_TIMEOUT,
            map,
            Duration::from_secs(1)..=Duration::from_secs(3600),
        ),
        drain_timeout: duration(reader, &keys::UPDATE_DRAIN_TIMEOUT, map, Duration::ZERO..=super::MAX_DELAY),
        github_token: reader.parsed(&keys::GITHUB_TOKEN, &[], |text| Some(Secret::new(text.text.clone()))),
    }
}

/// The part of the section that says whom to trust.
pub(super) fn trust(reader: &mut Reader<'_>, node: Option<&Node>) -> Trust {
    let map = reader.map("update", "a map of keys such as trusted_keys", node);
    trust_in(reader, map)
}

fn trust_in(reader: &mut Reader<'_>, map: &[Entry]) -> Trust {
    let trusted_keys = trusted_keys(reader, map);
    let required_signatures = required_signatures(reader, map, &trusted_keys);
    Trust { trusted_keys, required_signatures }
}

/// `1.2.0`, or a tag, `v1.2.0`.
fn version(text: &Text) -> Option<semver::Version> {
    semver::Version::parse(text.text.strip_prefix('v').unwrap_or(&text.text)).ok()
}

/// The variable's list, else the file's. A list that was written never ends up as "the built-in keys" by mistake:
/// every entry must be a key, and an empty entry is none.
fn trusted_keys(reader: &mut Reader<'_>, map: &[Entry]) -> Vec<String> {
    let key = &keys::UPDATE_TRUSTED_KEYS;
    let mut accepted: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, text) in written_keys(reader, key, map) {
        let origin = text.origin.clone();
        let judged = reader.judge(&path, Ok(Some(text)), |text| public_key(&text.text).ok_or(key.expected));
        let Ok(Some((encoded, bytes))) = judged else { continue };
        reader.origins.entry(key.path.to_owned()).or_insert_with(|| origin.clone());
        if !seen.insert(bytes) {
            reader.report.warning(origin, path, "the same key stands here twice and counts once");
        } else if accepted.len() == MAX_KEYS {
            reader.report.problem(origin, path, "a further key", format!("{MAX_KEYS} keys at most"));
        } else {
            accepted.push(encoded);
        }
    }
    accepted
}

/// The entries as written, each with its path.
fn written_keys(reader: &mut Reader<'_>, key: &Key, map: &[Entry]) -> Vec<(String, Text)> {
    let mut written = Vec::new();
    match reader.variable(key) {
        Ok(Some(text)) => {
            let parts = text.text.split(',').map(|part| Text { text: part.trim().to_owned(), ..text.clone() });
            written.extend(parts.map(|part| (key.path.to_owned(), part)));
        }
        Ok(None) => {
            for (index, item) in reader.list(key.path, key.expected, get(map, key.leaf())).iter().enumerate() {
                let path = format!("{}[{index}]", key.path);
                if let Ok(text) = reader.literal(key, &path, item) {
                    written.push((path, Text { text: text.text.trim().to_owned(), ..text }));
                }
            }
        }
        Err(Reported) => {}
    }
    written
}

/// The text and the Ed25519 key in it; the key number in front is a label and makes no other key of it.
fn public_key(text: &str) -> Option<(String, Vec<u8>)> {
    let bytes = STANDARD.decode(text).ok()?;
    (bytes.len() == KEY_BYTES && bytes.starts_with(b"Ed")).then(|| (text.to_owned(), bytes[10..].to_vec()))
}

/// At least one, and no more than could ever be there. The number of built-in keys is not known here; where they are
/// in use, the updater's own check holds.
fn required_signatures(reader: &mut Reader<'_>, map: &[Entry], trusted_keys: &[String]) -> usize {
    let most = if trusted_keys.is_empty() { MAX_KEYS } else { trusted_keys.len() };
    let what = if trusted_keys.is_empty() { "" } else { ", the number of trusted keys" };
    let text = reader.setting(&keys::UPDATE_REQUIRED_SIGNATURES, map);
    let required = reader.judge(keys::UPDATE_REQUIRED_SIGNATURES.path, text, |text| {
        let number = text.text.parse::<usize>().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| format!("a number from 1 to {most}{what}"))
    });
    required.ok().flatten().unwrap_or(1)
}
