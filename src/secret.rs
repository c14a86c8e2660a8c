//! A text that must not be seen: it prints as `***`, and its memory is wiped when it is dropped.
//!
//! Join tokens, private keys, the identity certificate (a bearer secret: protocol 1.4) and the GitHub token travel in
//! this type, so that no `Debug`, log line or panic can show them. Reading the text takes a call that names itself.

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// A secret text. Whoever serialises one says by that where it may lie.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes ownership of a secret text.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Callers hand it to a peer or a file, never to a log.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_itself_in_no_formatting() {
        let secret = Secret::new("bamf_0011".into());
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "bamf_0011");
    }
}
