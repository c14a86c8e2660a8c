//! A relay conversation between a bridge and a target that are both inputs, with the agent's real rules.

use std::cell::RefCell;
use std::sync::Arc;

use bamf_agent::config::{Dial, Resource};
use bamf_agent::kubernetes::ServiceAccount;
use bamf_agent::relay::body::Framing;
use bamf_agent::relay::conversation::{Conversation, Need, Outcome, Prepared, Refusal, Rules};
use bamf_agent::relay::head::Request;
use bamf_agent::relay::route::Router;
use bamf_agent::relay::rules::RuleBook;

use crate::message::{Kind, Message};

/// What the service account's token says; see `fuzz/serviceaccount`.
const TOKEN: &[u8] = b"Bearer not-a-secret";

/// The agent's rules, and the paths of the requests that they were asked about.
pub struct Witness {
    rules: RuleBook,
    asked: RefCell<Vec<String>>,
}

impl Default for Witness {
    /// Rules for a web resource and a cluster.
    fn default() -> Self {
        let resource = |resource_type: &str, hostname: &str, port| Resource {
            name: resource_type.to_owned(),
            resource_type: resource_type.to_owned(),
            hostname: hostname.to_owned(),
            port,
            labels: Default::default(),
            tunnel_hostname: None,
            webhooks: Vec::new(),
            forward_session_token: false,
            dial: Dial::Auto,
        };
        let resources = [resource("http", "wiki.internal", 8085), resource("kubernetes", "", 0)];
        let cluster = ServiceAccount::new(concat!(env!("CARGO_MANIFEST_DIR"), "/serviceaccount"));
        Self { rules: RuleBook::new(Router::new(&resources), Arc::new(cluster)), asked: RefCell::default() }
    }
}

impl Rules for Witness {
    fn prepare(&self, head: &Request<'_>, framing: Framing) -> Result<Prepared, Refusal> {
        self.asked.borrow_mut().push(head.target.to_owned());
        self.rules.prepare(head, framing)
    }
}

/// When what the conversation has to say is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// As soon as it is there.
    AtOnce,
    /// When [`Desk::flush`] says so. Until then nothing depends on time, so that cuts must make no difference.
    Held,
}

/// A conversation and what came out of it.
pub struct Desk {
    /// The conversation.
    pub conversation: Conversation,
    /// Everything that was written to the bridge.
    pub to_bridge: Vec<u8>,
    /// Everything that was written to the target, for each connection to it.
    pub to_target: Vec<Vec<u8>>,
    /// How the requests ended.
    pub outcomes: Vec<Outcome>,
    rules: Witness,
    writing: Writing,
    /// Turn it into data and back at every step.
    carried: bool,
}

impl Desk {
    /// A connection on which nothing has happened.
    #[must_use]
    pub fn new(writing: Writing, carried: bool) -> Self {
        Self {
            conversation: Conversation::new(),
            to_bridge: Vec::new(),
            to_target: Vec::new(),
            outcomes: Vec::new(),
            rules: Witness::default(),
            writing,
            carried,
        }
    }

    /// The bridge sends.
    pub fn bridge(&mut self, bytes: &[u8]) {
        self.conversation.bridge_sent(bytes, &self.rules);
        self.settle();
    }

    /// The target sends.
    pub fn target(&mut self, bytes: &[u8]) {
        self.conversation.target_sent(bytes, &self.rules);
        self.settle();
    }

    /// The target ends its connection.
    pub fn target_ends(&mut self) {
        self.conversation.target_ended(&self.rules);
        self.settle();
    }

    /// Writes what was held back.
    pub fn flush(&mut self) {
        let before = std::mem::replace(&mut self.writing, Writing::AtOnce);
        self.settle();
        self.writing = before;
    }

    /// The paths of the requests that the rules were asked about.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.rules.asked.borrow().clone()
    }

    /// The request that the target has, as far as it has come.
    #[must_use]
    pub fn request(&self) -> Option<Message<'_>> {
        Message::read(self.to_target.last()?, Kind::Request)
    }

    /// Everything that the target's connections were told, in a form that does not depend on how chunks were cut.
    #[must_use]
    pub fn requests(&self) -> String {
        let read = |bytes: &Vec<u8>| match Message::read(bytes, Kind::Request) {
            Some(message) if !is_upgrade(&message) => format!("{message:?}"),
            _ => format!("{bytes:?}"),
        };
        self.to_target.iter().map(read).collect()
    }

    fn settle(&mut self) {
        loop {
            self.outcomes.extend(self.conversation.take_outcome());
            let released = self.conversation.take_release().is_some();
            self.carry();
            if matches!(self.conversation.need(), Need::Dial { .. }) {
                self.to_target.push(Vec::new());
                self.conversation.dialled(false, &self.rules);
                continue;
            }
            if self.writing == Writing::Held {
                return;
            }
            let bridge = self.conversation.bridge_output().to_vec();
            let target = self.conversation.target_output().to_vec();
            assert!(!released || target.is_empty(), "written to a target that was given up");
            self.conversation.wrote_bridge(bridge.len());
            self.conversation.wrote_target(target.len());
            self.to_bridge.extend(&bridge);
            if !target.is_empty() {
                self.to_target.last_mut().expect("nothing is written before it is dialled").extend(&target);
            }
            if bridge.is_empty() && target.is_empty() {
                return;
            }
        }
    }

    fn carry(&mut self) {
        if self.carried {
            let text = serde_json::to_vec(&self.conversation).expect("it is plain data");
            let again = serde_json::from_slice(&text).expect("it reads what it wrote");
            assert_eq!(self.conversation, again);
            self.conversation = again;
        }
    }
}

/// Whether a request asks to leave HTTP behind.
#[must_use]
pub fn is_upgrade(request: &Message<'_>) -> bool {
    request.values("upgrade").next().is_some()
}

/// What no request to a target may hold (protocol 9.3, 9.5).
///
/// # Panics
/// If it does.
pub fn check_request(request: &Message<'_>) {
    let hosts: Vec<_> = request.values("host").collect();
    let to_cluster = hosts == [b"kubernetes.default.svc:6443"];
    assert!(to_cluster || hosts == [b"wiki.internal:8085"], "one Host, of the target: {request:?}");
    for (name, value) in &request.fields {
        let proper = name.replace('_', "-");
        let forged = proper.starts_with("impersonate-") && !to_cluster;
        let disguised = *name != proper && (proper.starts_with("x-forwarded-") || proper.starts_with("x-bamf-"));
        let ours = ["x-bamf-target", "x-bamf-resource", "x-bamf-session-token"].contains(&proper.as_str());
        let hop = ["proxy-authorization", "proxy-connection", "keep-alive", "te", "trailer"].contains(&name.as_str());
        assert!(!forged && !disguised && !ours && !hop, "{name} reached the target: {request:?}");
        assert!(name != "connection" || *value == b"Upgrade", "a connection's options reached the target");
    }
    if to_cluster {
        assert_eq!(request.values("impersonate-user").count(), 1, "one user: {request:?}");
        assert!(request.values("authorization").eq([TOKEN]), "one identity: {request:?}");
        let told =
            request.fields.iter().any(|(name, _)| name == "x-forwarded-email" || name == "x-forwarded-k8s-groups");
        assert!(!told, "a cluster is told about the user in its own words only: {request:?}");
    }
}
