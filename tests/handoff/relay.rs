//! A relay with real connections to a bridge of a few lines, and a next process whenever a test wants one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bamf_agent::config::{Dial as When, NetworkConfig, Resource};
use bamf_agent::handoff::snapshot::Kind;
use bamf_agent::handoff::{self, Arrival, Departure};
use bamf_agent::relay::carry::Record;
use bamf_agent::relay::dial::{BridgeAddress, Dial};
use bamf_agent::relay::exchange::Limits;
use bamf_agent::relay::{Config, Handle, start};
use bamf_agent::tasks::Tasks;
use bamf_agent::tunnel::{Credentials, Link, dial};
use bamf_lab::bridge::server_config;
use bamf_lab::plane::{CertificateAuthority, Role, SessionNames};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Connections of a pool.
pub(super) const POOL: usize = 32;

const GREETING: &[u8] = b"RELAY\nagent\n";

#[derive(Clone)]
struct Bridges(Credentials);

impl Dial for Bridges {
    type Link = Link;
    type Error = dial::Error;

    fn agent_name(&self) -> String {
        "agent".into()
    }

    async fn dial(&self, bridge: &BridgeAddress, _: Option<&str>) -> Result<(Link, Duration), dial::Error> {
        dial::connect(bridge, &self.0).await
    }
}

/// The bridge's end of a relay connection.
pub(super) struct Line(TlsStream<TcpStream>);

impl Line {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Reads until what has come ends like this.
    pub(super) async fn until(&mut self, end: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end) {
            let byte = timeout(LIMIT, self.0.read_u8()).await.expect("it stands still");
            bytes.push(byte.unwrap_or_else(|error| panic!("{error} after {}", String::from_utf8_lossy(&bytes))));
        }
        bytes
    }

    pub(super) async fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        timeout(LIMIT, self.0.read_exact(&mut bytes)).await.expect("it stands still").unwrap();
        bytes
    }

    /// The content of a chunked body, to its end.
    pub(super) async fn chunks(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        loop {
            let size = String::from_utf8(self.until(b"\r\n").await).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            content.extend(self.exactly(size).await);
            assert_eq!(self.exactly(2).await, b"\r\n");
            if size == 0 {
                return content;
            }
        }
    }

    /// Whatever still comes, to the end.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // TLS without its farewell is an end as well.
        drop(timeout(LIMIT, self.0.read_to_end(&mut bytes)).await.expect("it does not end"));
        bytes
    }
}

/// A bridge, and the agent's relay to it.
pub(super) struct Scene {
    relay: Handle<Bridges>,
    dial: Bridges,
    resources: Vec<Resource>,
    network: NetworkConfig,
    data: tempfile::TempDir,
    lines: mpsc::Receiver<Line>,
    accepted: Arc<AtomicUsize>,
    holds: watch::Sender<bool>,
    pub(super) hand_overs: usize,
    _bridge: Tasks,
}

impl Scene {
    /// With a target on this port as a plain web resource, and in TLS if `roots` are its authority's.
    pub(super) async fn new(port: u16, roots: Option<&str>) -> Self {
        let ca = CertificateAuthority::new();
        let data = tempfile::tempdir().unwrap();
        let extra_roots = roots.map(|pem| {
            let path = data.path().join("roots.pem");
            std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), pem.as_bytes()).unwrap();
            path
        });
        let kind = if roots.is_some() { "https" } else { "http" };
        let network = NetworkConfig { extra_roots, ..NetworkConfig::default() };
        let (queue, lines) = mpsc::channel(2 * POOL);
        let (holds, held) = watch::channel(false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bridge = BridgeAddress { host: "localhost".into(), port: listener.local_addr().unwrap().port() };
        let (tasks, accepted) = (Tasks::new(), Arc::<AtomicUsize>::default());
        tasks.spawn("bridge", accept(listener, acceptor(&ca), queue, held, Arc::clone(&accepted), tasks.clone()));
        let dial = Bridges(credentials(&ca));
        let resources = vec![resource(kind, port)];
        let relay = relay(&dial, &resources, &network, &data);
        relay.connect("", bridge, None);
        Self { relay, dial, resources, network, data, lines, accepted, holds, hand_overs: 0, _bridge: tasks }
    }

    /// The next connections that greet.
    pub(super) async fn lines(&mut self, count: usize) -> Vec<Line> {
        let mut lines = Vec::new();
        while lines.len() < count {
            lines.push(timeout(LIMIT, self.lines.recv()).await.expect("nobody dials").unwrap());
        }
        lines
    }

    /// A full pool.
    pub(super) async fn full(&mut self) -> Vec<Line> {
        self.lines(POOL).await
    }

    /// How often the agent has dialled.
    pub(super) fn dials(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(super) async fn wait_dials(&self, count: usize) {
        let dialled = async {
            while self.dials() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LIMIT, dialled).await.expect("nobody dials");
    }

    /// Whether the bridge lets handshakes wait.
    pub(super) fn hold(&self, holds: bool) {
        self.holds.send_replace(holds);
    }

    /// Another process goes on; returns with how many connections.
    pub(super) async fn hand_over(&mut self) -> usize {
        let mut departure = Departure::new().unwrap();
        for carried in self.relay.freeze(LIMIT).await {
            let record = Record::of(carried, &mut departure).unwrap();
            departure.put(Kind::RELAY, &record).unwrap();
        }
        let mut arrival = departure.seal(0).unwrap().take_back();
        let records = records(&arrival);
        let carried: Vec<_> = records.into_iter().map(|record| record.revive(&mut arrival).unwrap()).collect();
        arrival.settle();
        let count = carried.len();
        self.relay = relay(&self.dial, &self.resources, &self.network, &self.data);
        self.relay.adopt(carried);
        self.hand_overs += 1;
        count
    }
}

fn records(arrival: &Arrival) -> Vec<Record> {
    let mut records = Vec::new();
    let mut reader = arrival.read().unwrap();
    while let Some((kind, payload)) = reader.record().unwrap() {
        assert_eq!(kind, Kind::RELAY);
        records.push(handoff::parse(payload).unwrap());
    }
    records
}

fn relay(dial: &Bridges, resources: &[Resource], network: &NetworkConfig, data: &tempfile::TempDir) -> Handle<Bridges> {
    start(Config {
        dial: dial.clone(),
        resources: resources.to_vec(),
        network: network.clone(),
        data_dir: data.path().to_owned(),
        service_account: "/nonexistent".into(),
        limits: Limits::default(),
    })
}

fn resource(kind: &str, port: u16) -> Resource {
    Resource {
        name: "wiki".into(),
        resource_type: kind.into(),
        hostname: if kind == "https" { "localhost" } else { "127.0.0.1" }.into(),
        port,
        labels: BTreeMap::new(),
        tunnel_hostname: None,
        webhooks: Vec::new(),
        forward_session_token: false,
        dial: When::Auto,
    }
}

fn credentials(ca: &CertificateAuthority) -> Credentials {
    let names = SessionNames { session: "s".into(), resource: "r".into(), bridge: "bridge-0".into(), kind: None };
    let now = SystemTime::now();
    let issued = ca.session("agent", Role::Agent, &names, now, now + Duration::from_secs(3600)).unwrap();
    Credentials::new(&issued.certificate_pem, &issued.private_key_pem, ca.pem()).unwrap()
}

fn acceptor(ca: &CertificateAuthority) -> tokio_rustls::TlsAcceptor {
    tokio_rustls::TlsAcceptor::from(server_config(ca, "bridge-0", "localhost").unwrap())
}

async fn accept(
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    queue: mpsc::Sender<Line>,
    held: watch::Receiver<bool>,
    accepted: Arc<AtomicUsize>,
    tasks: Tasks,
) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        accepted.fetch_add(1, Ordering::SeqCst);
        let (acceptor, queue, mut held) = (acceptor.clone(), queue.clone(), held.clone());
        tasks.spawn("line", async move {
            drop(held.wait_for(|held| !held).await);
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut greeting = [0; GREETING.len()];
            if stream.read_exact(&mut greeting).await.is_ok() {
                assert_eq!(greeting, GREETING);
                drop(queue.send(Line(stream)).await);
            }
        });
    }
}
