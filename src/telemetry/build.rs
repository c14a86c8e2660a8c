//! Which build this is (contract section 1: `--version`).

use std::fmt;

use semver::Version;
use serde::Serialize;

/// The release version of the crate, used where none was given at build time.
const CARGO_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Identifies a build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Build {
    /// Release version.
    pub version: Version,
    /// `linux/amd64`: names as in release assets, not as in Rust's targets.
    pub platform: String,
    /// Version of the compiler.
    pub rustc: &'static str,
    /// Short commit id, or `unknown` outside a checkout.
    pub commit: &'static str,
}

impl Build {
    /// This build. `stamped` is what `BAMF_VERSION` held when the binary was compiled, with or without a leading `v`.
    ///
    /// # Errors
    /// The stamped text is no semantic version: such a binary must not pretend to be a release.
    pub fn current(stamped: Option<&str>) -> Result<Self, semver::Error> {
        let version = match stamped.map(str::trim).filter(|text| !text.is_empty()) {
            Some(text) => Version::parse(text.strip_prefix('v').unwrap_or(text))?,
            None => Version::parse(&format!("{CARGO_VERSION}-dev"))?,
        };
        Ok(Self {
            version,
            platform: format!("{}/{}", std::env::consts::OS, architecture()),
            rustc: env!("BAMF_BUILD_RUSTC"),
            commit: env!("BAMF_BUILD_COMMIT"),
        })
    }
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, platform, rustc, commit } = self;
        write!(f, "{version} ({platform}, rustc {rustc}, commit {commit})")
    }
}

/// The architecture as release assets name it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leading_v_is_allowed_and_nothing_stamped_is_a_development_version() {
        for stamped in ["v1.2.0", "1.2.0", " v1.2.0 "] {
            assert_eq!(Build::current(Some(stamped)).unwrap().version, Version::new(1, 2, 0));
        }
        for stamped in [None, Some("")] {
            assert_eq!(Build::current(stamped).unwrap().version.pre.as_str(), "dev");
        }
        assert!(Build::current(Some("latest")).is_err());
    }
}
