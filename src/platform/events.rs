//! The command stream: one long answer that the platform writes commands into (protocol chapter 6).
//!
//! Commands are delivered at most once, and a stream that died silently goes on taking its share of them. So the reader
//! counts any byte as a sign of life, gives the stream up after [`SILENCE_LIMIT`] without one, and the caller must drop a
//! stream before it opens the next.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Map, Value};

use super::failure::Failure;
use super::sse::{Decoder, Event, Item};
use super::wire::BridgeAddress;
use crate::secret::Secret;

/// The platform sends an event after about 30 idle seconds; two of them and a half may be late.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(75);

/// What the platform wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Nothing: the stream is alive.
    Alive,
    /// This certificate or agent was revoked.
    Revoke {
        /// Why, in the platform's words.
        reason: String,
    },
    /// Somebody opens a session, or a session's bridge connection should be made again.
    Tunnel(TunnelRequest),
    /// Web requests are waiting at a bridge.
    Relay(RelayRequest),
    /// An event of a later platform, by name.
    Unknown(String),
    /// Something that cannot be used, and why.
    Unusable(String),
}

/// Which connection of a session is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelKind {
    /// The first.
    Dial,
    /// A later one.
    Redial,
}

/// A connection of a session (protocol 6.2). Fields that the platform left out are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRequest {
    /// The first or a later connection.
    pub kind: TunnelKind,
    /// Where to.
    pub bridge: BridgeAddress,
    /// The session's certificate, PEM.
    pub certificate_pem: Secret,
    /// Its key, PEM.
    pub private_key_pem: Secret,
    /// Whom to believe, PEM.
    pub ca_pem: String,
    /// Opaque id of the session, as it came.
    pub session_id: String,
    /// The resource that is asked for.
    pub resource_name: String,
    /// Effective type; may differ from the configured one.
    pub resource_type: String,
}

/// A pool of connections at a bridge (protocol 6.2, 9.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayRequest {
    /// The edge; empty for the default one.
    pub edge: String,
    /// Where to.
    pub bridge: BridgeAddress,
    /// Whom to believe, PEM; the stored authority where it is left out.
    pub ca_pem: Option<String>,
}

/// Reads commands from an open stream.
pub struct EventStream {
    response: reqwest::Response,
    decoder: Decoder,
    ready: VecDeque<Command>,
    silence_limit: Duration,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl EventStream {
    pub(super) fn new(response: reqwest::Response) -> Self {
        Self { response, decoder: Decoder::new(), ready: VecDeque::new(), silence_limit: SILENCE_LIMIT }
    }

    /// The next command; `None` when the platform ended the stream in good order.
    ///
    /// Cancel safe: bytes are only taken together with the commands that they complete.
    ///
    /// # Errors
    /// The connection broke, fell silent, or carries no events.
    pub async fn next(&mut self) -> Result<Option<Command>, Failure> {
        loop {
            if let Some(command) = self.ready.pop_front() {
                return Ok(Some(command));
            }
            let chunk = tokio::time::timeout(self.silence_limit, self.response.chunk())
                .await
                .map_err(|_| Failure::unexpected("event stream", "no sign of life for 75 s"))?
                .map_err(|error| Failure::without_answer("event stream", &error.without_url()))?;
            let Some(chunk) = chunk else { return Ok(None) };
            let mut items = Vec::new();
            self.decoder
                .feed(&chunk, &mut items)
                .map_err(|error| Failure::unexpected("event stream", error.to_string()))?;
            self.ready.extend(items.into_iter().map(interpret));
            if self.ready.is_empty() {
                // Comments and half events are signs of life too; the caller need not hear of them.
                tokio::task::yield_now().await;
            }
        }
    }
}

fn interpret(item: Item) -> Command {
    match item {
        Item::Event(event) => command(&event),
        Item::Dropped(why) => Command::Unusable(format!("an event was dropped: {why}")),
    }
}

/// Gives an event its meaning. What is unknown is ignored, never an error (protocol 6.2).
fn command(event: &Event) -> Command {
    let text = |key: &str| text(&event.data, key);
    match event.name.as_str() {
        "heartbeat" => Command::Alive,
        "revoke" => Command::Revoke { reason: super::failure::printable(text("reason")) },
        "tunnel_request" => match text("command") {
            "" | "dial" => Command::Tunnel(tunnel(TunnelKind::Dial, &event.data)),
            "redial" => Command::Tunnel(tunnel(TunnelKind::Redial, &event.data)),
            other => Command::Unusable(format!("unknown tunnel command {:?}", super::failure::printable(other))),
        },
        "relay_connect" => match bridge(&event.data) {
            bridge if !bridge.is_plausible() => Command::Unusable("a relay_connect that names no bridge".to_owned()),
            bridge => Command::Relay(RelayRequest {
                edge: text("edge").to_owned(),
                bridge,
                ca_pem: Some(text("ca_certificate").to_owned()).filter(|pem| !pem.is_empty()),
            }),
        },
        other => Command::Unknown(super::failure::printable(other)),
    }
}

fn text<'a>(data: &'a Map<String, Value>, key: &str) -> &'a str {
    data.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The bridge of a command; port 0 where none is given or it is none.
fn bridge(data: &Map<String, Value>) -> BridgeAddress {
    let port = data.get("bridge_port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    BridgeAddress { host: text(data, "bridge_host").to_owned(), port: port.unwrap_or_default() }
}

fn tunnel(kind: TunnelKind, data: &Map<String, Value>) -> TunnelRequest {
    let secret = |key: &str| Secret::new(text(data, key).to_owned());
    TunnelRequest {
        kind,
        bridge: bridge(data),
        certificate_pem: secret("session_cert"),
        private_key_pem: secret("session_key"),
        ca_pem: text(data, "ca_certificate").to_owned(),
        session_id: text(data, "session_id").to_owned(),
        resource_name: super::failure::one_line(text(data, "resource_name")),
        resource_type: super::failure::one_line(text(data, "resource_type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, data: &str) -> Command {
        command(&Event { name: name.into(), data: serde_json::from_str(data).unwrap() })
    }

    #[test]
    fn each_event_has_its_meaning_and_unknown_ones_are_named() {
        assert_eq!(read("heartbeat", "{}"), Command::Alive);
        assert_eq!(read("revoke", r#"{"reason":"gone"}"#), Command::Revoke { reason: "gone".into() });
        assert_eq!(read("config_push", r#"{"a":1}"#), Command::Unknown("config_push".into()));
        let Command::Tunnel(request) = read("tunnel_request", r#"{"session_id":"-x","resource_name":"db"}"#) else {
            panic!("a dial without a command is a dial")
        };
        assert_eq!((request.kind, request.session_id.as_str()), (TunnelKind::Dial, "-x"));
    }

    #[test]
    fn an_unknown_tunnel_command_is_not_taken_for_a_dial() {
        assert!(matches!(read("tunnel_request", r#"{"command":"shrink"}"#), Command::Unusable(_)));
    }

    /// A server that sends one event and then nothing, until the returned end is dropped.
    fn silent_server() -> (String, std::sync::mpsc::Sender<()>) {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let (hold, held) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
            assert!(connection.read(&mut [0; 4096]).unwrap() > 0);
            connection.write_all(format!("{head}event: heartbeat\ndata: {{}}\n\n").as_bytes()).unwrap();
            held.recv().unwrap_err();
        });
        (address, hold)
    }

    #[tokio::test]
    async fn a_stream_without_a_sign_of_life_is_given_up_after_its_limit_and_not_before() {
        let (address, hold) = silent_server();
        let client = crate::http::client(&Default::default(), crate::http::Purpose::Events, "1.2.0").unwrap();
        let mut stream = EventStream::new(client.get(address).send().await.unwrap());
        assert_eq!(stream.next().await, Ok(Some(Command::Alive)));
        // From here on nothing comes, so the clock may run as fast as it likes.
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let failure = stream.next().await.unwrap_err();
        assert_eq!(failure.detail, "no sign of life for 75 s");
        assert!((SILENCE_LIMIT..SILENCE_LIMIT * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        drop(hold);
    }

    #[test]
    fn fields_of_the_wrong_type_do_not_panic() {
        let reason = "(no explanation)".to_owned();
        assert_eq!(read("revoke", r#"{"reason":{"deep":[1]}}"#), Command::Revoke { reason });
        for port in ["-1", "65536", "\"443\"", "4.5", "null"] {
            let data = format!(r#"{{"bridge_host":"h","bridge_port":{port},"session_id":["x"]}}"#);
            let Command::Tunnel(request) = read("tunnel_request", &data) else { panic!("{data}") };
            assert_eq!((request.bridge.port, request.session_id.as_str()), (0, ""), "{port}");
            assert!(matches!(read("relay_connect", &data), Command::Unusable(_)));
        }
    }

    #[test]
    fn the_protocols_dial_and_relay_commands_are_read_whole() {
        let vectors: Value = serde_json::from_str(include_str!("../../tests/vectors.json")).unwrap();
        for case in vectors["sse"].as_array().unwrap() {
            let mut items = Vec::new();
            Decoder::new().feed(case["text"].as_str().unwrap().as_bytes(), &mut items).unwrap();
            let data = &case["parsed"]["data"];
            match items.into_iter().map(interpret).next() {
                Some(Command::Tunnel(request)) => {
                    assert_eq!(request.session_id, data["session_id"].as_str().unwrap());
                    assert_eq!(request.certificate_pem.expose(), data["session_cert"].as_str().unwrap());
                    assert_eq!(request.private_key_pem.expose(), data["session_key"].as_str().unwrap());
                    assert_eq!(request.ca_pem, data["ca_certificate"].as_str().unwrap());
                    assert_eq!(request.bridge.port, 443);
                    assert!(!format!("{request:?}").contains("PRIVATE"), "no key in a log");
                }
                Some(Command::Relay(request)) => {
                    assert_eq!(request.bridge.host, data["bridge_host"].as_str().unwrap());
                    assert_eq!(request.edge, data["edge"].as_str().unwrap_or_default());
                }
                _ => {}
            }
        }
    }
}
