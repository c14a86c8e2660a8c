//! What a session of the agent needs around it: a platform that gives orders, a cable, a bridge of a few lines, and a next
//! process whenever a test wants one.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bamf_agent::config::{Dial, Resource};
use bamf_agent::handoff::snapshot::Kind;
use bamf_agent::handoff::{self, Arrival, Departure};
use bamf_agent::platform::events::{TunnelKind, TunnelRequest};
use bamf_agent::secret::Secret;
use bamf_agent::tasks::Tasks;
use bamf_agent::telemetry::metrics::SessionMetrics;
use bamf_agent::tunnel::table::Record;
use bamf_agent::tunnel::{BridgeAddress, Tunnels};
use bamf_lab::bridge::server_config;
use bamf_lab::cable::Cable;
use bamf_lab::client::{self, Link, Options, Tunnel};
use bamf_lab::plane::{CertificateAuthority, Role, SessionNames};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::timeout;

use super::LIMIT;

const SESSION: &str = "-h3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke";
/// What the agent gives to connections that are only being made.
const GRACE: Duration = Duration::from_millis(100);

/// One process of the agent, as far as sessions know.
struct Process {
    tunnels: Tunnels,
    metrics: SessionMetrics,
    tasks: Tasks,
}

impl Process {
    fn start(resource: &Resource) -> Self {
        let (metrics, tasks) = (SessionMetrics::unregistered(), Tasks::new());
        Self { tunnels: Tunnels::new(vec![resource.clone()], metrics.clone(), tasks.clone()), metrics, tasks }
    }

    /// Freezes everything, writes it down, and ends.
    async fn leave(self) -> Arrival {
        let mut departure = Departure::new().unwrap();
        let (frozen, stuck) = self.tunnels.freeze(GRACE, LIMIT).await;
        assert_eq!((stuck, self.tunnels.active()), (0, 0), "every session stops");
        let count = u32::try_from(frozen.len()).unwrap();
        for session in frozen {
            let record = session.record(&mut departure);
            departure.put(Kind::SESSION, &record).unwrap();
        }
        assert_eq!(self.tasks.shut_down(LIMIT).await, 0, "nothing of the old process goes on");
        departure.seal(count).unwrap().take_back()
    }

    /// Goes on with what another has left, all of it whole; returns how many sessions that are.
    fn adopt(&self, arrival: Arrival) -> usize {
        let count = self.adopt_what_is_left(arrival);
        assert_eq!((self.metrics.adopted.get(), self.metrics.lost.get()), (count as u64, 0), "all of them whole");
        count
    }

    fn adopt_what_is_left(&self, mut arrival: Arrival) -> usize {
        let mut records: Vec<Record> = Vec::new();
        let mut reader = arrival.read().unwrap();
        while let Some((kind, payload)) = reader.record().unwrap() {
            assert_eq!(kind, Kind::SESSION);
            records.push(handoff::parse(payload).unwrap());
        }
        let count = records.len();
        for record in records {
            assert!(self.tunnels.adopt(record, &mut arrival), "a session is lost");
        }
        arrival.settle();
        count
    }
}

/// Everything between a session of the agent and the client's end of it.
pub(super) struct Rig {
    resource: Resource,
    kind: &'static str,
    /// Whoever gives an order waits while the process changes.
    process: Mutex<Process>,
    hand_overs: AtomicUsize,
    ca: CertificateAuthority,
    pub(super) cable: Cable,
    arrivals: Mutex<mpsc::Receiver<Link>>,
    /// The bridge accepts connections and does not shake hands.
    holds: watch::Sender<bool>,
}

impl Rig {
    /// A session type, and the port of its target.
    pub(super) fn new(kind: &'static str, port: u16) -> Arc<Self> {
        let ca = CertificateAuthority::new();
        let acceptor = tokio_rustls::TlsAcceptor::from(server_config(&ca, "bridge-0", "localhost").unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let cable = Cable::start(listener.local_addr().unwrap()).unwrap();
        let (queue, arrivals) = mpsc::channel(64);
        let (holds, held) = watch::channel(false);
        tokio::spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(arrive(acceptor.clone(), stream, queue.clone(), held.clone()));
            }
        });
        let resource = Resource {
            name: "thing".into(),
            resource_type: "tcp".into(),
            hostname: "127.0.0.1".into(),
            port,
            labels: BTreeMap::new(),
            tunnel_hostname: None,
            webhooks: Vec::new(),
            forward_session_token: false,
            dial: Dial::Auto,
        };
        let process = Mutex::new(Process::start(&resource));
        let arrivals = Mutex::new(arrivals);
        Arc::new(Self { resource, kind, process, hand_overs: AtomicUsize::new(0), ca, cable, arrivals, holds })
    }

    pub(super) async fn order(&self, kind: TunnelKind) {
        let names = SessionNames {
            session: SESSION.into(),
            resource: "thing".into(),
            bridge: "bridge-0".into(),
            kind: Some(self.kind.into()),
        };
        let now = SystemTime::now();
        let issued = self.ca.session("agent", Role::Agent, &names, now, now + LIMIT).unwrap();
        self.process.lock().await.tunnels.obey(TunnelRequest {
            kind,
            bridge: BridgeAddress { host: "localhost".into(), port: self.cable.address().port() },
            certificate_pem: Secret::new(issued.certificate_pem),
            private_key_pem: Secret::new(issued.private_key_pem),
            ca_pem: self.ca.pem().into(),
            session_id: SESSION.into(),
            resource_name: "thing".into(),
            resource_type: self.kind.into(),
        });
    }

    /// The next process goes on; returns with how many sessions.
    pub(super) async fn hand_over(&self) -> usize {
        let mut process = self.process.lock().await;
        let next = Process::start(&self.resource);
        let arrival = std::mem::replace(&mut *process, next).leave().await;
        self.hand_overs.fetch_add(1, Ordering::Relaxed);
        process.adopt(arrival)
    }

    /// The same to a process whose configuration has the resource elsewhere, or not at all.
    pub(super) async fn hand_over_to(&self, resource: &Resource) -> usize {
        let mut process = self.process.lock().await;
        let next = Process::start(resource);
        let arrival = std::mem::replace(&mut *process, next).leave().await;
        process.adopt(arrival)
    }

    /// The same, where it cannot go well. Returns how many sessions were lost.
    pub(super) async fn lose_to(&self, resource: &Resource) -> u64 {
        let mut process = self.process.lock().await;
        let next = Process::start(resource);
        let arrival = std::mem::replace(&mut *process, next).leave().await;
        process.adopt_what_is_left(arrival);
        process.metrics.lost.get()
    }

    /// The resource that sessions are opened to.
    pub(super) const fn resource(&self) -> &Resource {
        &self.resource
    }

    pub(super) fn hand_overs(&self) -> usize {
        self.hand_overs.load(Ordering::Relaxed)
    }

    pub(super) async fn wait_hand_overs(&self, count: usize) {
        let done = async {
            while self.hand_overs() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LIMIT, done).await.expect("the process does not change");
    }

    /// Changes the process again and again; ends with the session.
    pub(super) async fn hand_over_for_ever(self: Arc<Self>, pause: Duration) {
        while self.hand_over().await > 0 {
            tokio::time::sleep(pause).await;
        }
    }

    /// Bridge connections of the agent, ever.
    pub(super) fn connections(&self) -> usize {
        self.cable.connections()
    }

    pub(super) async fn wait_connections(&self, count: usize) {
        let made = async {
            while self.connections() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LIMIT, made).await.expect("nobody dials");
    }

    /// Whether the bridge lets handshakes wait.
    pub(super) fn hold(&self, holds: bool) {
        self.holds.send_replace(holds);
    }

    /// The newest connection that has come, or the next.
    pub(super) async fn arrival(&self) -> io::Result<Link> {
        let mut arrivals = self.arrivals.lock().await;
        let mut newest = timeout(Duration::from_secs(2), arrivals.recv()).await.map_err(io::Error::other)?;
        while let Ok(newer) = arrivals.try_recv() {
            newest = Some(newer);
        }
        newest.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// A client whose reconnects ask for a redial, as through the platform.
    pub(super) async fn client(self: &Arc<Self>, options: Options) -> Tunnel {
        self.order(TunnelKind::Dial).await;
        let first = self.arrival().await.unwrap();
        if bamf_agent::tunnel::table::is_raw(self.kind) {
            return Tunnel::raw(first, options);
        }
        let rig = Arc::clone(self);
        let dial: client::Dial = Box::new(move || {
            let rig = Arc::clone(&rig);
            Box::pin(async move {
                rig.order(TunnelKind::Redial).await;
                rig.arrival().await
            })
        });
        Tunnel::framed(first, Some(dial), options)
    }

    /// Waits until the session has ended.
    pub(super) async fn is_drained(&self) -> bool {
        let process = self.process.lock().await;
        process.tunnels.drained(Duration::from_secs(10)).await == 0
    }
}

async fn arrive(
    acceptor: tokio_rustls::TlsAcceptor,
    stream: TcpStream,
    queue: mpsc::Sender<Link>,
    mut held: watch::Receiver<bool>,
) {
    drop(held.wait_for(|held| !held).await);
    let Ok(Ok(mut stream)) = timeout(Duration::from_secs(10), acceptor.accept(stream)).await else { return };
    let mut lines = 0;
    while lines < 2 {
        let Ok(byte) = stream.read_u8().await else { return };
        lines += usize::from(byte == b'\n');
    }
    drop(queue.send(Box::new(stream)).await);
}
