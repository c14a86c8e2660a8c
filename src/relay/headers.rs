//! What happens to the fields of a head on its way through (protocol 9.3, 9.5, 9.7). Pure: a head in, a head out.
//!
//! The rules are one table per direction. Fields that only the hop is about are dropped and written anew, and with them
//! everything that would let a user pass for somebody else at the target.

use super::body::Framing;
use super::head::{Field, Request, Response};
use super::route::Route;
use crate::secret::Secret;

/// About one hop only (RFC 9110 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the proxy says about the user and a cluster is told in its own words instead (protocol 9.5, step 2).
const TOLD_BY_IMPERSONATION: [&str; 9] = [
    "x-forwarded-k8s-groups",
    "x-forwarded-email",
    "x-forwarded-user",
    "x-forwarded-roles",
    "x-forwarded-groups",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-for",
    // The user's platform session, which must not reach the cluster.
    "authorization",
];

/// The user on whose behalf a cluster is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impersonation<'a> {
    user: &'a str,
    groups: Vec<&'a str>,
}

/// The request names no user, or more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoUser;

/// What a request says about where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// `X-Bamf-Target`.
    pub origin: &'a str,
    /// `X-Bamf-Resource`.
    pub resource: Option<&'a str>,
}

/// Reads the relay's own fields; `None` where the origin is missing, not a text, or given twice.
#[must_use]
pub fn address<'a>(head: &Request<'a>) -> Option<Address<'a>> {
    let mut origins = values(head, "x-bamf-target");
    let origin = origins.next().and_then(Field::text).filter(|origin| !origin.is_empty())?;
    if origins.next().is_some() {
        return None;
    }
    Some(Address { origin, resource: values(head, "x-bamf-resource").next().and_then(Field::text) })
}

/// True for a request to a cluster: `X-Forwarded-K8s-Groups` is there and not empty.
#[must_use]
pub fn is_kubernetes(head: &Request<'_>) -> bool {
    values(head, "x-forwarded-k8s-groups").any(|field| !field.value.is_empty())
}

/// True if the request asks to leave HTTP behind. Another version of HTTP is not offered: whatever came over it would
/// pass these rules by.
#[must_use]
pub fn is_upgrade(head: &Request<'_>) -> bool {
    let mut protocols = values(head, "upgrade").flat_map(|field| field.value.split(|&byte| byte == b','));
    let is_http = |name: &[u8]| {
        let name = name.trim_ascii().to_ascii_lowercase();
        name == b"h2c" || name == b"h2" || name.starts_with(b"http/") || name.starts_with(b"tls/")
    };
    let some = values(head, "upgrade").any(|field| !field.value.is_empty());
    some && !protocols.any(is_http)
}

/// Methods that may be repeated without harm (RFC 9110 9.2.2).
#[must_use]
pub fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// The user that a request to a cluster names.
///
/// # Errors
/// [`NoUser`].
pub fn impersonation<'a>(head: &Request<'a>) -> Result<Impersonation<'a>, NoUser> {
    let mut users = values(head, "x-forwarded-email");
    let user = users.next().and_then(Field::text).filter(|user| !user.is_empty()).ok_or(NoUser)?;
    if users.next().is_some() {
        return Err(NoUser);
    }
    let lists = values(head, "x-forwarded-k8s-groups").filter_map(Field::text);
    let groups = lists.flat_map(|list| list.split(',')).map(str::trim).filter(|group| !group.is_empty()).collect();
    Ok(Impersonation { user, groups })
}

fn values<'h, 'a>(head: &'h Request<'a>, name: &'static str) -> impl Iterator<Item = Field<'a>> + use<'h, 'a> {
    head.fields.iter().copied().filter(move |field| field.is(name))
}

/// The head that the target gets.
#[must_use]
pub fn to_target(
    head: &Request<'_>,
    route: &Route,
    framing: Framing,
    upgrade: bool,
    cluster: Option<(&Impersonation<'_>, &Secret)>,
) -> Vec<u8> {
    let named = named_by_connection(&head.fields);
    let mut out = Vec::with_capacity(1024);
    push(&mut out, &[head.method.as_bytes(), b" ", head.target.as_bytes(), b" HTTP/1.1\r\n"]);
    line(&mut out, "Host", route.authority.as_bytes());
    for field in &head.fields {
        let kept = if field.is("upgrade") { upgrade } else { passes_to_target(field, &named) };
        let secret = field.is("x-bamf-session-token") && !route.forward_session_token;
        let told = cluster.is_some() && TOLD_BY_IMPERSONATION.iter().any(|name| field.is(name));
        if kept && !secret && !told {
            line(&mut out, field.name, field.value);
        }
    }
    if let Some((impersonation, token)) = cluster {
        line(&mut out, "Impersonate-User", impersonation.user.as_bytes());
        for group in &impersonation.groups {
            line(&mut out, "Impersonate-Group", group.as_bytes());
        }
        line(&mut out, "Authorization", format!("Bearer {}", token.expose()).as_bytes());
    }
    if upgrade {
        line(&mut out, "Connection", b"Upgrade");
    }
    frame(&mut out, framing);
    out.extend_from_slice(b"\r\n");
    out
}

fn passes_to_target(field: &Field<'_>, named: &[&[u8]]) -> bool {
    let impersonates = field.name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("impersonate-"));
    // `Expect`, because a relay that never sends 100 on must not ask for it.
    let ours = ["host", "x-bamf-target", "x-bamf-resource", "content-length", "expect"];
    // What the proxy says about the user cannot be taken away by naming it in `Connection`.
    let about_user = field.name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case("x-forwarded-"));
    !impersonates
        && !is_disguised(field)
        && !ours.iter().any(|name| field.is(name))
        && (about_user || !is_hop_by_hop(field, named))
}

/// True for a field that a target of the CGI kind, where `_` and `-` are one, would take for one of the proxy's. The proxy
/// removes only the proper spelling from what users send.
fn is_disguised(field: &Field<'_>) -> bool {
    let proper = || field.name.to_ascii_lowercase().replace('_', "-");
    field.name.contains('_')
        && ["x-forwarded-", "x-bamf-", "impersonate-"].iter().any(|start| proper().starts_with(start))
}

/// What becomes of the bridge's connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It takes the next request.
    Stays,
    /// It ends; the bridge should not keep it for another request, which would fail.
    Ends,
    /// It speaks another protocol.
    Upgrades,
}

/// The head that the bridge gets. A length that the target gave stays where it was; `status` may differ from the head's.
#[must_use]
pub fn to_bridge(head: &Response<'_>, status: u16, framing: Framing, after: After) -> Vec<u8> {
    let named = named_by_connection(&head.fields);
    let mut out = Vec::with_capacity(512);
    let reason = if status == head.status { head.reason } else { reason(status) };
    push(&mut out, &[b"HTTP/1.1 ", status.to_string().as_bytes(), b" ", reason.as_bytes(), b"\r\n"]);
    let mut length_written = false;
    for field in &head.fields {
        if field.is("content-length") {
            // Without a body it is what a GET would give; 1xx and 204 must not have one (RFC 9110 8.6).
            let tells =
                matches!(framing, Framing::Length(_)) || (framing == Framing::None && !is_without_length(status));
            if tells && !length_written {
                line(&mut out, field.name, field.value);
            }
            length_written = true;
        } else if (field.is("upgrade") && after == After::Upgrades) || !is_hop_by_hop(field, &named) {
            line(&mut out, field.name, field.value);
        }
    }
    match after {
        After::Stays => {}
        After::Ends => line(&mut out, "Connection", b"close"),
        After::Upgrades => line(&mut out, "Connection", b"Upgrade"),
    }
    if matches!(framing, Framing::Chunked | Framing::UntilClose) {
        // Never delimited by the end of the connection towards the bridge (protocol 9.3, step 6).
        frame(&mut out, Framing::Chunked);
    }
    out.extend_from_slice(b"\r\n");
    out
}

const fn is_without_length(status: u16) -> bool {
    matches!(status, 100..=199 | 204)
}

/// True for a response that may go on for ever and is closed behind (protocol 9.6).
#[must_use]
pub fn is_event_stream(head: &Response<'_>) -> bool {
    let kind = b"text/event-stream";
    let starts = |value: &[u8]| value.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind));
    head.fields.iter().any(|field| field.is("content-type") && starts(field.value))
}

/// True if the target keeps its connection open after this response.
#[must_use]
pub fn is_persistent(head: &Response<'_>) -> bool {
    head.minor == 1 && !named_by_connection(&head.fields).iter().any(|name| name.eq_ignore_ascii_case(b"close"))
}

/// An answer of the agent's own.
#[must_use]
pub fn answer(status: u16, text: &str, closes: bool, to_head: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    push(&mut out, &[b"HTTP/1.1 ", status.to_string().as_bytes(), b" ", reason(status).as_bytes(), b"\r\n"]);
    line(&mut out, "Content-Length", text.len().to_string().as_bytes());
    line(&mut out, "Content-Type", b"text/plain");
    if closes {
        line(&mut out, "Connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    if !to_head {
        out.extend_from_slice(text.as_bytes());
    }
    out
}

const fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}

fn named_by_connection<'a>(fields: &[Field<'a>]) -> Vec<&'a [u8]> {
    let options = fields.iter().filter(|field| field.is("connection"));
    options.flat_map(|field| field.value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii).collect()
}

fn is_hop_by_hop(field: &Field<'_>, named: &[&[u8]]) -> bool {
    let named_here = |name: &&[u8]| name.eq_ignore_ascii_case(field.name.as_bytes());
    HOP_BY_HOP.iter().any(|name| field.is(name)) || named.iter().any(named_here)
}

fn frame(out: &mut Vec<u8>, framing: Framing) {
    match framing {
        Framing::Length(length) => line(out, "Content-Length", length.to_string().as_bytes()),
        Framing::Chunked => line(out, "Transfer-Encoding", b"chunked"),
        Framing::None | Framing::UntilClose => {}
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    push(out, &[name.as_bytes(), b": ", value, b"\r\n"]);
}

fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests;
