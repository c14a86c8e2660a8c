//! A cluster as far as an agent in one of its pods sees it: the Secrets API over TLS, and a mounted service account.
//!
//! Written from the API's documentation and conventions alone. What a real API server refuses is refused here, in its words
//! and with its status: a wrong token, a missing rule, a name that is taken, a version that is no longer the newest, a type
//! that would change. Faults come on top, by request.
//!
//! ```text
//!   test ─── methods of Cluster ──┐
//!                                 ▼
//!   agent ── HTTPS ─► token ─► rules ─► faults ─► store (one namespace's Secrets)
//! ```

mod admission;
mod store;

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpSocket;

use self::store::{Refusal, Store};
use crate::plane::WebIdentity;
use crate::serve::{Body, Handler, Network, Server};

/// The namespace that pods of this cluster run in.
pub const NAMESPACE: &str = "bamf";
const BODY_LIMIT: usize = 4 << 20;

/// What can be done to a Secret, in the words of a Role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Read it.
    Get,
    /// Make it.
    Create,
    /// Replace it.
    Update,
}

impl Verb {
    const fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Create => "create",
            Self::Update => "update",
        }
    }
}

/// What happens instead of, or to, the right answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status, in the API's form. Not carried out.
    Status(u16),
    /// This status as a page of a load balancer. Not carried out.
    Html(u16),
    /// 200 and bytes that mean nothing. Not carried out.
    Garbage,
    /// 200 and a Secret of another name. Not carried out.
    AnotherObject,
    /// 200 and more than anybody should read. Not carried out.
    Huge,
    /// No answer ever. Not carried out.
    Hang,
    /// Carried out, after this time.
    Delay(Duration),
    /// Carried out; then the connection is cut without an answer.
    CutBeforeAnswer,
}

/// A request that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it asked for.
    pub verb: Verb,
    /// Whether it was to be checked only (`dryRun=All`).
    pub rehearsal: bool,
    /// What it was answered with; 0 where it was cut off or still hangs.
    pub status: u16,
}

#[derive(Debug)]
struct State {
    store: Store,
    allowed: Vec<Verb>,
    token: String,
    faults: Vec<(Option<Verb>, Fault, u32)>,
    seen: Vec<Seen>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }
}

/// A running cluster; it ends when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    web: WebIdentity,
    port: u16,
    mount: TempDir,
    held: Mutex<(Option<Server>, Option<TcpSocket>)>,
}

impl Cluster {
    /// An empty namespace, in which the pods' service account may do what the chart's Role says.
    ///
    /// # Errors
    /// No port, no temporary directory.
    pub fn start() -> io::Result<Self> {
        let web = WebIdentity::new(&[]).map_err(io::Error::other)?;
        let state = State {
            store: Store::default(),
            allowed: vec![Verb::Get, Verb::Create, Verb::Update],
            token: String::new(),
            faults: Vec::new(),
            seen: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let server = Server::start(&Network::Host, 0, Some(Arc::clone(&web.tls)), handler(&shared))?;
        let port = server.address().port();
        let cluster = Self { shared, web, port, mount: tempfile::tempdir()?, held: Mutex::new((Some(server), None)) };
        std::fs::write(cluster.mount.path().join("ca.crt"), &cluster.web.ca_pem)?;
        std::fs::write(cluster.mount.path().join("namespace"), NAMESPACE)?;
        cluster.rotate_token()?;
        Ok(cluster)
    }

    /// The API's port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The directory that is mounted into pods.
    #[must_use]
    pub fn mount(&self) -> &Path {
        self.mount.path()
    }

    /// Gives the service account a new token and forgets the one before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn rotate_token(&self) -> io::Result<()> {
        let token = format!("lab.{}", uuid::Uuid::new_v4());
        std::fs::write(self.mount.path().join("token"), format!("{token}\n"))?;
        self.shared.with(|state| state.token = token);
        Ok(())
    }

    /// Lets the service account do this and no more.
    pub fn allow(&self, verbs: &[Verb]) {
        self.shared.with(|state| state.allowed = verbs.to_vec());
    }

    /// Lets a fault happen to the next `times` requests that are allowed, of one verb or of all.
    pub fn inject(&self, verb: Option<Verb>, fault: Fault, times: u32) {
        self.shared.with(|state| state.faults.push((verb, fault, times)));
    }

    /// Forgets the faults that have not been used up.
    pub fn clear_faults(&self) {
        self.shared.with(|state| state.faults.clear());
    }

    /// The Secret of this name.
    #[must_use]
    pub fn secret(&self, name: &str) -> Option<Value> {
        self.shared.lock().store.get(name).ok()
    }

    /// What a Secret holds under a key, decoded; empty where there is none.
    #[must_use]
    pub fn value(&self, name: &str, key: &str) -> String {
        let secret = self.secret(name).unwrap_or_default();
        admission::decoded(&secret["data"][key]).unwrap_or_default()
    }

    /// Makes a Secret, as an administrator would.
    ///
    /// # Errors
    /// The API would refuse it.
    pub fn create(&self, secret: Value) -> Result<Value, String> {
        self.shared.with(|state| state.store.create(secret, false)).map_err(|refusal| refusal.message)
    }

    /// Changes a Secret, as an administrator would.
    ///
    /// # Errors
    /// The API would refuse it.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) -> Result<Value, String> {
        self.shared
            .with(|state| {
                let mut secret = state.store.get(name)?;
                edit(&mut secret);
                state.store.replace(name, secret, false)
            })
            .map_err(|refusal: Refusal| refusal.message)
    }

    /// Deletes a Secret; false if there is none.
    pub fn delete(&self, name: &str) -> bool {
        self.shared.with(|state| state.store.delete(name))
    }

    /// All requests that had a right token.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// How many writes were carried out.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.seen().iter().filter(|seen| seen.verb != Verb::Get && !seen.rehearsal && seen.status < 300).count()
    }

    /// Waits until a Secret and the requests so far are like this; false after `limit`.
    #[must_use]
    pub fn wait_for(&self, name: &str, limit: Duration, condition: impl Fn(Option<&Value>, &[Seen]) -> bool) -> bool {
        let holds = |state: &State| condition(state.store.get(name).ok().as_ref(), &state.seen);
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, |state| !holds(state));
        holds(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Refuses connections from now on and cuts those that are open.
    pub fn stop_listening(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0.take().is_some() {
            held.1 = Network::Host.reserve(self.port);
        }
    }

    /// Listens again.
    ///
    /// # Errors
    /// Somebody took the port meanwhile.
    pub fn resume(&self) -> io::Result<()> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0.is_none() {
            let tls = Some(Arc::clone(&self.web.tls));
            held.0 = Some(Server::start(&Network::Host, self.port, tls, handler(&self.shared))?);
            drop(held.1.take());
        }
        Ok(())
    }
}

fn handler(shared: &Arc<Shared>) -> Handler {
    let shared = Arc::clone(shared);
    Arc::new(move |request| {
        let shared = Arc::clone(&shared);
        Box::pin(async move { answer(&shared, request).await })
    })
}

/// What a request asks for; `None` for what this API does not have.
fn route(method: &str, path: &str) -> Option<(Verb, Option<String>)> {
    let rest = path.strip_prefix("/api/v1/namespaces/")?.strip_prefix(NAMESPACE)?.strip_prefix("/secrets")?;
    match (method, rest.strip_prefix('/')) {
        ("GET", Some(name)) => Some((Verb::Get, Some(name.to_owned()))),
        ("PUT", Some(name)) => Some((Verb::Update, Some(name.to_owned()))),
        ("POST", None) if rest.is_empty() => Some((Verb::Create, None)),
        _ => None,
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await.map_err(io::Error::other)?.to_bytes();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = format!("Bearer {}", shared.lock().token);
    if header("authorization") != token {
        return reply(401, &Refusal::new(401, "Unauthorized", "Unauthorized", "").status());
    }
    let Some((verb, name)) = route(head.method.as_str(), head.uri.path()) else {
        return page(404, "404 page not found\n".into());
    };
    let query = head.uri.query().unwrap_or_default();
    let rehearsal = query.split('&').any(|pair| pair == "dryRun=All");
    if query.contains("dryRun=") && !rehearsal {
        return reply(400, &Refusal::new(400, "BadRequest", "unsupported dryRun value", "").status());
    }
    let number = shared.with(|state| {
        state.seen.push(Seen { verb, rehearsal, status: 0 });
        state.seen.len() - 1
    });
    let fault = shared.with(|state| if state.allowed.contains(&verb) { take(&mut state.faults, verb) } else { None });
    let early = match &fault {
        None | Some(Fault::Delay(_) | Fault::CutBeforeAnswer) => None,
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Status(code)) => {
            Some(reply(*code, &Refusal::new(*code, "Fault", "a fault was asked for", "").status()))
        }
        Some(Fault::Html(code)) => Some(page(*code, "<html><h1>one moment</h1></html>".into())),
        Some(Fault::Garbage) => Some(page(200, "\u{0}{\"kind\":".into())),
        Some(Fault::AnotherObject) => {
            let other = serde_json::json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "other", "resourceVersion": "1"}});
            Some(reply(200, &other))
        }
        Some(Fault::Huge) => Some(page(200, format!("{{\"kind\":\"{}\"}}", "x".repeat(8 << 20)))),
    };
    if let Some(Fault::Delay(time)) = &fault {
        tokio::time::sleep(*time).await;
    }
    let response = match early {
        Some(response) => response?,
        None => {
            let content_type = header("content-type").to_owned();
            let done = shared.with(|state| carry_out(state, verb, name, &content_type, &body, rehearsal));
            match done {
                Ok(secret) => reply(if verb == Verb::Create { 201 } else { 200 }, &secret)?,
                Err(refusal) => reply(refusal.code, &refusal.status())?,
            }
        }
    };
    if fault == Some(Fault::CutBeforeAnswer) {
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut on purpose"));
    }
    shared.with(|state| state.seen[number].status = response.status().as_u16());
    Ok(response)
}

fn take(faults: &mut Vec<(Option<Verb>, Fault, u32)>, verb: Verb) -> Option<Fault> {
    faults.retain(|(_, _, times)| *times > 0);
    let (_, fault, times) = faults.iter_mut().find(|(of, _, _)| of.is_none_or(|of| of == verb))?;
    *times -= 1;
    Some(fault.clone())
}

/// Permission comes before everything that would tell whether the Secret exists.
fn carry_out(
    state: &mut State,
    verb: Verb,
    name: Option<String>,
    content_type: &str,
    body: &Bytes,
    rehearsal: bool,
) -> Result<Value, Refusal> {
    let name = name.unwrap_or_default();
    if !state.allowed.contains(&verb) {
        let message = format!(
            "secrets {name:?} is forbidden: User \"system:serviceaccount:{NAMESPACE}:bamf-agent\" cannot {} resource \
             \"secrets\" in API group \"\" in the namespace {NAMESPACE:?}",
            verb.word()
        );
        return Err(Refusal::new(403, "Forbidden", &message, &name));
    }
    if verb == Verb::Get {
        return state.store.get(&name);
    }
    if !content_type.starts_with("application/json") {
        return Err(Refusal::new(415, "UnsupportedMediaType", "the body of the request was in an unknown format", ""));
    }
    let secret = serde_json::from_slice(body)
        .map_err(|error| Refusal::new(400, "BadRequest", &format!("cannot be handled as a Secret: {error}"), ""))?;
    match verb {
        Verb::Create => state.store.create(secret, rehearsal),
        Verb::Get | Verb::Update => state.store.replace(&name, secret, rehearsal),
    }
}

fn reply(code: u16, body: &Value) -> io::Result<Response<Body>> {
    respond(code, "application/json", body.to_string())
}

fn page(code: u16, text: String) -> io::Result<Response<Body>> {
    respond(code, "text/html", text)
}

fn respond(code: u16, content_type: &str, text: String) -> io::Result<Response<Body>> {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed();
    Response::builder().status(code).header("content-type", content_type).body(body).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
