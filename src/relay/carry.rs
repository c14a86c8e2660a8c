//! A relay connection on its way to another process, as plain data.

use std::io;

use serde::{Deserialize, Serialize};

use super::Carried;
use super::conversation::Conversation;
use super::dial::BridgeAddress;
use super::exchange::Connection;
use super::route::Target;
use super::targets::Stream;
use crate::handoff::{Arrival, Departure};
use crate::tunnel::{Link, link};

/// A relay connection.
#[derive(Serialize, Deserialize)]
pub struct Record {
    edge: String,
    bridge: BridgeAddress,
    #[serde(default)]
    ca_pem: Option<String>,
    #[serde(default)]
    superseded: bool,
    conversation: Conversation,
    socket: u32,
    link: link::State,
    #[serde(default)]
    target: Option<TargetRecord>,
}

/// The target's side of it.
#[derive(Serialize, Deserialize)]
struct TargetRecord {
    target: Target,
    socket: u32,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("edge", &self.edge).field("bridge", &self.bridge).finish_non_exhaustive()
    }
}

impl Record {
    /// Takes a connection apart; its sockets go to `departure`.
    ///
    /// # Errors
    /// The runtime does not give its socket back: then it is closed.
    pub fn of(carried: Carried<Link>, departure: &mut Departure) -> io::Result<Self> {
        let Carried { edge, bridge, ca_pem, superseded, connection } = carried;
        let Connection { conversation, bridge: link, target } = connection;
        let (socket, link) = link.export()?;
        let socket = departure.take(socket);
        // The state of TLS to a target is in a library that does not give it away: such a request is answered 504.
        let target = match target {
            Some((target, Stream::Plain(stream))) => {
                Some(TargetRecord { target, socket: departure.take(stream.into_std()?.into()) })
            }
            Some((_, Stream::Tls(_))) | None => None,
        };
        Ok(Self { edge, bridge, ca_pem, superseded, conversation, socket, link, target })
    }

    /// Puts it together again. Without the target's connection it goes on as far as it can.
    ///
    /// # Errors
    /// Its socket did not come along, or no connection can be in such a state.
    pub fn revive(self, arrival: &mut Arrival) -> io::Result<Carried<Link>> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "its socket is gone");
        let impossible = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let Self { edge, bridge, ca_pem, superseded, conversation, socket, link, target } = self;
        let conversation = conversation.checked().map_err(impossible)?;
        let link = Link::import(arrival.socket(socket).ok_or_else(gone)?, link)?;
        let target = target.and_then(|TargetRecord { target, socket }| {
            let stream = link::adopt(arrival.socket(socket)?).ok()?;
            Some((target, Stream::Plain(stream)))
        });
        let connection = Connection { conversation, bridge: link, target };
        Ok(Carried { edge, bridge, ca_pem, superseded, connection })
    }
}
