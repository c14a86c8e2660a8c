//! Each target once, from the outside.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::{Closed, Target, Tcp, Then, TlsFront};
use crate::pattern::Pattern;
use crate::serve::Network;

const LIMIT: Duration = Duration::from_secs(20);

fn connect(target: &Target) -> TcpStream {
    let stream = TcpStream::connect(target.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn tcp(behaviour: Tcp) -> (Target, TcpStream) {
    let target = Target::tcp(&Network::Host, behaviour).unwrap();
    let stream = connect(&target);
    (target, stream)
}

fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn echo_and_ping_pong_send_back_what_comes() {
    for behaviour in [Tcp::Echo, Tcp::PingPong, Tcp::Banner(Vec::new())] {
        let (target, mut stream) = tcp(behaviour);
        let ball = Pattern::default().bytes(64);
        stream.write_all(&ball).unwrap();
        let mut back = [0; 64];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back[..], ball);
        drop(stream);
        assert!(target.wait_for(LIMIT, |seen| (seen.accepted, seen.ended, seen.received) == (1, 1, 64)));
    }
}

#[test]
fn sources_send_the_pattern_and_end_or_wait() {
    let (_target, mut stream) = tcp(Tcp::EagerSource(1 << 20, Then::Close));
    let all = rest(&mut stream);
    assert_eq!((all.len(), Pattern::default().check(&all)), (1 << 20, Ok(())));
    let (target, mut stream) = tcp(Tcp::Source(10, Then::Hold));
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    assert_eq!(target.seen().ended, 0);
    drop(stream);
    assert!(target.wait_for(LIMIT, |seen| seen.ended == 1));
}

#[test]
fn sinks_find_what_is_wrong() {
    for behaviour in [Tcp::Sink, Tcp::SlowSink(4 << 20)] {
        let (target, mut stream) = tcp(behaviour);
        stream.write_all(&Pattern::default().bytes(300_000)).unwrap();
        assert!(target.wait_for(LIMIT, |seen| seen.received == 300_000));
        stream.write_all(&Pattern::default().bytes(100)).unwrap();
        assert!(target.wait_for(LIMIT, |seen| seen.complaints.len() == 1), "{:?}", target.seen());
    }
}

#[test]
fn a_stalled_sink_reads_when_it_is_told_to() {
    let (target, mut stream) = tcp(Tcp::StalledSink);
    stream.write_all(&Pattern::default().bytes(1000)).unwrap();
    assert!(!target.wait_for(Duration::from_millis(50), |seen| seen.received > 0));
    target.resume();
    assert!(target.wait_for(LIMIT, |seen| seen.received == 1000));
}

#[test]
fn banner_half_close_and_reset_do_what_they_are_named_for() {
    let (_target, mut stream) = tcp(Tcp::Banner(b"220 hello\r\n".to_vec()));
    let mut banner = [0; 11];
    stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"220 hello\r\n");

    let (target, mut stream) = tcp(Tcp::HalfClose(b"bye".to_vec()));
    stream.write_all(b"x").unwrap();
    assert_eq!(rest(&mut stream), b"bye");
    stream.write_all(b"more").unwrap();
    assert!(target.wait_for(LIMIT, |seen| seen.received == 5));

    let (_target, mut stream) = tcp(Tcp::Reset);
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_closed_port_refuses_and_a_dropped_target_cuts() {
    let closed = Closed::reserve(&Network::Host).unwrap();
    let refused = TcpStream::connect(closed.address()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let (target, mut stream) = tcp(Tcp::Silent);
    assert!(target.wait_for(LIMIT, |seen| seen.accepted == 1));
    drop(target);
    assert_eq!(stream.read(&mut [0]).unwrap_or_default(), 0);
}

/// Sends one request and reads to the end of the connection.
fn ask(target: &Target, head: &str, body: &[u8]) -> String {
    let mut stream = connect(target);
    stream.write_all(format!("{head}\r\nHost: site\r\n\r\n").as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    String::from_utf8_lossy(&rest(&mut stream)).into_owned()
}

fn site() -> Target {
    Target::http(&Network::Host).unwrap()
}

#[test]
fn the_site_echoes_the_request_exactly_and_keeps_it() {
    let site = site();
    let answer = ask(&site, "PUT /a%2Fb/../c?d=%20 HTTP/1.1\r\nx-Odd: 1\r\nContent-Length: 3", b"abc");
    assert!(answer.contains("\"path\":\"/a%2Fb/../c?d=%20\""), "{answer}");
    let request = site.seen().requests[0].clone();
    assert_eq!((request.method.as_str(), request.body_length), ("PUT", 3));
    assert!(request.body_sha256.starts_with("ba7816bf"));
    assert_eq!(request.headers[0], ("x-Odd".to_owned(), "1".to_owned()));
    assert!(request.head.starts_with(b"PUT /a%2Fb/../c?d=%20 HTTP/1.1\r\nx-Odd: 1\r\n"));
}

#[test]
fn bodies_of_requests_are_read_in_either_framing() {
    let site = site();
    let answer = ask(&site, "POST /sink HTTP/1.1\r\nTransfer-Encoding: chunked", &{
        let bytes = Pattern::default().bytes(20);
        [b"a\r\n", &bytes[..10], b"\r\na;x\r\n", &bytes[10..], b"\r\n0\r\n\r\n"].concat()
    });
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n20"), "{answer}");
    assert!(ask(&site, "POST /sink HTTP/1.1\r\nContent-Length: 3", b"abc").starts_with("HTTP/1.1 400"));
}

#[test]
fn every_framing_of_an_answer_is_offered() {
    let site = site();
    let pattern = String::from_utf8_lossy(&Pattern::default().bytes(5)).into_owned();
    let ends = |path: &str, head: &str, end: &str| {
        let answer = ask(&site, &format!("GET {path} HTTP/1.1"), b"");
        assert!(answer.starts_with(head) && answer.ends_with(end), "{path}: {answer:?}");
    };
    ends("/big/5", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &pattern);
    ends("/chunked/5", "HTTP/1.1 200", &format!("5;lab=1\r\n{pattern}\r\n0\r\n\r\n"));
    ends("/close-delimited/5", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &pattern);
    ends("/http10/5", "HTTP/1.0 200", &pattern);
    ends("/status/204", "HTTP/1.1 204", "\r\n\r\n");
    ends("/redirect/there", "HTTP/1.1 302 Found\r\nLocation: /there\r\n", "\r\n\r\n");
    ends("/continue", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200", "}");
    ends("/early-hints", "HTTP/1.1 103", "after hints");
    ends("/sse/2", "HTTP/1.1 200", "data: {\"number\":2}\n\n\r\n0\r\n\r\n");
    ends("/both-lengths", "HTTP/1.1 200", "0\r\n\r\n");
    ends("/bad-chunk", "HTTP/1.1 200", "0\r\n\r\n");
    ends("/garbage", "this is no HTTP", "");
    assert!(ask(&site, "GET /huge-head HTTP/1.1", b"").len() > 1 << 20);
    assert!(ask(&site, "HEAD /x HTTP/1.1", b"").ends_with("4711\r\n\r\n"));
}

#[test]
fn a_site_that_waits_notices_that_its_peer_has_left() {
    for path in ["/never", "/sse-silent", "/sse-endless"] {
        let site = site();
        let mut stream = connect(&site);
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        assert!(site.wait_for(LIMIT, |seen| seen.requests.len() == 1));
        drop(stream);
        assert!(site.wait_for(LIMIT, |seen| seen.abandoned == 1), "{path}");
    }
}

#[test]
fn a_hasty_answer_keeps_the_connection_and_a_rude_one_does_not() {
    for (path, answers) in [("/hasty", 2), ("/rude", 1)] {
        let site = site();
        let request = format!("POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\nab");
        let mut stream = connect(&site);
        stream.write_all(request.repeat(2).as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let answer = String::from_utf8(rest(&mut stream)).unwrap();
        assert_eq!(answer.matches("too soon").count(), answers, "{answer}");
    }
}

#[test]
fn a_reset_in_mid_body_is_one() {
    let site = site();
    let mut stream = connect(&site);
    stream.write_all(b"GET /reset/100 HTTP/1.1\r\n\r\n").unwrap();
    assert!(site.wait_for(LIMIT, |seen| seen.ended == 1));
    let error = stream.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_front_speaks_tls_for_a_target() {
    let site = site();
    let front = TlsFront::start(&Network::Host, &["cluster.internal".to_owned()], site.address()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls::pki_types::pem::PemObject::from_pem_slice(front.ca_pem().as_bytes()).unwrap();
    roots.add(ca).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "cluster.internal".try_into().unwrap();
    let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(front.address()).unwrap());
    stream.write_all(b"GET /api HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"path\":\"/api\""), "{answer}");
}
