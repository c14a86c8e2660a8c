//! The ends that programs use: a local port for one connection, and standard input and output.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Client, Options, Status, Tunnel};
use crate::runtime;

const BUFFER: usize = 64 << 10;

/// A port of this machine that leads into a tunnel, for exactly one connection.
#[derive(Debug)]
pub struct LocalPort {
    address: SocketAddr,
    tunnel: Tunnel,
}

impl LocalPort {
    /// Listens on a free port of the loopback. Nothing is sent before the one who connects sends something.
    ///
    /// # Errors
    /// There is no free port.
    pub fn open(tunnel: Tunnel) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let carried = tunnel.clone();
        runtime::handle().spawn(async move {
            if let Err(error) = serve(listener, &carried).await {
                // The tunnel says to whoever asks why it ended; the local connection has no word for it.
                drop(error);
            }
        });
        Ok(Self { address, tunnel })
    }

    /// Where to connect to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The tunnel behind it.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }
}

async fn serve(listener: std::net::TcpListener, tunnel: &Tunnel) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let (stream, _) = tokio::select! {
        accepted = listener.accept() => accepted?,
        () = tunnel.wait_over() => return Ok(()),
    };
    drop(listener);
    stream.set_nodelay(true)?;
    let (from, to) = stream.into_split();
    carry(tunnel, from, to).await
}

/// Copies both ways until either side ends, then closes the tunnel: there is no half-close (protocol 7.3).
///
/// # Errors
/// The local side or the tunnel fails.
pub async fn carry(
    tunnel: &Tunnel,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let up = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match from.read(&mut buffer).await? {
                0 => return Ok::<_, io::Error>(()),
                count => tunnel.write(&buffer[..count]).await?,
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match tunnel.read(&mut buffer).await? {
                0 => return to.shutdown().await,
                count => {
                    to.write_all(&buffer[..count]).await?;
                    to.flush().await?;
                }
            }
        }
    };
    tokio::pin!(up, down);
    let ended = tokio::select! {
        ended = &mut up => match ended {
            // Nothing can be written to a tunnel that the peer has closed, but what came before is still to be delivered.
            Err(_) if tunnel.status() != Status::Open => down.await,
            ended => ended,
        },
        ended = &mut down => ended,
    };
    tunnel.close().await;
    ended
}

/// Which end `bamf-lab client` offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A local port, for one connection; its address is printed
    Tcp,
    /// Standard input and output, as ssh's ProxyCommand wants it
    Pipe,
}

/// Opens a tunnel and carries one of the two until it ends. `listening` is told where the local port is.
///
/// # Errors
/// There is no session, or it fails; as a text.
pub fn run(client: &Client, resource: &str, kind: Kind, listening: impl FnOnce(SocketAddr)) -> Result<(), String> {
    let options = Options { reconnect_pauses: Options::default().reconnect_pauses, ..Options::robust() };
    let tunnel = runtime::block_on(client.clone().with(options).connect(resource));
    let tunnel = tunnel.map_err(|error| chain(&error))?;
    let ended = match kind {
        Kind::Pipe => runtime::block_on(carry(&tunnel, tokio::io::stdin(), tokio::io::stdout())),
        Kind::Tcp => {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| error.to_string())?;
            listener.set_nonblocking(true).map_err(|error| error.to_string())?;
            listening(listener.local_addr().map_err(|error| error.to_string())?);
            runtime::block_on(serve(listener, &tunnel))
        }
    };
    ended.map_err(|error| format!("the tunnel has ended: {error}"))
}

/// An error with all that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_before_the_peer_closed_reaches_a_program_that_still_writes() {
        runtime::block_on(async {
            let (one, other) = tokio::io::duplex(1 << 20);
            let [mine, peers] = [one, other].map(|link| Tunnel::framed(Box::new(link), None, Options::robust()));
            let answer = vec![7; 300_000];
            peers.write(&answer).await.unwrap();
            peers.close().await;
            mine.wait_over().await;
            // A program that never stops writing, and a slow way to it.
            let (mut program, to_program) = tokio::io::duplex(100);
            let carried = carry(&mine, tokio::io::repeat(1), to_program);
            let mut received = Vec::new();
            let (carried, read) = tokio::join!(carried, program.read_to_end(&mut received));
            assert_eq!((carried.is_ok(), read.unwrap()), (true, answer.len()));
        });
    }
}
