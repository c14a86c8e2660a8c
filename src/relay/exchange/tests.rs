//! The driver over a duplex stream as the bridge and scripted targets on loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::kubernetes::ServiceAccount;
use crate::relay::route::Router;
use crate::relay::route::tests::resource;
use crate::tasks::Tasks;

#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    detached: AtomicUsize,
}

impl Observer for Seen {
    fn requested(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    fn detached(&self, _: Kind) {
        self.detached.fetch_add(1, Relaxed);
    }
}

/// A target, a relay connection that leads to it, and the bridge's end of that.
struct Desk {
    listener: TcpListener,
    port: u16,
    service: Arc<Service>,
    seen: Arc<Seen>,
    signals: Signals,
    tasks: Tasks,
}

impl Desk {
    async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cluster = Arc::new(ServiceAccount::new("/nonexistent"));
        let router = Router::new(&[resource("app", "http", "127.0.0.1", port)]);
        let service = Service {
            rules: RuleBook::new(router, Arc::clone(&cluster)),
            targets: Targets::new(Default::default(), cluster),
            counters: Counters::default(),
            fixed: Fixed::default(),
            limits,
        };
        let (service, seen) = (Arc::new(service), Arc::default());
        Self { listener, port, service, seen, signals: Signals::default(), tasks: Tasks::new() }
    }

    /// Serves a new relay connection and hands out the bridge's end and what becomes of it.
    fn relay(&self, size: usize) -> (DuplexStream, tokio::task::JoinHandle<(End, Connection<DuplexStream>)>) {
        let (near, far) = duplex(size);
        let connection = Connection { conversation: Conversation::new(), bridge: near, target: None };
        (far, self.serve(connection))
    }

    fn serve(
        &self,
        mut connection: Connection<DuplexStream>,
    ) -> tokio::task::JoinHandle<(End, Connection<DuplexStream>)> {
        let (service, seen, signals) = (Arc::clone(&self.service), Arc::clone(&self.seen), self.signals.clone());
        self.tasks.spawn("relay connection", async move {
            let end = serve(&mut connection, &service, &signals, &*seen).await;
            (end, connection)
        })
    }

    fn request(&self, line: &str, lines: &str) -> String {
        format!("{line} HTTP/1.1\r\nHost: b\r\nX-Bamf-Target: http://127.0.0.1:{}\r\n{lines}\r\n", self.port)
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }
}

/// Reads until the text ends as wanted.
async fn until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "ended after {:?}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[tokio::test]
async fn requests_share_one_connection_to_the_target() {
    let desk = Desk::new().await;
    let (mut bridge, served) = desk.relay(4096);
    bridge.write_all(desk.request("GET /1", "").as_bytes()).await.unwrap();
    let mut target = desk.accept().await;
    for number in 1..=3 {
        if number > 1 {
            bridge.write_all(desk.request(&format!("GET /{number}"), "").as_bytes()).await.unwrap();
        }
        let head = until(&mut target, "\r\n\r\n").await;
        assert!(head.starts_with(&format!("GET /{number} HTTP/1.1\r\n")), "{head}");
        target.write_all(OK.as_bytes()).await.unwrap();
        assert_eq!(until(&mut bridge, "hi").await, OK);
    }
    drop(bridge);
    assert_eq!(served.await.unwrap().0, End::Closed);
    assert_eq!(desk.seen.requests.load(Relaxed), 3);
    let reading = desk.service.counters.read();
    assert_eq!((reading.relayed, reading.in_flight), ([0, 3, 0, 0, 0], 0));
}

#[tokio::test]
async fn a_connection_that_the_target_closed_meanwhile_is_not_used() {
    let desk = Desk::new().await;
    let (mut bridge, _served) = desk.relay(4096);
    for _ in 0..2 {
        bridge.write_all(desk.request("POST /", "").as_bytes()).await.unwrap();
        let mut target = desk.accept().await;
        until(&mut target, "\r\n\r\n").await;
        target.write_all(OK.as_bytes()).await.unwrap();
        drop(target);
        assert_eq!(until(&mut bridge, "hi").await, OK);
    }
}

#[tokio::test]
async fn an_unreachable_target_is_a_502_and_the_connection_stays_usable() {
    let desk = Desk::new().await;
    let (mut bridge, _served) = desk.relay(4096);
    let request = desk.request("POST /", "Content-Length: 3\r\n");
    let Desk { listener, .. } = desk;
    drop(listener);
    for _ in 0..2 {
        bridge.write_all(request.as_bytes()).await.unwrap();
        bridge.write_all(b"abc").await.unwrap();
        let head = until(&mut bridge, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\nContent-Length: "), "{head}");
        until(&mut bridge, "refused").await;
    }
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once_through_small_pipes() {
    let desk = Desk::new().await;
    let (bridge, _served) = desk.relay(1000);
    let (mut from_bridge, mut to_bridge) = tokio::io::split(bridge);
    let body: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).take(3_000_000).collect();
    let head = desk.request("POST /echo", &format!("Content-Length: {}\r\n", body.len()));
    let sent = body.clone();
    let sending = async move {
        to_bridge.write_all(head.as_bytes()).await.unwrap();
        to_bridge.write_all(&sent).await.unwrap();
        to_bridge
    };
    let echoing = async {
        let mut target = desk.accept().await;
        until(&mut target, "\r\n\r\n").await;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        target.write_all(answer.as_bytes()).await.unwrap();
        let (mut read, mut write) = target.split();
        tokio::io::copy(&mut (&mut read).take(body.len() as u64), &mut write).await.unwrap();
    };
    let receiving = async {
        until(&mut from_bridge, "\r\n\r\n").await;
        let mut received = vec![0; body.len()];
        from_bridge.read_exact(&mut received).await.unwrap();
        received
    };
    let (_open, (), received) = tokio::join!(sending, echoing, receiving);
    assert!(received == body);
}

#[tokio::test]
async fn events_pass_at_once_and_a_bridge_that_leaves_ends_the_stream() {
    let desk = Desk::new().await;
    let (mut bridge, served) = desk.relay(4096);
    bridge.write_all(desk.request("GET /events", "").as_bytes()).await.unwrap();
    let mut target = desk.accept().await;
    until(&mut target, "\r\n\r\n").await;
    target.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
    until(&mut bridge, "\r\n\r\n").await;
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        target.write_all(event.as_bytes()).await.unwrap();
        assert_eq!(until(&mut bridge, "\n\n\r\n").await, format!("9\r\n{event}\r\n"));
    }
    assert_eq!(desk.seen.detached.load(Relaxed), 1);
    drop(bridge);
    assert_eq!(target.read(&mut [0]).await.unwrap(), 0, "the target's connection goes with it");
    assert_eq!(served.await.unwrap().0, End::Closed);
}

#[tokio::test]
async fn an_event_stream_that_ends_closes_the_connection() {
    let desk = Desk::new().await;
    let (mut bridge, _served) = desk.relay(4096);
    bridge.write_all(desk.request("GET /events", "").as_bytes()).await.unwrap();
    let mut target = desk.accept().await;
    until(&mut target, "\r\n\r\n").await;
    target.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n").await.unwrap();
    drop(target);
    assert!(rest(&mut bridge).await.ends_with("\r\n0\r\n\r\n"));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_does_not_answer_costs_thirty_seconds_and_a_504() {
    let desk = Desk::new().await;
    let (mut bridge, _served) = desk.relay(4096);
    bridge.write_all(desk.request("GET /slow", "").as_bytes()).await.unwrap();
    let begun = Instant::now();
    let _target = desk.accept().await;
    let head = until(&mut bridge, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 504 "), "{head}");
    assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    until(&mut bridge, "in time").await;
}

#[tokio::test]
async fn a_body_may_pause_but_not_for_ever() {
    let desk = Desk::new().await;
    let (mut bridge, served) = desk.relay(4096);
    bridge.write_all(desk.request("GET /slow", "").as_bytes()).await.unwrap();
    let mut target = desk.accept().await;
    target.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx").await.unwrap();
    until(&mut bridge, "x").await;
    // From here on nothing comes, so the clock may run as fast as it likes.
    tokio::time::pause();
    let begun = Instant::now();
    assert_eq!(rest(&mut bridge).await, "");
    assert!((Duration::from_secs(295)..Duration::from_secs(301)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(served.await.unwrap().0, End::Closed);
    assert_eq!(desk.service.counters.read().truncated, 1);
}

#[tokio::test]
async fn a_body_that_lasts_until_the_end_is_complete_only_if_the_end_is_in_order() {
    for in_order in [true, false] {
        let desk = Desk::new().await;
        let (mut bridge, _served) = desk.relay(4096);
        bridge.write_all(desk.request("GET /", "").as_bytes()).await.unwrap();
        let mut target = desk.accept().await;
        until(&mut target, "\r\n\r\n").await;
        target.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").await.unwrap();
        until(&mut bridge, "half\r\n").await;
        if !in_order {
            target.set_zero_linger().unwrap();
        }
        drop(target);
        if in_order {
            until(&mut bridge, "0\r\n\r\n").await;
        } else {
            assert_eq!(rest(&mut bridge).await, "", "cut off");
        }
        assert_eq!(desk.service.counters.read().truncated, u64::from(!in_order));
    }
}

#[tokio::test]
async fn a_web_socket_is_spliced() {
    let desk = Desk::new().await;
    let (mut bridge, served) = desk.relay(4096);
    let request = desk.request("GET /ws", "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    bridge.write_all(format!("{request}first").as_bytes()).await.unwrap();
    let mut target = desk.accept().await;
    let head = until(&mut target, "\r\n\r\n").await;
    assert!(head.contains("Upgrade: websocket\r\nConnection: Upgrade\r\n"), "{head}");
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
    target.write_all(answer).await.unwrap();
    assert_eq!(until(&mut target, "first").await, "first");
    until(&mut bridge, "hello").await;
    bridge.write_all(b"ping").await.unwrap();
    assert_eq!(until(&mut target, "ping").await, "ping");
    target.write_all(b"pong").await.unwrap();
    drop(target);
    assert_eq!(rest(&mut bridge).await, "pong");
    assert_eq!((served.await.unwrap().0, desk.seen.detached.load(Relaxed)), (End::Closed, 1));
}

#[tokio::test]
async fn a_connection_is_frozen_in_the_middle_of_both_bodies_and_goes_on_as_data() {
    let mut desk = Desk::new().await;
    let (mut bridge, served) = desk.relay(4096);
    bridge.write_all(desk.request("POST /", "Content-Length: 10\r\n").as_bytes()).await.unwrap();
    bridge.write_all(b"01234").await.unwrap();
    let mut target = desk.accept().await;
    until(&mut target, "01234").await;
    target.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab").await.unwrap();
    until(&mut bridge, "2\r\nab\r\n").await;

    desk.signals.freeze.cancel();
    let (end, connection) = served.await.unwrap();
    assert_eq!(end, End::Frozen);
    bridge.write_all(b"567").await.unwrap();
    target.write_all(b"c").await.unwrap();
    let carried = serde_json::to_string(&connection.conversation).unwrap();

    desk.signals = Signals::default();
    let conversation = serde_json::from_str(&carried).unwrap();
    let _served = desk.serve(Connection { conversation, ..connection });
    bridge.write_all(b"89").await.unwrap();
    assert_eq!(until(&mut target, "56789").await, "56789");
    target.write_all(b"d\r\n0\r\n\r\n").await.unwrap();
    assert!(until(&mut bridge, "0\r\n\r\n").await.contains('d'));
}

#[tokio::test]
async fn the_answer_to_a_body_that_is_too_long_to_read_away_still_arrives() {
    let desk = Desk::new().await;
    let (mut bridge, served) = desk.relay(4096);
    let text = "POST / HTTP/1.1\r\nContent-Length: 5000000000\r\n\r\n";
    bridge.write_all(text.as_bytes()).await.unwrap();
    bridge.write_all(&[0; 2000]).await.unwrap();
    assert!(until(&mut bridge, "header").await.contains("Connection: close"));
    assert_eq!(rest(&mut bridge).await, "");
    drop(bridge);
    assert_eq!(served.await.unwrap().0, End::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_wants_is_read_away_for_as_long_as_it_comes() {
    let desk = Desk::new().await;
    let (mut bridge, served) = desk.relay(4096);
    for pieces in [5, 2] {
        bridge.write_all(b"POST / HTTP/1.1\r\nContent-Length: 5000\r\n\r\n").await.unwrap();
        for _ in 0..pieces {
            tokio::time::sleep(Duration::from_secs(8)).await;
            bridge.write_all(&[0; 1000]).await.unwrap();
        }
        // Only written whole is it time to read.
        assert!(until(&mut bridge, "header").await.contains("502"));
    }
    assert_eq!(rest(&mut bridge).await, "", "what does not come is not waited for");
    drop(bridge);
    assert_eq!(served.await.unwrap().0, End::Closed);
}

#[tokio::test]
async fn an_idle_connection_ends_in_good_order_when_asked_and_a_busy_one_after_its_answer() {
    let desk = Desk::new().await;
    let (mut idle, served_idle) = desk.relay(4096);
    let (mut busy, served_busy) = desk.relay(4096);
    busy.write_all(desk.request("GET /", "").as_bytes()).await.unwrap();
    let mut target = desk.accept().await;
    until(&mut target, "\r\n\r\n").await;
    desk.signals.end.cancel();
    assert_eq!(rest(&mut idle).await, "");
    assert_eq!(served_idle.await.unwrap().0, End::Closed);
    target.write_all(OK.as_bytes()).await.unwrap();
    assert!(rest(&mut busy).await.contains("\r\nConnection: close\r\n"), "the bridge need not find out by trying");
    assert_eq!(served_busy.await.unwrap().0, End::Closed);
}

#[tokio::test]
async fn many_requests_leave_nothing_behind() {
    const CONNECTIONS: usize = 8;
    const REQUESTS: usize = 500;
    let desk = Desk::new().await;
    let mut bridges = Vec::new();
    for _ in 0..CONNECTIONS {
        let (mut bridge, served) = desk.relay(4096);
        let request = desk.request("POST /", "Content-Length: 2\r\n") + "hi";
        let asking = desk.tasks.spawn("bridge", async move {
            for _ in 0..REQUESTS {
                bridge.write_all(request.as_bytes()).await.unwrap();
                assert_eq!(until(&mut bridge, "\r\n\r\nhi").await, OK);
            }
        });
        bridges.push((asking, served));
    }
    let mut accepted = 0;
    let answering = async {
        loop {
            let mut target = desk.accept().await;
            accepted += 1;
            desk.tasks.spawn("target", async move {
                let mut buffer = [0; 4096];
                while target.read(&mut buffer).await.unwrap() > 0 {
                    target.write_all(OK.as_bytes()).await.unwrap();
                }
            });
        }
    };
    let asking = async {
        for (asking, served) in bridges {
            asking.await.unwrap();
            let (end, connection) = served.await.unwrap();
            assert_eq!(end, End::Closed);
            assert!(connection.target.is_none());
        }
    };
    tokio::select! {
        () = answering => {}
        () = asking => {}
    }
    assert!(accepted <= CONNECTIONS, "{accepted} connections to the target");
    assert!(desk.service.targets.idle() <= CONNECTIONS);
    let reading = desk.service.counters.read();
    assert_eq!((reading.relayed[1], reading.in_flight), ((CONNECTIONS * REQUESTS) as u64, 0));
}

/// A bridge that has the next request ready before the answer to the last.
struct Eager {
    answers: usize,
    wanted: usize,
    request: Vec<u8>,
    at: usize,
}

impl AsyncRead for Eager {
    fn poll_read(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = self.request[self.at..].to_vec();
        if rest.is_empty() {
            return Poll::Pending;
        }
        buf.put_slice(&rest);
        self.at += rest.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Eager {
    fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        assert!(buf.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(buf));
        self.answers += 1;
        if self.answers == self.wanted {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.at = 0;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_connection_that_never_rests_is_limited_request_by_request() {
    // Together, the answers take longer than one of them may.
    let desk = Desk::with(Limits { response_head: Duration::from_secs(1), ..Limits::default() }).await;
    let request = desk.request("GET /", "").into_bytes();
    let bridge = Eager { answers: 0, wanted: 12, request, at: 0 };
    let mut connection = Connection { conversation: Conversation::new(), bridge, target: None };
    let answering = async {
        let mut target = desk.accept().await;
        let mut buffer = [0; 4096];
        while target.read(&mut buffer).await.unwrap() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            target.write_all(OK.as_bytes()).await.unwrap();
        }
    };
    let serving = serve(&mut connection, &desk.service, &desk.signals, &*desk.seen);
    tokio::select! {
        end = serving => assert_eq!(end, End::Closed),
        () = answering => panic!("the relay closed the connection"),
    }
    assert_eq!(connection.bridge.answers, 12);
}
