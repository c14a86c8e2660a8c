//! The control plane's state, and what each call does to it.
//!
//! One mutex guards everything: handlers and tests change the state by short synchronous calls, and whoever waits for
//! something to happen waits on the condition variable that every change rings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use super::agents::{Agent, Registry, Tokens};
use super::api::{Call, Route};
use super::auth::{self, Caller};
use super::bridges::Bridges;
use super::ca::{CertificateAuthority, IssuedIdentity, whole_seconds};
use super::catalogue::Catalogue;
use super::connect::Steer;
use super::events::{Order, Steering};
use super::faults::{Fault, Faults};
use super::limits::{Allowance, Limiter, RateLimits};
use super::queues::{Address, Command, Popped, Queues};
use super::record::{Heartbeat, InstanceReport, Join, Observed, Renewal, RequestRecord, SentCommand, Stream};
use super::relays::Assignments;
use super::reply::Reply;
use super::schema::{self, Problems};
use super::sessions::Sessions;
use super::version::Versions;

/// The state and the bell that rings on every change.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn new(state: State) -> Self {
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Does something with the state and wakes everybody who waits for a change.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let outcome = act(&mut self.lock());
        self.changed.notify_all();
        outcome
    }

    /// Blocks until `condition` holds; false when it did not within `limit`.
    pub(crate) fn wait_for(&self, limit: Duration, mut condition: impl FnMut(&Observed) -> bool) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| !condition(&state.seen));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked inside a call has failed already; the others should see their own failures.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How certificates are given out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CertificatePolicy {
    pub(crate) lifetime: Duration,
    pub(crate) backdate: Duration,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ca: Arc<CertificateAuthority>,
    pub(crate) policy: CertificatePolicy,
    pub(crate) tokens: Tokens,
    pub(crate) registry: Registry,
    pub(crate) queues: Queues,
    pub(crate) catalogue: Catalogue,
    pub(crate) bridges: Bridges,
    pub(crate) sessions: Sessions,
    pub(crate) relays: Assignments,
    pub(crate) steer: Steer,
    pub(crate) revoked: BTreeSet<String>,
    pub(crate) versions: Versions,
    pub(crate) faults: Faults,
    pub(crate) limiter: Limiter,
    /// What a test ordered in place of the edges that have a bridge.
    pub(crate) edge_probe_targets: Option<Vec<Value>>,
    pub(crate) streams: BTreeMap<u64, Steering>,
    pub(crate) silence: bool,
    pub(crate) seen: Observed,
    pub(crate) skipped: Duration,
}

/// A call's outcome: the right answer, or the refusal that ended it early.
pub(crate) type Outcome = Result<Reply, Reply>;

impl State {
    pub(crate) fn new(policy: CertificatePolicy, limits: RateLimits) -> Self {
        Self {
            ca: Arc::new(CertificateAuthority::new()),
            policy,
            tokens: Tokens::default(),
            registry: Registry::default(),
            queues: Queues::default(),
            catalogue: Catalogue::default(),
            bridges: Bridges::default(),
            sessions: Sessions::default(),
            relays: Assignments::default(),
            steer: Steer::default(),
            revoked: BTreeSet::new(),
            versions: Versions::default(),
            faults: Faults::default(),
            limiter: Limiter::new(limits, Instant::now()),
            edge_probe_targets: None,
            streams: BTreeMap::new(),
            silence: false,
            seen: Observed::default(),
            skipped: Duration::ZERO,
        }
    }

    /// The clock of lifetimes, which tests may push forward.
    pub(crate) fn now(&self) -> Instant {
        Instant::now() + self.skipped
    }

    /// Notes a request and takes the fault that waits for it.
    pub(crate) fn admit(&mut self, call: &Call, route: &Route) -> (usize, Option<Fault>) {
        let number = self.seen.requests.total();
        self.seen.join_attempts += usize::from(*route == Route::Join);
        self.seen.requests.push(RequestRecord {
            at: SystemTime::now(),
            method: call.method.clone(),
            path: call.path.clone(),
            query: call.query.clone(),
            headers: call
                .headers
                .iter()
                .filter(|(name, _)| *name != auth::HEADER)
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect(),
            certificate_sha256: call.header(auth::HEADER).and_then(auth::claimed_sha256),
            body_len: call.body.len(),
            status: None,
        });
        (number, self.faults.take(route.endpoint()))
    }

    /// Notes how a request was answered.
    pub(crate) fn answered(&mut self, number: usize, status: u16) {
        if let Some(record) = self.seen.requests.nth_ever(number) {
            record.status = Some(status);
        }
    }

    pub(crate) fn allowance(&mut self, call: &Call) -> Allowance {
        let identified = ["authorization", auth::HEADER].iter().any(|name| call.header(name).is_some());
        let forwarded = call.header("x-forwarded-for").and_then(|list| list.rsplit(',').next()).map(str::trim);
        let now = self.now();
        self.limiter.take(forwarded.unwrap_or("127.0.0.1"), identified, now)
    }

    pub(crate) fn join(&mut self, call: &Call) -> Outcome {
        let body = schema::json_body(&call.body).and_then(|json| schema::join(&json)).map_err(Reply::invalid)?;
        if !self.tokens.is_good(&body.token) {
            return Err(Reply::detail(401, "Invalid or expired join token"));
        }
        if self.registry.has(&body.name) {
            return Err(Reply::detail(409, "Agent with this name already exists"));
        }
        let issued = self.issue(&body.name)?;
        self.tokens.spend(&body.token);
        let agent_id = self.registry.add(&body.name, body.labels.clone(), issued.sha256.clone()).id.clone();
        self.seen.joins.push(Join {
            at: SystemTime::now(),
            name: body.name,
            agent_id: agent_id.clone(),
            labels: body.labels,
            token: body.token,
            certificate_sha256: issued.sha256.clone(),
        });
        Ok(Reply::json(201, &identity_json(&agent_id, &issued)))
    }

    pub(crate) fn heartbeat(&mut self, path_id: &str, call: &Call) -> Outcome {
        let (caller, body) = self.identified(call, schema::heartbeat)?;
        let now = self.now();
        self.addressed(path_id, &caller)?.heartbeat(&body, now);
        self.catalogue.heartbeat(&caller.name, &body.resources, now);
        self.relays.heartbeat(&caller.name, &body.resources, now);
        self.seen.heartbeats.push(Heartbeat {
            at: SystemTime::now(),
            agent: caller.name,
            instance_id: body.instance_id,
            certificate_sha256: caller.sha256,
            body: schema::json_body(&call.body).map_err(Reply::invalid)?,
        });
        let targets = self.edge_probe_targets.clone().unwrap_or_else(|| self.edges_to_probe());
        Ok(Reply::json(200, &json!({ "message": "OK", "edge_probe_targets": targets })))
    }

    pub(crate) fn renew(&mut self, path_id: &str, call: &Call) -> Outcome {
        let caller = self.authenticate(call)?;
        self.addressed(path_id, &caller)?;
        let issued = self.issue(&caller.name)?;
        let agent = self.addressed(path_id, &caller)?;
        agent.recorded_sha256.clone_from(&issued.sha256);
        let reply = Reply::json(200, &identity_json(&agent.id, &issued));
        self.seen.renewals.push(Renewal {
            at: SystemTime::now(),
            agent: caller.name,
            presented_sha256: caller.sha256,
            issued_sha256: issued.sha256,
        });
        Ok(reply)
    }

    pub(crate) fn drain(&mut self, path_id: &str, call: &Call) -> Outcome {
        let (caller, instance_id) = self.identified(call, schema::drain)?;
        self.addressed(path_id, &caller)?.drain(&instance_id);
        self.seen.drains.push(InstanceReport { at: SystemTime::now(), agent: caller.name, instance_id });
        Ok(Reply::json(200, &json!({ "success": true, "message": "Instance is draining" })))
    }

    pub(crate) fn offline(&mut self, path_id: &str, instance_id: &str, call: &Call) -> Outcome {
        let caller = self.authenticate(call)?;
        self.addressed(path_id, &caller)?.offline(instance_id);
        let instance_id = instance_id.to_owned();
        self.seen.offlines.push(InstanceReport { at: SystemTime::now(), agent: caller.name, instance_id });
        Ok(Reply::json(200, &json!({ "success": true, "message": "Instance is offline" })))
    }

    /// Enters an event stream. Returns its number, where its commands come from, and its first pop.
    pub(crate) fn open_stream(
        &mut self,
        path_id: &str,
        call: &Call,
        orders: tokio::sync::mpsc::Sender<Order>,
    ) -> Result<(u64, Address, Popped), Reply> {
        let caller = self.authenticate(call)?;
        let instance_id = call.query_value("instance_id");
        let instance_id = instance_id.ok_or_else(|| Reply::invalid(schema::missing_query("instance_id")))?;
        let agent_id = self.addressed(path_id, &caller)?.id.clone();
        let address = Address { agent_id, instance_id: instance_id.clone() };
        self.seen.stream_opens += 1;
        let number = u64::try_from(self.seen.stream_opens).unwrap_or(u64::MAX);
        self.streams.insert(number, Steering { orders, silent: self.silence });
        self.seen.open_streams.push(Stream {
            number,
            opened_at: SystemTime::now(),
            agent: caller.name,
            instance_id,
            certificate_sha256: caller.sha256,
        });
        let first = self.pop(&address);
        Ok((number, address, first))
    }

    pub(crate) fn close_stream(&mut self, number: u64) {
        self.streams.remove(&number);
        self.seen.open_streams.retain(|stream| stream.number != number);
    }

    pub(crate) fn pop(&mut self, address: &Address) -> Popped {
        let now = self.now();
        self.queues.pop(address, now)
    }

    pub(crate) fn is_silent(&self, number: u64) -> bool {
        self.streams.get(&number).is_some_and(|steering| steering.silent)
    }

    /// Gives an order to every open stream; returns how many there were.
    pub(crate) fn order_streams(&mut self, order: impl Fn() -> Order) -> usize {
        self.streams.values().filter(|steering| steering.orders.try_send(order()).is_ok()).count()
    }

    /// Enqueues a command by the platform's choice of instance; `None` when there is no candidate.
    pub(crate) fn send(&mut self, agent_name: &str, event: &str, data: &Value) -> Option<String> {
        let now = self.now();
        let agent = self.registry.get_mut(agent_name)?;
        let instance_id = if event == "relay_connect" { agent.choose_for_relay(now) } else { agent.choose(now) }?;
        let address = Address { agent_id: agent.id.clone(), instance_id: instance_id.clone() };
        self.queues.enqueue(&address, Command { event: event.to_owned(), data: data.to_string() }, now);
        let text = |key: &str| data[key].as_str().map(str::to_owned);
        self.seen.commands.push(SentCommand {
            at: SystemTime::now(),
            agent: agent_name.to_owned(),
            instance_id: instance_id.clone(),
            event: event.to_owned(),
            command: text("command"),
            session: text("session_id"),
            bridge: text("bridge_host").zip(data["bridge_port"].as_u64()),
        });
        Some(instance_id)
    }

    /// Puts a fingerprint on the denylist; if it is an agent's latest, its instances are told (protocol 4.4).
    pub(crate) fn revoke(&mut self, sha256: &str) {
        self.revoked.insert(sha256.to_owned());
        let holder = self.registry.holding(sha256).map(|agent| (agent.id.clone(), agent.known_instances()));
        if let Some((id, instances)) = holder {
            self.tell_revoked(&id, instances, "Certificate revoked");
        }
    }

    /// Tells the instances and forgets the agent; its certificate is not revoked (protocol 4.4).
    pub(crate) fn delete_agent(&mut self, name: &str) -> bool {
        let agent = self.registry.remove(name);
        if let Some(agent) = &agent {
            self.tell_revoked(&agent.id, agent.known_instances(), "Agent deleted by administrator");
        }
        agent.is_some()
    }

    fn tell_revoked(&mut self, agent_id: &str, instances: Vec<String>, reason: &str) {
        let (now, data) = (self.now(), json!({ "command": "revoke", "reason": reason }).to_string());
        for instance_id in instances {
            let address = Address { agent_id: agent_id.to_owned(), instance_id };
            self.queues.enqueue(&address, Command { event: "revoke".into(), data: data.clone() }, now);
        }
    }

    fn issue(&self, name: &str) -> Result<IssuedIdentity, Reply> {
        let now = SystemTime::now();
        let issued = self.ca.identity(name, now - self.policy.backdate, now + self.policy.lifetime);
        // Names that fit in no URI break the platform in the same place (protocol 1.2).
        issued.map_err(|_| Reply::detail(500, "Internal server error"))
    }

    fn authenticate(&self, call: &Call) -> Result<Caller, Reply> {
        auth::authenticate(call.header(auth::HEADER), &self.ca, &self.revoked, SystemTime::now())
            .map_err(|detail| Reply::detail(401, detail))
    }

    /// Identity first, then the shape of the body (protocol 3.6); but what is no JSON at all never gets that far.
    fn identified<T>(&self, call: &Call, read: fn(&Value) -> Result<T, Problems>) -> Result<(Caller, T), Reply> {
        let json = schema::json_body(&call.body).map_err(Reply::invalid)?;
        let caller = self.authenticate(call)?;
        Ok((caller, read(&json).map_err(Reply::invalid)?))
    }

    /// The agent of the path, name or UUID, if it is the caller.
    fn addressed(&mut self, path_id: &str, caller: &Caller) -> Result<&mut Agent, Reply> {
        let name = self.registry.find(path_id).map(|(name, _)| name.to_owned());
        let name = name.ok_or_else(|| Reply::detail(404, "Agent not found"))?;
        if name != caller.name {
            return Err(Reply::detail(403, "Certificate does not match agent"));
        }
        self.registry.get_mut(&name).ok_or_else(|| Reply::detail(404, "Agent not found"))
    }
}

/// Join and renewal answer in the same shape.
fn identity_json(agent_id: &str, issued: &IssuedIdentity) -> Value {
    json!({
        "agent_id": agent_id,
        "certificate": issued.certificate_pem,
        "private_key": issued.private_key_pem,
        "certificate_expires_at": timestamp(issued.not_after),
        "ca_certificate": issued.ca_pem,
    })
}

/// RFC 3339 in UTC, in whole seconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(whole_seconds(time)).map(|time| time.to_string()).unwrap_or_default()
}

/// What arrives on a stream as it stands, whatever it is.
pub(crate) fn raw(bytes: &[u8]) -> Order {
    Order::Raw(Bytes::copy_from_slice(bytes))
}
