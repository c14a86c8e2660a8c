//! The REST API's view of the releases in a directory (docs.github.com, "REST API endpoints for releases").

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::route::REPOSITORY;

/// GitHub's own page sizes.
const DEFAULT_PER_PAGE: usize = 30;
const MAX_PER_PAGE: usize = 100;

/// What a release is marked as, by tag.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    pub(super) drafts: BTreeSet<String>,
    pub(super) prereleases: BTreeSet<String>,
}

impl Marks {
    pub(super) fn is_draft(&self, tag: &str) -> bool {
        self.drafts.contains(tag)
    }

    /// Marked so, or a pre-release by its version.
    fn is_prerelease(&self, tag: &str) -> bool {
        self.prereleases.contains(tag) || version(tag).is_some_and(|version| !version.pre.is_empty())
    }

    /// Whether `releases/latest` may be this one.
    pub(super) fn is_stable(&self, tag: &str) -> bool {
        !self.is_draft(tag) && !self.is_prerelease(tag)
    }
}

/// The tags in `dir`, newest version first, and what is no version last.
pub(super) fn tags(dir: &Path) -> io::Result<Vec<String>> {
    let mut tags = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            tags.extend(entry.file_name().into_string());
        }
    }
    tags.sort_by_cached_key(|tag| (Reverse(version(tag)), tag.clone()));
    Ok(tags)
}

fn version(tag: &str) -> Option<semver::Version> {
    semver::Version::parse(tag.strip_prefix('v')?).ok()
}

/// One release as the REST API shows it; `base` is `scheme://host:port`.
pub(super) fn release(dir: &Path, tag: &str, marks: &Marks, base: &str) -> io::Result<Value> {
    let mut assets = Vec::new();
    let mut entries = dir.join(tag).read_dir()?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        assets.push(json!({
            "name": name,
            "state": "uploaded",
            "content_type": "application/octet-stream",
            "size": entry.metadata()?.len(),
            "browser_download_url": format!("{base}/{REPOSITORY}/releases/download/{tag}/{name}"),
        }));
    }
    Ok(json!({
        "tag_name": tag,
        "name": tag,
        "draft": marks.is_draft(tag),
        "prerelease": marks.is_prerelease(tag),
        "html_url": format!("{base}/{REPOSITORY}/releases/tag/{tag}"),
        "assets": assets,
    }))
}

/// A page of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// What stands on it.
    pub(super) tags: Vec<String>,
    /// The `Link` header, where there is more than one page.
    pub(super) link: Option<String>,
}

/// The page that `query` asks for (`per_page`, `page`) of the listing at `address`.
pub(super) fn page(tags: &[String], query: &str, address: &str) -> Page {
    let asked = |name: &str| {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1.parse::<usize>().ok()
    };
    let per_page = asked("per_page").unwrap_or(DEFAULT_PER_PAGE).clamp(1, MAX_PER_PAGE);
    let number = asked("page").unwrap_or(1).max(1);
    let last = tags.len().div_ceil(per_page).max(1);
    let to = |page: usize, rel: &str| format!("<{address}?per_page={per_page}&page={page}>; rel=\"{rel}\"");
    let mut links = Vec::new();
    if number > 1 {
        links.extend([to(number - 1, "prev"), to(1, "first")]);
    }
    if number < last {
        links.extend([to(number + 1, "next"), to(last, "last")]);
    }
    let skipped = per_page.saturating_mul(number - 1);
    Page {
        tags: tags.iter().skip(skipped).take(per_page).cloned().collect(),
        link: (!links.is_empty()).then(|| links.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cut_the_listing_and_link_to_each_other() {
        let tags: Vec<String> = (0..5).map(|number| format!("v{number}.0.0")).collect();
        let first = page(&tags, "per_page=2", "http://h/r");
        assert_eq!(first.tags, ["v0.0.0", "v1.0.0"]);
        assert_eq!(
            first.link.as_deref(),
            Some("<http://h/r?per_page=2&page=2>; rel=\"next\", <http://h/r?per_page=2&page=3>; rel=\"last\"")
        );
        assert_eq!(page(&tags, "page=3&per_page=2", "http://h/r").tags, ["v4.0.0"]);
        assert!(!page(&tags, "page=3&per_page=2", "http://h/r").link.unwrap().contains("next"));
        assert_eq!(page(&tags, "page=9&per_page=2", "http://h/r").tags, [""; 0]);
        assert_eq!(page(&tags, "", "http://h/r"), Page { tags: tags.clone(), link: None });
        assert_eq!(page(&tags, "per_page=0", "http://h/r").tags.len(), 1);
    }

    #[test]
    fn newest_first_by_version_not_by_letter() {
        let dir = tempfile::tempdir().unwrap();
        for tag in ["v1.9.0", "v1.10.0", "v1.10.0-rc.1", "nightly"] {
            std::fs::create_dir(dir.path().join(tag)).unwrap();
        }
        assert_eq!(tags(dir.path()).unwrap(), ["v1.10.0", "v1.10.0-rc.1", "v1.9.0", "nightly"]);
    }
}
