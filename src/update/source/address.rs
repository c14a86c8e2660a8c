//! Makes sense of `update.source`, and builds the addresses of a release's files.

use std::path::PathBuf;

use url::Url;

use crate::http;

/// What is wrong with a source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressProblem {
    /// Neither address nor path.
    #[error("{text:?} is neither an https:// address nor the absolute path of a directory")]
    Neither {
        /// As written, without what may be secret.
        text: String,
    },
    /// `http://` somewhere else than on this machine.
    #[error("{url} is not encrypted: use https://, or set allow_insecure_http to true")]
    Insecure {
        /// As written, without what may be secret.
        url: String,
    },
    /// `?…` or `#…` at the end, where paths are appended.
    #[error("{url} must end with a path: remove what follows it")]
    Query {
        /// As written, without what may be secret.
        url: String,
    },
    /// `update.api_url` is not an address for requests.
    #[error("update.api_url {url} is not an https:// address")]
    Api {
        /// As written, without what may be secret.
        url: String,
    },
}

/// What kind of source it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A server with GitHub's download paths.
    Web {
        /// What `/releases/download/…` is appended to; no trailing slash in the path.
        base: Url,
        /// The REST address of the repository's releases, where there may be one.
        releases: Option<Url>,
    },
    /// A directory with a directory per tag.
    Directory(PathBuf),
}

/// What `text` and `update.api_url` mean.
pub(super) fn parse(text: &str, api_url: Option<&Url>, allow_insecure_http: bool) -> Result<Address, AddressProblem> {
    let text = text.trim();
    if text.starts_with('/') {
        return Ok(Address::Directory(PathBuf::from(text)));
    }
    let mut base = Url::parse(text).map_err(|_| AddressProblem::Neither { text: text.to_owned() })?;
    let shown = http::shown(&base);
    match base.scheme() {
        "file" => {
            return base.to_file_path().map(Address::Directory).map_err(|()| AddressProblem::Neither { text: shown });
        }
        "https" => {}
        "http" if http::is_loopback(&base) || allow_insecure_http => {}
        "http" => return Err(AddressProblem::Insecure { url: shown }),
        _ => return Err(AddressProblem::Neither { text: shown }),
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err(AddressProblem::Query { url: shown });
    }
    let path = base.path().trim_end_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path).to_owned();
    base.set_path(&path);
    let releases = releases(&base, api_url, allow_insecure_http)?;
    Ok(Address::Web { base, releases })
}

/// `<api>/repos/<owner>/<repository>/releases`, where the source's path ends like a repository's.
///
/// Contract section 2: `api_url` is "GitHub REST base; default https://api.github.com, <host>/api/v3 on GHES".
fn releases(base: &Url, api_url: Option<&Url>, allow_insecure_http: bool) -> Result<Option<Url>, AddressProblem> {
    let segments: Vec<&str> = base.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let [leading @ .., owner, repository] = segments.as_slice() else { return Ok(None) };
    let api = match api_url {
        Some(url) => {
            let usable = url.scheme() == "https" || http::is_loopback(url) || allow_insecure_http;
            if !usable || !matches!(url.scheme(), "http" | "https") {
                return Err(AddressProblem::Api { url: http::shown(url) });
            }
            http::shown(url)
        }
        None if base.host_str() == Some("github.com") => "https://api.github.com".to_owned(),
        // A mirror below a path of its own is no GitHub Enterprise Server.
        None if !leading.is_empty() => return Ok(None),
        None => format!("{}/api/v3", base.origin().ascii_serialization()),
    };
    Ok(Url::parse(&format!("{}/repos/{owner}/{repository}/releases", api.trim_end_matches('/'))).ok())
}

/// Where a release's file is downloaded, at no cost in REST calls.
pub(super) fn asset(base: &Url, tag: &str, name: &str) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["releases", "download", tag, name]);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    /// Address of a file, and of the list of releases.
    fn addresses(text: &str, api_url: Option<&str>) -> (String, Option<String>) {
        let Address::Web { base, releases } = parse(text, api_url.map(url).as_ref(), false).unwrap() else {
            panic!("{text} is no address");
        };
        (asset(&base, "v1.2.0", "install.sh").into(), releases.map(Into::into))
    }

    #[test]
    fn repositories_and_mirrors_have_their_addresses() {
        let github = "https://api.github.com/repos/mattrobinsonsre/bamf/releases";
        for (source, api_url, file, list) in [
            ("https://github.com/mattrobinsonsre/bamf", None, "https://github.com/mattrobinsonsre/bamf", Some(github)),
            ("https://github.com/mattrobinsonsre/bamf/", None, "https://github.com/mattrobinsonsre/bamf", Some(github)),
            (
                "https://github.com/mattrobinsonsre/bamf.git",
                None,
                "https://github.com/mattrobinsonsre/bamf",
                Some(github),
            ),
            ("https://git.corp/o/r", None, "https://git.corp/o/r", Some("https://git.corp/api/v3/repos/o/r/releases")),
            (
                "https://m.corp/o/r",
                Some("https://api.corp/x/"),
                "https://m.corp/o/r",
                Some("https://api.corp/x/repos/o/r/releases"),
            ),
            ("https://m.corp/cache/o/r", None, "https://m.corp/cache/o/r", None),
            (
                "https://m.corp/cache/o/r",
                Some("https://api.github.com"),
                "https://m.corp/cache/o/r",
                Some("https://api.github.com/repos/o/r/releases"),
            ),
            ("https://m.corp/bamf", None, "https://m.corp/bamf", None),
            ("https://m.corp", None, "https://m.corp", None),
            (
                "http://127.0.0.1:8080/o/r",
                None,
                "http://127.0.0.1:8080/o/r",
                Some("http://127.0.0.1:8080/api/v3/repos/o/r/releases"),
            ),
        ] {
            let expected = (format!("{file}/releases/download/v1.2.0/install.sh"), list.map(str::to_owned));
            assert_eq!(addresses(source, api_url), expected, "{source} with {api_url:?}");
        }
    }

    #[test]
    fn a_password_in_the_address_does_not_reach_the_rest_api() {
        let (file, list) = addresses("https://user:hunter2@git.corp/o/r", None);
        assert!(file.contains("hunter2"));
        assert_eq!(list.as_deref(), Some("https://git.corp/api/v3/repos/o/r/releases"));
    }

    #[test]
    fn a_directory_is_an_absolute_path_or_a_file_address() {
        for text in ["/srv/bamf releases", "file:///srv/bamf%20releases", "file://localhost/srv/bamf%20releases"] {
            let expected = Address::Directory("/srv/bamf releases".into());
            assert_eq!(parse(text, None, false).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for text in ["", "releases", "./releases", "mattrobinsonsre/bamf", "ftp://m.corp/o/r", "file://server/share"] {
            assert!(matches!(parse(text, None, false), Err(AddressProblem::Neither { .. })), "{text}");
        }
        assert!(matches!(parse("http://m.corp/o/r", None, false), Err(AddressProblem::Insecure { .. })));
        assert!(parse("http://m.corp/o/r", None, true).is_ok());
        assert!(matches!(parse("https://m.corp/o/r?x=1", None, false), Err(AddressProblem::Query { .. })));
        for api in ["http://api.corp", "file:///etc"] {
            assert!(matches!(parse("https://m.corp/o/r", Some(&url(api)), false), Err(AddressProblem::Api { .. })));
        }
    }

    #[test]
    fn a_strange_asset_name_stays_one_segment() {
        let address = asset(&url("https://m.corp/o/r"), "v1.2.0", "a/../b?c#d");
        assert_eq!(address.path(), "/o/r/releases/download/v1.2.0/a%2F..%2Fb%3Fc%23d");
    }
}
