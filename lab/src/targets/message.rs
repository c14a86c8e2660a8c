//! Requests as they come over a socket, kept byte by byte: what the agent makes of a request is what tests look at.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use sha2::{Digest as _, Sha256};

use crate::pattern::Pattern;
use crate::plane::hex;

const MOST_HEAD: usize = 4 << 20;
const BUFFER: usize = 64 << 10;

/// A request that came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Method.
    pub method: String,
    /// The second word of the request line, exactly as received.
    pub path: String,
    /// The third word.
    pub version: String,
    /// Header fields in order, names as received.
    pub headers: Vec<(String, String)>,
    /// Everything up to and including the empty line.
    pub head: Vec<u8>,
    /// Length of the body.
    pub body_length: u64,
    /// SHA-256 of the body in hex; empty while it was not read.
    pub body_sha256: String,
    /// Whether the body is the pattern from its start.
    pub body_is_pattern: bool,
}

impl Request {
    /// The first value of a header field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// All values of a header field.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.headers.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether there is a body to read.
    pub(super) fn has_body(&self) -> bool {
        self.header("transfer-encoding").is_some() || self.header("content-length").is_some_and(|length| length != "0")
    }

    fn parse(head: Vec<u8>) -> io::Result<Self> {
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
        let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(invalid("no request line"));
        };
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Ok(Self { method, path, version, headers, head, ..Self::default() })
    }
}

pub(super) fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A connection with what was read ahead.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    ahead: Vec<u8>,
}

impl Read for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            return self.stream.read(into);
        }
        let count = self.ahead.len().min(into.len());
        into[..count].copy_from_slice(&self.ahead[..count]);
        self.ahead.drain(..count);
        Ok(count)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Connection {
    pub(super) const fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: Vec::new() }
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// The next request's head; `None` if the peer has closed between requests.
    pub(super) fn request(&mut self) -> io::Result<Option<Request>> {
        match self.until(b"\r\n\r\n") {
            Ok(head) => Request::parse(head).map(Some),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.ahead.is_empty() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.ahead[searched..].windows(mark.len()).position(|window| window == mark) {
                return Ok(self.ahead.drain(..searched + at + mark.len()).collect());
            }
            searched = self.ahead.len().saturating_sub(mark.len() - 1);
            if searched > MOST_HEAD {
                return Err(invalid("the head does not end"));
            }
            let mut buffer = [0; 16 << 10];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.ahead.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// Reads the body that belongs to `request`, and notes what it was.
    pub(super) fn body(&mut self, request: &mut Request) -> io::Result<()> {
        let mut body = Body { hash: Sha256::new(), pattern: Pattern::default(), is_pattern: true, length: 0 };
        if request.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            self.chunks(&mut body)?;
        } else if let Some(length) = request.header("content-length") {
            self.piece(length.parse().map_err(|_| invalid("no content length"))?, &mut body)?;
        }
        request.body_length = body.length;
        request.body_is_pattern = body.is_pattern;
        request.body_sha256 = hex(&body.hash.finalize());
        Ok(())
    }

    fn chunks(&mut self, body: &mut Body) -> io::Result<()> {
        loop {
            let line = self.until(b"\r\n")?;
            let size = String::from_utf8_lossy(&line);
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| invalid("no chunk size"))?;
            self.piece(size, body)?;
            let end = self.until(b"\r\n")?;
            match size {
                // Trailers are not expected of anyone here.
                0 if end == b"\r\n" => return Ok(()),
                _ if end == b"\r\n" => {}
                _ => return Err(invalid("a chunk is longer than it says")),
            }
        }
    }

    fn piece(&mut self, length: u64, body: &mut Body) -> io::Result<()> {
        let (mut rest, mut buffer) = (length, vec![0; BUFFER]);
        while rest > 0 {
            let most = usize::try_from(rest).unwrap_or(BUFFER).min(BUFFER);
            match self.read(&mut buffer[..most])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    body.add(&buffer[..count]);
                    rest -= count as u64;
                }
            }
        }
        Ok(())
    }

    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

struct Body {
    hash: Sha256,
    pattern: Pattern,
    is_pattern: bool,
    length: u64,
}

impl Body {
    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.is_pattern &= self.pattern.check(bytes).is_ok();
        self.length += bytes.len() as u64;
    }
}
