//! HTTP/1.1 in the plainest form, for both sides of the relay.
//!
//! By hand, because the bridge's oddities are the point: an interim response counts as final, a head and its body leave in
//! records of their own, and what is left over on a kept connection has to be seen.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};

use super::ahead::Ahead;

/// Pieces in which a body is passed on.
const PIECE: usize = 64 << 10;

/// Header fields that belong to one connection only (RFC 9110, 7.6.1), and those that frame the message.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A message's first line and its fields, names as they came.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) start: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
}

impl Head {
    /// Reads the next head; `None` if the connection ends before it begins.
    pub(crate) async fn read<S>(from: &mut Ahead<S>) -> io::Result<Option<Self>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(text) = from.take_until(b"\r\n\r\n").await? else { return Ok(None) };
        Self::parse(&text).map(Some).ok_or_else(|| io::Error::other("no HTTP"))
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut lines = text.strip_suffix(b"\r\n\r\n")?.split(|byte| *byte == b'\n');
        let start = String::from_utf8(lines.next()?.trim_ascii_end().to_vec()).ok()?;
        let field = |line: &[u8]| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = String::from_utf8(line[..colon].to_vec()).ok()?;
            Some((name, line[colon + 1..].trim_ascii().to_vec()))
        };
        Some(Self { start, fields: lines.map(field).collect::<Option<_>>()? })
    }

    /// The first value of a field as text.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let field = self.fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        field.and_then(|(_, value)| str::from_utf8(value).ok())
    }

    /// Whether a comma-separated field lists a word.
    pub(crate) fn lists(&self, name: &str, word: &str) -> bool {
        let values = self.fields.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let mut words = values.flat_map(|(_, value)| str::from_utf8(value).unwrap_or_default().split(','));
        words.any(|found| found.trim().eq_ignore_ascii_case(word))
    }

    /// The words of the first line.
    pub(crate) fn words(&self) -> (&str, &str) {
        let mut words = self.start.splitn(3, ' ');
        (words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }

    /// A response's status.
    pub(crate) fn status(&self) -> Option<u16> {
        self.start.starts_with("HTTP/1.").then(|| self.words().1.parse().ok()).flatten()
    }

    /// The fields that are passed on: those of one connection are not, nor what `Connection` names besides.
    pub(crate) fn end_to_end(&self) -> impl Iterator<Item = &(String, Vec<u8>)> {
        let of_the_connection =
            |name: &str| HOP_BY_HOP.iter().any(|hop| hop.eq_ignore_ascii_case(name)) || self.lists("connection", name);
        self.fields.iter().filter(move |(name, _)| !of_the_connection(name))
    }

    /// How a request's body ends.
    pub(crate) fn request_framing(&self) -> io::Result<Framing> {
        match self.framing()? {
            Framing::UntilEnd => Ok(Framing::Length(0)),
            known @ (Framing::Length(_) | Framing::Chunked) => Ok(known),
        }
    }

    /// How a response's body ends. An interim response has none, as today's bridge takes it for a final one.
    pub(crate) fn response_framing(&self, method: &str) -> io::Result<Framing> {
        match self.status() {
            Some(100..200 | 204 | 304) => Ok(Framing::Length(0)),
            _ if method == "HEAD" => Ok(Framing::Length(0)),
            _ => self.framing(),
        }
    }

    fn framing(&self) -> io::Result<Framing> {
        if self.lists("transfer-encoding", "chunked") {
            return Ok(Framing::Chunked);
        }
        match self.get("content-length") {
            Some(length) => length.parse().map(Framing::Length).map_err(io::Error::other),
            None => Ok(Framing::UntilEnd),
        }
    }
}

/// A head on its way out.
#[derive(Debug)]
pub(crate) struct Draft(BytesMut);

impl Draft {
    pub(crate) fn new(start: &str) -> Self {
        let mut bytes = BytesMut::with_capacity(1024);
        bytes.put_slice(start.as_bytes());
        bytes.put_slice(b"\r\n");
        Self(bytes)
    }

    pub(crate) fn field(&mut self, name: &str, value: impl AsRef<[u8]>) {
        for part in [name.as_bytes(), b": ", value.as_ref(), b"\r\n"] {
            self.0.put_slice(part);
        }
    }

    pub(crate) fn finish(mut self) -> Bytes {
        self.0.put_slice(b"\r\n");
        self.0.freeze()
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    UntilEnd,
}

/// A body that is being read.
#[derive(Debug)]
pub(crate) struct Incoming {
    framing: Framing,
    /// What is left of the body or of the current chunk.
    left: u64,
    over: bool,
}

impl Incoming {
    pub(crate) const fn new(framing: Framing) -> Self {
        let (left, over) = match framing {
            Framing::Length(length) => (length, length == 0),
            Framing::Chunked | Framing::UntilEnd => (0, false),
        };
        Self { framing, left, over }
    }

    /// The next piece; `None` when the body is complete. Its trailer is read and dropped.
    pub(crate) async fn next<S>(&mut self, from: &mut Ahead<S>) -> io::Result<Option<Bytes>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.framing == Framing::Chunked && self.left == 0 && !self.over {
            self.begin_chunk(from).await?;
        }
        if self.over {
            return Ok(None);
        }
        let most = if self.framing == Framing::UntilEnd { PIECE as u64 } else { self.left.min(PIECE as u64) };
        let Some(piece) = from.take(usize::try_from(most).unwrap_or(PIECE)).await? else {
            self.over = true;
            return if self.framing == Framing::UntilEnd { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        };
        self.left = self.left.saturating_sub(piece.len() as u64);
        if self.left == 0 {
            match self.framing {
                Framing::Length(_) => self.over = true,
                Framing::Chunked => expect_line_end(from).await?,
                Framing::UntilEnd => {}
            }
        }
        Ok(Some(piece))
    }

    async fn begin_chunk<S>(&mut self, from: &mut Ahead<S>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let size = line(from).await?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        self.left = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
        if self.left == 0 {
            while !line(from).await?.is_empty() {}
            self.over = true;
        }
        Ok(())
    }
}

async fn line<S: AsyncRead + AsyncWrite + Unpin>(from: &mut Ahead<S>) -> io::Result<String> {
    let line = from.take_until(b"\r\n").await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(String::from_utf8_lossy(&line[..line.len() - 2]).into_owned())
}

async fn expect_line_end<S: AsyncRead + AsyncWrite + Unpin>(from: &mut Ahead<S>) -> io::Result<()> {
    if line(from).await?.is_empty() { Ok(()) } else { Err(io::Error::other("a chunk is longer than it said")) }
}

/// A piece as it goes out under a framing; `None` ends the body.
pub(crate) fn framed(framing: Framing, piece: Option<Bytes>) -> Bytes {
    match (framing, piece) {
        (Framing::Chunked, Some(piece)) => {
            let mut chunk = BytesMut::with_capacity(piece.len() + 16);
            chunk.put_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            chunk.put_slice(&piece);
            chunk.put_slice(b"\r\n");
            chunk.freeze()
        }
        (Framing::Chunked, None) => Bytes::from_static(b"0\r\n\r\n"),
        (Framing::Length(_) | Framing::UntilEnd, Some(piece)) => piece,
        (Framing::Length(_) | Framing::UntilEnd, None) => Bytes::new(),
    }
}

/// Undoes percent-encoding and does it again, as the bridge does to every path: `%2F` arrives as `/`. `None` for what is
/// no encoding.
pub(crate) fn recoded_path(path: &str) -> Option<String> {
    let mut bytes = path.bytes();
    let mut recoded = String::with_capacity(path.len());
    while let Some(byte) = bytes.next() {
        let decoded = if byte == b'%' {
            let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
            u8::try_from(digit()? * 16 + digit()?).ok()?
        } else {
            byte
        };
        if decoded.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&decoded) {
            recoded.push(char::from(decoded));
        } else {
            recoded.push_str(&format!("%{decoded:02X}"));
        }
    }
    Some(recoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_decoded_and_encoded_again() {
        for (path, recoded) in [
            ("/a%2Fb%20c", Some("/a/b%20c")),
            ("/x;y=1,$&+@:~", Some("/x;y=1,$&+@:~")),
            ("/%e4%f6!(')*[]", Some("/%E4%F6%21%28%27%29%2A%5B%5D")),
            ("/%4a", Some("/J")),
            ("/%zz", None),
            ("/%4", None),
        ] {
            assert_eq!(recoded_path(path).as_deref(), recoded, "{path}");
        }
    }

    #[test]
    fn fields_of_the_connection_are_not_passed_on() {
        let text = b"HTTP/1.1 200 OK\r\nConnection: close, X-Own\r\nX-own: 1\r\nKeep-Alive: 5\r\nETag:  \"a\" \r\n\r\n";
        let head = Head::parse(text).unwrap();
        assert_eq!(head.status(), Some(200));
        assert_eq!(head.end_to_end().collect::<Vec<_>>(), [&("ETag".to_owned(), b"\"a\"".to_vec())]);
        assert!(head.lists("connection", "CLOSE"));
    }

    #[tokio::test]
    async fn a_body_ends_where_its_framing_says_and_not_a_byte_later() {
        let text = &b"3;x=y\r\nabc\r\n0\r\nTrailer: t\r\n\r\nnext"[..];
        let (mut far, near) = tokio::io::duplex(1024);
        tokio::io::AsyncWriteExt::write_all(&mut far, text).await.unwrap();
        let mut from = Ahead::new(near);
        let mut body = Incoming::new(Framing::Chunked);
        assert_eq!(body.next(&mut from).await.unwrap().unwrap(), "abc");
        assert_eq!(body.next(&mut from).await.unwrap(), None);
        assert_eq!(from.surplus(), b"next");
        let mut body = Incoming::new(Framing::Length(2));
        assert_eq!(body.next(&mut from).await.unwrap().unwrap(), "ne");
        assert_eq!(body.next(&mut from).await.unwrap(), None);
        drop(far);
        let mut body = Incoming::new(Framing::Length(3));
        assert_eq!(body.next(&mut from).await.unwrap().unwrap(), "xt");
        assert!(body.next(&mut from).await.is_err(), "torn");
    }
}
