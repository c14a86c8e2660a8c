//! Message heads, read strictly: where one ends, what its lines are, and which framing it declares.
//!
//! Pure. `httparse` splits the lines; this room adds what it leaves open: limits, one reading of the body's framing or
//! none, no line that ends in a bare line feed where a request comes from the bridge. Case and order of fields are kept,
//! because some old devices behind an agent care.

use super::body::Framing;

/// The longest head that is read; the usual servers stop at 8 to 64 KiB.
pub const MAX_HEAD: usize = 64 * 1024;
/// The most fields in one head.
pub const MAX_FIELDS: usize = 128;

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// As written.
    pub name: &'a str,
    /// Without the white space around it. Never holds CR, LF or NUL.
    pub value: &'a [u8],
}

impl<'a> Field<'a> {
    /// True if this is the field `name`.
    #[must_use]
    pub const fn is(self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// The value where it is a text.
    #[must_use]
    pub fn text(self) -> Option<&'a str> {
        std::str::from_utf8(self.value).ok()
    }
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// As written; a token.
    pub method: &'a str,
    /// Path and query, byte for byte; begins with `/`, or is `*`.
    pub target: &'a str,
    /// In order.
    pub fields: Vec<Field<'a>>,
}

/// The head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// `1` for HTTP/1.1, `0` for HTTP/1.0.
    pub minor: u8,
    /// 100 to 999.
    pub status: u16,
    /// May be empty.
    pub reason: &'a str,
    /// In order.
    pub fields: Vec<Field<'a>>,
}

/// A head that is not used, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not HTTP, or not in its strict form.
    #[error("malformed message head")]
    Malformed,
    /// More fields than [`MAX_FIELDS`].
    #[error("more than {MAX_FIELDS} header fields")]
    TooManyFields,
    /// A request that is not HTTP/1.1.
    #[error("not HTTP/1.1")]
    Version,
    /// Neither a path nor `OPTIONS *`.
    #[error("the request target is not a path")]
    Target,
    /// Length and transfer coding contradict each other or themselves.
    #[error("ambiguous message framing")]
    Framing,
}

/// What a search for the end of a head found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// The head is this long, blank line included.
    Found(usize),
    /// More bytes are needed.
    NotYet,
    /// Longer than [`MAX_HEAD`].
    TooLong,
}

/// Looks for the blank line that ends a head. `seen` bytes were searched before, so that a head that comes byte by byte
/// costs no more than one that comes at once.
#[must_use]
pub fn find_end(buffer: &[u8], seen: usize) -> Search {
    let from = seen.saturating_sub(3);
    let mut at = from;
    while let Some(offset) = buffer[at..].iter().position(|&byte| byte == b'\n') {
        at += offset + 1;
        let end = match &buffer[at..] {
            [b'\n', ..] => at + 1,
            [b'\r', b'\n', ..] => at + 2,
            _ => continue,
        };
        return if end > MAX_HEAD { Search::TooLong } else { Search::Found(end) };
    }
    if buffer.len() > MAX_HEAD { Search::TooLong } else { Search::NotYet }
}

/// Reads a request's head, which must be complete.
///
/// # Errors
/// Why it is refused.
pub fn request(bytes: &[u8]) -> Result<Request<'_>, Error> {
    let bare_line_feed = |pair: &[u8]| pair[1] == b'\n' && pair[0] != b'\r';
    if bytes.starts_with(b"\n") || bytes.starts_with(b"\r") || bytes.windows(2).any(bare_line_feed) {
        return Err(Error::Malformed);
    }
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut lines);
    complete(parsed.parse(bytes), bytes)?;
    let (Some(method), Some(target), Some(1)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Error::Version);
    };
    let is_path = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    if !is_path || method == "CONNECT" {
        return Err(Error::Target);
    }
    Ok(Request { method, target, fields: fields(parsed.headers) })
}

/// Reads a response's head, which must be complete.
///
/// # Errors
/// Why it is refused.
pub fn response(bytes: &[u8]) -> Result<Response<'_>, Error> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut lines);
    complete(parsed.parse(bytes), bytes)?;
    let (Some(minor), Some(status)) = (parsed.version, parsed.code) else { return Err(Error::Malformed) };
    if status < 100 {
        return Err(Error::Malformed);
    }
    Ok(Response { minor, status, reason: parsed.reason.unwrap_or_default(), fields: fields(parsed.headers) })
}

fn complete(result: httparse::Result<usize>, bytes: &[u8]) -> Result<(), Error> {
    match result {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => Ok(()),
        Ok(_) => Err(Error::Malformed),
        Err(httparse::Error::TooManyHeaders) => Err(Error::TooManyFields),
        Err(httparse::Error::Version) => Err(Error::Version),
        Err(_) => Err(Error::Malformed),
    }
}

fn fields<'a>(lines: &[httparse::Header<'a>]) -> Vec<Field<'a>> {
    lines.iter().map(|line| Field { name: line.name, value: line.value }).collect()
}

/// The framing of a request's body (RFC 9112 6.3).
///
/// # Errors
/// [`Error::Framing`] for everything that two readers could read differently.
pub fn request_framing(head: &Request<'_>) -> Result<Framing, Error> {
    Ok(declared(&head.fields)?.unwrap_or(Framing::None))
}

/// The framing of the body of a response to a request with method HEAD, or another.
///
/// # Errors
/// As [`request_framing`]; a chunked response of HTTP/1.0 too.
pub fn response_framing(head: &Response<'_>, to_head: bool) -> Result<Framing, Error> {
    let declared = declared(&head.fields)?;
    if declared == Some(Framing::Chunked) && head.minor == 0 {
        return Err(Error::Framing);
    }
    if to_head || is_bodyless(head.status) {
        return Ok(Framing::None);
    }
    Ok(declared.unwrap_or(Framing::UntilClose))
}

/// Statuses whose responses have no body, whatever their fields say.
#[must_use]
pub const fn is_bodyless(status: u16) -> bool {
    matches!(status, 100..=199 | 204 | 304)
}

fn declared(fields: &[Field<'_>]) -> Result<Option<Framing>, Error> {
    let mut declared = None;
    for field in fields {
        let one = if field.is("content-length") {
            Framing::Length(length(field.value)?)
        } else if field.is("transfer-encoding") {
            let chunked = field.value.eq_ignore_ascii_case(b"chunked") && declared.is_none();
            if !chunked {
                return Err(Error::Framing);
            }
            Framing::Chunked
        } else {
            continue;
        };
        if declared.is_some_and(|before| before != one) {
            return Err(Error::Framing);
        }
        declared = Some(one);
    }
    Ok(declared)
}

/// Digits only: `str::parse` would take a plus sign.
pub(super) fn length(value: &[u8]) -> Result<u64, Error> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Error::Framing);
    }
    std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).ok_or(Error::Framing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(lines: &str) -> Result<Framing, Error> {
        let text = format!("POST / HTTP/1.1\r\n{lines}\r\n");
        request_framing(&request(text.as_bytes())?)
    }

    #[test]
    fn case_and_order_of_fields_are_kept_and_the_target_is_not_decoded() {
        let head = request(b"GET /a%2Fb/../c?x=%20 HTTP/1.1\r\nhOsT: a\r\nX-B:  two words \r\n\r\n").unwrap();
        assert_eq!((head.method, head.target), ("GET", "/a%2Fb/../c?x=%20"));
        assert_eq!(head.fields[0], Field { name: "hOsT", value: b"a" });
        assert_eq!(head.fields[1], Field { name: "X-B", value: b"two words" });
    }

    #[test]
    fn hostile_request_heads_are_refused() {
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        let cases: [(&str, Error); 17] = [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Error::Malformed),
            ("\r\nGET / HTTP/1.1\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.1\r\nA : b\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.1\r\nA: b\0c\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.1\r\n: b\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", Error::Malformed),
            ("GET  / HTTP/1.1\r\n\r\n", Error::Malformed),
            ("GET / HTTP/1.0\r\n\r\n", Error::Version),
            ("GET / HTTP/2.0\r\n\r\n", Error::Version),
            ("GET http://a/ HTTP/1.1\r\n\r\n", Error::Target),
            ("CONNECT a:1 HTTP/1.1\r\n\r\n", Error::Target),
            ("GET * HTTP/1.1\r\n\r\n", Error::Target),
            ("RELAY\r\n\r\n", Error::Malformed),
            (&many, Error::TooManyFields),
        ];
        for (text, error) in cases {
            assert_eq!(request(text.as_bytes()), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_framing_that_can_be_read_in_two_ways_is_refused() {
        let good = [
            ("", Framing::None),
            ("Content-Length: 0\r\n", Framing::Length(0)),
            ("Content-Length: 007\r\n", Framing::Length(7)),
            ("Content-Length: 5\r\ncontent-length: 5\r\n", Framing::Length(5)),
            ("transfer-ENCODING: Chunked\r\n", Framing::Chunked),
        ];
        for (lines, expected) in good {
            assert_eq!(framing(lines), Ok(expected), "{lines:?}");
        }
        let bad = [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding:\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 18446744073709551616\r\n",
        ];
        for lines in bad {
            assert_eq!(framing(lines), Err(Error::Framing), "{lines:?}");
        }
    }

    #[test]
    fn responses_without_a_body_have_none_whatever_they_declare() {
        let table = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false, Ok(Framing::Length(3))),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true, Ok(Framing::None)),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", false, Ok(Framing::None)),
            ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", false, Ok(Framing::None)),
            ("HTTP/1.1 200\r\n\r\n", false, Ok(Framing::UntilClose)),
            ("HTTP/1.0 200 OK\n\n", false, Ok(Framing::UntilClose)),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, Err(Error::Framing)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", true, Err(Error::Framing)),
        ];
        for (text, to_head, expected) in table {
            let head = response(text.as_bytes()).unwrap();
            assert_eq!(response_framing(&head, to_head), expected, "{text:?}");
        }
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_its_bytes_were_cut_and_not_beyond_the_limit() {
        let wire = b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody\r\n\r\n";
        let end = 24;
        for cut in 0..wire.len() {
            let first = find_end(&wire[..cut], 0);
            let expected = if cut < end { Search::NotYet } else { Search::Found(end) };
            assert_eq!(first, expected, "{cut}");
            assert_eq!(find_end(wire, cut.min(end - 1)), Search::Found(end), "{cut}");
        }
        assert_eq!(find_end(&vec![b'a'; MAX_HEAD], 0), Search::NotYet);
        assert_eq!(find_end(&vec![b'a'; MAX_HEAD + 1], MAX_HEAD), Search::TooLong);
    }
}
