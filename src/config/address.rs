//! Which addresses the configuration accepts: HTTPS, plain HTTP to this machine only, and no passwords inside.
//!
//! Every function answers with the value or with the words that complete "expected …".

use url::{Host, Url};

const PLAIN_HTTP: &str =
    "an https:// address (http:// is accepted for loopback only, and elsewhere with allow_insecure_http: true)";

/// Whether the address stays on this machine. `localhost` and loopback addresses only: other names under `.localhost`
/// may be asked of a DNS server.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// An address of the platform or of a release source, trailing slashes removed.
///
/// Off-contract for protocol 2.2, which accepts anything: an address with a user and password is refused, because
/// addresses are logged and shown, and one with `?` or `#` cannot be extended by a path.
///
/// # Errors
/// What was expected instead.
pub fn http_address(text: &str, allow_insecure_http: bool) -> Result<Url, &'static str> {
    // The URL standard drops tabs and line breaks silently; an address that needs that is a mistake.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("an address without spaces");
    }
    let mut url = Url::parse(text).map_err(|_error| "an address such as https://bamf.example.com")?;
    match url.scheme() {
        "https" => {}
        "http" if allow_insecure_http || is_loopback(&url) => {}
        "http" => return Err(PLAIN_HTTP),
        _ => return Err("an address that begins with https://"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address without user name and password");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("an address without ? and #");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// Where releases come from: an absolute directory as written, or an address.
///
/// # Errors
/// What was expected instead.
pub fn update_source(text: &str, allow_insecure_http: bool) -> Result<String, &'static str> {
    if text.starts_with('/') {
        let clean = !text.contains(char::is_control);
        return if clean { Ok(text.to_owned()) } else { Err("a directory without control characters") };
    }
    if text.starts_with("file:") || !text.contains("://") {
        return Err("an https:// address or an absolute directory, which begins with /");
    }
    http_address(text, allow_insecure_http).map(|url| url.as_str().trim_end_matches('/').to_owned())
}

/// The address of an HTTP proxy; `proxy:3128` means `http://proxy:3128`, as in curl and Go.
///
/// # Errors
/// What was expected instead.
pub fn proxy(text: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "the address of an HTTP proxy such as http://proxy.example.com:3128";
    let address = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    match Url::parse(&address) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(address),
        Ok(_) => Err("a proxy that speaks HTTP (SOCKS is not supported)"),
        Err(_) => Err(EXPECTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_unless_it_is_allowed() {
        for (text, accepted) in [
            ("https://bamf.example.com", true),
            ("HTTPS://BAMF.example.com:8443/base", true),
            ("http://localhost:8000", true),
            ("http://127.0.0.1:8000", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:8000", true),
            ("http://bamf.example.com", false),
            ("http://localhost.example.com", false),
            ("http://evil.localhost", false),
            ("http://127.0.0.1.example.com", false),
            ("http://0.0.0.0", false),
            ("http://[::ffff:127.0.0.1]", false),
            ("http://localhost@example.com", false),
        ] {
            assert_eq!(http_address(text, false).is_ok(), accepted, "{text}");
        }
        assert!(http_address("http://bamf.example.com", true).is_ok());
    }

    #[test]
    fn what_is_no_address_is_refused_whatever_is_allowed() {
        for text in [
            "bamf.example.com",
            "bamf.example.com:443",
            "ftp://x",
            "https://",
            "https://a b",
            "https://a\nb",
            "",
            "https://user@x",
            "https://user:secret@x",
            "https:user:secret@x",
            "https://x/?a",
            "https://x/#a",
            "/dir",
        ] {
            assert!(http_address(text, true).is_err(), "{text}");
        }
    }

    #[test]
    fn trailing_slashes_are_removed() {
        assert_eq!(http_address("https://x/base//", false).unwrap().as_str(), "https://x/base");
        assert_eq!(http_address("https://x/", false).unwrap().path(), "/");
    }

    #[test]
    fn an_update_source_is_an_address_or_an_absolute_directory() {
        for (text, expected) in [
            ("https://github.com/a/b/", Some("https://github.com/a/b")),
            ("https://mirror.example.com/", Some("https://mirror.example.com")),
            ("/srv/releases", Some("/srv/releases")),
            ("http://127.0.0.1:9000/r", Some("http://127.0.0.1:9000/r")),
            ("http://mirror.example.com", None),
            ("srv/releases", None),
            ("./releases", None),
            ("file:///srv/releases", None),
            ("github.com/a/b", None),
        ] {
            assert_eq!(update_source(text, false).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_proxy_speaks_http_and_may_carry_credentials() {
        for (text, expected) in [
            ("http://proxy:3128", Some("http://proxy:3128")),
            ("proxy:3128", Some("http://proxy:3128")),
            ("http://me:pw@proxy:3128", Some("http://me:pw@proxy:3128")),
            ("https://proxy", Some("https://proxy")),
            ("socks5://proxy", None),
            ("http://", None),
            ("http://a b", None),
        ] {
            assert_eq!(proxy(text).ok().as_deref(), expected, "{text}");
        }
    }
}
