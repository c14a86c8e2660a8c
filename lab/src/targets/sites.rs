//! The answers of the web site, from the plain ones to those that are no HTTP.

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};

use super::http::After;
use super::message::{Connection, Request};
use super::{Shared, tcp};
use crate::pattern::Pattern;

/// How far apart the events of an endless stream are.
const EVENT_PAUSE: Duration = Duration::from_millis(20);
/// A page whose script uses everything that browsers have.
const APP: &str = include_str!("app.html");
const CHUNK: usize = 10_000;

/// An answer with a text and its length.
pub(super) fn text(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Because\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nX-Site: lab\r\n\r\n{body}",
        body.len()
    )
}

pub(super) fn plain(
    connection: &mut Connection,
    request: &Request,
    (site, argument): (&str, &str),
) -> io::Result<After> {
    let answer = match site {
        "sink" if !request.body_is_pattern => text(400, "the body is not the pattern"),
        "sink" => text(200, &request.body_length.to_string()),
        "status" if matches!(argument, "204" | "304") => format!("HTTP/1.1 {argument} Nothing\r\nX-Site: lab\r\n\r\n"),
        "status" => text(argument.parse().unwrap_or(500), ""),
        "redirect" => format!(
            "HTTP/1.1 302 Found\r\nLocation: /{argument}\r\nSet-Cookie: stop=here\r\nSet-Cookie: and=there\r\n\
             Content-Length: 0\r\n\r\n"
        ),
        "early-hints" => {
            connection.send("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n")?;
            text(200, "after hints")
        }
        "app" => format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{APP}", APP.len()),
        "ws-refused" => text(403, "no upgrade for you"),
        _ if request.method == "HEAD" => {
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4711\r\n\r\n".to_owned()
        }
        _ => echo(request),
    };
    connection.send(answer)?;
    Ok(After::Keep)
}

/// The request as the target saw it.
fn echo(request: &Request) -> String {
    let body = json!({
        "method": request.method,
        "path": request.path,
        "headers": request.headers,
        "body_length": request.body_length,
        "body_sha256": request.body_sha256,
    });
    let body = body.to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// The pattern, framed in one of four ways.
pub(super) fn bulk(
    connection: &mut Connection,
    request: &Request,
    framing: &str,
    length: u64,
    shared: &Shared,
) -> io::Result<After> {
    let (head, after) = match framing {
        "big" => (format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"), After::Keep),
        "chunked" => ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), After::Keep),
        "http10" => ("HTTP/1.0 200 OK\r\n\r\n".to_owned(), After::End),
        _ => ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned(), After::End),
    };
    connection.send(head)?;
    match framing {
        _ if request.method == "HEAD" => {}
        "chunked" => chunks(connection, length, shared)?,
        _ => tcp::send_pattern(&mut connection.stream, length, shared)?,
    }
    Ok(after)
}

fn chunks(connection: &mut Connection, length: u64, shared: &Shared) -> io::Result<()> {
    let mut pattern = Pattern::default();
    while pattern.position() < length {
        let size = usize::try_from(length - pattern.position()).unwrap_or(CHUNK).min(CHUNK);
        let chunk = [format!("{size:x};lab=1\r\n").as_bytes(), &pattern.bytes(size), b"\r\n"].concat();
        connection.send(chunk)?;
        shared.note(|seen| seen.sent += size as u64);
    }
    connection.send("0\r\n\r\n")
}

/// The pattern at a rate; both numbers stand in `argument`.
pub(super) fn steady(connection: &mut Connection, argument: &str, shared: &Shared) -> io::Result<After> {
    let mut numbers = argument.split('/').map(|number| number.parse::<u64>().unwrap_or_default());
    let (length, rate) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or(u64::MAX));
    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"))?;
    tcp::send_slowly(&mut connection.stream, &mut Pattern::default(), length, rate, shared)?;
    Ok(After::Keep)
}

/// Announces more than comes.
pub(super) fn reset(connection: &mut Connection, length: u64, shared: &Shared) -> io::Result<After> {
    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", length + 1_000_000))?;
    tcp::send_pattern(&mut connection.stream, length, shared)?;
    tcp::reset(&connection.stream)?;
    Err(io::Error::other("reset on purpose"))
}

pub(super) fn slow(connection: &mut Connection, site: &str, number: u64, shared: &Shared) -> io::Result<After> {
    match site {
        "slow" => {
            std::thread::sleep(Duration::from_millis(number));
            connection.send(text(200, "at last"))?;
            return Ok(After::Keep);
        }
        "never" => {
            until_left(connection, shared)?;
            connection.send(text(200, "resumed"))?;
            return Ok(After::Keep);
        }
        _ => {}
    }
    connection.send(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    let events = match site {
        "sse" => number,
        "sse-silent" => 1,
        _ => u64::MAX,
    };
    let pause = if site == "sse-every" { Duration::from_millis(number) } else { EVENT_PAUSE };
    for event in 1..=events {
        if matches!(site, "sse-endless" | "sse-every") {
            wait(connection, pause)?;
        }
        let event = format!("id: {event}\nevent: tick\ndata: {{\"number\":{event}}}\n\n");
        connection.send(format!("{:x}\r\n{event}\r\n", event.len()))?;
    }
    if site == "sse-silent" {
        until_left(connection, shared)?;
    }
    connection.send("0\r\n\r\n")?;
    Ok(After::Keep)
}

/// Waits until the target is resumed; an error if the peer leaves before.
fn until_left(connection: &mut Connection, shared: &Shared) -> io::Result<()> {
    let before = shared.lock().resumed;
    while shared.lock().resumed == before {
        wait(connection, EVENT_PAUSE)?;
    }
    Ok(())
}

/// Waits for some time; an error if the peer leaves.
fn wait(connection: &mut Connection, time: Duration) -> io::Result<()> {
    connection.stream.set_read_timeout(Some(time))?;
    let peeked = connection.stream.peek(&mut [0]);
    connection.stream.set_read_timeout(None)?;
    match peeked {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        // Nothing is due from the peer, so nothing would be read before the answer.
        Ok(_) => {
            std::thread::sleep(time);
            Ok(())
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn malformed(connection: &mut Connection, site: &str) -> io::Result<After> {
    let answer = match site {
        "both-lengths" => {
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsmug!\r\n0\r\n\r\n"
                .to_owned()
        }
        "two-lengths" => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nsmug!!".to_owned(),
        "bad-chunk" => {
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfive!\r\nxyz\r\nrest\r\n0\r\n\r\n".to_owned()
        }
        "huge-head" => {
            format!("HTTP/1.1 200 OK\r\nX-Huge: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(1 << 20))
        }
        _ => "this is no HTTP\r\n\r\n".to_owned(),
    };
    connection.send(answer)?;
    Ok(After::End)
}

/// A WebSocket that sends back every message. A greeting leaves in one write with the answer's head.
pub(super) fn websocket(
    mut connection: Connection,
    request: &Request,
    greets: bool,
    shared: &Shared,
) -> io::Result<()> {
    let Some(key) = request.header("sec-websocket-key").filter(|_| !request.has_body()) else {
        return connection.send(text(400, "no WebSocket"));
    };
    let protocol = request.header("sec-websocket-protocol").and_then(|offered| offered.split(',').next());
    let protocol = protocol.map(|name| format!("Sec-WebSocket-Protocol: {}\r\n", name.trim())).unwrap_or_default();
    let accept = derive_accept_key(key.as_bytes());
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{protocol}\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    // A text frame, not masked, of five bytes (RFC 6455, 5.2).
    let greeting: &[u8] = if greets { b"\x81\x05hello" } else { b"" };
    connection.send([head.as_bytes(), greeting].concat())?;
    let mut socket = WebSocket::from_raw_socket(connection, Role::Server, None);
    loop {
        match socket.read() {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                shared.note(|seen| seen.received += message.len() as u64);
                socket.send(message).map_err(io::Error::other)?;
            }
            // Pings are answered and closing is done by reading on.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => {}
            Err(Error::ConnectionClosed) => return Ok(()),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}
