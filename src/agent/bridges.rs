//! How the relay and probes get to bridges: with the identity certificate of the moment, never a session's (protocol 9.1).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::Session;
use crate::platform::wire::BridgeAddress;
use crate::relay::dial::Dial;
use crate::tunnel::{Credentials, Link, dial};

/// Dials bridges as the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Bridges {
    session: watch::Receiver<Session>,
    /// The last credentials, and what they were made of: a pool dials 32 times with the same.
    made: Arc<Mutex<Option<Made>>>,
}

#[derive(Debug)]
struct Made {
    certificate_sha256: String,
    ca_pem: String,
    credentials: Credentials,
}

impl Bridges {
    pub(super) fn new(session: watch::Receiver<Session>) -> Self {
        Self { session, made: Arc::default() }
    }

    /// The present identity, with `ca_pem` to believe, or the stored authority where that is missing or of no use.
    fn credentials(&self, ca_pem: Option<&str>) -> Result<Credentials, dial::Error> {
        let identity = Arc::clone(&self.session.borrow().identity);
        let ca_pem = ca_pem.unwrap_or(&identity.material.ca_pem);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*made
            && made.certificate_sha256 == identity.sha256
            && made.ca_pem == ca_pem
        {
            return Ok(made.credentials.clone());
        }
        let (certificate, key) = (&identity.material.certificate_pem, &identity.material.private_key_pem);
        let with = |ca: &str| Credentials::new(certificate.expose(), key.expose(), ca);
        let credentials = with(ca_pem).or_else(|_| with(&identity.material.ca_pem))?;
        *made = Some(Made {
            certificate_sha256: identity.sha256.clone(),
            ca_pem: ca_pem.to_owned(),
            credentials: credentials.clone(),
        });
        Ok(credentials)
    }
}

impl Dial for Bridges {
    type Link = Link;
    type Error = dial::Error;

    fn agent_name(&self) -> String {
        self.session.borrow().identity.name.clone()
    }

    async fn dial(&self, bridge: &BridgeAddress, ca_pem: Option<&str>) -> Result<(Link, Duration), dial::Error> {
        dial::connect(bridge, &self.credentials(ca_pem)?).await
    }
}
