//! A second opinion on HTTP/1.1 messages that the agent wrote, to hold against it.
//!
//! Written from RFC 9112 and sharing nothing with the agent's own reader, lest both be wrong in the same way. It panics
//! where the agent must never have written such a thing.

/// One message, as far as it has come.
#[derive(Debug)]
pub struct Message<'a> {
    /// The request or status line.
    pub first: &'a str,
    /// Names in lower case, and values.
    pub fields: Vec<(String, &'a [u8])>,
    /// The content, without chunks.
    pub body: Vec<u8>,
    /// Nothing is missing.
    pub complete: bool,
    /// What lies behind.
    pub rest: &'a [u8],
}

/// Whether a message without any framing, or with one, has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Without framing there is none.
    Request,
    /// It must have a framing.
    Response,
    /// The response to HEAD: none, whatever its fields say.
    ResponseToHead,
}

impl<'a> Message<'a> {
    /// Reads the message at the beginning of `bytes`; `None` if its head is not complete.
    #[must_use]
    pub fn read(bytes: &'a [u8], kind: Kind) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let mut lines = bytes[..end].split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = std::str::from_utf8(lines.next().unwrap_or_default()).expect("a first line is ASCII");
        let fields = lines.map(field).collect();
        let mut message = Self { first, fields, body: Vec::new(), complete: false, rest: &bytes[end + 4..] };
        let bare = bytes[..end].windows(2).any(|pair| (pair[0] == b'\r') != (pair[1] == b'\n'));
        assert!(!bare && !first.is_empty(), "a line ends in half of CR LF: {message:?}");
        message.take_body(kind);
        Some(message)
    }

    /// The values of a field.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(own, _)| own == name).map(|(_, value)| *value)
    }

    /// A response's status.
    #[must_use]
    pub fn status(&self) -> u16 {
        let status = self.first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).expect("a status line");
        status.parse().expect("a status")
    }

    fn take_body(&mut self, kind: Kind) {
        let lengths: Vec<_> = self.values("content-length").collect();
        let codings: Vec<_> = self.values("transfer-encoding").collect();
        assert!(lengths.len() + codings.len() <= 1, "two framings: {self:?}");
        let bodyless = match kind {
            Kind::Request => lengths.is_empty() && codings.is_empty(),
            Kind::Response => matches!(self.status(), 100..=199 | 204 | 304),
            Kind::ResponseToHead => true,
        };
        if bodyless {
            self.complete = true;
        } else if let [length] = lengths[..] {
            let length: u64 = std::str::from_utf8(length).expect("digits").parse().expect("a length");
            let here = self.rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let (body, rest) = self.rest.split_at(here);
            (self.body, self.rest, self.complete) = (body.to_vec(), rest, here as u64 == length);
        } else {
            assert_eq!(codings, [b"chunked"], "neither length nor chunks: {self:?}");
            while !self.complete && self.take_chunk() {}
        }
    }

    /// False where more would have to come.
    fn take_chunk(&mut self) -> bool {
        let Some(end) = self.rest.windows(2).position(|window| window == b"\r\n") else { return false };
        let size = std::str::from_utf8(&self.rest[..end]).expect("hexadecimal digits");
        let size = usize::from_str_radix(size, 16).expect("a size of a chunk");
        let data = &self.rest[end + 2..];
        self.body.extend_from_slice(&data[..size.min(data.len())]);
        let Some(ending) = data.get(size..).filter(|rest| rest.len() >= 2) else {
            self.rest = &[];
            return false;
        };
        assert!(ending.starts_with(b"\r\n"), "a chunk ends in something else");
        self.rest = &ending[2..];
        self.complete = size == 0;
        true
    }
}

fn field(line: &[u8]) -> (String, &[u8]) {
    let colon = line.iter().position(|&byte| byte == b':').expect("a field line has a colon");
    let name = std::str::from_utf8(&line[..colon]).expect("a name is ASCII").to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    assert!(!name.is_empty() && name.bytes().all(is_token), "no name of a field: {name:?}");
    let value = line[colon + 1..].trim_ascii();
    assert!(!value.contains(&0), "NUL in a value");
    (name, value)
}
