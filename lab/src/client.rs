//! The client's end of tunnels: what `bamf tcp`, `bamf pipe` and their like do, well or badly as a test wants.
//!
//! It is written from the protocol alone (chapters 8 and 11) and shares nothing with the agent's stream, so that a
//! misreading on one side cannot hide behind the same misreading on the other. Other than the platform's client it judges
//! its peer: a gap, an acknowledgement of something never sent, a handshake with an impossible number end the tunnel with
//! a status that says so.
//!
//! ```text
//!   test ── Tunnel ──► shared buffers ◄── carrier ── link ── TLS ──► bridge
//!             │                              └─ on a break: api ─ connect again, dial, handshake
//!   test ── Wire ── bytes and frames by hand ─────────────────────► bridge
//! ```

mod api;
mod blocking;
mod carrier;
pub mod frame;
mod link;
pub mod local;
mod options;
mod sequence;
mod shared;
#[cfg(test)]
mod tests;
mod tunnel;
mod wire;

use std::io;
use std::pin::Pin;

pub use api::{Api, Error, Session, is_framed, rate_limit_pause};
pub use blocking::{BlockingWire, Pipe};
pub use carrier::{Dial, Duplex, Link};
pub use link::header;
pub use options::{AckPolicy, Handshake, Options, Window};
pub use sequence::Violation;
pub use shared::{Counts, Status};
pub use tunnel::Tunnel;
pub use wire::{Received, Wire};

/// A user of the platform.
#[derive(Clone, Debug)]
pub struct Client {
    api: Api,
    options: Options,
}

impl Client {
    /// A user of the platform at `api_url` whose HTTPS certificate `web_ca_pem` vouches for, with a session token.
    #[must_use]
    pub fn new(api_url: &str, web_ca_pem: &str, token: &str) -> Self {
        let api = Api { url: api_url.to_owned(), web_ca_pem: web_ca_pem.to_owned(), token: token.to_owned() };
        Self { api, options: Options::default() }
    }

    /// The same user with other manners.
    #[must_use]
    pub fn with(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// Opens a tunnel to a resource. It reconnects by itself if it is a framed one.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn connect(&self, resource: &str) -> Result<Tunnel, Error> {
        let session = self.api.connect(resource, None, &self.options).await?;
        let link = link::to_bridge(&session, &self.options).await?;
        let framed = session.is_framed();
        let dial = framed.then(|| self.dial(resource, &session.session_id));
        Ok(Tunnel::begin(link, dial, self.options.clone(), framed, Some(session)))
    }

    /// Asks for a session and does nothing with it: the agent waits at the bridge in vain.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn session(&self, resource: &str) -> Result<Session, Error> {
        self.api.connect(resource, None, &self.options).await
    }

    /// Opens a session whose bytes the caller writes and reads.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn wire(&self, resource: &str) -> Result<(Wire, Session), Error> {
        self.open_by_hand(resource, None).await
    }

    /// Comes back to a session with a new connection. The handshake is the caller's.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn wire_again(&self, resource: &str, session_id: &str) -> Result<(Wire, Session), Error> {
        self.open_by_hand(resource, Some(session_id)).await
    }

    async fn open_by_hand(&self, resource: &str, again: Option<&str>) -> Result<(Wire, Session), Error> {
        let session = self.api.connect(resource, again, &self.options).await?;
        Ok((Wire::new(link::to_bridge(&session, &self.options).await?), session))
    }

    fn dial(&self, resource: &str, session_id: &str) -> Dial {
        let (client, resource, session_id) = (self.clone(), resource.to_owned(), session_id.to_owned());
        Box::new(move || {
            let (client, resource, session_id) = (client.clone(), resource.clone(), session_id.clone());
            Box::pin(async move {
                let session = client.api.connect(&resource, Some(&session_id), &client.options).await;
                link::to_bridge(&session.map_err(io::Error::other)?, &client.options).await
            }) as Pin<Box<dyn Future<Output = io::Result<Link>> + Send>>
        })
    }
}
