//! Pools against scripted bridges: filled, replaced, paced, superseded, remembered, carried over.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::relay::route::tests::resource;
use crate::relay::{Carried, Config, Handle, memory, start as start_relay};

/// Hands the far end of every connection to the test, or fails.
struct Script {
    dialled: mpsc::UnboundedSender<Dialled>,
    refusing: Arc<AtomicBool>,
}

struct Dialled {
    bridge: BridgeAddress,
    ca_pem: Option<String>,
    /// `None` where the dial was refused.
    link: Option<DuplexStream>,
}

impl Dial for Script {
    type Link = DuplexStream;
    type Error = std::io::Error;

    fn agent_name(&self) -> String {
        "edge-agent-01".into()
    }

    async fn dial(&self, bridge: &BridgeAddress, ca_pem: Option<&str>) -> std::io::Result<(DuplexStream, Duration)> {
        let refused = self.refusing.load(Relaxed);
        let (near, far) = duplex(64 * 1024);
        let (bridge, ca_pem) = (bridge.clone(), ca_pem.map(str::to_owned));
        drop(self.dialled.send(Dialled { bridge, ca_pem, link: (!refused).then_some(far) }));
        if refused {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        Ok((near, Duration::from_millis(10)))
    }
}

struct Desk {
    relay: Handle<Script>,
    dialled: mpsc::UnboundedReceiver<Dialled>,
    refusing: Arc<AtomicBool>,
    directory: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self::over(tempfile::tempdir().unwrap(), 1)
    }

    fn over(directory: tempfile::TempDir, port: u16) -> Self {
        let (sender, dialled) = mpsc::unbounded_channel();
        let refusing: Arc<AtomicBool> = Arc::default();
        let relay =
            start_relay(config(Script { dialled: sender, refusing: Arc::clone(&refusing) }, directory.path(), port));
        Self { relay, dialled, refusing, directory }
    }

    fn connect(&self, edge: &str, host: &str) {
        self.relay.connect(edge, bridge(host), Some(format!("CA of {host}")));
    }

    /// The next dial's connection.
    async fn link(&mut self) -> DuplexStream {
        self.dialled.recv().await.unwrap().link.unwrap()
    }

    async fn links(&mut self, count: usize) -> Vec<DuplexStream> {
        let mut links = Vec::new();
        while links.len() < count {
            links.push(self.link().await);
        }
        links
    }

    /// How many dials there are within a time.
    async fn dials_within(&mut self, time: Duration) -> usize {
        let mut count = 0;
        let counting = async {
            while self.dialled.recv().await.is_some() {
                count += 1;
            }
        };
        drop(timeout(time, counting).await);
        count
    }

    fn only(&self) -> RelayStatus {
        let status = self.relay.status();
        assert_eq!(status.len(), 1, "{status:?}");
        status.into_iter().next().unwrap()
    }
}

fn config<D>(dial: D, data_dir: &Path, port: u16) -> Config<D> {
    Config {
        dial,
        resources: vec![resource("app", "http", "127.0.0.1", port)],
        network: Default::default(),
        data_dir: data_dir.to_owned(),
        service_account: "/nonexistent".into(),
        limits: Default::default(),
    }
}

fn bridge(host: &str) -> BridgeAddress {
    BridgeAddress { host: host.into(), port: 8443 }
}

const GREETING: &str = "RELAY\nedge-agent-01\n";

async fn read(stream: &mut DuplexStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A request that the relay answers by itself.
const BAD: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn a_pool_fills_to_its_size_and_what_ends_is_replaced() {
    let mut desk = Desk::new();
    desk.connect("", "a");
    let begun = Instant::now();
    let mut links = vec![desk.link().await];
    assert_eq!(begun.elapsed(), Duration::ZERO, "the first does not wait for anything");
    assert_eq!(read(&mut links[0], GREETING.len()).await, GREETING);
    links.extend(desk.links(SIZE - 1).await);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(desk.dials_within(Duration::from_secs(60)).await, 0, "never more");
    assert_eq!(desk.only().connections, SIZE);
    links.truncate(SIZE - 5);
    links.extend(desk.links(5).await);
    assert_eq!(desk.dials_within(Duration::from_secs(60)).await, 0);
    let status = desk.only();
    assert_eq!((status.connections, status.state, &status.bridge[..]), (SIZE, "connected", "a:8443"));
    assert_eq!(desk.relay.rtts(), [(String::new(), 10)].into());
}

#[tokio::test(start_paused = true)]
async fn a_lost_pool_comes_back_within_a_second_of_its_bridge() {
    let mut desk = Desk::new();
    desk.connect("", "a");
    let links = desk.links(SIZE).await;
    tokio::time::sleep(PROVEN * 2).await;
    desk.refusing.store(true, Relaxed);
    drop(links);
    // As in a restart that takes a while.
    assert!(desk.dials_within(Duration::from_secs(20)).await < 200);
    assert_eq!(desk.only().state, "connecting");
    assert_eq!(desk.only().last_error.as_deref(), Some("connection refused"));
    desk.refusing.store(false, Relaxed);
    let back = Instant::now();
    while desk.dialled.recv().await.unwrap().link.is_none() {}
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_is_gone_is_tried_for_ever_but_seldom_until_the_platform_asks() {
    let mut desk = Desk::new();
    desk.refusing.store(true, Relaxed);
    desk.connect("", "a");
    desk.dials_within(Duration::from_secs(300)).await;
    let dials = desk.dials_within(Duration::from_secs(3600)).await;
    assert!((240..1500).contains(&dials), "{dials} in an hour");
    desk.refusing.store(false, Relaxed);
    desk.connect("", "a");
    let asked = Instant::now();
    desk.link().await;
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_bridge_that_hangs_up_at_once_is_not_hammered() {
    let mut desk = Desk::new();
    desk.connect("", "a");
    let dials = desk.dials_within(Duration::from_secs(60)).await;
    assert!((30..400).contains(&dials), "{dials} in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_known_pool_is_left_alone_and_a_new_bridge_supersedes_it() {
    let mut desk = Desk::new();
    desk.connect("", "a");
    let old = desk.links(SIZE).await;
    desk.connect("", "a");
    assert_eq!(desk.dials_within(Duration::from_secs(60)).await, 0);
    desk.connect("eu", "c");
    let other = desk.links(SIZE).await;
    desk.connect("", "b");
    let new = desk.dialled.recv().await.unwrap();
    assert_eq!((new.bridge, new.ca_pem.as_deref()), (bridge("b"), Some("CA of b")));
    let _new = desk.links(SIZE - 1).await;
    let states: Vec<_> = desk.relay.status().into_iter().map(|pool| pool.state).collect();
    assert_eq!(states, ["superseded", "connected", "connected"]);
    // Unused for long enough, the old one ends in good order, and nobody dials it again.
    for mut link in old {
        assert_eq!(link.read_to_string(&mut String::new()).await.unwrap(), GREETING.len());
    }
    assert_eq!(desk.relay.status().len(), 2);
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_bridge_that_fails_is_not_dialled_any_more() {
    let mut desk = Desk::new();
    desk.connect("", "a");
    let old = desk.links(SIZE).await;
    tokio::time::sleep(PROVEN * 2).await;
    desk.connect("", "b");
    let _new = desk.links(SIZE).await;
    tokio::time::sleep(PROVEN * 2).await;
    desk.refusing.store(true, Relaxed);
    drop(old);
    assert_eq!(desk.dials_within(Duration::from_secs(600)).await, 1);
    assert_eq!(desk.only().bridge, "b:8443");
}

#[tokio::test]
async fn bridges_are_remembered_and_dialled_at_the_next_start() {
    let mut desk = Desk::new();
    desk.connect("eu", "a");
    let _link = desk.link().await;
    let path = desk.directory.path().join(memory::FILE);
    while !path.exists() {
        tokio::task::yield_now().await;
    }
    let Desk { relay, directory, .. } = desk;
    relay.freeze(Duration::from_secs(5)).await;
    let mut next = Desk::over(directory, 1);
    next.relay.reconnect();
    let dialled = next.dialled.recv().await.unwrap();
    assert_eq!((dialled.bridge, dialled.ca_pem.as_deref()), (bridge("a"), Some("CA of a")));
    assert_eq!(next.only().edge, "eu");
}

#[tokio::test(start_paused = true)]
async fn pools_are_bounded_and_superseded_ones_make_room() {
    let mut desk = Desk::new();
    desk.refusing.store(true, Relaxed);
    for number in 0..40 {
        desk.connect(&format!("edge{number}"), "a");
    }
    assert_eq!(desk.relay.status().len(), 16);
    desk.connect("edge0", "b");
    let here: Vec<_> = desk.relay.status().into_iter().filter(|pool| pool.edge == "edge0").collect();
    assert_eq!((here.len(), &here[0].bridge[..]), (1, "b:8443"));
    assert_eq!(desk.relay.status().len(), 16);
    desk.relay.connect("", BridgeAddress { host: "a b".into(), port: 1 }, None);
    desk.dials_within(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn streams_are_replaced_in_their_pool() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut desk = Desk::over(tempfile::tempdir().unwrap(), port);
    desk.connect("", "a");
    let mut links = desk.links(SIZE).await;
    let request = format!("GET / HTTP/1.1\r\nX-Bamf-Target: http://127.0.0.1:{port}\r\n\r\n");
    links[0].write_all(request.as_bytes()).await.unwrap();
    let (mut target, _) = listener.accept().await.unwrap();
    // What is left unread would make a reset of the end.
    assert!(target.read(&mut [0; 4096]).await.unwrap() > 0);
    target.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
    let _replacement = desk.link().await;
    let status = desk.only();
    assert_eq!((status.streams, status.requests), (1, 1));
    drop(target);
    let mut text = String::new();
    links[0].read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn a_drained_relay_ends_its_connections_in_good_order() {
    let mut desk = Desk::new();
    desk.connect("", "a");
    let mut links = desk.links(3).await;
    assert_eq!(desk.relay.drain(Duration::from_secs(5)).await, 0);
    for link in &mut links {
        assert_eq!(link.read_to_string(&mut String::new()).await.unwrap(), GREETING.len());
    }
    assert!(!desk.relay.is_active());
}

#[tokio::test]
async fn frozen_connections_go_on_in_another_relay_and_are_not_dialled_again() {
    let mut desk = Desk::new();
    desk.connect("", "a");
    let mut links = desk.links(SIZE).await;
    for link in &mut links {
        assert_eq!(read(link, GREETING.len()).await, GREETING);
    }
    // In the middle of a head.
    links[0].write_all(&BAD[..10]).await.unwrap();
    tokio::task::yield_now().await;
    let carried = desk.relay.freeze(Duration::from_secs(5)).await;
    assert_eq!(carried.len(), SIZE);
    let carried = carried.into_iter().map(|carried| {
        let text = serde_json::to_vec(&carried.connection.conversation).unwrap();
        let conversation = serde_json::from_slice(&text).unwrap();
        Carried { connection: Connection { conversation, ..carried.connection }, ..carried }
    });
    let next = Desk::new();
    next.relay.adopt(carried.collect());
    links[0].write_all(&BAD[10..]).await.unwrap();
    assert!(read(&mut links[0], 20).await.starts_with("HTTP/1.1 502 "));
    let status = next.only();
    assert_eq!((status.connections, status.requests, &status.bridge[..]), (SIZE, 1, "a:8443"));
    assert!(next.dialled.is_empty());
}

/// Dials in plain TCP.
struct Plain;

impl Dial for Plain {
    type Link = TcpStream;
    type Error = std::io::Error;

    fn agent_name(&self) -> String {
        "edge-agent-01".into()
    }

    async fn dial(&self, bridge: &BridgeAddress, _ca_pem: Option<&str>) -> std::io::Result<(TcpStream, Duration)> {
        let begun = Instant::now();
        let stream = TcpStream::connect((bridge.host.as_str(), bridge.port)).await?;
        Ok((stream, begun.elapsed()))
    }
}

#[tokio::test]
async fn over_real_sockets_a_restarted_bridge_is_served_again_at_once_and_never_by_more_than_a_pool() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let relay = start_relay(config(Plain, directory.path(), 1));
    relay.connect("", BridgeAddress { host: "127.0.0.1".into(), port: address.port() }, None);
    let serve = async |listener: &TcpListener| {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut greeting = vec![0; GREETING.len()];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(BAD).await.unwrap();
        let mut answer = [0; 20];
        stream.read_exact(&mut answer).await.unwrap();
        stream
    };
    let mut streams = Vec::new();
    while streams.len() < SIZE {
        streams.push(serve(&listener).await);
    }
    assert!(timeout(Duration::from_millis(300), listener.accept()).await.is_err(), "never more than a pool");
    drop((listener, streams));
    let listener = TcpListener::bind(address).await.unwrap();
    let begun = Instant::now();
    let _stream = serve(&listener).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    relay.freeze(Duration::from_secs(5)).await;
}
