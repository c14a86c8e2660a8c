//! Who this agent is: the certificate that it got when it joined, and everything that keeps it (contract section 3).
//!
//! An agent joins once. From then on `agent.crt`, `agent.key` and `ca.crt` in the data directory are its identity; the
//! token is never needed again, and a lost or doubled registration can only be mended by an administrator. So this room
//! is built around not losing the set: [`Store`] writes it atomically as a whole, [`inspect`] accepts only files that
//! belong together, [`schedule`] renews long before the end, and [`instance`] keeps the process's id across restarts.
//!
//! ```text
//!   join ──► Reservation ──► .next/ ──► agent.key agent.crt ca.crt ──► used once ──► .previous/ removed
//!             (space is       (commit     (hard links, renamed            │
//!              held first)     point)      into place)                    └─► refused: .previous/ comes back
//! ```
//!
//! The three files are the same that the Go agent writes, so a machine moves between the two without registering again.

pub mod inspect;
pub mod instance;
pub mod schedule;
pub mod shared;
pub mod store;

use std::time::SystemTime;

use crate::secret::Secret;

pub use store::{Error, Reservation, Store};

/// The three texts as the platform sends them (protocol 3.5: join and renew).
#[derive(Clone, Debug)]
pub struct Material {
    /// PEM of the identity certificate: a bearer secret (protocol 1.4).
    pub certificate_pem: Secret,
    /// PEM of the PKCS#8 private key.
    pub private_key_pem: Secret,
    /// PEM of the platform's certificate authority.
    pub ca_pem: String,
}

/// A set that was checked: the key fits the certificate, and the authority signed it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The three texts.
    pub material: Material,
    /// The agent's name: the certificate's common name, which wins over the configuration.
    pub name: String,
    /// SHA-256 of the certificate's DER, lower-case hex; public.
    pub sha256: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl Identity {
    /// True once the certificate's end has passed by the given clock.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.not_after
    }
}
