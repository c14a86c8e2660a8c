//! Reads checksums.txt: the tag in its first line, then what `sha256sum` writes.
//!
//! It is parsed after its signature was checked, and strictly all the same: `sha256sum -c` and this parser must agree on
//! every line, and a name must never be a path.

use std::collections::BTreeMap;

use semver::Version;

use super::MAX_CHECKSUMS_BYTES;
use crate::update::digest::Sha256;

/// Contract section 4's releases have about twenty.
const MAX_LINES: usize = 1000;
/// The longest name a Linux file system takes.
const MAX_NAME_BYTES: usize = 255;

/// Hash by file name.
pub(super) type Entries = BTreeMap<String, Sha256>;

/// What is wrong with a checksums.txt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumsProblem {
    /// Larger or longer than a release's list can be.
    #[error("it has more than {MAX_LINES} lines or {MAX_CHECKSUMS_BYTES} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("it is not text")]
    NotText,
    /// The first line does not name the release.
    #[error("line 1 is not `# tag: vX.Y.Z`")]
    NoTag,
    /// A line that `sha256sum` would not write in text mode.
    #[error("line {line} is not 64 lower-case hexadecimal digits, two spaces and a file name")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A name that could lead somewhere else.
    #[error("line {line} has a name that is not a plain file name")]
    Name {
        /// Counted from 1.
        line: usize,
    },
    /// A name that was listed before.
    #[error("line {line} lists a name again")]
    Duplicate {
        /// Counted from 1.
        line: usize,
    },
}

/// The version that the first line names, and the files.
pub(super) fn parse(bytes: &[u8]) -> Result<(Version, Entries), ChecksumsProblem> {
    if bytes.len() > MAX_CHECKSUMS_BYTES {
        return Err(ChecksumsProblem::TooLong);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ChecksumsProblem::NotText)?;
    let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n').zip(1..);
    let version = lines.next().and_then(|(first, _)| tagged(first)).ok_or(ChecksumsProblem::NoTag)?;
    let mut entries = Entries::new();
    for (text, line) in lines {
        if line > MAX_LINES {
            return Err(ChecksumsProblem::TooLong);
        }
        // `sha256sum` marks binary mode with `*` in place of the second space, and odd names with a leading backslash.
        let (hash, name) = text.split_once("  ").ok_or(ChecksumsProblem::Line { line })?;
        let hash = hash.parse().map_err(|_| ChecksumsProblem::Line { line })?;
        if !is_plain(name) {
            return Err(ChecksumsProblem::Name { line });
        }
        if entries.insert(name.to_owned(), hash).is_some() {
            return Err(ChecksumsProblem::Duplicate { line });
        }
    }
    Ok((version, entries))
}

/// The version in `# tag: vX.Y.Z`, written the one way that it can be.
fn tagged(line: &str) -> Option<Version> {
    let tag = line.strip_prefix("# tag: ")?;
    let version = Version::parse(tag.strip_prefix('v')?).ok()?;
    (version.build.is_empty() && super::tag(&version) == tag).then_some(version)
}

/// Contract section 4: "Names with `/`, `..` or control characters in checksums.txt … are refused." Spaces and everything
/// beyond ASCII as well: no file of a release needs them.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name != "."
        && !name.contains("..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "57b23f25260e0c70244a07b23605616477540c07ba13e65a109d8f451e0a2b9f";

    #[test]
    fn the_output_of_sha256sum_under_a_tag_is_read() {
        let text = format!("# tag: v1.2.0-rc.1\n{HASH}  bamf-agent-linux-amd64\n{HASH}  install.sh\n");
        let (version, entries) = parse(text.as_bytes()).unwrap();
        assert_eq!(version, Version::parse("1.2.0-rc.1").unwrap());
        assert_eq!(entries.keys().collect::<Vec<_>>(), ["bamf-agent-linux-amd64", "install.sh"]);
        assert_eq!(entries["install.sh"].to_string(), HASH);
    }

    #[test]
    fn a_first_line_without_the_tag_is_refused() {
        for first in [
            "",
            "# tag:v1.2.0",
            "#tag: v1.2.0",
            "# tag: 1.2.0",
            "# tag: v1.2",
            "# tag: v1.2.0 ",
            "# tag: v1.2.0\r",
            "# tag: v01.2.0",
            "# tag: v1.2.0+build",
            HASH,
        ] {
            let text = format!("{first}\n{HASH}  install.sh\n");
            assert_eq!(parse(text.as_bytes()).unwrap_err(), ChecksumsProblem::NoTag, "{first:?}");
        }
    }

    #[test]
    fn lines_that_sha256sum_does_not_write_in_text_mode_are_refused() {
        let lines = [
            String::new(),
            "# tag: v1.3.0".to_owned(),
            "# comment".to_owned(),
            format!("{HASH} install.sh"),
            format!("{HASH} *install.sh"),
            format!("{HASH}\tinstall.sh"),
            format!("\\{HASH}  install.sh"),
            format!("{}  install.sh", HASH.to_uppercase()),
            format!("{}  install.sh", &HASH[1..]),
            format!("0{HASH}  install.sh"),
            format!(" {HASH}  install.sh"),
        ];
        for line in lines {
            let text = format!("# tag: v1.2.0\n{line}\n{HASH}  other\n");
            assert_eq!(parse(text.as_bytes()).unwrap_err(), ChecksumsProblem::Line { line: 2 }, "{line:?}");
        }
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        let long = "a".repeat(256);
        for name in [
            "",
            "/etc/passwd",
            "a/b",
            "..",
            "../a",
            "a..b",
            ".",
            " a",
            "a b",
            "a\\b",
            "a\r",
            "a\u{1b}[2J",
            "a\0",
            "ä",
            &long,
        ] {
            let text = format!("# tag: v1.2.0\n{HASH}  {name}\n");
            assert_eq!(parse(text.as_bytes()).unwrap_err(), ChecksumsProblem::Name { line: 2 }, "{name:?}");
        }
    }

    #[test]
    fn a_name_listed_twice_is_refused() {
        let text = format!("# tag: v1.2.0\n{HASH}  a\n{HASH}  b\n{HASH}  a\n");
        assert_eq!(parse(text.as_bytes()).unwrap_err(), ChecksumsProblem::Duplicate { line: 4 });
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let lines: String = (0..MAX_LINES).map(|number| format!("{HASH}  file-{number}\n")).collect();
        assert_eq!(parse(format!("# tag: v1.2.0\n{lines}").as_bytes()).unwrap_err(), ChecksumsProblem::TooLong);
        assert_eq!(parse(&vec![b'#'; MAX_CHECKSUMS_BYTES + 1]).unwrap_err(), ChecksumsProblem::TooLong);
        assert_eq!(parse(b"# tag: v1.2.0\n\xff").unwrap_err(), ChecksumsProblem::NotText);
    }
}
