//! What the relay needs from whoever dials bridges.
//!
//! A trait, so that the pool can be tried without TLS, and so that each dial takes the newest identity: the dialler is
//! asked every time, and a renewed certificate needs no word to the pool.

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::platform::wire::BridgeAddress;

/// Dials bridges as the agent.
pub trait Dial: Send + Sync + 'static {
    /// A connection whose handshake is done.
    type Link: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// Why there is none.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The agent's name, by which the bridge files its connections (protocol 9.1).
    fn agent_name(&self) -> String;

    /// Connects with the newest identity, trusting `ca_pem`, or the stored authority where that is missing or of no use.
    /// Also says how long it took.
    fn dial(
        &self,
        bridge: &BridgeAddress,
        ca_pem: Option<&str>,
    ) -> impl Future<Output = Result<(Self::Link, Duration), Self::Error>> + Send;
}

/// The bytes that open a relay connection (protocol 9.1).
#[must_use]
pub fn greeting(agent_name: &str) -> Vec<u8> {
    format!("RELAY\n{agent_name}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_the_protocols() {
        let vector = &crate::relay::vectors()["relay_header"];
        let greeting = greeting(vector["agent_name"].as_str().unwrap());
        assert_eq!(greeting, vector["text"].as_str().unwrap().as_bytes());
    }

    #[test]
    fn a_host_that_could_not_be_one_is_not_dialled() {
        let plausible = |host: &str, port| BridgeAddress { host: host.into(), port }.is_plausible();
        assert!(plausible("bridge-0.example.com", 8443) && plausible("::1", 1));
        assert!(!plausible("", 1) && !plausible("a", 0) && !plausible("a b", 1) && !plausible(&"a".repeat(254), 1));
    }
}
