//! A client against a platform and a bridge of a few lines: HTTPS, the session's certificates, the header.

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio_rustls::TlsAcceptor;

use super::super::local::LocalPort;
use super::super::{Client, Dial, Error, Link, Options, Received, Status, Tunnel, frame};
use crate::pattern::Pattern;
use crate::runtime::{block_on, handle};
use crate::serve::{Handler, Network, Server};

const LIMIT: Duration = Duration::from_secs(20);
const SESSION: &str = "-_k3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4K";

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ED25519).unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (leaf.pem(), key.serialize_pem())
    }

    fn server(&self, name: &str, demands_certificate: bool) -> Arc<rustls::ServerConfig> {
        let (certificate, key) = self.issue(name);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.pem().as_bytes()).unwrap()).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let builder = if demands_certificate {
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        Arc::new(builder.with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap())
    }
}

/// Platform, bridge and the far end of one tunnel.
struct Fake {
    url: String,
    web_ca_pem: String,
    asked: Arc<Mutex<Vec<Value>>>,
    headers: Arc<Mutex<Vec<String>>>,
    links: Arc<AsyncMutex<mpsc::UnboundedReceiver<Link>>>,
    _server: Server,
}

impl Fake {
    fn start(resource_type: &str) -> Self {
        let bamf = Arc::new(Authority::new());
        let web = Authority::new();
        let (sender, links) = mpsc::unbounded_channel();
        let headers: Arc<Mutex<Vec<String>>> = Arc::default();
        let port = bridge(bamf.server("bridge.localhost", true), Arc::clone(&headers), sender);
        let asked: Arc<Mutex<Vec<Value>>> = Arc::default();
        let handler = platform(bamf, port, resource_type.to_owned(), Arc::clone(&asked));
        let server = Server::start(&Network::Host, 0, Some(web.server("localhost", false)), handler).unwrap();
        let url = format!("https://localhost:{}", server.address().port());
        let links = Arc::new(AsyncMutex::new(links));
        Self { url, web_ca_pem: web.0.pem(), asked, headers, links, _server: server }
    }

    fn client(&self, options: Options) -> Client {
        Client::new(&self.url, &self.web_ca_pem, "tok").with(options)
    }

    async fn link(links: &AsyncMutex<mpsc::UnboundedReceiver<Link>>) -> io::Result<Link> {
        links.lock().await.recv().await.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }

    /// The agent's end: whatever connection comes next is the session's.
    async fn agent(&self) -> Tunnel {
        let links = Arc::clone(&self.links);
        let first = Self::link(&links).await.unwrap();
        let dial: Dial = Box::new(move || {
            let links = Arc::clone(&links);
            Box::pin(async move { Self::link(&links).await })
        });
        Tunnel::framed(first, Some(dial), Options::robust())
    }
}

fn platform(bamf: Arc<Authority>, port: u16, resource_type: String, asked: Arc<Mutex<Vec<Value>>>) -> Handler {
    Arc::new(move |request| {
        let (bamf, resource_type, asked) = (Arc::clone(&bamf), resource_type.clone(), Arc::clone(&asked));
        Box::pin(async move {
            assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/api/v1/connect"));
            let allowed = request.headers().get("authorization").is_some_and(|value| value == "Bearer tok");
            let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let (certificate, key) = bamf.issue("ana");
            let known = body["resource_name"] == "db";
            asked.lock().unwrap().push(body);
            let answer = json!({
                "bridge_hostname": "bridge.localhost", "bridge_port": port, "session_cert": certificate,
                "session_key": key, "ca_certificate": bamf.0.pem(), "session_id": SESSION,
                "session_expires_at": "2030-01-01T00:00:00Z", "resource_type": resource_type,
                "candidate_edges": [], "probe_required": false,
            });
            let (status, answer) = match (allowed, known) {
                (true, true) => (200, answer),
                (true, false) => (404, json!({ "detail": "Resource not found" })),
                (false, _) => (401, json!({ "detail": "Invalid session" })),
            };
            let body = Full::new(answer.to_string().into()).map_err(|never| match never {}).boxed();
            Ok(hyper::Response::builder().status(status).body(body).unwrap())
        })
    })
}

fn bridge(tls: Arc<rustls::ServerConfig>, headers: Arc<Mutex<Vec<String>>>, links: mpsc::UnboundedSender<Link>) -> u16 {
    let listener = block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let port = listener.local_addr().unwrap().port();
    handle().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = TlsAcceptor::from(Arc::clone(&tls)).accept(stream).await.unwrap();
            let mut header = Vec::new();
            while header.iter().filter(|byte| **byte == b'\n').count() < 2 {
                header.push(stream.read_u8().await.unwrap());
            }
            headers.lock().unwrap().push(String::from_utf8(header).unwrap());
            drop(links.send(Box::new(stream)));
        }
    });
    port
}

#[test]
fn a_tunnel_opens_and_survives_the_loss_of_its_connection() {
    let fake = Fake::start("postgres");
    block_on(async {
        let client = fake.client(Options::robust()).connect("db").await.unwrap();
        let agent = fake.agent().await;
        client.write(b"ask").await.unwrap();
        let mut question = [0; 3];
        agent.read_exact(&mut question).await.unwrap();
        agent.hop();
        agent.write(b"reply").await.unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!((&question, &answer), (b"ask", b"reply"));
        assert!(client.wait_reconnects(1, LIMIT).await);
        client.close().await;
        assert_eq!(agent.read_to_end().await.unwrap(), b"");
        assert_eq!(agent.status(), Status::ClosedByPeer);
    });
    let header = format!("{SESSION}\ntype=postgres\n");
    assert_eq!(*fake.headers.lock().unwrap(), [header.clone(), header]);
    let again = json!({ "resource_name": "db", "reconnect_session_id": SESSION });
    assert_eq!(*fake.asked.lock().unwrap(), [json!({ "resource_name": "db" }), again]);
}

#[test]
fn refusals_and_foreign_authorities_are_errors() {
    let fake = Fake::start("ssh");
    let refused = fake.client(Options::robust()).open("nothing");
    assert!(matches!(refused, Err(Error::Refused { status: 404, .. })), "{refused:?}");
    let stranger = Client::new(&fake.url, &fake.web_ca_pem, "other").open("db");
    assert!(matches!(stranger, Err(Error::Refused { status: 401, .. })), "{stranger:?}");
    let foreign = Client::new(&fake.url, &Authority::new().0.pem(), "tok").open("db");
    assert!(matches!(foreign, Err(Error::Io(_))), "{foreign:?}");
}

#[test]
fn raw_types_travel_without_frames() {
    let fake = Fake::start("web-ssh");
    block_on(async {
        let options = Options { protocol: Some("web-ssh".to_owned()), ..Options::robust() };
        let client = fake.client(options).connect("db").await.unwrap();
        let mut agent = Fake::link(&fake.links).await.unwrap();
        agent.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        agent.flush().await.unwrap();
        let mut banner = [0; 11];
        client.read_exact(&mut banner).await.unwrap();
        client.write(b"raw").await.unwrap();
        let mut raw = [0; 3];
        agent.read_exact(&mut raw).await.unwrap();
        assert_eq!((&banner, &raw), (b"SSH-2.0-x\r\n", b"raw"));
    });
    assert_eq!(fake.asked.lock().unwrap()[0]["protocol"], "web-ssh");
}

#[test]
fn a_local_port_carries_one_connection_and_closes_with_it() {
    let fake = Fake::start("tcp");
    let port = LocalPort::open(fake.client(Options::robust()).open("db").unwrap().tunnel).unwrap();
    block_on(async {
        let agent = fake.agent().await;
        let mut program = TcpStream::connect(port.address()).await.unwrap();
        program.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        agent.read_exact(&mut heard).await.unwrap();
        agent.write(&heard).await.unwrap();
        program.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        drop(program);
        tokio::time::timeout(LIMIT, agent.wait_over()).await.unwrap();
        assert_eq!(agent.status(), Status::ClosedByPeer);
        assert!(TcpStream::connect(port.address()).await.is_err());
    });
}

#[test]
fn bytes_stay_exact_while_the_client_hops_from_connection_to_connection() {
    const TOTAL: usize = 24 << 20;
    let fake = Fake::start("tcp");
    block_on(async {
        let client = fake.client(Options::robust()).connect("db").await.unwrap();
        let agent = fake.agent().await;
        let write = async |tunnel: &Tunnel| {
            let mut pattern = Pattern::default();
            while pattern.position() < TOTAL as u64 {
                tunnel.write(&pattern.bytes(1 << 18)).await.unwrap();
            }
        };
        let read = async |tunnel: &Tunnel| {
            let (mut pattern, mut buffer) = (Pattern::default(), vec![0; 1 << 18]);
            while pattern.position() < TOTAL as u64 {
                let count = tunnel.read(&mut buffer).await.unwrap();
                pattern.check(&buffer[..count]).unwrap();
            }
        };
        let hop = async {
            for round in 1..=6 {
                client.hop();
                assert!(client.wait_reconnects(round, LIMIT).await, "{:?}", client.status());
            }
        };
        tokio::join!(write(&client), read(&client), write(&agent), read(&agent), hop);
        assert!(client.wait_acknowledged(LIMIT).await && agent.wait_acknowledged(LIMIT).await);
    });
}

#[test]
fn a_session_by_hand_comes_back_under_its_id() {
    let fake = Fake::start("tcp");
    let client = fake.client(Options::robust());
    let mut wire = client.open_wire("db").unwrap();
    let agent = block_on(fake.agent());
    wire.write_byte_by_byte(&frame::data(1, b"by hand")).unwrap();
    block_on(agent.read_exact(&mut [0; 7])).unwrap();
    assert_eq!(wire.next(LIMIT).unwrap(), Received::Ack(1));
    let session_id = wire.session_id.clone();
    wire.end();
    let mut wire = client.open_wire_again("db", &session_id).unwrap();
    assert_eq!(wire.next_but_acks(LIMIT).unwrap(), Received::Handshake(2));
    wire.write(&[&frame::handshake(1)[..], &frame::data(2, b"!"), &frame::CLOSE].concat()).unwrap();
    assert_eq!(block_on(agent.read_to_end()).unwrap(), b"!");
    assert_eq!(agent.status(), Status::ClosedByPeer);
}

#[test]
#[ignore = "a measurement"]
fn how_fast_two_ends_are_over_tls() {
    const TOTAL: usize = 1 << 30;
    let fake = Fake::start("tcp");
    let client = fake.client(Options::robust()).open("db").unwrap().tunnel;
    let agent = block_on(fake.agent());
    for (from, to) in [(&client, &agent), (&agent, &client)] {
        let began = std::time::Instant::now();
        let from = from.clone();
        let sender = handle().spawn(async move {
            let (mut pattern, mut buffer) = (Pattern::default(), vec![0; 256 << 10]);
            for _ in 0..TOTAL / buffer.len() {
                pattern.fill(&mut buffer);
                from.write(&buffer).await.unwrap();
            }
        });
        block_on(async {
            let (mut pattern, mut buffer) = (Pattern::default(), vec![0; 256 << 10]);
            while pattern.position() < TOTAL as u64 {
                let count = to.read(&mut buffer).await.unwrap();
                pattern.check(&buffer[..count]).unwrap();
            }
            sender.await.unwrap();
        });
        println!("{:.0} MiB/s", 1024.0 / began.elapsed().as_secs_f64());
    }
    let began = std::time::Instant::now();
    block_on(async {
        let mut ball = [7; 64];
        for _ in 0..10_000 {
            client.write(&ball).await.unwrap();
            agent.read_exact(&mut ball).await.unwrap();
            agent.write(&ball).await.unwrap();
            client.read_exact(&mut ball).await.unwrap();
        }
    });
    println!("{:.0} us for a round trip of 64 bytes", began.elapsed().as_secs_f64() * 100.0);
}
