//! A port for browsers: what they send goes to the bridge as the proxy would send it, and what comes back goes to them.
//!
//! One request for each connection, so that nothing behind a head needs to be understood: bodies, event streams and
//! WebSockets are copied until one side ends.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Visitor, request};
use crate::runtime::handle;
use crate::serve::Network;

const MOST_HEAD: usize = 64 << 10;
/// Of an upgrade, the proxy passes these on besides the user's own fields (protocol 9.7).
const UPGRADE: [&str; 4] = ["sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", "upgrade"];
/// What says how long a body is.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// A port that leads to one resource, on behalf of one user; no new connections after this is dropped.
#[derive(Debug)]
pub struct FrontDoor {
    address: SocketAddr,
    /// Its end is seen by the task that accepts.
    _open: watch::Sender<()>,
}

impl FrontDoor {
    /// Begins to listen. Whoever comes is this visitor.
    ///
    /// # Errors
    /// See [`Network::bind`].
    pub fn open(visitor: Visitor) -> io::Result<Self> {
        let listener = Network::Host.bind(0)?;
        listener.set_nonblocking(true)?;
        let (open, mut closed) = watch::channel(());
        let door = Self { address: listener.local_addr()?, _open: open };
        handle().spawn(async move {
            tokio::select! {
                _ = closed.changed() => {}
                () = accept(listener, visitor) => {}
            }
        });
        Ok(door)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: std::net::TcpListener, visitor: Visitor) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let visitor = visitor.clone();
        // A browser that leaves is no failure.
        tokio::spawn(async move { drop(pass(stream, &visitor).await) });
    }
}

async fn pass(mut browser: TcpStream, visitor: &Visitor) -> io::Result<()> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if read.len() > MOST_HEAD || browser.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let mut bridge = visitor.tcp().await?;
    bridge.write_all(visitor.translated(&head).as_bytes()).await?;
    bridge.write_all(&read[end..]).await?;
    tokio::io::copy_bidirectional(&mut browser, &mut bridge).await.map(drop)
}

impl Visitor {
    /// A browser's head as the proxy passes it on.
    fn translated(&self, head: &str) -> String {
        let mut lines = head.trim_end().split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let said: Vec<(&str, &str)> =
            lines.filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
        let among = |names: &[&str], name: &str| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        let upgrades = said.iter().any(|(name, _)| name.eq_ignore_ascii_case("upgrade"));
        let (kept, connection) = if upgrades { (&UPGRADE[..], "Upgrade") } else { (&FRAMING[..], "close") };
        // Of a WebSocket's request nothing else survives: the proxy makes one of its own.
        let own: Vec<_> = said.iter().copied().filter(|(name, _)| !upgrades && !among(&FRAMING, name)).collect();
        let mut translated = format!("{method} {} HTTP/1.1\r\nConnection: {connection}\r\n", self.path(path));
        let kept = said.iter().filter(|(name, _)| among(kept, name));
        let kept = kept.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        for (name, value) in request::fields(&self.resource, &self.user, &own).into_iter().chain(kept) {
            translated.push_str(&format!("{name}: {value}\r\n"));
        }
        translated + "\r\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::visitor::Resource;

    #[test]
    fn a_browsers_head_becomes_the_proxys() {
        let visitor = Visitor::new(SocketAddr::from(([127, 0, 0, 1], 1)), "edge-1", Resource::web("wiki", "w", 1));
        let plain = "POST /a?b HTTP/1.1\r\nHost: x\r\nX-Bamf-Target: evil\r\nContent-Length: 3\r\nCookie: a=1\r\n\r\n";
        let plain = visitor.translated(plain);
        assert!(
            plain.starts_with("POST /relay/edge-1/a?b HTTP/1.1\r\nConnection: close\r\nHost: w:1\r\nCookie: a=1\r\n")
        );
        assert!(plain.ends_with("Content-Length: 3\r\n\r\n") && plain.contains("X-Bamf-Target: http://w:1\r\n"));
        let upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nCookie: a=1\r\n\
                       Sec-WebSocket-Extensions: deflate\r\nSec-WebSocket-Key: k\r\n\r\n";
        let upgrade = visitor.translated(upgrade);
        assert!(upgrade.contains("\r\nConnection: Upgrade\r\n") && upgrade.contains("\r\nUpgrade: websocket\r\n"));
        assert!(
            upgrade.contains("Sec-WebSocket-Key: k") && !upgrade.contains("Cookie") && !upgrade.contains("deflate")
        );
    }
}
