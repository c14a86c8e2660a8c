//! Exit codes and reason words: the one table behind contract section 1.
//!
//! Scripts and unit files branch on these, so a word or a number that has shipped never changes its meaning. Everything
//! that ends the process goes through [`Exit`]; everything the updater refuses or fails on carries a [`Reason`], and the
//! reason alone decides the code, so the two cannot disagree.

use serde::Serialize;

/// How the process ends (contract section 1, "Exit codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or already up to date.
    Done = 0,
    /// Unexpected failure.
    Failed = 1,
    /// The command line was not understood.
    Usage = 2,
    /// `update --check`: an update is available.
    Available = 10,
    /// Refused: newer than the API reports, or the API's version is unknown.
    BeyondApi = 20,
    /// Refused: not authentic.
    NotAuthentic = 21,
    /// Refused: not self-updatable here.
    NotSelfUpdatable = 22,
    /// The new version did not become healthy; the old one was restored and is running.
    RolledBack = 23,
    /// The old version could not be restored either: an operator is needed.
    OperatorNeeded = 24,
    /// Refused: older than installed, pinned, or known bad.
    HeldBack = 25,
    /// Another update is running.
    Locked = 26,
    /// The API or the release source cannot be reached.
    Unreachable = 69,
    /// No space, I/O error, read-only file system.
    Disk = 74,
    /// Needs root.
    NotPermitted = 77,
    /// Configuration or stored identity is invalid.
    Config = 78,
}

impl Exit {
    /// Every code, in the order of the contract's table.
    pub const ALL: [Self; 15] = [
        Self::Done,
        Self::Failed,
        Self::Usage,
        Self::Available,
        Self::BeyondApi,
        Self::NotAuthentic,
        Self::NotSelfUpdatable,
        Self::RolledBack,
        Self::OperatorNeeded,
        Self::HeldBack,
        Self::Locked,
        Self::Unreachable,
        Self::Disk,
        Self::NotPermitted,
        Self::Config,
    ];

    /// The number that the process exits with.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// Declares the reason words once: variant, word, exit code, meaning.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal => $exit:ident;)+) => {
        /// Why an update was refused or failed: a stable `snake_case` word (contract section 1, `update --json`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// Every reason, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The stable word.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            /// The exit code that goes with it.
            #[must_use]
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit,)+ }
            }

            /// The reason behind a stable word, e.g. one read back from the history.
            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.word() == word)
            }
        }
    };
}

reasons! {
    /// The version asked for is newer than the API reports.
    NewerThanApi = "newer_than_api" => BeyondApi;
    /// The API does not report its version and none was assumed.
    ApiVersionUnknown = "api_version_unknown" => BeyondApi;
    /// A signature is missing, malformed or does not verify.
    BadSignature = "bad_signature" => NotAuthentic;
    /// A file does not have the signed SHA-256, or checksums.txt is malformed.
    BadChecksum = "bad_checksum" => NotAuthentic;
    /// The signed tag is not the tag asked for.
    TagMismatch = "tag_mismatch" => NotAuthentic;
    /// The binary is for another architecture or operating system.
    WrongPlatform = "wrong_platform" => NotAuthentic;
    /// The staged binary reports another version than the one that was signed.
    WrongVersion = "wrong_version" => NotAuthentic;
    /// Signed, but by no trusted key.
    UntrustedKey = "untrusted_key" => NotAuthentic;
    /// A file exceeds its size limit.
    TooLarge = "too_large" => NotAuthentic;
    /// A download kept ending before its announced length.
    Truncated = "truncated" => NotAuthentic;
    /// The version asked for is older than the installed one.
    OlderThanInstalled = "older_than_installed" => HeldBack;
    /// The agent is pinned to another version.
    Pinned = "pinned" => HeldBack;
    /// The version was rolled back before on this machine.
    KnownBad = "known_bad" => HeldBack;
    /// The version is a pre-release and none was allowed.
    Prerelease = "prerelease" => HeldBack;
    /// The installed binary belongs to a package manager.
    PackageManaged = "package_managed" => NotSelfUpdatable;
    /// Running in Kubernetes: the image is updated, not the file.
    InKubernetes = "in_kubernetes" => NotSelfUpdatable;
    /// Running in a container without a service manager.
    InContainer = "in_container" => NotSelfUpdatable;
    /// The installed binary's directory cannot be written.
    NotWritable = "not_writable" => NotSelfUpdatable;
    /// Another update holds the lock.
    Locked = "locked" => Locked;
    /// The API cannot be reached.
    ApiUnreachable = "api_unreachable" => Unreachable;
    /// The release source cannot be reached, or sends somewhere that is not allowed.
    SourceUnreachable = "source_unreachable" => Unreachable;
    /// The release source has no such release.
    NotFound = "not_found" => Unreachable;
    /// The disk is full.
    NoSpace = "no_space" => Disk;
    /// The disk failed.
    DiskError = "disk_error" => Disk;
    /// The staged binary's own check failed with the live configuration.
    SelftestFailed = "selftest_failed" => Failed;
    /// The new version did not become healthy and the old one was restored.
    Unhealthy = "unhealthy" => RolledBack;
    /// The old version could not be restored.
    RestoreFailed = "restore_failed" => OperatorNeeded;
    /// There is no kept binary to go back to.
    NoPrevious = "no_previous" => Failed;
    /// Root is needed.
    NotPermitted = "not_permitted" => NotPermitted;
    /// The configuration or the stored identity is invalid.
    ConfigInvalid = "config_invalid" => Config;
    /// Something that should not happen.
    Internal = "internal" => Failed;
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_word_is_snake_case_and_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for reason in Reason::ALL {
            let word = reason.word();
            assert!(word.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{word}");
            assert!(seen.insert(word), "{word} twice");
            assert_eq!(Reason::from_word(word), Some(*reason));
        }
    }
}
