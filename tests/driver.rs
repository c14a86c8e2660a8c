//! The session's driver over real TLS sockets, under arbitrary schedules of cuts, stalls, splits and redials.
//!
//! Agent's side: the real `Tunnels`, in this process. Far side: a bridge of a few lines and the lab's client end, which
//! was written from the protocol alone. In between a cable that does what the schedule says. Whatever it says, every byte
//! comes back in order and once, and the target sees one connection.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "the far side of a test has no owner but the test")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bamf_agent::config::{Dial, Resource};
use bamf_agent::platform::events::{TunnelKind, TunnelRequest};
use bamf_agent::secret::Secret;
use bamf_agent::tasks::Tasks;
use bamf_agent::telemetry::metrics::SessionMetrics;
use bamf_agent::tunnel::{BridgeAddress, Tunnels};
use bamf_lab::bridge::server_config;
use bamf_lab::cable::Cable;
use bamf_lab::client::{self, Link, Options, Tunnel};
use bamf_lab::pattern::Pattern;
use bamf_lab::plane::{CertificateAuthority, Role, SessionNames};
use bamf_lab::serve::Network;
use bamf_lab::targets::{Target, Tcp};
use proptest::prelude::*;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(60);
const SESSION: &str = "-h3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke";

/// Everything between a session of the agent and the client's end of it.
struct Rig {
    tunnels: Tunnels,
    ca: CertificateAuthority,
    cable: Cable,
    arrivals: Mutex<mpsc::Receiver<Link>>,
}

impl Rig {
    fn new(target: &Target) -> Arc<Self> {
        let ca = CertificateAuthority::new();
        let acceptor = tokio_rustls::TlsAcceptor::from(server_config(&ca, "bridge-0", "localhost").unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let cable = Cable::start(listener.local_addr().unwrap()).unwrap();
        let (queue, arrivals) = mpsc::channel(64);
        tokio::spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(arrive(acceptor.clone(), stream, queue.clone()));
            }
        });
        let resource = Resource {
            name: "thing".into(),
            resource_type: "tcp".into(),
            hostname: "127.0.0.1".into(),
            port: target.address().port(),
            labels: BTreeMap::new(),
            tunnel_hostname: None,
            webhooks: Vec::new(),
            forward_session_token: false,
            dial: Dial::Auto,
        };
        let tunnels = Tunnels::new(vec![resource], SessionMetrics::unregistered(), Tasks::new());
        Arc::new(Self { tunnels, ca, cable, arrivals: Mutex::new(arrivals) })
    }

    fn order(&self, kind: TunnelKind) {
        let names = SessionNames {
            session: SESSION.into(),
            resource: "thing".into(),
            bridge: "bridge-0".into(),
            kind: Some("tcp".into()),
        };
        let now = SystemTime::now();
        let issued = self.ca.session("agent", Role::Agent, &names, now, now + LIMIT).unwrap();
        self.tunnels.obey(TunnelRequest {
            kind,
            bridge: BridgeAddress { host: "localhost".into(), port: self.cable.address().port() },
            certificate_pem: Secret::new(issued.certificate_pem),
            private_key_pem: Secret::new(issued.private_key_pem),
            ca_pem: self.ca.pem().into(),
            session_id: SESSION.into(),
            resource_name: "thing".into(),
            resource_type: String::new(),
        });
    }

    /// The newest connection that has come, or the next.
    async fn arrival(&self) -> io::Result<Link> {
        let mut arrivals = self.arrivals.lock().await;
        let mut newest = timeout(Duration::from_secs(2), arrivals.recv()).await.map_err(io::Error::other)?;
        while let Ok(newer) = arrivals.try_recv() {
            newest = Some(newer);
        }
        newest.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// A client whose reconnects ask for a redial, as through the platform.
    async fn client(self: &Arc<Self>, options: Options) -> Tunnel {
        self.order(TunnelKind::Dial);
        let first = self.arrival().await.unwrap();
        let rig = Arc::clone(self);
        let dial: client::Dial = Box::new(move || {
            let rig = Arc::clone(&rig);
            Box::pin(async move {
                rig.order(TunnelKind::Redial);
                rig.arrival().await
            })
        });
        Tunnel::framed(first, Some(dial), options)
    }
}

async fn arrive(acceptor: tokio_rustls::TlsAcceptor, stream: TcpStream, queue: mpsc::Sender<Link>) {
    let Ok(Ok(mut stream)) = timeout(Duration::from_secs(10), acceptor.accept(stream)).await else { return };
    let mut lines = 0;
    while lines < 2 {
        let Ok(byte) = stream.read_u8().await else { return };
        lines += usize::from(byte == b'\n');
    }
    drop(queue.send(Box::new(stream)).await);
}

/// Something that the network or the platform does.
#[derive(Clone, Debug)]
enum Event {
    Reset,
    Fin,
    /// The client moves on while the connection is healthy.
    Hop,
    /// A redial that nobody comes for.
    Redial,
    Stall(u64),
    Split(usize),
    Delay(u64),
    Calm,
}

fn event() -> impl Strategy<Value = (u64, Event)> {
    let what = prop_oneof![
        3 => Just(Event::Reset),
        2 => Just(Event::Fin),
        2 => Just(Event::Hop),
        1 => Just(Event::Redial),
        1 => (1..60u64).prop_map(Event::Stall),
        1 => prop_oneof![1..40usize, 1000..9000usize].prop_map(Event::Split),
        1 => (1..15u64).prop_map(Event::Delay),
        1 => Just(Event::Calm),
    ];
    (0..40u64, what)
}

async fn disturb(rig: Arc<Rig>, tunnel: Tunnel, events: Vec<(u64, Event)>) {
    for (pause, event) in events {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        match event {
            Event::Reset => rig.cable.snap(),
            Event::Fin => rig.cable.cut(),
            Event::Hop => tunnel.hop(),
            Event::Redial => rig.order(TunnelKind::Redial),
            Event::Stall(time) => {
                rig.cable.stall();
                tokio::time::sleep(Duration::from_millis(time)).await;
                rig.cable.resume();
            }
            Event::Split(piece) => rig.cable.split(piece),
            Event::Delay(time) => rig.cable.delay(Duration::from_millis(time)),
            Event::Calm => {
                rig.cable.split(usize::MAX);
                rig.cable.delay(Duration::ZERO);
            }
        }
    }
    rig.cable.split(usize::MAX);
    rig.cable.delay(Duration::ZERO);
}

/// Sends `total` bytes through an echo and compares what comes back, while `events` happen.
async fn echo_under(events: Vec<(u64, Event)>, total: usize, chunk: usize) {
    let target = Target::tcp(&Network::Host, Tcp::Echo).unwrap();
    let rig = Rig::new(&target);
    let tunnel = rig.client(Options::robust()).await;
    let writer = tunnel.clone();
    let writing = tokio::spawn(async move {
        let mut pattern = Pattern::default();
        while pattern.position() < total as u64 {
            let left = total - usize::try_from(pattern.position()).unwrap();
            let bytes = pattern.bytes(chunk.min(left));
            writer.write(&bytes).await.unwrap();
        }
    });
    let disturbing = tokio::spawn(disturb(Arc::clone(&rig), tunnel.clone(), events));
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 64 * 1024];
    while pattern.position() < total as u64 {
        let count = timeout(LIMIT, tunnel.read(&mut buffer)).await.expect("it stands still").unwrap();
        assert!(count > 0, "it ended at {}: {:?}", pattern.position(), tunnel.status());
        pattern.check(&buffer[..count]).unwrap();
    }
    writing.await.unwrap();
    disturbing.await.unwrap();
    // A last cut may just have happened, and a close frame without a connection reaches nobody: one more round trip.
    tunnel.write(b"!").await.unwrap();
    let mut last = [0];
    timeout(LIMIT, tunnel.read_exact(&mut last)).await.expect("it stands still").unwrap();
    assert_eq!(target.seen().accepted, 1, "one target connection");
    tunnel.close().await;
    assert_eq!(rig.tunnels.drained(Duration::from_secs(10)).await, 0, "{:?}", tunnel.status());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 5, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_the_connections_every_byte_comes_back_in_order_and_once(
        events in prop::collection::vec(event(), 1..25),
        total in prop_oneof![1..5_000usize, 200_000..6_000_000usize],
        chunk in prop_oneof![1..700usize, 10_000..200_000usize],
    ) {
        // A byte at a time would take all day.
        let chunk = chunk.max(total / 3_000);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(echo_under(events, total, chunk));
    }
}
