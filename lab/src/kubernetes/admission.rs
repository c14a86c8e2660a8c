//! What a Secret must look like, as the API server checks it before anything is stored.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::NAMESPACE;
use super::store::Refusal;

const MAX_DATA_BYTES: usize = 1 << 20;

/// The text behind a value of `data`; `None` where it is no base64 or no text.
pub(super) fn decoded(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// Brings a Secret into the form that it is kept in, or refuses it.
pub(super) fn admit(secret: &mut Value) -> Result<(), Refusal> {
    let name = secret["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if secret["kind"] != "Secret" || secret["apiVersion"] != "v1" {
        return Err(Refusal::new(
            400,
            "BadRequest",
            "the object provided is unrecognized (must be of type Secret)",
            &name,
        ));
    }
    let invalid =
        |message: String| Refusal::new(422, "Invalid", &format!("Secret {name:?} is invalid: {message}"), &name);
    if !is_subdomain(&name) {
        return Err(invalid(format!("metadata.name: Invalid value: {name:?}: a lowercase RFC 1123 subdomain")));
    }
    match secret["metadata"]["namespace"].as_str() {
        None | Some("") => secret["metadata"]["namespace"] = NAMESPACE.into(),
        Some(NAMESPACE) => {}
        Some(_) => {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(Refusal::new(400, "BadRequest", message, &name));
        }
    }
    for field in ["labels", "annotations"] {
        for (key, value) in secret["metadata"][field].as_object().into_iter().flatten() {
            let value = value.as_str().ok_or_else(|| bad(&name, "expected string"))?;
            let fits = is_qualified(key) && (field == "annotations" || value.is_empty() || is_word(value));
            if !fits {
                return Err(invalid(format!("metadata.{field}: Invalid value: {key:?}: {value:?}")));
            }
        }
    }
    check_data(secret, &name)?;
    if secret["type"].as_str().unwrap_or_default().is_empty() {
        secret["type"] = "Opaque".into();
    }
    if secret["type"] == "kubernetes.io/tls" {
        for key in ["tls.crt", "tls.key"] {
            if secret["data"].get(key).is_none() {
                return Err(invalid(format!("data[{key}]: Required value")));
            }
        }
    }
    Ok(())
}

fn check_data(secret: &mut Value, name: &str) -> Result<(), Refusal> {
    let mut bytes = 0;
    for (key, value) in secret["data"].as_object().into_iter().flatten() {
        // A key without a value is an empty one.
        let text = if value.is_null() { "" } else { value.as_str().ok_or_else(|| bad(name, "expected string"))? };
        bytes += STANDARD.decode(text).map_err(|_| bad(name, "illegal base64 data at input byte 0"))?.len();
        let fits = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if !fits {
            let message = format!("Secret {name:?} is invalid: data[{key}]: Invalid value: {key:?}");
            return Err(Refusal::new(422, "Invalid", &message, name));
        }
    }
    if bytes > MAX_DATA_BYTES {
        let message = format!("Secret {name:?} is invalid: data: Too long: must have at most 1048576 bytes");
        return Err(Refusal::new(422, "Invalid", &message, name));
    }
    for (_, value) in secret["data"].as_object_mut().into_iter().flatten().filter(|(_, value)| value.is_null()) {
        *value = "".into();
    }
    Ok(())
}

fn bad(name: &str, what: &str) -> Refusal {
    let message = format!("Secret in version \"v1\" cannot be handled as a Secret: {what}");
    Refusal::new(400, "BadRequest", &message, name)
}

/// Letters, digits, `-`, `_` and `.`, at most 63, a letter or digit at both ends.
fn is_word(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let bytes = text.as_bytes();
    text.len() <= 63
        && bytes.iter().all(|byte| inner(*byte))
        && [bytes.first(), bytes.last()].into_iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
}

/// `name` or `prefix/name`.
fn is_qualified(key: &str) -> bool {
    match key.split_once('/') {
        None => is_word(key),
        Some((prefix, name)) => is_subdomain(prefix) && is_word(name),
    }
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            let fits = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            bytes.iter().all(|byte| fits(byte) || *byte == b'-')
                && [bytes.first(), bytes.last()].into_iter().all(|end| end.is_some_and(fits))
        })
}
