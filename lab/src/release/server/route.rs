//! Which of GitHub's addresses a path is.

/// The repository that the lab's releases belong to.
pub(super) const REPOSITORY: &str = "mattrobinsonsre/bamf";

/// What a path asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// `/<owner>/<repo>/releases/download/<tag>/<asset>`.
    Download { tag: String, asset: String },
    /// `/<owner>/<repo>/releases/latest/download/<asset>`.
    LatestDownload { asset: String },
    /// `/<owner>/<repo>/releases/latest`, a web page that redirects to the newest release's page.
    LatestPage,
    /// `/api/v3/repos/<owner>/<repo>/releases`.
    Listing,
    /// `/api/v3/repos/<owner>/<repo>/releases/latest`.
    LatestRelease,
    /// `/api/v3/repos/<owner>/<repo>/releases/tags/<tag>`.
    TaggedRelease { tag: String },
    /// `/assets/<tag>/<asset>`, on the host that has the bytes.
    Bytes { tag: String, asset: String },
    /// Nothing that is here.
    Nothing,
}

impl Route {
    /// Whether GitHub counts it against the rate limit.
    pub(super) const fn is_rest(&self) -> bool {
        matches!(self, Self::Listing | Self::LatestRelease | Self::TaggedRelease { .. })
    }
}

/// Reads a path without its query.
pub(super) fn route(path: &str) -> Route {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
        return Route::Nothing;
    }
    let owned = |part: &&str| (*part).to_owned();
    match parts.as_slice() {
        ["assets", tag, asset] => Route::Bytes { tag: owned(tag), asset: owned(asset) },
        ["api", "v3", "repos", owner, repo, "releases", rest @ ..] if is_repository(owner, repo) => match rest {
            [] => Route::Listing,
            ["latest"] => Route::LatestRelease,
            ["tags", tag] => Route::TaggedRelease { tag: owned(tag) },
            _ => Route::Nothing,
        },
        [owner, repo, "releases", rest @ ..] if is_repository(owner, repo) => match rest {
            ["latest"] => Route::LatestPage,
            ["latest", "download", asset] => Route::LatestDownload { asset: owned(asset) },
            ["download", tag, asset] => Route::Download { tag: owned(tag), asset: owned(asset) },
            _ => Route::Nothing,
        },
        _ => Route::Nothing,
    }
}

fn is_repository(owner: &str, repo: &str) -> bool {
    REPOSITORY.split_once('/') == Some((owner, repo))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_github_that_an_updater_asks_is_known_and_no_other() {
        let (tag, asset) = ("v1.2.0".to_owned(), "checksums.txt".to_owned());
        let table = [
            (
                "/mattrobinsonsre/bamf/releases/download/v1.2.0/checksums.txt",
                Route::Download { tag: tag.clone(), asset: asset.clone() },
            ),
            (
                "/mattrobinsonsre/bamf/releases/latest/download/checksums.txt",
                Route::LatestDownload { asset: asset.clone() },
            ),
            ("/mattrobinsonsre/bamf/releases/latest", Route::LatestPage),
            ("/api/v3/repos/mattrobinsonsre/bamf/releases", Route::Listing),
            ("/api/v3/repos/mattrobinsonsre/bamf/releases/latest", Route::LatestRelease),
            ("/api/v3/repos/mattrobinsonsre/bamf/releases/tags/v1.2.0", Route::TaggedRelease { tag: tag.clone() }),
            ("/assets/v1.2.0/checksums.txt", Route::Bytes { tag, asset }),
            ("/api/v3/repos/somebody/else/releases", Route::Nothing),
            ("/mattrobinsonsre/bamf/releases/download/../checksums.txt", Route::Nothing),
            ("/mattrobinsonsre/bamf/releases/download//checksums.txt", Route::Nothing),
            ("/", Route::Nothing),
        ];
        for (path, expected) in table {
            assert_eq!(route(path), expected, "{path}");
        }
    }
}
