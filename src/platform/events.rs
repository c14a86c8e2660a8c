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
    Relay {
        /// The edge; empty for the default one.
        edge: String,
        /// The bridge.
        bridge: String,
    },
    /// An event of a later platform, by name.
    Unknown(String),
    /// Something that cannot be used, and why.
    Unusable(String),
}

/// What is named in a tunnel request. The session's key and certificate stay out of sight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRequest {
    /// `dial` or `redial`.
    pub command: String,
    /// Opaque id of the session.
    pub session_id: String,
    /// The resource that is asked for.
    pub resource_name: String,
    /// Effective type; may differ from the configured one.
    pub resource_type: String,
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
        "revoke" => Command::Revoke { reason: text("reason") },
        "tunnel_request" => match text("command").as_str() {
            known @ ("" | "dial" | "redial") => Command::Tunnel(TunnelRequest {
                command: if known.is_empty() { "dial".to_owned() } else { known.to_owned() },
                session_id: text("session_id"),
                resource_name: text("resource_name"),
                resource_type: text("resource_type"),
            }),
            other => Command::Unusable(format!("unknown tunnel command {other:?}")),
        },
        "relay_connect" => Command::Relay { edge: text("edge"), bridge: text("bridge_host") },
        other => Command::Unknown(super::failure::printable(other)),
    }
}

fn text(data: &Map<String, Value>, key: &str) -> String {
    data.get(key).and_then(Value::as_str).map(super::failure::printable).unwrap_or_default()
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
        assert_eq!((request.command.as_str(), request.session_id.as_str()), ("dial", "-x"));
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
        assert_eq!(read("revoke", r#"{"reason":{"deep":[1]}}"#), Command::Revoke { reason: String::new() });
    }
}
