//! The smallest HTTP/1.1 client that the tests can do with: one connection, requests as bytes, answers as they came.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::plane::ControlPlane;

/// Longer than anything on a loaded machine takes; only a failing test waits for it.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
    /// The body was shorter than announced.
    pub(crate) torn: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn detail(&self) -> Value {
        self.json()["detail"].clone()
    }
}

/// A connection to the plane.
pub(crate) struct Client {
    stream: TcpStream,
    /// What was read past the part that was asked for.
    ahead: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(plane: &ControlPlane) -> Self {
        let stream = TcpStream::connect(plane.url().strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self { stream, ahead: Vec::new() }
    }

    pub(crate) fn write(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: lab\r\n{headers}content-length: {length}\r\n\r\n{body}");
        self.stream.write_all(request.as_bytes()).unwrap();
    }

    /// Sends a request and reads its answer whole; an error when the connection ends before the head does.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> io::Result<Answer> {
        self.write(method, path, headers, body);
        let mut answer = self.read_head()?;
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        while self.ahead.len() < length && self.read_more()? > 0 {}
        answer.torn = self.ahead.len() < length;
        answer.body = self.ahead.drain(..length.min(self.ahead.len())).collect();
        Ok(answer)
    }

    pub(crate) fn read_head(&mut self) -> io::Result<Answer> {
        let end = self.read_until(b"\r\n\r\n")?;
        let head = String::from_utf8(end).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Answer { status, head, body: Vec::new(), torn: false })
    }

    /// The next event of a stream as its text, chunk framing removed.
    pub(crate) fn event(&mut self) -> String {
        let mut text = String::new();
        while !text.ends_with("\n\n") {
            text.push_str(&self.chunk().unwrap());
        }
        text
    }

    /// The next chunk of a chunked body; an error when the connection ends first.
    pub(crate) fn chunk(&mut self) -> io::Result<String> {
        let size = String::from_utf8(self.read_until(b"\r\n")?).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        while self.ahead.len() < size + 2 {
            self.expect_more()?;
        }
        let chunk = self.ahead.drain(..size + 2).take(size).collect();
        Ok(String::from_utf8(chunk).unwrap())
    }

    /// Whether nothing at all comes for this long.
    pub(crate) fn hears_nothing_for(&mut self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let silent =
            self.ahead.is_empty() && self.read_more().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(LIMIT)).unwrap();
        silent
    }

    fn read_until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.ahead.windows(mark.len()).position(|window| window == mark) {
                return Ok(self.ahead.drain(..at + mark.len()).collect());
            }
            self.expect_more()?;
        }
    }

    fn expect_more(&mut self) -> io::Result<()> {
        if self.read_more()? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn read_more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 << 10];
        let count = self.stream.read(&mut buffer)?;
        self.ahead.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// One request on a connection of its own.
pub(crate) fn ask(plane: &ControlPlane, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    Client::connect(plane).ask(method, path, headers, body).unwrap()
}

/// What an agent holds after a join.
pub(crate) struct Agent {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) header: String,
}

impl Agent {
    pub(crate) fn join(plane: &ControlPlane, name: &str) -> Self {
        let body = join_body(&plane.issue_token(1), name);
        let answer = ask(plane, "POST", "/api/v1/agents/join", &[], &body);
        assert_eq!(answer.status, 201, "{answer:?}");
        let json = answer.json();
        let header = STANDARD.encode(json["certificate"].as_str().unwrap());
        Self { name: name.into(), id: json["agent_id"].as_str().unwrap().into(), header }
    }

    pub(crate) fn post(&self, plane: &ControlPlane, call: &str, body: &str) -> Answer {
        let path = format!("/api/v1/agents/{}/{call}", self.name);
        ask(plane, "POST", &path, &[("X-Bamf-Client-Cert", &self.header)], body)
    }

    pub(crate) fn heartbeat(&self, plane: &ControlPlane, instance: &str, tunnels: u64) -> Answer {
        let body = serde_json::json!({ "instance_id": instance, "active_tunnels": tunnels });
        self.post(plane, "heartbeat", &body.to_string())
    }

    /// Opens an event stream and reads its head.
    pub(crate) fn stream(&self, plane: &ControlPlane, instance: &str) -> Client {
        let mut client = Client::connect(plane);
        let path = format!("/api/v1/agents/{}/events?instance_id={instance}", self.name);
        client.write("GET", &path, &[("X-Bamf-Client-Cert", &self.header), ("accept", "text/event-stream")], "");
        let head = client.read_head().unwrap();
        assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
        client
    }
}

pub(crate) fn join_body(token: &str, name: &str) -> String {
    serde_json::json!({ "join_token": token, "name": name, "labels": {} }).to_string()
}
