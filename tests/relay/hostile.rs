//! A bridge that means harm, or has gone mad: whatever it writes to a relay connection, nothing but proper requests reaches
//! a target, and the agent lives on.

use std::time::Duration;

use bamf_lab::agent::{LIMIT, NAME, until};
use bamf_lab::bench::process;
use bamf_lab::bridge::server_config;
use bamf_lab::runtime::block_on;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::scene::Scene;

type Link = TlsStream<TcpStream>;

/// A bridge of a few lines, which a test writes to by hand.
struct Mad {
    scene: Scene,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Mad {
    fn new() -> Self {
        let scene = Scene::of("");
        let acceptor = TlsAcceptor::from(server_config(&scene.plane.ca(), "mad", "localhost").unwrap());
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let command = serde_json::json!({
            "command": "relay_connect", "bridge_host": "localhost", "bridge_port": listener.local_addr().unwrap().port(),
            "ca_certificate": scene.plane.ca_pem(),
        });
        scene.plane.send(NAME, "relay_connect", &command).unwrap();
        Self { scene, listener, acceptor }
    }

    /// The next connection, behind its greeting.
    async fn link(&self) -> Link {
        let (stream, _) = tokio::time::timeout(LIMIT, self.listener.accept()).await.unwrap().unwrap();
        let mut link = self.acceptor.accept(stream).await.unwrap();
        let mut greeting = vec![0; format!("RELAY\n{NAME}\n").len()];
        link.read_exact(&mut greeting).await.unwrap();
        assert_eq!(String::from_utf8(greeting).unwrap(), format!("RELAY\n{NAME}\n"));
        link
    }

    fn request(&self, line: &str, lines: &str) -> String {
        let port = self.scene.target.address().port();
        format!("{line} HTTP/1.1\r\nHost: b\r\nX-Bamf-Target: http://127.0.0.1:{port}\r\n{lines}\r\n")
    }

    /// A proper request on a new connection is answered; nothing broke down.
    #[track_caller]
    fn lives(&self) {
        let answer = block_on(async {
            let mut link = self.link().await;
            link.write_all(self.request("GET /alive", "").as_bytes()).await.unwrap();
            some(&mut link, "}").await
        });
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("/alive"), "{answer}");
        let log = self.scene.agent.log();
        assert!(!log.contains("panicked") && !log.contains("\"ERROR\""), "{log}");
    }

    fn paths(&self) -> Vec<String> {
        self.scene.target.seen().requests.into_iter().map(|request| request.path).collect()
    }
}

/// Everything until the agent closes.
async fn rest(link: &mut Link) -> String {
    let mut answer = Vec::new();
    // An end without a good-bye is an end.
    drop(tokio::time::timeout(LIMIT, link.read_to_end(&mut answer)).await.expect("it is closed"));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Everything until it ends like this.
async fn some(link: &mut Link, end: &str) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        let read = tokio::time::timeout(LIMIT, link.read_u8()).await.expect("an answer comes");
        answer.push(read.unwrap_or_else(|error| panic!("{error} behind {}", String::from_utf8_lossy(&answer))));
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn what_is_no_request_is_refused_and_the_connection_ends() {
    let mad = Mad::new();
    let proper = mad.request("POST /x", "");
    let lines = |lines: &str| mad.request("POST /x", lines);
    let texts = [
        "\0\0\0\0\r\n\r\n".to_owned(),
        "RELAY\nedge-1\n\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n".to_owned(),
        proper.replace("/x", "http://127.0.0.1/x"),
        proper.replace("/x", "//\u{e4}\n"),
        proper.replace("\r\n", "\n"),
        proper.replace("\r\n", "\r"),
        proper.replace("Host: b", "Host: b\r\n folded"),
        proper.replace("Host: b", "Host : b"),
        lines("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n",
        lines("Transfer-Encoding: chunked, chunked\r\n") + "0\r\n\r\n",
        lines("Transfer-Encoding: gzip\r\n") + "0\r\n\r\n",
        lines("Transfer-Encoding: \u{b}chunked\r\n") + "0\r\n\r\n",
        lines("Content-Length: -1\r\n"),
        lines("Content-Length: 1e3\r\n"),
        lines("Content-Length: 99999999999999999999\r\n"),
        lines("Content-Length: 3\r\nContent-Length: 4\r\n") + "abcd",
        lines(&format!("X-Long: {}\r\n", "x".repeat(70_000))),
        lines(&"X-Many: x\r\n".repeat(200)),
        "G".repeat(1 << 20),
    ];
    for text in texts {
        let answer = block_on(async {
            let mut link = mad.link().await;
            // Where the agent has seen enough it stops reading.
            drop(link.write_all(text.as_bytes()).await);
            if text.ends_with('\r') {
                drop(link.shutdown().await);
            }
            rest(&mut link).await
        });
        let shown: String = text.chars().take(200).collect();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), usize::from(!answer.is_empty()), "{shown:?}: {answer}");
    }
    assert_eq!(mad.scene.target.seen().accepted, 0);
    mad.lives();
}

#[test]
fn a_body_that_is_not_framed_as_it_should_be_ends_the_connection_and_hides_no_request() {
    let mad = Mad::new();
    let head = mad.request("POST /body", "Transfer-Encoding: chunked\r\n");
    let hidden = mad.request("GET /hidden", "");
    for body in [
        "zz\r\n",
        "-1\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "11111111111111111\r\n",
        "ffffffffffffffff\r\n",
        "5;\u{1}\r\nhello\r\n0\r\n\r\n",
        "0\r\nTrailer: x\n\r\n",
    ] {
        block_on(async {
            let mut link = mad.link().await;
            drop(link.write_all(format!("{head}{body}{hidden}").as_bytes()).await);
            if body.starts_with('f') {
                // It is a size, as large as there can be; the rest belongs to it and the bridge goes away.
                drop(link.shutdown().await);
            }
            let answer = rest(&mut link).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{body:?}: {answer}");
        });
    }
    assert!(!mad.paths().contains(&"/hidden".to_owned()), "{:?}", mad.paths());
    mad.lives();
}

#[test]
fn requests_that_follow_too_soon_are_never_carried_out() {
    let mad = Mad::new();
    let second = mad.request("GET /second", "");
    let firsts = [
        mad.request("GET /first", ""),
        mad.request("POST /first", "Content-Length: 2\r\n") + "hi",
        mad.request("POST /first", "Transfer-Encoding: chunked\r\n") + "2\r\nhi\r\n0\r\n\r\n",
        mad.request("GET /ws-refused", "Connection: Upgrade\r\nUpgrade: websocket\r\n"),
        mad.request("GET /sse/2", ""),
    ];
    for first in &firsts {
        block_on(async {
            let mut link = mad.link().await;
            link.write_all(format!("{first}{second}").as_bytes()).await.unwrap();
            let answer = rest(&mut link).await;
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        });
    }
    assert_eq!(mad.paths(), ["/first", "/first", "/first", "/ws-refused", "/sse/2"]);
    mad.lives();
}

#[test]
fn a_request_that_comes_byte_by_byte_is_a_request() {
    let mad = Mad::new();
    block_on(async {
        let mut link = mad.link().await;
        let text = mad.request("POST /slowly", "Transfer-Encoding: chunked\r\n") + "3\r\nabc\r\n0\r\n\r\n";
        for _ in 0..2 {
            for byte in text.bytes() {
                link.write_all(&[byte]).await.unwrap();
                link.flush().await.unwrap();
            }
            let answer = some(&mut link, "}").await;
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"body_length\":3"), "{answer}");
        }
    });
    assert_eq!(mad.paths(), ["/slowly", "/slowly"]);
}

#[test]
fn an_upgrade_to_another_version_of_http_is_not_offered_to_the_target() {
    let mad = Mad::new();
    block_on(async {
        for protocol in ["h2c", "HTTP/2.0", "websocket, h2c", "TLS/1.2"] {
            let mut link = mad.link().await;
            let lines =
                format!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAA\r\n");
            link.write_all(mad.request("GET /up", &lines).as_bytes()).await.unwrap();
            assert!(some(&mut link, "}").await.starts_with("HTTP/1.1 200 "));
        }
    });
    for request in mad.scene.target.seen().requests {
        assert!(request.header("upgrade").is_none() && request.header("http2-settings").is_none(), "{request:?}");
    }
}

#[test]
fn the_users_address_cannot_be_taken_away_by_naming_it_in_connection() {
    let mad = Mad::new();
    block_on(async {
        let mut link = mad.link().await;
        let lines = "Connection: X-Forwarded-Email, X-Own, close\r\nX-Own: 1\r\nX-Forwarded-Email: ana@example.com\r\n";
        link.write_all(mad.request("GET /named", lines).as_bytes()).await.unwrap();
        some(&mut link, "}").await;
    });
    let request = mad.scene.target.seen().requests.pop().unwrap();
    assert_eq!((request.header("x-forwarded-email"), request.header("x-own")), (Some("ana@example.com"), None));
}

#[test]
fn a_bridge_that_does_not_read_makes_nothing_grow() {
    let mad = Mad::new();
    mad.lives();
    let resident = || process::memory(mad.scene.agent.pid(), "Rss:").unwrap();
    let (before, accepted) = (resident(), mad.scene.target.seen().accepted);
    let links = block_on(async {
        let mut links = Vec::new();
        for _ in 0..20 {
            let mut link = mad.link().await;
            link.write_all(mad.request("GET /big/1073741824", "").as_bytes()).await.unwrap();
            links.push(link);
        }
        links
    });
    assert!(until(LIMIT, || mad.scene.target.seen().accepted >= accepted + 19));
    // Until everything between target and bridge is full and nothing moves any more.
    let mut sent = 0;
    assert!(until(LIMIT, || {
        let now = std::mem::replace(&mut sent, mad.scene.target.seen().sent);
        std::thread::sleep(Duration::from_millis(200));
        now > 0 && now == mad.scene.target.seen().sent
    }));
    let grown = resident().saturating_sub(before);
    println!("{sent} bytes on their way over 20 connections, {grown} bytes more resident");
    assert!(grown < 20 * 512 * 1024, "{grown}");
    drop(links);
    assert!(mad.scene.target.wait_for(LIMIT, |seen| seen.ended >= 19), "{}", mad.scene.agent.log());
    mad.lives();
}
