//! Web requests that are handed over wherever they are: each goes on to the byte, over the connections that it has.

use std::time::Duration;

use bamf_lab::pattern::Pattern;
use bamf_lab::serve::Network;
use bamf_lab::targets::TlsFront;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::relay::{LIMIT, POOL, Scene};
use super::reluctant::Reluctant;

/// A target, by hand.
struct Site {
    listener: TcpListener,
}

impl Site {
    async fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    fn request(&self, line: &str, fields: &str) -> String {
        request(self.port(), line, fields)
    }

    /// The next caller who says something. A process that is replaced while it dials leaves one who does not.
    async fn accept(&self) -> TcpStream {
        loop {
            let (stream, _) = timeout(LIMIT, self.listener.accept()).await.expect("nobody calls").unwrap();
            stream.set_nodelay(true).unwrap();
            if timeout(LIMIT, stream.peek(&mut [0])).await.expect("nobody says anything").unwrap() == 1 {
                return stream;
            }
        }
    }

    /// Whether anybody else has called.
    async fn was_left_alone(&self) -> bool {
        timeout(Duration::from_millis(20), self.listener.accept()).await.is_err()
    }
}

fn request(port: u16, line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: b\r\nX-Bamf-Target: http://127.0.0.1:{port}\r\n{fields}\r\n")
}

async fn until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(timeout(LIMIT, stream.read_u8()).await.expect("it stands still").unwrap());
    }
    bytes
}

async fn exactly(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    timeout(LIMIT, stream.read_exact(&mut bytes)).await.expect("it stands still").unwrap();
    bytes
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test);
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn a_request_is_handed_over_at_every_byte_of_its_head_and_of_its_answer() {
    run(async {
        let site = Site::new().await;
        let mut scene = Scene::new(site.port(), None).await;
        let mut lines = scene.full().await;
        let head = site.request("GET /page", "X-Long: value\r\n");
        for byte in head.bytes() {
            assert_eq!(scene.hand_over().await, POOL);
            lines[0].send([byte]).await;
        }
        let mut target = site.accept().await;
        let head = String::from_utf8(until(&mut target, b"\r\n\r\n").await).unwrap();
        assert!(head.starts_with("GET /page HTTP/1.1\r\n") && head.contains("X-Long: value\r\n"), "{head}");
        for byte in OK {
            target.write_u8(*byte).await.unwrap();
            assert_eq!(scene.hand_over().await, POOL);
        }
        assert_eq!(lines[0].until(b"hi").await, OK);
        assert!(site.was_left_alone().await, "one connection, one request");
        assert_eq!(scene.dials(), POOL, "nothing was dialled again");
    });
}

#[test]
fn bodies_of_both_kinds_in_both_directions_go_through_many_processes() {
    for chunked in [false, true] {
        run(async {
            let site = Site::new().await;
            let mut scene = Scene::new(site.port(), None).await;
            let mut lines = scene.full().await;
            let line = &mut lines[0];
            let framing = if chunked { "Transfer-Encoding: chunked\r\n" } else { "Content-Length: 300\r\n" };
            line.send(site.request("POST /upload", framing)).await;
            let mut target = site.accept().await;
            until(&mut target, b"\r\n\r\n").await;
            let answer = framing.replace("300", "301");
            target.write_all(format!("HTTP/1.1 200 OK\r\n{answer}\r\n").as_bytes()).await.unwrap();
            let answer = String::from_utf8(line.until(b"\r\n\r\n").await).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            // The answer comes while the request still goes.
            let [mut up, mut down] = [(); 2].map(|()| Pattern::default());
            for length in [1, 2, 47, 30, 70, 150] {
                let frame = |content: Vec<u8>| match chunked {
                    true => [format!("{length:x};name=\"value\"\r\n").as_bytes(), &content, b"\r\n"].concat(),
                    false => content,
                };
                for (upwards, downwards) in frame(up.bytes(length)).chunks(5).zip(frame(down.bytes(length)).chunks(5)) {
                    line.send(upwards).await;
                    target.write_all(downwards).await.unwrap();
                    assert_eq!(scene.hand_over().await, POOL);
                }
            }
            if chunked {
                line.send(b"0\r\n\r\n").await;
            }
            let heard = if chunked { dechunked(&mut target).await } else { exactly(&mut target, 300).await };
            // An answer that is complete before its request costs the target's connection.
            let last = if chunked { &b"1\r\n!\r\n0\r\n\r\n"[..] } else { b"!" };
            target.write_all(last).await.unwrap();
            let mut told = if chunked { line.chunks().await } else { line.exactly(301).await };
            assert_eq!(told.pop(), Some(b'!'));
            for body in [heard, told] {
                assert_eq!(body.len(), 300);
                Pattern::default().check(&body).unwrap();
            }
            // Both connections are good for another.
            line.send(site.request("GET /again", "")).await;
            assert!(until(&mut target, b"\r\n\r\n").await.starts_with(b"GET /again "));
            target.write_all(OK).await.unwrap();
            assert_eq!(line.until(b"hi").await, OK);
            assert_eq!(scene.dials(), POOL, "nothing was dialled again");
        });
    }
}

async fn dechunked(stream: &mut TcpStream) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let size = String::from_utf8(until(stream, b"\r\n").await).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        content.extend(exactly(stream, size).await);
        assert_eq!(exactly(stream, 2).await, b"\r\n");
        if size == 0 {
            return content;
        }
    }
}

#[test]
fn a_large_answer_that_the_bridge_does_not_take_for_a_while_waits_in_one_process_after_the_other() {
    const TOTAL: usize = 12_000_000;
    run(async {
        let site = Site::new().await;
        let mut scene = Scene::new(site.port(), None).await;
        let mut lines = scene.full().await;
        lines[0].send(site.request("GET /big", "")).await;
        let mut target = site.accept().await;
        until(&mut target, b"\r\n\r\n").await;
        let sending = tokio::task::spawn_blocking(move || {
            let mut target = target.into_std().unwrap();
            target.set_nonblocking(false).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n");
            std::io::Write::write_all(&mut target, head.as_bytes()).unwrap();
            std::io::Write::write_all(&mut target, &Pattern::default().bytes(TOTAL)).unwrap();
        });
        for _ in 0..10 {
            assert_eq!(scene.hand_over().await, POOL);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        lines[0].until(b"\r\n\r\n").await;
        let mut pattern = Pattern::default();
        while pattern.position() < TOTAL as u64 {
            let bytes = lines[0].exactly(TOTAL / 40).await;
            pattern.check(&bytes).unwrap();
            assert_eq!(scene.hand_over().await, POOL);
        }
        sending.await.unwrap();
        assert_eq!(scene.dials(), POOL);
    });
}

#[test]
fn another_protocol_is_spoken_through_one_process_after_the_other() {
    run(async {
        let site = Site::new().await;
        let mut scene = Scene::new(site.port(), None).await;
        let mut lines = scene.full().await;
        let line = &mut lines[0];
        line.send(site.request("GET /ws", "Connection: Upgrade\r\nUpgrade: websocket\r\n")).await;
        let mut target = site.accept().await;
        until(&mut target, b"\r\n\r\n").await;
        assert_eq!(scene.hand_over().await, POOL, "before the answer");
        target
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly")
            .await
            .unwrap();
        assert!(line.until(b"early").await.starts_with(b"HTTP/1.1 101 "));
        // It has left the pool, and another is dialled in its place, once.
        let mut more = scene.lines(1).await;
        let [mut up, mut down] = [(); 2].map(|()| Pattern::default());
        for length in 1..40 {
            line.send(up.bytes(length)).await;
            target.write_all(&down.bytes(length)).await.unwrap();
            assert_eq!(scene.hand_over().await, POOL + 1);
        }
        let total: usize = (1..40).sum();
        Pattern::default().check(&exactly(&mut target, total).await).unwrap();
        Pattern::default().check(&line.exactly(total).await).unwrap();
        drop(target);
        assert_eq!(line.rest().await, b"");
        more[0].send(site.request("GET /", "")).await;
        let mut target = site.accept().await;
        target.write_all(OK).await.unwrap();
        assert_eq!(more[0].until(b"hi").await, OK);
        assert_eq!(scene.dials(), POOL + 1);
    });
}

#[test]
fn an_event_stream_goes_on_and_leaves_the_pool_once() {
    run(async {
        let site = Site::new().await;
        let mut scene = Scene::new(site.port(), None).await;
        let mut lines = scene.full().await;
        lines[0].send(site.request("GET /events", "")).await;
        let mut target = site.accept().await;
        until(&mut target, b"\r\n\r\n").await;
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        target.write_all(head).await.unwrap();
        lines[0].until(b"\r\n\r\n").await;
        let _more = scene.lines(1).await;
        for number in 0..30 {
            let event = format!("data: {number}\n\n");
            target.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.unwrap();
            assert_eq!(scene.hand_over().await, POOL + 1);
        }
        target.write_all(b"0\r\n\r\n").await.unwrap();
        let events: String = (0..30).map(|number| format!("data: {number}\n\n")).collect();
        assert_eq!(String::from_utf8(lines[0].chunks().await).unwrap(), events);
        assert_eq!(scene.dials(), POOL + 1);
    });
}

#[test]
fn a_target_that_is_being_dialled_is_dialled_again_and_gets_the_request_once() {
    run(async {
        let mut target = Reluctant::new().await;
        let mut scene = Scene::new(target.port(), None).await;
        let mut lines = scene.full().await;
        lines[0].send(request(target.port(), "POST /once", "Content-Length: 4\r\n")).await;
        lines[0].send(b"bo").await;
        for _ in 0..3 {
            assert_eq!(scene.hand_over().await, POOL);
        }
        lines[0].send(b"dy").await;
        let mut stream = target.open().await;
        assert!(until(&mut stream, b"\r\n\r\nbody").await.starts_with(b"POST /once "));
        stream.write_all(OK).await.unwrap();
        assert_eq!(lines[0].until(b"hi").await, OK);
    });
}

#[test]
fn a_bridge_that_is_being_dialled_is_dialled_again_until_the_pool_is_full() {
    run(async {
        let site = Site::new().await;
        let mut scene = Scene::new(site.port(), None).await;
        let mut lines = scene.lines(3).await;
        scene.hold(true);
        // One may just have been let through.
        while let Ok(more) = timeout(Duration::from_millis(200), scene.lines(1)).await {
            lines.extend(more);
        }
        let dials = scene.dials();
        assert_eq!(dials, lines.len() + 1, "one waits");
        assert_eq!(scene.hand_over().await, lines.len());
        scene.wait_dials(dials + 1).await;
        assert_eq!(scene.hand_over().await, lines.len());
        scene.hold(false);
        lines.extend(scene.lines(POOL - lines.len()).await);
        assert_eq!(scene.hand_over().await, POOL);
        for line in &mut lines {
            line.send(b"GET /nowhere HTTP/1.1\r\nHost: b\r\n\r\n").await;
            assert!(line.until(b"\r\n\r\n").await.starts_with(b"HTTP/1.1 5"));
        }
    });
}

#[test]
fn every_connection_of_an_idle_pool_serves_after_many_processes() {
    run(async {
        let site = Site::new().await;
        let mut scene = Scene::new(site.port(), None).await;
        let mut lines = scene.full().await;
        for _ in 0..20 {
            assert_eq!(scene.hand_over().await, POOL);
        }
        for line in &mut lines {
            line.send(site.request("GET /", "")).await;
        }
        assert_eq!(scene.hand_over().await, POOL);
        for _ in &lines {
            let mut target = site.accept().await;
            until(&mut target, b"\r\n\r\n").await;
            target.write_all(OK).await.unwrap();
        }
        for line in &mut lines {
            assert_eq!(line.until(b"hi").await, OK);
        }
        assert_eq!(scene.dials(), POOL, "nothing was dialled again");
    });
}

/// A target behind TLS.
async fn in_tls() -> (Site, TlsFront, Scene) {
    let site = Site::new().await;
    let front = TlsFront::start(&Network::Host, &[], site.listener.local_addr().unwrap()).unwrap();
    let scene = Scene::new(front.address().port(), Some(front.ca_pem())).await;
    (site, front, scene)
}

fn request_in_tls(front: &TlsFront) -> String {
    request(front.address().port(), "GET /", "").replace("http://127.0.0.1", "https://localhost")
}

#[test]
fn a_request_whose_target_speaks_tls_is_answered_504_and_its_connection_goes_on() {
    run(async {
        let (site, front, mut scene) = in_tls().await;
        let mut lines = scene.full().await;
        lines[0].send(request_in_tls(&front)).await;
        let mut target = site.accept().await;
        until(&mut target, b"\r\n\r\n").await;
        assert_eq!(scene.hand_over().await, POOL);
        let answer = String::from_utf8(lines[0].until(b"\r\n\r\n").await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        let length = answer.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        lines[0].exactly(length.parse().unwrap()).await;
        assert_eq!(target.read(&mut [0]).await.unwrap_or(0), 0, "the target hears the end");
        lines[0].send(request_in_tls(&front)).await;
        let mut target = site.accept().await;
        until(&mut target, b"\r\n\r\n").await;
        target.write_all(OK).await.unwrap();
        assert_eq!(lines[0].until(b"hi").await, OK);
    });
}

#[test]
fn an_answer_of_a_target_in_tls_is_cut_off_where_it_is_and_never_looks_whole() {
    run(async {
        let (site, front, mut scene) = in_tls().await;
        let mut lines = scene.full().await;
        lines[0].send(request_in_tls(&front)).await;
        let mut target = site.accept().await;
        until(&mut target, b"\r\n\r\n").await;
        target.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await.unwrap();
        assert!(lines[0].until(b"half\r\n").await.starts_with(b"HTTP/1.1 200 "));
        assert_eq!(scene.hand_over().await, POOL);
        assert_eq!(lines[0].rest().await, b"", "no last chunk");
        assert_eq!(scene.lines(1).await.len(), 1, "another in its place");
    });
}
