//! A plane, a bridge and hand-written peers: the smallest things that can stand at a bridge's sides.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::{Bridge, BridgeOptions};
use crate::plane::tests::client::{Agent, Answer, Client, LIMIT, ask};
use crate::plane::{ControlPlane, Options};

pub(super) struct Rig {
    pub(super) plane: ControlPlane,
    pub(super) bridge: Bridge,
    pub(super) agent: Agent,
    pub(super) events: Client,
    /// The agent's identity certificate and key.
    pub(super) identity: Ticket,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(BridgeOptions::default())
    }

    pub(super) fn with(options: BridgeOptions) -> Self {
        let plane = ControlPlane::start(Options { tls: false, ..Options::default() }).unwrap();
        let bridge = Bridge::start(&plane, options).unwrap();
        let now = std::time::SystemTime::now();
        let issued = plane.ca().identity("edge-1", now, now + Duration::from_secs(3600)).unwrap();
        let id = plane.register(&issued);
        let header = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &issued.certificate_pem);
        let agent = Agent { name: "edge-1".into(), id, header };
        beat(&plane, &agent);
        let events = agent.stream(&plane, "i-1");
        let identity = Ticket {
            session: String::new(),
            host: "localhost".into(),
            port: bridge.port(),
            kind: String::new(),
            certificate: issued.certificate_pem,
            key: issued.private_key_pem,
            ca: issued.ca_pem,
        };
        Self { plane, bridge, agent, events, identity }
    }

    /// Tickets of both ends of a new session.
    pub(super) fn open(&mut self, resource: &str) -> (Ticket, Ticket) {
        let client = Ticket::of_answer(&connect(&self.plane, &json!({ "resource_name": resource })));
        (client, self.command("dial"))
    }

    /// Tickets of both ends of a session that goes on.
    pub(super) fn reopen(&mut self, session: &str) -> (Ticket, Ticket) {
        let client = Ticket::of_answer(&self.reconnect(session));
        (client, self.command("redial"))
    }

    pub(super) fn reconnect(&self, session: &str) -> Answer {
        connect(&self.plane, &json!({ "resource_name": "db", "reconnect_session_id": session }))
    }

    /// The agent's ticket of the next event.
    pub(super) fn command(&mut self, command: &str) -> Ticket {
        let data = event_data(&self.events.event());
        assert_eq!(data["command"], command);
        Ticket::of_command(&data)
    }

    /// A tunnel that stands, both ends met.
    pub(super) async fn tunnel(&mut self) -> (String, Peer, Peer) {
        let (client, agent) = self.open("db");
        let session = client.session.clone();
        let (client, agent) = tokio::join!(client.dial(), agent.dial());
        assert!(self.bridge.wait_for(LIMIT, |bridge| bridge.splices().len() == 1));
        (session, client.unwrap(), agent.unwrap())
    }

    /// A relay connection of the agent's, known to the bridge.
    pub(super) async fn relay(&self) -> Peer {
        let before = self.bridge.relays_ever("edge-1");
        let mut relay = self.identity.handshake().await.unwrap();
        relay.write_all(b"RELAY\nedge-1\n").await.unwrap();
        assert!(self.bridge.wait_for(LIMIT, |bridge| { bridge.relays_ever("edge-1") > before }));
        relay
    }

    /// A connection to the internal port.
    pub(super) async fn visitor(&self) -> TcpStream {
        TcpStream::connect(self.bridge.internal_address()).await.unwrap()
    }
}

pub(super) fn beat(plane: &ControlPlane, agent: &Agent) {
    let body = json!({
        "instance_id": "i-1",
        "resources": [
            { "name": "db", "resource_type": "postgres", "labels": {}, "hostname": "localhost", "port": 5432 },
            { "name": "audited", "resource_type": "postgres-audit", "labels": {} },
            { "name": "shell", "resource_type": "ssh", "labels": {} },
            { "name": "web", "resource_type": "http", "labels": {}, "tunnel_hostname": "web" },
        ],
    });
    assert_eq!(agent.post(plane, "heartbeat", &body.to_string()).status, 200);
}

pub(super) fn connect(plane: &ControlPlane, body: &Value) -> Answer {
    ask(plane, "POST", "/api/v1/connect", &[("authorization", "Bearer ann@example.com")], &body.to_string())
}

pub(super) fn event_data(event: &str) -> Value {
    serde_json::from_str(event.split_once("\ndata: ").unwrap().1).unwrap()
}

pub(super) type Peer = TlsStream<TcpStream>;

/// What it takes to dial a bridge.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) session: String,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) kind: String,
    certificate: String,
    key: String,
    ca: String,
}

impl Ticket {
    fn of_answer(answer: &Answer) -> Self {
        assert_eq!(answer.status, 200, "{answer:?}");
        Self::of(&answer.json(), "bridge_hostname")
    }

    pub(super) fn of_command(data: &Value) -> Self {
        Self::of(data, "bridge_host")
    }

    fn of(json: &Value, host: &str) -> Self {
        let text = |key: &str| json[key].as_str().unwrap().to_owned();
        Self {
            session: text("session_id"),
            host: text(host),
            port: json["bridge_port"].as_u64().unwrap().try_into().unwrap(),
            kind: text("resource_type"),
            certificate: text("session_cert"),
            key: text("session_key"),
            ca: text("ca_certificate"),
        }
    }

    pub(super) async fn handshake(&self) -> io::Result<Peer> {
        self.handshake_with(&rustls::version::TLS13).await
    }

    pub(super) async fn handshake_with(&self, version: &'static rustls::SupportedProtocolVersion) -> io::Result<Peer> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        let tcp = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))).await?;
        let name = ServerName::try_from(self.host.clone()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    pub(super) async fn dial(&self) -> io::Result<Peer> {
        let mut peer = self.handshake().await?;
        peer.write_all(format!("{}\ntype={}\n", self.session, self.kind).as_bytes()).await?;
        Ok(peer)
    }
}

/// Sends at one end and reads at the other.
pub(super) async fn passes(from: &mut Peer, to: &mut Peer, text: &str) {
    from.write_all(text.as_bytes()).await.unwrap();
    let mut read = vec![0; text.len()];
    to.read_exact(&mut read).await.unwrap();
    assert_eq!(read, text.as_bytes());
}

/// How a connection ends, and what came before that.
pub(super) async fn end_of(peer: &mut Peer) -> (Vec<u8>, io::Result<()>) {
    let mut read = Vec::new();
    let end = tokio::time::timeout(LIMIT, peer.read_to_end(&mut read)).await.expect("an end");
    (read, end.map(|_| ()))
}

/// Reads up to and including a mark.
pub(super) async fn read_until<S: tokio::io::AsyncRead + Unpin>(from: &mut S, mark: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(mark.as_bytes()) {
        let byte = tokio::time::timeout(LIMIT, from.read_u8()).await.expect("more to come");
        text.push(byte.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&text))));
    }
    String::from_utf8(text).unwrap()
}
